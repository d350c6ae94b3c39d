//! Writing a capture: to a new file, to a row of files of bounded size, or to a pipe.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::encode::Encoder;
use super::frame::{self, Header};
use crate::blocking_io::Blocking;
use crate::config::{CapturePath, Rotation};
use crate::note::say;
use crate::record::{Event, Lost, Record, Summary, WallTime};

/// Bytes of a block when it is written, if it does not become due before.
const BLOCK: usize = 64 << 10;
/// How old what is not written may become. With what a record waits to settle this is well within a second.
const OLDEST: Duration = Duration::from_millis(500);

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
        rotation: Option<Rotator>,
    },
}

/// Decides when a capture goes on in a new file, and moves the older files out of its way.
struct Rotator {
    rotation: Rotation,
    /// The size of the present file at which rotation is tried next.
    next_at: u64,
    /// The last rotation failed, and the user was told.
    has_failed: bool,
}

impl Rotator {
    fn new(rotation: Rotation) -> Self {
        Self {
            rotation,
            next_at: rotation.size,
            has_failed: false,
        }
    }

    /// Whether another block of `block` bytes could be too much for a file of `written` bytes.
    fn is_due(&self, written: u64, block: usize) -> bool {
        // Incompressible data makes a block slightly larger, and the end of the file follows it.
        written + block as u64 * 9 / 8 + 1024 > self.next_at
    }

    /// Opens the next file and writes `header` to it. `None` if that is impossible: the capture then goes on in its present
    /// file of `written` bytes, and rotation is tried again once that file has grown by another [`Rotation::size`].
    ///
    /// Others may have write access to the folder: a directory or a file with one of our names, a full disk or a folder
    /// that is gone must not end the tracer.
    fn next_file(&mut self, path: &Path, header: &[u8], written: u64) -> Option<File> {
        match open_next(path, self.rotation.files, header) {
            Ok(file) => {
                *self = Self::new(self.rotation);
                Some(file)
            }
            Err(error) => {
                self.next_at = written + self.rotation.size;
                if !self.has_failed {
                    self.has_failed = true;
                    say(&format!(
                        "warning: cannot rotate the capture: {error}; it goes on in its present file, which grows beyond \
                         the size of --rotate\n  try: make room at {}, and keep others out of its folder",
                        path.display()
                    ));
                }
                None
            }
        }
    }
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

/// A place for a capture: open, and nothing written yet. Removes its file again if no capture begins there.
pub struct Target {
    out: Option<Out>,
    block: usize,
}

impl Target {
    /// Creates the file. One that exists is never touched, a link never followed.
    pub fn create(place: &CapturePath, rotation: Option<Rotation>) -> io::Result<Self> {
        let (out, block) = match place {
            CapturePath::Pipe => (Out::Pipe(Box::new(Blocking(io::stdout()))), BLOCK),
            CapturePath::File(path) => {
                for age in 1..rotation.map_or(1, |rotation| rotation.files) {
                    let older = aged(path, age);
                    if older.symlink_metadata().is_ok() {
                        return Err(failed(older.display(), ErrorKind::AlreadyExists.into()));
                    }
                }
                let out = Out::File {
                    file: create(path)?,
                    path: path.clone(),
                    rotation: rotation.map(Rotator::new),
                };
                let max = rotation.map_or(BLOCK, |rotation| (rotation.size / 8) as usize);
                (out, max.min(BLOCK))
            }
        };
        Ok(Self { out: Some(out), block })
    }

    /// Begins a capture there.
    pub fn begin(mut self, header: Header) -> io::Result<Keep> {
        match self.out.take() {
            Some(out) => Keep::begin(out, self.block, header),
            None => Err(ErrorKind::NotFound.into()),
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(Out::File { path, .. }) = &self.out {
            _ = fs::remove_file(path);
        }
    }
}

impl Keep {
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

