//! Splits a capture into lines. Detects the compression from the first bytes of the file. Skips damaged parts and
//! reports their positions. Uses bounded memory, whatever the file contains.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use flate2::bufread::GzDecoder;
use memchr::memchr;
use serde::de::IgnoredAny;

use super::Compression;

/// The first bytes of a zstd frame.
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// The first bytes of a gzip member with deflated data.
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 0x08];

/// The maximum length of a line in bytes. The labels of the two pods of a record may take most of it.
const MAX_LINE_BYTES: usize = 4 << 20;

/// The limits of the memory that one capture takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The maximum size of a frame that is decompressed as a whole, in bytes.
    frame_bytes: usize,
    /// The number of bytes in one read.
    read_bytes: usize,
}

impl Limits {
    /// The limits of a single capture. A frame that the tool writes is half as large.
    pub const SINGLE: Self = Self {
        frame_bytes: 8 << 20,
        read_bytes: 128 << 10,
    };

    /// Returns the limits of each of `count` captures that are read at the same time.
    pub fn of_each(count: usize) -> Self {
        let share = |all: usize, min, max| (all / count.max(1)).clamp(min, max);
        Self {
            frame_bytes: share(64 << 20, 64 << 10, Self::SINGLE.frame_bytes),
            read_bytes: share(4 << 20, 8 << 10, Self::SINGLE.read_bytes),
        }
    }
}

/// The text that replaces the missing end of a frame. It is never a valid line.
const CUT_OFF_MARK: &[u8] = b"\0";

/// A part of a capture that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// A damaged part of a compressed file.
    Bytes {
        /// The offset of the damaged frame in the file.
        offset: u64,
        /// The number of bytes to the next frame, or to the end of the file.
        length: u64,
    },
    /// The file ends within a frame or within a line.
    CutOff,
    /// A line that is not a line of a capture.
    Line {
        /// The number of the line, from 1. The lines of damaged frames do not count.
        number: u64,
        /// The reason why the line is skipped.
        problem: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { offset, length } => write!(f, "damaged at byte {offset}: skipped {length} bytes"),
            Self::CutOff => write!(f, "cut off at the end: the tracer was killed, or it still writes"),
            Self::Line { number, problem } => write!(f, "line {number}: skipped: {problem}"),
        }
    }
}

/// The result of [`Lines::next_line`].
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A line without its line break.
    Line(&'a [u8]),
    /// A part of the capture that was skipped.
    Damage(Damage),
    /// The end of the file.
    End,
}

/// Splits a capture into lines.
pub struct Lines<R: Read> {
    decoder: Decoder<R>,
    /// Decompressed text, which starts with lines that were already returned.
    text: Vec<u8>,
    /// The position of the next line in `text`.
    position: usize,
    /// The number of lines so far.
    number: u64,
    /// Whether the rest of the current line is skipped, because the line is too long.
    skips_line: bool,
}

impl<R: Read> Lines<R> {
    /// Reads the first bytes of `input` to find the compression. Errors are those of `input`.
    pub fn new(input: R) -> io::Result<Self> {
        Self::with_limits(input, Limits::SINGLE)
    }

    /// Reads a capture as [`Self::new`] does, within other limits.
    pub fn with_limits(input: R, limits: Limits) -> io::Result<Self> {
        Ok(Self {
            decoder: Decoder::new(Source::new(input, limits.read_bytes), limits)?,
            text: Vec::new(),
            position: 0,
            number: 0,
            skips_line: false,
        })
    }

    /// Returns the number of the last line.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns whether [`Self::next_line`] returns a line without reading the input.
    pub fn has_line(&self) -> bool {
        !self.skips_line && memchr(b'\n', &self.text[self.position..]).is_some()
    }

