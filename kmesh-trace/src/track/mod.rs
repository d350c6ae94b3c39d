//! Events → records, in the order of time. Pure: time comes in as a value.
//!
//! Two things need a short wait. A close may be followed by a RST that settles how it ended, and CPUs put their records on
//! the ring a little out of order. So each event is held for [`SETTLE_NS`] of the kernel's time.

pub mod clock;
pub mod decode;
pub mod delta;
pub mod outcome;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_PREEXISTING, FLAG_ROOT_NETNS, KIND_OPEN, KIND_UPDATE, Owner, Reset, SK_DONE, Snapshot, owner,
    state,
};

use self::clock::Clock;
use crate::record::{Comm, ConnId, Direction, Event, Family, Names, Process, ProcessBy, Record, Tcp, TcpState};

/// How long an event is held, ns. The RST that a close causes is sent in the same run of the kernel's receive path, within
/// microseconds; the rest allows for a virtual CPU that is taken away in between.
pub const SETTLE_NS: u64 = 5_000_000;

/// Turns events into records.
#[derive(Debug)]
pub struct Tracker {
    /// When tracing began: CLOCK_MONOTONIC, ns.
    began_ns: u64,
    /// The name of this node.
    node: Arc<str>,
    /// In the order of their times.
    held: VecDeque<Held>,
    /// The latest time seen.
    latest_ns: u64,
}

#[derive(Debug)]
struct Held {
    snapshot: Snapshot,
    reset_sent: bool,
}

impl Tracker {
    /// Returns a tracker for a run on `node` that began at `began_ns` (CLOCK_MONOTONIC).
    pub fn new(began_ns: u64, node: Arc<str>) -> Self {
        Self {
            began_ns,
            node,
            held: VecDeque::new(),
            latest_ns: 0,
        }
    }

    /// Takes one event.
    pub fn take(&mut self, event: decode::Event) {
        match event {
            decode::Event::Snapshot(snapshot) => self.hold(snapshot),
            decode::Event::Reset(reset) => self.settle(reset),
        }
    }

    /// The latest time of an event, CLOCK_MONOTONIC, ns.
    pub fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// The next event, in the order of time, if everything up to `complete_ns` has been taken and it can change no more.
    /// With it, its time on the monotonic clock.
    pub fn next(&mut self, complete_ns: u64, clock: &Clock) -> Option<(u64, Record)> {
        let first = self.held.front()?;
        if first.snapshot.time_ns.saturating_add(SETTLE_NS) > complete_ns {
            return None;
        }
        let Held { snapshot, reset_sent } = self.held.pop_front()?;
        Some((snapshot.time_ns, self.make(&snapshot, reset_sent, clock)))
    }

    /// What a snapshot says at once, as a record.
    pub fn record(&self, snapshot: &Snapshot, clock: &Clock) -> Record {
        self.make(snapshot, false, clock)
    }

    fn make(&self, snapshot: &Snapshot, reset_sent: bool, clock: &Clock) -> Record {
        record(snapshot, reset_sent, self.began_ns, &self.node, clock)
    }

    fn hold(&mut self, snapshot: Snapshot) {
        // A walk's snapshots come all at once, some time after; what the ring has told is told as far as its own latest.
        if snapshot.kind != KIND_UPDATE {
            self.latest_ns = self.latest_ns.max(snapshot.time_ns);
        }
        // Nearly always the last one.
        let later = match self.held.back() {
            Some(last) if last.snapshot.time_ns > snapshot.time_ns => self
                .held
                .partition_point(|held| held.snapshot.time_ns <= snapshot.time_ns),
            _ => self.held.len(),
        };
        self.held.insert(
            later,
            Held {
                snapshot,
                reset_sent: false,
            },
        );
    }

    fn settle(&mut self, reset: Reset) {
        let of_reset =
            |held: &&mut Held| (held.snapshot.cookie, held.snapshot.attempt) == (reset.cookie, reset.attempt);
        if let Some(held) = self.held.iter_mut().rev().find(of_reset) {
            held.reset_sent = true;
        }
    }
}

