//! Compression of captures.

use std::io::{self, Write};
use std::path::Path;

use flate2::write::GzEncoder;
use zstd::stream::raw::{Encoder, InBuffer, Operation, OutBuffer};

/// The zstd level. Level 3 takes twice the time and makes the example capture no smaller.
const ZSTD_LEVEL: i32 = 1;

/// The number of uncompressed bytes in one frame. A damaged frame costs at most these.
const FRAME_BYTES: usize = 4 << 20;

/// How a capture is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, RFC 1952.
    Gzip,
    /// zstd, RFC 8878.
    Zstd,
}

impl Compression {
    /// Returns the compression that the name of a file asks for.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("zst") => Self::Zstd,
            Some("gz") => Self::Gzip,
            _ => Self::None,
        }
    }
}

enum Encoders {
    None,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(Encoder<'static>),
}

/// Compresses text in frames of [`FRAME_BYTES`]: zstd frames or gzip members, which a reader takes for one stream.
pub(super) struct Compressor {
    encoder: Encoders,
    /// The number of uncompressed bytes in the present frame.
    frame_bytes: usize,
}

impl Compressor {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        let encoder = match compression {
            Compression::None => Encoders::None,
            Compression::Gzip => Encoders::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::default())),
            Compression::Zstd => {
                let mut encoder = Encoder::new(ZSTD_LEVEL)?;
                // A reader finds damage that happens to decompress.
                encoder.set_parameter(zstd::stream::raw::CParameter::ChecksumFlag(true))?;
                Encoders::Zstd(encoder)
            }
        };
        Ok(Self {
            encoder,
            frame_bytes: 0,
        })
    }

    /// Returns a whole frame with `text` in it.
    pub(super) fn frame(compression: Compression, text: &[u8]) -> io::Result<Vec<u8>> {
        let mut compressor = Self::new(compression)?;
        let mut out = Vec::new();
        compressor.write(text, &mut out)?;
        compressor.end_frame(&mut out)?;
        Ok(out)
    }

    /// Appends `text` to `out`, compressed so far that a reader of `out` has all of it.
    pub(super) fn write(&mut self, text: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match &mut self.encoder {
            Encoders::None => out.extend_from_slice(text),
            Encoders::Gzip(encoder) => {
                encoder.write_all(text)?;
                encoder.flush()?;
                out.append(encoder.get_mut());
            }
            Encoders::Zstd(encoder) => {
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

    /// Appends the end of the present frame to `out`. What is written later begins another frame.
    pub(super) fn end_frame(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if std::mem::take(&mut self.frame_bytes) == 0 {
            return Ok(());
        }
        match &mut self.encoder {
            Encoders::None => {}
            Encoders::Gzip(encoder) => {
                encoder.try_finish()?;
                out.append(encoder.get_mut());
                *encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
            }
            Encoders::Zstd(encoder) => while append(out, |out| encoder.finish(out, true))? > 0 {},
        }
        Ok(())
    }
}

/// Appends what one call of an encoder gives to `out`.
fn append<T>(out: &mut Vec<u8>, call: impl FnOnce(&mut OutBuffer<'_, Vec<u8>>) -> io::Result<T>) -> io::Result<T> {
    out.reserve(zstd::zstd_safe::CCtx::out_size());
    let length = out.len();
    call(&mut OutBuffer::around_pos(out, length))
}
