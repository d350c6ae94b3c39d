//! Settings, checked and resolved: what the arguments of [`crate::cli`] mean here.
//!
//! Each value is checked as it is parsed, so that `clap` names its flag in the error; what is left afterwards is to
//! bring the values together, with each other and with their surroundings.

mod capture;
mod filters;
mod metrics;
mod names;
mod table;

pub use capture::Kept;
pub(crate) use filters::min_duration;
pub use metrics::{Common, Level, Metrics, Settings};
pub(crate) use metrics::{cluster, max_series, metrics_address, metrics_idle};
pub(crate) use names::kubelet_url;
pub use names::{ApiServer, Kubelet, Origin, Source};
pub(crate) use table::max_groups;
pub use table::{Rolled, typed_filter};

use crate::capture::Place;
use crate::cli::Cli;
use crate::filter::Filter;
use crate::record::Event;
use std::ffi::OsStr;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

/// The largest ring buffer: the kernel maps it twice and keeps it in memory whole.
const MAX_BUFFER: u64 = 1 << 30;

/// The longest `--duration`; more is a slip of the finger, and clocks overflow at some point.
const MAX_DURATION: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The shortest `--interval`: a walk over many sockets takes a good part of that.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// What goes to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Access-log lines, Kmesh's fields first
    Log,
    /// One JSON object a line (see kmesh-trace schema)
    Json,
    /// What groups of connections do, interval by interval
    Table,
    /// Nothing
    None,
}

impl Output {
    /// Whether losses and sums stand among the data; if not, they go to standard error in words.
    pub fn has_reports(self) -> bool {
        self == Self::Json
    }
}

/// The name of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EventName {
    /// The connection, or the attempt to connect, is over
    Close,
    /// It was established
    Open,
    /// How it stands after each --interval
    Update,
}

/// Which events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// [`Event::Close`].
    pub close: bool,
    /// [`Event::Open`].
    pub open: bool,
    /// [`Event::Update`].
    pub update: bool,
}

impl Events {
    const ALL: Self = Self {
        close: true,
        open: true,
        update: true,
    };

    fn new(names: &[EventName]) -> Self {
        let has = |name| names.contains(&name);
        Self {
            close: has(EventName::Close),
            open: has(EventName::Open),
            update: has(EventName::Update),
        }
    }

    /// Whether this one is.
    pub fn has(self, event: Event) -> bool {
        match event {
            Event::Close => self.close,
            Event::Open => self.open,
            Event::Update => self.update,
        }
    }
}

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal that has colours, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How much goes to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors, and that records were lost.
    Quiet,
    /// The closing summary and warnings, too.
    Normal,
    /// Also what the tool does meanwhile.
    Verbose,
}

/// A run's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A capture to replay, in place of tracing.
    pub read: Option<Place>,
    /// A capture to make.
    pub kept: Option<Kept>,
    /// The format of standard output.
    pub output: Output,
    /// The events that go there.
    pub events: Events,
    /// What they are rolled up to, if they are.
    pub rolled: Option<Rolled>,
    /// The connections of which they are told.
    pub filter: Filter,
    /// Where names come from; empty when none are wanted.
    pub sources: Vec<Source>,
    /// How often update events are told.
    pub interval: Duration,
    /// Whether it is coloured.
    pub color: bool,
    /// Stop after this long.
    pub duration: Option<Duration>,
    /// Stop after so many records.
    pub count: Option<NonZeroU64>,
    /// Size of the kernel's ring buffer in bytes: a power of two and whole pages, as the kernel demands.
    pub ring_bytes: u32,
    /// How much goes to standard error.
    pub verbosity: Verbosity,
    /// What is served to Prometheus, if anything is.
    pub metrics: Option<Metrics>,
}

/// What settings depend on besides the arguments.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The variable NO_COLOR, if there is one.
    pub no_color: Option<&'a OsStr>,
    /// Standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// The variable TERM, if there is one.
    pub term: Option<&'a OsStr>,
    /// Bytes in a page; a power of two.
    pub page_size: u32,
}

