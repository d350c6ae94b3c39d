//! The outer half of the format: the header, and blocks behind frames. Finds the sound ones in whatever it is given.

use std::io::{self, ErrorKind, Read};

use crc32fast::Hasher;
use serde::{Deserialize, Serialize};

use super::{MAX_BLOCK, VERSION};
use crate::record::{RunInfo, WallTime};

const MAGIC: [u8; 8] = *b"\x89KMT\r\n\x1a\n";
const MARKER: [u8; 4] = *b"\xf5KMB";
/// Before the JSON of a header.
const FIXED: usize = 16;
const FRAME: usize = 24;
/// What is read at once, at least.
const READ: usize = 128 << 10;

/// What is the same for the whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the run that was captured.
    pub info: RunInfo,
    /// When tracing began.
    pub began: WallTime,
    /// From 0: how many rotated files of this run came before.
    pub part: u32,
    /// Closes in those.
    pub closes_before: u64,
}

/// The JSON of a header. Members may be added.
#[derive(Deserialize, Serialize)]
struct About {
    node: String,
    kernel: String,
    version: String,
    began_ns: i64,
    part: u32,
    closes_before: u64,
}

impl Header {
    /// As it stands in the file, and what the checksums of its blocks start from.
    pub(super) fn encode(&self) -> io::Result<(Vec<u8>, u32)> {
        let about = serde_json::to_vec(&About {
            node: self.info.node.clone(),
            kernel: self.info.kernel.clone(),
            version: self.info.version.clone(),
            began_ns: self.began.0,
            part: self.part,
            closes_before: self.closes_before,
        })?;
        let length = u16::try_from(about.len())
            .map_err(|_| io::Error::new(ErrorKind::InvalidInput, "the node's name is too long"))?;
        let mut bytes = Vec::with_capacity(FIXED + about.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        let check = header_check(&bytes, &about);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes.extend_from_slice(&about);
        Ok((bytes, check))
    }
}

/// Why a file is not read at all.
#[derive(Debug, thiserror::Error)]
pub enum NotACapture {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It begins as something else.
    #[error("it is no capture of kmesh-trace{0}")]
    Foreign(&'static str),
    /// Its format is of a later version.
    #[error(
        "it is of format {0}, which a later kmesh-trace wrote; this one reads formats up to {VERSION}\n  try: a later kmesh-trace"
    )]
    Newer(u16),
    /// The header is cut off, or not what was written.
    #[error("its header is damaged, so which node it is of is not known")]
    Damaged,
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
}

fn header_check(before: &[u8], about: &[u8]) -> u32 {
    let mut check = Hasher::new();
    check.update(before);
    check.update(about);
    check.finalize()
}

fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    let mut check = Hasher::new_with_initial(seed);
    check.update(bytes);
    check.finalize()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Appends a block behind its frame. An error means that it is larger than blocks may be.
pub(super) fn encode(block: &[u8], number: u32, seed: u32, out: &mut Vec<u8>) -> io::Result<()> {
    if block.len() > MAX_BLOCK {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "a record has more names than a capture can hold",
        ));
    }
    let frame = out.len();
    let body = frame + FRAME;
    out.resize(body + lz4_flex::block::get_maximum_output_size(block.len()), 0);
    let stored = match lz4_flex::block::compress_into(block, &mut out[body..]) {
        Ok(length) if length < block.len() => length,
        _ => {
            out[body..body + block.len()].copy_from_slice(block);
            block.len()
        }
    };
    out.truncate(body + stored);
    let body_check = checksum(seed, &out[body..]);
    let mut fields = [0; FRAME];
    fields[..4].copy_from_slice(&MARKER);
    for (field, value) in fields[4..20]
        .chunks_exact_mut(4)
        .zip([number, block.len() as u32, stored as u32, body_check])
    {
        field.copy_from_slice(&value.to_le_bytes());
    }
    let frame_check = checksum(seed, &fields[..20]);
    fields[20..].copy_from_slice(&frame_check.to_le_bytes());
    out[frame..body].copy_from_slice(&fields);
    Ok(())
}

/// What a frame tells.
struct Frame {
    number: u32,
    length: usize,
    stored: usize,
    check: u32,
}

impl Frame {
    /// The frame at the front of `bytes`, if it is a sound one.
    fn at(bytes: &[u8], seed: u32) -> Option<Self> {
        let bytes = bytes.get(..FRAME)?;
        if bytes[..4] != MARKER || checksum(seed, &bytes[..20]) != u32_at(bytes, 20) {
            return None;
        }
        let (length, stored) = (u32_at(bytes, 8) as usize, u32_at(bytes, 12) as usize);
        // A checksum is no seal: who makes a frame by hand may claim anything.
        (length <= MAX_BLOCK && stored <= length).then_some(Self {
            number: u32_at(bytes, 4),
            length,
            stored,
            check: u32_at(bytes, 16),
        })
    }
}

/// What comes next in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// This block, where it stands in the file; its bytes are in the buffer given.
    Block {
        /// Its number.
        number: u32,
        /// Of its frame.
        at: u64,
    },
    /// Bytes that are no sound block.
    Damage {
        /// The first of them.
        at: u64,
        /// How many.
        length: u64,
        /// It is the file's end, and a block could begin there.
        cut_off: bool,
    },
    /// The file has ended.
    End,
}