    /// Returns the next line or the next damage. Errors are those of the input.
    pub fn next_line(&mut self) -> io::Result<Step<'_>> {
        let mut searched = self.position;
        loop {
            if let Some(length) = memchr(b'\n', &self.text[searched..]) {
                let (start, end) = (self.position, searched + length);
                self.position = end + 1;
                searched = self.position;
                if std::mem::take(&mut self.skips_line) {
                    continue;
                }
                self.number += 1;
                return Ok(Step::Line(&self.text[start..end]));
            }
            if self.text.len() - self.position > MAX_LINE_BYTES && !self.skips_line {
                self.skips_line = true;
                self.number += 1;
                return Ok(Step::Damage(Damage::Line {
                    number: self.number,
                    problem: format!("longer than {} MiB", MAX_LINE_BYTES >> 20),
                }));
            }
            let start = if self.skips_line {
                self.text.len()
            } else {
                self.position
            };
            self.text.drain(..start);
            self.position = 0;
            searched = self.text.len();
            match self.decoder.read_text(&mut self.text)? {
                ReadResult::Text => {}
                ReadResult::Damage(damage) => return Ok(Step::Damage(damage)),
                ReadResult::End => return Ok(self.last_line()),
            }
        }
    }

    /// Returns the text after the last line break of the file.
    fn last_line(&mut self) -> Step<'_> {
        let is_skipped = std::mem::take(&mut self.skips_line);
        self.position = self.text.len();
        if self.text.is_empty() || is_skipped {
            return Step::End;
        }
        self.number += 1;
        // Saved output may lack the last line break. The line is complete if it is valid JSON.
        if serde_json::from_slice::<IgnoredAny>(&self.text).is_ok() {
            return Step::Line(&self.text);
        }
        Step::Damage(Damage::CutOff)
    }
}

/// The result of [`Decoder::read_text`].
enum ReadResult {
    Text,
    /// A part of the file was skipped.
    Damage(Damage),
    /// The end of the file.
    End,
}

/// Decompresses a file frame by frame.
struct Decoder<R: Read> {
    compression: Compression,
    limits: Limits,
    state: State<R>,
}

enum State<R: Read> {
    /// Between two frames, or in a file without compression.
    Between(Source<R>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
    Gzip(GzDecoder<Source<R>>),
    /// After the end of the file, or after an error.
    Ended,
}

impl<R: Read> State<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Between(source) => source.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Ended => Ok(0),
        }
    }

    fn into_source(self) -> Option<Source<R>> {
        match self {
            Self::Between(source) => Some(source),
            Self::Zstd(decoder) => Some(decoder.finish()),
            Self::Gzip(decoder) => Some(decoder.into_inner()),
            Self::Ended => None,
        }
    }
}

impl<R: Read> Decoder<R> {
    fn new(mut source: Source<R>, limits: Limits) -> io::Result<Self> {
        // The first write to a pipe is at least as long as a magic number, so one read is enough.
        let start = source.fill_buf()?;
        let compression = if start.starts_with(ZSTD_MAGIC) {
            Compression::Zstd
        } else if start.starts_with(GZIP_MAGIC) {
            Compression::Gzip
        } else {
            Compression::None
        };
        Ok(Self {
            compression,
            limits,
            state: State::Between(source),
        })
    }

