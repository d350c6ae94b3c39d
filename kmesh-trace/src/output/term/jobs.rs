//! Job control: the terminal is given back before the program is stopped, and taken again when it goes on.

use std::future::pending;
use std::io;

use super::Handle;

/// The signals that concern a screen.
pub struct Jobs {
    #[cfg(unix)]
    listening: Option<Listening>,
}

#[cfg(unix)]
struct Listening {
    screen: Handle,
    stop: tokio::signal::unix::Signal,
    go_on: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Jobs {
    /// Listens for those of this screen; without one nothing changes. In the context of a tokio runtime.
    pub fn of(screen: Option<Handle>) -> io::Result<Self> {
        use rustix::process::Signal;
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |number: Signal| signal(SignalKind::from_raw(number.as_raw()));
        let listening = screen.map(|screen| {
            Ok::<_, io::Error>(Listening {
                screen,
                stop: listen(Signal::TSTP)?,
                go_on: listen(Signal::CONT)?,
            })
        });
        Ok(Self {
            listening: listening.transpose()?,
        })
    }

    /// Obeys the next one.
    pub async fn obey(&mut self) {
        match &mut self.listening {
            Some(Listening { screen, stop, go_on }) => tokio::select! {
                _ = stop.recv() => screen.suspend(),
                _ = go_on.recv() => screen.resumed(),
            },
            None => pending().await,
        }
    }
}

#[cfg(not(unix))]
impl Jobs {
    /// There is no job control here.
    pub fn of(_: Option<Handle>) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Never.
    pub async fn obey(&mut self) {
        pending().await
    }
}

/// Stops the job that this program is part of, as the terminal does at Ctrl-Z.
pub(super) fn stop_all() {
    #[cfg(unix)]
    {
        _ = rustix::process::kill_current_process_group(rustix::process::Signal::TSTP);
    }
}

/// Stops this program, until SIGCONT. The signal goes to this very thread: one to the process may stop it only after it has
/// drawn again.
pub(super) fn stop_this() {
    #[cfg(unix)]
    {
        _ = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP);
    }
}
