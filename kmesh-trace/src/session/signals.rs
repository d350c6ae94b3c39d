//! The signals that end a run in order.

use std::io;
use std::process::exit;
#[cfg(unix)]
use std::{future::poll_fn, task::Poll};

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exit::Exit;
use crate::output::stderr::status;
use crate::output::term;

/// Listens for SIGINT, SIGTERM and SIGHUP. The kernel sends SIGHUP when the terminal is gone, for example with an ssh
/// session. It ends no run that nohup(1) started.
pub struct EndSignals {
    #[cfg(unix)]
    signals: Vec<Signal>,
    has_come: bool,
    message_at_exit: Option<&'static str>,
}

impl EndSignals {
    /// Sets the message for the second signal.
    pub fn with_message_at_exit(self, message: &'static str) -> Self {
        Self {
            message_at_exit: Some(message),
            ..self
        }
    }

    /// Waits for the first signal, which ends the run in order. The second one ends the program at once, for example if
    /// nobody reads standard output.
    pub async fn next(&mut self) {
        self.wait().await;
        if std::mem::replace(&mut self.has_come, true) {
            term::leave();
            self.message_at_exit.into_iter().for_each(status);
            exit(Exit::Ok as i32);
        }
    }
}

#[cfg(unix)]
impl EndSignals {
    /// Must be called in the context of a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
        if !is_hangup_ignored() {
            kinds.push(SignalKind::hangup());
        }
        Ok(Self {
            signals: kinds.into_iter().map(signal).collect::<io::Result<_>>()?,
            has_come: false,
            message_at_exit: None,
        })
    }

    async fn wait(&mut self) {
        poll_fn(|context| {
            let is_ready = |signal: &mut Signal| signal.poll_recv(context).is_ready();
            match self.signals.iter_mut().any(is_ready) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
}

/// Returns whether the process that started this one had SIGHUP ignored.
#[cfg(target_os = "linux")]
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 != 0)
}

#[cfg(all(unix, not(target_os = "linux")))]
fn is_hangup_ignored() -> bool {
    false
}

#[cfg(not(unix))]
impl EndSignals {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            has_come: false,
            message_at_exit: None,
        })
    }

    /// Waits until the user presses Ctrl-C.
    async fn wait(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
