//! The log of a life: its calls, with their times and results.

use std::fmt;
use std::net::SocketAddr;
use std::time::SystemTime;

use nix::errno::Errno;

use crate::support::expect::format_time;
use crate::support::sock::Span;

/// The index of a socket in its life.
pub type SocketId = usize;

/// A call, as far as it matters to the model of TCP.
#[derive(Clone, Copy, Debug)]
pub enum Action {
    /// Changes no state of the connection.
    Other,
    Listen,
    /// connect() to this address. The kernel may send the SYN later.
    Connect(SocketAddr),
    /// sendto() with MSG_FASTOPEN, which returns the number of bytes that the kernel took.
    FastOpen(SocketAddr),
    /// Returns the number of bytes that the kernel took.
    Write,
    Read,
    Shutdown {
        read: bool,
        write: bool,
    },
    /// The close() of the socket's last descriptor.
    Close {
        /// SO_LINGER is set to zero seconds.
        linger_zero: bool,
        /// The number of received bytes that the program has not read.
        unread: u64,
    },
    /// connect() with AF_UNSPEC, which resets the connection.
    Disconnect,
    Accept {
        listener: SocketId,
        /// The address of the client.
        peer: SocketAddr,
    },
    /// Reads and clears SO_ERROR.
    Error,
}

impl Action {
    /// Returns the destination of a connect() or a Fast Open.
    pub fn destination(self) -> Option<SocketAddr> {
        match self {
            Self::Connect(destination) | Self::FastOpen(destination) => Some(destination),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Call {
    pub time: Span,
    pub socket: SocketId,
    pub action: Action,
    /// The call as a failure's report prints it.
    pub text: String,
    pub result: Result<u64, Errno>,
    /// The process that made the call.
    pub pid: u32,
    /// The TCP state just before the call. `None` if it can have changed until the call.
    pub state_before: Option<u8>,
    /// The time at which `state_before` was read.
    pub state_read_at: SystemTime,
    /// The TCP state just after the call.
    pub state_after: Option<u8>,
}

impl fmt::Display for Call {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{} socket {}: {} = ",
            format_time(self.time.before),
            self.socket,
            self.text
        )?;
        match &self.result {
            Ok(value) => write!(out, "{value}")?,
            Err(errno) => write!(out, "{errno:?}")?,
        }
        if self.pid != std::process::id() {
            write!(out, " in process {}", self.pid)?;
        }
        let state = |state: Option<u8>| state.map_or("-".to_owned(), |state| state.to_string());
        write!(
            out,
            " (state {} to {})",
            state(self.state_before),
            state(self.state_after)
        )
    }
}

/// How another process becomes the last owner of a socket, and closes it.
#[derive(Clone, Copy)]
pub enum Handover {
    /// The helper receives the descriptor by SCM_RIGHTS, and calls close().
    CloseInHelper,
    /// The helper receives the descriptor, forks and closes it. Then the child exits.
    ExitForkedChild,
    /// The helper receives the descriptor, and executes a program, which closes it.
    Exec,
}

impl Handover {
    pub const ALL: [Self; 3] = [Self::CloseInHelper, Self::ExitForkedChild, Self::Exec];

    /// Returns the calls as a failure's report prints them.
    pub fn text(self) -> &'static str {
        match self {
            Self::CloseInHelper => "SCM_RIGHTS, close()",
            Self::ExitForkedChild => "SCM_RIGHTS, fork(), close(), exit() of the child",
            Self::Exec => "SCM_RIGHTS, execve()",
        }
    }
}
