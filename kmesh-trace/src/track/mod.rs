//! Turns the kernel's events into records, in the order of time. Pure: time comes in as a value.
//!
//! Each event waits for [`SETTLE_NS`] of the kernel's time, for two reasons. A RST may follow a close and decide how
//! the connection ended. And the records of several CPUs come slightly out of order.

pub mod clock;
pub mod decode;
pub mod delta;
pub mod drops;
pub mod listeners;
pub mod outcome;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_PREEXISTING, FLAG_ROOT_NETNS, KIND_OPEN, KIND_UPDATE, Listener, Owner, RejectKey, Reset, SK_DONE,
    Snapshot, Turns, owner, state,
};

use self::clock::Clock;
use self::decode::KernelEvent;
use crate::record::{
    self, AcceptQueue, Comm, ConnId, Direction, Event, Family, Names, Process, ProcessBy, ReasonNames, Record, Subject,
    Tcp, TcpState,
};

/// The time that an event waits, ns. The kernel sends the RST of a close in the same run of its receive path, within
/// microseconds. The rest is for a virtual CPU that the hypervisor preempts in between.
pub const SETTLE_NS: u64 = 5_000_000;

/// Turns events into records.
#[derive(Debug)]
pub struct Tracker {
    /// The time when tracing began: CLOCK_MONOTONIC, ns.
    began_ns: u64,
    node: Arc<str>,
    /// The snapshots that wait, in the order of their times.
    pending: VecDeque<Pending>,
    /// The latest time of an event from the ring: CLOCK_MONOTONIC, ns.
    latest_ns: u64,
    /// The latest time of a snapshot from a scan, whose snapshots come in the order of time: CLOCK_MONOTONIC, ns.
    latest_scan_ns: u64,
    /// The time of the last record that [`Self::next`] returned: CLOCK_MONOTONIC, ns.
    returned_ns: u64,
    /// The kernel's names of the reasons for a RST.
    reset_reasons: ReasonNames,
}

#[derive(Debug)]
struct Pending {
    snapshot: Snapshot,
    turns: Option<Box<record::Turns>>,
    /// The RST that this end sent after the close.
    reset: Option<Reset>,
}

impl Tracker {
    /// Returns a tracker for a run on `node` that began at `began_ns` (CLOCK_MONOTONIC).
    pub fn new(began_ns: u64, node: Arc<str>) -> Self {
        Self {
            began_ns,
            node,
            pending: VecDeque::new(),
            latest_ns: 0,
            latest_scan_ns: 0,
            returned_ns: 0,
            reset_reasons: ReasonNames::default(),
        }
    }

    /// Names the reasons for a RST.
    pub fn with_reset_reasons(mut self, names: ReasonNames) -> Self {
        self.reset_reasons = names;
        self
    }

    pub fn take(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Snapshot(snapshot, turns) => self.add(snapshot, turns),
            KernelEvent::Reset(reset) => self.add_reset(reset),
            // No part of a connection.
            KernelEvent::Listener(_) => {}
        }
    }

    /// Returns whether an update comes too late: its scan took so long that later records did not wait for it. The next
    /// scan reports the connection.
    pub fn is_late(&self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Snapshot(snapshot, _) => snapshot.kind == KIND_UPDATE && snapshot.time_ns < self.returned_ns,
            _ => false,
        }
    }

    /// Returns the latest time of an event from the ring: CLOCK_MONOTONIC, ns.
    pub fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// Returns the latest time of a snapshot from a scan: CLOCK_MONOTONIC, ns.
    pub fn latest_scan_ns(&self) -> u64 {
        self.latest_scan_ns
    }

    /// Returns the next record, in the order of time, and its time on the monotonic clock; `None` if an event may still
    /// change or precede it. All events until `complete_ns` have been added.
    pub fn next(&mut self, complete_ns: u64, clock: &Clock) -> Option<(u64, Record)> {
        let first = self.pending.front()?;
        if first.snapshot.time_ns.saturating_add(SETTLE_NS) > complete_ns {
            return None;
        }
        let Pending { snapshot, turns, reset } = self.pending.pop_front()?;
        self.returned_ns = snapshot.time_ns;
        let record = Record {
            turns,
            ..self.to_record(&snapshot, reset, clock)
        };
        Some((snapshot.time_ns, record))
    }

    /// Returns the record of a snapshot without waiting.
    pub fn record(&self, snapshot: &Snapshot, clock: &Clock) -> Record {
        self.to_record(snapshot, None, clock)
    }

    /// Returns the record of a listening socket.
    pub fn listener(&self, listener: &Listener, queue: AcceptQueue, clock: &Clock) -> Record {
        let dst = endpoint(listener.local_addr, listener.local_port);
        Record {
            id: ConnId {
                cookie: listener.cookie,
                attempt: 0,
                node: 0,
            },
            process: process(&listener.owner),
            netns: listener.netns,
            is_netns_of_root: listener.flags & FLAG_ROOT_NETNS != 0,
            cgroup_id: (listener.cgroup_id != 0).then_some(listener.cgroup_id),
            node: Arc::clone(&self.node),
            ..Record::report(Subject::Listener(queue), clock.wall(listener.time_ns), dst)
        }
    }

    /// Returns the record of RSTs that this node sent without a socket, at the time `time_ns` (CLOCK_MONOTONIC).
    pub fn reject(&self, key: &RejectKey, count: u64, time_ns: u64, clock: &Clock) -> Record {
        let address = |words: [u64; 2], port| endpoint(bytemuck::cast(words), port);
        let dialled = address(key.dialled, key.port);
        Record {
            src: address(key.client, 0),
            netns: key.netns,
            reset_reason: self.reset_reasons.name(key.reason.into()),
            node: Arc::clone(&self.node),
            ..Record::report(Subject::Reject(count), clock.wall(time_ns), dialled)
        }
    }

    fn to_record(&self, snapshot: &Snapshot, reset: Option<Reset>, clock: &Clock) -> Record {
        let reset_sent = reset.is_some_and(|reset| reset.decides != 0);
        let reason = reset.map_or(snapshot.reset_reason.into(), |reset| reset.reason);
        Record {
            reset_reason: self.reset_reasons.name(reason),
            ..record(snapshot, reset_sent, self.began_ns, &self.node, clock)
        }
    }

    fn add(&mut self, snapshot: Snapshot, turns: Option<Turns>) {
        // The snapshots of a scan come late, so they do not show the progress of the ring.
        let latest_ns = match snapshot.kind {
            KIND_UPDATE => &mut self.latest_scan_ns,
            _ => &mut self.latest_ns,
        };
        *latest_ns = snapshot.time_ns.max(*latest_ns);
        // Most snapshots come in order.
        let position = match self.pending.back() {
            Some(last) if last.snapshot.time_ns > snapshot.time_ns => self
                .pending
                .partition_point(|pending| pending.snapshot.time_ns <= snapshot.time_ns),
            _ => self.pending.len(),
        };
        let pending = Pending {
            snapshot,
            turns: turns.map(|turns| Box::new(record::Turns::new(&turns))),
            reset: None,
        };
        self.pending.insert(position, pending);
    }

    /// Adds the reset to the close that it belongs to.
    fn add_reset(&mut self, reset: Reset) {
        let is_of_reset = |pending: &&mut Pending| {
            (pending.snapshot.cookie, pending.snapshot.attempt) == (reset.cookie, reset.attempt)
        };
        if let Some(pending) = self.pending.iter_mut().rev().find(is_of_reset) {
            pending.reset = Some(reset);
        }
    }
}

