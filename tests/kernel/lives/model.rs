//! What the record of each end must say, by the packets and by the calls of a life.
//!
//! The model is TCP's own state machine, driven by the packets that reached an end and by the calls of its program. It knows
//! nothing of the tool.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;

use super::capture::{ACK, FIN, Kind, Packet, RST, SYN};
use super::run::{Act, Call, Id, Life, state};
use super::world::{Side, Verdict};

/// One record that must come.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Whose namespace.
    pub side: Side,
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// The client.
    pub src: SocketAddr,
    /// The server.
    pub dst: SocketAddr,
    /// Payload.
    pub sent: u64,
    /// Payload.
    pub received: u64,
    /// Payload.
    pub undelivered: u64,
    /// Whether the handshake was completed.
    pub established: bool,
    /// How it ended.
    pub ending: Ending,
    /// The other outcome, where calls and packets leave two.
    pub other_outcome: Option<&'static str>,
    /// The program dissolved the connection or used its socket again afterwards.
    pub is_reused: bool,
    /// Any of these processes.
    pub pids: BTreeSet<u32>,
    /// The process that accepted the connection.
    pub holder: Option<u32>,
    /// Known in any of these ways.
    pub by: &'static [&'static str],
    /// Between these.
    pub start: (SystemTime, SystemTime),
    /// Or between these, where the contract has two answers.
    pub other_start: Option<(SystemTime, SystemTime)>,
    /// Between these; none: null.
    pub connect: Option<(Duration, Duration)>,
    /// Not earlier than this.
    pub end: SystemTime,
    /// What neither calls nor packets decide here, by field.
    pub undecided: Vec<&'static str>,
}

impl Expected {
    /// Whether it may have begun then.
    pub fn starts(&self, at: SystemTime) -> bool {
        let within = |(from, to): (SystemTime, SystemTime)| from <= at && at <= to;
        within(self.start) || self.other_start.is_some_and(within)
    }
}

/// How an end came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The outcome.
    pub outcome: &'static str,
    /// Any of these.
    pub errno: Vec<Option<&'static str>>,
    /// Who closed.
    pub closed_by: Option<&'static str>,
}

/// Names an errno as records do.
fn name(errno: Errno) -> &'static str {
    match errno {
        Errno::ECONNREFUSED => "ECONNREFUSED",
        Errno::ETIMEDOUT => "ETIMEDOUT",
        Errno::EHOSTUNREACH => "EHOSTUNREACH",
        Errno::ENETUNREACH => "ENETUNREACH",
        Errno::EACCES => "EACCES",
        Errno::ECONNRESET => "ECONNRESET",
        Errno::EPIPE => "EPIPE",
        _ => "another",
    }
}

/// What an ICMP error means to TCP.
fn icmp_errno(kind: u8, code: u8) -> Option<Errno> {
    match (kind, code) {
        (3, 3) | (1, 4) => Some(Errno::ECONNREFUSED),
        (3, 0) | (1, 0) => Some(Errno::ENETUNREACH),
        (3, 1 | 13) | (1, 3) => Some(Errno::EHOSTUNREACH),
        (1, 1) => Some(Errno::EACCES),
        _ => None,
    }
}

/// How far `to` is behind `from` in the space of sequence numbers.
fn after(from: u32, to: u32) -> i64 {
    i64::from(to.wrapping_sub(from) as i32)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SynSent,
    SynRecv,
    Established,
    FinWait1,
    FinWait2,
    Closing,
    CloseWait,
    LastAck,
}

impl State {
    /// As TCP_INFO has it.
    fn number(self) -> u8 {
        match self {
            Self::SynSent => state::SYN_SENT,
            Self::SynRecv => state::SYN_RECV,
            Self::Established => state::ESTABLISHED,
            Self::FinWait1 => state::FIN_WAIT1,
            Self::FinWait2 => state::FIN_WAIT2,
            Self::Closing => state::CLOSING,
            Self::CloseWait => state::CLOSE_WAIT,
            Self::LastAck => state::LAST_ACK,
        }
    }

    /// Who closed, if it ends in this state; in ESTABLISHED nobody has yet.
    fn closer(self) -> Option<&'static str> {
        match self {
            Self::FinWait1 | Self::FinWait2 | Self::Closing => Some("local"),
            Self::CloseWait | Self::LastAck => Some("peer"),
            _ => None,
        }
    }
}

