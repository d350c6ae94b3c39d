use bytemuck::Zeroable;
use kmesh_trace_common::{KIND_CLOSE, KIND_RESET, SK_DEAD};

use super::*;
use crate::record::{Outcome, WallTime};

const MS: u64 = 1_000_000;

fn record(snapshot: &Snapshot, reset_sent: bool, began_ns: u64, clock: &Clock) -> Record {
    super::record(snapshot, reset_sent, began_ns, &"node".into(), clock)
}

fn close(cookie: u64, time_ns: u64) -> Snapshot {
    Snapshot {
        kind: KIND_CLOSE,
        cookie,
        attempt: 1,
        time_ns,
        start_ns: 1,
        old_state: state::FIN_WAIT2,
        sk_flags: SK_DEAD,
        ..Snapshot::zeroed()
    }
}

fn take(tracker: &mut Tracker, snapshots: &[Snapshot]) {
    for snapshot in snapshots {
        tracker.take(KernelEvent::Snapshot(*snapshot, None));
    }
}

fn all(tracker: &mut Tracker, complete_ns: u64) -> Vec<Record> {
    let clock = Clock::new(0);
    std::iter::from_fn(|| tracker.next(complete_ns, &clock))
        .map(|(_, record)| record)
        .collect()
}

#[test]
fn records_come_in_order_of_time() {
    let mut tracker = Tracker::new(0, "node".into());
    take(
        &mut tracker,
        &[close(1, 30), close(2, 10), close(3, 20), close(4, 30), close(5, 5)],
    );
    let cookies: Vec<_> = all(&mut tracker, u64::MAX)
        .iter()
        .map(|record| record.id.cookie)
        .collect();
    assert_eq!(cookies, [5, 2, 3, 1, 4]);
    assert_eq!(tracker.latest_ns(), 30);
}

#[test]
fn records_wait_until_settled() {
    let mut tracker = Tracker::new(0, "node".into());
    take(&mut tracker, &[close(1, 10 * MS), close(2, 12 * MS)]);
    assert_eq!(all(&mut tracker, 10 * MS + SETTLE_NS - 1).len(), 0);
    assert_eq!(all(&mut tracker, 10 * MS + SETTLE_NS).len(), 1);
    assert_eq!(all(&mut tracker, u64::MAX).len(), 1);
}

fn reset(cookie: u64, attempt: u32, reason: u32, decides: u32) -> KernelEvent {
    KernelEvent::Reset(Reset {
        kind: KIND_RESET,
        attempt,
        cookie,
        reason,
        decides,
    })
}

#[test]
fn reset_changes_only_close_of_its_attempt() {
    let mut tracker = Tracker::new(0, "node".into());
    let second = Snapshot {
        attempt: 2,
        ..close(1, 20)
    };
    take(&mut tracker, &[close(1, 10), second, close(2, 30)]);
    tracker.take(reset(1, 1, 0, 1));
    tracker.take(reset(9, 1, 0, 1));
    let outcomes: Vec<_> = all(&mut tracker, u64::MAX)
        .iter()
        .map(|record| record.outcome)
        .collect();
    assert_eq!(
        outcomes,
        [Some(Outcome::ResetByLocal), Some(Outcome::Ok), Some(Outcome::Ok)]
    );
}

fn reset_reasons() -> ReasonNames {
    let names = ["NOT_SPECIFIED", "NO_SOCKET", "TCP_ABORT_ON_CLOSE", "TCP_STATE"];
    ReasonNames::new((0..).zip(names.map(str::to_owned)), "")
}