impl Surroundings<'_> {
    /// Whether standard output is a terminal that has escape sequences: colours, and a screen to draw on.
    fn stdout_has_escapes(&self) -> bool {
        self.stdout_is_terminal && has_escapes(self.term)
    }

    /// Whether a person at the terminal can see a screen that is drawn, and press keys.
    fn is_interactive(&self) -> bool {
        self.stdin_is_terminal && self.stdout_has_escapes()
    }
}

/// Whether a terminal with this TERM has escape sequences. A terminal without a name is taken to have none.
pub fn has_escapes(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

impl Config {
    /// What `cli` means here, if it can mean anything.
    pub fn new(cli: &Cli, surroundings: Surroundings<'_>) -> Result<Self, Refusal> {
        let rolled = Rolled::new(cli, surroundings)?;
        // What is open counts in each window.
        let events = rolled
            .as_ref()
            .map_or_else(|| Events::new(&cli.events), |_| Events::ALL);
        Ok(Self {
            read: cli.capture.read.clone().map(Place::from),
            kept: capture::kept(cli, surroundings)?,
            output: cli.output,
            events,
            rolled,
            filter: filters::filter(cli)?,
            sources: names::sources(&cli.names)?,
            interval: cli.interval,
            color: matches!(cli.output, Output::Log | Output::Table) && color(cli.color, surroundings),
            duration: cli.duration,
            count: cli.count,
            ring_bytes: cli.buffer.ring_bytes(surroundings.page_size),
            verbosity: match (cli.quiet, cli.verbose) {
                (true, _) => Verbosity::Quiet,
                (false, true) => Verbosity::Verbose,
                (false, false) => Verbosity::Normal,
            },
            metrics: metrics::metrics(cli),
        })
    }
}

/// Arguments that exclude each other: which, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// `NO_COLOR` counts when it is not empty (no-color.org), and a flag outweighs it.
fn color(when: Color, surroundings: Surroundings<'_>) -> bool {
    match when {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => surroundings.stdout_has_escapes() && surroundings.no_color.is_none_or(OsStr::is_empty),
    }
}

/// Bytes, as people write them: `65536`, `64k` (1000), `64Ki` (1024), up to `G` and `Gi`, and any of these with a `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err("a size is a whole number with a unit: 65536, 64k, 8MiB".to_owned());
        }
        let unit = unit.trim_start_matches(' ');
        let unit = match unit.strip_suffix('B').unwrap_or(unit) {
            "" => 1,
            "k" | "K" => 1000,
            "M" => 1000 * 1000,
            "G" => 1000 * 1000 * 1000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err("the units are k M G (powers of 1000) and Ki Mi Gi (of 1024)".to_owned()),
        };
        // Digits alone fail to parse only when there are too many of them.
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit))
            .map(Self)
            .ok_or_else(too_large)
    }
}

fn too_large() -> String {
    "that is more than there can be".to_owned()
}

/// What `--buffer` asks for: from 1 byte to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSize(u32);

impl BufferSize {
    /// The least ring buffer of at least this size that the kernel accepts: a power of two of at least one page.
    fn ring_bytes(self, page_size: u32) -> u32 {
        self.0.max(page_size).next_power_of_two()
    }
}

impl FromStr for BufferSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<Size>()?.0 {
            0 => Err("the kernel has nowhere to put records then: 4Ki is the least that makes sense".to_owned()),
            bytes if bytes > MAX_BUFFER => Err("1GiB is the most".to_owned()),
            bytes => u32::try_from(bytes).map(Self).map_err(|_| too_large()),
        }
    }
}

impl fmt::Display for BufferSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Parses `--count`.
pub(crate) fn count(text: &str) -> Result<NonZeroU64, String> {
    match text.parse::<u64>() {
        Ok(count) => NonZeroU64::new(count).ok_or_else(|| "nothing would be printed: give 1 or more".to_owned()),
        Err(_) => Err("a count is a whole number from 1".to_owned()),
    }
}

