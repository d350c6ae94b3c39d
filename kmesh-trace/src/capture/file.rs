//! Writing a capture: to a new file, to a row of files of bounded size, or to a pipe.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::compression::{Compression, Compressor};
use crate::blocking_io::Blocking;
use crate::config::{CapturePath, Rotation};
use crate::output::json::contract::{ConnLine, HeaderLine, LostLine, SummaryLine};
use crate::output::stderr::say;
use crate::output::{Sink, append_line};
use crate::record::Header;
use crate::record::{Event, Lost, Record, Summary};
use crate::track::delta::Delta;

/// The number of uncompressed bytes that are written at once.
const BLOCK: usize = 64 << 10;
/// The longest time that a line stays unwritten. Together with the time that a record takes to reach the capture this is well
/// within a second.
const MAX_AGE: Duration = Duration::from_millis(500);

/// The error of a capture that cannot be written. It is the inner error of an [`io::Error`] of the same kind.
#[derive(Debug)]
pub struct CaptureError {
    place: String,
    source: io::Error,
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, source } = self;
        match source.kind() {
            ErrorKind::AlreadyExists => write!(
                f,
                "cannot write to {place}: it exists, and a capture is always a new file\n  try: another name, or remove it"
            ),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => write!(
                f,
                "cannot write to {place}: {source}; what it has so far can be replayed\n  try: a place with room, or --rotate SIZE,N"
            ),
            _ => write!(f, "cannot write to {place}: {source}"),
        }
    }
}

impl std::error::Error for CaptureError {}

