//! Predicts the record of each end from the packets and the calls of a life, without the tool.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::call::{Action, Call};
use super::capture::{Packet, PacketKind, RST};
use super::endpoint::{Endpoint, Event};
use super::flow::{ChildSocket, Flow};
use super::life::Life;
use super::state::{self, Ending, State};
use super::world::Side;
use crate::support::expect::CLOCK_ERROR;

/// A range of times.
type TimeRange = (SystemTime, SystemTime);

/// A `close` record that a tracer must print.
#[derive(Clone, Debug)]
pub struct ExpectedRecord {
    pub side: Side,
    pub direction: &'static str,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub sent: u64,
    pub received: u64,
    pub undelivered: u64,
    pub established: bool,
    pub ending: Ending,
    /// Another right outcome, where calls and packets do not decide between the two.
    pub other_outcome: Option<&'static str>,
    /// Whether the program disconnected the socket or used it again after this attempt.
    pub is_reused: bool,
    /// Each of these processes is a right owner.
    pub pids: BTreeSet<u32>,
    /// The process that accepted the connection.
    pub acceptor: Option<u32>,
    /// Each of these is a right `process.by`.
    pub process_by: &'static [&'static str],
    pub start: TimeRange,
    /// Another right range for `start`, where the contract allows two.
    pub other_start: Option<TimeRange>,
    /// The shortest and the longest right `connect_ns`. `None` if it must be null.
    pub connect_time: Option<(Duration, Duration)>,
    /// The earliest right `time`.
    pub earliest_end: SystemTime,
    /// The fields of which several values are right, each with the reason.
    pub undecided: Vec<&'static str>,
}

impl ExpectedRecord {
    fn new(endpoint: &Endpoint, side: Side, direction: &'static str, src: SocketAddr, dst: SocketAddr) -> Option<Self> {
        let (ending, end_time) = endpoint.ended.clone()?;
        let mut undecided = Vec::new();
        if endpoint.other_outcome.is_some() {
            undecided
                .push("outcome: a segment reached an orphan in FIN_WAIT2, or the time-wait socket that replaced it");
        }
        if ending.errno.len() > 1 {
            undecided.push(
                "errno: the kernel sets ECONNRESET or ETIMEDOUT on the socket after the last state change, or never",
            );
        }
        Some(Self {
            side,
            direction,
            src,
            dst,
            sent: endpoint.acknowledged_bytes() as u64,
            received: (endpoint.rcv_nxt - 1).max(0) as u64,
            undelivered: endpoint.unacknowledged_bytes() as u64,
            established: endpoint.established.is_some(),
            ending,
            other_outcome: endpoint.other_outcome,
            is_reused: false,
            pids: BTreeSet::new(),
            acceptor: None,
            process_by: &[],
            start: (end_time, end_time),
            other_start: None,
            connect_time: None,
            earliest_end: end_time - CLOCK_ERROR,
            undecided,
        })
    }

    /// Whether the record's `start` can be this time.
    pub fn can_start_at(&self, time: SystemTime) -> bool {
        let contains = |(from, to): TimeRange| from <= time && time <= to;
        contains(self.start) || self.other_start.is_some_and(contains)
    }

    /// Also allows the listener's owner, for this reason.
    fn allow_listener(&mut self, listener_pid: u32, reason: &'static str) {
        self.undecided.push(reason);
        self.process_by = &["close", "listener"];
        self.pids.insert(listener_pid);
    }
}

/// What the model predicts for a life.
#[derive(Default)]
pub struct Prediction {
    pub records: Vec<ExpectedRecord>,
    /// Where the model contradicts what the calls observed: errors of the model.
    pub contradictions: Vec<String>,
}

/// Runs the model on a whole life.
pub fn predict(life: &Life<'_>, packets: &[Packet]) -> Prediction {
    let mut prediction = Prediction::default();
    for flow in Flow::group(packets) {
        let Some(connect) = connect_call(life, &flow, flow.client, flow.server) else {
            let text = format!("no call sent the SYN from {} to {}", flow.client, flow.server);
            prediction.contradictions.push(text);
            continue;
        };
        prediction.add_outbound(life, &flow, connect, flow.client, flow.server);
        if flow.client == flow.server {
            continue;
        }
        match connect_call(life, &flow, flow.server, flow.client) {
            Some(connect) => prediction.add_outbound(life, &flow, connect, flow.server, flow.client),
            None => prediction.add_inbound(life, &flow),
        }
    }
    prediction
}

