//! What a filter means: a pure rule over finished records, and the only definition there is. What the kernel sorts out
//! earlier must be sorted out here as well.
//!
//! Each flag is a list of terms, and all flags must pass. A flag passes when one of its positive terms matches, or it has
//! none, and none of its negated terms does. What is not known (the process of a socket, how an open connection will end)
//! matches no term: it fails a flag with positive terms and passes one with negated terms only.
//!
//! Addresses and ports are those of the socket: for a translated outbound connection, what the program dialled.

mod contradiction;
#[cfg(test)]
mod tests;
mod value;

use std::net::IpAddr;

pub use contradiction::Contradiction;
pub use value::{IdPrefix, NamePattern, Network, Pid, PortRange, Term};

use crate::record::{Direction, Family, Outcome, Record};

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

/// Which records are wanted. The default wants all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `--port`, `--from-port`, `--to-port`.
    pub ports: Ends<PortRange>,
    /// `--ip`, `--from-ip`, `--to-ip`.
    pub networks: Ends<Network>,
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
