//! Writing a capture: to a new file, to a row of files of bounded size, or to a pipe.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::encode::Encoder;
use super::frame::{self, Header};
use crate::record::{Event, Lost, Record, Summary, WallTime};

/// Bytes of a block when it is written, if it does not become due before.
const BLOCK: usize = 64 << 10;
/// How old what is not written may become. With what a record waits to settle this is well within a second.
const OLDEST: Duration = Duration::from_millis(500);

/// Where a capture goes to, or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Standard output, standard input.
    Pipe,
    /// A file.
    File(PathBuf),
}

impl From<OsString> for Place {
    fn from(text: OsString) -> Self {
        if text == "-" {
            Self::Pipe
        } else {
            Self::File(text.into())
        }
    }
}

/// A row of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The most bytes of one.
    pub size: u64,
    /// The most files: the newest, and those numbered from 1, the newer first.
    pub files: u32,
}

/// A capture cannot be written. Kept inside of an [`io::Error`] of the same kind.
#[derive(Debug)]
pub struct KeepError {
    place: String,
    why: io::Error,
}

impl fmt::Display for KeepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, why } = self;
        match why.kind() {
            ErrorKind::AlreadyExists => write!(
                f,
                "cannot write to {place}: it exists, and a capture is always a new file\n  try: another name, or remove it"
            ),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => write!(
                f,
                "cannot write to {place}: {why}; what it has until now can be read\n  try: a place with room, or --rotate SIZE,N"
            ),
            _ => write!(f, "cannot write to {place}: {why}"),
        }
    }
}

impl std::error::Error for KeepError {}

fn failed(place: impl fmt::Display, why: io::Error) -> io::Error {
    let place = place.to_string();
    io::Error::new(why.kind(), KeepError { place, why })
}

/// Where the bytes go.
enum Out {
    Pipe(Box<dyn Write + Send>),
    File {
        file: File,
        path: PathBuf,
        rotation: Option<Rotation>,
    },
}

/// Keeps what it is told, within a second.
pub struct Keep {
    header: Header,
    out: Out,
    encoder: Encoder,
    /// The block is written when it has so many bytes.
    block: usize,
    /// A block behind its frame; kept for its memory.
    framed: Vec<u8>,
    number: u32,
    seed: u32,
    /// Bytes of the file.
    written: u64,
    /// When what is not written yet must be.
    due: Option<Instant>,
    /// Told, and of no use before something else is.
    complete: Option<WallTime>,
    /// Closes so far, in all parts.
    closes: u64,
}

impl Keep {
    /// Makes the file. One that exists is never touched, a link never followed.
    pub fn new(place: &Place, rotation: Option<Rotation>, header: Header) -> io::Result<Self> {
        let (out, block) = match place {
            Place::Pipe => (Out::Pipe(Box::new(io::stdout())), BLOCK),
            Place::File(path) => {
                for index in 1..rotation.map_or(1, |rotation| rotation.files) {
                    let older = numbered(path, index);
                    if older.symlink_metadata().is_ok() {
                        return Err(failed(older.display(), ErrorKind::AlreadyExists.into()));
                    }
                }
                let out = Out::File {
                    file: create(path)?,
                    path: path.clone(),
                    rotation,
                };
                let most = rotation.map_or(BLOCK, |rotation| (rotation.size / 8) as usize);
                (out, most.min(BLOCK))
            }
        };
        Self::begin(out, block, header)
    }

    /// Into whatever takes bytes.
    pub fn to(out: impl Write + Send + 'static, header: Header) -> io::Result<Self> {
        Self::begin(Out::Pipe(Box::new(out)), BLOCK, header)
    }

    fn begin(out: Out, block: usize, header: Header) -> io::Result<Self> {
        let closes = header.closes_before;
        let mut keep = Self {
            header,
            out,
            encoder: Encoder::default(),
            block,
            framed: Vec::new(),
            number: 0,
            seed: 0,
            written: 0,
            due: None,
            complete: None,
            closes,
        };
        keep.write_header()?;
        Ok(keep)
    }

