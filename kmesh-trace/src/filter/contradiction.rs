//! Filters that no record can pass, and which flags are to blame.
//!
//! Ports, addresses, directions and outcomes are decided exactly, and so are names but for the fifteen bytes that bound
//! them. Of ids and the names of Kubernetes only a value that a single negated one covers is found, and of labels what one selector excludes. A contradiction that is not found matches nothing.

use std::fmt;
use std::net::IpAddr;

use crate::record::{Direction, Event, Family, Outcome};

use super::{Ends, Filter, Network, PortRange, Selector, Selectors, Terms};

/// Why nothing can pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    /// The fewest flags that exclude each other; without one of them, something passes.
    pub flags: Vec<&'static str>,
    /// What they exclude.
    pub reason: &'static str,
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nothing can pass {}: {}", self.flags.join(" and "), self.reason)
    }
}

/// A flag, and how to take it back.
type Flag = (&'static str, fn(&mut Filter));

/// Those that one would doubt first come last.
const FLAGS: [Flag; 29] = [
    ("--min-bytes", |filter| filter.min_bytes = None),
    ("-4", |filter| {
        filter.family.take_if(|family| *family == Family::Ipv4);
    }),
    ("-6", |filter| {
        filter.family.take_if(|family| *family == Family::Ipv6);
    }),
    ("--namespace", |filter| filter.namespaces.bare = Terms::default()),
    ("--from-namespace", |filter| filter.namespaces.from = Terms::default()),
    ("--to-namespace", |filter| filter.namespaces.to = Terms::default()),
    ("--pod", |filter| filter.pods.bare = Terms::default()),
    ("--from-pod", |filter| filter.pods.from = Terms::default()),
    ("--to-pod", |filter| filter.pods.to = Terms::default()),
    ("--workload", |filter| filter.workloads.bare = Terms::default()),
    ("--from-workload", |filter| filter.workloads.from = Terms::default()),
    ("--to-workload", |filter| filter.workloads.to = Terms::default()),
    ("--service", |filter| filter.service = Terms::default()),
    ("--selector", |filter| filter.selectors.bare = Selector::default()),
    ("--from-selector", |filter| filter.selectors.from = Selector::default()),
    ("--to-selector", |filter| filter.selectors.to = Selector::default()),
    ("--port", |filter| filter.ports.bare = Terms::default()),
    ("--from-port", |filter| filter.ports.from = Terms::default()),
    ("--to-port", |filter| filter.ports.to = Terms::default()),
    ("--ip", |filter| filter.networks.bare = Terms::default()),
    ("--from-ip", |filter| filter.networks.from = Terms::default()),
    ("--to-ip", |filter| filter.networks.to = Terms::default()),
    ("--pid", |filter| filter.pid = Terms::default()),
    ("--comm", |filter| filter.comm = Terms::default()),
    ("--container", |filter| filter.container = Terms::default()),
    ("--direction", |filter| filter.direction = Terms::default()),
    ("--established-only", |filter| filter.established_only = false),
    ("--failed", |filter| filter.failed = false),
    ("--outcome", |filter| filter.outcome = Terms::default()),
];

impl Filter {
    /// Why no record of these events can pass, if none can.
    pub fn contradiction(&self, events: &[Event]) -> Option<Contradiction> {
        if self.is_possible(events) {
            return None;
        }
        let mut flags = Vec::new();
        let mut events = events;
        if !events.contains(&Event::Close) {
            if self.is_possible(Event::ALL) {
                flags.push("--events");
            } else {
                events = Event::ALL;
            }
        }
        // What can be taken back with nothing passing still is not to blame.
        let mut core = self.clone();
        for (name, take_back) in FLAGS {
            let mut without = core.clone();
            take_back(&mut without);
            if without == core {
                continue;
            }
            if without.is_possible(events) {
                flags.push(name);
            } else {
                core = without;
            }
        }
        let reason = reason(&flags);
        Some(Contradiction { flags, reason })
    }

    /// Each part is about facts of its own, so a record can pass all where one can pass each.
    fn is_possible(&self, events: &[Event]) -> bool {
        ports_are_possible(&self.ports)
            && [Family::Ipv4, Family::Ipv6].into_iter().any(|family| {
                self.family.is_none_or(|wanted| wanted == family) && addresses_are_possible(&self.networks, family)
            })
            && has_uncovered(&self.pid, |negated, pid| negated == pid)
            && has_uncovered(&self.comm, |negated, pattern| negated.covers(pattern))
            && has_uncovered(&self.container, |negated, prefix| negated.covers(prefix))
            && self.names_are_possible()
            && events.iter().any(|event| match event {
                Event::Close => self.a_close_is_possible(),
                Event::Open | Event::Update => self.an_unfinished_one_is_possible(),
            })
    }

    fn names_are_possible(&self) -> bool {
        fn each<T>(ends: &Ends<T>, covers: impl Fn(&T, &T) -> bool) -> bool {
            [&ends.bare, &ends.from, &ends.to]
                .into_iter()
                .all(|terms| has_uncovered(terms, &covers))
        }
        let Selectors { bare, from, to } = &self.selectors;
        each(&self.namespaces, |negated, one| negated.covers(one))
            && each(&self.pods, |negated, one| negated.covers(one))
            && each(&self.workloads, |negated, one| negated.covers(one))
            && has_uncovered(&self.service, |negated, one| negated.covers(one))
            // The bare flag's pod must be at one of the ends.
            && (Selector::all([bare, from]).is_possible() && to.is_possible()
                || Selector::all([bare, to]).is_possible() && from.is_possible())
    }

    fn a_close_is_possible(&self) -> bool {
        let passes = |outcome: Outcome, direction: Direction| {
            let is_attempt = matches!(
                outcome,
                Outcome::Refused | Outcome::ConnectTimeout | Outcome::ConnectAborted
            );
            // These end in SYN_SENT, where only the end that connects can be, and where nothing is acknowledged.
            let is_excluded = self.established_only || self.min_bytes > Some(0) || direction == Direction::Inbound;
            !(is_attempt && is_excluded || self.failed && outcome == Outcome::Ok)
                && self.outcome.pass(|&wanted| wanted == outcome)
                && self.direction.pass(|&wanted| wanted == direction)
        };
        Outcome::ALL
            .iter()
            .any(|&outcome| Direction::ALL.iter().any(|&direction| passes(outcome, direction)))
    }

    fn an_unfinished_one_is_possible(&self) -> bool {
        let has_direction = Direction::ALL
            .iter()
            .any(|&direction| self.direction.pass(|&wanted| wanted == direction));
        has_direction && self.outcome.pass(|_| false) && !self.failed
    }
}

fn reason(flags: &[&str]) -> &'static str {
    let has = |flag| flags.contains(&flag);
    if has("--events") {
        "only a close event has an outcome"
    } else if has("--selector") || has("--from-selector") || has("--to-selector") {
        "no labels are so"
    } else if flags.len() == 1 {
        "what it negates leaves nothing"
    } else if has("--min-bytes") {
        "what ends so has moved no payload"
    } else if has("--established-only") {
        "what ends so has never connected"
    } else if has("--failed") {
        "to fail is to end otherwise than ok"
    } else if has("--direction") {
        "only the end that connects, outbound, can end so"
    } else if has("--port") || has("--to-port") {
        "no port of a server passes both"
    } else if has("-4") || has("-6") {
        "no address of that family passes"
    } else {
        "no two addresses of one family pass"
    }
}