    /// Appends text. A frame is appended as a whole after its checksum was verified. A frame of more than
    /// [`Limits::frame_bytes`] is appended in parts: one of another program, or one of many captures.
    fn read_text(&mut self, text: &mut Vec<u8>) -> io::Result<ReadResult> {
        let mut frame_offset = None;
        if let State::Between(_) = self.state
            && self.compression != Compression::None
        {
            let Some(mut source) = std::mem::replace(&mut self.state, State::Ended).into_source() else {
                return Ok(ReadResult::End);
            };
            if source.fill_buf()?.is_empty() {
                return Ok(ReadResult::End);
            }
            frame_offset = Some(source.offset);
            self.state = match self.compression {
                Compression::Gzip => State::Gzip(GzDecoder::new(source)),
                _ => State::Zstd(zstd::stream::read::Decoder::with_buffer(source)?.single_frame()),
            };
        }
        let frame_start = text.len();
        loop {
            let end = text.len();
            text.resize(end + self.limits.read_bytes, 0);
            let result = self.state.read(&mut text[end..]);
            text.truncate(end + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return self.end_frame(),
                Ok(_) if frame_offset.is_some() && text.len() - frame_start < self.limits.frame_bytes => {}
                Ok(_) => return Ok(ReadResult::Text),
                Err(error) => {
                    let Some(mut source) = std::mem::replace(&mut self.state, State::Ended).into_source() else {
                        return Err(error);
                    };
                    if source.has_failed {
                        return Err(error);
                    }
                    if error.kind() == ErrorKind::UnexpectedEof {
                        // The text before the cut is valid. The mark makes the last line invalid, which reports the
                        // cut.
                        text.extend_from_slice(CUT_OFF_MARK);
                        return Ok(ReadResult::Text);
                    }
                    // The earlier parts of a frame that was appended in parts remain.
                    text.truncate(frame_start);
                    let offset = frame_offset.unwrap_or(source.offset);
                    source.skip_to(match self.compression {
                        Compression::Gzip => GZIP_MAGIC,
                        _ => ZSTD_MAGIC,
                    })?;
                    let length = source.offset - offset;
                    self.state = State::Between(source);
                    return Ok(ReadResult::Damage(Damage::Bytes { offset, length }));
                }
            }
        }
    }

    fn end_frame(&mut self) -> io::Result<ReadResult> {
        let source = std::mem::replace(&mut self.state, State::Ended).into_source();
        match source {
            Some(source) if self.compression != Compression::None => {
                self.state = State::Between(source);
                Ok(ReadResult::Text)
            }
            _ => Ok(ReadResult::End),
        }
    }
}

/// The bytes of the file.
struct Source<R> {
    input: BufReader<R>,
    /// The number of bytes consumed so far.
    offset: u64,
    /// Bytes that come before the rest of `input`: the magic number that [`Self::skip_to`] found.
    pushed_back: &'static [u8],
    /// Whether reading `input` failed.
    has_failed: bool,
}

impl<R: Read> Source<R> {
    fn new(input: R, read_bytes: usize) -> Self {
        Self {
            input: BufReader::with_capacity(read_bytes, input),
            offset: 0,
            pushed_back: &[],
            has_failed: false,
        }
    }

    /// Consumes all bytes before the next `magic`, or all bytes if there is none.
    fn skip_to(&mut self, magic: &'static [u8]) -> io::Result<()> {
        let mut matched = 0;
        while matched < magic.len() {
            let Some(&byte) = self.fill_buf()?.first() else {
                return Ok(());
            };
            self.consume(1);
            // The first byte of a magic number does not occur a second time in it.
            matched = if byte == magic[matched] {
                matched + 1
            } else {
                usize::from(byte == magic[0])
            };
        }
        self.pushed_back = magic;
        self.offset -= magic.len() as u64;
        Ok(())
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = self.fill_buf()?;
        let length = filled.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

impl<R: Read> BufRead for Source<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if !self.pushed_back.is_empty() {
            return Ok(self.pushed_back);
        }
        let has_failed = &mut self.has_failed;
        self.input.fill_buf().inspect_err(|_| *has_failed = true)
    }

