//! TCP states, and how connections end.

use nix::errno::Errno;

// The numbers of the TCP states in TCP_INFO.
pub const ESTABLISHED: u8 = 1;
pub const SYN_SENT: u8 = 2;
pub const SYN_RECV: u8 = 3;
pub const FIN_WAIT1: u8 = 4;
pub const FIN_WAIT2: u8 = 5;
pub const CLOSE: u8 = 7;
pub const CLOSE_WAIT: u8 = 8;
pub const LAST_ACK: u8 = 9;
pub const CLOSING: u8 = 11;

/// How a connection ended, as its record must say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    pub outcome: &'static str,
    /// Each of these is right.
    pub errno: Vec<Option<&'static str>>,
    pub closed_by: Option<&'static str>,
}

/// Returns the name of an errno, as records spell it.
pub fn errno_name(errno: Errno) -> &'static str {
    match errno {
        Errno::ECONNREFUSED => "ECONNREFUSED",
        Errno::ETIMEDOUT => "ETIMEDOUT",
        Errno::EHOSTUNREACH => "EHOSTUNREACH",
        Errno::ENETUNREACH => "ENETUNREACH",
        Errno::EACCES => "EACCES",
        Errno::ECONNRESET => "ECONNRESET",
        Errno::EPIPE => "EPIPE",
        _ => "unexpected",
    }
}

/// Returns the errno that the kernel derives from an ICMP or ICMPv6 error.
pub fn icmp_errno(kind: u8, code: u8) -> Option<Errno> {
    match (kind, code) {
        (3, 3) | (1, 4) => Some(Errno::ECONNREFUSED),
        (3, 0) | (1, 0) => Some(Errno::ENETUNREACH),
        (3, 1 | 13) | (1, 3) => Some(Errno::EHOSTUNREACH),
        (1, 1) => Some(Errno::EACCES),
        _ => None,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
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
    /// Returns the number that TCP_INFO has for the state.
    pub fn number(self) -> u8 {
        match self {
            Self::SynSent => SYN_SENT,
            Self::SynRecv => SYN_RECV,
            Self::Established => ESTABLISHED,
            Self::FinWait1 => FIN_WAIT1,
            Self::FinWait2 => FIN_WAIT2,
            Self::Closing => CLOSING,
            Self::CloseWait => CLOSE_WAIT,
            Self::LastAck => LAST_ACK,
        }
    }

    /// Returns the end that sent the first FIN, if there is one.
    pub fn closed_by(self) -> Option<&'static str> {
        match self {
            Self::FinWait1 | Self::FinWait2 | Self::Closing => Some("local"),
            Self::CloseWait | Self::LastAck => Some("peer"),
            _ => None,
        }
    }
}
