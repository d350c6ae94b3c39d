//! Compresses captures in independent frames.

use std::io::{self, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

/// The zstd level. Level 3 takes twice the time, and the example capture becomes no smaller.
const ZSTD_LEVEL: i32 = 1;

/// The number of uncompressed bytes in one frame. Damage costs at most the records of one frame.
const FRAME_BYTES: usize = 4 << 20;

/// The compression of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    /// The gzip format of RFC 1952.
    Gzip,
    /// The Zstandard format of RFC 8878.
    Zstd,
}

impl Compression {
    /// Returns the compression that the extension of `path` selects.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("zst") => Self::Zstd,
            Some("gz") => Self::Gzip,
            _ => Self::None,
        }
    }
}

enum Encoding {
    None,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(Encoder<'static>),
}

/// Compresses text in frames of [`FRAME_BYTES`]: zstd frames or gzip members. Decoders read them as one stream.
pub(super) struct Compressor {
    encoding: Encoding,
    /// The number of uncompressed bytes in the current frame.
    frame_bytes: usize,
}

impl Compressor {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        let encoding = match compression {
            Compression::None => Encoding::None,
            Compression::Gzip => Encoding::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::default())),
            Compression::Zstd => {
                let mut encoder = Encoder::new(ZSTD_LEVEL)?;
                // With a checksum, a reader detects damage that still decompresses.
                encoder.set_parameter(zstd::stream::raw::CParameter::ChecksumFlag(true))?;
                Encoding::Zstd(encoder)
            }
        };
        Ok(Self {
            encoding,
            frame_bytes: 0,
        })
    }

    /// Returns a whole frame that contains `text`.
    pub(super) fn frame(compression: Compression, text: &[u8]) -> io::Result<Vec<u8>> {
        let mut compressor = Self::new(compression)?;
        let mut out = Vec::new();
        compressor.write(text, &mut out)?;
        compressor.end_frame(&mut out)?;
        Ok(out)
    }

    /// Appends the compressed `text` to `out`, and flushes the encoder, so that a reader of `out` can decompress all of
    /// it.
    pub(super) fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        if text.is_empty() {
            // A flush would start a gzip member, which `end_frame` would not end.
            return Ok(());
        }
        match &mut self.encoding {
            Encoding::None => out.extend_from_slice(text),
            Encoding::Gzip(encoder) => {
                encoder.write_all(text)?;
                encoder.flush()?;
                out.append(encoder.get_mut());
            }
            Encoding::Zstd(encoder) => {
                let mut input = InBuffer::around(text);
                while input.pos < text.len() {
                    append(out, |out| encoder.run(&mut input, out))?;
                }
                while append(out, |out| encoder.flush(out))? > 0 {}
            }
        }
        self.frame_bytes += text.len();
        if self.frame_bytes >= FRAME_BYTES {
            self.end_frame(out)?;
        }
        Ok(())
    }

    /// Appends the end of the current frame to `out`. The next write starts a new frame.
    pub(super) fn end_frame(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if std::mem::take(&mut self.frame_bytes) == 0 {
            return Ok(());
        }
        match &mut self.encoding {
            Encoding::None => {}
            Encoding::Gzip(encoder) => {
                encoder.try_finish()?;
                out.append(encoder.get_mut());
                *encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            }
            Encoding::Zstd(encoder) => while append(out, |out| encoder.finish(out, true))? > 0 {},
        }
        Ok(())
    }
}

/// Appends the output of one encoder call to `out`.
fn append<T>(out: &mut Vec<u8>, call: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<T>) -> io::Result<T> {
    out.reserve(zstd::zstd_safe::CCtx::out_size());
    let length = out.len();
    call(&mut OutBuffer::around_pos(out, length))
}