/// Whether a positive value is left, or there is none and anything is.
fn has_uncovered<T>(terms: &Terms<T>, covers: impl Fn(&T, &T) -> bool) -> bool {
    // Negated values alone leave what is not known.
    terms.any.is_empty()
        || terms
            .any
            .iter()
            .any(|value| !terms.none.iter().any(|negated| covers(negated, value)))
}

/// Numbers from the first to the second.
type Interval = (u128, u128);

/// A set of numbers, as intervals in no order; they may overlap.
#[derive(Clone, Debug)]
struct Set(Vec<Interval>);

impl Set {
    /// The positive ones of `any`, or all when there are none at all, but for `none`.
    fn of<T>(terms: &Terms<T>, all: Interval, interval: impl Fn(&T) -> Option<Interval>) -> Self {
        let mut set = if terms.any.is_empty() {
            Self(vec![all])
        } else {
            Self(terms.any.iter().filter_map(&interval).collect())
        };
        terms
            .none
            .iter()
            .filter_map(interval)
            .for_each(|taken| set.remove(taken));
        set
    }

    fn remove(&mut self, (first, last): Interval) {
        let left_of = |(from, to): Interval| (from < first).then(|| (from, to.min(first.saturating_sub(1))));
        let right_of = |(from, to): Interval| (to > last).then(|| (from.max(last.saturating_add(1)), to));
        self.0 = self
            .0
            .iter()
            .flat_map(|&piece| [left_of(piece), right_of(piece)])
            .flatten()
            .collect();
    }

    fn meets(&self, other: &Self) -> bool {
        self.0
            .iter()
            .any(|&(from, to)| other.0.iter().any(|&(first, last)| from <= last && first <= to))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn ports_are_possible(ports: &Ends<PortRange>) -> bool {
    let set = |terms| {
        Set::of(terms, (0, u16::MAX.into()), |range: &PortRange| {
            Some((range.first.into(), range.last.into()))
        })
    };
    set(&ports.bare).meets(&set(&ports.to)) && !set(&ports.from).is_empty()
}

fn addresses_are_possible(networks: &Ends<Network>, family: Family) -> bool {
    let all = match family {
        Family::Ipv4 => (0, u32::MAX.into()),
        Family::Ipv6 => (0, u128::MAX),
    };
    let of_family = |network: &Network| match (family, network.0.network(), network.0.broadcast()) {
        (Family::Ipv4, IpAddr::V4(first), IpAddr::V4(last)) => Some((first.to_bits().into(), last.to_bits().into())),
        (Family::Ipv6, IpAddr::V6(first), IpAddr::V6(last)) => Some((first.to_bits(), last.to_bits())),
        _ => None,
    };
    let mut ends = [&networks.from, &networks.to].map(|terms| Set::of(terms, all, of_family));
    // The bare flag's negated networks are closed to both ends; one of its others must have one of them.
    let Terms { any, none } = &networks.bare;
    for taken in none.iter().filter_map(of_family) {
        ends.iter_mut().for_each(|end| end.remove(taken));
    }
    let wanted = Set(any.iter().filter_map(of_family).collect());
    ends.iter().all(|end| !end.is_empty()) && (any.is_empty() || ends.iter().any(|end| end.meets(&wanted)))
}
