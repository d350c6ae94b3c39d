//! Lines of a capture, whatever its compression, which is found by content. Damage is skipped and reported with its place;
//! memory is bounded whatever the file holds.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use flate2::bufread::GzDecoder;
use memchr::memchr;
use serde::de::IgnoredAny;

use super::Compression;

/// The first bytes of a zstd frame.
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// The first bytes of a gzip member with deflated data.
const GZIP: &[u8] = &[0x1f, 0x8b, 0x08];

/// The maximum length of a line, bytes. The names of a record's two pods may take most of that.
const MAX_LINE: usize = 4 << 20;

/// The maximum size of a frame that is decompressed as a whole: twice what a capture has, bytes.
const MAX_FRAME: usize = 8 << 20;
/// The number of bytes that are read at once.
const CHUNK: usize = 128 << 10;

/// Stands in place of the missing end of a frame. No line is like this.
const TORN: &[u8] = b"\0";

/// A part of a capture that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Compressed data that is not sound.
    Bytes {
        /// The offset in the file at which decompression failed.
        at: u64,
        /// The number of bytes up to the next frame that is sound, or to the end of the file.
        length: u64,
    },
    /// The file ends in the middle of a frame, or in the middle of a line.
    CutOff,
    /// A line that is not one of a capture.
    Line {
        /// The number of the line, from 1. Lines that were damaged together with their frame do not count.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { at, length } => write!(f, "damaged at byte {at}: skipped {length} bytes"),
            Self::CutOff => write!(f, "cut off at its end: its tracer was killed, or still writes"),
            Self::Line { number, problem } => write!(f, "line {number}: skipped: {problem}"),
        }
    }
}

/// What [`Lines::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A line without its line break.
    Line(&'a [u8]),
    /// Something was skipped.
    Damage(Damage),
    /// The end of the file.
    End,
}

/// Splits a capture into lines.
pub struct Lines<R: Read> {
    decoder: Decoder<R>,
    /// Decompressed text: what was returned, then what follows.
    text: Vec<u8>,
    /// Where in the text the next line begins.
    at: usize,
    /// The number of lines so far.
    number: u64,
    /// The rest of this line is skipped, because it is too long.
    skips_line: bool,
}

impl<R: Read> Lines<R> {
    /// Begins to read. Errors are those of `input`.
    pub fn new(input: R) -> io::Result<Self> {
        Ok(Self {
            decoder: Decoder::new(Source::new(input))?,
            text: Vec::new(),
            at: 0,
            number: 0,
            skips_line: false,
        })
    }

    /// Returns the number of the last line.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Returns the next line, or what was skipped in place of it. Errors are those of the input.
    pub fn next_line(&mut self) -> io::Result<Step<'_>> {
        let mut searched = self.at;
        loop {
            if let Some(length) = memchr(b'\n', &self.text[searched..]) {
                let (begin, end) = (self.at, searched + length);
                self.at = end + 1;
                searched = self.at;
                if std::mem::take(&mut self.skips_line) {
                    continue;
                }
                self.number += 1;
                return Ok(Step::Line(&self.text[begin..end]));
            }
            if self.text.len() - self.at > MAX_LINE && !self.skips_line {
                self.skips_line = true;
                self.number += 1;
                return Ok(Step::Damage(Damage::Line {
                    number: self.number,
                    problem: format!("it is longer than {} MiB", MAX_LINE >> 20),
                }));
            }
            let begin = if self.skips_line { self.text.len() } else { self.at };
            self.text.drain(..begin);
            self.at = 0;
            searched = self.text.len();
            match self.decoder.read_text(&mut self.text)? {
                Text::More => {}
                Text::Damage(damage) => return Ok(Step::Damage(damage)),
                Text::End => return Ok(self.end()),
            }
        }
    }

    /// Returns what is left at the end of the file.
    fn end(&mut self) -> Step<'_> {
        let is_skipped = std::mem::take(&mut self.skips_line);
        self.at = self.text.len();
        if self.text.is_empty() || is_skipped {
            return Step::End;
        }
        self.number += 1;
        // A file without a line break at its end is complete if its last line is.
        if serde_json::from_slice::<IgnoredAny>(&self.text).is_ok() {
            return Step::Line(&self.text);
        }
        Step::Damage(Damage::CutOff)
    }
}

/// What [`Decoder::read_text`] did.
enum Text {
    /// It appended text.
    More,
    /// It skipped a part of the file.
    Damage(Damage),
    /// Nothing follows.
    End,
}

/// Decompresses a file, frame after frame.
struct Decoder<R: Read> {
    compression: Compression,
    state: State<R>,
}

