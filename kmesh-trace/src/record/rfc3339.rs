//! Times as text: RFC 3339 in UTC with nine decimals.

use crate::record::WallTime;
use chrono::{DateTime, Datelike, NaiveDate};

const NANOS_PER_DAY: i64 = 86_400_000_000_000;
const LENGTH: usize = "2026-01-02T03:04:05.123456789Z".len();

/// A formatted time, on the stack. Years have four digits, since a [`WallTime`] ranges from 1677 to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rfc3339([u8; LENGTH]);

impl Rfc3339 {
    /// Formats `time` as `2026-01-02T03:04:05.123456789Z`.
    pub fn new(time: WallTime) -> Self {
        // 64 bits of nanoseconds are at most 106,752 days before or after the epoch, so no cast below truncates.
        let day = time.0.div_euclid(NANOS_PER_DAY) as i32;
        let nanos_of_day = time.0.rem_euclid(NANOS_PER_DAY) as u64;
        let second = (nanos_of_day / 1_000_000_000) as u32;
        let date = NaiveDate::from_epoch_days(day).unwrap_or_default();
        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        digits(&mut text[0..4], date.year().unsigned_abs());
        digits(&mut text[5..7], date.month());
        digits(&mut text[8..10], date.day());
        digits(&mut text[11..13], second / 3600);
        digits(&mut text[14..16], second / 60 % 60);
        digits(&mut text[17..19], second % 60);
        digits(&mut text[20..29], (nanos_of_day % 1_000_000_000) as u32);
        Self(text)
    }

    /// Returns the whole text: `2026-01-02T03:04:05.123456789Z`.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("only ASCII")
    }

    /// Returns the date: `2026-01-02`.
    pub fn date(&self) -> &str {
        &self.as_str()[..10]
    }

    /// Returns the time of day: `03:04:05.123456789`.
    pub fn time_of_day(&self) -> &str {
        &self.as_str()[11..29]
    }
}

/// Parses an RFC 3339 time, with any offset and any number of decimals. Returns `None` if the text is malformed or out
/// of the range of a [`WallTime`].
pub fn parse(text: &str) -> Option<WallTime> {
    let nanos = parse_fast(text.as_bytes()).or_else(|| DateTime::parse_from_rfc3339(text).ok()?.timestamp_nanos_opt());
    nanos.map(WallTime)
}

/// Parses the exact format of [`Rfc3339`]. Every line of a capture has several times, so this is a hot path.
fn parse_fast(text: &[u8]) -> Option<i64> {
    let text: &[u8; LENGTH] = text.try_into().ok()?;
    let marks = [
        (4, b'-'),
        (7, b'-'),
        (10, b'T'),
        (13, b':'),
        (16, b':'),
        (19, b'.'),
        (29, b'Z'),
    ];
    if marks.iter().any(|(at, mark)| text[*at] != *mark) {
        return None;
    }
    let number = |from: usize, to: usize| {
        text[from..to].iter().try_fold(0_u32, |number, digit| {
            let digit = digit.wrapping_sub(b'0');
            (digit < 10).then(|| number * 10 + u32::from(digit))
        })
    };
    let date = NaiveDate::from_ymd_opt(number(0, 4)?.try_into().ok()?, number(5, 7)?, number(8, 10)?)?;
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = i64::from(date.to_epoch_days()) * 86_400 + i64::from(hour * 3600 + minute * 60 + second);
    // This order of operations does not overflow for the earliest time.
    i128::from(seconds)
        .checked_mul(1_000_000_000)?
        .checked_add(i128::from(number(20, 29)?))?
        .try_into()
        .ok()
}

/// Fills `field` with the decimal digits of `number`, padded with zeros.
fn digits(field: &mut [u8], mut number: u32) {
    for digit in field.iter_mut().rev() {
        // The remainder is less than ten, so the cast does not truncate.
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_with_nine_decimals() {
        // Seconds as `date -u -d … +%s` gives them.
        let cases = [
            ("the epoch", 0, "1970-01-01T00:00:00.000000000Z"),
            ("one nanosecond", 1, "1970-01-01T00:00:00.000000001Z"),
            ("before the epoch", -1, "1969-12-31T23:59:59.999999999Z"),
            (
                "the contract's example",
                1_726_301_966_552_709_932,
                "2024-09-14T08:19:26.552709932Z",
            ),
            (
                "a leap day",
                1_709_164_800_000_000_000,
                "2024-02-29T00:00:00.000000000Z",
            ),
            (
                "the last nanosecond of a year",
                1_767_225_599_999_999_999,
                "2025-12-31T23:59:59.999999999Z",
            ),
            (
                "a century without a leap day",
                4_107_542_400_000_000_000,
                "2100-03-01T00:00:00.000000000Z",
            ),
            ("the earliest", i64::MIN, "1677-09-21T00:12:43.145224192Z"),
            ("the latest", i64::MAX, "2262-04-11T23:47:16.854775807Z"),
        ];
        for (name, nanos, text) in cases {
            assert_eq!(Rfc3339::new(WallTime(nanos)).as_str(), text, "{name}");
            assert_eq!(parse(text), Some(WallTime(nanos)), "{name}");
        }
    }

    #[test]
    fn other_rfc3339_forms_are_parsed() {
        let time = Some(WallTime(1_726_301_966_500_000_000));
        let cases = [
            ("2024-09-14T08:19:26.5Z", time),
            ("2024-09-14T10:19:26.500000+02:00", time),
            ("2024-09-14 08:19:26.5Z", time),
            ("2024-09-14T08:19:26.50000000xZ", None),
            ("2024-13-14T08:19:26.500000000Z", None),
            ("2024-09-14T24:19:26.500000000Z", None),
            ("2500-09-14T08:19:26.500000000Z", None),
            ("5m", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn date_and_time_of_day_are_parts_of_the_text() {
        let time = Rfc3339::new(WallTime(1_726_301_966_552_709_932));
        assert_eq!((time.date(), time.time_of_day()), ("2024-09-14", "08:19:26.552709932"));
    }
}
