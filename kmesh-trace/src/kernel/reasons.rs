//! The running kernel's names of the reasons why it drops a packet or sends a RST.

use kmesh_trace_common::MAX_DROP_REASONS;

use crate::record::ReasonNames;

use super::btf::Btf;

/// The kernel's types of reasons.
pub const ENUMS: &[&str] = &[DROP_ENUM, RESET_ENUM];
const DROP_ENUM: &str = "skb_drop_reason";
const RESET_ENUM: &str = "sk_rst_reason";

/// The tracepoints whose third argument is a reason, if the kernel has that argument.
pub const DROP_HOOK: &str = "btf_trace_kfree_skb";
pub const RESET_HOOK: &str = "btf_trace_tcp_send_reset";

const DROP_PREFIX: &str = "SKB_DROP_REASON_";
const RESET_PREFIX: &str = "SK_RST_REASON_";

/// A closing socket discards its own segments.
const QUEUE_PURGE: &str = "QUEUE_PURGE";

/// The reasons that the running kernel gives.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    /// Why a packet was dropped; empty if the kernel does not say (before 5.17).
    pub drop: ReasonNames,
    /// Why a RST was sent; empty if the kernel does not say (before 6.10).
    pub reset: ReasonNames,
}

impl Reasons {
    /// Looks up the names in the kernel's BTF.
    pub fn find(btf: &Btf<'_>) -> Self {
        let names = |hook, name, prefix| match btf.argument_count(hook) {
            Some(count) if count >= 3 => ReasonNames::new(btf.enumeration(name), prefix),
            _ => ReasonNames::default(),
        };
        Self {
            drop: names(DROP_HOOK, DROP_ENUM, DROP_PREFIX),
            reset: names(RESET_HOOK, RESET_ENUM, RESET_PREFIX),
        }
    }

    /// Returns whether the kernel says why it drops a packet.
    pub fn has_drops(&self) -> bool {
        self.drop.iter().next().is_some()
    }

    /// Returns whether the kernel says why it sends a RST.
    pub fn has_resets(&self) -> bool {
        self.reset.iter().next().is_some()
    }

    /// Returns whether the kernel gives this reason of a RST.
    pub fn has_reset(&self, name: &str) -> bool {
        self.reset.iter().any(|(_, known)| **known == *name)
    }

    /// Returns the reasons that count as a drop: bit `reason % 64` of word `reason / 64`.
    pub fn counted_drops(&self) -> [u64; MAX_DROP_REASONS / 64] {
        let mut bits = [0; MAX_DROP_REASONS / 64];
        for (number, name) in self.drop.iter() {
            if **name != *QUEUE_PURGE {
                bits[number as usize / 64] |= 1 << (number % 64);
            }
        }
        bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(enumerators: &[(u32, &str)], prefix: &str) -> ReasonNames {
        let owned = enumerators.iter().map(|&(number, name)| (number, name.to_owned()));
        ReasonNames::new(owned, prefix)
    }

    #[test]
    fn reason_has_the_kernels_name_without_its_prefix() {
        let names = names(
            &[
                (0, "SKB_NOT_DROPPED_YET"),
                (2, "SKB_DROP_REASON_NOT_SPECIFIED"),
                (12, "SKB_DROP_REASON_NETFILTER_DROP"),
                (120, "SKB_DROP_REASON_MAX"),
                (0xffff_0000, "SKB_DROP_REASON_SUBSYS_MASK"),
            ],
            DROP_PREFIX,
        );
        assert_eq!(names.name(12).as_deref(), Some("NETFILTER_DROP"));
        for number in [0, 2, 3, 120, u32::MAX] {
            assert_eq!(names.name(number), None, "{number}");
        }
    }

    #[test]
    fn segments_that_a_closing_socket_discards_do_not_count() {
        let reasons = Reasons {
            drop: names(
                &[
                    (2, "SKB_DROP_REASON_NOT_SPECIFIED"),
                    (3, "SKB_DROP_REASON_NO_SOCKET"),
                    (70, "SKB_DROP_REASON_QUEUE_PURGE"),
                    (65, "SKB_DROP_REASON_TCP_OVERWINDOW"),
                ],
                DROP_PREFIX,
            ),
            reset: ReasonNames::default(),
        };
        assert_eq!(reasons.counted_drops(), [1 << 3, 1 << 1, 0, 0]);
        assert!(reasons.has_drops() && !reasons.has_resets());
    }
}
