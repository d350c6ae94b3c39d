use bytemuck::Zeroable;
use kmesh_trace_common::state::*;

use super::errno::*;
use super::*;
use crate::record::Outcome::*;

const EHOSTUNREACH: u32 = 113;
const LOCAL: Option<ClosedBy> = Some(ClosedBy::Local);
const PEER: Option<ClosedBy> = Some(ClosedBy::Peer);

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    old_state: u8,
    sk_err: u32,
    sk_flags: u8,
    outcome: Outcome,
    closed_by: Option<ClosedBy>,
}

fn case(name: &'static str, old_state: u8, sk_err: u32, sk_flags: u8, outcome: Outcome, by: Option<ClosedBy>) -> Case {
    Case {
        name,
        old_state,
        sk_err,
        sk_flags,
        outcome,
        closed_by: by,
    }
}

fn close(case: Case) -> Snapshot {
    Snapshot {
        old_state: case.old_state,
        sk_err: case.sk_err,
        // Failed retransmission sets both errors.
        sk_err_soft: if case.outcome == Unreachable { case.sk_err } else { 0 },
        sk_flags: case.sk_flags,
        established_ns: 1,
        ..Snapshot::zeroed()
    }
}

#[test]
fn each_rule_decides_outcome_and_closing_end() {
    let both = SK_DEAD | SK_DONE;
    let cases = [
        case("SYN answered by RST", SYN_SENT, ECONNREFUSED, 0, Refused, PEER),
        case("nothing answered the SYN", SYN_SENT, ETIMEDOUT, 0, ConnectTimeout, None),
        case("attempt killed", SYN_SENT, ECONNABORTED, 0, ConnectAborted, LOCAL),
        case("ICMP while connecting", SYN_SENT, EHOSTUNREACH, 0, Unreachable, None),
        case("program gave up", SYN_SENT, 0, 0, ConnectAborted, LOCAL),
        case("killed", ESTABLISHED, ECONNABORTED, 0, ResetByLocal, LOCAL),
        case(
            "killed after the peer's FIN",
            CLOSE_WAIT,
            ECONNABORTED,
            SK_DONE,
            ResetByLocal,
            PEER,
        ),
        case("retransmissions ran out", ESTABLISHED, ETIMEDOUT, 0, Timeout, None),
        case(
            "retransmissions of the FIN ran out",
            FIN_WAIT1,
            ETIMEDOUT,
            SK_DEAD,
            Timeout,
            LOCAL,
        ),
        case(
            "retransmission failed after ICMP",
            ESTABLISHED,
            EHOSTUNREACH,
            0,
            Unreachable,
            None,
        ),
        case("RST received", ESTABLISHED, ECONNRESET, 0, ResetByPeer, PEER),
        case(
            "RST after the peer's FIN",
            CLOSE_WAIT,
            EPIPE,
            SK_DONE,
            ResetByPeer,
            PEER,
        ),
        case("RST for the FIN", FIN_WAIT1, ECONNRESET, SK_DEAD, ResetByPeer, LOCAL),
        case("linger 0 or unread data", ESTABLISHED, 0, 0, ResetByLocal, LOCAL),
        case(
            "linger 0 after the peer's FIN",
            CLOSE_WAIT,
            0,
            SK_DONE,
            ResetByLocal,
            PEER,
        ),
        case("linger 0 after shutdown", FIN_WAIT1, 0, 0, ResetByLocal, LOCAL),
        case("Fast Open child closed", SYN_RECV, 0, 0, ResetByLocal, LOCAL),
        case("closed first, peer followed", FIN_WAIT2, 0, SK_DONE, Ok, LOCAL),
        case("closed first, orphaned", FIN_WAIT2, 0, SK_DEAD, Ok, LOCAL),
        case("unread data after shutdown", FIN_WAIT2, 0, 0, ResetByLocal, LOCAL),
        case("peer closed first", LAST_ACK, 0, both, Ok, PEER),
        case("both ends closed at once", CLOSING, 0, both, Ok, LOCAL),
        case("unknown state", SYN_RECV + 9, 0, 0, Unknown, None),
    ];
    for case in cases {
        let ending = ending(&close(case), false);
        assert_eq!(
            (ending.outcome, ending.closed_by),
            (case.outcome, case.closed_by),
            "{}",
            case.name
        );
        assert_eq!(ending.errno, (case.sk_err != 0).then_some(case.sk_err), "{}", case.name);
    }
}

#[test]
fn sent_reset_decides_outcome() {
    let orphan = Snapshot {
        old_state: FIN_WAIT2,
        sk_flags: SK_DEAD,
        ..Snapshot::zeroed()
    };
    assert_eq!(ending(&orphan, true).outcome, ResetByLocal);
    let data_after_close = Snapshot {
        sk_err: ECONNRESET,
        ..orphan
    };
    assert_eq!(ending(&data_after_close, true).outcome, ResetByLocal);
    assert_eq!(ending(&data_after_close, true).errno, Some(ECONNRESET));
    assert_eq!(ending(&data_after_close, false).outcome, ResetByPeer);
    let negative_linger = Snapshot { linger2: -1, ..orphan };
    assert_eq!(ending(&negative_linger, false).outcome, ResetByLocal);
}

