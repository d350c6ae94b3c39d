//! Events → records, in the order of time. Pure: time comes in as a value.
//!
//! Two things need a short wait. A close may be followed by a RST that settles how it ended, and CPUs put their records on
//! the ring a little out of order. So each close is held for [`SETTLE_NS`] of the kernel's time.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kmesh_trace_common::{Close, FLAG_ACTIVE, FLAG_PREEXISTING, Owner, Reset, SK_DONE, owner, state};

use crate::clock::Clock;
use crate::decode;
use crate::outcome::{self, Ending};
use crate::record::{Comm, ConnId, Direction, Event, Family, Process, ProcessBy, Record, Tcp, TcpState};

/// How long a close is held, ns. The RST that it causes is sent in the same run of the kernel's receive path, within
/// microseconds; the rest allows for a virtual CPU that is taken away in between.
pub const SETTLE_NS: u64 = 5_000_000;

const AF_INET6: u16 = 10;

/// Turns events into records.
#[derive(Debug)]
pub struct Tracker {
    /// When tracing began: CLOCK_MONOTONIC, ns.
    began_ns: u64,
    /// In the order of their times.
    held: VecDeque<Held>,
    /// The latest time seen.
    latest_ns: u64,
}

#[derive(Debug)]
struct Held {
    close: Close,
    reset_sent: bool,
}

impl Tracker {
    /// Tracing began at `began_ns` (CLOCK_MONOTONIC).
    pub fn new(began_ns: u64) -> Self {
        Self {
            began_ns,
            held: VecDeque::new(),
            latest_ns: 0,
        }
    }

    /// Takes one event.
    pub fn take(&mut self, event: decode::Event) {
        match event {
            decode::Event::Close(close) => self.hold(close),
            decode::Event::Reset(reset) => self.settle(reset),
        }
    }

    /// The latest time of an event, CLOCK_MONOTONIC, ns.
    pub fn latest_ns(&self) -> u64 {
        self.latest_ns
    }

    /// The next close, in the order of time, if everything up to `complete_ns` has been taken and it can change no more.
    /// With it, its time on the monotonic clock.
    pub fn next(&mut self, complete_ns: u64, clock: &Clock) -> Option<(u64, Record)> {
        let first = self.held.front()?;
        if first.close.time_ns.saturating_add(SETTLE_NS) > complete_ns {
            return None;
        }
        let held = self.held.pop_front()?;
        Some((
            held.close.time_ns,
            record(&held.close, held.reset_sent, self.began_ns, clock),
        ))
    }

    fn hold(&mut self, close: Close) {
        self.latest_ns = self.latest_ns.max(close.time_ns);
        // Nearly always the last one.
        let later = self
            .held
            .iter()
            .rev()
            .take_while(|held| held.close.time_ns > close.time_ns)
            .count();
        self.held.insert(
            self.held.len() - later,
            Held {
                close,
                reset_sent: false,
            },
        );
    }

    fn settle(&mut self, reset: Reset) {
        let of_reset =
            |held: &&mut Held| (held.close.cookie, held.close.association) == (reset.cookie, reset.association);
        if let Some(held) = self.held.iter_mut().rev().find(of_reset) {
            held.reset_sent = true;
        }
    }
}

fn record(close: &Close, reset_sent: bool, began_ns: u64, clock: &Clock) -> Record {
    let Ending {
        old_state,
        outcome,
        errno,
        closed_by,
    } = outcome::ending(close, reset_sent);
    let active = close.flags & FLAG_ACTIVE != 0;
    let preexisting = close.flags & FLAG_PREEXISTING != 0;
    let start_ns = (!preexisting).then_some(close.start_ns);
    let since = |then: u64| close.time_ns.saturating_sub(then);
    let bytes = payload(close, old_state, active);
    let (family, local, peer) = addresses(close);
    let (direction, src, dst) = if active {
        (Direction::Outbound, local, peer)
    } else {
        (Direction::Inbound, peer, local)
    };
    Record {
        id: ConnId {
            cookie: close.cookie,
            association: close.association,
        },
        event: Event::Close,
        time: clock.wall(close.time_ns),
        start: start_ns.map(|start_ns| clock.wall(start_ns)),
        duration_ns: start_ns.map(since),
        connect_ns: match (start_ns, close.established_ns) {
            (Some(start_ns), established_ns) if active && established_ns != 0 => Some(established_ns - start_ns),
            _ => None,
        },
        preexisting,
        observed_ns: since(start_ns.unwrap_or(began_ns)),
        direction,
        family,
        src,
        dst,
        process: process(&close.owner),
        netns: close.netns,
        cgroup_id: (close.cgroup_id != 0).then_some(close.cgroup_id),
        sent_bytes: bytes.sent,
        received_bytes: bytes.received,
        undelivered_bytes: bytes.undelivered,
        established: !matches!(old_state, state::SYN_SENT | state::SYN_RECV),
        outcome: Some(outcome),
        errno,
        closed_by,
        tcp: tcp(close, old_state),
    }
}

