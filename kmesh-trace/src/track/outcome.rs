//! Decides how a connection ended, and which end ended it. The rules use the state before the close, the socket's error
//! and a few flags, but no times. They have the order of the kernel's decisions (verified on 6.18 against the results
//! of system calls at both ends).

use kmesh_trace_common::{
    FLAG_ACTIVE, FLAG_FALLBACK, FLAG_HELD_BY_PROCESS, FLAG_PREEXISTING, FLAG_RESET_SENT, SK_DEAD, SK_DONE, Snapshot,
    state,
};

use crate::record::{ClosedBy, Outcome};

/// Linux's numbers of the errors that the rules use.
mod errno {
    pub const EPIPE: u32 = 32;
    pub const ECONNABORTED: u32 = 103;
    pub const ECONNRESET: u32 = 104;
    pub const ETIMEDOUT: u32 = 110;
    pub const ECONNREFUSED: u32 = 111;
}

/// `SO_EE_ORIGIN_ICMP` and `SO_EE_ORIGIN_ICMP6`: the entry of the error queue is an ICMP message.
const ICMP_ORIGINS: [u8; 2] = [2, 3];

/// The end of a connection or an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The state before CLOSE.
    pub old_state: u8,
    pub outcome: Outcome,
    /// The error that the next system call on the socket returns, or returned.
    pub errno: Option<u32>,
    /// The end that closed first, or reset the connection.
    pub closed_by: Option<ClosedBy>,
}

/// Returns whether the peer acknowledged everything that this end wrote, the FIN included.
pub fn all_acknowledged(close: &Snapshot) -> bool {
    close.snd_una == close.write_seq
}

/// Returns the state before CLOSE. A fallback program reports the last state that a program stored. The changes since
/// then show: a received FIN sets SOCK_DONE, and an acknowledged one moves `snd_una`.
pub fn old_state(close: &Snapshot) -> u8 {
    if close.flags & FLAG_FALLBACK == 0 {
        return close.old_state;
    }
    let peer_closed = close.sk_flags & SK_DONE != 0;
    match (close.old_state, peer_closed, all_acknowledged(close)) {
        (state::ESTABLISHED, true, _) => state::CLOSE_WAIT,
        (state::FIN_WAIT1, _, true) => state::FIN_WAIT2,
        (state::FIN_WAIT1, true, false) => state::CLOSING,
        (stored, _, _) => stored,
    }
}

/// Returns whether the handshake had not ended in state `old_state`. A socket may be closed before its end
/// (simultaneous open, Fast Open), and then has the same states as other sockets. Only an acknowledgement shows that
/// the peer answered.
pub fn is_half_open(snapshot: &Snapshot, old_state: u8) -> bool {
    match old_state {
        state::SYN_SENT | state::SYN_RECV => true,
        state::FIN_WAIT1 | state::CLOSING | state::LAST_ACK => {
            // Where the kernel skipped a program, it may have skipped the one at ESTABLISHED too, unless only a SYN
            // arrived.
            let was_skipped = snapshot.flags & FLAG_FALLBACK != 0 && snapshot.segs_in > 1;
            let is_known = snapshot.flags & FLAG_PREEXISTING == 0 && !was_skipped;
            is_known && snapshot.established_ns == 0 && snapshot.bytes_acked == 0
        }
        _ => false,
    }
}

/// Returns how the connection ended. `reset_sent`: this end sent a RST right after the close.
pub fn ending(close: &Snapshot, reset_sent: bool) -> Ending {
    let reset_sent = reset_sent || close.flags & FLAG_RESET_SENT != 0;
    let old_state = old_state(close);
    let is_attempt = is_half_open(close, old_state) && close.flags & FLAG_ACTIVE != 0 || old_state == state::SYN_SENT;
    let icmp = old_state == state::SYN_SENT && close.sk_err == 0 && ICMP_ORIGINS.contains(&close.ee_origin);
    let error = if icmp {
        close.ee_errno
    } else if !is_attempt {
        final_error(close, old_state)
    } else if matches!(old_state, state::SYN_SENT | state::SYN_RECV) || close.sk_err == errno::ECONNABORTED {
        close.sk_err
    } else {
        // The process closed the socket before anything else happened.
        0
    };
    let outcome = if is_error_lost(close, old_state, error) {
        Outcome::Unknown
    } else if is_attempt {
        match error {
            0 | errno::ECONNABORTED => Outcome::ConnectAborted,
            errno::ECONNREFUSED => Outcome::Refused,
            // The peer answered the SYN with a SYN, and then sent a RST.
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

/// Returns the error that ended the connection; 0 if none did. A pending error ends nothing: it comes from an earlier
/// attempt, from ICMP with IP_RECVERR, or from a protocol above TCP such as kTLS.
fn final_error(close: &Snapshot, old_state: u8) -> u32 {
    if is_clean(close, old_state) {
        return 0;
    }
    match close.sk_err {
        errno::ECONNABORTED | errno::ETIMEDOUT | errno::ECONNRESET | errno::EPIPE => close.sk_err,
        // Only failed retransmission ends a connection with another error, which is then also the soft error.
        error if error == close.sk_err_soft => error,
        // Before the end of the handshake, ICMP ends the connection at once.
        error if old_state == state::SYN_RECV => error,
        _ => 0,
    }
}

/// Returns whether a process may have read, and so cleared, the error before the destroy fallback could read it.
fn is_error_lost(close: &Snapshot, old_state: u8, error: u32) -> bool {
    if close.flags & FLAG_FALLBACK == 0 || error != 0 {
        return false;
    }
    match old_state {
        // Only close() ends an attempt without an error, and the kernel hardly ever skips a program in a system call.
        state::SYN_SENT | state::SYN_RECV => true,
        _ if close.flags & FLAG_HELD_BY_PROCESS != 0 => !is_clean(close, old_state),
        // The kernel was retransmitting, so it may have given up, or this end may have reset the connection.
        state::ESTABLISHED | state::CLOSE_WAIT => close.icsk_retransmits > 0,
        _ => false,
    }
}

/// Returns whether both ends have closed, and each FIN is acknowledged, so that nothing else ended the connection.
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
        // Data came after this end's close or after the peer's FIN. The kernel sends a RST, and sets the error as if it
        // had received one.
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
        // In these states, only a RST of this end closes without an error. (SYN_RECV: Fast Open.)
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
mod tests;
