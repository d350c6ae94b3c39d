//! Numbers and times in the sentences of findings.

use crate::record::WallTime;
use crate::record::rfc3339::Rfc3339;

/// Returns the time of day in UTC: `03:19:40`.
pub fn clock(time: WallTime) -> String {
    let text = Rfc3339::new(time);
    text.time_of_day().chars().take(8).collect()
}

/// Returns a time span: `850 ns`, `48 µs`, `3.1 ms`, `60.0 s`.
pub fn span(nanoseconds: u64) -> String {
    let value = nanoseconds as f64;
    let (value, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (value / 1e3, "µs"),
        1_000_000..1_000_000_000 => (value / 1e6, "ms"),
        1_000_000_000..600_000_000_000 => (value / 1e9, "s"),
        _ => (value / 60e9, "min"),
    };
    let decimals = usize::from(value < 99.95);
    format!("{value:.decimals$} {unit}")
}

/// Returns a share: `4.1 %`, `87 %`.
pub fn share(count: u64, of: u64) -> String {
    let percent = 100.0 * count as f64 / of.max(1) as f64;
    let decimals = usize::from(percent < 9.95 && percent > 0.0);
    format!("{percent:.decimals$} %")
}

/// Returns a number of bytes: `312 B`, `4.5 KiB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let decimals = usize::from(unit != "B" && value < 99.95);
            return format!("{value:.decimals$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Returns a number with its noun: `1 pod`, `2 pods`.
pub fn plural(count: u64, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        assert_eq!(clock(WallTime(1_726_301_966_552_709_932)), "08:19:26");
        let spans = [
            (0, "0 ns"),
            (48_000, "48.0 µs"),
            (3_100_000, "3.1 ms"),
            (60_000_000_000, "60.0 s"),
        ];
        for (nanoseconds, expected) in spans {
            assert_eq!(span(nanoseconds), expected);
        }
        for (count, of, expected) in [(0, 9, "0 %"), (1, 3, "33 %"), (41, 1_000, "4.1 %"), (5, 0, "500 %")] {
            assert_eq!(share(count, of), expected);
        }
        for (count, expected) in [(312, "312 B"), (4_600, "4.5 KiB"), (1 << 50, "1024.0 TiB")] {
            assert_eq!(bytes(count), expected);
        }
    }
}