enum State<R: Read> {
    Between(Source<R>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
    Gzip(GzDecoder<Source<R>>),
    /// The end was reached, or a call failed.
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
    fn new(mut source: Source<R>) -> io::Result<Self> {
        // A short read at the beginning of a pipe is one of a whole write: nothing writes less than a magic number.
        let begin = source.fill_buf()?;
        let compression = if begin.starts_with(ZSTD) {
            Compression::Zstd
        } else if begin.starts_with(GZIP) {
            Compression::Gzip
        } else {
            Compression::None
        };
        Ok(Self {
            compression,
            state: State::Between(source),
        })
    }

    /// Appends text. A frame is appended whole, so that nothing of it counts before its checksum was compared; one of more
    /// than [`MAX_FRAME`], which another program made, is appended in parts.
    fn read_text(&mut self, text: &mut Vec<u8>) -> io::Result<Text> {
        let mut at = None;
        if let State::Between(_) = self.state
            && self.compression != Compression::None
        {
            let Some(mut source) = std::mem::replace(&mut self.state, State::Ended).into_source() else {
                return Ok(Text::End);
            };
            if source.fill_buf()?.is_empty() {
                return Ok(Text::End);
            }
            at = Some(source.offset);
            self.state = match self.compression {
                Compression::Gzip => State::Gzip(GzDecoder::new(source)),
                _ => State::Zstd(zstd::stream::read::Decoder::with_buffer(source)?.single_frame()),
            };
        }
        let begin = text.len();
        loop {
            let end = text.len();
            text.resize(end + CHUNK, 0);
            let result = self.state.read(&mut text[end..]);
            text.truncate(end + *result.as_ref().unwrap_or(&0));
            match result {
                Ok(0) => return self.end_frame(),
                Ok(_) if at.is_some() && text.len() - begin < MAX_FRAME => {}
                Ok(_) => return Ok(Text::More),
                Err(error) => {
                    let Some(mut source) = std::mem::replace(&mut self.state, State::Ended).into_source() else {
                        return Err(error);
                    };
                    if source.has_failed {
                        return Err(error);
                    }
                    if error.kind() == ErrorKind::UnexpectedEof {
                        // What a tracer wrote before it was killed is sound. This is reported when the text has been read.
                        text.extend_from_slice(TORN);
                        return Ok(Text::More);
                    }
                    // A frame that was appended in parts is damaged from here on.
                    text.truncate(begin);
                    let at = at.unwrap_or(source.offset);
                    source.skip_to(match self.compression {
                        Compression::Gzip => GZIP,
                        _ => ZSTD,
                    })?;
                    let length = source.offset - at;
                    self.state = State::Between(source);
                    return Ok(Text::Damage(Damage::Bytes { at, length }));
                }
            }
        }
    }

    fn end_frame(&mut self) -> io::Result<Text> {
        let source = std::mem::replace(&mut self.state, State::Ended).into_source();
        match source {
            Some(source) if self.compression != Compression::None => {
                self.state = State::Between(source);
                Ok(Text::More)
            }
            _ => Ok(Text::End),
        }
    }
}

/// The bytes of the file.
struct Source<R> {
    input: BufReader<R>,
    /// The number of bytes consumed so far.
    offset: u64,
    /// Bytes that are to be read once more.
    again: &'static [u8],
    /// The input itself failed.
    has_failed: bool,
}

impl<R: Read> Source<R> {
    fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(128 << 10, input),
            offset: 0,
            again: &[],
            has_failed: false,
        }
    }

    /// Consumes bytes until `magic` follows, or until the end.
    fn skip_to(&mut self, magic: &'static [u8]) -> io::Result<()> {
        let mut matched = 0;
        while matched < magic.len() {
            let Some(&byte) = self.fill_buf()?.first() else {
                return Ok(());
            };
            self.consume(1);
            // The first byte of a magic number stands in no other place of it.
            matched = if byte == magic[matched] {
                matched + 1
            } else {
                usize::from(byte == magic[0])
            };
        }
        self.again = magic;
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
        if !self.again.is_empty() {
            return Ok(self.again);
        }
        let has_failed = &mut self.has_failed;
        self.input.fill_buf().inspect_err(|_| *has_failed = true)
    }

    fn consume(&mut self, length: usize) {
        self.offset += length as u64;
        if self.again.is_empty() {
            self.input.consume(length);
        } else {
            self.again = &self.again[length..];
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

    /// Returns lines in frames of ten, and where each frame begins.
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
        let (mut sound, mut damage) = (Vec::new(), Vec::new());
        loop {
            match lines.next_line().unwrap() {
                Step::Line(line) => sound.push(format!("{}\n", String::from_utf8_lossy(line))),
                Step::Damage(one) => damage.push(one),
                Step::End => return (sound, damage),
            }
        }
    }

    #[test]
    fn lines_of_every_compression_come_back() {
        for compression in ALL {
            let (bytes, _) = frames(compression, 35);
            let all: Vec<_> = (0..35).map(line).collect();
            assert_eq!(read(&bytes), (all, vec![]), "{compression:?}");
        }
        assert_eq!(read(b""), (vec![], vec![]));
        assert_eq!(read(b"{}"), (vec!["{}\n".to_owned()], vec![]));
    }

    /// A damaged length can claim what follows, up to the 128 KiB of a block: here that may be all of it.
    #[test]
    fn damaged_frame_costs_nothing_before_it() {
        for compression in [Compression::Gzip, Compression::Zstd] {
            let (sound, starts) = frames(compression, 50);
            let all: Vec<_> = (0..50).map(line).collect();
            let mut whole = 0;
            // The header of a gzip member has bytes that mean nothing.
            for at in starts[2] + 10..starts[3] {
                let mut bytes = sound.clone();
                bytes[at] ^= 0x55;
                let (lines, damage) = read(&bytes);
                assert!(lines.starts_with(&all[..20]), "{compression:?}, byte {at}: {lines:?}");
                assert_ne!(damage, [], "{compression:?}, byte {at}");
                whole += usize::from(lines == [&all[..20], &all[30..]].concat());
            }
            assert!(
                whole * 2 > starts[3] - starts[2] - 10,
                "{compression:?}: mostly one frame"
            );
        }
    }

    #[test]
    fn cut_off_capture_has_all_that_was_written() {
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
    fn long_line_is_skipped_by_its_number() {
        let mut bytes = line(0).into_bytes();
        bytes.resize(bytes.len() + 3 * MAX_LINE, b'x');
        bytes.push(b'\n');
        bytes.extend(line(2).as_bytes());
        let (lines, damage) = read(&bytes);
        assert_eq!(lines, [line(0), line(2)]);
        assert_eq!(damage[0].to_string(), "line 2: skipped: it is longer than 4 MiB");
    }
}
