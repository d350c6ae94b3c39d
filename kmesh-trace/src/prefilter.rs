//! The kernel half of the filters: what of a [`Filter`] can be decided from a socket's ports, family and direction, in the form that the eBPF programs check. An optimisation, tested equal: it may let through what the filter
//! sorts out later, never the other way round.
//!
//! The eBPF side can check addresses too (`CHECK_ADDRESS`), but its loop over networks takes the verifier seconds, which a
//! tool that is started in the middle of an incident does not have; so addresses are left to the filter.

use bytemuck::Zeroable;
use kmesh_trace_common::{
    CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND, DIRECTION_OUTBOUND,
    FAMILY_IPV4, FAMILY_IPV6, Prefilter,
};

use crate::filter::Filter;
use crate::record::{Direction, Family};

/// The kernel half, and which of its checks there are (`CHECK_*`).
pub fn prefilter(filter: &Filter) -> (u32, Box<Prefilter>) {
    let mut half = Box::new(Prefilter::zeroed());
    let mut checks = 0;
    if let Some(family) = filter.family {
        checks |= CHECK_FAMILY;
        half.families = match family {
            Family::Ipv4 => FAMILY_IPV4,
            Family::Ipv6 => FAMILY_IPV6,
        };
    }
    if !filter.direction.is_empty() {
        checks |= CHECK_DIRECTION;
        for (direction, bit) in [
            (Direction::Inbound, DIRECTION_INBOUND),
            (Direction::Outbound, DIRECTION_OUTBOUND),
        ] {
            if filter.direction.pass(|&wanted| wanted == direction) {
                half.directions |= bit;
            }
        }
    }
    let ports = &filter.ports;
    if !(ports.bare.is_empty() && ports.to.is_empty()) {
        checks |= CHECK_SERVER_PORT;
        let passes =
            |port| ports.bare.pass(|range| range.contains(port)) && ports.to.pass(|range| range.contains(port));
        fill(&mut half.server_ports, passes);
    }
    if !ports.from.is_empty() {
        checks |= CHECK_CLIENT_PORT;
        fill(&mut half.client_ports, |port| {
            ports.from.pass(|range| range.contains(port))
        });
    }
    (checks, half)
}

fn fill(ports: &mut [u64; 1024], passes: impl Fn(u16) -> bool) {
    for port in 0..=u16::MAX {
        if passes(port) {
            ports[usize::from(port >> 6)] |= 1 << (port & 63);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{PortRange, Term};

    #[test]
    fn nothing_asked_is_nothing_checked() {
        assert_eq!(prefilter(&Filter::default()).0, 0);
    }

    #[test]
    fn ports_of_both_flags_are_one_set() {
        let mut filter = Filter::default();
        let range = |text: &str, negated| Term {
            negated,
            value: text.parse::<PortRange>().unwrap(),
        };
        filter.ports.bare = [range("80-90", false), range("85", true)].into_iter().collect();
        filter.ports.to = [range("84-65535", false)].into_iter().collect();
        let (checks, half) = prefilter(&filter);
        assert_eq!(checks, CHECK_SERVER_PORT);
        let has = |port: u16| half.server_ports[usize::from(port) / 64] >> (port % 64) & 1 == 1;
        let ports: Vec<u16> = (0..=u16::MAX).filter(|&port| has(port)).collect();
        assert_eq!(ports, [84, 86, 87, 88, 89, 90]);
    }

    #[test]
    fn addresses_are_left_to_the_filter() {
        let mut filter = Filter::default();
        filter.networks.bare.any = vec!["10.0.0.0/8".parse().unwrap()];
        assert_eq!(prefilter(&filter).0, 0);
    }
}
