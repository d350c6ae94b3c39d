//! Values of general flags, and how they are parsed.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, ArgAction};

/// The maximum of `--buffer`. The kernel maps the buffer twice and never swaps it out.
const MAX_BUFFER: u64 = 1 << 30;

/// The maximum of every time flag, so that sums of times and clocks do not overflow.
pub(super) const MAX_TIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// The units of humantime that are refused. A user who writes `5M` means five minutes, not five months.
const LONG_UNITS: [&str; 8] = ["months", "month", "M", "years", "year", "yrs", "yr", "y"];

/// The minimum of `--interval`. A scan of many sockets takes a large part of a shorter one.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The format of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Access-log lines that begin with Kmesh's fields
    Log,
    /// One short line per connection, for people at a terminal
    Short,
    /// One JSON object per line (see kmesh-trace schema)
    Json,
    /// A table of groups of connections, redrawn every interval
    Table,
    /// No output
    None,
}

impl Output {
    /// Whether this format contains losses and summaries. Otherwise they are messages on standard error.
    pub fn has_reports(self) -> bool {
        self == Self::Json
    }
}

/// The name of an event in `--events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EventName {
    /// The connection ended, or the attempt to connect failed
    Close,
    /// The connection was established
    Open,
    /// The counters of an open connection, after each --interval
    Update,
    /// This node answered a segment with RST, because no socket was there
    Reject,
    /// The queues of a listening socket, after each --interval
    Listener,
}

/// When output has colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal with colors, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How the log, short lines and the table show times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum TimeFormat {
    /// In UTC
    Utc,
    /// In the time zone of this process: TZ, or /etc/localtime
    Local,
    /// As seconds since the first line
    Relative,
}

/// The shells with a completion script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// GNU Bash
    Bash,
    /// Z shell
    Zsh,
    /// Fish
    Fish,
}

/// A number of bytes, written `65536`, `64k` (1000), `64Ki` (1024), up to `G` and `Gi`, with or without a final `B`.
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
            _ => return Err("the units are k, M, G (powers of 1000) and Ki, Mi, Gi (powers of 1024)".to_owned()),
        };
        // A string of digits fails to parse only if the number is too large.
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit))
            .map(Self)
            .ok_or_else(|| "the size is larger than 16 EiB".to_owned())
    }
}

/// The value of `--buffer`: from 1 byte to 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufferSize(u32);

impl BufferSize {
    /// Returns the smallest size of a ring buffer that the kernel accepts and that is not below this size: a power of
    /// two of at least one page.
    pub fn ring_bytes(self, page_size: u32) -> u32 {
        self.0.max(page_size).next_power_of_two()
    }
}

impl FromStr for BufferSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<Size>()?.0 {
            0 => Err("the kernel needs a buffer for its records: write at least 4Ki".to_owned()),
            bytes if bytes > MAX_BUFFER => Err("the maximum is 1GiB".to_owned()),
            bytes => Ok(Self(u32::try_from(bytes).expect("1 GiB fits into 32 bits"))),
        }
    }
}

impl fmt::Display for BufferSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Parses the value of `--count`.
pub(super) fn count(text: &str) -> Result<NonZeroU64, String> {
    match text.parse::<u64>() {
        Ok(count) => NonZeroU64::new(count).ok_or_else(|| "nothing would be printed: write 1 or more".to_owned()),
        Err(_) => Err("write a whole number of 1 or more".to_owned()),
    }
}

/// The value of `--interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    Every(Duration),
    /// One window for the whole run.
    All,
}

/// Parses the value of `--interval`.
pub(super) fn interval(text: &str) -> Result<Interval, String> {
    if text == "all" {
        return Ok(Interval::All);
    }
    match time(text, "500ms, 5s, 1m or all")? {
        interval if interval < MIN_INTERVAL => Err("the minimum is 100ms".to_owned()),
        interval => Ok(Interval::Every(interval)),
    }
}

