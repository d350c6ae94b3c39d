//! The kernel half of the filters: what of a [`Filter`] can be decided from a socket's ports, addresses, family and
//! direction, in the form that the eBPF programs check. An optimisation, tested equal: it may let through what the filter
//! sorts out later, never the other way round.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytemuck::Zeroable;
use ipnet::IpNet;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND,
    DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, Prefilter, Prefix, term,
};

use crate::filter::{Ends, Filter, Network, Terms};
use crate::record::{Direction, Family};

/// Where IPv4 stands in IPv6: bits of the prefix of all mapped addresses.
const MAPPED_BITS: u32 = 96;

/// What the eBPF programs get.
#[derive(Clone, Debug)]
pub struct KernelHalf {
    /// Which checks there are: `CHECK_*`; the rest of this counts only where there is its check.
    pub checks: u32,
    /// Ports, family and direction.
    pub prefilter: Box<Prefilter>,
    /// What each network says: bits of [`term`].
    pub networks: Vec<(Prefix, u32)>,
}

impl KernelHalf {
    /// The kernel half of this filter.
    pub fn of(filter: &Filter) -> Self {
        let mut checks = 0;
        let mut passing = all_passing();
        if let Some(family) = filter.family {
            checks |= CHECK_FAMILY;
            passing.families = match family {
                Family::Ipv4 => FAMILY_IPV4,
                Family::Ipv6 => FAMILY_IPV6,
            };
        }
        if !filter.direction.is_empty() {
            checks |= CHECK_DIRECTION;
            passing.directions = 0;
            for (direction, bit) in [
                (Direction::Inbound, DIRECTION_INBOUND),
                (Direction::Outbound, DIRECTION_OUTBOUND),
            ] {
                if filter.direction.pass(|&wanted| wanted == direction) {
                    passing.directions |= bit;
                }
            }
        }
        let ports = &filter.ports;
        if !(ports.bare.is_empty() && ports.to.is_empty()) {
            checks |= CHECK_SERVER_PORT;
            passing.server_ports = set(|port| {
                ports.bare.pass(|range| range.contains(port)) && ports.to.pass(|range| range.contains(port))
            });
        }
        if !ports.from.is_empty() {
            checks |= CHECK_CLIENT_PORT;
            passing.client_ports = set(|port| ports.from.pass(|range| range.contains(port)));
        }
        let networks = &filter.networks;
        let flags = flags(networks);
        if flags.iter().any(|(_, terms)| !terms.is_empty()) {
            checks |= CHECK_ADDRESS;
        }
        for (flag, terms) in flags {
            if !terms.any.is_empty() {
                passing.must_match |= flag;
            }
        }
        Self {
            checks,
            prefilter: passing,
            networks: said_by(networks),
        }
    }
}

/// What lets everything pass.
fn all_passing() -> Box<Prefilter> {
    let mut passing = Box::new(Prefilter::zeroed());
    passing.families = FAMILY_IPV4 | FAMILY_IPV6;
    passing.directions = DIRECTION_INBOUND | DIRECTION_OUTBOUND;
    passing.server_ports = [u64::MAX; 1024];
    passing.client_ports = [u64::MAX; 1024];
    passing
}

fn set(passes: impl Fn(u16) -> bool) -> [u64; 1024] {
    let mut ports = [0; 1024];
    for port in (0..=u16::MAX).filter(|&port| passes(port)) {
        ports[usize::from(port >> 6)] |= 1 << (port & 63);
    }
    ports
}

fn flags(networks: &Ends<Network>) -> [(u32, &Terms<Network>); 3] {
    [
        (term::EITHER, &networks.bare),
        (term::CLIENT, &networks.from),
        (term::SERVER, &networks.to),
    ]
}

/// Each network that is named, with the bits of all terms that contain it. No IPv6 network contains an IPv4 address, so
/// the prefix of those that are mapped ends what shorter ones say.
fn said_by(networks: &Ends<Network>) -> Vec<(Prefix, u32)> {
    let terms: Vec<(IpNet, u32)> = flags(networks)
        .into_iter()
        .flat_map(|(flag, terms)| {
            let positive = terms.any.iter().map(move |network| (network.0, flag));
            positive.chain(terms.none.iter().map(move |network| (network.0, flag << term::NEGATED)))
        })
        .collect();
    if terms.is_empty() {
        return Vec::new();
    }
    let every_ipv4 = IpNet::from(ipnet::Ipv4Net::default());
    let said = terms
        .iter()
        .map(|&(network, _)| network)
        .chain([every_ipv4])
        .map(|network| {
            let containing = terms.iter().filter(|(around, _)| around.contains(&network));
            (prefix(network), containing.fold(0, |bits, (_, bit)| bits | bit))
        });
    said.collect::<BTreeMap<_, _>>().into_iter().collect()
}

fn prefix(network: IpNet) -> Prefix {
    let bits = u32::from(network.prefix_len());
    match network.network() {
        IpAddr::V4(address) => Prefix {
            bits: MAPPED_BITS + bits,
            address: address.to_ipv6_mapped().octets(),
        },
        IpAddr::V6(address) => Prefix {
            bits,
            address: address.octets(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{PortRange, Term};

    #[test]
    fn nothing_asked_is_nothing_checked() {
        let half = KernelHalf::of(&Filter::default());
        assert_eq!((half.checks, half.networks), (0, Vec::new()));
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
        let half = KernelHalf::of(&filter);
        assert_eq!(half.checks, CHECK_SERVER_PORT);
        let has = |port: u16| half.prefilter.server_ports[usize::from(port) / 64] >> (port % 64) & 1 == 1;
        let ports: Vec<u16> = (0..=u16::MAX).filter(|&port| has(port)).collect();
        assert_eq!(ports, [84, 86, 87, 88, 89, 90]);
    }

    #[test]
    fn a_network_says_what_those_around_it_say() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Network>>();
        let mut filter = Filter::default();
        filter.networks.bare.any = networks(&["10.0.0.0/8", "::/0", "10.1.2.3"]);
        filter.networks.from.none = networks(&["10.1.0.0/16"]);
        filter.networks.to.any = networks(&["0.0.0.0/0", "fd00::/8"]);
        let half = KernelHalf::of(&filter);
        assert_eq!(half.checks, CHECK_ADDRESS);
        assert_eq!(half.prefilter.must_match, term::EITHER | term::SERVER);
        let said = |text: &str| {
            let wanted = prefix(text.parse::<Network>().unwrap().0);
            let found = half.networks.iter().find(|(prefix, _)| *prefix == wanted);
            found.unwrap_or_else(|| panic!("{text}")).1
        };
        let not_client = term::CLIENT << term::NEGATED;
        assert_eq!(said("::/0"), term::EITHER);
        assert_eq!(said("fd00::/8"), term::EITHER | term::SERVER);
        assert_eq!(said("0.0.0.0/0"), term::SERVER, "IPv6 has nothing to say about IPv4");
        assert_eq!(said("10.0.0.0/8"), term::EITHER | term::SERVER);
        assert_eq!(said("10.1.0.0/16"), term::EITHER | term::SERVER | not_client);
        assert_eq!(said("10.1.2.3"), term::EITHER | term::SERVER | not_client);
        assert_eq!(half.networks.len(), 6);
    }
}
