//! Captures: what a run told, kept in a file, to be told again later and elsewhere.
//!
//! A capture holds the records that passed the filters, with their names; what was lost; summaries; how far the telling had
//! come in between; and what is the same for the whole run. It is written through, a block at least every second, so that a
//! tracer that is killed loses no more than its last second. Here is the format, version 1.
//!
//! # The file
//!
//! Numbers of fixed width are little-endian. A file is a header and blocks, each behind a frame:
//!
//! | header | | frame | |
//! |---|---|---|---|
//! | 8 bytes | `89 4B 4D 54 0D 0A 1A 0A`: no text survives as this | 4 bytes | `F5 4B 4D 42` |
//! | u16 | version | u32 | the block's number, from 0 |
//! | u16 | length of what follows the checksum | u32 | length of the block, at most 4 MiB |
//! | u32 | CRC-32 of all the rest of the header | u32 | length of what stands here |
//! | | JSON: `node`, `kernel`, `version` of the tool, `began_ns` (when tracing began, ns since 1970 UTC, the clock of all times), `part` (number of a rotated file), `closes_before` (closes in the parts before) | u32 | CRC-32 of what stands here |
//! | | | u32 | CRC-32 of the frame so far |
//!
//! Behind its frame stands the block, compressed as one LZ4 block; or as it is, where both lengths are equal. Both checksums
//! of a frame start from the header's: so no block of another capture can be taken for one of this.
//!
//! A damaged block costs no other: a sound frame tells where the next one begins, and where there is none, a reader looks
//! for the next that is sound.
//!
//! # The block
//!
//! All numbers are LEB128 of 64 bits here; signed ones are zigzagged first. A block begins with its chapter and with how many
//! strings, comms, pods and Services the chapter has defined before it. Then come items, each behind its tag:
//!
//! | tag | item |
//! |---|---|
//! | 1 | string: length, UTF-8 |
//! | 2 | comm: length, bytes |
//! | 3 | pod: uid, namespace, name, workload's kind and name, service account, node, host network (0 not known, 1 no, 2 yes), number of labels and one, key and value of each |
//! | 4 | Service: namespace, name, host |
//! | 5 | lost: time, records, records in total, reasons |
//! | 6 | summary: time, its numbers, reasons |
//! | 7 | all that happened before this time has been told |
//! | 8 | shape: see [`shape`] |
//! | 9 | the end: 0, or 1 where the next part goes on |
//! | 16 + n | record of the block's nth shape |
//!
//! Each string, comm, pod and Service is written once a chapter, before it is first needed, and referred to by its number,
//! from 1; 0 is none. A new chapter begins when there are too many of them, or after some megabytes: this bounds the memory of
//! both sides, and what the loss of a block may cost.
//!
//! A record is the signed difference of its time and that of its cookie from the last record's of the block (at first 0), a mask, and for each
//! bit of the mask, from the lowest, the signed difference of that field ([`row`]) from the last one of the same shape in the block.

mod decode;
mod encode;
mod file;
mod frame;
mod read;
pub mod row;
pub mod shape;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod varint;

pub use file::{Keep, KeepError, Target};
pub use frame::{Header, NotACapture};
pub use read::{Damage, Item, Reader};

/// The version of the format that is written, and the newest that is read.
const VERSION: u16 = 1;
/// The most bytes of a block.
const MAX_BLOCK: usize = 4 << 20;
/// The most entries of one table in a chapter.
const MAX_ENTRIES: usize = 1 << 16;
/// The most labels of all pods of a chapter.
const MAX_LABELS: usize = 1 << 18;
/// The most bytes of definitions in a chapter: two blocks of the largest.
const MAX_DEFINITIONS: usize = 2 * MAX_BLOCK;
/// The most shapes in a block. There are some hundred that can happen.
const MAX_SHAPES: usize = 1 << 10;

/// Tags of items.
mod tag {
    pub const STRING: u64 = 1;
    pub const COMM: u64 = 2;
    pub const POD: u64 = 3;
    pub const SERVICE: u64 = 4;
    pub const LOST: u64 = 5;
    pub const SUMMARY: u64 = 6;
    pub const COMPLETE: u64 = 7;
    pub const SHAPE: u64 = 8;
    pub const END: u64 = 9;
    pub const RECORD: u64 = 16;
}
