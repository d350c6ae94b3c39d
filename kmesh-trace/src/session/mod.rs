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

use std::io;

use anyhow::{Error, anyhow};

use crate::capture::CaptureError;

/// Returns the error message for an error of a sink.
fn explain(error: io::Error) -> Error {
    if error.get_ref().is_some_and(|inner| inner.is::<CaptureError>()) {
        return error.into();
    }
    anyhow!("cannot write to standard output: {error}\n  try: a file system with free space, or -o none")
}
