//! What a filter means: a pure rule over finished records. The kernel filter may only reject what this rule rejects.
//!
//! Every flag must pass. A flag passes when one of its positive terms matches, or it has none, and no negated term
//! matches. An unknown property (the process of a socket, the outcome of an open connection) matches no term.
//!
//! Addresses and ports are those of the socket: for a translated outbound connection, what the program dialled.

use std::net::IpAddr;

use super::names::{NamePattern, PodPattern, ServicePattern, WorkloadPattern};
use super::selector::Selector;
use super::values::{CommPattern, ContainerPrefix, Network, Pid, PortRange, Term};
use crate::record::{Direction, Event, Family, Names, Outcome, Pod, Record, Subject};

/// The terms of one flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms<T> {
    /// The positive values. If there are any, one must match.
    pub any: Vec<T>,
    /// The negated values. None may match.
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
        let mut all = Self::default();
        for Term { negated, value } in terms {
            if negated {
                all.none.push(value);
            } else {
                all.any.push(value);
            }
        }
        all
    }
}

impl<T> Terms<T> {
    /// Returns whether the flag passes a record, whose property `matches` compares with a value.
    pub fn pass(&self, matches: impl Fn(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&matches)) && !self.none.iter().any(matches)
    }

    /// Returns whether the flag was not given.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// The terms of a flag and of its variants for one end, which are separate flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends<T> {
    /// The terms of the bare flag. For ports it means the server's, for everything else either end's.
    pub bare: Terms<T>,
    /// The terms of `--from-…`, for the client.
    pub from: Terms<T>,
    /// The terms of `--to-…`, for the server.
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

impl<T> Ends<T> {
    /// Returns whether none of the flags was given.
    pub fn is_empty(&self) -> bool {
        self.bare.is_empty() && self.from.is_empty() && self.to.is_empty()
    }
}

/// The label selectors. Their grammar has its own negation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// The selector of `--selector`, for a pod at either end.
    pub bare: Selector,
    /// The selector of `--from-selector`, for the client's pod.
    pub from: Selector,
    /// The selector of `--to-selector`, for the server's pod.
    pub to: Selector,
}

/// The conditions that a record must meet. The default passes every record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The terms of `--port`, `--from-port` and `--to-port`.
    pub ports: Ends<PortRange>,
    /// The terms of `--ip`, `--from-ip` and `--to-ip`.
    pub networks: Ends<Network>,
    /// The terms of `--namespace`, `--from-namespace` and `--to-namespace`. A service's namespace belongs to the
    /// server.
    pub namespaces: Ends<NamePattern>,
    /// The terms of `--pod`, `--from-pod` and `--to-pod`.
    pub pods: Ends<PodPattern>,
    /// The terms of `--workload`, `--from-workload` and `--to-workload`.
    pub workloads: Ends<WorkloadPattern>,
    /// The terms of `--service`.
    pub service: Terms<ServicePattern>,
    /// The selectors of `--selector`, `--from-selector` and `--to-selector`.
    pub selectors: Selectors,
    /// The family that `-4` or `-6` requires.
    pub family: Option<Family>,
    /// The terms of `--direction`.
    pub direction: Terms<Direction>,
    /// The terms of `--pid`.
    pub pid: Terms<Pid>,
    /// The terms of `--comm`.
    pub comm: Terms<CommPattern>,
    /// The terms of `--container`.
    pub container: Terms<ContainerPrefix>,
    /// The terms of `--outcome`.
    pub outcome: Terms<Outcome>,
    /// Whether the connection must have failed (`--failed`): its outcome is not `ok`, or it has been connecting for
    /// longer than `LONG_CONNECT_NS`.
    pub failed: bool,
    /// Whether the record must be an attempt that is still waiting for an answer (`--connecting`).
    pub connecting: bool,
    /// Whether the connection must have been established (`--established-only`).
    pub established_only: bool,
    /// The minimum of [`Record::observed_ns`] (`--min-duration`). A connection that was open before tracing began
    /// counts from the start of tracing.
    pub min_duration_ns: Option<u64>,
    /// The minimum number of bytes of both directions together (`--min-bytes`).
    pub min_bytes: Option<u64>,
}