/// What happens to an end.
#[derive(Clone, Copy)]
enum Event<'a> {
    Sent(&'a Packet),
    Got(&'a Packet),
    Call(&'a Call),
    /// A close() whose socket the kernel closed at this time: another task held the file when the call returned.
    LateClose(&'a Call, SystemTime),
}

impl Event<'_> {
    fn time(&self) -> SystemTime {
        match self {
            Self::Sent(packet) | Self::Got(packet) => packet.time,
            // What it says it knows when it returns.
            Self::Call(call) if matches!((call.act, call.result), (Act::Connect(_), Err(_))) => call.time.after,
            Self::Call(call) => call.time.before,
            Self::LateClose(_, time) => *time,
        }
    }
}

/// One end of one connection.
struct End {
    active: bool,
    local: SocketAddr,
    state: State,
    /// Its socket has been closed.
    orphan: bool,
    deaf: bool,
    no_fin_wait2: bool,
    iss: Option<u32>,
    irs: Option<u32>,
    /// Next expected of the peer's, from its initial sequence number on.
    next: i64,
    early: BTreeMap<i64, (i64, bool)>,
    /// First not acknowledged of its own.
    una: i64,
    written: i64,
    fin: bool,
    peer_fin: bool,
    established: Option<SystemTime>,
    ended: Option<(Ending, SystemTime)>,
    /// The last ICMP error that nothing has followed.
    icmp: Option<Errno>,
    /// What the program got as the error of an attempt that the kernel still pursued.
    seen_error: Option<Errno>,
    closers: BTreeSet<u32>,
    dissolved: bool,
    /// It has sent a FIN or a RST.
    has_finished: bool,
    /// When close() of its socket had returned, unless the socket had sent a FIN or a RST by then.
    closing_since: Option<SystemTime>,
    /// Another task may have closed its socket.
    closed_late: bool,
    /// The last event was the acknowledgement of an orphan's FIN.
    is_in_fin_wait2: bool,
    /// The other outcome, where calls and packets leave two.
    other_outcome: Option<&'static str>,
    closed_in_syn_recv: bool,
    first_sent_after: Option<SystemTime>,
    verdict: Verdict,
    faults: Vec<String>,
    /// The last time at which it was certainly alive. When a timer ends it, nothing else tells the time.
    alive: SystemTime,
    latest_packet: SystemTime,
}

impl End {
    fn end(
        &mut self,
        outcome: &'static str,
        errno: &[Option<&'static str>],
        closed_by: Option<&'static str>,
        at: SystemTime,
    ) {
        if self.ended.is_none() {
            let ending = Ending {
                outcome,
                errno: errno.to_vec(),
                closed_by,
            };
            self.ended = Some((ending, at));
        }
    }

    fn reset_by_local(&mut self, errno: &[Option<&'static str>], at: SystemTime) {
        if self.active && self.state == State::SynRecv {
            return self.end("connect_aborted", errno, Some("local"), at);
        }
        let closer = self.closer().or(Some("local"));
        self.end("reset_by_local", errno, closer, at);
    }

    /// Who has closed so far.
    fn closer(&self) -> Option<&'static str> {
        self.state.closer().or((self.orphan && self.fin).then_some("local"))
    }

    fn all_acknowledged(&self) -> bool {
        self.una > self.written + i64::from(self.fin)
    }

    fn take(&mut self, event: Event<'_>) {
        let time = event.time();
        match event {
            Event::Sent(packet) => self.sent(packet),
            Event::Got(packet) => self.got(packet),
            Event::Call(call) => self.call(call),
            Event::LateClose(call, _) => self.late_close(call),
        }
        if matches!(event, Event::Sent(_) | Event::Got(_)) {
            self.latest_packet = time;
        }
        match event {
            // A RST can come from no socket.
            Event::Sent(Packet {
                kind: Kind::Tcp { flags, .. },
                time,
                ..
            }) if flags & RST == 0 => self.alive = *time,
            // A timer can end it between the question and the call.
            Event::Call(call) if call.before.is_some_and(|state| state != state::CLOSE) => {
                self.alive = self.alive.max(call.asked);
            }
            _ => {}
        }
    }

    fn sent(&mut self, packet: &Packet) {
        let Kind::Tcp { seq, flags, .. } = packet.kind else {
            return;
        };
        if flags & (FIN | RST) != 0 {
            // Whoever lets go of a file last closes its socket. A task that scans the descriptors of others holds each for a moment.
            let is_late = self.closing_since.take().is_some_and(|since| since < packet.time);
            self.closed_late |= is_late && !self.has_finished;
            self.has_finished = true;
        }
        if flags & SYN != 0 && self.iss.is_none() {
            self.iss = Some(seq);
        }
        if self.established.is_some() && self.first_sent_after.is_none() && flags & SYN == 0 {
            self.first_sent_after = Some(packet.time);
        }
        if flags & (RST | ACK) == RST | ACK && self.ended.is_none() && self.state != State::SynSent {
            // A RST in answer to a segment has no ACK: it comes from a socket that has just ended, or from none.
            self.reset_by_local(&[None], packet.time);
        }
    }

    fn got(&mut self, packet: &Packet) {
        let (seq, ack, flags, len) = match packet.kind {
            Kind::Icmp(kind, code) => {
                self.icmp = icmp_errno(kind, code);
                return;
            }
            Kind::Tcp { seq, ack, flags, len } => (seq, ack, flags, i64::from(len)),
        };
        if packet.dscp != 0 {
            return;
        }
        if self.ended.is_some() {
            let at = self.irs.map(|irs| after(irs, seq) + len);
            if self.is_in_fin_wait2 && flags & RST != 0 && at == Some(self.next) {
                self.met_fin_wait2("reset_by_peer");
            } else if self.is_in_fin_wait2 && flags & RST == 0 && len > 0 && at.is_some_and(|at| at > self.next) {
                self.met_fin_wait2("reset_by_local");
            }
            return;
        }
        let Some(iss) = self.iss else { return };
        let acked = (flags & ACK != 0).then(|| after(iss, ack));
        if self.state == State::SynSent {
            return self.got_in_syn_sent(packet, seq, flags, len, acked);
        }
        let at = after(self.irs.expect("a peer's SYN"), seq);
        if flags & RST != 0 {
            if at == self.next + i64::from(self.peer_fin) {
                self.reset_by_peer(packet.time);
            }
            return;
        }
        let Some(acked) = acked else { return };
        self.icmp = None;
        if acked > self.una && acked <= self.written + 1 + i64::from(self.fin) {
            self.una = acked;
        }
        if self.state == State::SynRecv && acked >= 1 {
            self.established = Some(packet.time);
            self.state = if self.fin { State::FinWait1 } else { State::Established };
        }
        let fin_acked = self.fin && self.all_acknowledged();
        let fin = flags & FIN != 0;
        // A SYN takes a number too.
        let at = at + i64::from(flags & SYN != 0);
        let new = len > 0 && at + len > self.next;
        match self.state {
            State::FinWait1 | State::FinWait2 if new && (self.orphan || self.deaf) => {
                return self.end(
                    "reset_by_local",
                    &[Some("ECONNRESET"), None],
                    Some("local"),
                    packet.time,
                );
            }
            State::FinWait1 if fin_acked => {
                self.state = State::FinWait2;
                if self.orphan && self.no_fin_wait2 {
                    return self.end(
                        "reset_by_local",
                        &[None, Some("ECONNRESET")],
                        Some("local"),
                        packet.time,
                    );
                }
                if self.orphan && !fin {
                    self.is_in_fin_wait2 = true;
                    return self.end("ok", &[None], Some("local"), packet.time);
                }
            }
            State::Closing if fin_acked => return self.end("ok", &[None], Some("local"), packet.time),
            State::LastAck if fin_acked => return self.end("ok", &[None], Some("peer"), packet.time),
            _ => {}
        }
        if !self.peer_fin && (len > 0 || fin) {
            self.early.insert(at, (len, fin));
        }
        self.advance();
        if self.peer_fin {
            match self.state {
                State::Established => self.state = State::CloseWait,
                State::FinWait1 => self.state = State::Closing,
                State::FinWait2 => self.end("ok", &[None], Some("local"), packet.time),
                _ => {}
            }
        }
    }

    /// Data or a RST came after the acknowledgement of an orphan's FIN. The kernel has mostly replaced the orphan by a time-wait stub then. But
    /// tcp_rcv_state_process() keeps an orphan in FIN_WAIT2 while it is owned by user, that is while close() still runs, and then the
    /// segment resets it. When close() is over, the calls do not show: a scan of descriptors can hold the file, and close it later.
    fn met_fin_wait2(&mut self, other_outcome: &'static str) {
        self.is_in_fin_wait2 = false;
        self.other_outcome = Some(other_outcome);
        if let Some((ending, _)) = &mut self.ended {
            ending.errno.push(Some("ECONNRESET"));
        }
    }

    fn got_in_syn_sent(&mut self, packet: &Packet, seq: u32, flags: u8, len: i64, acked: Option<i64>) {
        let good = acked.is_some_and(|acked| acked >= 1 && acked <= self.written + 1);
        if flags & RST != 0 {
            if good {
                self.end("refused", &[Some("ECONNREFUSED")], Some("peer"), packet.time);
            }
        } else if flags & SYN != 0 {
            self.irs = Some(seq);
            self.next = 1;
            if good {
                self.next += len;
                self.una = acked.expect("an acknowledgement");
                self.established = Some(packet.time);
                self.state = State::Established;
            } else if acked.is_none() {
                self.state = State::SynRecv;
            }
        }
    }

    /// Takes what has come in order.
    fn advance(&mut self) {
        while let Some((&at, &(len, fin))) = self.early.first_key_value() {
            if at > self.next {
                return;
            }
            self.early.pop_first();
            self.next = self.next.max(at + len);
            if fin && at + len == self.next {
                self.peer_fin = true;
                return;
            }
        }
    }

    fn reset_by_peer(&mut self, at: SystemTime) {
        let errno = if self.state == State::CloseWait {
            "EPIPE"
        } else {
            "ECONNRESET"
        };
        let closer = self.closer().or(Some("peer"));
        self.end("reset_by_peer", &[Some(errno)], closer, at);
    }

    fn call(&mut self, call: &Call) {
        let ends = matches!(
            call.act,
            Act::Close { .. } | Act::Dissolve | Act::Shutdown { write: true, .. }
        );
        if self.ended.is_none() && ends {
            self.closers.insert(call.pid);
            self.dissolved |= matches!(call.act, Act::Dissolve);
            self.closed_in_syn_recv |= self.state == State::SynRecv;
        }
        if matches!(call.act, Act::Close { .. }) && !self.has_finished {
            self.closing_since = Some(call.time.after);
        }
        let at = call.time.before;
        let dials = matches!(call.act, Act::Connect(_) | Act::FastOpen(_));
        if self.state == State::SynSent && call.before == Some(state::CLOSE) && !dials && self.ended.is_none() {
            // The kernel has given up, and the program did not ask why.
            self.given_up(self.icmp.unwrap_or(Errno::ETIMEDOUT), self.alive);
        }
        // What the kernel says of the state is a check of this model, unless a packet came after the kernel was asked.
        let is_quiet = self.latest_packet < call.asked;
        if let (Some(before), None) = (call.before, &self.ended)
            && before != self.state.number()
            && is_quiet
            && !matches!(call.act, Act::Connect(_) | Act::FastOpen(_) | Act::Error)
        {
            self.faults.push(format!(
                "before {:?} the model is in {:?}, the socket in {before}",
                call.text, self.state
            ));
        }
        match (call.act, &call.result) {
            (Act::Write | Act::FastOpen(_), Ok(count)) if self.ended.is_none() => self.written += *count as i64,
            (Act::Shutdown { read, write }, Ok(_)) => {
                self.deaf |= read;
                if write {
                    self.finish(at);
                }
            }
            (Act::Close { at_once, unread }, _) => self.close(at_once, unread, at),
            (Act::Dissolve, _) => self.disconnect(at),
            (Act::Error | Act::Connect(_), Err(errno)) if call.after == Some(state::CLOSE) => {
                // The kernel knew before the program did.
                self.given_up(*errno, self.alive);
            }
            (Act::Error, Err(errno)) if self.state == State::SynSent => self.seen_error = Some(*errno),
            _ => {}
        }
    }

    fn late_close(&mut self, call: &Call) {
        self.closed_late = true;
        if self.ended.is_none() {
            self.closers.insert(call.pid);
        }
        if let Act::Close { at_once, unread } = call.act {
            // The RST may only look late, where the capture is: the end is not earlier than the call.
            self.close(at_once, unread, call.time.before);
        }
    }

    fn finish(&mut self, at: SystemTime) {
        match self.state {
            State::SynSent => self.end("connect_aborted", &[None], Some("local"), at),
            State::SynRecv => self.fin = true,
            State::Established => {
                self.fin = true;
                self.state = State::FinWait1;
            }
            State::CloseWait => {
                self.fin = true;
                self.state = State::LastAck;
            }
            _ => {}
        }
    }

    fn close(&mut self, at_once: bool, unread: u64, at: SystemTime) {
        self.orphan = true;
        if self.state == State::SynSent {
            return match self.seen_error {
                Some(errno) => self.given_up(errno, self.alive),
                None => self.end("connect_aborted", &[None], Some("local"), at),
            };
        }
        if unread > 0 {
            return self.reset_by_local(&[None], at);
        }
        if at_once {
            return self.disconnect(at);
        }
        if self.state == State::FinWait2 {
            return if self.no_fin_wait2 {
                self.reset_by_local(&[None], at);
            } else {
                self.end("ok", &[None], Some("local"), at);
            };
        }
        self.finish(at);
    }

    /// What SO_LINGER of zero and AF_UNSPEC have in common.
    fn disconnect(&mut self, at: SystemTime) {
        // The kernel puts ECONNRESET on the socket, after it has changed its state.
        let errno = [None, Some("ECONNRESET")];
        match self.state {
            State::SynSent => self.end("connect_aborted", &errno, Some("local"), at),
            State::Closing | State::LastAck if self.all_acknowledged() => {
                let closer = self.closer();
                self.end("ok", &[None], closer, at);
            }
            _ => self.reset_by_local(&errno, at),
        }
    }

    /// The kernel has ended it, and this is the error that the program got.
    fn given_up(&mut self, errno: Errno, at: SystemTime) {
        let seen_error = Some(name(errno));
        let closer = self.closer();
        match (self.state, errno) {
            (State::SynSent, Errno::ECONNREFUSED) => self.end("refused", &[seen_error], Some("peer"), at),
            (State::SynSent, Errno::ETIMEDOUT) => self.end("connect_timeout", &[seen_error], None, at),
            (State::SynRecv, Errno::ETIMEDOUT) if self.active => self.end("connect_timeout", &[seen_error], None, at),
            (_, Errno::ETIMEDOUT) => self.end("timeout", &[seen_error], closer, at),
            (_, Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES) => {
                self.end("unreachable", &[seen_error], closer, at)
            }
            _ if self.ended.is_none() => self
                .faults
                .push(format!("the program got {errno:?}, the model is in {:?}", self.state)),
            _ => {}
        }
    }

    /// What the kernel does with an end that nobody can ask any more.
    fn last(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let at = self.alive;
        if !self.orphan {
            return self.faults.push(format!("it never ended, and is in {:?}", self.state));
        }
        let closer = self.closer();
        match (self.state, self.icmp) {
            // The program gave up first; the kernel gave up for expected of an answer.
            (State::SynRecv, _) if self.active => {
                self.end("connect_aborted", &[None, Some("ETIMEDOUT")], Some("local"), at);
            }
            (_, Some(errno)) => self.end("unreachable", &[Some(name(errno))], closer, at),
            _ if self.verdict != Verdict::Pass => self.end("timeout", &[Some("ETIMEDOUT")], closer, at),
            _ => self
                .faults
                .push(format!("closed, it never ended, and is in {:?}", self.state)),
        }
    }
}

/// Packets of one connection: those after a SYN with a sequence number that is new.
struct Flow<'a> {
    client: SocketAddr,
    server: SocketAddr,
    packets: Vec<&'a Packet>,
}

impl<'a> Flow<'a> {
    fn begins(&self) -> SystemTime {
        self.packets[0].time
    }

    fn all(packets: &'a [Packet]) -> Vec<Self> {
        let mut flows: Vec<Self> = Vec::new();
        for packet in packets {
            let both = |flow: &&mut Self| {
                (flow.client, flow.server) == (packet.from, packet.to)
                    || (flow.server, flow.client) == (packet.from, packet.to)
            };
            let latest = flows.iter_mut().rev().find(both);
            let is_syn = |packet: &Packet| match packet.kind {
                Kind::Tcp { flags, seq, .. } if flags & (SYN | ACK) == SYN => Some(seq),
                _ => None,
            };
            match (latest, is_syn(packet)) {
                (Some(flow), None) => flow.packets.push(packet),
                (Some(flow), Some(seq)) => {
                    let of_same = |other: &&&Packet| other.from == packet.from && is_syn(other).is_some();
                    let known = flow
                        .packets
                        .iter()
                        .rev()
                        .find(of_same)
                        .map(|other| is_syn(other) == Some(seq));
                    // A SYN of the other end, within a handshake, is a simultaneous open.
                    let crosses = known.is_none() && flow.packets.iter().all(|other| is_syn(other).is_some());
                    if known == Some(true) || crosses {
                        flow.packets.push(packet);
                    } else {
                        flows.push(Self::new(packet));
                    }
                }
                (None, Some(_)) => flows.push(Self::new(packet)),
                // Of an earlier life with the same ports.
                (None, None) => {}
            }
        }
        flows
    }

    fn new(first: &'a Packet) -> Self {
        Self {
            client: first.from,
            server: first.to,
            packets: vec![first],
        }
    }
}

/// What a life's records must say.
pub struct Truth {
    /// The records.
    pub records_expected: Vec<Expected>,
    /// Where the model contradicts what the calls seen_error: a fault of the model.
    pub faults: Vec<String>,
}

/// Follows a whole life.
pub fn follow(life: &Life<'_>, packets: &[Packet]) -> Truth {
    let mut all = Truth {
        records_expected: Vec::new(),
        faults: Vec::new(),
    };
    for flow in Flow::all(packets) {
        let found = attempt(life, &flow, flow.client, flow.server);
        let Some((socket, connect)) = found else {
            all.faults
                .push(format!("nobody sent the SYN from {} to {}", flow.client, flow.server));
            continue;
        };
        all.outbound(life, &flow, socket, connect, flow.client, flow.server);
        if flow.client == flow.server {
            continue;
        }
        match attempt(life, &flow, flow.server, flow.client) {
            Some((socket, connect)) => all.outbound(life, &flow, socket, connect, flow.server, flow.client),
            None => all.inbound(life, &flow),
        }
    }
    all
}

/// The socket and the call that sent the first SYN of a flow from this end.
fn attempt<'a>(life: &'a Life<'_>, flow: &Flow<'_>, from: SocketAddr, to: SocketAddr) -> Option<(Id, &'a Call)> {
    let syn = flow.packets.iter().find(|packet| {
        packet.from == from && matches!(packet.kind, Kind::Tcp { flags, .. } if flags & (SYN | ACK) == SYN)
    })?;
    let dials = |call: &&Call| {
        let within = call.time.before <= syn.time && syn.time <= call.time.after;
        let remote = |of: &Call| match of.act {
            Act::Connect(remote) | Act::FastOpen(remote) => Some(remote),
            _ => None,
        };
        // A write sends the SYN of the connect() before it.
        let dialled = life
            .calls
            .iter()
            .rev()
            .filter(|other| other.socket == call.socket && other.time.before <= syn.time);
        let is_dial = matches!(call.act, Act::Connect(_) | Act::FastOpen(_) | Act::Write);
        within && is_dial && dialled.filter_map(remote).next() == Some(to)
    };
    let call = life.calls.iter().find(dials)?;
    Some((call.socket, call))
}

const CLOCK_ERROR: Duration = Duration::from_millis(1);

impl Truth {
    /// The calls on a socket from one moment until its next attempt.
    fn calls<'a>(life: &'a Life<'_>, socket: Id, from: &Call) -> Vec<Event<'a>> {
        let of_socket = life.calls.iter().filter(|call| call.socket == socket);
        let since = of_socket.skip_while(|call| call.time.before < from.time.before);
        let mut first = true;
        since
            .take_while(|call| {
                let dials = matches!(call.act, Act::Connect(_) | Act::FastOpen(_) | Act::Listen);
                std::mem::take(&mut first) || !dials
            })
            .map(Event::Call)
            .collect()
    }

    /// Whether the program dissolved or dialled or listened with this socket after `first`.
    fn is_reused(life: &Life<'_>, socket: Id, first: &Call) -> bool {
        life.calls.iter().any(|call| {
            let begins = matches!(
                call.act,
                Act::Dissolve | Act::Connect(_) | Act::FastOpen(_) | Act::Listen
            );
            call.socket == socket && call.time.before > first.time.before && begins
        })
    }

    /// A close() with unread data, or with SO_LINGER of zero, sends its RST before it returns. If it has not, another task held the
    /// file: a scan of descriptors does so for a moment. The kernel closes the socket when that task lets go of it.
    fn late<'a>(event: Event<'a>, end: &End, flow: &Flow<'_>) -> Event<'a> {
        let Event::Call(call) = event else { return event };
        let resets = matches!(call.act, Act::Close { at_once, unread } if at_once || unread > 0)
            && matches!(
                call.before,
                Some(state::ESTABLISHED | state::CLOSE_WAIT | state::FIN_WAIT1 | state::FIN_WAIT2)
            );
        let is_reset = |packet: &&&Packet| {
            let flags = match packet.kind {
                Kind::Tcp { flags, .. } => flags,
                Kind::Icmp(..) => 0,
            };
            packet.from == end.local && packet.time >= call.time.before && flags & RST != 0
        };
        match flow.packets.iter().find(is_reset) {
            _ if !resets => event,
            Some(reset) if reset.time <= call.time.after => event,
            Some(reset) => Event::LateClose(call, reset.time),
            None => {
                let last = flow.packets.last().map_or(call.time.after, |packet| packet.time);
                Event::LateClose(call, last.max(call.time.after))
            }
        }
    }

    fn run<'a>(&mut self, end: &mut End, flow: &Flow<'a>, calls: Vec<Event<'a>>) {
        let own = |packet: &&Packet| packet.from == end.local;
        let mut events: Vec<Event<'_>> = calls.into_iter().map(|event| Self::late(event, end, flow)).collect();
        for packet in &flow.packets {
            let is_icmp = matches!(packet.kind, Kind::Icmp(..));
            let to_itself = packet.from == packet.to;
            if own(packet) && !is_icmp {
                events.push(Event::Sent(packet));
            }
            // An ICMP error is for who sent what it is about.
            if own(packet) == is_icmp || to_itself {
                events.push(Event::Got(packet));
            }
        }
        events.sort_by_key(Event::time);
        for event in &events {
            end.take(*event);
        }
        end.last();
        let (from, faults) = (end.local, std::mem::take(&mut end.faults));
        self.faults
            .extend(faults.iter().map(|fault| format!("of {from}: {fault}")));
    }

    fn outbound(
        &mut self,
        life: &Life<'_>,
        flow: &Flow<'_>,
        socket: Id,
        connect: &Call,
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let sock = &life.socks[socket];
        let mut end = end(local, true, State::SynSent);
        end.no_fin_wait2 = sock.no_fin_wait2;
        end.verdict = sock.verdict;
        // It is over with the next SYN from there.
        self.run(&mut end, flow, Self::calls(life, socket, connect));
        let Some((ending, over)) = end.ended.clone() else {
            return;
        };
        let syn = flow
            .packets
            .iter()
            .find(|packet| packet.from == local)
            .map_or(over, |packet| packet.time);
        let connect_ns = end.established.map(|established| {
            let least = established
                .duration_since(syn)
                .unwrap_or_default()
                .saturating_sub(CLOCK_ERROR);
            let until = end.first_sent_after.unwrap_or(over).max(established);
            let most = until.duration_since(connect.time.before).unwrap_or_default() + CLOCK_ERROR;
            (least, most)
        });
        let mut expected = end.expected(sock.side, "outbound", local, remote, ending, over);
        expected.start = (connect.time.before - CLOCK_ERROR, syn + CLOCK_ERROR);
        expected.connect = connect_ns;
        expected.is_reused = Self::is_reused(life, socket, connect);
        expected.pids = BTreeSet::from([connect.pid]);
        expected.by = &["connect"];
        self.records_expected.push(expected);
    }

    /// The end that a listener made, if it made one.
    fn inbound(&mut self, life: &Life<'_>, flow: &Flow<'_>) {
        let (client, server) = (flow.client, flow.server);
        let listens = |call: &&Call| {
            matches!(call.act, Act::Listen)
                && life.socks[call.socket].local == Some(server)
                && call.time.before < flow.begins()
        };
        let Some(listen) = life.calls.iter().rev().find(listens) else {
            return;
        };
        let listener = &life.socks[listen.socket];
        let Some((birth, state, answer)) = birth(flow, listener.deferred) else {
            return;
        };
        let mut end = end(server, false, state);
        let Kind::Tcp { seq, len, .. } = flow.packets[0].kind else {
            return;
        };
        end.irs = Some(seq);
        end.next = 1;
        if state == State::SynRecv {
            end.next += i64::from(len);
        }
        end.una = 1;
        let accepts = |call: &&Call| match call.act {
            Act::Accept { listener, peer } => listener == listen.socket && peer == client && call.time.after >= birth,
            _ => false,
        };
        let accept = life.calls.iter().find(accepts);
        let calls = accept.map_or_else(Vec::new, |accept| Self::calls(life, accept.socket, accept));
        let sock = accept.map_or(listener, |accept| &life.socks[accept.socket]);
        end.no_fin_wait2 = sock.no_fin_wait2;
        end.verdict = sock.verdict;
        if state == State::Established {
            end.established = Some(birth);
        }
        // What came before it was born was the listener's.
        let later = Flow {
            client,
            server,
            packets: flow
                .packets
                .iter()
                .copied()
                .filter(|packet| packet.time >= birth || packet.from == server)
                .skip_while(|packet| state == State::SynRecv && packet.from == client && packet.time == birth)
                .collect(),
        };
        self.run(&mut end, &later, calls);
        let Some((ending, over)) = end.ended.clone() else {
            return;
        };
        let closers = end.closers.clone();
        let mut expected = end.expected(listener.side, "inbound", client, server, ending, over);
        let next = later
            .packets
            .iter()
            .find(|packet| packet.from == server && packet.time > birth);
        let seen = [next.map(|packet| packet.time), accept.map(|accept| accept.time.after)];
        let until = seen.into_iter().flatten().min().unwrap_or(over.max(birth));
        let until = if state == State::SynRecv { answer } else { until };
        expected.start = (birth - CLOCK_ERROR, until.max(birth) + CLOCK_ERROR);
        if let Some(established) = end.established
            && state == State::SynRecv
        {
            let until = end.first_sent_after.unwrap_or(over).max(established);
            expected.other_start = Some((established - CLOCK_ERROR, until + CLOCK_ERROR));
            expected.undecided.push(
                "start: the contract has the making of a Fast Open server's socket, and ESTABLISHED for every server's",
            );
        }
        expected.holder = accept.map(|accept| accept.pid);
        expected.is_reused = accept.is_some_and(|accept| Self::is_reused(life, accept.socket, accept));
        if accept.is_none() {
            let closes = |call: &&Call| call.socket == listen.socket && matches!(call.act, Act::Close { .. });
            expected.pids = life.calls.iter().filter(closes).map(|call| call.pid).collect();
            expected.pids.insert(listen.pid);
            expected.by = &["close", "listener"];
        } else if closers.is_empty() {
            expected.pids = BTreeSet::from([listen.pid]);
            expected.by = &["listener"];
        } else {
            expected.pids = closers;
            expected.by = &["close"];
            if end.dissolved {
                expected
                    .undecided
                    .push("process: the contract does not say whether AF_UNSPEC is a close");
                expected.by = &["close", "listener"];
                expected.pids.insert(listen.pid);
            }
            if end.closed_late {
                expected
                    .undecided
                    .push("process: a task that scans descriptors may have been the last to hold the socket");
                expected.by = &["close", "listener"];
                expected.pids.insert(listen.pid);
            }
            if end.closed_in_syn_recv {
                expected.undecided
                    .push("process.by: who shuts down in SYN_RECV changes no state, so the owner may be known by the listener");
                expected.by = &["close", "listener"];
                expected.pids.insert(listen.pid);
            }
        }
        if expected.pids.len() > 1 && expected.undecided.is_empty() {
            expected.undecided.push("process: two processes had a part in its end");
        }
        self.records_expected.push(expected);
    }
}

