//! What the fuzz targets have in common.

use kmesh_trace::capture::lines::{Lines, Step};
use kmesh_trace::capture::parse::Parser;

/// Reads a capture to its end, whatever the bytes are: it ends, and has no more lines than the bytes can hold.
pub fn read(bytes: &[u8]) {
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
        // zstd makes at most 128 KiB of three bytes, and deflate 1032 of one.
        assert!(steps <= (64 << 10) * (bytes.len() + 1), "{steps} steps of {} bytes", bytes.len());
    }
}
