//! Converts times of the kernel's monotonic clock to the wall clock.
//!
//! Both clocks run at the same rate (NTP slews both), so their difference is constant until the wall clock is stepped.
//! Each step adds an entry here. A time is converted by the difference that applied at that time.

use crate::record::WallTime;

/// The differences between the two clocks over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The start of each span on the monotonic clock, and the difference from then on, ns; in order, never empty.
    spans: Vec<(u64, i64)>,
}

/// The maximum number of spans. The times before the oldest span are converted by its difference.
const MAX_SPANS: usize = 64;

impl Clock {
    /// Creates a clock that has never been stepped.
    pub fn new(difference_ns: i64) -> Self {
        Self {
            spans: vec![(0, difference_ns)],
        }
    }

    /// Sets the difference from `since` (monotonic, ns) on.
    pub fn step(&mut self, since: u64, difference_ns: i64) {
        if self.spans.len() == MAX_SPANS {
            self.spans.remove(0);
            self.spans[0].0 = 0;
        }
        self.spans.push((since, difference_ns));
    }

    /// Returns the time of the wall clock at a time of the monotonic clock.
    pub fn wall(&self, monotonic_ns: u64) -> WallTime {
        let span = self.spans.iter().rev().find(|(since, _)| *since <= monotonic_ns);
        let difference = span.or(self.spans.first()).map_or(0, |&(_, difference)| difference);
        WallTime((monotonic_ns as i64).saturating_add(difference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_converted_by_difference_of_its_span() {
        let mut clock = Clock::new(1_000);
        clock.step(50, -500);
        clock.step(80, 7);
        let cases = [
            (0, 1_000),
            (49, 1_049),
            (50, -450),
            (79, -421),
            (80, 87),
            (1_000, 1_007),
        ];
        for (monotonic, wall) in cases {
            assert_eq!(clock.wall(monotonic), WallTime(wall), "at {monotonic}");
        }
    }

    #[test]
    fn number_of_spans_is_bounded() {
        let mut clock = Clock::new(0);
        for step in 1..=1_000 {
            clock.step(step, step as i64);
        }
        assert_eq!(clock.spans.len(), MAX_SPANS);
        assert_eq!(clock.wall(1_000), WallTime(2_000));
        assert_eq!(clock.wall(990), WallTime(1_980));
    }
}
