//! Job control: gives the terminal back before the process stops, and takes it again when the process resumes.

use std::future::pending;
use std::io;

use super::SignalHandle;

/// Handles SIGTSTP and SIGCONT.
pub struct JobControl {
    #[cfg(unix)]
    signals: Option<Signals>,
}

#[cfg(unix)]
struct Signals {
    screen: SignalHandle,
    stop: tokio::signal::unix::Signal,
    resume: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl JobControl {
    /// Handles the signals for `screen`, if there is one. Must be called in the context of a tokio runtime.
    pub fn new(screen: Option<SignalHandle>) -> io::Result<Self> {
        use rustix::process::Signal;
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |number: Signal| signal(SignalKind::from_raw(number.as_raw()));
        let signals = screen.map(|screen| {
            Ok::<_, io::Error>(Signals {
                screen,
                stop: listen(Signal::TSTP)?,
                resume: listen(Signal::CONT)?,
            })
        });
        Ok(Self {
            signals: signals.transpose()?,
        })
    }

    /// Waits for the next signal and handles it.
    pub async fn handle_next(&mut self) {
        match &mut self.signals {
            Some(Signals { screen, stop, resume }) => tokio::select! {
                _ = stop.recv() => screen.suspend(),
                _ = resume.recv() => screen.resumed(),
            },
            None => pending().await,
        }
    }
}

#[cfg(not(unix))]
impl JobControl {
    /// Does nothing: this system has no job control.
    pub fn new(_: Option<SignalHandle>) -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits forever, because there are no signals.
    pub async fn handle_next(&mut self) {
        pending().await
    }
}

/// Stops the job of this process, as the terminal does at Ctrl-Z.
pub(super) fn stop_job() {
    #[cfg(unix)]
    {
        _ = rustix::process::kill_current_process_group(rustix::process::Signal::TSTP);
    }
}

/// Stops this process until SIGCONT. The signal goes to this thread: a signal to the process may stop it only after the
/// thread has drawn again.
pub(super) fn stop_process() {
    #[cfg(unix)]
    {
        _ = signal_hook::low_level::raise(signal_hook::consts::SIGSTOP);
    }
}
