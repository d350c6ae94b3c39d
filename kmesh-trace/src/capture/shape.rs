//! The shape of a record: all of it that is one of a few. What state and outcome it has, and which facts are known.
//!
//! Few shapes occur, and records of the same shape resemble each other; so a block tells each once, and the numbers of a record as
//! differences from the last one of its shape. A shape is one number of these fields, from the lowest bit:
//!
//! event 2 bits, direction 1, family 1, `src` IPv6 1, `dst` IPv6 1, original destination 2 (0 none, 1 IPv4, 2 IPv6), preexisting 1, established 1,
//! unresolved 1; known: start, duration, connect, cgroup, errno, srtt, least rtt 1 each; outcome 4, closed by 2, process by 3, old state 4,
//! Service by 2, each 0 where it is none; ambiguous 1; state 4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use bytemuck::Zeroable;
use kmesh_trace_common::Snapshot;

use crate::record::{
    Called, ClosedBy, Comm, ConnId, Direction, Event, Family, LossReason, Names, Outcome, Process, ProcessBy, Record,
    Service, ServiceBy, Tcp, TcpState, WallTime,
};

// The numbers of the format: a value's place, from 0. Never reorder, only append.
const EVENTS: [Event; 3] = [Event::Close, Event::Open, Event::Update];
const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const OUTCOMES: [Outcome; 9] = [
    Outcome::Ok,
    Outcome::Refused,
    Outcome::ConnectTimeout,
    Outcome::ConnectAborted,
    Outcome::Unreachable,
    Outcome::ResetByPeer,
    Outcome::ResetByLocal,
    Outcome::Timeout,
    Outcome::Unknown,
];
const CLOSED_BY: [ClosedBy; 2] = [ClosedBy::Local, ClosedBy::Peer];
const PROCESS_BY: [ProcessBy; 4] = [
    ProcessBy::Connect,
    ProcessBy::Close,
    ProcessBy::Listener,
    ProcessBy::Scan,
];
const SERVICE_BY: [ServiceBy; 3] = [ServiceBy::Vip, ServiceBy::TargetPort, ServiceBy::Headless];
const STATES: [TcpState; 9] = [
    TcpState::Established,
    TcpState::SynSent,
    TcpState::SynRecv,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::Close,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
];
/// In a capture a set of reasons is a number with these bits.
const REASONS: [LossReason; 4] = [
    LossReason::RingFull,
    LossReason::NoSocketStorage,
    LossReason::ProgramSkipped,
    LossReason::Undecodable,
];

/// Bits, put in from the lowest.
#[derive(Default)]
struct Put {
    bits: u64,
    width: u32,
}

impl Put {
    fn bits(&mut self, value: u64, width: u32) {
        self.bits |= value << self.width;
        self.width += width;
    }

    fn flag(&mut self, value: bool) {
        self.bits(value.into(), 1);
    }

    fn one_of<T: PartialEq>(&mut self, all: &[T], value: &T, width: u32) {
        self.bits(place(all, value) - 1, width);
    }

    fn some_of<T: PartialEq>(&mut self, all: &[T], value: Option<&T>, width: u32) {
        self.bits(value.map_or(0, |value| place(all, value)), width);
    }
}

/// From 1. A test knows that every value has one.
fn place<T: PartialEq>(all: &[T], value: &T) -> u64 {
    all.iter()
        .position(|one| one == value)
        .map_or(1, |index| index as u64 + 1)
}

/// Bits, taken out from the lowest.
struct Take(u64);

impl Take {
    fn bits(&mut self, width: u32) -> u64 {
        let value = self.0 & ((1 << width) - 1);
        self.0 >>= width;
        value
    }

    fn flag(&mut self) -> bool {
        self.bits(1) == 1
    }

    fn some_if_flag<T: Default>(&mut self) -> Option<T> {
        self.flag().then(T::default)
    }

    fn one_of<T: Copy>(&mut self, all: &[T], width: u32) -> Option<T> {
        all.get(self.bits(width) as usize).copied()
    }

    /// The outer one is none for a number without a meaning.
    fn some_of<T: Copy>(&mut self, all: &[T], width: u32) -> Option<Option<T>> {
        match self.bits(width) {
            0 => Some(None),
            place => all.get(place as usize - 1).copied().map(Some),
        }
    }

    fn address(&mut self) -> SocketAddr {
        unspecified(self.flag())
    }
}