/// Reads blocks, in bounded memory whatever lengths are claimed.
pub(super) struct Frames<R> {
    from: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Of `start` in the file.
    offset: u64,
    seed: u32,
    ended: bool,
}

impl<R: Read> Frames<R> {
    /// Reads the header.
    pub(super) fn new(from: R) -> Result<(Self, Header), NotACapture> {
        let mut frames = Self {
            from,
            buffer: vec![0; READ],
            start: 0,
            end: 0,
            offset: 0,
            seed: 0,
            ended: false,
        };
        let header = frames.header()?;
        Ok((frames, header))
    }

    fn header(&mut self) -> Result<Header, NotACapture> {
        let whole = self.have(FIXED)?;
        let bytes = self.bytes();
        if bytes.is_empty() {
            return Err(NotACapture::Empty);
        }
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(NotACapture::Foreign(guess(bytes)));
        }
        if !whole {
            return Err(NotACapture::Damaged);
        }
        let (version, length, check) = (u16_at(bytes, 8), usize::from(u16_at(bytes, 10)), u32_at(bytes, 12));
        if version > VERSION {
            return Err(NotACapture::Newer(version));
        }
        if !self.have(FIXED + length)? {
            return Err(NotACapture::Damaged);
        }
        let (before, about) = (&self.bytes()[..12], &self.bytes()[FIXED..FIXED + length]);
        if header_check(before, about) != check {
            return Err(NotACapture::Damaged);
        }
        let about: About = serde_json::from_slice(about).map_err(|_| NotACapture::Damaged)?;
        self.seed = check;
        self.skip(FIXED + length);
        Ok(Header {
            info: RunInfo {
                node: about.node,
                kernel: about.kernel,
                version: about.version,
            },
            began: WallTime(about.began_ns),
            part: about.part,
            closes_before: about.closes_before,
        })
    }

    /// The next sound block or stretch of damage; a block's bytes go to `block`. Errors are those of the file.
    pub(super) fn next(&mut self, block: &mut Vec<u8>) -> io::Result<Step> {
        let at = self.offset;
        if !self.have(FRAME)? {
            return Ok(self.rest_is_damaged(at));
        }
        let Some(frame) = Frame::at(self.bytes(), self.seed) else {
            return self.find(at);
        };
        if !self.have(FRAME + frame.stored)? {
            return Ok(self.rest_is_damaged(at));
        }
        let body = &self.bytes()[FRAME..FRAME + frame.stored];
        block.resize(frame.length, 0);
        let sound = checksum(self.seed, body) == frame.check
            && if frame.stored == frame.length {
                block.copy_from_slice(body);
                true
            } else {
                lz4_flex::block::decompress_into(body, block).is_ok_and(|length| length == frame.length)
            };
        self.skip(FRAME + frame.stored);
        Ok(if sound {
            let number = frame.number;
            Step::Block { number, at }
        } else {
            Step::Damage {
                at,
                length: self.offset - at,
                cut_off: false,
            }
        })
    }

    /// Goes to the next sound frame. Its block is looked at when its turn comes, so each byte is looked at a bounded number of
    /// times.
    fn find(&mut self, at: u64) -> io::Result<Step> {
        self.skip(1);
        loop {
            if !self.have(FRAME)? {
                return Ok(self.rest_is_damaged(at));
            }
            let bytes = self.bytes();
            // The last of them cannot be told to be no marker yet.
            let possible = bytes.len() - (MARKER.len() - 1);
            match bytes.windows(MARKER.len()).position(|window| window == MARKER) {
                Some(found) => {
                    self.skip(found);
                    if !self.have(FRAME)? {
                        return Ok(self.rest_is_damaged(at));
                    }
                    if Frame::at(self.bytes(), self.seed).is_some() {
                        return Ok(Step::Damage {
                            at,
                            length: self.offset - at,
                            cut_off: false,
                        });
                    }
                    self.skip(1);
                }
                None => self.skip(possible),
            }
        }
    }

    fn rest_is_damaged(&mut self, at: u64) -> Step {
        // From here on, there is no frame whose block is whole.
        self.skip(self.end - self.start);
        match self.offset - at {
            0 => Step::End,
            length => Step::Damage {
                at,
                length,
                cut_off: true,
            },
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Whether there are so many bytes, of which as many as needed are read.
    fn have(&mut self, count: usize) -> io::Result<bool> {
        while self.end - self.start < count && !self.ended {
            if self.start + count > self.buffer.len() {
                self.buffer.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if count > self.buffer.len() {
                // What is claimed is given as it comes.
                let grown = (self.buffer.len() * 2).min(count);
                self.buffer.resize(grown, 0);
            }
            match self.from.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.ended = true,
                Ok(got) => self.end += got,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.end - self.start >= count)
    }
}

/// What a foreign file may be.
fn guess(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x1f, 0x8b, ..] => ": it is compressed by gzip\n  try: gzip -dc FILE | kmesh-trace --read -",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ": it is compressed by zstd\n  try: zstd -dc FILE | kmesh-trace --read -",
        [b'{', ..] => ": it looks like JSON, which --output json printed; a capture is what --write makes",
        [0xd4, 0xc3, 0xb2, 0xa1, ..] | [0xa1, 0xb2, 0xc3, 0xd4, ..] | [0x0a, 0x0d, 0x0d, 0x0a, ..] => {
            ": it is a capture of packets; one of connections is what --write makes"
        }
        _ => "; a capture is what --write makes",
    }
}
