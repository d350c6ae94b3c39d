//! A model of one end of a TCP connection: TCP's state machine, driven by the packets that reached the end and by the
//! calls of its program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::SystemTime;

use nix::errno::Errno;

use super::call::{Action, Call};
use super::capture::{ACK, FIN, Packet, PacketKind, RST, SYN};
use super::flow::sequence_distance;
use super::state::{self, Ending, State, errno_name, icmp_errno};
use super::world::Verdict;

#[derive(Clone, Copy)]
pub enum Event<'a> {
    Sent(&'a Packet),
    Received(&'a Packet),
    Call(&'a Call),
    /// A close() that returned before the kernel closed the socket, at this time: another task held the file.
    LateClose(&'a Call, SystemTime),
}

impl Event<'_> {
    pub fn time(&self) -> SystemTime {
        match self {
            Self::Sent(packet) | Self::Received(packet) => packet.time,
            // A connect() fails just before it returns.
            Self::Call(call) if matches!((call.action, call.result), (Action::Connect(_), Err(_))) => call.time.after,
            Self::Call(call) => call.time.before,
            Self::LateClose(_, time) => *time,
        }
    }
}

pub struct Endpoint {
    /// Whether the program called connect() on this end.
    is_active: bool,
    pub local: SocketAddr,
    state: State,
    /// Whether the program has closed the socket.
    is_orphan: bool,
    read_shutdown: bool,
    pub no_fin_wait2: bool,
    pub verdict: Verdict,

    /// The initial sequence number of this end.
    iss: Option<u32>,
    /// The initial sequence number of the peer.
    pub irs: Option<u32>,
    /// The next sequence number that is expected of the peer, relative to `irs`.
    pub rcv_nxt: i64,
    /// Received segments after a gap: their length and whether they have a FIN, by their sequence number relative to
    /// `irs`.
    out_of_order: BTreeMap<i64, (i64, bool)>,
    /// The first sequence number that the peer has not acknowledged, relative to `iss`.
    pub snd_una: i64,
    /// The number of bytes that the program has written.
    written: i64,
    fin_sent: bool,
    fin_received: bool,

    pub established: Option<SystemTime>,
    /// How and when the connection ended.
    pub ended: Option<(Ending, SystemTime)>,
    /// Another right outcome, where calls and packets do not decide between the two.
    pub other_outcome: Option<&'static str>,
    /// The last ICMP error, unless a segment arrived after it.
    icmp: Option<Errno>,
    /// The error that SO_ERROR returned while the kernel still tried to connect.
    attempt_error: Option<Errno>,
    /// The processes that closed, shut down or disconnected the connection.
    pub closers: BTreeSet<u32>,
    pub is_disconnected: bool,
    has_sent_fin_or_rst: bool,
    /// When close() returned, if the socket had sent neither FIN nor RST by then.
    close_returned_at: Option<SystemTime>,
    /// Whether a task other than the closing one may have closed the socket.
    pub is_closed_late: bool,
    /// Whether the last event was the acknowledgement of an orphan's FIN.
    is_in_fin_wait2: bool,
    pub is_closed_in_syn_recv: bool,
    /// The time of the first segment that this end sent after it was established.
    pub first_sent_after: Option<SystemTime>,
    /// The last time at which the connection certainly had not ended. If a timer ended it, no event shows the time of
    /// the end.
    last_alive: SystemTime,
    latest_packet: SystemTime,
    /// Where the model and the observed calls differ: errors of the model.
    pub contradictions: Vec<String>,
}

impl Endpoint {
    pub fn new(local: SocketAddr, is_active: bool, state: State) -> Self {
        Self {
            is_active,
            local,
            state,
            is_orphan: false,
            read_shutdown: false,
            no_fin_wait2: false,
            verdict: Verdict::Pass,
            iss: None,
            irs: None,
            rcv_nxt: 0,
            out_of_order: BTreeMap::new(),
            snd_una: 0,
            written: 0,
            fin_sent: false,
            fin_received: false,
            established: None,
            ended: None,
            other_outcome: None,
            icmp: None,
            attempt_error: None,
            closers: BTreeSet::new(),
            is_disconnected: false,
            has_sent_fin_or_rst: false,
            close_returned_at: None,
            is_closed_late: false,
            is_in_fin_wait2: false,
            is_closed_in_syn_recv: false,
            first_sent_after: None,
            last_alive: SystemTime::UNIX_EPOCH,
            latest_packet: SystemTime::UNIX_EPOCH,
            contradictions: Vec::new(),
        }
    }

    /// Returns the number of bytes that were written and acknowledged.
    pub fn acknowledged_bytes(&self) -> i64 {
        (self.snd_una - 1).clamp(0, self.written)
    }

    /// Returns the number of bytes that were written and not acknowledged.
    pub fn unacknowledged_bytes(&self) -> i64 {
        self.written - self.acknowledged_bytes()
    }

    /// Ends the connection, unless it has ended before.
    fn set_ending(
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
        if self.is_active && self.state == State::SynRecv {
            return self.set_ending("connect_aborted", errno, Some("local"), at);
        }
        let closed_by = self.closed_by().or(Some("local"));
        self.set_ending("reset_by_local", errno, closed_by, at);
    }

    fn reset_by_peer(&mut self, at: SystemTime) {
        let errno = if self.state == State::CloseWait {
            "EPIPE"
        } else {
            "ECONNRESET"
        };
        let closed_by = self.closed_by().or(Some("peer"));
        self.set_ending("reset_by_peer", &[Some(errno)], closed_by, at);
    }

    /// Returns the end that has closed first, if one has.
    fn closed_by(&self) -> Option<&'static str> {
        self.state
            .closed_by()
            .or((self.is_orphan && self.fin_sent).then_some("local"))
    }

    fn all_acknowledged(&self) -> bool {
        self.snd_una > self.written + i64::from(self.fin_sent)
    }

    pub fn apply(&mut self, event: Event<'_>) {
        let time = event.time();
        match event {
            Event::Sent(packet) => self.on_sent(packet),
            Event::Received(packet) => self.on_received(packet),
            Event::Call(call) => self.on_call(call),
            Event::LateClose(call, _) => self.on_late_close(call),
        }
        if matches!(event, Event::Sent(_) | Event::Received(_)) {
            self.latest_packet = time;
        }
        match event {
            // A RST can be sent without a socket.
            Event::Sent(packet) if packet.tcp_flags() & RST == 0 => self.last_alive = time,
            // A timer can end the connection after its state was read and before the call.
            Event::Call(call) if call.state_before.is_some_and(|state| state != state::CLOSE) => {
                self.last_alive = self.last_alive.max(call.state_read_at);
            }
            _ => {}
        }
    }

    fn on_sent(&mut self, packet: &Packet) {
        let PacketKind::Tcp { seq, flags, .. } = packet.kind else {
            return;
        };
        if flags & (FIN | RST) != 0 {
            // The kernel closes a socket when the last task releases its file. A task that scans the descriptors of
            // other processes holds each file for a moment.
            let is_late = self.close_returned_at.take().is_some_and(|at| at < packet.time);
            self.is_closed_late |= is_late && !self.has_sent_fin_or_rst;
            self.has_sent_fin_or_rst = true;
        }
        if flags & SYN != 0 && self.iss.is_none() {
            self.iss = Some(seq);
        }
        if self.established.is_some() && self.first_sent_after.is_none() && flags & SYN == 0 {
            self.first_sent_after = Some(packet.time);
        }
        // A RST without ACK answers a segment: it comes from a socket that has just ended, or from none.
        if flags & (RST | ACK) != RST | ACK || self.state == State::SynSent {
            return;
        }
        // An end that has handled a RST sends none. So the kernel had not handled the received RST yet: it waited for the
        // socket's lock, or for a processor, while a system call ended the connection.
        self.ended.take_if(|(ending, _)| ending.outcome == "reset_by_peer");
        if self.ended.is_none() {
            // The kernel first changes the state and then sends the RST. In between, an interrupt or a hypervisor can
            // take the processor.
            let alive = self.established.map_or(self.last_alive, |at| at.max(self.last_alive));
            self.reset_by_local(&[None], alive.min(packet.time));
        }
    }

    fn on_received(&mut self, packet: &Packet) {
        let (seq, ack, flags, len) = match packet.kind {
            PacketKind::Icmp(kind, code) => {
                self.icmp = icmp_errno(kind, code);
                return;
            }
            PacketKind::Tcp { seq, ack, flags, len } => (seq, ack, flags, i64::from(len)),
        };
        if packet.dscp != 0 {
            return;
        }
        if self.ended.is_some() {
            return self.on_received_after_end(seq, flags, len);
        }
        let Some(iss) = self.iss else { return };
        let acked = (flags & ACK != 0).then(|| sequence_distance(iss, ack));
        if self.state == State::SynSent {
            return self.on_received_in_syn_sent(packet, seq, flags, len, acked);
        }
        let at = sequence_distance(self.irs.expect("the peer's SYN"), seq);
        if flags & RST != 0 {
            if at == self.rcv_nxt + i64::from(self.fin_received) {
                self.reset_by_peer(packet.time);
            }
            return;
        }
        if let Some(acked) = acked {
            self.on_acknowledgement(packet.time, acked);
            // A SYN takes a sequence number too.
            self.on_data(packet.time, at + i64::from(flags & SYN != 0), len, flags & FIN != 0);
        }
    }

    fn on_received_in_syn_sent(&mut self, packet: &Packet, seq: u32, flags: u8, len: i64, acked: Option<i64>) {
        let acknowledges_syn = acked.is_some_and(|acked| acked >= 1 && acked <= self.written + 1);
        if flags & RST != 0 {
            if acknowledges_syn {
                self.set_ending("refused", &[Some("ECONNREFUSED")], Some("peer"), packet.time);
            }
        } else if flags & SYN != 0 {
            self.irs = Some(seq);
            self.rcv_nxt = 1;
            if acknowledges_syn {
                self.rcv_nxt += len;
                self.snd_una = acked.expect("an acknowledgement");
                self.established = Some(packet.time);
                self.state = State::Established;
            } else if acked.is_none() {
                self.state = State::SynRecv;
            }
        }
    }

    fn on_acknowledgement(&mut self, time: SystemTime, acked: i64) {
        self.icmp = None;
        if acked > self.snd_una && acked <= self.written + 1 + i64::from(self.fin_sent) {
            self.snd_una = acked;
        }
        if self.state == State::SynRecv && acked >= 1 {
            self.established = Some(time);
            self.state = if self.fin_sent {
                State::FinWait1
            } else {
                State::Established
            };
        }
    }

    /// Handles the acknowledgement of a FIN, the data and the FIN of a segment. `at` is its sequence number relative to
    /// `irs`.
    fn on_data(&mut self, time: SystemTime, at: i64, len: i64, fin: bool) {
        let fin_acked = self.fin_sent && self.all_acknowledged();
        let has_new_data = len > 0 && at + len > self.rcv_nxt;
        match self.state {
            State::FinWait1 | State::FinWait2 if has_new_data && (self.is_orphan || self.read_shutdown) => {
                return self.set_ending("reset_by_local", &[Some("ECONNRESET"), None], Some("local"), time);
            }
            State::FinWait1 if fin_acked => {
                self.state = State::FinWait2;
                if self.is_orphan && self.no_fin_wait2 {
                    return self.set_ending("reset_by_local", &[None, Some("ECONNRESET")], Some("local"), time);
                }
                if self.is_orphan && !fin {
                    self.is_in_fin_wait2 = true;
                    return self.set_ending("ok", &[None], Some("local"), time);
                }
            }
            State::Closing if fin_acked => return self.set_ending("ok", &[None], Some("local"), time),
            State::LastAck if fin_acked => return self.set_ending("ok", &[None], Some("peer"), time),
            _ => {}
        }
        if !self.fin_received && (len > 0 || fin) {
            self.out_of_order.insert(at, (len, fin));
        }
        self.receive_in_order();
        if self.fin_received {
            match self.state {
                State::Established => self.state = State::CloseWait,
                State::FinWait1 => self.state = State::Closing,
                State::FinWait2 => self.set_ending("ok", &[None], Some("local"), time),
                _ => {}
            }
        }
    }

    /// Receives the segments that have no gap before them.
    fn receive_in_order(&mut self) {
        while let Some((&at, &(len, fin))) = self.out_of_order.first_key_value() {
            if at > self.rcv_nxt {
                return;
            }
            self.out_of_order.pop_first();
            self.rcv_nxt = self.rcv_nxt.max(at + len);
            if fin && at + len == self.rcv_nxt {
                self.fin_received = true;
                return;
            }
        }
    }

    /// Handles data or a RST after the acknowledgement of an orphan's FIN, which decides nothing: both outcomes are
    /// right.
    ///
    /// By then, the kernel has normally replaced the orphan by a time-wait socket. But tcp_rcv_state_process() keeps an
    /// orphan in FIN_WAIT2 while close() still owns the socket, and then the segment resets the orphan. The calls do
    /// not show when close() ends: a scan of descriptors can hold the file, and close it later.
    fn on_received_after_end(&mut self, seq: u32, flags: u8, len: i64) {
        let Some(irs) = self.irs.filter(|_| self.is_in_fin_wait2) else {
            return;
        };
        let end = sequence_distance(irs, seq) + len;
        let other_outcome = if flags & RST != 0 && end == self.rcv_nxt {
            "reset_by_peer"
        } else if flags & RST == 0 && len > 0 && end > self.rcv_nxt {
            "reset_by_local"
        } else {
            return;
        };
        self.is_in_fin_wait2 = false;
        self.other_outcome = Some(other_outcome);
        if let Some((ending, _)) = &mut self.ended {
            ending.errno.push(Some("ECONNRESET"));
        }
    }

    fn on_call(&mut self, call: &Call) {
        let closes = matches!(
            call.action,
            Action::Close { .. } | Action::Disconnect | Action::Shutdown { write: true, .. }
        );
        if self.ended.is_none() && closes {
            self.closers.insert(call.pid);
            self.is_disconnected |= matches!(call.action, Action::Disconnect);
            self.is_closed_in_syn_recv |= self.state == State::SynRecv;
        }
        if matches!(call.action, Action::Close { .. }) && !self.has_sent_fin_or_rst {
            self.close_returned_at = Some(call.time.after);
        }
        let is_connect = call.action.destination().is_some();
        if self.state == State::SynSent
            && call.state_before == Some(state::CLOSE)
            && !is_connect
            && self.ended.is_none()
        {
            // The kernel has given up, and the program has not read the error.
            self.kernel_gave_up(self.icmp.unwrap_or(Errno::ETIMEDOUT));
        }
        self.check_state(call);
        let at = call.time.before;
        match (call.action, &call.result) {
            (Action::Write | Action::FastOpen(_), Ok(count)) if self.ended.is_none() => self.written += *count as i64,
            (Action::Shutdown { read, write }, Ok(_)) => {
                self.read_shutdown |= read;
                if write {
                    self.send_fin(at);
                }
            }
            (Action::Close { linger_zero, unread }, _) => self.close(linger_zero, unread, at),
            (Action::Disconnect, _) => self.disconnect(at),
            (Action::Error | Action::Connect(_), Err(errno)) if call.state_after == Some(state::CLOSE) => {
                self.kernel_gave_up(*errno);
            }
            (Action::Error, Err(errno)) if self.state == State::SynSent => self.attempt_error = Some(*errno),
            _ => {}
        }
    }

    /// Compares the model's state with the socket's state before a call, unless a packet came after that state was
    /// read.
    fn check_state(&mut self, call: &Call) {
        if let (Some(before), None) = (call.state_before, &self.ended)
            && before != self.state.number()
            && self.latest_packet < call.state_read_at
            && !matches!(call.action, Action::Connect(_) | Action::FastOpen(_) | Action::Error)
        {
            self.contradictions.push(format!(
                "before {:?} the model is in {:?}, the socket in {before}",
                call.text, self.state
            ));
        }
    }

    fn on_late_close(&mut self, call: &Call) {
        self.is_closed_late = true;
        if self.ended.is_none() {
            self.closers.insert(call.pid);
        }
        if let Action::Close { linger_zero, unread } = call.action {
            // The close may only look late, because the RST was captured late. So it has the earliest possible time.
            self.close(linger_zero, unread, call.time.before);
        }
    }

    fn send_fin(&mut self, at: SystemTime) {
        match self.state {
            State::SynSent => self.set_ending("connect_aborted", &[None], Some("local"), at),
            State::SynRecv => self.fin_sent = true,
            State::Established => {
                self.fin_sent = true;
                self.state = State::FinWait1;
            }
            State::CloseWait => {
                self.fin_sent = true;
                self.state = State::LastAck;
            }
            _ => {}
        }
    }

    fn close(&mut self, linger_zero: bool, unread: u64, at: SystemTime) {
        self.is_orphan = true;
        if self.state == State::SynSent {
            return match self.attempt_error {
                Some(errno) => self.kernel_gave_up(errno),
                None => self.set_ending("connect_aborted", &[None], Some("local"), at),
            };
        }
        if unread > 0 {
            return self.reset_by_local(&[None], at);
        }
        if linger_zero {
            return self.disconnect(at);
        }
        if self.state == State::FinWait2 {
            return if self.no_fin_wait2 {
                self.reset_by_local(&[None], at);
            } else {
                self.set_ending("ok", &[None], Some("local"), at);
            };
        }
        self.send_fin(at);
    }

    /// Handles AF_UNSPEC, and a close() with SO_LINGER of zero seconds, which does the same.
    fn disconnect(&mut self, at: SystemTime) {
        // The kernel sets ECONNRESET on the socket after it has changed the state.
        let errno = [None, Some("ECONNRESET")];
        match self.state {
            State::SynSent => self.set_ending("connect_aborted", &errno, Some("local"), at),
            State::Closing | State::LastAck if self.all_acknowledged() => {
                let closed_by = self.closed_by();
                self.set_ending("ok", &[None], closed_by, at);
            }
            _ => self.reset_by_local(&errno, at),
        }
    }

    /// Ends the connection with the error that the program got. The kernel ended it at an unknown time before.
    fn kernel_gave_up(&mut self, errno: Errno) {
        let at = self.last_alive;
        let name = [Some(errno_name(errno))];
        let closed_by = self.closed_by();
        match (self.state, errno) {
            (State::SynSent, Errno::ECONNREFUSED) => self.set_ending("refused", &name, Some("peer"), at),
            (State::SynSent, Errno::ETIMEDOUT) => self.set_ending("connect_timeout", &name, None, at),
            (State::SynRecv, Errno::ETIMEDOUT) if self.is_active => self.set_ending("connect_timeout", &name, None, at),
            (_, Errno::ETIMEDOUT) => self.set_ending("timeout", &name, closed_by, at),
            (_, Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES) => {
                self.set_ending("unreachable", &name, closed_by, at);
            }
            _ if self.ended.is_none() => self
                .contradictions
                .push(format!("the program got {errno:?}, the model is in {:?}", self.state)),
            _ => {}
        }
    }

    /// Ends a connection that no event has ended: the kernel gave up after the program had closed the socket.
    pub fn finish(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let at = self.last_alive;
        if !self.is_orphan {
            let text = format!("the connection never ended, and is in {:?}", self.state);
            return self.contradictions.push(text);
        }
        let closed_by = self.closed_by();
        match (self.state, self.icmp) {
            // The program closed the attempt. The kernel may have put its own timeout on the socket later.
            (State::SynRecv, _) if self.is_active => {
                self.set_ending("connect_aborted", &[None, Some("ETIMEDOUT")], Some("local"), at);
            }
            (_, Some(errno)) => self.set_ending("unreachable", &[Some(errno_name(errno))], closed_by, at),
            _ if self.verdict != Verdict::Pass => {
                self.set_ending("timeout", &[Some("ETIMEDOUT")], closed_by, at);
            }
            _ => self.contradictions.push(format!(
                "the socket was closed, but the connection never ended, and is in {:?}",
                self.state
            )),
        }
    }
}