#[test]
fn reset_reason_does_not_decide_the_outcome() {
    let with_reason = |cookie, reset_reason| Snapshot {
        reset_reason,
        ..close(cookie, cookie)
    };
    let mut tracker = Tracker::new(0, "node".into()).with_reset_reasons(reset_reasons());
    let snapshots = [
        close(1, 1),
        close(2, 2),
        with_reason(3, 2),
        with_reason(4, 2),
        close(5, 5),
        close(6, 6),
    ];
    take(&mut tracker, &snapshots);
    for event in [
        reset(1, 1, 2, 1),
        reset(2, 1, 3, 0),
        reset(4, 1, 3, 0),
        reset(5, 1, 0, 1),
        reset(6, 1, 99, 1),
    ] {
        tracker.take(event);
    }
    let ends: Vec<_> = all(&mut tracker, u64::MAX)
        .into_iter()
        .map(|record| (record.outcome, record.reset_reason))
        .collect();
    let end = |outcome, reason: Option<&str>| (Some(outcome), reason.map(Arc::from));
    let expected = [
        end(Outcome::ResetByLocal, Some("TCP_ABORT_ON_CLOSE")),
        end(Outcome::Ok, Some("TCP_STATE")),
        // The socket sent the RST before its close.
        end(Outcome::Ok, Some("TCP_ABORT_ON_CLOSE")),
        end(Outcome::Ok, Some("TCP_STATE")),
        end(Outcome::ResetByLocal, None),
        end(Outcome::ResetByLocal, None),
    ];
    assert_eq!(ends, expected);
}

#[test]
fn reject_has_client_dialled_address_and_reason() {
    let tracker = Tracker::new(0, "node".into()).with_reset_reasons(reset_reasons());
    let words = |ip: &str| bytemuck::cast(ip.parse::<Ipv6Addr>().unwrap().octets());
    let key = RejectKey {
        client: words("::ffff:10.0.0.1"),
        dialled: words("::ffff:10.0.0.2"),
        port: 81,
        reason: 1,
        netns: 7,
        ..RejectKey::zeroed()
    };
    let record = tracker.reject(&key, 12, 30, &Clock::new(1_000));
    assert_eq!((record.subject, record.time), (Subject::Reject(12), WallTime(1_030)));
    assert_eq!(
        (record.src.to_string(), record.dst.to_string()),
        ("10.0.0.1:0".into(), "10.0.0.2:81".into())
    );
    assert_eq!((record.reset_reason.as_deref(), record.netns), (Some("NO_SOCKET"), 7));
    // Names are those of its time.
    assert_eq!(
        (record.event, record.start, record.outcome),
        (Event::Update, None, None)
    );
}

#[test]
fn listener_has_address_owner_and_queue() {
    let tracker = Tracker::new(0, "node".into());
    let listener = Listener {
        cookie: 5,
        time_ns: 30,
        local_port: 80,
        cgroup_id: 9,
        netns: 7,
        owner: Owner {
            pid: 11,
            by: owner::SCAN,
            ..Owner::zeroed()
        },
        ..Listener::zeroed()
    };
    let queue = AcceptQueue {
        backlog: 129,
        max_backlog: 128,
        ..AcceptQueue::default()
    };
    let record = tracker.listener(&listener, queue, &Clock::new(1_000));
    assert_eq!(
        (record.subject, record.time),
        (Subject::Listener(queue), WallTime(1_030))
    );
    assert_eq!(
        (record.id.to_string(), record.dst.to_string()),
        ("5-0".into(), "[::]:80".into())
    );
    assert_eq!(record.process.map(|process| process.pid), Some(11));
    assert_eq!(
        (record.cgroup_id, record.netns, record.family),
        (Some(9), 7, Family::Ipv6)
    );
    assert_eq!(
        (record.event, record.start, record.outcome),
        (Event::Update, None, None)
    );
}

#[test]
fn scan_does_not_advance_latest_time() {
    let mut tracker = Tracker::new(0, "node".into());
    take(
        &mut tracker,
        &[
            close(1, 10),
            Snapshot {
                kind: KIND_UPDATE,
                ..close(2, 50)
            },
        ],
    );
    assert_eq!(tracker.latest_ns(), 10);
}