/// Returns the call that sent the first SYN of a flow from this end. On a slow machine, the packet is captured only
/// after the call.
fn connect_call<'a>(life: &'a Life<'_>, flow: &Flow<'_>, from: SocketAddr, to: SocketAddr) -> Option<&'a Call> {
    let syn = flow.syn_from(from)?;
    let can_send_syn = |call: &&Call| {
        // A write can send the SYN of the connect() before it.
        let sends = matches!(call.action, Action::Connect(_) | Action::FastOpen(_) | Action::Write);
        let destination = || {
            let mut calls = life.calls.iter().rev();
            calls.find_map(|other| {
                let is_earlier = other.socket == call.socket && other.time.before <= syn.time;
                other.action.destination().filter(|_| is_earlier)
            })
        };
        call.time.before <= syn.time && sends && destination() == Some(to)
    };
    let mut candidates = life.calls.iter().filter(can_send_syn);
    let mut at_syn = candidates.clone().filter(|call| syn.time <= call.time.after);
    at_syn.next().or_else(|| candidates.next_back())
}

/// Returns the calls on a socket from this call on, until the socket's next attempt.
fn calls_of_attempt<'a>(life: &'a Life<'_>, first: &Call) -> Vec<&'a Call> {
    let mut calls = life
        .calls
        .iter()
        .filter(|call| call.socket == first.socket)
        .skip_while(|call| call.time.before < first.time.before);
    let first = calls.next();
    let rest =
        calls.take_while(|call| !matches!(call.action, Action::Connect(_) | Action::FastOpen(_) | Action::Listen));
    first.into_iter().chain(rest).collect()
}

/// Whether the program disconnected, connected or listened with the socket after this call.
fn is_reused(life: &Life<'_>, first: &Call) -> bool {
    life.calls.iter().any(|call| {
        call.socket == first.socket
            && call.time.before > first.time.before
            && matches!(
                call.action,
                Action::Disconnect | Action::Connect(_) | Action::FastOpen(_) | Action::Listen
            )
    })
}

/// Returns the event of a call. It is a late close if close() must send a RST, and the RST comes after the call.
///
/// A close() with unread data, or with SO_LINGER of zero seconds, sends its RST before it returns, unless another task
/// holds the file, as a scan of descriptors does for a moment. Then the kernel closes the socket when that task
/// releases the file.
fn call_event<'a>(call: &'a Call, endpoint: &Endpoint, flow: &Flow<'_>) -> Event<'a> {
    let must_reset = matches!(call.action, Action::Close { linger_zero, unread } if linger_zero || unread > 0)
        && matches!(
            call.state_before,
            Some(state::ESTABLISHED | state::CLOSE_WAIT | state::FIN_WAIT1 | state::FIN_WAIT2)
        );
    let reset = flow.packets.iter().find(|packet| {
        packet.from == endpoint.local && packet.time >= call.time.before && packet.tcp_flags() & RST != 0
    });
    match reset {
        _ if !must_reset => Event::Call(call),
        Some(reset) if reset.time <= call.time.after => Event::Call(call),
        Some(reset) => Event::LateClose(call, reset.time),
        // Another event ended the connection before the kernel closed the socket.
        None => {
            let last = flow.packets.last().map_or(call.time.after, |packet| packet.time);
            Event::LateClose(call, last.max(call.time.after) + Duration::from_nanos(1))
        }
    }
}