#[test]
fn unacknowledged_fin_is_no_clean_end() {
    for old_state in [LAST_ACK, CLOSING] {
        let close = Snapshot {
            old_state,
            write_seq: 10,
            snd_una: 9,
            ..Snapshot::zeroed()
        };
        assert_eq!(ending(&close, false).outcome, ResetByLocal);
    }
}

#[test]
fn icmp_in_error_queue_decides_attempt() {
    let connecting = Snapshot {
        old_state: SYN_SENT,
        ..Snapshot::zeroed()
    };
    let cases = [
        (2, ECONNREFUSED, Refused, Some(ECONNREFUSED)),
        (3, EHOSTUNREACH, Unreachable, Some(EHOSTUNREACH)),
        // A timestamp, or an error that the process queued itself.
        (4, ECONNREFUSED, ConnectAborted, None),
        (1, ECONNREFUSED, ConnectAborted, None),
    ];
    for (ee_origin, ee_errno, outcome, errno) in cases {
        let ending = ending(
            &Snapshot {
                ee_origin,
                ee_errno,
                ..connecting
            },
            false,
        );
        assert_eq!((ending.outcome, ending.errno), (outcome, errno), "origin {ee_origin}");
    }
}

fn established(old_state: u8) -> Snapshot {
    Snapshot {
        old_state,
        established_ns: 1,
        ..Snapshot::zeroed()
    }
}

#[test]
fn pending_error_does_not_change_outcome() {
    const EBADMSG: u32 = 74;
    let both = SK_DEAD | SK_DONE;
    for sk_err in [EHOSTUNREACH, EBADMSG, ECONNREFUSED] {
        for (old_state, sk_flags, outcome) in [
            (FIN_WAIT2, SK_DONE, Ok),
            (FIN_WAIT2, SK_DEAD, Ok),
            (CLOSING, both, Ok),
            (LAST_ACK, both, Ok),
            (ESTABLISHED, 0, ResetByLocal),
            (CLOSE_WAIT, SK_DONE, ResetByLocal),
        ] {
            let close = Snapshot {
                sk_err,
                sk_flags,
                ..established(old_state)
            };
            let ending = ending(&close, false);
            assert_eq!(
                (ending.outcome, ending.errno),
                (outcome, None),
                "{sk_err} in {old_state}"
            );
        }
    }
    // The error of an earlier attempt, which no system call has returned.
    let clean = Snapshot {
        sk_err: ECONNRESET,
        sk_flags: SK_DONE,
        ..established(FIN_WAIT2)
    };
    assert_eq!((ending(&clean, false).outcome, ending(&clean, false).errno), (Ok, None));
    // Failed retransmission, with unacknowledged data.
    let gave_up = Snapshot {
        sk_err: EHOSTUNREACH,
        sk_err_soft: EHOSTUNREACH,
        write_seq: 10,
        snd_una: 9,
        ..established(LAST_ACK)
    };
    assert_eq!(ending(&gave_up, false).outcome, Unreachable);
}

#[test]
fn reset_that_answers_data_after_peers_fin_is_local() {
    for (old_state, sk_err) in [(CLOSE_WAIT, EPIPE), (LAST_ACK, ECONNRESET), (CLOSING, ECONNRESET)] {
        let close = Snapshot {
            sk_err,
            write_seq: 10,
            snd_una: 9,
            ..established(old_state)
        };
        assert_eq!(ending(&close, true).outcome, ResetByLocal);
        assert_eq!(ending(&close, false).outcome, ResetByPeer);
    }
    let timer = Snapshot {
        sk_flags: SK_DEAD,
        flags: FLAG_RESET_SENT,
        ..established(FIN_WAIT2)
    };
    assert_eq!(ending(&timer, false).outcome, ResetByLocal);
}

#[test]
fn client_that_ends_before_handshake_is_failed_attempt() {
    let client = |old_state, sk_err| Snapshot {
        old_state,
        sk_err,
        flags: FLAG_ACTIVE,
        write_seq: 10,
        snd_una: 9,
        ..Snapshot::zeroed()
    };
    for (old_state, sk_err, outcome) in [
        (SYN_RECV, ETIMEDOUT, ConnectTimeout),
        (SYN_RECV, ECONNABORTED, ConnectAborted),
        (SYN_RECV, ECONNRESET, ResetByPeer),
        (SYN_RECV, EHOSTUNREACH, Unreachable),
        (FIN_WAIT1, 0, ConnectAborted),
        (FIN_WAIT1, ETIMEDOUT, ConnectAborted),
        (FIN_WAIT1, ECONNRESET, ConnectAborted),
    ] {
        let close = client(old_state, sk_err);
        assert_eq!(ending(&close, false).outcome, outcome, "{sk_err} in {old_state}");
        assert!(is_half_open(&close, old_state));
    }
    // The peer acknowledged the SYN.
    let answered = Snapshot {
        bytes_acked: 1,
        ..client(FIN_WAIT1, ETIMEDOUT)
    };
    assert_eq!(ending(&answered, false).outcome, Timeout);
    // A Fast Open server's child.
    let child = Snapshot {
        flags: 0,
        ..client(SYN_RECV, ETIMEDOUT)
    };
    assert_eq!(ending(&child, false).outcome, Timeout);
    // The kernel skipped the state program at CLOSE. With more segments than the SYN, it may have skipped ESTABLISHED
    // too.
    for (segs_in, half_open) in [(1, true), (2, false)] {
        let skipped = Snapshot {
            flags: FLAG_FALLBACK,
            segs_in,
            ..client(FIN_WAIT1, ETIMEDOUT)
        };
        assert_eq!(is_half_open(&skipped, FIN_WAIT1), half_open, "{segs_in} segments");
    }
}