    fn consume(&mut self, length: usize) {
        self.offset += length as u64;
        if self.pushed_back.is_empty() {
            self.input.consume(length);
        } else {
            self.pushed_back = &self.pushed_back[length..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::compression::Compressor;
    use super::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

    fn line(number: usize) -> String {
        format!("{{\"line\":{number}}}\n")
    }

    /// Returns the bytes of `count` lines in frames of ten lines, and the offset of each frame.
    fn frames(compression: Compression, count: usize) -> (Vec<u8>, Vec<usize>) {
        let mut compressor = Compressor::new(compression).unwrap();
        let (mut bytes, mut starts) = (Vec::new(), Vec::new());
        for number in 0..count {
            if number % 10 == 0 {
                compressor.end_frame(&mut bytes).unwrap();
                starts.push(bytes.len());
            }
            compressor.write(line(number).as_bytes(), &mut bytes).unwrap();
        }
        compressor.end_frame(&mut bytes).unwrap();
        (bytes, starts)
    }

    fn read(bytes: &[u8]) -> (Vec<String>, Vec<Damage>) {
        let mut lines = Lines::new(bytes).unwrap();
        let (mut valid, mut damage) = (Vec::new(), Vec::new());
        loop {
            match lines.next_line().unwrap() {
                Step::Line(line) => valid.push(format!("{}\n", String::from_utf8_lossy(line))),
                Step::Damage(one) => damage.push(one),
                Step::End => return (valid, damage),
            }
        }
    }

    #[test]
    fn every_compression_returns_the_written_lines() {
        for compression in ALL {
            let (bytes, _) = frames(compression, 35);
            let all: Vec<_> = (0..35).map(line).collect();
            assert_eq!(read(&bytes), (all, vec![]), "{compression:?}");
        }
        assert_eq!(read(b""), (vec![], vec![]));
        assert_eq!(read(b"{}"), (vec!["{}\n".to_owned()], vec![]));
    }

    #[test]
    fn write_of_nothing_starts_no_frame() {
        for compression in ALL {
            let mut compressor = Compressor::new(compression).unwrap();
            let mut bytes = Vec::new();
            compressor.write(line(1).as_bytes(), &mut bytes).unwrap();
            compressor.end_frame(&mut bytes).unwrap();
            compressor.write(b"", &mut bytes).unwrap();
            compressor.end_frame(&mut bytes).unwrap();
            assert_eq!(read(&bytes), (vec![line(1)], vec![]), "{compression:?}");
        }
    }

    /// A damaged length may span up to 128 KiB, the maximum of a block. In this test that can be all that follows.
    #[test]
    fn damaged_frame_does_not_affect_earlier_frames() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let (intact, starts) = frames(compression, 50);
            let all: Vec<_> = (0..50).map(line).collect();
            let mut one_frame_lost = 0;
            // The first 10 bytes are the header of a gzip member, which has unused bytes.
            for at in starts[2] + 10..starts[3] {
                let mut bytes = intact.clone();
                bytes[at] ^= 0x55;
                let (lines, damage) = read(&bytes);
                assert!(lines.starts_with(&all[..20]), "{compression:?}, byte {at}: {lines:?}");
                assert_ne!(damage, [], "{compression:?}, byte {at}");
                one_frame_lost += usize::from(lines == [&all[..20], &all[30..]].concat());
            }
            assert!(
                one_frame_lost * 2 > starts[3] - starts[2] - 10,
                "{compression:?}: {one_frame_lost}"
            );
        }
    }

    #[test]
    fn cut_off_capture_has_every_whole_line() {
        for compression in ALL {
            let mut compressor = Compressor::new(compression).unwrap();
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for number in 0..20 {
                compressor.write(line(number).as_bytes(), &mut bytes).unwrap();
                ends.push(bytes.len());
            }
            for length in 1..bytes.len() {
                let whole = ends.iter().filter(|end| **end <= length).count();
                let (lines, damage) = read(&bytes[..length]);
                assert!(lines.len() >= whole, "{compression:?}, {length} bytes: {lines:?}");
                let is_whole_line = ends.contains(&length) || ends.contains(&(length + 1));
                if length > 16 && (compression != Compression::None || !is_whole_line) {
                    assert_eq!(damage, [Damage::CutOff], "{compression:?}, {length} bytes");
                }
            }
        }
    }

    #[test]
    fn long_line_is_skipped_and_reported_with_its_number() {
        let mut bytes = line(0).into_bytes();
        bytes.resize(bytes.len() + 3 * MAX_LINE_BYTES, b'x');
        bytes.push(b'\n');
        bytes.extend(line(2).as_bytes());
        let (lines, damage) = read(&bytes);
        assert_eq!(lines, [line(0), line(2)]);
        assert_eq!(damage[0].to_string(), "line 2: skipped: longer than 4 MiB");
    }
}
