//! Writes a capture to a new file, to rotated files of bounded size, or to a pipe.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::compression::{Compression, Compressor};
use crate::blocking_io::Blocking;
use crate::config::{CapturePath, Events, Rotation};
use crate::output::json::contract::{ConnLine, HeaderLine, ListenerLine, LostLine, PairLine, RejectLine, SummaryLine};
use crate::output::stderr::warn;
use crate::output::{Sink, append_line};
use crate::record::Header;
use crate::record::{Lost, Record, Subject, Summary};
use crate::track::delta::Delta;

/// The number of uncompressed bytes in one write.
const BLOCK_BYTES: usize = 64 << 10;
/// The maximum time that a line stays in memory. A killed tracer may lose one second, which includes the time that a
/// record takes to reach the capture.
const MAX_LINE_AGE: Duration = Duration::from_millis(500);

/// The error of a write to a capture. It is the inner error of an [`io::Error`] of the same kind.
#[derive(Debug)]
pub struct CaptureError {
    /// The path of the file, or `standard output`.
    path: String,
    source: io::Error,
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, source } = self;
        match source.kind() {
            ErrorKind::AlreadyExists => write!(
                f,
                "cannot write to {path}: the file exists, and --write never overwrites a file\n  \
                 try: another name, or remove the file"
            ),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => write!(
                f,
                "cannot write to {path}: {source}; the records so far can be replayed\n  \
                 try: a file system with free space, or --rotate SIZE,N"
            ),
            _ => write!(f, "cannot write to {path}: {source}"),
        }
    }
}

impl std::error::Error for CaptureError {}

fn capture_error(path: impl fmt::Display, source: io::Error) -> io::Error {
    let path = path.to_string();
    io::Error::new(source.kind(), CaptureError { path, source })
}

/// The destination of the bytes.
enum Destination {
    Pipe(Box<dyn Write + Send>),
    File {
        file: File,
        path: PathBuf,
        rotator: Option<Rotator>,
    },
}

/// Decides when a capture continues in a new file, and renames the older files.
struct Rotator {
    rotation: Rotation,
    /// The size of the current file at which the next rotation is due.
    next_at: u64,
    /// Whether the last rotation failed. The user has been warned.
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

    /// Returns whether a file of `written` bytes could grow too large with another block of `block_bytes`.
    fn is_due(&self, written: u64, block_bytes: usize) -> bool {
        // Compression makes incompressible data slightly larger, and the end of the frame follows the block.
        written + block_bytes as u64 * 9 / 8 + 1024 > self.next_at
    }

