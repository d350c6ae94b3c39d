//! How a connection ended, and who ended it: rules over the state before the close, the socket's error and a few flags,
//! never over timing. The order of the rules is the order of the kernel's own decisions (verified on 6.18 against what
//! programs at both ends were told).

use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_HELD_BY_PROCESS, FLAG_PREEXISTING, FLAG_RESET_SENT, FLAG_FALLBACK, SK_DEAD, SK_DONE, Snapshot, state,
};

use crate::record::{ClosedBy, Outcome};

/// Linux's numbers of the errors that decide.
mod errno {
    pub const EPIPE: u32 = 32;
    pub const ECONNABORTED: u32 = 103;
    pub const ECONNRESET: u32 = 104;
    pub const ETIMEDOUT: u32 = 110;
    pub const ECONNREFUSED: u32 = 111;
}

/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6`: the error queue's entry is an ICMP message.
const ORIGINS_ICMP: [u8; 2] = [2, 3];

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The state before CLOSE.
    pub old_state: u8,
    /// In one word.
    pub outcome: Outcome,
    /// The socket's error: what the program was told, or would have been.
    pub errno: Option<u32>,
    /// Which end closed first, or reset.
    pub closed_by: Option<ClosedBy>,
}

/// All that this end handed over is acknowledged, its FIN included.
pub fn all_acknowledged(close: &Snapshot) -> bool {
    close.snd_una == close.write_seq
}

/// The state before CLOSE. Where the programs were skipped there it follows from the last state noted: of the changes that
/// are not noted, a received FIN sets SOCK_DONE, and an acknowledged one moves `snd_una`.
pub fn old_state(close: &Snapshot) -> u8 {
    if close.flags & FLAG_FALLBACK == 0 {
        return close.old_state;
    }
    let peer_closed = close.sk_flags & SK_DONE != 0;
    match (close.old_state, peer_closed, all_acknowledged(close)) {
        (state::ESTABLISHED, true, _) => state::CLOSE_WAIT,
        (state::FIN_WAIT1, _, true) => state::FIN_WAIT2,
        (state::FIN_WAIT1, true, false) => state::CLOSING,
        (noted, _, _) => noted,
    }
}

/// Whether the handshake was not over in state `old_state`. A socket may be closed before (simultaneous open, Fast Open), and goes
/// the same way as others then; only an acknowledgement shows that the peer has answered after all.
pub fn is_half_open(snapshot: &Snapshot, old_state: u8) -> bool {
    match old_state {
        state::SYN_SENT | state::SYN_RECV => true,
        state::FIN_WAIT1 | state::CLOSING | state::LAST_ACK => {
            let is_known = snapshot.flags & (FLAG_PREEXISTING | FLAG_FALLBACK) == 0;
            is_known && snapshot.established_ns == 0 && snapshot.bytes_acked == 0
        }
        _ => false,
    }
}

/// How it ended. `reset_sent`: this end sent a RST right after the close.
pub fn ending(close: &Snapshot, reset_sent: bool) -> Ending {
    let reset_sent = reset_sent || close.flags & FLAG_RESET_SENT != 0;
    let old_state = old_state(close);
    let is_attempt = is_half_open(close, old_state) && close.flags & FLAG_ACTIVE != 0 || old_state == state::SYN_SENT;
    let icmp = old_state == state::SYN_SENT && close.sk_err == 0 && ORIGINS_ICMP.contains(&close.ee_origin);
    let error = if icmp {
        close.ee_errno
    } else if !is_attempt {
        final_error(close, old_state)
    } else if matches!(old_state, state::SYN_SENT | state::SYN_RECV) || close.sk_err == errno::ECONNABORTED {
        close.sk_err
    } else {
        // The program closed it before anything else happened.
        0
    };
    let outcome = if is_error_lost(close, old_state, error) {
        Outcome::Unknown
    } else if is_attempt {
        match error {
            0 | errno::ECONNABORTED => Outcome::ConnectAborted,
            errno::ECONNREFUSED => Outcome::Refused,
            // After a SYN for its SYN.
            errno::ECONNRESET => Outcome::ResetByPeer,
            errno::ETIMEDOUT => Outcome::ConnectTimeout,
            _ => Outcome::Unreachable,
        }
    } else {
        connected_outcome(close, old_state, error, reset_sent)
    };
    Ending {
        old_state,
        outcome,
        errno: (error != 0).then_some(error),
        closed_by: closed_by(old_state, outcome),
    }
}

/// The error that a connection ended with. One that is only pending (of an earlier life, of ICMP with IP_RECVERR, of kTLS and others
/// above TCP) ends nothing.
fn final_error(close: &Snapshot, old_state: u8) -> u32 {
    if is_clean(close, old_state) {
        return 0;
    }
    match close.sk_err {
        errno::ECONNABORTED | errno::ETIMEDOUT | errno::ECONNRESET | errno::EPIPE => close.sk_err,
        // Only retransmission that gives up ends a connection with another one, which it has noted before.
        error if error == close.sk_err_soft => error,
        // Before the handshake is over, ICMP ends it at once.
        error if old_state == state::SYN_RECV => error,
        _ => 0,
    }
}

/// Returns whether the program may have read the error before the socket was destroyed, so that the destroy fallback did not see it.
fn is_error_lost(close: &Snapshot, old_state: u8, error: u32) -> bool {
    if close.flags & FLAG_FALLBACK == 0 || error != 0 {
        return false;
    }
    match old_state {
        // Segments and timers end an attempt with an error. Only close() ends it without one, and the kernel hardly ever skips a
        // program in a system call.
        state::SYN_SENT | state::SYN_RECV => true,
        _ if close.flags & FLAG_HELD_BY_PROCESS != 0 => !is_clean(close, old_state),
        // Retransmission was under way, so it may have given up, or this end may have reset the connection.
        state::ESTABLISHED | state::CLOSE_WAIT => close.icsk_retransmits > 0,
        _ => false,
    }
}

/// Whether both ends have closed and know it, so that nothing but that has ended it.
fn is_clean(close: &Snapshot, old_state: u8) -> bool {
    match old_state {
        state::FIN_WAIT2 => close.sk_flags & SK_DONE != 0,
        state::CLOSING | state::LAST_ACK => all_acknowledged(close),
        _ => false,
    }
}

fn connected_outcome(close: &Snapshot, old_state: u8, error: u32, reset_sent: bool) -> Outcome {
    match error {
        0 => clean_or_reset(close, old_state, reset_sent),
        errno::ECONNABORTED => Outcome::ResetByLocal,
        errno::ETIMEDOUT => Outcome::Timeout,
        // Data came after this end's close or the peer's own FIN: the kernel sets the error as if it had received the RST that it
        // sends.
        errno::ECONNRESET | errno::EPIPE if reset_sent => Outcome::ResetByLocal,
        errno::ECONNRESET | errno::EPIPE => Outcome::ResetByPeer,
        _ => Outcome::Unreachable,
    }
}

fn clean_or_reset(close: &Snapshot, old_state: u8, reset_sent: bool) -> Outcome {
    if is_clean(close, old_state) {
        return Outcome::Ok;
    }
    let dead = close.sk_flags & SK_DEAD != 0;
    match old_state {
        // None of these closes without an error but by this end's RST. (In SYN_RECV: Fast Open.)
        state::SYN_RECV
        | state::ESTABLISHED
        | state::CLOSE_WAIT
        | state::FIN_WAIT1
        | state::CLOSING
        | state::LAST_ACK => Outcome::ResetByLocal,
        state::FIN_WAIT2 if !dead || close.linger2 < 0 || reset_sent => Outcome::ResetByLocal,
        state::FIN_WAIT2 => Outcome::Ok,
        _ => Outcome::Unknown,
    }
}

fn closed_by(old_state: u8, outcome: Outcome) -> Option<ClosedBy> {
    match old_state {
        state::FIN_WAIT1 | state::FIN_WAIT2 | state::CLOSING => Some(ClosedBy::Local),
        state::CLOSE_WAIT | state::LAST_ACK => Some(ClosedBy::Peer),
        _ => match outcome {
            Outcome::Refused | Outcome::ResetByPeer => Some(ClosedBy::Peer),
            Outcome::ConnectAborted | Outcome::ResetByLocal => Some(ClosedBy::Local),
            Outcome::Ok | Outcome::ConnectTimeout | Outcome::Unreachable | Outcome::Timeout | Outcome::Unknown => None,
        },
    }
}

#[cfg(test)]
mod tests {
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

    fn case(
        name: &'static str,
        old_state: u8,
        sk_err: u32,
        sk_flags: u8,
        outcome: Outcome,
        by: Option<ClosedBy>,
    ) -> Case {
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
            // What retransmission gives up with.
            sk_err_soft: if case.outcome == Unreachable { case.sk_err } else { 0 },
            sk_flags: case.sk_flags,
            established_ns: 1,
            ..Snapshot::zeroed()
        }
    }

    #[test]
    fn each_rule() {
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
                "retransmission gave up for ICMP",
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
            case("both at once", CLOSING, 0, both, Ok, LOCAL),
            case("no such change", SYN_RECV + 9, 0, 0, Unknown, None),
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
    fn a_reset_sent_settles_what_looks_like_another_end() {
        let orphan = Snapshot {
            old_state: FIN_WAIT2,
            sk_flags: SK_DEAD,
            ..Snapshot::zeroed()
        };
        assert_eq!(ending(&orphan, true).outcome, ResetByLocal);
        let data_met_fin = Snapshot {
            sk_err: ECONNRESET,
            ..orphan
        };
        assert_eq!(ending(&data_met_fin, true).outcome, ResetByLocal);
        assert_eq!(ending(&data_met_fin, true).errno, Some(ECONNRESET));
        assert_eq!(ending(&data_met_fin, false).outcome, ResetByPeer);
        let no_wait = Snapshot { linger2: -1, ..orphan };
        assert_eq!(ending(&no_wait, false).outcome, ResetByLocal);
    }

    #[test]
    fn an_unacknowledged_fin_is_no_clean_end() {
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
    fn icmp_that_only_the_error_queue_knows() {
        let connecting = Snapshot {
            old_state: SYN_SENT,
            ..Snapshot::zeroed()
        };
        let cases = [
            (2, ECONNREFUSED, Refused, Some(ECONNREFUSED)),
            (3, EHOSTUNREACH, Unreachable, Some(EHOSTUNREACH)),
            // A timestamp, or an error of the program's own making.
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
    fn a_pending_error_ends_nothing() {
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
        // Of an earlier life, whose reset nobody asked about.
        let clean = Snapshot {
            sk_err: ECONNRESET,
            sk_flags: SK_DONE,
            ..established(FIN_WAIT2)
        };
        assert_eq!((ending(&clean, false).outcome, ending(&clean, false).errno), (Ok, None));
        // What retransmission gave up with, not all acknowledged.
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
    fn data_after_the_peers_fin_is_answered_by_this_ends_reset() {
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
    fn what_is_closed_before_its_handshake_is_over_never_was_connected() {
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
        // The peer acknowledged the SYN after all.
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
    }

    #[test]
    fn destroy_fallback_without_an_error_does_not_guess_while_retransmitting() {
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
    fn destroy_fallback_without_an_error_does_not_guess_how_an_attempt_failed() {
        for (old_state, active) in [(SYN_SENT, FLAG_ACTIVE), (SYN_RECV, FLAG_ACTIVE), (SYN_RECV, 0)] {
            let attempt = |flags, sk_err| Snapshot {
                old_state,
                sk_err,
                flags: flags | active,
                ..Snapshot::zeroed()
            };
            let lost = ending(&attempt(FLAG_FALLBACK, 0), false);
            assert_eq!((lost.outcome, lost.errno, lost.closed_by), (Unknown, None, None));
            // An error that nobody has read.
            assert_ne!(ending(&attempt(FLAG_FALLBACK, ETIMEDOUT), false).outcome, Unknown);
            // The program's own close(), which no program was skipped for.
            assert_ne!(ending(&attempt(0, 0), false).outcome, Unknown);
        }
        // ICMP that only the error queue knows.
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
    fn destroy_fallback_does_not_guess_what_a_program_read_of_its_held_socket() {
        let fallback = |noted, flags, sk_err, sk_flags| Snapshot {
            flags: FLAG_FALLBACK | flags,
            sk_err,
            sk_flags,
            write_seq: 10,
            snd_una: 10,
            ..established(noted)
        };
        for noted in [ESTABLISHED, FIN_WAIT1, FIN_WAIT2] {
            let lost = fallback(noted, FLAG_HELD_BY_PROCESS, 0, SK_DEAD);
            assert_eq!(ending(&lost, false).outcome, Unknown, "{noted}");
            let read_by_nobody = fallback(noted, FLAG_HELD_BY_PROCESS, ECONNRESET, SK_DEAD);
            assert_eq!(ending(&read_by_nobody, false).outcome, ResetByPeer, "{noted}");
        }
        // Both ends had closed: there was no error.
        for noted in [FIN_WAIT1, LAST_ACK] {
            let clean = fallback(noted, FLAG_HELD_BY_PROCESS, 0, SK_DEAD | SK_DONE);
            assert_eq!(ending(&clean, false).outcome, Ok, "{noted}");
        }
        // An orphan's error can be read by nobody, so there was none.
        assert_eq!(ending(&fallback(FIN_WAIT1, 0, 0, SK_DEAD), false).outcome, Ok);
        assert_eq!(ending(&fallback(ESTABLISHED, 0, 0, 0), false).outcome, ResetByLocal);
    }

    #[test]
    fn a_second_chance_tells_the_state_that_was_not_noted() {
        let cases = [
            ("peer closed, this end killed", ESTABLISHED, SK_DONE, 0, CLOSE_WAIT),
            ("still open", ESTABLISHED, 0, 0, ESTABLISHED),
            ("FIN acknowledged", FIN_WAIT1, SK_DEAD, 0, FIN_WAIT2),
            ("FIN not acknowledged", FIN_WAIT1, SK_DEAD, 1, FIN_WAIT1),
            ("both at once", FIN_WAIT1, SK_DONE, 1, CLOSING),
            ("last", LAST_ACK, SK_DONE, 0, LAST_ACK),
            ("connecting", SYN_SENT, 0, 1, SYN_SENT),
        ];
        for (name, noted, sk_flags, unacknowledged, expected) in cases {
            let close = Snapshot {
                flags: FLAG_FALLBACK,
                old_state: noted,
                sk_flags,
                write_seq: 100,
                snd_una: 100 - unacknowledged,
                ..Snapshot::zeroed()
            };
            assert_eq!(old_state(&close), expected, "{name}");
        }
    }
}
