//! Captures: files with the JSON lines of a run, which can be replayed later on any machine.
//!
//! A capture is the output of `-o json` with a [`Header`](crate::record::Header) as its first line. It contains every
//! event that passes the filters, the `lost` lines and the `summary`. The extension of the file name selects the
//! [`Compression`]. [`file`] writes captures, [`lines`] decompresses their lines, and [`parse`] parses lines.

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
