//! The one table of the `tcp_sock` members that the programs read, and what is generated from it.

use bytemuck::{Pod, Zeroable};

/// Calls the macro `$define` with the table of `tcp_sock` members.
///
/// The snapshot's fields, the offsets, the getters of the eBPF programs, `record::Tcp`, its JSON members and their schema are
/// generated from this table. So a new counter is one line here, and one in the documents of the contract.
///
/// `reported` lists the members that records have under `tcp`, in the order of the JSON members. Its columns are: the name
/// everywhere outside the kernel; the width in the kernel (`u64`, `u32`, `u16` or `u8`); the path in `tcp_sock`; the unit, a
/// type of [`unit`](crate::unit), which makes the record's value from the kernel's; and the description in the schema.
///
/// `internal` lists the members that the programs need for something else: name, width, path, description.
#[macro_export]
macro_rules! tcp_fields {
    ($define:ident) => {
        $define! {
            reported {
                srtt_us: u32, "srtt_us", Eighths, "Smoothed round-trip time; null without a sample.";
                rtt_min_us: u32, "rtt_min.s.v", Nullable, "Least round-trip time of late; null without a sample.";
                mss: u32, "mss_cache", Count, "Largest payload of a segment, bytes.";
                snd_cwnd: u32, "snd_cwnd", Count, "Congestion window, segments.";
                snd_ssthresh: u32, "snd_ssthresh", Count, "Slow start threshold, segments.";
                rcv_nxt: u32, "rcv_nxt", Count, "Sequence number expected next from the peer.";
                snd_nxt: u32, "snd_nxt", Count, "Sequence number of the next new byte.";
                snd_una: u32, "snd_una", Count, "First sequence number that the peer has not acknowledged.";
                ecn_flags: u8, "ecn_flags", Count, "State of explicit congestion notification, the kernel's bits.";
                rate_delivered: u32, "rate_delivered", Count, "Segments delivered in the latest sample of the delivery rate.";
                rate_interval_us: u32, "rate_interval_us", Count, "Duration of the latest sample of the delivery rate.";
                packets_out: u32, "packets_out", Count, "Segments sent and not acknowledged.";
                retrans_out: u32, "retrans_out", Count, "Segments retransmitted and not acknowledged.";
                total_retrans: u32, "total_retrans", Count, "Segments retransmitted.";
                segs_in: u32, "segs_in", Count, "Segments received.";
                data_segs_in: u32, "data_segs_in", Count, "Segments with payload received.";
                segs_out: u32, "segs_out", Count, "Segments sent.";
                data_segs_out: u32, "data_segs_out", Count, "Segments with payload sent.";
                lost: u32, "lost", Count, "Segments ever marked lost.";
                lost_out: u32, "lost_out", Count, "Segments marked lost now.";
                sacked_out: u32, "sacked_out", Count, "Segments in flight that the peer acknowledged selectively.";
                bytes_received: u64, "bytes_received", Count, "Counts the peer's FIN.";
                bytes_acked: u64, "bytes_acked", Count, "Counts an active open's SYN, and the FIN.";
                dsack_dups: u32, "dsack_dups", Count, "Duplicate segments that the peer reported.";
                delivered: u32, "delivered", Count, "Segments delivered, retransmitted ones included.";
                delivered_ce: u32, "delivered_ce", Count, "Segments delivered with a mark of congestion.";
                icsk_retransmits: u8, "inet_conn.icsk_retransmits", Count, "Retransmissions without an answer, until now.";
                bytes_sent: u64, "bytes_sent", Count, "Payload sent, retransmitted payload included.";
                bytes_retrans: u64, "bytes_retrans", Count, "Payload retransmitted.";
            }
            internal {
                inet_sport: u16, "inet_conn.icsk_inet.inet_sport", "The local port, big-endian.";
                write_seq: u32, "write_seq", "Sequence number after the last byte that the program wrote.";
                snd_wl1: u32, "snd_wl1", "Sequence number of the segment that last moved the window.";
                linger2: i32, "linger2", "Time to wait for the peer's FIN, ticks; negative: do not wait.";
                retrans_stamp: u32, "retrans_stamp", "When the first SYN was sent, ms of CLOCK_MONOTONIC.";
            }
        }
    };
}

/// How a number of the kernel becomes the value in a record: the fourth column of [`tcp_fields!`](crate::tcp_fields).
pub mod unit {
    use core::ops::Not;

    use bytemuck::Zeroable;

    /// Makes a record's value from the kernel's number.
    pub trait Unit<Raw> {
        /// The record's value.
        type Value;

        /// Whether the tool also runs on kernels that lack the member. The programs then read all ones.
        const IS_OPTIONAL: bool = false;

        /// Returns the record's value.
        fn value(raw: Raw) -> Self::Value;
    }

    /// The kernel's number as it is.
    pub struct Count;

    impl<Raw> Unit<Raw> for Count {
        type Value = Raw;

        fn value(raw: Raw) -> Raw {
            raw
        }
    }

    /// The kernel's number as it is, and none where all bits are ones: the kernel has no sample, or no such member.
    pub struct Nullable;

    impl<Raw: Zeroable + Not<Output = Raw> + PartialEq> Unit<Raw> for Nullable {
        type Value = Option<Raw>;

        const IS_OPTIONAL: bool = true;

        fn value(raw: Raw) -> Option<Raw> {
            (raw != !Raw::zeroed()).then_some(raw)
        }
    }

    /// A time of which the kernel keeps eight times the value, and 0 without a sample.
    pub struct Eighths;

    impl Unit<u32> for Eighths {
        type Value = Option<u32>;

        fn value(raw: u32) -> Option<u32> {
            (raw != 0).then_some(raw >> 3)
        }
    }
}

/// Defines the offsets of all members of the table.
macro_rules! offsets {
    (
        reported { $($name:ident: $width:ident, $path:literal, $unit:ident, $description:literal;)* }
        internal { $($internal:ident: $internal_width:ident, $internal_path:literal, $internal_description:literal;)* }
    ) => {
        /// Byte offsets of the table's members from the start of `tcp_sock`; [`ABSENT`](crate::ABSENT) where the kernel has no
        /// such member.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct TcpOffsets {
            $(
                #[doc = concat!("`tcp_sock.", $path, "`, ", stringify!($width), ": ", $description)]
                pub $name: u32,
            )*
            $(
                #[doc = concat!("`tcp_sock.", $internal_path, "`, ", stringify!($internal_width), ": ", $internal_description)]
                pub $internal: u32,
            )*
        }
    };
}

tcp_fields!(offsets);

#[cfg(test)]
mod tests {
    use super::unit::{Count, Eighths, Nullable, Unit};

    #[test]
    fn a_count_is_the_kernels_number() {
        assert_eq!([0, u32::MAX].map(<Count as Unit<u32>>::value), [0, u32::MAX]);
    }

    #[test]
    fn nullable_number_is_none_if_all_bits_are_ones() {
        assert_eq!(
            [0, 98, u32::MAX].map(<Nullable as Unit<u32>>::value),
            [Some(0), Some(98), None]
        );
        assert_eq!([7, u16::MAX].map(<Nullable as Unit<u16>>::value), [Some(7), None]);
    }

    #[test]
    fn eighths_are_rounded_down_and_zero_is_none() {
        assert_eq!([0, 967].map(<Eighths as Unit<u32>>::value), [None, Some(120)]);
    }
}
