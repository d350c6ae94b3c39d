//! The lines above the table.

use super::{Frame, text, units};
use crate::output::time_text::date_and_time;
use crate::rollup::{Row, Sums};

/// The width of the node's name, below which other parts are left out first.
const NODE_WIDTH: usize = 12;

/// A part of a line. Parts with the highest rank are left out first, parts with rank 0 never.
pub type Part = (u8, String);

/// Returns the line about a frame: node, time, elapsed time, rates, waiting attempts and losses.
pub fn frame_line(frame: &Frame, width: usize) -> String {
    join(frame_parts(frame), width, NODE_WIDTH)
}

/// Returns the line about a frame with the date and the name sources, for output without a terminal.
pub fn dated_line(frame: &Frame, width: usize) -> String {
    let mut parts = frame_parts(frame);
    if let Some((date, time)) = date_and_time(frame.span.until, frame.time_format) {
        parts[1].1 = format!("{date} {time}");
    }
    parts.push((2, text::harmless(&frame.names)));
    join(parts, width, NODE_WIDTH)
}

fn frame_parts(frame: &Frame) -> Vec<Part> {
    let rate_ns = frame.span.rate_ns();
    let sum = |value: fn(&Sums) -> u64| {
        let rows = frame.rows.iter().map(|row| &row.row);
        rows.map(|row: &Row| value(&row.sums)).fold(0, u64::saturating_add)
    };
    let rate = |bytes| match bytes {
        0 => "0 B/s".to_owned(),
        bytes => units::rate(bytes, rate_ns),
    };
    let frequency = |number| units::frequency(number, rate_ns);
    let lost = match frame.lost_records {
        0 => "0 lost".to_owned(),
        lost => format!("LOST {}", units::count(lost)),
    };
    let mut parts = vec![(0, text::harmless(&frame.node))];
    parts.extend(date_and_time(frame.span.until, frame.time_format).map(|(_, time)| (3, time)));
    let up = parts.len();
    parts.extend([
        (0, format!("up {}", units::elapsed(frame.elapsed_ns))),
        (1, format!("{} sent", rate(sum(Sums::rated_sent_bytes)))),
        (2, format!("{} received", rate(sum(Sums::rated_received_bytes)))),
        (5, format!("{} opened", frequency(sum(|sums| sums.opened)))),
        (4, format!("{} failed", frequency(sum(Sums::failed)))),
    ]);
    // An attempt that hangs fails only minutes later, so the rate of failures does not show it.
    let connecting = sum(|sums| sums.connecting);
    if connecting > 0 {
        parts.push((0, format!("{} connecting", units::count(connecting))));
    }
    parts.push((0, lost));
    if frame.span.is_partial {
        parts.insert(up + 1, (0, format!("partial {}", units::time(frame.span.covered_ns()))));
    }
    parts
}

/// Joins as many parts as fit into `width` columns. Shortens the first part to `min_first` columns before it leaves
/// other parts out.
pub fn join(mut parts: Vec<Part>, width: usize, min_first: usize) -> String {
    let joined = |parts: &[Part]| parts.iter().map(|(_, part)| text::width(part) + 2).sum::<usize>();
    let excess = joined(&parts).saturating_sub(width + 2);
    if let Some((_, first)) = parts.first_mut() {
        let shorter = text::width(first).saturating_sub(excess).max(min_first);
        *first = text::shorten(first, shorter);
    }
    for rank in (1..=9).rev() {
        if joined(&parts) > width + 2 {
            parts.retain(|(part_rank, _)| *part_rank != rank);
        }
    }
    let parts: Vec<_> = parts.into_iter().map(|(_, part)| part).collect();
    parts.join("  ")
}