impl Prediction {
    /// Applies the packets of a flow and the calls of a program to one end of the connection.
    fn replay(&mut self, endpoint: &mut Endpoint, flow: &Flow<'_>, calls: Vec<&Call>) {
        let mut events: Vec<Event<'_>> = calls.into_iter().map(|call| call_event(call, endpoint, flow)).collect();
        for packet in &flow.packets {
            let is_icmp = matches!(packet.kind, PacketKind::Icmp(..));
            let is_from_here = packet.from == endpoint.local;
            if is_from_here && !is_icmp {
                events.push(Event::Sent(packet));
            }
            // An ICMP error goes to the sender of the segment that caused it.
            if is_from_here == is_icmp || packet.from == packet.to {
                events.push(Event::Received(packet));
            }
        }
        events.sort_by_key(Event::time);
        for event in events {
            endpoint.apply(event);
        }
        endpoint.finish();
        let local = endpoint.local;
        let contradictions = std::mem::take(&mut endpoint.contradictions);
        self.contradictions
            .extend(contradictions.iter().map(|text| format!("of {local}: {text}")));
    }

    /// Adds the record of an end whose program called connect().
    fn add_outbound(
        &mut self,
        life: &Life<'_>,
        flow: &Flow<'_>,
        connect: &Call,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let socket = &life.sockets[connect.socket];
        let mut endpoint = Endpoint::new(local, true, State::SynSent);
        endpoint.no_fin_wait2 = socket.no_fin_wait2;
        endpoint.verdict = socket.verdict;
        self.replay(&mut endpoint, flow, calls_of_attempt(life, connect));
        let Some((_, end_time)) = endpoint.ended else { return };
        let Some(mut expected) = ExpectedRecord::new(&endpoint, socket.side, "outbound", local, remote) else {
            return;
        };
        let first_packet = flow.packets.iter().find(|packet| packet.from == local);
        let syn_sent = first_packet.map_or(end_time, |packet| packet.time);
        expected.start = (connect.time.before - CLOCK_ERROR, syn_sent + CLOCK_ERROR);
        expected.connect_time = endpoint.established.map(|established| {
            let shortest = established.duration_since(syn_sent).unwrap_or_default();
            let latest = endpoint.first_sent_after.unwrap_or(end_time).max(established);
            let longest = latest.duration_since(connect.time.before).unwrap_or_default();
            (shortest.saturating_sub(CLOCK_ERROR), longest + CLOCK_ERROR)
        });
        expected.is_reused = is_reused(life, connect);
        expected.pids = BTreeSet::from([connect.pid]);
        expected.process_by = &["connect"];
        self.records.push(expected);
    }

    /// Adds the record of the end that a listener created, if it created one.
    fn add_inbound(&mut self, life: &Life<'_>, flow: &Flow<'_>) {
        let (client, server) = (flow.client, flow.server);
        let is_listen = |call: &&Call| {
            matches!(call.action, Action::Listen)
                && life.sockets[call.socket].local == Some(server)
                && call.time.before < flow.start()
        };
        let Some(listen) = life.calls.iter().rev().find(is_listen) else {
            return;
        };
        let listener = &life.sockets[listen.socket];
        let Some(child) = flow.child_socket(listener.deferred) else {
            return;
        };
        let accept = life.calls.iter().find(|call| match call.action {
            Action::Accept { listener, peer } => {
                listener == listen.socket && peer == client && call.time.after >= child.created
            }
            _ => false,
        });
        let socket = accept.map_or(listener, |accept| &life.sockets[accept.socket]);
        let mut endpoint = child_endpoint(flow, &child);
        endpoint.no_fin_wait2 = socket.no_fin_wait2;
        endpoint.verdict = socket.verdict;
        let calls = accept.map_or_else(Vec::new, |accept| calls_of_attempt(life, accept));
        let child_flow = packets_of_child(flow, &child);
        self.replay(&mut endpoint, &child_flow, calls);
        let Some(mut expected) = ExpectedRecord::new(&endpoint, listener.side, "inbound", client, server) else {
            return;
        };
        set_inbound_start(&mut expected, &endpoint, &child, &child_flow, accept);
        expected.acceptor = accept.map(|accept| accept.pid);
        expected.is_reused = accept.is_some_and(|accept| is_reused(life, accept));
        set_inbound_owner(&mut expected, &endpoint, life, listen, accept.is_some());
        self.records.push(expected);
    }
}

