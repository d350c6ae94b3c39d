//! Flags that record and replay captures.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::values::{self, Size};
use crate::record::WallTime;
use crate::record::rfc3339;

/// The minimum size of a rotated file.
const MIN_ROTATED_BYTES: u64 = 64 << 10;
/// The number of rotated files if `--rotate` has no number.
const DEFAULT_ROTATED_FILES: u32 = 10;
/// The maximum number of rotated files. Each rotation renames all of them.
const MAX_ROTATED_FILES: u32 = 1000;

/// Flags that record and replay captures.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Captures")]
pub struct Capture {
    /// Record every event to a new file (-: standard output)
    ///
    /// The file has the lines of -o json: every event that passes the filters, opens and updates included, with its
    /// names, whatever --output and --events print; rejects and listeners if --events selects them. zstdcat and jq read
    /// it, and --read replays it. The name decides the compression: .zst zstd, .gz gzip, anything else none. A tracer
    /// that is killed loses at most its last second. Only the owner can read the file. An existing file is an error,
    /// and links are not followed. With -, add -o none, because standard output can hold only one of the two.
    ///
    /// Example: kmesh-trace --write incident.jsonl.zst
    #[arg(short, long, value_name = "FILE", value_parser = OsStringValueParser::new().map(CapturePath::from))]
    pub write: Option<CapturePath>,

    /// Replay a capture or saved JSON (-: standard input)
    ///
    /// Saved JSON is what -o json printed. A replay runs on any machine, without privileges, with any output and any
    /// filter. Repeat the flag to merge captures by time. The compression is found by content. --duration and --count
    /// count the times and records of the captures. --pods-file can add missing names. A damaged part is reported and
    /// skipped, and the exit status is then 1.
    ///
    /// Example: kmesh-trace --read incident.jsonl.zst --failed
    #[arg(short, long, value_name = "FILE", value_parser = OsStringValueParser::new().map(CapturePath::from))]
    #[arg(conflicts_with_all = ["buffer", "drops", "turns", "include_self", "cri", "kubelet", "kubeconfig"])]
    pub read: Vec<CapturePath>,

    /// With --read: replay from TIME on
    ///
    /// TIME is a time such as 2026-01-02T03:04:05Z, or -5m for five minutes before the end of the captures.
    ///
    /// Example: kmesh-trace --read incident.jsonl.zst --since -5m
    #[arg(long, value_name = "TIME", requires = "read", allow_hyphen_values = true)]
    pub since: Option<TimeBound>,

    /// With --read: replay until TIME
    ///
    /// TIME is as for --since.
    ///
    /// Example: kmesh-trace --read incident.jsonl.zst --until 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME", requires = "read", allow_hyphen_values = true)]
    pub until: Option<TimeBound>,

    /// With --read or nodes: join both ends of a connection
    ///
    /// Both ends of a connection between traced nodes give two records. With this flag they are one, of type `pair`
    /// in JSON, with the bytes that one end sent and the other did not receive. Records belong together if their
    /// addresses and ports are the same after every translation is undone, their lifetimes overlap, and their sequence
    /// numbers fit. A record that several others fit is not joined, and the summary counts it. Rollups, the table and
    /// the log count a connection once, and show both outcomes where they differ. A filter passes a connection if one
    /// of its ends passes.
    ///
    /// Example: kmesh-trace --read a.jsonl.zst --read b.jsonl.zst --join -o table --by node
    #[arg(long)]
    pub join: bool,

    /// Rotate after SIZE, retain N files [default N: 10]
    ///
    /// FILE is the newest file, FILE.1 the one before, and so on. The oldest is removed. Each file can be read alone.
    /// If a new file cannot be created, a warning gives the reason, and the capture goes on in the current file.
    ///
    /// Example: kmesh-trace --write node.jsonl.zst --rotate 100M,5
    #[arg(long, value_name = "SIZE[,N]", requires = "write")]
    pub rotate: Option<Rotation>,
}

/// A limit of the replayed part of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeBound {
    At(WallTime),
    /// A time before the end of the captures.
    BeforeEnd(Duration),
}

impl FromStr for TimeBound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(time) = rfc3339::parse(text) {
            return Ok(Self::At(time));
        }
        // Other tools write 5m for five minutes ago.
        let duration = values::time(
            text.strip_prefix('-').unwrap_or(text),
            "a time such as 2026-01-02T03:04:05Z, or -5m for five minutes before the end",
        )?;
        Ok(Self::BeforeEnd(duration))
    }
}

/// The file or stream of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CapturePath {
    /// Standard output of `--write -`, standard input of `--read -`.
    Pipe,
    /// The path of a file.
    File(PathBuf),
}

impl From<OsString> for CapturePath {
    fn from(text: OsString) -> Self {
        if text == "-" {
            Self::Pipe
        } else {
            Self::File(text.into())
        }
    }
}

/// The limits of a rotated capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The maximum size of one file in bytes.
    pub size: u64,
    /// The maximum number of files, the newest included.
    pub files: u32,
}

impl FromStr for Rotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (size, files) = text
            .split_once(',')
            .map_or((text, None), |(size, files)| (size, Some(files)));
        let Size(size) = size.parse()?;
        if size < MIN_ROTATED_BYTES {
            return Err("the minimum size of a file is 64Ki".to_owned());
        }
        let files = match files.map(str::parse) {
            None => DEFAULT_ROTATED_FILES,
            Some(Ok(files @ 2..=MAX_ROTATED_FILES)) => files,
            Some(_) => {
                return Err(format!(
                    "the number of files is from 2 to {MAX_ROTATED_FILES}: write 100M,5"
                ));
            }
        };
        Ok(Self { size, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_bound_is_a_time_or_a_duration_before_the_end() {
        let five_minutes = Ok(TimeBound::BeforeEnd(Duration::from_secs(300)));
        assert_eq!("-5m".parse(), five_minutes);
        assert_eq!("5m".parse(), five_minutes);
        assert_eq!(
            "1970-01-01T00:00:01Z".parse(),
            Ok(TimeBound::At(WallTime(1_000_000_000)))
        );
        assert_eq!("-300".parse(), five_minutes);
        for text in ["", "--5m", "yesterday", "2026-01-02", "-5M", "-1month", "-1y"] {
            assert!(text.parse::<TimeBound>().unwrap_err().contains("-5m"), "{text}");
        }
        assert!("-5M".parse::<TimeBound>().unwrap_err().contains("months"));
        assert!("1767323045".parse::<TimeBound>().unwrap_err().contains("ten years"));
    }

    #[test]
    fn rotation_is_size_and_number_of_files() {
        let rotation = |size, files| Ok(Rotation { size, files });
        let cases = [
            ("64Ki", rotation(65536, 10)),
            ("100M,5", rotation(100_000_000, 5)),
            ("1Gi,1000", rotation(1 << 30, 1000)),
            ("63Ki", Err("64Ki")),
            ("1M,1", Err("from 2")),
            ("1M,1001", Err("from 2")),
            ("1M,", Err("from 2")),
            (",3", Err("whole number")),
            ("1M,2,3", Err("from 2")),
        ];
        for (text, expected) in cases {
            match (text.parse::<Rotation>(), expected) {
                (Ok(rotation), Ok(expected)) => assert_eq!(rotation, expected, "{text}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }
}