    /// Goes on in a new file, if another block might be too much for this one and a new file can be made.
    fn rotate_if_full(&mut self) -> io::Result<()> {
        let Out::File {
            path,
            rotation: Some(rotator),
            ..
        } = &mut self.out
        else {
            return Ok(());
        };
        if !rotator.is_due(self.written, self.block) {
            return Ok(());
        }
        let header = Header {
            part: self.header.part + 1,
            closes_before: self.closes,
            ..self.header.clone()
        };
        // What the first header could hold, this one can: they differ in numbers alone.
        let Ok((bytes, seed)) = header.encode() else {
            return Ok(());
        };
        let Some(next) = rotator.next_file(path, &bytes, self.written) else {
            return Ok(());
        };
        // The old file gets its end under whatever name it has now.
        self.encoder.end(true);
        self.flush()?;
        if let Out::File { file, .. } = &mut self.out {
            *file = next;
        }
        self.header = header;
        self.encoder.next_chapter();
        (self.number, self.seed, self.written) = (0, seed, bytes.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
impl Keep {
    /// Ends the block.
    pub(super) fn flush_now(&mut self) {
        self.flush().unwrap();
    }
}

/// The name of the file that is `age` rotations old: `path` itself for 0, `path.1` for 1.
fn aged(path: &Path, age: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if age > 0 {
        name.push(format!(".{age}"));
    }
    name.into()
}

/// Makes every older file one rotation older, and a new file at `path` that begins with `header`.
fn open_next(path: &Path, files: u32, header: &[u8]) -> io::Result<File> {
    make_room(path, files)?;
    let mut file = create(path)?;
    if let Err(error) = file.write_all(header) {
        // An empty or half a header is of no use, and the next attempt needs the name.
        _ = fs::remove_file(path);
        return Err(failed(path.display(), error));
    }
    Ok(file)
}

/// Renames the files so that `path` is free. A failed attempt loses no file, however often it is repeated: only names up to
/// the first free one move, and the oldest file is replaced only if no name is free.
fn make_room(path: &Path, files: u32) -> io::Result<()> {
    let is_free = |age: &u32| {
        let metadata = aged(path, *age).symlink_metadata();
        metadata.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    };
    let free = (0..files).find(is_free).unwrap_or(files - 1);
    for age in (0..free).rev() {
        let (newer, older) = (aged(path, age), aged(path, age + 1));
        fs::rename(&newer, &older).map_err(|why| {
            let rename = format!("cannot rename {} to {}: {why}", newer.display(), older.display());
            io::Error::new(why.kind(), rename)
        })?;
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // POSIX: this fails where the name is a symbolic link, whatever it points to.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|why| failed(path.display(), why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing;

    const FILES: u32 = 3;

    /// What stands in the folder before a rotation, and whether the rotation works. `d` is a directory.
    const CASES: [(&str, &[&str], bool); 8] = [
        ("the first rotation", &["x"], true),
        ("the last free name", &["x", "x.1"], true),
        ("all names taken by files", &["x", "x.1", "x.2"], true),
        ("the present file was removed by another", &["x.1", "x.2"], true),
        (
            "a directory at the first older name, which moves on",
            &["x", "x.1/d"],
            true,
        ),
        ("a directory at the last older name", &["x", "x.1", "x.2/d"], false),
        ("directories at both older names", &["x", "x.1/d", "x.2/d"], false),
        ("no folder", &[], false),
    ];

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kmesh-trace-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        folder
    }

    /// The files in `folder`, with what they hold; a directory holds nothing.
    fn listing(folder: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
        let mut all: Vec<_> = entries
            .map(|entry| {
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read_to_string(entry.path()).unwrap_or_default())
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn failed_rotation_loses_no_file_and_can_be_repeated() {
        for (what, names, works) in CASES {
            let folder = folder("rotation-cases");
            for name in names {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, *name).unwrap();
            }
            let before = listing(&folder);
            let path = folder.join("x");
            let mut rotator = Rotator::new(Rotation {
                size: 100,
                files: FILES,
            });
            let first = rotator.next_file(&path, b"header", 90);
            assert_eq!(first.is_some(), works, "{what}");
            assert_eq!(rotator.has_failed, !works, "{what}");
            if works {
                assert_eq!(fs::read(&path).unwrap(), b"header", "{what}");
                assert_eq!(rotator.next_at, 100, "{what}");
            } else {
                assert_eq!(rotator.next_at, 190, "{what}");
                assert!(rotator.next_file(&path, b"header", 190).is_none(), "{what}");
                assert_eq!(listing(&folder), before, "{what}");
            }
            _ = fs::remove_dir_all(&folder);
        }
    }

    #[test]
    fn capture_goes_on_in_its_file_until_rotation_works_again() {
        let folder = folder("rotation-goes-on");
        fs::create_dir_all(folder.join("x.1")).unwrap();
        let path = folder.join("x");
        let rotation = Rotation { size: 4096, files: 2 };
        let mut keep = Keep::to(io::sink(), testing::header()).unwrap();
        keep.out = Out::File {
            file: create(&path).unwrap(),
            path: path.clone(),
            rotation: Some(Rotator::new(rotation)),
        };
        let fill = |keep: &mut Keep, bytes: u64| {
            keep.written = bytes;
            keep.rotate_if_full().unwrap();
            keep.header.part
        };
        keep.block = 0;
        assert_eq!(fill(&mut keep, 4096), 0, "x.1 is in the way");
        fs::remove_dir(folder.join("x.1")).unwrap();
        assert_eq!(fill(&mut keep, 5000), 0, "not tried again at once");
        assert_eq!(fill(&mut keep, 8192), 1, "tried again after another 4096 bytes");
        assert!(folder.join("x.1").is_file() && path.is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
}
