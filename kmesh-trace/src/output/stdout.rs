//! Standard output with a buffer.

use std::io::{self, Write};

use crate::blocking_io::Blocking;

/// The size of the buffer in bytes. Text is written when the buffer is full or flushed.
const BLOCK: usize = 64 << 10;

/// Buffers text for standard output.
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

    /// Returns a buffer that writes to `out`, for tests.
    pub fn to(out: impl Write + Send + 'static) -> Self {
        Self {
            text: Vec::new(),
            out: Box::new(out),
        }
    }

    /// Returns the buffer. The caller appends whole lines and then calls [`Self::appended`].
    pub fn text(&mut self) -> &mut Vec<u8> {
        &mut self.text
    }

    /// Writes the buffer if it is full.
    pub fn appended(&mut self) -> io::Result<()> {
        if self.text.len() >= BLOCK { self.flush() } else { Ok(()) }
    }

    /// Writes all text in the buffer.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.text.is_empty() {
            return Ok(());
        }
        self.out.write_all(&self.text)?;
        self.text.clear();
        self.out.flush()
    }
}
