//! What the fuzz targets have in common.

use std::io::Cursor;

use kmesh_trace::capture::{Item, Reader};

/// Reads a capture to its end, whatever stands there: it ends, and no more is told than the file could hold.
pub fn read(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(Cursor::new(bytes)) else {
        return;
    };
    let mut items = 0_usize;
    while let Ok(Some(item)) = reader.next_item() {
        items += 1;
        // An item is a byte at least, and a compressed block at most 255 times what stands for it.
        assert!(
            items <= 300 * bytes.len() + 16,
            "{items} items of {} bytes",
            bytes.len()
        );
        if matches!(item, Item::End { .. }) {
            break;
        }
    }
}
