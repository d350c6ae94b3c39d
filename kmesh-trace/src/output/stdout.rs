//! Standard output, written in large pieces.

use std::io::{self, Write};

use crate::blocking_io::Blocking;

/// The number of bytes that are written at once, unless a flush comes before.
const BLOCK: usize = 64 << 10;

/// Collects text for standard output.
pub struct Stdout {
    text: Vec<u8>,
    out: Box<dyn Write + Send>,
}

impl Stdout {
    /// Returns the standard output of this process.
    #[expect(clippy::new_without_default, reason = "a process has only one")]
    pub fn new() -> Self {
        Self::to(Blocking(io::stdout()))
    }

    /// Returns a stand-in for standard output.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self {
            text: Vec::new(),
            out: Box::new(out),
        }
    }

    /// Returns the text that is not written yet, for a whole number of lines to be appended. [`Self::appended`] follows.
    pub fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Writes the text if there is much of it.
    pub fn appended(&mut self) -> io::Result<()> {
        if self.text.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Writes the text.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        self.out.write_all(&self.text)?;
        self.text.clear();
        self.out.flush()
    }
}
