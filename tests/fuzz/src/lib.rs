//! Shared by the fuzz targets.

use kmesh_trace::capture::lines::{Lines, Step};
use kmesh_trace::capture::parse::Parser;

/// Reads a capture to its end. Checks that it ends, with no more lines than the bytes can contain.
pub fn read_capture(bytes: &[u8]) {
    let Ok(mut lines) = Lines::new(bytes) else {
        return;
    };
    let mut parser = Parser::default();
    let mut steps = 0_usize;
    loop {
        match lines.next_line() {
            Ok(Step::Line(line)) => _ = parser.parse(line),
            Ok(Step::Damage(_)) => {}
            Ok(Step::End) | Err(_) => return,
        }
        steps += 1;
        // zstd decompresses three bytes to at most 128 KiB, and deflate one byte to 1032.
        assert!(steps <= (64 << 10) * (bytes.len() + 1), "{steps} steps of {} bytes", bytes.len());
    }
}