    /// Opens the next file and writes `header` to it. On failure, returns `None`: the capture continues in the current
    /// file of `written` bytes, and the next rotation is due when this file has grown by another [`Rotation::size`].
    ///
    /// Other users may have write access to the folder. A directory or a file with one of our names, a full disk, or a
    /// removed folder must not end the tracer.
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
                    warn(&format!(
                        "cannot rotate the capture: {error}; the current file grows beyond the size of \
                         --rotate\n  try: make room at {}, and deny other users write access to the folder",
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
    /// The reports that the capture contains. It contains all events of connections.
    events: Events,
    destination: Destination,
    compression: Compression,
    compressor: Compressor,
    /// The number of bytes of `lines` at which the lines are compressed and written.
    block_bytes: usize,
    /// The lines that are not written yet.
    lines: Vec<u8>,
    /// A buffer for the compressed lines.
    compressed: Vec<u8>,
    /// The number of bytes in the current file.
    written: u64,
    /// The deadline for writing `lines`.
    due: Option<Instant>,
    /// The number of closes so far in all parts of the capture.
    closes: u64,
}

/// An open, empty destination for a capture. Dropping the target removes the file, unless a capture started.
pub struct Target {
    destination: Option<Destination>,
    compression: Compression,
    block_bytes: usize,
}

impl Target {
    /// Creates the file. An existing file is an error, and a link is never followed.
    pub fn create(path: &CapturePath, rotation: Option<Rotation>) -> io::Result<Self> {
        let path = match path {
            CapturePath::Pipe => {
                return Ok(Self {
                    destination: Some(Destination::Pipe(Box::new(Blocking(io::stdout())))),
                    compression: Compression::None,
                    block_bytes: BLOCK_BYTES,
                });
            }
            CapturePath::File(path) => path,
        };
        for age in 1..rotation.map_or(1, |rotation| rotation.files) {
            let older = aged(path, age);
            if older.symlink_metadata().is_ok() {
                return Err(capture_error(older.display(), ErrorKind::AlreadyExists.into()));
            }
        }
        let block_bytes = rotation.map_or(BLOCK_BYTES, |rotation| (rotation.size / 8) as usize);
        Ok(Self {
            destination: Some(Destination::File {
                file: create(path)?,
                path: path.clone(),
                rotator: rotation.map(Rotator::new),
            }),
            compression: Compression::of(path),
            block_bytes: block_bytes.min(BLOCK_BYTES),
        })
    }

    /// Starts a capture with `header` as its first line. `events` selects the reports that it contains.
    pub fn start(mut self, header: Header, events: Events) -> io::Result<Capture> {
        let destination = self.destination.take().ok_or(ErrorKind::NotFound)?;
        let mut capture = Capture::start(destination, self.compression, self.block_bytes, header)?;
        capture.events = events;
        Ok(capture)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(Destination::File { path, .. }) = &self.destination {
            _ = fs::remove_file(path);
        }
    }
}

impl Capture {
    /// Starts a capture of everything whose bytes go to `out`.
    pub fn to(out: impl Write + Send + 'static, compression: Compression, header: Header) -> io::Result<Self> {
        Self::start(Destination::Pipe(Box::new(out)), compression, BLOCK_BYTES, header)
    }

    fn start(
        destination: Destination,
        compression: Compression,
        block_bytes: usize,
        header: Header,
    ) -> io::Result<Self> {
        let mut capture = Self {
            closes: header.closes_before,
            header,
            events: Events::ALL,
            destination,
            compression,
            compressor: Compressor::new(compression)?,
            block_bytes,
            lines: Vec::new(),
            compressed: Vec::new(),
            written: 0,
            due: None,
        };
        let header = capture.header_frame()?;
        capture.write(&header)?;
        Ok(capture)
    }

    /// Returns the header line as a separate frame. A new file starts with it before the frame of the old file ends.
    fn header_frame(&self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        append_line(&mut line, &HeaderLine::from(&self.header))?;
        Compressor::frame(self.compression, &line)
    }

    fn append(&mut self, line: &impl Serialize) -> io::Result<()> {
        append_line(&mut self.lines, line)?;
        self.write_if_full()
    }

    fn write_if_full(&mut self) -> io::Result<()> {
        self.due.get_or_insert_with(|| Instant::now() + MAX_LINE_AGE);
        if self.lines.len() < self.block_bytes {
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
            .map_err(|error| self.error(error))
            .and_then(|()| self.write(&compressed));
        self.compressed = compressed;
        written
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = match &mut self.destination {
            Destination::Pipe(out) => out.write_all(bytes).and_then(|()| out.flush()),
            Destination::File { file, .. } => file.write_all(bytes).inspect_err(|_| {
                // Remove the part of the block that was written. The first error is the one to report.
                _ = file.set_len(self.written);
            }),
        };
        self.written += bytes.len() as u64;
        written.map_err(|error| self.error(error))
    }

    fn error(&self, source: io::Error) -> io::Error {
        match &self.destination {
            Destination::Pipe(_) => capture_error("standard output", source),
            Destination::File { path, .. } => capture_error(path.display(), source),
        }
    }

    /// Continues in a new file if the current one could grow too large with the next block.
    fn rotate_if_full(&mut self) -> io::Result<()> {
        let Destination::File {
            path,
            rotator: Some(rotator),
            ..
        } = &self.destination
        else {
            return Ok(());
        };
        if !rotator.is_due(self.written, self.block_bytes) {
            return Ok(());
        }
        let path = path.clone();
        let part = self.header.part;
        let closes_before = std::mem::replace(&mut self.header.closes_before, self.closes);
        self.header.part += 1;
        let header = self.header_frame()?;
        let Destination::File {
            rotator: Some(rotator), ..
        } = &mut self.destination
        else {
            return Ok(());
        };
        let Some(next) = rotator.next_file(&path, &header, self.written) else {
            (self.header.part, self.header.closes_before) = (part, closes_before);
            return Ok(());
        };
        // `file` is still the old file, which has a new name.
        self.end_frame()?;
        if let Destination::File { file, .. } = &mut self.destination {
            *file = next;
        }
        self.written = header.len() as u64;
        Ok(())
    }
}

impl Sink for Capture {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        self.closes += record.closes();
        match record.joined {
            None => self.append(&ConnLine::new(record)),
            Some(_) => self.append(&PairLine::new(record)),
        }
    }

    fn baseline(&mut self, record: &Record) -> io::Result<()> {
        self.append(&ConnLine::new(record))
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        match record.subject {
            _ if !self.events.has_subject(record.subject) => Ok(()),
            Subject::Connection => Ok(()),
            Subject::Reject(count) => self.append(&RejectLine::new(record, count)),
            Subject::Listener(queue) => self.append(&ListenerLine::new(record, queue)),
        }
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        self.append(&LostLine::from(lost))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        // A capture contains every close that passes the filter, even if `--events` does not print closes.
        let unprinted = self.closes.saturating_sub(summary.delivered);
        let summary = Summary {
            delivered: summary.delivered + unprinted,
            filtered: summary.filtered.saturating_sub(unprinted),
            ..summary.clone()
        };
        let line = SummaryLine::new(&summary, &self.header.info);
        append_line(&mut self.lines, &line)?;
        self.write_if_full()
    }

    /// Writes the lines if they are older than `MAX_LINE_AGE`.
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

/// Returns the path of the file after `age` rotations: `path` itself for 0, `path.1` for 1.
fn aged(path: &Path, age: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if age > 0 {
        name.push(format!(".{age}"));
    }
    name.into()
}

/// Renames every older file, and creates a new file at `path` that starts with `header`.
fn open_next(path: &Path, files: u32, header: &[u8]) -> io::Result<File> {
    rename_files(path, files)?;
    let mut file = create(path)?;
    if let Err(error) = file.write_all(header) {
        // Remove the incomplete header, because the next attempt needs the name.
        _ = fs::remove_file(path);
        return Err(capture_error(path.display(), error));
    }
    Ok(file)
}

/// Renames the files so that `path` is free. Only the files before the first free name move. The oldest file is
/// replaced only if no name is free, so repeated failures lose no file.
fn rename_files(path: &Path, files: u32) -> io::Result<()> {
    let is_free = |age: &u32| {
        let metadata = aged(path, *age).symlink_metadata();
        metadata.is_err_and(|error| error.kind() == ErrorKind::NotFound)
    };
    let free = (0..files).find(is_free).unwrap_or(files - 1);
    for age in (0..free).rev() {
        let (newer, older) = (aged(path, age), aged(path, age + 1));
        fs::rename(&newer, &older).map_err(|error| {
            let message = format!("cannot rename {} to {}: {error}", newer.display(), older.display());
            io::Error::new(error.kind(), message)
        })?;
    }
    Ok(())
}

/// Returns the error of a file that cannot be created. A directory or a link is no file that a user would remove.
fn cannot_create(path: &Path, error: io::Error) -> io::Error {
    let metadata = match error.kind() {
        ErrorKind::AlreadyExists => path.symlink_metadata().ok(),
        _ => None,
    };
    let reason = match metadata {
        Some(found) if found.is_dir() => "it is a directory\n  try: the name of a new file in the directory",
        Some(found) if found.is_symlink() => "it is a symbolic link, which --write never follows\n  try: another name",
        _ => return capture_error(path.display(), error),
    };
    capture_error(path.display(), io::Error::new(ErrorKind::InvalidInput, reason))
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // O_CREAT with O_EXCL fails if the name is a symbolic link (POSIX).
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|error| cannot_create(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing;

    const FILES: u32 = 3;

    /// The names in the folder before a rotation, and whether the rotation works. `x.1/d` makes `x.1` a directory.
    const CASES: [(&str, &[&str], bool); 8] = [
        ("the first rotation", &["x"], true),
        ("the last free name", &["x", "x.1"], true),
        ("all names taken by files", &["x", "x.1", "x.2"], true),
        ("another program removed the current file", &["x.1", "x.2"], true),
        (
            "a directory at the first older name, which is renamed",
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

    /// Returns the names in `folder` with the content of the files. A directory has empty content.
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

    #[cfg(unix)]
    #[test]
    fn error_says_what_has_the_name_of_the_capture() {
        let folder = folder("names");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        fs::create_dir(folder.join("folder")).unwrap();
        std::os::unix::fs::symlink("nothing", folder.join("dangling")).unwrap();
        for (name, part) in [
            ("file", "the file exists"),
            ("folder", "it is a directory\n  try: the name of a new file"),
            ("dangling", "it is a symbolic link, which --write never follows"),
        ] {
            let error = create(&folder.join(name)).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
        fs::remove_dir_all(&folder).unwrap();
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
    fn capture_continues_in_current_file_until_rotation_works() {
        let folder = folder("rotation-goes-on");
        fs::create_dir_all(folder.join("x.1")).unwrap();
        let path = folder.join("x");
        let rotation = Rotation { size: 4096, files: 2 };
        let mut capture = Capture::to(io::sink(), Compression::None, testing::header()).unwrap();
        capture.destination = Destination::File {
            file: create(&path).unwrap(),
            path: path.clone(),
            rotator: Some(Rotator::new(rotation)),
        };
        let fill = |capture: &mut Capture, bytes: u64| {
            capture.written = bytes;
            capture.rotate_if_full().unwrap();
            capture.header.part
        };
        capture.block_bytes = 0;
        assert_eq!(fill(&mut capture, 4096), 0, "x.1 is a directory");
        fs::remove_dir(folder.join("x.1")).unwrap();
        assert_eq!(fill(&mut capture, 5000), 0, "the next attempt is not due yet");
        assert_eq!(
            fill(&mut capture, 8192),
            1,
            "the next attempt is due after another 4096 bytes"
        );
        assert!(folder.join("x.1").is_file() && path.is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
}
