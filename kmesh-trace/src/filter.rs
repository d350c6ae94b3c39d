//! What a filter means: a pure rule over finished records, and the only definition there is. What the kernel sorts out
//! earlier must be sorted out here as well.
//!
//! Each flag is a list of terms, and all flags must pass. A flag passes when one of its positive terms matches, or it has
//! none, and none of its negated terms does. What is not known (the process of a socket, how an open connection will end)
//! matches no term: it fails a flag with positive terms and passes one with negated terms only.
//!
//! Addresses and ports are those of the socket: for a translated outbound connection, what the program dialled.

mod name;
mod selector;
#[cfg(test)]
mod tests;
mod value;

use std::net::IpAddr;

pub use name::{NamespacePattern, PodPattern, ServicePattern, WorkloadPattern};
pub use selector::Selector;
pub use value::{IdPrefix, NamePattern, Network, Pid, PortRange, Term};

use crate::record::{Direction, Family, Names, Outcome, Pod, Record};

/// The terms of one flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms<T> {
    /// One of these must match, if there are any.
    pub any: Vec<T>,
    /// None of these may.
    pub none: Vec<T>,
}

impl<T> Default for Terms<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            none: Vec::new(),
        }
    }
}

impl<T> FromIterator<Term<T>> for Terms<T> {
    fn from_iter<I: IntoIterator<Item = Term<T>>>(terms: I) -> Self {
        let mut sorted = Self::default();
        for Term { negated, value } in terms {
            if negated {
                sorted.none.push(value);
            } else {
                sorted.any.push(value);
            }
        }
        sorted
    }
}

impl<T> Terms<T> {
    /// Whether the flag passes what these terms match.
    pub fn pass(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&matches)) && !self.none.iter().any(matches)
    }

    /// Whether the flag was not given.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// A flag and its two variants, which are flags of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends<T> {
    /// The bare flag: the server's port, or the address of either end.
    pub bare: Terms<T>,
    /// `--from-…`: the client's.
    pub from: Terms<T>,
    /// `--to-…`: the server's.
    pub to: Terms<T>,
}

impl<T> Default for Ends<T> {
    fn default() -> Self {
        Self {
            bare: Terms::default(),
            from: Terms::default(),
            to: Terms::default(),
        }
    }
}

/// Selectors, which have their own negation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// `--selector`: a pod at either end.
    pub bare: Selector,
    /// `--from-selector`: the client.
    pub from: Selector,
    /// `--to-selector`: the server.
    pub to: Selector,
}

/// Which records are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `--port`, `--from-port`, `--to-port`.
    pub ports: Ends<PortRange>,
    /// `--ip`, `--from-ip`, `--to-ip`.
    pub networks: Ends<Network>,
    /// `--namespace`, `--from-namespace`, `--to-namespace`: of a pod; the Service's is the server's, too.
    pub namespaces: Ends<NamespacePattern>,
    /// `--pod`, `--from-pod`, `--to-pod`.
    pub pods: Ends<PodPattern>,
    /// `--workload`, `--from-workload`, `--to-workload`.
    pub workloads: Ends<WorkloadPattern>,
    /// `--service`.
    pub service: Terms<ServicePattern>,
    /// `--selector`, `--from-selector`, `--to-selector`.
    pub selectors: Selectors,
    /// `-4` or `-6`.
    pub family: Option<Family>,
    /// `--direction`.
    pub direction: Terms<Direction>,
    /// `--pid`.
    pub pid: Terms<Pid>,
    /// `--comm`.
    pub comm: Terms<NamePattern>,
    /// `--container`.
    pub container: Terms<IdPrefix>,
    /// `--outcome`.
    pub outcome: Terms<Outcome>,
    /// `--failed`: it has ended, and not with `ok`.
    pub failed: bool,
    /// `--established-only`.
    pub established_only: bool,
    /// `--min-duration`, ns; over [`Record::observed_ns`], so that a connection that began before tracing did counts with
    /// the time that it was watched.
    pub min_duration_ns: Option<u64>,
    /// `--min-bytes`, over both directions together.
    pub min_bytes: Option<u64>,
}

impl Filter {
    /// Whether `record` is wanted.
    pub fn passes(&self, record: &Record) -> bool {
        self.family.is_none_or(|family| record.family == family)
            && self.direction.pass(|&direction| record.direction == direction)
            && self.passes_ports(record.src.port(), record.socket_dst().port())
            && self.passes_addresses(record.src.ip(), record.socket_dst().ip())
            && self.passes_process(record)
            && self.passes_names(&record.names)
            && self.passes_end(record)
            && self.min_duration_ns.is_none_or(|least| record.observed_ns >= least)
            && self
                .min_bytes
                .is_none_or(|least| record.sent_bytes.saturating_add(record.received_bytes) >= least)
    }