fn failed(place: impl fmt::Display, source: io::Error) -> io::Error {
    let place = place.to_string();
    io::Error::new(source.kind(), CaptureError { place, source })
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

/// Decides when a capture continues in a new file, and moves the older files out of its way.
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

    /// Returns whether another block of `block` bytes could be too much for a file of `written` bytes.
    fn is_due(&self, written: u64, block: usize) -> bool {
        // Incompressible data makes a block slightly larger, and the end of the frame follows it.
        written + block as u64 * 9 / 8 + 1024 > self.next_at
    }

    /// Opens the next file and writes `header` to it. `None` if that is impossible: the capture then continues in its present
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

/// The sink that writes a capture.
pub struct Capture {
    header: Header,
    out: Out,
    compression: Compression,
    compressor: Compressor,
    /// Lines are compressed and written once they have this many bytes.
    block: usize,
    /// Lines that are not written yet.
    lines: Vec<u8>,
    /// Scratch memory for the compressed lines.
    compressed: Vec<u8>,
    /// The number of bytes in the present file.
    written: u64,
    /// When the lines that are not written yet must be.
    due: Option<Instant>,
    /// The number of closes so far, in all parts.
    closes: u64,
}

/// A place for a capture: open, and nothing written yet. Removes its file again if no capture begins there.
pub struct Target {
    out: Option<Out>,
    compression: Compression,
    block: usize,
}

impl Target {
    /// Creates the file. One that exists is never touched, a link never followed.
    pub fn create(place: &CapturePath, rotation: Option<Rotation>) -> io::Result<Self> {
        let path = match place {
            CapturePath::Pipe => {
                return Ok(Self {
                    out: Some(Out::Pipe(Box::new(Blocking(io::stdout())))),
                    compression: Compression::None,
                    block: BLOCK,
                });
            }
            CapturePath::File(path) => path,
        };
        for age in 1..rotation.map_or(1, |rotation| rotation.files) {
            let older = aged(path, age);
            if older.symlink_metadata().is_ok() {
                return Err(failed(older.display(), ErrorKind::AlreadyExists.into()));
            }
        }
        let block = rotation.map_or(BLOCK, |rotation| (rotation.size / 8) as usize);
        Ok(Self {
            out: Some(Out::File {
                file: create(path)?,
                path: path.clone(),
                rotation: rotation.map(Rotator::new),
            }),
            compression: Compression::of(path),
            block: block.min(BLOCK),
        })
    }

    /// Begins a capture there.
    pub fn begin(mut self, header: Header) -> io::Result<Capture> {
        match self.out.take() {
            Some(out) => Capture::begin(out, self.compression, self.block, header),
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

impl Capture {
    /// Begins a capture in anything that takes bytes.
    pub fn to(out: impl Write + Send + 'static, compression: Compression, header: Header) -> io::Result<Self> {
        Self::begin(Out::Pipe(Box::new(out)), compression, BLOCK, header)
    }

    fn begin(out: Out, compression: Compression, block: usize, header: Header) -> io::Result<Self> {
        let mut capture = Self {
            closes: header.closes_before,
            header,
            out,
            compression,
            compressor: Compressor::new(compression)?,
            block,
            lines: Vec::new(),
            compressed: Vec::new(),
            written: 0,
            due: None,
        };
        let header = capture.header_frame()?;
        capture.write(&header)?;
        Ok(capture)
    }

    /// The header has a frame of its own, so that a new file can begin with it before the old one ends.
    fn header_frame(&self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        append_line(&mut line, &HeaderLine::from(&self.header))?;
        Compressor::frame(self.compression, &line)
    }

    /// To be called after a line was appended.
    fn appended(&mut self) -> io::Result<()> {
        self.due.get_or_insert_with(|| Instant::now() + MAX_AGE);
        if self.lines.len() < self.block {
            return Ok(());
        }
        self.write_lines()?;
        self.rotate_if_full()
    }

    fn write_lines(&mut self) -> io::Result<()> {
        self.due = None;
        let lines = std::mem::take(&mut self.lines);
        let written = self.write_compressed(|compressor, out| compressor.write(&lines, out));
        self.lines = lines;
        self.lines.clear();
        written
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.write_compressed(Compressor::end_frame)
    }

    fn write_compressed(
        &mut self,
        compress: impl FnOnce(&mut Compressor, &mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut compressed = std::mem::take(&mut self.compressed);
        compressed.clear();
        let result = compress(&mut self.compressor, &mut compressed);
        let written = result
            .map_err(|error| self.failed(error))
            .and_then(|()| self.write(&compressed));
        self.compressed = compressed;
        written
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = match &mut self.out {
            Out::Pipe(out) => out.write_all(bytes).and_then(|()| out.flush()),
            Out::File { file, .. } => file.write_all(bytes).inspect_err(|_| {
                // Half a block is of no use. The error is reported whether or not this works.
                _ = file.set_len(self.written);
            }),
        };
        self.written += bytes.len() as u64;
        written.map_err(|error| self.failed(error))
    }

    fn failed(&self, source: io::Error) -> io::Error {
        match &self.out {
            Out::Pipe(_) => failed("standard output", source),
            Out::File { path, .. } => failed(path.display(), source),
        }
    }

    /// Continues in a new file, if another block might be too much for this one and a new file can be made.
    fn rotate_if_full(&mut self) -> io::Result<()> {
        let Out::File {
            path,
            rotation: Some(rotator),
            ..
        } = &self.out
        else {
            return Ok(());
        };
        if !rotator.is_due(self.written, self.block) {
            return Ok(());
        }
        let path = path.clone();
        let part = self.header.part;
        let closes_before = std::mem::replace(&mut self.header.closes_before, self.closes);
        self.header.part += 1;
        let header = self.header_frame()?;
        let Out::File {
            rotation: Some(rotator),
            ..
        } = &mut self.out
        else {
            return Ok(());
        };
        let Some(next) = rotator.next_file(&path, &header, self.written) else {
            (self.header.part, self.header.closes_before) = (part, closes_before);
            return Ok(());
        };
        // The old file gets its end under whatever name it has now.
        self.end_frame()?;
        if let Out::File { file, .. } = &mut self.out {
            *file = next;
        }
        self.written = header.len() as u64;
        Ok(())
    }
}

impl Sink for Capture {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        self.closes += u64::from(record.event == Event::Close);
        append_line(&mut self.lines, &ConnLine::new(record))?;
        self.appended()
    }

    fn baseline(&mut self, record: &Record) -> io::Result<()> {
        append_line(&mut self.lines, &ConnLine::new(record))?;
        self.appended()
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        append_line(&mut self.lines, &LostLine::from(lost))?;
        self.appended()
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        // A capture has every close that passes the filter, whether or not `--events` prints closes.
        let unprinted = self.closes.saturating_sub(summary.delivered);
        let summary = Summary {
            delivered: summary.delivered + unprinted,
            filtered: summary.filtered.saturating_sub(unprinted),
            ..summary.clone()
        };
        append_line(&mut self.lines, &SummaryLine::new(&summary, &self.header.info))?;
        self.appended()
    }

    /// Writes the lines that have waited for [`MAX_AGE`].
    fn flush(&mut self) -> io::Result<()> {
        if self.due.is_some_and(|due| due <= Instant::now()) {
            self.write_lines()
        } else {
            Ok(())
        }
    }

    fn flush_due(&self) -> Option<Instant> {
        self.due
    }

    fn finish(&mut self) -> io::Result<()> {
        self.write_lines()?;
        self.end_frame()
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
        let mut capture = Capture::to(io::sink(), Compression::None, testing::header()).unwrap();
        capture.out = Out::File {
            file: create(&path).unwrap(),
            path: path.clone(),
            rotation: Some(Rotator::new(rotation)),
        };
        let fill = |capture: &mut Capture, bytes: u64| {
            capture.written = bytes;
            capture.rotate_if_full().unwrap();
            capture.header.part
        };
        capture.block = 0;
        assert_eq!(fill(&mut capture, 4096), 0, "x.1 is in the way");
        fs::remove_dir(folder.join("x.1")).unwrap();
        assert_eq!(fill(&mut capture, 5000), 0, "not tried again at once");
        assert_eq!(fill(&mut capture, 8192), 1, "tried again after another 4096 bytes");
        assert!(folder.join("x.1").is_file() && path.is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
}
