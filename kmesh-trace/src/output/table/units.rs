//! Numbers with three digits and a unit.

use std::fmt::Write;

/// Formats a rate, as in `12.4 MiB/s`, with powers of 1024 and at most ten characters.
pub fn rate(bytes: u64, nanoseconds: u64) -> String {
    if bytes == 0 {
        return "-".to_owned();
    }
    let value = bytes as f64 * 1e9 / nanoseconds.max(1) as f64;
    if value < 0.5 {
        return "<1 B/s".to_owned();
    }
    size(value) + "/s"
}

/// Formats a number of bytes, as in `113 B` and `12.4 MiB`, with powers of 1024 and at most eight characters.
pub fn size(bytes: f64) -> String {
    let mut value = bytes;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    // A value that rounds to 1000 becomes 1.0 of the next unit.
    while value >= 999.5
        && let Some(next) = units.next()
    {
        (value, unit) = (value / 1024.0, next);
    }
    let decimals = usize::from(value < 99.95 && unit != "B");
    format!("{value:.decimals$} {unit}")
}

/// Formats a duration, as in `3.1ms`, with at most six characters.
pub fn time(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (value, unit) = match nanoseconds {
        0..1_000 => (value, "ns"),
        1_000..999_500 => (value / 1e3, "us"),
        999_500..999_500_000 => (value / 1e6, "ms"),
        999_500_000..99_500_000_000 => (value / 1e9, "s"),
        99_500_000_000..5_970_000_000_000 => (value / 60e9, "m"),
        5_970_000_000_000..356_400_000_000_000 => (value / 3600e9, "h"),
        _ => ((value / 86_400e9).min(99_999.0), "d"),
    };
    let decimals = usize::from(value < 9.95 && unit != "ns");
    format!("{value:.decimals$}{unit}")
}

/// Formats an elapsed time, as in `3m05s`.
pub fn elapsed(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds:02}s"),
        (_, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// Formats a count, as in `12345` and `123k`, with at most five characters. Zero is `-`, so that other counts stand
/// out.
pub fn count(number: u64) -> String {
    let mut text = String::new();
    let written = match number {
        0 => write!(text, "-"),
        1..100_000 => write!(text, "{number}"),
        100_000..9_999_500 => write!(text, "{}k", (number + 500) / 1_000),
        9_999_500..9_999_500_000 => write!(text, "{}M", (number + 500_000) / 1_000_000),
        _ => write!(text, "{}G", (number / 1_000_000_000).min(9999)),
    };
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
    text
}

/// Formats an age, as in `12s` and `3m`, with at most three characters up to 99 days.
pub fn age(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Formats a count, as in `12k`, with at most four characters.
pub fn brief(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..999_500 => format!("{}k", (number + 500) / 1_000),
        999_500..999_500_000 => format!("{}M", (number + 500_000) / 1_000_000),
        _ => format!("{}G", (number / 1_000_000_000).clamp(1, 999)),
    }
}

/// Formats a frequency, as in `2.4/s`.
pub fn frequency(number: u64, nanoseconds: u64) -> String {
    let value = number as f64 * 1e9 / nanoseconds.max(1) as f64;
    match value {
        0.0 => "0/s".to_owned(),
        ..9.95 => format!("{value:.1}/s"),
        ..99_999.5 => format!("{value:.0}/s"),
        _ => format!("{:.0}k/s", value / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        const SECOND: u64 = 1_000_000_000;
        const MI: u64 = 1 << 20;
        let cases = [
            (rate(0, SECOND), "-"),
            (rate(1, 5 * SECOND), "<1 B/s"),
            (rate(3, SECOND), "3 B/s"),
            (rate(999, SECOND), "999 B/s"),
            (rate(1000, SECOND), "1.0 KiB/s"),
            (rate(62 * MI, 5 * SECOND), "12.4 MiB/s"),
            (rate(512 * MI, SECOND), "512 MiB/s"),
            (rate(1023 * MI, SECOND), "1.0 GiB/s"),
            (rate(u64::MAX, SECOND), "16384 PiB/s"),
            (time(0), "0ns"),
            (time(999), "999ns"),
            (time(1_000), "1.0us"),
            (time(3_100_000), "3.1ms"),
            (time(9_960_000), "10ms"),
            (time(999_600), "1.0ms"),
            (time(999_600_000), "1.0s"),
            (time(30 * SECOND), "30s"),
            (time(100 * SECOND), "1.7m"),
            (time(7200 * SECOND), "2.0h"),
            (time(864_000 * SECOND), "10d"),
            (elapsed(59 * SECOND), "59s"),
            (elapsed(185 * SECOND), "3m05s"),
            (elapsed(3_720 * SECOND), "1h02m"),
            (age(0), "0s"),
            (age(59 * SECOND), "59s"),
            (age(3_599 * SECOND), "59m"),
            (age(7_200 * SECOND), "2h"),
            (age(864_000 * SECOND), "10d"),
            (count(0), "-"),
            (count(99_999), "99999"),
            (count(100_000), "100k"),
            (count(12_345_678), "12M"),
            (count(u64::MAX), "9999G"),
            (brief(999), "999"),
            (brief(15_028), "15k"),
            (brief(999_500), "1M"),
            (brief(u64::MAX), "999G"),
            (frequency(0, SECOND), "0/s"),
            (frequency(12, 5 * SECOND), "2.4/s"),
            (frequency(600, 5 * SECOND), "120/s"),
            (frequency(1_000_000, SECOND), "1000k/s"),
        ];
        for (text, expected) in cases {
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn times_counts_and_rates_fit_their_columns() {
        for shift in 0..64 {
            for number in [1_u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                assert!(count(number).len() <= 5, "{}", count(number));
                assert!(time(number).len() <= 6, "{}", time(number));
                assert!(
                    rate(number, 5_000_000_000).len() <= 11,
                    "{}",
                    rate(number, 5_000_000_000)
                );
            }
        }
    }
}