fn record(snapshot: &Snapshot, reset_sent: bool, began_ns: u64, node: &Arc<str>, clock: &Clock) -> Record {
    let (event, state, ending) = match snapshot.kind {
        KIND_OPEN => (Event::Open, state::ESTABLISHED, None),
        KIND_UPDATE => (Event::Update, snapshot.old_state, None),
        _ => (Event::Close, state::CLOSE, Some(outcome::ending(snapshot, reset_sent))),
    };
    // The state whose rules apply to the counters.
    let counted_state = ending.as_ref().map_or(state, |ending| ending.old_state);
    // A scan reports no state change.
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
    let local = endpoint(snapshot.local_addr, snapshot.local_port);
    let peer = endpoint(snapshot.peer_addr, snapshot.peer_port);
    let (direction, src, dst) = if active {
        (Direction::Outbound, local, peer)
    } else {
        (Direction::Inbound, peer, local)
    };
    Record {
        id: ConnId {
            cookie: snapshot.cookie,
            attempt: snapshot.attempt,
            node: 0,
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
        reset_reason: None,
        drops: None,
        dropped_to: None,
        turns: None,
        subject: Subject::Connection,
        joined: None,
        tcp: Tcp::new(tcp_state(state).unwrap_or(TcpState::Close), old_state, snapshot),
    }
}

struct Payload {
    sent: u64,
    received: u64,
    undelivered: u64,
}

/// Returns the bytes of payload that were sent, received and undelivered. The kernel's counters also contain the SYN of
/// connect() and both FINs, which this function subtracts: this end's FIN counts when it is acknowledged, the peer's
/// when it is received. (Verified on 6.18 against the bytes that programs wrote and read.)
fn payload(snapshot: &Snapshot, old_state: u8, active: bool) -> Payload {
    let fin_sent = matches!(
        old_state,
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK
    );
    let all_acknowledged = outcome::all_acknowledged(snapshot);
    let syn_acknowledged = active && snapshot.bytes_acked > 0;
    let fin_acknowledged = fin_sent && all_acknowledged;
    let fin_pending = fin_sent && !all_acknowledged;
    // A client that received a SYN for its SYN is in SYN_RECV, and may be closed there.
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

/// Returns the address and port of an end. The programs write IPv4 as IPv4-mapped, whatever the socket's family.
fn endpoint(address: [u8; 16], port: u16) -> SocketAddr {
    let ip: IpAddr = Ipv6Addr::from(address).to_canonical();
    SocketAddr::new(ip, port)
}

fn process(owner: &Owner) -> Option<Process> {
    let by = match owner.by {
        owner::CONNECT => ProcessBy::Connect,
        owner::CLOSE => ProcessBy::Close,
        owner::SCAN => ProcessBy::Scan,
        owner::LISTENER => ProcessBy::Listener,
        _ => return None,
    };
    Some(Process {
        pid: owner.pid,
        comm: Comm(owner.comm),
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
