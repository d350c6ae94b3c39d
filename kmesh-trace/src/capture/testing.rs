//! Captures in memory for tests.

use super::{Capture, Compression};
use crate::output::{Sink, testing};
use crate::record::Header;

pub(crate) fn header() -> Header {
    Header {
        info: testing::info(),
        start: testing::TIME,
        part: 0,
        closes_before: 0,
    }
}

/// Returns the bytes of a capture that `fill` writes.
pub(crate) fn capture(compression: Compression, fill: impl FnOnce(&mut Capture)) -> Vec<u8> {
    let out = testing::Shared::default();
    let mut capture = Capture::to(out.clone(), compression, header()).unwrap();
    fill(&mut capture);
    capture.finish().unwrap();
    out.bytes()
}
