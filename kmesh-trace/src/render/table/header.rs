//! The line above the table.

use super::units;
use super::{Told, text};
use crate::rfc3339::Rfc3339;
use crate::rollup::Row;

/// Node, time, elapsed, rates, losses, and where names come from.
pub fn first(told: &Told) -> String {
    let window = &told.window;
    let sum = |of: fn(&Row) -> u64| window.rows.iter().map(of).fold(0, u64::saturating_add);
    let rate = |bytes| match bytes {
        0 => "0 B/s".to_owned(),
        bytes => units::rate(bytes, window.length_ns),
    };
    let frequency = |number| units::frequency(number, window.length_ns);
    let end = window.end();
    let lost = match told.lost_records {
        0 => "0 lost".to_owned(),
        lost => format!("LOST {lost}"),
    };
    format!(
        "{} {} up {}  {} sent {} received  {} opened {} failed  {lost}  {}",
        text::harmless(&told.node),
        &Rfc3339::new(end).time_of_day()[..8],
        units::elapsed(told.elapsed_ns),
        rate(sum(|row| row.sums.sent_bytes - row.sums.past_sent_bytes)),
        rate(sum(|row| row.sums.received_bytes - row.sums.past_received_bytes)),
        frequency(sum(|row| row.sums.opened)),
        frequency(sum(|row| row.sums.failed())),
        told.names,
    )
}
