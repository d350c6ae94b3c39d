//! Times for people, as `--time-format` selects: in UTC, in local time, or as seconds since the first line.

use std::io::Write;

use chrono::{DateTime, Local, Offset};

use crate::config::TimeFormat;
use crate::record::WallTime;
use crate::record::rfc3339::Rfc3339;

/// The length of `07:22:29.104`.
const TO_MILLISECONDS: usize = 12;
/// The length of `07:22:29`.
const TO_SECONDS: usize = 8;

/// Formats the times of the lines of one output.
#[derive(Clone, Copy, Debug)]
pub struct LineTimes {
    format: TimeFormat,
    /// The time of the first line, from which relative times count.
    first: Option<WallTime>,
}

impl LineTimes {
    /// Returns the formatter of an output that has no lines yet.
    pub fn new(format: TimeFormat) -> Self {
        Self { format, first: None }
    }

    /// Appends `2026-01-02 03:04:05.123456789 +0000 UTC`, the form of Go's log lines, or `+1.234567890s`.
    pub fn append_full(&mut self, out: &mut Vec<u8>, time: WallTime) {
        let (clock, zone) = match self.format {
            TimeFormat::Relative => return out.extend_from_slice(self.relative(time, 9).as_bytes()),
            TimeFormat::Utc => (Rfc3339::new(time), None),
            TimeFormat::Local => {
                let (clock, offset) = local(time);
                (clock, Some(zone(offset, "")))
            }
        };
        out.extend_from_slice(clock.date().as_bytes());
        out.push(b' ');
        out.extend_from_slice(clock.time_of_day().as_bytes());
        match zone {
            None => out.extend_from_slice(b" +0000 UTC"),
            // Go repeats the offset of a zone without an abbreviation.
            Some(zone) => _ = write!(out, " {zone} {zone}"),
        }
    }

    /// Returns `03:04:05.123` or `+1.234s`.
    pub fn time_of_day(&mut self, time: WallTime) -> String {
        let clock = match self.format {
            TimeFormat::Utc => Rfc3339::new(time),
            TimeFormat::Local => local(time).0,
            TimeFormat::Relative => return format!("{:>TO_MILLISECONDS$}", self.relative(time, 3)),
        };
        clock.time_of_day()[..TO_MILLISECONDS].to_owned()
    }

    /// Returns the seconds since the first line: `+1.234s`.
    fn relative(&mut self, time: WallTime, decimals: usize) -> String {
        let first = *self.first.get_or_insert(time);
        let nanoseconds = time.0.saturating_sub(first.0);
        let sign = if nanoseconds < 0 { '-' } else { '+' };
        let nanoseconds = nanoseconds.unsigned_abs();
        let decimal_places = format!("{:09}", nanoseconds % 1_000_000_000);
        format!("{sign}{}.{}s", nanoseconds / 1_000_000_000, &decimal_places[..decimals])
    }
}

/// Returns the date `2026-01-02` and the time `03:04:05Z` or `05:04:05+02:00`; `None` if `format` shows neither.
pub fn date_and_time(time: WallTime, format: TimeFormat) -> Option<(String, String)> {
    let (clock, zone) = match format {
        TimeFormat::Utc => (Rfc3339::new(time), "Z".to_owned()),
        TimeFormat::Local => {
            let (clock, offset) = local(time);
            (clock, zone(offset, ":"))
        }
        TimeFormat::Relative => return None,
    };
    let to_seconds = &clock.time_of_day()[..TO_SECONDS];
    Some((clock.date().to_owned(), format!("{to_seconds}{zone}")))
}

/// Returns date and time in this process's time zone, and the zone's offset from UTC at that time, seconds.
fn local(time: WallTime) -> (Rfc3339, i32) {
    let utc = DateTime::from_timestamp_nanos(time.0);
    let offset = utc.with_timezone(&Local).offset().fix().local_minus_utc();
    let shifted = time.0.saturating_add(i64::from(offset) * 1_000_000_000);
    (Rfc3339::new(WallTime(shifted)), offset)
}

/// Returns the offset from UTC as `+0200`, with `separator` between hours and minutes.
fn zone(offset: i32, separator: &str) -> String {
    let sign = if offset < 0 { '-' } else { '+' };
    let minutes = offset.unsigned_abs() / 60;
    format!("{sign}{:02}{separator}{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time 2026-01-02 03:04:05.123456789 UTC.
    const TIME: WallTime = WallTime(1_767_323_045_123_456_789);

    fn full(times: &mut LineTimes, time: WallTime) -> String {
        let mut out = Vec::new();
        times.append_full(&mut out, time);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn utc_is_the_form_of_go() {
        let mut times = LineTimes::new(TimeFormat::Utc);
        assert_eq!(full(&mut times, TIME), "2026-01-02 03:04:05.123456789 +0000 UTC");
        assert_eq!(times.time_of_day(TIME), "03:04:05.123");
        let expected = ("2026-01-02".to_owned(), "03:04:05Z".to_owned());
        assert_eq!(date_and_time(TIME, TimeFormat::Utc), Some(expected));
    }

    #[test]
    fn relative_times_count_from_the_first_line() {
        let mut times = LineTimes::new(TimeFormat::Relative);
        assert_eq!(times.time_of_day(TIME), "     +0.000s");
        assert_eq!(full(&mut times, WallTime(TIME.0 + 61_000_000_002)), "+61.000000002s");
        // Records come in the order in which connections close, so a line can be earlier than the first.
        assert_eq!(times.time_of_day(WallTime(TIME.0 - 1_500_000)), "     -0.001s");
        assert_eq!(date_and_time(TIME, TimeFormat::Relative), None);
    }

    #[test]
    fn offsets_have_a_sign_and_four_digits() {
        let cases = [
            (0, "+00:00"),
            (7_200, "+02:00"),
            (-12_600, "-03:30"),
            (45_900, "+12:45"),
        ];
        for (offset, expected) in cases {
            assert_eq!(zone(offset, ":"), expected);
            assert_eq!(zone(offset, ""), expected.replace(':', ""));
        }
    }
}