fn record(snapshot: &Snapshot, reset_sent: bool, began_ns: u64, node: &Arc<str>, clock: &Clock) -> Record {
    let (event, state, ending) = match snapshot.kind {
        KIND_OPEN => (Event::Open, state::ESTABLISHED, None),
        KIND_UPDATE => (Event::Update, snapshot.old_state, None),
        _ => (Event::Close, state::CLOSE, Some(outcome::ending(snapshot, reset_sent))),
    };
    // The state whose rules hold for what has been counted so far.
    let counted_state = ending.as_ref().map_or(state, |ending| ending.old_state);
    // A walk meets no change of state.
    let old_state = match event {
        Event::Close => tcp_state(counted_state),
        Event::Open => tcp_state(snapshot.old_state),
        Event::Update => None,
    };
    let active = snapshot.flags & FLAG_ACTIVE != 0;
    let preexisting = snapshot.flags & FLAG_PREEXISTING != 0;
    let start_ns = (!preexisting).then_some(snapshot.start_ns);
    let since = |then: u64| snapshot.time_ns.saturating_sub(then);
    let bytes = payload(snapshot, counted_state, active);
    let local = end(snapshot.local_addr, snapshot.local_port);
    let peer = end(snapshot.peer_addr, snapshot.peer_port);
    let (direction, src, dst) = if active {
        (Direction::Outbound, local, peer)
    } else {
        (Direction::Inbound, peer, local)
    };
    Record {
        id: ConnId {
            cookie: snapshot.cookie,
            attempt: snapshot.attempt,
        },
        event,
        time: clock.wall(snapshot.time_ns),
        start: start_ns.map(|start_ns| clock.wall(start_ns)),
        duration_ns: start_ns.map(since),
        connect_ns: start_ns
            .filter(|_| active && snapshot.established_ns != 0)
            .and_then(|start_ns| snapshot.established_ns.checked_sub(start_ns)),
        preexisting,
        observed_ns: since(start_ns.unwrap_or(began_ns)),
        node: Arc::clone(node),
        direction,
        family: if peer.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
        src,
        dst,
        process: process(&snapshot.owner),
        netns: snapshot.netns,
        is_netns_of_root: snapshot.flags & FLAG_ROOT_NETNS != 0,
        cgroup_id: (snapshot.cgroup_id != 0).then_some(snapshot.cgroup_id),
        container_id: None,
        names: Names::default(),
        sent_bytes: bytes.sent,
        received_bytes: bytes.received,
        undelivered_bytes: bytes.undelivered,
        established: !outcome::is_half_open(snapshot, counted_state),
        outcome: ending.as_ref().map(|ending| ending.outcome),
        errno: ending.as_ref().and_then(|ending| ending.errno),
        closed_by: ending.as_ref().and_then(|ending| ending.closed_by),
        tcp: Tcp::new(tcp_state(state).unwrap_or(TcpState::Close), old_state, snapshot),
    }
}

struct Payload {
    sent: u64,
    received: u64,
    undelivered: u64,
}

/// The exact payload. The kernel's counters also count an active open's SYN and both FINs: a FIN of this end once it is
/// acknowledged, the peer's once it is received. (Verified on 6.18 against what programs wrote and read.)
fn payload(snapshot: &Snapshot, old_state: u8, active: bool) -> Payload {
    let fin_sent = matches!(
        old_state,
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK
    );
    let all_acknowledged = outcome::all_acknowledged(snapshot);
    let syn_acknowledged = active && snapshot.bytes_acked > 0;
    let fin_acknowledged = fin_sent && all_acknowledged;
    let fin_pending = fin_sent && !all_acknowledged;
    // A client that got a SYN for its SYN is in SYN_RECV, and may be closed there.
    let connecting = old_state == state::SYN_SENT || active && outcome::is_half_open(snapshot, old_state);
    let syn_pending = connecting && !all_acknowledged;
    let fin_received = snapshot.sk_flags & SK_DONE != 0;
    let minus = |count: u64, flags: [bool; 2]| {
        flags
            .into_iter()
            .fold(count, |count, flag| count.saturating_sub(flag.into()))
    };
    Payload {
        sent: minus(snapshot.bytes_acked, [syn_acknowledged, fin_acknowledged]),
        received: minus(snapshot.bytes_received, [fin_received, false]),
        undelivered: minus(
            snapshot.write_seq.wrapping_sub(snapshot.snd_una).into(),
            [fin_pending, syn_pending],
        ),
    }
}

/// An address and port. IPv4 comes IPv4-mapped, whatever the socket's own family.
fn end(address: [u8; 16], port: u16) -> SocketAddr {
    let ip: IpAddr = Ipv6Addr::from(address).to_canonical();
    SocketAddr::new(ip, port)
}

fn process(found: &Owner) -> Option<Process> {
    let by = match found.by {
        owner::CONNECT => ProcessBy::Connect,
        owner::CLOSE => ProcessBy::Close,
        owner::SCAN => ProcessBy::Scan,
        owner::LISTENER => ProcessBy::Listener,
        _ => return None,
    };
    Some(Process {
        pid: found.pid,
        comm: Comm(found.comm),
        by,
    })
}

fn tcp_state(number: u8) -> Option<TcpState> {
    Some(match number {
        state::ESTABLISHED => TcpState::Established,
        state::SYN_SENT => TcpState::SynSent,
        state::SYN_RECV => TcpState::SynRecv,
        state::FIN_WAIT1 => TcpState::FinWait1,
        state::FIN_WAIT2 => TcpState::FinWait2,
        state::CLOSE => TcpState::Close,
        state::CLOSE_WAIT => TcpState::CloseWait,
        state::LAST_ACK => TcpState::LastAck,
        state::CLOSING => TcpState::Closing,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