/// When a listener made a socket of its own for a flow, in which state, and when it answered the SYN.
fn birth(flow: &Flow<'_>, deferred: bool) -> Option<(SystemTime, State, SystemTime)> {
    let Kind::Tcp {
        seq: irs, len: early, ..
    } = flow.packets[0].kind
    else {
        return None;
    };
    let mut begun: Option<(u32, SystemTime)> = None;
    for (at, packet) in flow.packets.iter().enumerate() {
        let Kind::Tcp { seq, ack, flags, len } = packet.kind else {
            continue;
        };
        if packet.from == flow.server {
            if flags & (SYN | ACK) == SYN | ACK && begun.is_none() {
                begun = Some((seq, packet.time));
                if early > 0 && after(irs, ack) == i64::from(early) + 1 {
                    return Some((flow.begins(), State::SynRecv, packet.time));
                }
            }
        } else if let Some((iss, answer)) = begun
            && packet.dscp == 0
            && flags & (SYN | RST | ACK) == ACK
            && after(iss, ack) == 1
        {
            let bare = len == 0 && flags & FIN == 0;
            // The RST of an end of a connection has an ACK. One without is of no socket: the listener was gone.
            let is_refused = flow.packets[at + 1..]
                .iter()
                .find(|packet| packet.from == flow.server)
                .is_some_and(|packet| matches!(packet.kind, Kind::Tcp { flags, .. } if flags & (RST | ACK) == RST));
            if is_refused {
                return None;
            }
            if !(bare && deferred) {
                return Some((packet.time, State::Established, answer));
            }
        }
    }
    None
}

