//! The signals that end a run in order.

use std::io;
#[cfg(unix)]
use std::{future::poll_fn, task::Poll};

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens for SIGINT, SIGTERM and SIGHUP. The kernel sends SIGHUP when the terminal is gone, for example with an ssh
/// session. It ends no run that nohup(1) started.
pub struct EndSignals {
    #[cfg(unix)]
    signals: Vec<Signal>,
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
        })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
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
        Ok(Self {})
    }

    /// Waits until the user presses Ctrl-C.
    pub async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
