//! The lines of all nodes on their way to the engine.
//!
//! Lines leave in the order in which they arrived. A record of a container that no source has reported yet waits: the
//! API server learns of a new container only about a second after its start.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::capture::parse::Line;

/// The longest wait of a line.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// The number of lines that may wait. Beyond it, the first one leaves with the names that are known.
const MAX_LINES: usize = 100_000;

/// The lines that have arrived. Pure: time is an argument.
#[derive(Debug, Default)]
pub struct Arrivals {
    lines: VecDeque<(Instant, usize, Line)>,
}

impl Arrivals {
    /// Adds a line of a node, which arrived at `now`.
    pub fn push(&mut self, node: usize, line: Line, now: Instant) {
        self.lines.push_back((now, node, line));
    }

    /// Returns the next line and its node, unless the line has to wait. `is_ready` says whether the names of a line are
    /// known.
    pub fn pop(&mut self, now: Instant, is_ready: impl FnOnce(&Line) -> bool) -> Option<(usize, Line)> {
        let (arrived, _, line) = self.lines.front()?;
        let must_wait = now < *arrived + MAX_WAIT && self.lines.len() <= MAX_LINES;
        if must_wait && !is_ready(line) {
            return None;
        }
        self.lines.pop_front().map(|(_, node, line)| (node, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Header, Lost, WallTime};

    fn lost(number: u64) -> Line {
        Line::Lost(Lost {
            time: WallTime(0),
            lost_records: number,
            lost_records_total: number,
            reasons: Vec::new(),
        })
    }

    #[test]
    fn line_waits_for_names_and_no_line_overtakes_it() {
        let mut arrivals = Arrivals::default();
        let start = Instant::now();
        arrivals.push(0, lost(1), start);
        arrivals.push(1, Line::Header(Header::unknown()), start);
        let is_header = |line: &Line| matches!(line, Line::Header(_));
        let almost = start + MAX_WAIT - Duration::from_nanos(1);
        assert_eq!(arrivals.pop(almost, is_header), None);
        assert_eq!(arrivals.pop(almost, |_| true), Some((0, lost(1))));
        assert_eq!(
            arrivals.pop(almost, is_header),
            Some((1, Line::Header(Header::unknown())))
        );
        assert_eq!(arrivals.pop(almost, |_| true), None);
    }

    #[test]
    fn no_line_waits_longer_than_two_seconds() {
        let mut arrivals = Arrivals::default();
        let start = Instant::now();
        arrivals.push(0, lost(1), start);
        assert_eq!(arrivals.pop(start + MAX_WAIT, |_| false), Some((0, lost(1))));
    }
}