fn unspecified(six: bool) -> SocketAddr {
    let ip: IpAddr = if six {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(ip, 0)
}

/// The shape of a record.
pub fn of(record: &Record) -> u64 {
    let mut shape = Put::default();
    shape.one_of(&EVENTS, &record.event, 2);
    shape.one_of(&DIRECTIONS, &record.direction, 1);
    shape.one_of(&FAMILIES, &record.family, 1);
    shape.flag(record.src.is_ipv6());
    shape.flag(record.dst.is_ipv6());
    let original = record.names.original_dst;
    shape.bits(original.map_or(0, |address| 1 + u64::from(address.is_ipv6())), 2);
    shape.flag(record.preexisting);
    shape.flag(record.established);
    shape.flag(record.names.unresolved);
    for known in [
        record.start.is_some(),
        record.duration_ns.is_some(),
        record.connect_ns.is_some(),
        record.cgroup_id.is_some(),
        record.errno.is_some(),
        record.tcp.srtt_us.is_some(),
        record.tcp.rtt_min_us.is_some(),
    ] {
        shape.flag(known);
    }
    shape.some_of(&OUTCOMES, record.outcome.as_ref(), 4);
    shape.some_of(&CLOSED_BY, record.closed_by.as_ref(), 2);
    shape.some_of(&PROCESS_BY, record.process.as_ref().map(|process| &process.by), 3);
    shape.some_of(&STATES, record.tcp.old_state.as_ref(), 4);
    let called = record.names.service.as_ref();
    shape.some_of(&SERVICE_BY, called.map(|called| &called.by), 2);
    shape.flag(called.is_some_and(|called| called.ambiguous));
    shape.one_of(&STATES, &record.tcp.state, 4);
    shape.bits
}

/// A record of this shape, with 0 for every number in it and no names; none if there can be no such shape.
pub fn skeleton(shape: u64) -> Option<Record> {
    let mut shape = Take(shape);
    let event = shape.one_of(&EVENTS, 2)?;
    let direction = shape.one_of(&DIRECTIONS, 1)?;
    let family = shape.one_of(&FAMILIES, 1)?;
    let (src, dst) = (shape.address(), shape.address());
    let original_dst = match shape.bits(2) {
        0 => None,
        1 => Some(unspecified(false)),
        2 => Some(unspecified(true)),
        _ => return None,
    };
    let (preexisting, established, unresolved) = (shape.flag(), shape.flag(), shape.flag());
    let start = shape.flag().then_some(WallTime(0));
    let (duration_ns, connect_ns, cgroup_id) = (shape.some_if_flag(), shape.some_if_flag(), shape.some_if_flag());
    let (errno, srtt_us, rtt_min_us) = (shape.some_if_flag(), shape.some_if_flag(), shape.some_if_flag());
    let outcome = shape.some_of(&OUTCOMES, 4)?;
    let closed_by = shape.some_of(&CLOSED_BY, 2)?;
    let process_by = shape.some_of(&PROCESS_BY, 3)?;
    let old_state = shape.some_of(&STATES, 4)?;
    let service_by = shape.some_of(&SERVICE_BY, 2)?;
    let ambiguous = shape.flag();
    let state = shape.one_of(&STATES, 4)?;
    if shape.0 != 0 || (ambiguous && service_by.is_none()) {
        return None;
    }
    Some(Record {
        id: ConnId {
            cookie: 0,
            association: 0,
        },
        event,
        time: WallTime(0),
        start,
        duration_ns,
        connect_ns,
        preexisting,
        observed_ns: 0,
        direction,
        family,
        src,
        dst,
        names: Names {
            service: service_by.map(|by| Called {
                service: nameless(),
                by,
                ambiguous,
            }),
            original_dst,
            unresolved,
            ..Names::default()
        },
        process: process_by.map(|by| Process {
            pid: 0,
            comm: Comm([0; 16]),
            by,
        }),
        netns: 0,
        is_netns_of_root: true,
        cgroup_id,
        container_id: None,
        sent_bytes: 0,
        received_bytes: 0,
        undelivered_bytes: 0,
        established,
        outcome,
        errno,
        closed_by,
        tcp: Tcp {
            srtt_us,
            rtt_min_us,
            ..Tcp::new(state, old_state, &Snapshot::zeroed())
        },
    })
}

/// Until the record's own is put in its place.
fn nameless() -> Arc<Service> {
    static NAMELESS: LazyLock<Arc<Service>> = LazyLock::new(|| {
        Arc::new(Service {
            namespace: "".into(),
            name: "".into(),
            host: "".into(),
        })
    });
    Arc::clone(&NAMELESS)
}

/// A set of reasons as a number.
pub fn reasons_put(reasons: &[LossReason]) -> u64 {
    reasons
        .iter()
        .fold(0, |bits, reason| bits | 1 << (place(&REASONS, reason) - 1))
}

/// A set of reasons, in order; none for bits without a meaning.
pub fn reasons(bits: u64) -> Option<Vec<LossReason>> {
    let known = REASONS.iter().enumerate();
    (bits >> REASONS.len() == 0).then(|| {
        known
            .filter(|(index, _)| bits >> index & 1 == 1)
            .map(|(_, &reason)| reason)
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing;

    #[test]
    fn every_value_has_its_number() {
        fn same<T: PartialEq>(all: &[T], numbered: &[T]) -> bool {
            all.len() == numbered.len() && all.iter().all(|value| numbered.contains(value))
        }
        assert!(same(Event::ALL, &EVENTS));
        assert!(same(Direction::ALL, &DIRECTIONS));
        assert!(same(Family::ALL, &FAMILIES));
        assert!(same(Outcome::ALL, &OUTCOMES));
        assert!(same(ClosedBy::ALL, &CLOSED_BY));
        assert!(same(ProcessBy::ALL, &PROCESS_BY));
        assert!(same(ServiceBy::ALL, &SERVICE_BY));
        assert!(same(TcpState::ALL, &STATES));
        assert!(same(LossReason::ALL, &REASONS));
    }

    #[test]
    fn a_shape_is_that_of_its_skeleton() {
        for record in testing::all() {
            let shape = of(&record);
            assert_eq!(of(&skeleton(shape).unwrap()), shape, "{record:?}");
        }
        let mut next = testing::random(7);
        let mut sound = 0;
        for _ in 0..100_000 {
            let shape = next() & ((1 << 39) - 1);
            if let Some(record) = skeleton(shape) {
                assert_eq!(of(&record), shape);
                sound += 1;
            }
        }
        assert!(sound > 1000, "{sound}");
        assert!(skeleton(u64::MAX).is_none());
    }

    #[test]
    fn reasons_come_back() {
        for bits in 0..16 {
            assert_eq!(reasons_put(&reasons(bits).unwrap()), bits);
        }
        assert_eq!(reasons(16), None);
    }
}
