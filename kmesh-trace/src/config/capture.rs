//! The capture that a run records, and the captures that it replays.

use super::environment::Environment;
use super::error::ConfigError;
use crate::cli::{CapturePath, Cli, Output, Rotation, TimeBound};
use crate::record::WallTime;

/// A range of time. Both limits belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange<T> {
    pub since: Option<T>,
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
    /// Returns whether the range has no instant in any capture.
    pub(super) fn is_empty(&self) -> bool {
        match (self.since, self.until) {
            (Some(TimeBound::At(since)), Some(TimeBound::At(until))) => since > until,
            (Some(TimeBound::BeforeEnd(since)), Some(TimeBound::BeforeEnd(until))) => since < until,
            _ => false,
        }
    }

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

/// The capture that a run records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureConfig {
    /// The file or stream that receives the capture.
    pub path: CapturePath,
    /// The limits of a capture of several files.
    pub rotation: Option<Rotation>,
}

pub(super) fn capture(
    cli: &Cli,
    output: Output,
    environment: Environment<'_>,
) -> Result<Option<CaptureConfig>, ConfigError> {
    let Some(path) = cli.capture.write.clone() else {
        return Ok(None);
    };
    let rotation = cli.capture.rotate;
    if path == CapturePath::Pipe {
        if output != Output::None {
            return Err(ConfigError::new(
                "--write - cannot be used with --output: both write to standard output; add -o none",
            ));
        }
        if environment.stdout_is_terminal {
            return Err(ConfigError::new(
                "--write - cannot write to a terminal; redirect standard output to a file or a pipe",
            ));
        }
        if rotation.is_some() {
            return Err(ConfigError::new(
                "--rotate cannot be used with --write -: standard output is a single stream",
            ));
        }
    }
    Ok(Some(CaptureConfig { path, rotation }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::tests::{PLAIN, parsed};
    use clap::Parser;

    #[test]
    fn capture_on_standard_output_needs_all_of_it() {
        let refused = |arguments: &str, environment| {
            let cli = parsed(arguments);
            let config = capture(&cli, cli.output.unwrap_or(Output::Log), environment);
            config.err().map(|error| error.to_string())
        };
        let terminal = Environment {
            stdout_is_terminal: true,
            ..PLAIN
        };
        assert!(refused("-w - -o json", PLAIN).unwrap().contains("-o none"));
        assert!(refused("-w -", PLAIN).unwrap().contains("-o none"));
        assert!(refused("-w - -o none", terminal).unwrap().contains("terminal"));
        assert!(refused("-w - -o none --rotate 1M", PLAIN).unwrap().contains("--rotate"));
        assert_eq!(refused("-w - -o none", PLAIN), None);
        assert_eq!(refused("-w x.jsonl -o json --rotate 1M", terminal), None);
    }

    #[test]
    fn empty_range_is_refused() {
        let cases = [
            ("--since -1s --until -3s", true),
            ("--since -3s --until -1s", false),
            ("--since -3s --until -3s", false),
            ("--since 2026-01-02T03:04:06Z --until 2026-01-02T03:04:05Z", true),
            ("--since 2026-01-02T03:04:05Z --until 2026-01-02T03:04:05Z", false),
            ("--since 2026-01-02T03:04:05Z --until -1s", false),
            ("--until -1s", false),
        ];
        for (arguments, is_empty) in cases {
            let config = Config::new(&parsed(&format!("-r x {arguments}")), PLAIN);
            let error = config.err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(
                error.contains("--since cannot be later"),
                is_empty,
                "{arguments}: {error}"
            );
        }
    }

    #[test]
    fn capture_flags_that_need_or_exclude_others_are_refused() {
        for arguments in [
            "--rotate 1M",
            "-r x --buffer 1M",
            "-r x --include-self",
            "explain -r x --include-self",
        ] {
            let words = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{arguments}");
        }
    }
}