#[test]
fn fallback_without_error_while_retransmitting_is_unknown() {
    let fallback = |icsk_retransmits| Snapshot {
        flags: FLAG_FALLBACK,
        icsk_retransmits,
        ..established(ESTABLISHED)
    };
    assert_eq!(ending(&fallback(0), false).outcome, ResetByLocal);
    assert_eq!(ending(&fallback(3), false).outcome, Unknown);
    assert_eq!(ending(&fallback(3), false).closed_by, None);
}

#[test]
fn fallback_without_error_of_attempt_is_unknown() {
    for (old_state, active) in [(SYN_SENT, FLAG_ACTIVE), (SYN_RECV, FLAG_ACTIVE), (SYN_RECV, 0)] {
        let attempt = |flags, sk_err| Snapshot {
            old_state,
            sk_err,
            flags: flags | active,
            ..Snapshot::zeroed()
        };
        let lost = ending(&attempt(FLAG_FALLBACK, 0), false);
        assert_eq!((lost.outcome, lost.errno, lost.closed_by), (Unknown, None, None));
        // An error that no process has read.
        assert_ne!(ending(&attempt(FLAG_FALLBACK, ETIMEDOUT), false).outcome, Unknown);
        // The process called close(), and the state program reported it.
        assert_ne!(ending(&attempt(0, 0), false).outcome, Unknown);
    }
    // An ICMP error in the error queue.
    let icmp = Snapshot {
        old_state: SYN_SENT,
        ee_origin: 2,
        ee_errno: ECONNREFUSED,
        flags: FLAG_FALLBACK | FLAG_ACTIVE,
        ..Snapshot::zeroed()
    };
    assert_eq!(ending(&icmp, false).outcome, Refused);
}

#[test]
fn fallback_of_held_socket_without_error_is_unknown() {
    let fallback = |stored, flags, sk_err, sk_flags| Snapshot {
        flags: FLAG_FALLBACK | flags,
        sk_err,
        sk_flags,
        write_seq: 10,
        snd_una: 10,
        ..established(stored)
    };
    for stored in [ESTABLISHED, FIN_WAIT1, FIN_WAIT2] {
        let lost = fallback(stored, FLAG_HELD_BY_PROCESS, 0, SK_DEAD);
        assert_eq!(ending(&lost, false).outcome, Unknown, "{stored}");
        let unread = fallback(stored, FLAG_HELD_BY_PROCESS, ECONNRESET, SK_DEAD);
        assert_eq!(ending(&unread, false).outcome, ResetByPeer, "{stored}");
    }
    // Both ends had closed, so there was no error.
    for stored in [FIN_WAIT1, LAST_ACK] {
        let clean = fallback(stored, FLAG_HELD_BY_PROCESS, 0, SK_DEAD | SK_DONE);
        assert_eq!(ending(&clean, false).outcome, Ok, "{stored}");
    }
    // No process can read the error of an orphan, so there was none.
    assert_eq!(ending(&fallback(FIN_WAIT1, 0, 0, SK_DEAD), false).outcome, Ok);
    assert_eq!(ending(&fallback(ESTABLISHED, 0, 0, 0), false).outcome, ResetByLocal);
}

#[test]
fn fallback_infers_state_before_close() {
    let cases = [
        ("peer closed, this end killed", ESTABLISHED, SK_DONE, 0, CLOSE_WAIT),
        ("still open", ESTABLISHED, 0, 0, ESTABLISHED),
        ("FIN acknowledged", FIN_WAIT1, SK_DEAD, 0, FIN_WAIT2),
        ("FIN not acknowledged", FIN_WAIT1, SK_DEAD, 1, FIN_WAIT1),
        ("both ends closed at once", FIN_WAIT1, SK_DONE, 1, CLOSING),
        ("peer closed first", LAST_ACK, SK_DONE, 0, LAST_ACK),
        ("connecting", SYN_SENT, 0, 1, SYN_SENT),
    ];
    for (name, stored, sk_flags, unacknowledged, expected) in cases {
        let close = Snapshot {
            flags: FLAG_FALLBACK,
            old_state: stored,
            sk_flags,
            write_seq: 100,
            snd_una: 100 - unacknowledged,
            ..Snapshot::zeroed()
        };
        assert_eq!(old_state(&close), expected, "{name}");
    }
}