/// Returns the model of a listener's child, at the time when the listener created it.
fn child_endpoint(flow: &Flow<'_>, child: &ChildSocket) -> Endpoint {
    let mut endpoint = Endpoint::new(flow.server, false, child.state);
    if let PacketKind::Tcp { seq, len, .. } = flow.packets[0].kind {
        endpoint.irs = Some(seq);
        endpoint.rcv_nxt = 1;
        if child.state == State::SynRecv {
            endpoint.rcv_nxt += i64::from(len);
        }
    }
    endpoint.snd_una = 1;
    if child.state == State::Established {
        endpoint.established = Some(child.created);
    }
    endpoint
}

/// Returns the flow without the packets that the listener received. The packet that created a child in ESTABLISHED,
/// unlike the SYN of a Fast Open, can carry data and a FIN for the child.
fn packets_of_child<'a>(flow: &Flow<'a>, child: &ChildSocket) -> Flow<'a> {
    let is_handled =
        |packet: &&Packet| child.state == State::SynRecv && packet.from == flow.client && packet.time == child.created;
    let packets = flow.packets.iter().copied();
    Flow {
        client: flow.client,
        server: flow.server,
        packets: packets
            .filter(|packet| packet.time >= child.created || packet.from == flow.server)
            .skip_while(is_handled)
            .collect(),
    }
}

/// Sets the right range of an inbound record's `start`.
fn set_inbound_start(
    expected: &mut ExpectedRecord,
    endpoint: &Endpoint,
    child: &ChildSocket,
    flow: &Flow<'_>,
    accept: Option<&Call>,
) {
    let Some((_, end_time)) = endpoint.ended else { return };
    let next_sent = flow
        .packets
        .iter()
        .find(|packet| packet.from == flow.server && packet.time > child.created)
        .map(|packet| packet.time);
    let first_use = [next_sent, accept.map(|accept| accept.time.after)]
        .into_iter()
        .flatten()
        .min();
    let latest = if child.state == State::SynRecv {
        child.syn_ack_sent
    } else {
        first_use.unwrap_or(end_time)
    };
    expected.start = (child.created - CLOCK_ERROR, latest.max(child.created) + CLOCK_ERROR);
    if let Some(established) = endpoint.established
        && child.state == State::SynRecv
    {
        let latest = endpoint.first_sent_after.unwrap_or(end_time).max(established);
        expected.other_start = Some((established - CLOCK_ERROR, latest + CLOCK_ERROR));
        expected.undecided.push(
            "start: the contract says ESTABLISHED for each server, and the creation of the socket for Fast Open servers",
        );
    }
}

/// Sets the right owners of an inbound record.
fn set_inbound_owner(
    expected: &mut ExpectedRecord,
    endpoint: &Endpoint,
    life: &Life<'_>,
    listen: &Call,
    is_accepted: bool,
) {
    if !is_accepted {
        let is_close = |call: &&Call| call.socket == listen.socket && matches!(call.action, Action::Close { .. });
        expected.pids = life.calls.iter().filter(is_close).map(|call| call.pid).collect();
        expected.pids.insert(listen.pid);
        expected.process_by = &["close", "listener"];
    } else if endpoint.closers.is_empty() {
        expected.pids = BTreeSet::from([listen.pid]);
        expected.process_by = &["listener"];
    } else {
        expected.pids.clone_from(&endpoint.closers);
        expected.process_by = &["close"];
        if endpoint.is_disconnected {
            let reason = "process: the contract does not say whether AF_UNSPEC is a close";
            expected.allow_listener(listen.pid, reason);
        }
        if endpoint.is_closed_late {
            let reason = "process: a task that scans descriptors may have been the last to hold the socket";
            expected.allow_listener(listen.pid, reason);
        }
        if endpoint.is_closed_in_syn_recv {
            let reason = "process.by: shutdown() in SYN_RECV changes no state, so the listener's owner may be reported";
            expected.allow_listener(listen.pid, reason);
        }
    }
    if expected.pids.len() > 1 && expected.undecided.is_empty() {
        expected
            .undecided
            .push("process: two processes closed or shut down the connection");
    }
}
