//! From the kernel's monotonic clock to the wall clock.
//!
//! Both run at the same rate (NTP slews both alike), so their difference is constant until somebody steps the wall clock.
//! Each step adds one entry here; a time is converted by the difference that held at that time.

use crate::record::WallTime;

/// The differences between the two clocks, by when each began to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// (since when on the monotonic clock, what to add), ns; in order, never empty.
    spans: Vec<(u64, i64)>,
}

/// Steps kept. A clock stepped more often than this within a connection's life is past telling.
const MAX_SPANS: usize = 64;

impl Clock {
    /// A clock of which only the present difference is known.
    pub fn new(difference_ns: i64) -> Self {
        Self {
            spans: vec![(0, difference_ns)],
        }
    }

    /// From `since` (monotonic, ns) on, the difference is this one.
    pub fn step(&mut self, since: u64, difference_ns: i64) {
        if self.spans.len() == MAX_SPANS {
            self.spans.remove(0);
            self.spans[0].0 = 0;
        }
        self.spans.push((since, difference_ns));
    }

    /// What the wall clock showed then.
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
    fn each_time_is_converted_by_the_difference_of_its_day() {
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
    fn any_number_of_steps_is_bounded() {
        let mut clock = Clock::new(0);
        for step in 1..=1_000 {
            clock.step(step, step as i64);
        }
        assert_eq!(clock.spans.len(), MAX_SPANS);
        assert_eq!(clock.wall(1_000), WallTime(2_000));
        assert_eq!(clock.wall(990), WallTime(1_980));
    }
}
