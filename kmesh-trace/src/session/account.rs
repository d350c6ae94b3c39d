//! The account of a live run: the kernel's counters, and what happened to each record.

use crate::engine::Tally;
use crate::record::{Counts, LossReason, Lost, Summary, WallTime};

/// An instant of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventTime {
    /// The instant on the wall clock.
    pub time: WallTime,
    /// The nanoseconds since tracing began.
    pub elapsed_ns: u64,
}

/// The number of lost records by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Losses {
    ring_full: u64,
    no_storage: u64,
    skipped: u64,
    undecodable: u64,
}

impl Losses {
    fn total(self) -> u64 {
        self.ring_full + self.no_storage + self.skipped + self.undecodable
    }

    fn since(self, before: Self) -> Self {
        Self {
            ring_full: self.ring_full - before.ring_full,
            no_storage: self.no_storage - before.no_storage,
            skipped: self.skipped - before.skipped,
            undecodable: self.undecodable - before.undecodable,
        }
    }

    fn reasons(self) -> Vec<LossReason> {
        let all = [
            (self.ring_full, LossReason::RingFull),
            (self.no_storage, LossReason::NoSocketStorage),
            (self.skipped, LossReason::ProgramSkipped),
            (self.undecodable, LossReason::Undecodable),
        ];
        all.into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(_, reason)| reason)
            .collect()
    }
}

/// Counts lost records, and creates the reports of losses and the summaries.
#[derive(Debug, Default)]
pub struct Account {
    /// The losses that reports already contain.
    reported: Losses,
    undecodable: u64,
}

impl Account {
    /// Counts a record that cannot be decoded.
    pub fn undecodable(&mut self) {
        self.undecodable += 1;
    }

    /// Returns the number of closes that the kernel delivered.
    pub fn closes(&self, tally: Tally) -> u64 {
        tally.closes() + self.undecodable
    }

    /// Returns the number of lost records.
    pub fn total(&self, counts: &Counts) -> u64 {
        self.losses(counts).total()
    }

    /// Returns the losses since the last report, or `None` if nothing was lost since.
    pub fn lost(&mut self, counts: &Counts, time: WallTime) -> Option<Lost> {
        let losses = self.losses(counts);
        let new = losses.since(self.reported);
        if new.total() == 0 {
            return None;
        }
        self.reported = losses;
        Some(Lost {
            time,
            lost_records: new.total(),
            lost_records_total: losses.total(),
            reasons: new.reasons(),
        })
    }

    /// Returns the summary of the run so far.
    pub fn summary(&self, counts: &Counts, tally: Tally, at: EventTime) -> Summary {
        let losses = self.losses(counts);
        let mut reasons = losses.reasons();
        if counts.skipped_at_most > 0 && !reasons.contains(&LossReason::ProgramSkipped) {
            reasons.push(LossReason::ProgramSkipped);
            reasons.sort_unstable();
        }
        Summary {
            time: at.time,
            closes: counts.closes + counts.skipped_at_most,
            delivered: tally.delivered,
            filtered: counts.filtered + tally.filtered,
            lost_records: losses.total() + counts.skipped_at_most,
            lost_at_most: counts.skipped_at_most,
            reasons,
            after_limit: tally.after_limit,
            unresolved: tally.unresolved,
            open: counts.open,
            not_scanned: counts.not_scanned,
            drops_evicted: None,
            elapsed_ns: at.elapsed_ns,
            join: None,
        }
    }

    fn losses(&self, counts: &Counts) -> Losses {
        Losses {
            ring_full: counts.ring_full,
            no_storage: counts.no_storage,
            skipped: counts.skipped,
            undecodable: self.undecodable,
        }
    }
}
