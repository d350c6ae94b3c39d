//! Sessions: a live trace, a replay, and a trace of the nodes of a cluster. All feed the same engine. A session
//! connects the stages of the picture in the crate's documentation, and owns threads, signals, limits and the exit
//! status.

#[cfg(target_os = "linux")]
pub mod account;
pub mod diff;
pub mod exit;
#[cfg(target_os = "linux")]
pub mod live;
#[cfg(target_os = "linux")]
pub mod node_trace;
#[cfg(unix)]
pub mod nodes;
pub mod outputs;
#[cfg(target_os = "linux")]
pub mod pipeline;
pub mod replay;
pub mod signals;
#[cfg(target_os = "linux")]
pub mod writer;

use std::io::{self, ErrorKind};

use anyhow::{Context as _, Error, Result, anyhow};
use tokio::runtime::{Builder, Runtime};

use crate::capture::CaptureError;
#[cfg(unix)]
use crate::config::Verbosity;
use crate::engine::Engine;
#[cfg(unix)]
use crate::names::sources::StatusMessage;
#[cfg(unix)]
use crate::output::stderr::status;

use self::exit::Exit;

/// Returns the event loop of a session, which runs on the thread that calls it.
fn event_loop() -> Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

/// Prints the status message of a name source.
#[cfg(unix)]
fn print_status(message: &StatusMessage, verbosity: Verbosity) {
    match message {
        StatusMessage::Note(_) if verbosity == Verbosity::Quiet => {}
        StatusMessage::Note(text) | StatusMessage::Error(text) => status(text),
    }
}

/// Ends a run after the error of a sink. If standard output failed, the capture is complete up to here.
fn end_after(error: io::Error, engine: &mut Engine) -> Result<Exit> {
    let is_closed = error.kind() == ErrorKind::BrokenPipe;
    if is_closed || !is_of_capture(&error) {
        // This fails for standard output itself.
        _ = engine.finish();
    }
    // The reader of standard output closed it, which is a normal end.
    if is_closed { Ok(Exit::Ok) } else { Err(explain(error)) }
}

fn is_of_capture(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<CaptureError>())
}

/// Returns the error message for an error of a sink.
fn explain(error: io::Error) -> Error {
    if is_of_capture(&error) {
        return error.into();
    }
    anyhow!("cannot write to standard output: {error}\n  try: a file system with free space, or -o none")
}