#[test]
fn update_before_a_returned_record_is_late() {
    let mut tracker = Tracker::new(0, "node".into());
    take(&mut tracker, &[close(1, 10)]);
    assert!(tracker.next(u64::MAX, &Clock::new(0)).is_some());
    let is_late = |kind, time_ns| {
        let snapshot = Snapshot {
            kind,
            ..close(2, time_ns)
        };
        tracker.is_late(&KernelEvent::Snapshot(snapshot, None))
    };
    assert!(is_late(KIND_UPDATE, 9));
    assert!(!is_late(KIND_UPDATE, 10));
    assert!(!is_late(KIND_CLOSE, 9));
}

#[test]
fn times_are_converted_to_wall_clock() {
    let clock = Clock::new(1_000);
    let base = Snapshot {
        flags: FLAG_ACTIVE,
        start_ns: 100,
        established_ns: 130,
        ..close(1, 500)
    };
    let record_of = |snapshot: &Snapshot| record(snapshot, false, 400, &clock);

    let outbound = record_of(&base);
    assert_eq!(
        (outbound.time, outbound.start),
        (WallTime(1_500), Some(WallTime(1_100)))
    );
    assert_eq!((outbound.duration_ns, outbound.observed_ns), (Some(400), 400));
    assert_eq!(outbound.connect_ns, Some(30));

    let inbound = record_of(&Snapshot { flags: 0, ..base });
    assert_eq!((inbound.duration_ns, inbound.connect_ns), (Some(400), None));

    let never = record_of(&Snapshot {
        established_ns: 0,
        old_state: state::SYN_SENT,
        ..base
    });
    assert_eq!((never.connect_ns, never.established), (None, false));

    // No kernel reports this. The record has no time instead of a wrong one.
    let backwards = record_of(&Snapshot {
        established_ns: base.start_ns - 1,
        ..base
    });
    assert_eq!(backwards.connect_ns, None);

    let before = record_of(&Snapshot {
        flags: FLAG_ACTIVE | FLAG_PREEXISTING,
        start_ns: 0,
        ..base
    });
    assert!(before.preexisting);
    assert_eq!(
        (before.start, before.duration_ns, before.connect_ns),
        (None, None, None)
    );
    assert_eq!(before.observed_ns, 100);
}