struct Payload {
    sent: u64,
    received: u64,
    undelivered: u64,
}

/// The exact payload. The kernel's counters also count an active open's SYN and both FINs: a FIN of this end once it is
/// acknowledged, the peer's once it is received. (Verified on 6.18 against what programs wrote and read.)
fn payload(close: &Close, old_state: u8, active: bool) -> Payload {
    let fin_sent = matches!(
        old_state,
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING | state::LAST_ACK
    );
    let all_acknowledged = outcome::all_acknowledged(close);
    let syn_acknowledged = active && close.bytes_acked > 0;
    let fin_acknowledged = fin_sent && all_acknowledged;
    let fin_pending = fin_sent && !all_acknowledged;
    let syn_pending = old_state == state::SYN_SENT && !all_acknowledged;
    let fin_received = close.sk_flags & SK_DONE != 0;
    let minus = |count: u64, flags: [bool; 2]| {
        flags
            .into_iter()
            .fold(count, |count, flag| count.saturating_sub(flag.into()))
    };
    Payload {
        sent: minus(close.bytes_acked, [syn_acknowledged, fin_acknowledged]),
        received: minus(close.bytes_received, [fin_received, false]),
        undelivered: minus(
            close.write_seq.wrapping_sub(close.snd_una).into(),
            [fin_pending, syn_pending],
        ),
    }
}

fn addresses(close: &Close) -> (Family, SocketAddr, SocketAddr) {
    let ip = |bytes: [u8; 16]| -> IpAddr {
        if close.family == AF_INET6 {
            // An IPv6 socket may speak IPv4.
            Ipv6Addr::from(bytes).to_canonical()
        } else {
            Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
        }
    };
    let peer = ip(close.peer_addr);
    let family = if peer.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    (
        family,
        SocketAddr::new(ip(close.local_addr), close.local_port),
        SocketAddr::new(peer, close.peer_port),
    )
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

fn tcp(close: &Close, old_state: u8) -> Tcp {
    Tcp {
        state: TcpState::Close,
        old_state: tcp_state(old_state),
        // The kernel keeps eight times the smoothed time; 0 is its marker for no sample.
        srtt_us: (close.srtt_us != 0).then_some(close.srtt_us >> 3),
        rtt_min_us: (close.rtt_min_us != u32::MAX).then_some(close.rtt_min_us),
        mss: close.mss,
        snd_cwnd: close.snd_cwnd,
        snd_ssthresh: close.snd_ssthresh,
        rcv_nxt: close.rcv_nxt,
        snd_nxt: close.snd_nxt,
        snd_una: close.snd_una,
        ecn_flags: close.ecn_flags,
        rate_delivered: close.rate_delivered,
        rate_interval_us: close.rate_interval_us,
        packets_out: close.packets_out,
        retrans_out: close.retrans_out,
        total_retrans: close.total_retrans,
        segs_in: close.segs_in,
        data_segs_in: close.data_segs_in,
        segs_out: close.segs_out,
        data_segs_out: close.data_segs_out,
        lost: close.lost,
        lost_out: close.lost_out,
        sacked_out: close.sacked_out,
        bytes_received: close.bytes_received,
        bytes_acked: close.bytes_acked,
        dsack_dups: close.dsack_dups,
        delivered: close.delivered,
        delivered_ce: close.delivered_ce,
        icsk_retransmits: close.icsk_retransmits,
    }
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
