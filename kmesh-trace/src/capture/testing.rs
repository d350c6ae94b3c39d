//! Captures in memory, for tests.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::{Header, Keep};
use crate::render::testing;

/// A writer whose bytes can be had afterwards.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn header() -> Header {
    Header {
        info: testing::info(),
        began: testing::TIME,
        part: 0,
        closes_before: 0,
    }
}

/// A capture of what `fill` puts in.
pub(crate) fn capture(fill: impl FnOnce(&mut Keep)) -> Vec<u8> {
    let out = Shared::default();
    let mut keep = Keep::to(out.clone(), header()).unwrap();
    fill(&mut keep);
    keep.end().unwrap();
    out.bytes()
}
