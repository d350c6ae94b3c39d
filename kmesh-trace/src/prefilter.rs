//! The kernel half of the filters: what of a [`Filter`] can be decided from a socket's ports, addresses, family and
//! direction, in the form that the eBPF programs check. An optimisation, tested equal: it may let through what the filter
//! sorts out later, never the other way round.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use bytemuck::Zeroable;
use ipnet::IpNet;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CGROUP, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT,
    DIRECTION_INBOUND, DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, MAX_CGROUPS, Prefilter, Prefix, term,
};

use crate::filter::{Ends, Filter, Network, Terms};
use crate::record::{ContainerId, Direction, Family, Pod, Record};

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
        if decides_by_cgroup(filter) {
            checks |= CHECK_CGROUP;
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

/// Whether [`cannot_pass_as`] can be anything but 0.
fn decides_by_cgroup(filter: &Filter) -> bool {
    let Filter {
        container,
        namespaces,
        pods,
        ..
    } = filter;
    !(container.is_empty() && namespaces.from.is_empty() && pods.from.is_empty() && pods.to.is_empty())
}

/// As which end no socket of this container, or pod, can pass: bits of `DIRECTION_*`. Only what never changes of them
/// counts. That leaves out labels, owners, which may be learnt late, and the server's namespace, which its Service has too.
fn cannot_pass_as(filter: &Filter, container: Option<ContainerId>, pod: Option<&Pod>) -> u32 {
    if container.is_some_and(|id| !filter.container.pass(|prefix| prefix.matches(&id))) {
        return DIRECTION_INBOUND | DIRECTION_OUTBOUND;
    }
    let Some(pod) = pod else { return 0 };
    let as_client = filter.namespaces.from.pass(|wanted| wanted.matches(&pod.namespace))
        && filter.pods.from.pass(|wanted| wanted.matches(pod));
    let as_server = filter.pods.to.pass(|wanted| wanted.matches(pod));
    let mut directions = 0;
    if !as_client {
        directions |= DIRECTION_OUTBOUND;
    }
    if !as_server {
        directions |= DIRECTION_INBOUND;
    }
    directions
}

/// Tells the kernel half of cgroups whose connections cannot pass, as records show whose they are.
pub struct Excluder {
    filter: Filter,
    /// Those that were looked at: for each the answer stays the same.
    known: HashSet<u64>,
    exclude: Box<dyn FnMut(u64, u32) -> bool + Send>,
}

impl Excluder {
    /// `exclude` gets a cgroup and bits of `DIRECTION_*`, and says whether there was room. None when the filter has nothing
    /// that can be decided so.
    pub fn of(filter: &Filter, exclude: impl FnMut(u64, u32) -> bool + Send + 'static) -> Option<Self> {
        decides_by_cgroup(filter).then(|| Self {
            filter: filter.clone(),
            known: HashSet::new(),
            exclude: Box::new(exclude),
        })
    }

    /// Whether this record may teach something.
    pub fn wants(&self, record: &Record) -> Option<u64> {
        let room = self.known.len() < MAX_CGROUPS;
        record.cgroup_id.filter(|id| room && !self.known.contains(id))
    }

    /// A record of the cgroup shows its container, and its pod if that is certain.
    pub fn see(&mut self, cgroup_id: u64, container: Option<ContainerId>, pod: Option<&Pod>) {
        let directions = cannot_pass_as(&self.filter, container, pod);
        if pod.is_some() || directions != 0 {
            self.known.insert(cgroup_id);
        }
        if directions != 0 {
            // Without room nothing is lost but time.
            _ = (self.exclude)(cgroup_id, directions);
        }
    }
}

impl fmt::Debug for Excluder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Excluder").finish_non_exhaustive()
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
    fn own_ends_are_excluded_by_what_never_changes() {
        let pod = |namespace: &str, name: &str| Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid: "uid".into(),
            workload: None,
            service_account: None,
            node: None,
            host_network: None,
            labels: None,
        };
        let (web, other) = (pod("shop", "web-0"), pod("bank", "web-0"));
        let filter = |change: fn(&mut Filter)| {
            let mut filter = Filter::default();
            change(&mut filter);
            filter
        };
        let both = DIRECTION_INBOUND | DIRECTION_OUTBOUND;
        let from = filter(|filter| filter.namespaces.from.any = vec!["shop".parse().unwrap()]);
        let to = filter(|filter| filter.pods.to.none = vec!["bank/web-0".parse().unwrap()]);
        // The other end may match these, or a Service's namespace may.
        let bare = filter(|filter| {
            filter.namespaces.bare.any = vec!["shop".parse().unwrap()];
            filter.namespaces.to.any = vec!["shop".parse().unwrap()];
            filter.pods.bare.any = vec!["shop/web-0".parse().unwrap()];
        });
        for (filter, of_web, of_other) in [
            (&from, 0, DIRECTION_OUTBOUND),
            (&to, 0, DIRECTION_INBOUND),
            (&bare, 0, 0),
        ] {
            assert_eq!(cannot_pass_as(filter, None, Some(&web)), of_web, "{filter:?}");
            assert_eq!(cannot_pass_as(filter, None, Some(&other)), of_other, "{filter:?}");
            assert_eq!(cannot_pass_as(filter, None, None), 0, "{filter:?}");
            let checked = KernelHalf::of(filter).checks & CHECK_CGROUP != 0;
            assert_eq!(checked, of_other != 0, "{filter:?}");
        }
        let container = filter(|filter| filter.container.any = vec!["aaaa".parse().unwrap()]);
        let id = |letter: &str| ContainerId::new(&letter.repeat(64));
        assert_eq!(cannot_pass_as(&container, id("a"), None), 0);
        assert_eq!(cannot_pass_as(&container, id("b"), Some(&web)), both);
        assert_eq!(
            cannot_pass_as(&container, None, Some(&web)),
            0,
            "its container may be told later"
        );
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
