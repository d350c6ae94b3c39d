//! The kernel half of the filters: what of a [`Filter`] can be decided from a socket's addresses, ports, family and
//! direction, in the form that the eBPF programs check. An optimisation, tested equal: it may let through what the filter
//! sorts out later, never the other way round.

use std::net::IpAddr;

use bytemuck::Zeroable;
use ipnet::IpNet;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND,
    DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, NETWORKS, Network, Prefilter, end,
};

use crate::filter::{Filter, Terms};
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
    let networks = &filter.networks;
    let flags = [
        (&networks.bare, end::EITHER),
        (&networks.from, end::CLIENT),
        (&networks.to, end::SERVER),
    ];
    let wanted: usize = flags.iter().map(|(terms, _)| terms.any.len() + terms.none.len()).sum();
    // With more than fit, none is checked: some of several positive ones would sort out what the others let pass.
    if (1..=NETWORKS).contains(&wanted) {
        checks |= CHECK_ADDRESS;
        for (terms, end) in flags {
            add(&mut half, terms, end);
        }
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

fn add(half: &mut Prefilter, terms: &Terms<crate::filter::Network>, end: u8) {
    if !terms.any.is_empty() {
        half.must_match |= 1 << end;
    }
    for (networks, negated) in [(&terms.any, 0), (&terms.none, 1)] {
        for network in networks {
            let (address, mask) = mapped(network.0);
            half.networks[half.networks_len as usize] = Network {
                address,
                mask,
                end,
                negated,
                pad: [0; 6],
            };
            half.networks_len += 1;
        }
    }
}

/// A network as IPv6, IPv4-mapped for IPv4: address and mask.
fn mapped(network: IpNet) -> ([u64; 2], [u64; 2]) {
    let (address, bits) = match network.network() {
        IpAddr::V4(address) => (address.to_ipv6_mapped(), 96 + network.prefix_len()),
        IpAddr::V6(address) => (address, network.prefix_len()),
    };
    let mask = match bits {
        0 => 0,
        bits => u128::MAX << (128 - bits),
    };
    (
        halves((address.to_bits() & mask).to_be_bytes()),
        halves(mask.to_be_bytes()),
    )
}

/// 16 bytes as the kernel half reads them: two words in memory order.
fn halves(bytes: [u8; 16]) -> [u64; 2] {
    bytemuck::cast(bytes)
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
    fn networks_are_ipv6_whatever_they_are() {
        let cases = [
            ("10.1.2.0/24", "::ffff:10.1.2.0", 120),
            ("10.1.2.3/32", "::ffff:10.1.2.3", 128),
            ("0.0.0.0/0", "::ffff:0.0.0.0", 96),
            ("fd00::/8", "fd00::", 8),
            ("::/0", "::", 0),
        ];
        for (text, address, bits) in cases {
            let (found, mask) = mapped(text.parse().unwrap());
            let address: std::net::Ipv6Addr = address.parse().unwrap();
            assert_eq!(found, halves(address.octets()), "{text}");
            let ones: u32 = mask.iter().map(|half| half.count_ones()).sum();
            assert_eq!(ones, bits, "{text}");
        }
    }

    #[test]
    fn too_many_networks_are_left_to_the_filter() {
        let mut filter = Filter::default();
        filter.networks.bare.any = (0..=NETWORKS).map(|n| format!("10.0.0.{n}").parse().unwrap()).collect();
        assert_eq!(prefilter(&filter).0, 0);
        filter.networks.bare.any.pop();
        let (checks, half) = prefilter(&filter);
        assert_eq!((checks, half.networks_len, half.must_match), (CHECK_ADDRESS, 16, 1));
    }
}