    /// Keeps a record.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        self.closes += u64::from(record.event == Event::Close);
        self.put(|encoder| encoder.record(record))
    }

    /// Keeps a loss.
    pub fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.put(|encoder| encoder.lost(lost))
    }

    /// Keeps sums.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.put(|encoder| encoder.summary(summary))
    }

    /// All that happened before `until` has been told. Of several in a row the last one says it all.
    pub fn complete(&mut self, until: WallTime) -> io::Result<()> {
        self.complete = Some(until);
        self.due.get_or_insert_with(|| Instant::now() + OLDEST);
        Ok(())
    }

    /// When [`Self::write_due`] must be called, if nothing else is until then.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Writes what must not wait any longer.
    pub fn write_due(&mut self) -> io::Result<()> {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Nothing more will come.
    pub fn end(&mut self) -> io::Result<()> {
        self.put(|encoder| encoder.end(false))?;
        self.flush()
    }

    fn put(&mut self, item: impl FnOnce(&mut Encoder)) -> io::Result<()> {
        if let Some(until) = self.complete.take() {
            self.encoder.complete(until);
        }
        item(&mut self.encoder);
        self.due.get_or_insert_with(|| Instant::now() + OLDEST);
        if self.encoder.block().len() < self.block {
            return Ok(());
        }
        self.flush()?;
        self.rotate_if_full()
    }

    /// Writes what there is.
    fn flush(&mut self) -> io::Result<()> {
        self.due = None;
        if let Some(until) = self.complete.take() {
            self.encoder.complete(until);
        }
        if self.encoder.block().is_empty() {
            return Ok(());
        }
        if self.encoder.is_too_much() {
            let why = io::Error::new(
                ErrorKind::InvalidInput,
                "a record has more names than a capture can hold",
            );
            return Err(self.failed(why));
        }
        self.framed.clear();
        frame::encode(self.encoder.block(), self.number, self.seed, &mut self.framed)
            .map_err(|why| self.failed(why))?;
        self.number += 1;
        self.encoder.next_block();
        let framed = std::mem::take(&mut self.framed);
        let written = self.write(&framed);
        self.framed = framed;
        written
    }

    fn write_header(&mut self) -> io::Result<()> {
        let (bytes, seed) = self.header.encode().map_err(|why| self.failed(why))?;
        (self.number, self.seed, self.written) = (0, seed, 0);
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = match &mut self.out {
            Out::Pipe(out) => out.write_all(bytes).and_then(|()| out.flush()),
            Out::File { file, .. } => file.write_all(bytes).inspect_err(|_| {
                // Half a block is of no use. Whatever comes of this, the error is told.
                _ = file.set_len(self.written);
            }),
        };
        self.written += bytes.len() as u64;
        written.map_err(|why| self.failed(why))
    }

    fn failed(&self, why: io::Error) -> io::Error {
        match &self.out {
            Out::Pipe(_) => failed("standard output", why),
            Out::File { path, .. } => failed(path.display(), why),
        }
    }

    /// Goes on in a new file, if another block might be too much for this one.
    fn rotate_if_full(&mut self) -> io::Result<()> {
        let Out::File {
            path,
            rotation: Some(rotation),
            ..
        } = &self.out
        else {
            return Ok(());
        };
        // A block is a record larger than it should be, and may not be compressible; then there is the end.
        if self.written + self.block as u64 * 9 / 8 + 1024 <= rotation.size {
            return Ok(());
        }
        let (path, rotation) = (path.clone(), *rotation);
        self.encoder.end(true);
        self.flush()?;
        let file = shift(&path, rotation.files).and_then(|()| create(&path))?;
        self.out = Out::File {
            file,
            path,
            rotation: Some(rotation),
        };
        self.header.part += 1;
        self.header.closes_before = self.closes;
        self.encoder.next_chapter();
        self.write_header()
    }
}

#[cfg(test)]
impl Keep {
    /// Ends the block.
    pub(super) fn flush_now(&mut self) {
        self.flush().unwrap();
    }
}

/// `path.1` for 1.
fn numbered(path: &Path, index: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{index}"));
    name.into()
}

/// A file of this run becomes the next older one, and what was the oldest is removed.
fn shift(path: &Path, files: u32) -> io::Result<()> {
    let tell = |path: &Path, why| failed(path.display(), why);
    let absent = |error: &io::Error| error.kind() == ErrorKind::NotFound;
    let oldest = numbered(path, files - 1);
    match fs::remove_file(&oldest) {
        Err(why) if !absent(&why) => return Err(tell(&oldest, why)),
        _ => {}
    }
    for index in (1..files - 1).rev() {
        let (newer, older) = (numbered(path, index), numbered(path, index + 1));
        match fs::rename(&newer, &older) {
            Err(why) if !absent(&why) => return Err(tell(&newer, why)),
            _ => {}
        }
    }
    fs::rename(path, numbered(path, 1)).map_err(|why| tell(path, why))
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // POSIX: this fails where the name is a symbolic link, whatever it points to.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|why| failed(path.display(), why))
}
