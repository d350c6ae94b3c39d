//! The capture flags brought together.

use std::str::FromStr;
use std::time::Duration;

use crate::capture::{Place, Rotation};
use crate::cli::Cli;
use crate::record::WallTime;
use crate::rfc3339;

use super::{Output, Refusal, Size, Surroundings};

/// The smallest rotated file.
const MIN_SIZE: u64 = 64 << 10;
/// Files that are kept where it is not said how many.
const FILES: u32 = 10;
/// The most rotated files: each has to be renamed every time.
const MAX_FILES: u32 = 1000;

/// A limit of the replayed part of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeBound {
    /// This time.
    At(WallTime),
    /// This long before the end of the capture.
    BeforeEnd(Duration),
}

impl FromStr for TimeBound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(time) = rfc3339::parse(text) {
            return Ok(Self::At(time));
        }
        let before = text.strip_prefix('-').map(humantime::parse_duration);
        match before {
            Some(Ok(duration)) => Ok(Self::BeforeEnd(duration)),
            _ => Err("write a time such as 2026-01-02T03:04:05Z, or -5m for five minutes before the end".to_owned()),
        }
    }
}

/// A range of time. Both limits belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange<T> {
    /// The first time.
    pub since: Option<T>,
    /// The last time.
    pub until: Option<T>,
}

impl<T> TimeRange<T> {
    /// Returns the range with other limits.
    pub fn map<U>(&self, map: impl Fn(&T) -> U) -> TimeRange<U> {
        TimeRange {
            since: self.since.as_ref().map(&map),
            until: self.until.as_ref().map(&map),
        }
    }
}

impl TimeRange<TimeBound> {
    /// Returns whether a limit depends on the end of the capture.
    pub fn is_relative(&self) -> bool {
        let is_relative = |bound: &TimeBound| matches!(bound, TimeBound::BeforeEnd(_));
        self.since.iter().chain(&self.until).any(is_relative)
    }
}

impl TimeRange<WallTime> {
    /// Returns whether `time` is in the range.
    pub fn contains(&self, time: WallTime) -> bool {
        self.since.is_none_or(|since| since <= time) && !self.is_after(time)
    }

    /// Returns whether `time` is after the range.
    pub fn is_after(&self, time: WallTime) -> bool {
        self.until.is_some_and(|until| time > until)
    }
}

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Where.
    pub place: Place,
    /// In how many files.
    pub rotation: Option<Rotation>,
}

pub(super) fn kept(cli: &Cli, surroundings: Surroundings<'_>) -> Result<Option<Kept>, Refusal> {
    let Some(place) = cli.capture.write.clone().map(Place::from) else {
        return Ok(None);
    };
    let rotation = cli.capture.rotate;
    if place == Place::Pipe {
        if cli.output != Output::None {
            return refuse("--write - and --output: standard output holds one or the other; add -o none");
        }
        if surroundings.stdout_is_terminal {
            return refuse("--write -: standard output is a terminal; lead it into a file or a pipe");
        }
        if rotation.is_some() {
            return refuse("--rotate: standard output is no file that could be followed by another");
        }
    }
    Ok(Some(Kept { place, rotation }))
}

fn refuse<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal(why.to_owned()))
}

impl FromStr for Rotation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (size, files) = text
            .split_once(',')
            .map_or((text, None), |(size, files)| (size, Some(files)));
        let Size(size) = size.parse()?;
        if size < MIN_SIZE {
            return Err("64Ki is the least for a file".to_owned());
        }
        let files = match files.map(str::parse) {
            None => FILES,
            Some(Ok(files @ 2..=MAX_FILES)) => files,
            Some(_) => return Err(format!("the number of files is from 2 to {MAX_FILES}: 100M,5")),
        };
        Ok(Self { size, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::PLAIN;
    use clap::Parser;

    #[test]
    fn rotations() {
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

    #[test]
    fn what_cannot_go_together_is_refused() {
        let refused = |arguments: &str, surroundings| {
            let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
            let cli = Cli::try_parse_from(arguments).unwrap();
            kept(&cli, surroundings).err().map(|refusal| refusal.to_string())
        };
        let terminal = Surroundings {
            stdout_is_terminal: true,
            ..PLAIN
        };
        assert!(refused("-w - -o json", PLAIN).unwrap().contains("-o none"));
        assert!(refused("-w - -o none", terminal).unwrap().contains("terminal"));
        assert!(refused("-w - -o none --rotate 1M", PLAIN).unwrap().contains("--rotate"));
        assert_eq!(refused("-w - -o none", PLAIN), None);
        assert_eq!(refused("-w x.kmt -o json --rotate 1M", terminal), None);
        for arguments in ["--rotate 1M", "-r x --buffer 1M"] {
            let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
            assert!(Cli::try_parse_from(arguments).is_err());
        }
    }
}
