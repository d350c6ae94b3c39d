//! Captures: the JSON lines of a run in a file, to be replayed later and elsewhere.
//!
//! A capture is the output of `-o json` with a [`Header`] as its first line: every event that passes the filters, the `lost`
//! lines and the `summary`. The name of the file decides about [`Compression`]. [`file`] writes captures, [`lines`] reads
//! lines of any compression, and [`parse`] makes records of lines.

mod compression;
mod file;
pub mod lines;
pub mod parse;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use compression::Compression;
pub use file::{Capture, CaptureError, Target};

use crate::record::{RunInfo, WallTime};

/// The first line of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The node, its kernel and the version of the tracer.
    pub info: RunInfo,
    /// When tracing began. An update at this very time is a baseline: it says what a connection had moved before.
    pub start: WallTime,
    /// The number of the file among those of a rotated capture, from 0.
    pub part: u32,
    /// The number of closes in the parts before this one.
    pub closes_before: u64,
}

impl Header {
    /// Returns the header of a capture that has none: saved `-o json` output.
    pub fn unknown() -> Self {
        let unknown = || "unknown".to_owned();
        Self {
            info: RunInfo {
                node: unknown(),
                kernel: unknown(),
                version: unknown(),
            },
            start: WallTime(0),
            part: 0,
            closes_before: 0,
        }
    }
}