/// The time after which an attempt to connect counts as failed, although it may still succeed: by then the kernel has
/// sent a second SYN.
const LONG_CONNECT_NS: u64 = 1_000_000_000;

impl Filter {
    /// Returns whether a connection may stop passing the filter while it is open: an attempt that passes may succeed.
    pub fn is_revocable(&self) -> bool {
        self.failed || self.connecting
    }

    /// Returns whether the filter has values that are names of namespaces, pods, workloads or services.
    pub fn has_names(&self) -> bool {
        let Self {
            namespaces,
            pods,
            workloads,
            service,
            selectors: Selectors { bare, from, to },
            ..
        } = self;
        let has_labels = [bare, from, to].into_iter().any(|selector| !selector.is_empty());
        has_labels || !(namespaces.is_empty() && pods.is_empty() && workloads.is_empty() && service.is_empty())
    }

    /// Returns whether `record` meets all conditions. Conditions on the course of a connection do not apply to a record
    /// that is about no connection.
    pub fn passes(&self, record: &Record) -> bool {
        self.family.is_none_or(|family| record.family == family)
            && self.direction.pass(|&direction| record.direction == direction)
            && self.passes_ports(record.src.port(), record.socket_dst().port())
            && self.passes_addresses(record.src.ip(), record.socket_dst().ip())
            && self.passes_process(record)
            && self.passes_names(&record.names)
            && (record.subject != Subject::Connection || self.passes_course(record))
    }

    fn passes_course(&self, record: &Record) -> bool {
        self.passes_outcome(record)
            && self.min_duration_ns.is_none_or(|min| record.observed_ns >= min)
            && self
                .min_bytes
                .is_none_or(|min| record.sent_bytes.saturating_add(record.received_bytes) >= min)
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
            |pod: Option<&Pod>, pattern: &NamePattern| pod.is_some_and(|pod| pattern.matches(&pod.namespace));
        let at_server = |pattern: &NamePattern| {
            namespace_of(dst, pattern) || service.is_some_and(|service| pattern.matches(&service.namespace))
        };
        passes_ends(&self.namespaces, |pattern| namespace_of(src, pattern), at_server)
            && passes_pods(&self.pods, src, dst, PodPattern::matches)
            && passes_pods(&self.workloads, src, dst, |pattern, pod| {
                pod.workload.as_ref().is_some_and(|workload| pattern.matches(workload))
            })
            && self
                .service
                .pass(|pattern| service.is_some_and(|service| pattern.matches(service)))
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

    fn passes_outcome(&self, record: &Record) -> bool {
        let is_connecting = record.event == Event::Update && record.outcome.is_none() && !record.established;
        let has_failed = match record.outcome {
            Some(outcome) => outcome != Outcome::Ok,
            None => is_connecting && record.observed_ns > LONG_CONNECT_NS,
        };
        self.outcome.pass(|&outcome| record.outcome == Some(outcome))
            && (!self.failed || has_failed)
            && (!self.connecting || is_connecting)
            && (!self.established_only || record.established)
    }
}

fn passes_ends<T>(ends: &Ends<T>, at_client: impl Fn(&T) -> bool, at_server: impl Fn(&T) -> bool) -> bool {
    ends.bare.pass(|pattern| at_client(pattern) || at_server(pattern))
        && ends.from.pass(&at_client)
        && ends.to.pass(&at_server)
}

fn passes_pods<T>(ends: &Ends<T>, src: Option<&Pod>, dst: Option<&Pod>, matches: impl Fn(&T, &Pod) -> bool) -> bool {
    let at = |pod: Option<&Pod>, pattern: &T| pod.is_some_and(|pod| matches(pattern, pod));
    passes_ends(ends, |pattern| at(src, pattern), |pattern| at(dst, pattern))
}