/// Parses `--interval`.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(interval) if interval < MIN_INTERVAL => Err("100ms is the least".to_owned()),
        Ok(interval) if interval > MAX_DURATION => Err("ten years are the most".to_owned()),
        Ok(interval) => Ok(interval),
        Err(error) => Err(format!("{error}; write 500ms, 5s or 1m")),
    }
}

/// Parses `--duration`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("nothing would be traced: give more than 0s".to_owned()),
        Ok(duration) if duration > MAX_DURATION => {
            Err("ten years are the most; without the flag, tracing ends with Ctrl-C".to_owned())
        }
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write 30s, 5m or 1h30m")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use clap::Parser;

    const KI: u64 = 1 << 10;
    const MI: u64 = 1 << 20;

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("0", Ok(0)),
            ("1", Ok(1)),
            ("65536", Ok(65536)),
            ("512B", Ok(512)),
            ("64k", Ok(64_000)),
            ("64K", Ok(64_000)),
            ("64kB", Ok(64_000)),
            ("64Ki", Ok(64 * KI)),
            ("64KiB", Ok(64 * KI)),
            ("8M", Ok(8_000_000)),
            ("8MB", Ok(8_000_000)),
            ("8Mi", Ok(8 * MI)),
            ("8MiB", Ok(8 * MI)),
            ("8 MiB", Ok(8 * MI)),
            ("2G", Ok(2_000_000_000)),
            ("2Gi", Ok(2048 * MI)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("", Err("whole number")),
            ("MiB", Err("whole number")),
            ("-1", Err("whole number")),
            ("+1", Err("whole number")),
            ("1.5Mi", Err("units")),
            ("8m", Err("units")),
            ("8mib", Err("units")),
            ("8 M iB", Err("units")),
            ("8T", Err("units")),
            ("8MiBB", Err("units")),
            ("8BMi", Err("units")),
            ("0x10", Err("units")),
            ("18446744073709551616", Err("more than")),
            ("18446744073709551615k", Err("more than")),
        ];
        for (text, expected) in cases {
            match (text.parse::<Size>(), expected) {
                (Ok(size), Ok(bytes)) => assert_eq!(size, Size(bytes), "{text:?}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text:?}: {error}"),
                (result, _) => panic!("{text:?}: {result:?}"),
            }
        }
    }

    #[test]
    fn the_ring_is_a_power_of_two_of_whole_pages() {
        let cases = [
            ("1", 4096, 4096),
            ("4096", 4096, 4096),
            ("4097", 4096, 8192),
            ("12Ki", 4096, 16384),
            ("4Ki", 65536, 65536),
            ("8M", 4096, 8 << 20),
            ("8MiB", 4096, 8 << 20),
            ("1000M", 4096, 1 << 30),
            ("1Gi", 65536, 1 << 30),
        ];
        for (text, page_size, ring_bytes) in cases {
            assert_eq!(
                text.parse::<BufferSize>().unwrap().ring_bytes(page_size),
                ring_bytes,
                "{text} {page_size}"
            );
        }
    }

    #[test]
    fn limits_are_refused_in_words() {
        let refused = [
            (BufferSize::from_str("0").map(drop), "4Ki is the least"),
            (BufferSize::from_str("1073741825").map(drop), "1GiB is the most"),
            (BufferSize::from_str("2G").map(drop), "1GiB is the most"),
            (BufferSize::from_str("many").map(drop), "whole number"),
            (count("0").map(drop), "1 or more"),
            (count("-1").map(drop), "whole number"),
            (count("1.5").map(drop), "whole number"),
            (count("18446744073709551616").map(drop), "whole number"),
            (duration("0s").map(drop), "more than 0s"),
            (duration("0ms").map(drop), "more than 0s"),
            (duration("11years").map(drop), "ten years"),
            (duration("60").map(drop), "write 30s"),
            (duration("").map(drop), "write 30s"),
            (duration("-5s").map(drop), "write 30s"),
        ];
        for (result, part) in refused {
            let error = result.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(count("7"), Ok(NonZeroU64::new(7).unwrap()));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
    }

    const CLOSES: Events = Events {
        close: true,
        open: false,
        update: false,
    };

    /// Nothing special.
    pub(crate) const PLAIN: Surroundings<'_> = Surroundings {
        no_color: None,
        stdout_is_terminal: false,
        stdin_is_terminal: true,
        term: None,
        page_size: 4096,
    };

    /// What is typed, in words without spaces.
    pub(crate) fn parsed(arguments: &str) -> Cli {
        let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
        Cli::try_parse_from(arguments).unwrap()
    }

    fn config(arguments: &str, surroundings: Surroundings<'_>) -> Config {
        Config::new(&parsed(arguments), surroundings).unwrap()
    }

    #[test]
    fn the_bare_command_has_the_defaults_of_the_contract() {
        let expected = Config {
            read: None,
            kept: None,
            output: Output::Log,
            events: CLOSES,
            rolled: None,
            filter: Filter::default(),
            sources: names::sources(&Default::default()).unwrap(),
            interval: Duration::from_secs(5),
            color: false,
            duration: None,
            count: None,
            ring_bytes: 8 << 20,
            verbosity: Verbosity::Normal,
            metrics: None,
        };
        assert_eq!(config("", PLAIN), expected);
    }

    #[test]
    fn flags_arrive() {
        let expected = Config {
            read: None,
            kept: None,
            output: Output::None,
            events: CLOSES,
            rolled: None,
            filter: Filter::default(),
            sources: names::sources(&Default::default()).unwrap(),
            interval: Duration::from_secs(5),
            color: false,
            duration: Some(Duration::from_secs(60)),
            count: NonZeroU64::new(9),
            ring_bytes: 65536,
            verbosity: Verbosity::Verbose,
            metrics: None,
        };
        assert_eq!(
            config("-o none --duration 60s --count 9 --buffer 50k -v", PLAIN),
            expected
        );
        assert_eq!(config("-q", PLAIN).verbosity, Verbosity::Quiet);
        assert!(config("-o json", PLAIN).output.has_reports());
    }

    #[test]
    fn colours_and_the_screen_need_a_terminal_that_has_escapes() {
        for (term, expected) in [
            (Some("xterm-256color"), true),
            (Some("vt100"), true),
            (Some("dumb"), false),
            (Some(""), false),
            (None, false),
        ] {
            let surroundings = Surroundings {
                stdout_is_terminal: true,
                term: term.map(OsStr::new),
                ..PLAIN
            };
            assert_eq!(config("", surroundings).color, expected, "{term:?}");
            let table = config("-o table", surroundings);
            let on_terminal = table.rolled.is_some_and(|rolled| rolled.on_terminal);
            assert_eq!((table.color, on_terminal), (expected, expected), "{term:?}");
        }
    }

    #[test]
    fn color_follows_flag_then_no_color_then_terminal() {
        let set = Some(OsStr::new("1"));
        let empty = Some(OsStr::new(""));
        let term = Some(OsStr::new("xterm"));
        let cases = [
            ("a terminal", "", None, true, true),
            ("a pipe", "", None, false, false),
            ("NO_COLOR", "", set, true, false),
            ("empty NO_COLOR", "", empty, true, true),
            ("asked for, into a pipe", "--color always", None, false, true),
            ("asked for, against NO_COLOR", "--color always", set, true, true),
            ("asked not to", "--color never", None, true, false),
            ("JSON has none", "-o json --color always", None, true, false),
        ];
        for (name, arguments, no_color, stdout_is_terminal, expected) in cases {
            let surroundings = Surroundings {
                no_color,
                stdout_is_terminal,
                term,
                ..PLAIN
            };
            assert_eq!(config(arguments, surroundings).color, expected, "{name}");
        }
    }
}
