//! The line above the table.

use super::{Told, text, units};
use crate::record::rfc3339::Rfc3339;
use crate::rollup::Row;

/// How far the node's name is shortened before anything else gives way.
const NODE: usize = 12;

/// Node, how long it has gone on, rates, losses, where names come from, and what else there is room for.
pub fn first(told: &Told, room: usize) -> String {
    let window = &told.window;
    let sum = |of: fn(&Row) -> u64| window.rows.iter().map(of).fold(0, u64::saturating_add);
    let rate = |bytes| match bytes {
        0 => "0 B/s".to_owned(),
        bytes => units::rate(bytes, window.length_ns),
    };
    let frequency = |number| units::frequency(number, window.length_ns);
    let sent = rate(sum(|row| row.sums.sent_bytes - row.sums.past_sent_bytes));
    let received = rate(sum(|row| row.sums.received_bytes - row.sums.past_received_bytes));
    let lost = match told.lost_records {
        0 => "0 lost".to_owned(),
        lost => format!("LOST {}", units::count(lost)),
    };
    let end = Rfc3339::new(window.end());
    // With what is left out one by one where there is no room, the highest first.
    let mut parts = vec![
        (0, text::harmless(&told.node)),
        (4, format!("{}Z", &end.time_of_day()[..8])),
        (0, format!("up {}", units::elapsed(told.elapsed_ns))),
        (0, format!("{sent} sent")),
        (0, format!("{received} recv")),
        (3, format!("{} opened", frequency(sum(|row| row.sums.opened)))),
        (1, format!("{} failed", frequency(sum(|row| row.sums.failed())))),
        (0, lost),
        (2, told.names.clone()),
    ];
    let width = |parts: &[(u8, String)]| parts.iter().map(|(_, part)| text::width(part) + 2).sum::<usize>();
    let over = width(&parts).saturating_sub(room + 2);
    let node = text::width(&parts[0].1);
    parts[0].1 = text::shorten(&parts[0].1, node.saturating_sub(over).max(NODE));
    for rank in (1..=4).rev() {
        if width(&parts) > room + 2 {
            parts.retain(|(one, _)| *one != rank);
        }
    }
    let parts: Vec<_> = parts.into_iter().map(|(_, part)| part).collect();
    parts.join("  ")
}