/// 1,000 bytes are sent and 300 received, as the kernel counts them in each state.
#[test]
fn payload_excludes_syn_and_fin() {
    struct Case(&'static str, u8, bool, u64, u64, u32, u8, (u64, u64, u64));
    // Acknowledged, received, unacknowledged sequence numbers, flags → sent, received, undelivered.
    let cases = [
        Case(
            "client closed first",
            state::FIN_WAIT2,
            true,
            1002,
            301,
            0,
            SK_DONE,
            (1000, 300, 0),
        ),
        Case(
            "client, FIN of the peer not seen",
            state::FIN_WAIT2,
            true,
            1002,
            300,
            0,
            0,
            (1000, 300, 0),
        ),
        Case(
            "server closed last",
            state::LAST_ACK,
            false,
            1001,
            301,
            0,
            SK_DONE,
            (1000, 300, 0),
        ),
        Case(
            "FIN not acknowledged",
            state::FIN_WAIT1,
            true,
            1001,
            300,
            1,
            0,
            (1000, 300, 0),
        ),
        Case(
            "FIN behind 200 bytes",
            state::FIN_WAIT1,
            true,
            1001,
            300,
            201,
            0,
            (1000, 300, 200),
        ),
        Case(
            "both ends closed at once",
            state::CLOSING,
            true,
            1002,
            301,
            0,
            SK_DONE,
            (1000, 300, 0),
        ),
        Case(
            "reset while open",
            state::ESTABLISHED,
            true,
            1001,
            300,
            50,
            0,
            (1000, 300, 50),
        ),
        Case(
            "reset while open, server",
            state::ESTABLISHED,
            false,
            1000,
            300,
            0,
            0,
            (1000, 300, 0),
        ),
        Case(
            "after the peer's FIN",
            state::CLOSE_WAIT,
            false,
            1000,
            301,
            0,
            SK_DONE,
            (1000, 300, 0),
        ),
        Case("refused", state::SYN_SENT, true, 0, 0, 1, 0, (0, 0, 0)),
        Case(
            "Fast Open data with a SYN lost",
            state::SYN_SENT,
            true,
            0,
            0,
            101,
            0,
            (0, 0, 100),
        ),
        Case("nothing moved", state::FIN_WAIT2, true, 2, 1, 0, SK_DONE, (0, 0, 0)),
        Case(
            "past 4 GiB",
            state::FIN_WAIT2,
            true,
            5_000_000_002,
            1,
            0,
            SK_DONE,
            (5_000_000_000, 0, 0),
        ),
    ];
    for Case(name, old_state, active, bytes_acked, bytes_received, unacknowledged, sk_flags, expected) in cases {
        // Sequence numbers wrap.
        let snd_una = u32::MAX - 10;
        let write_seq = snd_una.wrapping_add(unacknowledged);
        let snapshot = Snapshot {
            bytes_acked,
            bytes_received,
            snd_una,
            write_seq,
            sk_flags,
            ..close(1, 1)
        };
        let Payload {
            sent,
            received,
            undelivered,
        } = payload(&snapshot, old_state, active);
        assert_eq!((sent, received, undelivered), expected, "{name}");
    }
}

#[test]
fn client_is_source() {
    let address = |last: u8| Ipv6Addr::from_bits(0xffff_0a00_0000 + u128::from(last)).octets();
    let snapshot = Snapshot {
        local_addr: address(1),
        local_port: 40_000,
        peer_addr: address(2),
        peer_port: 80,
        family: 10,
        ..close(1, 1)
    };
    let clock = Clock::new(0);
    let outbound = record(
        &Snapshot {
            flags: FLAG_ACTIVE,
            ..snapshot
        },
        false,
        0,
        &clock,
    );
    assert_eq!(
        (outbound.src.to_string(), outbound.dst.to_string()),
        ("10.0.0.1:40000".into(), "10.0.0.2:80".into())
    );
    assert_eq!(
        (outbound.direction, outbound.family),
        (Direction::Outbound, Family::Ipv4)
    );
    let inbound = record(&snapshot, false, 0, &clock);
    assert_eq!((inbound.src, inbound.dst), (outbound.dst, outbound.src));
    let six = Snapshot {
        peer_addr: [0xfd; 16],
        local_addr: [0xfc; 16],
        ..snapshot
    };
    assert_eq!(record(&six, false, 0, &clock).family, Family::Ipv6);
}

#[test]
fn open_connection_has_no_outcome() {
    let clock = Clock::new(0);
    for (kind, old_state, event, now, before, established) in [
        (
            KIND_OPEN,
            state::SYN_SENT,
            Event::Open,
            TcpState::Established,
            Some(TcpState::SynSent),
            true,
        ),
        (
            KIND_OPEN,
            state::SYN_RECV,
            Event::Open,
            TcpState::Established,
            Some(TcpState::SynRecv),
            true,
        ),
        (
            KIND_UPDATE,
            state::SYN_SENT,
            Event::Update,
            TcpState::SynSent,
            None,
            false,
        ),
        (
            KIND_UPDATE,
            state::CLOSE_WAIT,
            Event::Update,
            TcpState::CloseWait,
            None,
            true,
        ),
    ] {
        let record = record(
            &Snapshot {
                kind,
                old_state,
                ..close(1, 1)
            },
            false,
            0,
            &clock,
        );
        assert_eq!(
            (record.event, record.tcp.state, record.tcp.old_state),
            (event, now, before)
        );
        assert_eq!((record.outcome, record.errno, record.closed_by), (None, None, None));
        assert_eq!(record.established, established);
    }
}
