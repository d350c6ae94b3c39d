//! The kernel filter: the conditions of a [`Filter`] on ports, addresses, family and direction, in the form that the
//! eBPF programs check. It is an optimization: it may pass records that the filter rejects later, but never the other
//! way round.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytemuck::Zeroable;
use ipnet::IpNet;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND,
    DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, FilterRules, Prefix, term,
};

use super::rule::{Ends, Filter, Terms};
use super::values::Network;
use crate::record::{Direction, Family};

/// The prefix length of all IPv4-mapped IPv6 addresses (`::ffff:0:0/96`).
const MAPPED_BITS: u32 = 96;

/// The filter that user space writes to the maps of the eBPF programs.
#[derive(Clone, Debug)]
pub struct KernelFilter {
    /// The enabled checks, as bits `CHECK_*`. Fields of a disabled check are ignored.
    pub checks: u32,
    /// The ports, families and directions that pass.
    pub rules: Box<FilterRules>,
    /// The networks of all terms, each with the bits of [`term`] of the terms that contain it.
    pub networks: Vec<(Prefix, u32)>,
}

impl KernelFilter {
    /// Creates the kernel filter of `filter`.
    pub fn of(filter: &Filter) -> Self {
        let mut checks = 0;
        let mut rules = pass_all();
        if let Some(family) = filter.family {
            checks |= CHECK_FAMILY;
            rules.families = match family {
                Family::Ipv4 => FAMILY_IPV4,
                Family::Ipv6 => FAMILY_IPV6,
            };
        }
        if !filter.direction.is_empty() {
            checks |= CHECK_DIRECTION;
            rules.directions = 0;
            for (direction, bit) in [
                (Direction::Inbound, DIRECTION_INBOUND),
                (Direction::Outbound, DIRECTION_OUTBOUND),
            ] {
                if filter.direction.pass(|&passing| passing == direction) {
                    rules.directions |= bit;
                }
            }
        }
        let ports = &filter.ports;
        if !(ports.bare.is_empty() && ports.to.is_empty()) {
            checks |= CHECK_SERVER_PORT;
            rules.server_ports = port_set(|port| {
                ports.bare.pass(|range| range.contains(port)) && ports.to.pass(|range| range.contains(port))
            });
        }
        if !ports.from.is_empty() {
            checks |= CHECK_CLIENT_PORT;
            rules.client_ports = port_set(|port| ports.from.pass(|range| range.contains(port)));
        }
        let networks = &filter.networks;
        let flags = network_terms(networks);
        if flags.iter().any(|(_, terms)| !terms.is_empty()) {
            checks |= CHECK_ADDRESS;
        }
        for (flag, terms) in flags {
            if !terms.any.is_empty() {
                rules.must_match |= flag;
            }
        }
        Self {
            checks,
            rules,
            networks: network_bits(networks),
        }
    }
}

/// Returns a filter that passes every connection.
fn pass_all() -> Box<FilterRules> {
    let mut rules = Box::new(FilterRules::zeroed());
    rules.families = FAMILY_IPV4 | FAMILY_IPV6;
    rules.directions = DIRECTION_INBOUND | DIRECTION_OUTBOUND;
    rules.server_ports = [u64::MAX; 1024];
    rules.client_ports = [u64::MAX; 1024];
    rules
}

fn port_set(passes: impl Fn(u16) -> bool) -> [u64; 1024] {
    let mut ports = [0; 1024];
    for port in (0..=u16::MAX).filter(|&port| passes(port)) {
        ports[usize::from(port >> 6)] |= 1 << (port & 63);
    }
    ports
}

/// Returns the terms of each address flag with their bit of [`term`].
fn network_terms(networks: &Ends<Network>) -> [(u32, &Terms<Network>); 3] {
    [
        (term::EITHER, &networks.bare),
        (term::CLIENT, &networks.from),
        (term::SERVER, &networks.to),
    ]
}

/// Returns each network of the terms, with the bits of all terms that contain it.
///
/// The kernel looks up the longest prefix of an address. No IPv6 network contains an IPv4 address, so the prefix of all
/// mapped addresses is added: its bits replace those of shorter IPv6 prefixes.
fn network_bits(networks: &Ends<Network>) -> Vec<(Prefix, u32)> {
    let terms: Vec<(IpNet, u32)> = network_terms(networks)
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
    let bits = terms
        .iter()
        .map(|&(network, _)| network)
        .chain([every_ipv4])
        .map(|network| {
            let containing = terms.iter().filter(|(outer, _)| outer.contains(&network));
            (prefix(network), containing.fold(0, |bits, (_, bit)| bits | bit))
        });
    bits.collect::<BTreeMap<_, _>>().into_iter().collect()
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
    fn default_filter_has_no_checks() {
        let kernel_filter = KernelFilter::of(&Filter::default());
        assert_eq!((kernel_filter.checks, kernel_filter.networks), (0, Vec::new()));
    }

    #[test]
    fn port_and_to_port_are_intersected() {
        let mut filter = Filter::default();
        let range = |text: &str, negated| Term {
            negated,
            value: text.parse::<PortRange>().unwrap(),
        };
        filter.ports.bare = [range("80-90", false), range("85", true)].into_iter().collect();
        filter.ports.to = [range("84-65535", false)].into_iter().collect();
        let kernel_filter = KernelFilter::of(&filter);
        assert_eq!(kernel_filter.checks, CHECK_SERVER_PORT);
        let has = |port: u16| kernel_filter.rules.server_ports[usize::from(port) / 64] >> (port % 64) & 1 == 1;
        let ports: Vec<u16> = (0..=u16::MAX).filter(|&port| has(port)).collect();
        assert_eq!(ports, [84, 86, 87, 88, 89, 90]);
    }

    #[test]
    fn network_has_bits_of_the_networks_that_contain_it() {
        let networks = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Network>>();
        let mut filter = Filter::default();
        filter.networks.bare.any = networks(&["10.0.0.0/8", "::/0", "10.1.2.3"]);
        filter.networks.from.none = networks(&["10.1.0.0/16"]);
        filter.networks.to.any = networks(&["0.0.0.0/0", "fd00::/8"]);
        let kernel_filter = KernelFilter::of(&filter);
        assert_eq!(kernel_filter.checks, CHECK_ADDRESS);
        assert_eq!(kernel_filter.rules.must_match, term::EITHER | term::SERVER);
        let bits = |text: &str| {
            let network = prefix(text.parse::<Network>().unwrap().0);
            let found = kernel_filter.networks.iter().find(|(prefix, _)| *prefix == network);
            found.unwrap_or_else(|| panic!("{text}")).1
        };
        let not_client = term::CLIENT << term::NEGATED;
        assert_eq!(bits("::/0"), term::EITHER);
        assert_eq!(bits("fd00::/8"), term::EITHER | term::SERVER);
        assert_eq!(
            bits("0.0.0.0/0"),
            term::SERVER,
            "an IPv6 network contains no IPv4 address"
        );
        assert_eq!(bits("10.0.0.0/8"), term::EITHER | term::SERVER);
        assert_eq!(bits("10.1.0.0/16"), term::EITHER | term::SERVER | not_client);
        assert_eq!(bits("10.1.2.3"), term::EITHER | term::SERVER | not_client);
        assert_eq!(kernel_filter.networks.len(), 6);
    }
}