fn end(local: SocketAddr, active: bool, state: State) -> End {
    End {
        active,
        local,
        state,
        orphan: false,
        deaf: false,
        no_fin_wait2: false,
        iss: None,
        irs: None,
        next: 0,
        early: BTreeMap::new(),
        una: 0,
        written: 0,
        fin: false,
        peer_fin: false,
        established: None,
        ended: None,
        icmp: None,
        seen_error: None,
        closers: BTreeSet::new(),
        dissolved: false,
        has_finished: false,
        closing_since: None,
        closed_late: false,
        is_in_fin_wait2: false,
        other_outcome: None,
        closed_in_syn_recv: false,
        first_sent_after: None,
        verdict: Verdict::Pass,
        faults: Vec::new(),
        alive: SystemTime::UNIX_EPOCH,
        latest_packet: SystemTime::UNIX_EPOCH,
    }
}

impl End {
    fn expected(
        &self,
        side: Side,
        direction: &'static str,
        src: SocketAddr,
        dst: SocketAddr,
        ending: Ending,
        over: SystemTime,
    ) -> Expected {
        let sent = (self.una - 1).clamp(0, self.written);
        let mut undecided = Vec::new();
        if self.other_outcome.is_some() {
            undecided.push("outcome: a segment met an orphan in FIN_WAIT2, or the stub that took its place");
        }
        if ending.errno.len() > 1 {
            undecided.push(
                "errno: the kernel puts ECONNRESET or ETIMEDOUT on the socket after its last state, or not at all",
            );
        }
        Expected {
            side,
            direction,
            src,
            dst,
            sent: sent as u64,
            received: (self.next - 1).max(0) as u64,
            undelivered: (self.written - sent) as u64,
            established: self.established.is_some(),
            ending,
            other_outcome: self.other_outcome,
            is_reused: false,
            pids: BTreeSet::new(),
            holder: None,
            by: &[],
            start: (over, over),
            other_start: None,
            connect: None,
            end: over - CLOCK_ERROR,
            undecided,
        }
    }
}