/// Parses the value of `--duration`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match time(text, "30s, 5m or 1h30m")? {
        Duration::ZERO => Err("nothing would be traced: write more than 0s".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a time of at most ten years. As in other tools, a number without a unit is in seconds. An error shows
/// `examples`.
pub(super) fn time(text: &str, examples: &str) -> Result<Duration, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let with_unit = format!("{text}{}", if is_number { "s" } else { "" });
    let Ok(time) = humantime::parse_duration(&with_unit) else {
        return Err(format!(
            "write {examples}: the units are ns, us, ms, s, m, h, d and w, and a number without a unit is in seconds"
        ));
    };
    let mut units = with_unit.split(|char: char| !char.is_alphabetic());
    if units.any(|unit| LONG_UNITS.contains(&unit)) {
        return Err(format!(
            "months and years are not accepted, and m is a minute: write {examples}"
        ));
    }
    match time > MAX_TIME {
        true => Err("the maximum is ten years".to_owned()),
        false => Ok(time),
    }
}

/// The ids of flags that take one value, and that a user may repeat to give several. clap refuses their repetition.
const SINGLE: [&str; 9] = [
    "write",
    "cri",
    "kubelet",
    "kubeconfig",
    "context",
    "pods_file",
    "metrics",
    // Of `nodes`: the filter of the same name can be repeated.
    "selector",
    "pod_namespace",
];

/// Lets the last value of a repeated flag win, so that a command line can change the flags of an alias. Leaves the flags
/// of [`SINGLE`] as they are, because the user would not notice that their earlier values are ignored.
pub(super) fn last_value_wins(flag: Arg) -> Arg {
    let id = flag.get_id().clone();
    let has_one_value = matches!(flag.get_action(), ArgAction::Set | ArgAction::SetTrue);
    match flag.is_positional() || !has_one_value || SINGLE.contains(&id.as_str()) {
        true => flag,
        false => flag.overrides_with(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KI: u64 = 1 << 10;
    const MI: u64 = 1 << 20;

    #[test]
    fn size_has_decimal_or_binary_unit() {
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
            ("18446744073709551616", Err("larger than")),
            ("18446744073709551615k", Err("larger than")),
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
    fn ring_buffer_is_power_of_two_of_whole_pages() {
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
            let size: BufferSize = text.parse().unwrap();
            assert_eq!(size.ring_bytes(page_size), ring_bytes, "{text} {page_size}");
        }
    }

    #[test]
    fn value_out_of_range_is_refused_with_limit() {
        let refused = [
            (BufferSize::from_str("0").map(drop), "at least 4Ki"),
            (BufferSize::from_str("1073741825").map(drop), "maximum is 1GiB"),
            (BufferSize::from_str("2G").map(drop), "maximum is 1GiB"),
            (BufferSize::from_str("many").map(drop), "whole number"),
            (count("0").map(drop), "1 or more"),
            (count("-1").map(drop), "whole number"),
            (count("1.5").map(drop), "whole number"),
            (count("18446744073709551616").map(drop), "whole number"),
            (interval("99ms").map(drop), "minimum is 100ms"),
            (interval("522w").map(drop), "ten years"),
            (interval("5x").map(drop), "write 500ms"),
            (interval("-1").map(drop), "write 500ms, 5s, 1m or all: the units are"),
            (interval("0").map(drop), "minimum is 100ms"),
            (interval("99999999999").map(drop), "ten years"),
            (duration("0s").map(drop), "more than 0s"),
            (duration("0ms").map(drop), "more than 0s"),
            (duration("3651d").map(drop), "ten years"),
            (duration("0").map(drop), "more than 0s"),
            (duration("1M").map(drop), "months and years are not accepted"),
            (duration("1h 2M").map(drop), "m is a minute: write 30s"),
            (duration("11years").map(drop), "months and years"),
            (duration("1y").map(drop), "months and years"),
            (duration("abc").map(drop), "write 30s, 5m or 1h30m: the units are ns"),
            (duration("1.5.2").map(drop), "write 30s"),
            (duration("").map(drop), "write 30s"),
            (duration("-5s").map(drop), "write 30s"),
        ];
        for (result, part) in refused {
            let error = result.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(count("7"), Ok(NonZeroU64::new(7).unwrap()));
        assert_eq!(interval("100ms"), Ok(Interval::Every(MIN_INTERVAL)));
        assert_eq!(interval("1"), Ok(Interval::Every(Duration::from_secs(1))));
        assert_eq!(interval("all"), Ok(Interval::All));
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("60"), Ok(Duration::from_secs(60)));
        assert_eq!(duration("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("1w 2days"), Ok(Duration::from_secs(9 * 24 * 60 * 60)));
        assert_eq!(duration("50ms"), Ok(Duration::from_millis(50)));
    }
}
