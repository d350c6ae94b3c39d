//! Captures: the JSON lines of a run in a file, to be replayed later and elsewhere.
//!
//! A capture is the output of `-o json` with a [`Header`](crate::record::Header) as its first line: every event that passes the filters, the `lost`
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