    fn passes_ports(&self, client: u16, server: u16) -> bool {
        self.ports.bare.pass(|range| range.contains(server))
            && self.ports.from.pass(|range| range.contains(client))
            && self.ports.to.pass(|range| range.contains(server))
    }

    fn passes_addresses(&self, client: IpAddr, server: IpAddr) -> bool {
        self.networks
            .bare
            .pass(|network| network.contains(client) || network.contains(server))
            && self.networks.from.pass(|network| network.contains(client))
            && self.networks.to.pass(|network| network.contains(server))
    }

    fn passes_names(&self, names: &Names) -> bool {
        let (src, dst) = (names.src.pod.as_deref(), names.dst.pod.as_deref());
        let service = names.service.as_ref().map(|called| &*called.service);
        let namespace_of =
            |pod: Option<&Pod>, wanted: &NamespacePattern| pod.is_some_and(|pod| wanted.matches(&pod.namespace));
        let at_server = |wanted: &NamespacePattern| {
            namespace_of(dst, wanted) || service.is_some_and(|service| wanted.matches(&service.namespace))
        };
        passes_ends(&self.namespaces, |wanted| namespace_of(src, wanted), at_server)
            && passes_pods(&self.pods, src, dst, PodPattern::matches)
            && passes_pods(&self.workloads, src, dst, |wanted, pod| {
                pod.workload.as_ref().is_some_and(|workload| wanted.matches(workload))
            })
            && self
                .service
                .pass(|wanted| service.is_some_and(|service| wanted.matches(service)))
            && self.passes_labels(src, dst)
    }

    fn passes_labels(&self, src: Option<&Pod>, dst: Option<&Pod>) -> bool {
        let Selectors { bare, from, to } = &self.selectors;
        let selects = |selector: &Selector, pod: Option<&Pod>| {
            let labels = pod.and_then(|pod| pod.labels.as_ref());
            labels.is_some_and(|labels| selector.matches(labels))
        };
        (bare.is_empty() || selects(bare, src) || selects(bare, dst))
            && (from.is_empty() || selects(from, src))
            && (to.is_empty() || selects(to, dst))
    }

    /// The first flag that is about names, in the order of the manual.
    pub fn needs_names(&self) -> Option<&'static str> {
        let flags = [
            ("--namespace", self.namespaces.bare.is_empty()),
            ("--from-namespace", self.namespaces.from.is_empty()),
            ("--to-namespace", self.namespaces.to.is_empty()),
            ("--pod", self.pods.bare.is_empty()),
            ("--from-pod", self.pods.from.is_empty()),
            ("--to-pod", self.pods.to.is_empty()),
            ("--workload", self.workloads.bare.is_empty()),
            ("--from-workload", self.workloads.from.is_empty()),
            ("--to-workload", self.workloads.to.is_empty()),
            ("--service", self.service.is_empty()),
            ("--selector", self.selectors.bare.is_empty()),
            ("--from-selector", self.selectors.from.is_empty()),
            ("--to-selector", self.selectors.to.is_empty()),
        ];
        flags.into_iter().find(|(_, is_empty)| !is_empty).map(|(flag, _)| flag)
    }

    fn passes_process(&self, record: &Record) -> bool {
        let process = record.process.as_ref();
        self.pid.pass(|pid| process.is_some_and(|process| process.pid == pid.0))
            && self
                .comm
                .pass(|pattern| process.is_some_and(|process| pattern.matches(process.comm.as_bytes())))
            && self
                .container
                .pass(|prefix| record.container_id.is_some_and(|id| prefix.matches(&id)))
    }

    fn passes_end(&self, record: &Record) -> bool {
        self.outcome.pass(|&outcome| record.outcome == Some(outcome))
            && (!self.failed || record.outcome.is_some_and(|outcome| outcome != Outcome::Ok))
            && (!self.established_only || record.established)
    }
}

fn passes_ends<T>(ends: &Ends<T>, at_client: impl Fn(&T) -> bool, at_server: impl Fn(&T) -> bool) -> bool {
    ends.bare.pass(|wanted| at_client(wanted) || at_server(wanted))
        && ends.from.pass(&at_client)
        && ends.to.pass(&at_server)
}

fn passes_pods<T>(ends: &Ends<T>, src: Option<&Pod>, dst: Option<&Pod>, matches: impl Fn(&T, &Pod) -> bool) -> bool {
    let at = |pod: Option<&Pod>, wanted: &T| pod.is_some_and(|pod| matches(wanted, pod));
    passes_ends(ends, |wanted| at(src, wanted), |wanted| at(dst, wanted))
}
