//! From the queue to standard output: decode, track, limit, filter, render. Owns all that must be counted on the way.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::num::NonZeroU64;

use crate::clock::Clock;
use crate::config::Events;
use crate::decode::decode;
use crate::enrich::Cgroups;
use crate::filter::Filter;
use crate::record::{Event, LossReason, Lost, Record, Summary};
use crate::render::Render;
use crate::source::reader::{Complete, Counts, records};
use crate::track::Tracker;

/// Bytes of output that are written at once.
const WRITE: usize = 64 << 10;

/// When to stop by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// After so many records.
    pub count: Option<NonZeroU64>,
    /// With what happened until then: CLOCK_MONOTONIC, ns.
    pub until_ns: Option<u64>,
}

/// Which records go to the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Of these events.
    pub events: Events,
    /// Of connections that pass this.
    pub filter: Filter,
}

/// What became of the closes that were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Records of whatever event.
    printed: u64,
    delivered: u64,
    filtered: u64,
    after_limit: u64,
    undecodable: u64,
}

impl Tally {
    /// All that were told.
    fn closes(self) -> u64 {
        self.delivered + self.filtered + self.after_limit + self.undecodable
    }
}

/// The state between queue and output.
pub struct Pipeline<W> {
    began_ns: u64,
    clock: Clock,
    tracker: Tracker,
    choice: Choice,
    limits: Limits,
    render: Box<dyn Render + Send>,
    /// Lines not written yet.
    lines: Vec<u8>,
    out: W,
    tally: Tally,
    /// As of the last `lost` line.
    told: Losses,
    /// Summaries asked for meanwhile, each to be made when all closes counted until then have been dealt with.
    asked: VecDeque<Counts>,
    /// Summaries made, for the caller to say in words.
    made: Vec<Summary>,
    containers: Cgroups,
}

/// Losses by reason.
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

impl<W: Write> Pipeline<W> {
    /// Tracing began at `began_ns` (CLOCK_MONOTONIC).
    pub fn new(
        began_ns: u64,
        clock: Clock,
        choice: Choice,
        limits: Limits,
        render: Box<dyn Render + Send>,
        out: W,
    ) -> Self {
        Self {
            began_ns,
            clock,
            tracker: Tracker::new(began_ns),
            choice,
            limits,
            render,
            lines: Vec::new(),
            out,
            tally: Tally::default(),
            told: Losses::default(),
            asked: VecDeque::new(),
            made: Vec::new(),
            containers: Cgroups::below(None),
        }
    }

    /// Names the containers of these cgroups.
    pub fn with_containers(mut self, containers: Cgroups) -> Self {
        self.containers = containers;
        self
    }

    /// The wall clock was stepped.
    pub fn clock_stepped(&mut self, since_ns: u64, difference_ns: i64) {
        self.clock.step(since_ns, difference_ns);
    }

    /// Takes records as [`crate::source::reader::Message::Records`] has them, and writes what is settled.
    pub fn take(&mut self, bytes: &[u8], complete: Complete) -> io::Result<()> {
        self.hold(bytes);
        // While the ring is never empty, what it has told so far goes as far as its latest record.
        let complete_ns = complete.ring_empty_ns.unwrap_or_else(|| self.tracker.latest_ns());
        self.emit(
            complete
                .walk_began_ns
                .map_or(complete_ns, |began_ns| complete_ns.min(began_ns)),
        )?;
        self.flush()
    }

    /// Takes records, and writes nothing yet.
    pub fn hold(&mut self, bytes: &[u8]) {
        for record in records(bytes) {
            match decode(record) {
                Ok(event) => self.tracker.take(event),
                Err(_) => self.tally.undecodable += 1,
            }
        }
    }

    /// No more records will come: writes those that were still held.
    pub fn finish(&mut self) -> io::Result<()> {
        self.emit(u64::MAX)?;
        self.flush()
    }

    /// Whether `--count` is reached.
    pub fn is_full(&self) -> bool {
        self.limits.count.is_some_and(|count| self.tally.printed >= count.get())
    }

    fn emit(&mut self, complete_ns: u64) -> io::Result<()> {
        while let Some((closed_ns, mut record)) = self.tracker.next(complete_ns, &self.clock) {
            record.container_id = record.cgroup_id.and_then(|id| self.containers.container_of(id));
            self.settle(closed_ns, &record)?;
        }
        Ok(())
    }

    fn settle(&mut self, happened_ns: u64, record: &Record) -> io::Result<()> {
        self.deliver(happened_ns, record)?;
        if self.asked.is_empty() { Ok(()) } else { self.answer() }
    }

    fn deliver(&mut self, happened_ns: u64, record: &Record) -> io::Result<()> {
        // The sums are over closes; an `open` or an `update` more or less changes none.
        let close = u64::from(record.event == Event::Close);
        // The limit comes first: what would have been sorted out counts as `after_limit`, too. And what is sorted out
        // does not count against `--count`.
        if self.is_full() || self.limits.until_ns.is_some_and(|until_ns| happened_ns > until_ns) {
            self.tally.after_limit += close;
            return Ok(());
        }
        if !(self.choice.events.has(record.event) && self.choice.filter.passes(record)) {
            self.tally.filtered += close;
            return Ok(());
        }
        self.render.record(record, &mut self.lines)?;
        self.tally.printed += 1;
        self.tally.delivered += close;
        if self.lines.len() >= WRITE {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// What was lost since this was last called, if anything was: a `lost` line is written. For formats that have none
    /// the caller says it in words.
    pub fn lost(&mut self, counts: &Counts) -> io::Result<Option<Lost>> {
        let losses = self.losses(counts);
        let new = losses.since(self.told);
        if new.total() == 0 {
            return Ok(None);
        }
        self.told = losses;
        let lost = Lost {
            time: self.clock.wall(counts.at_ns),
            lost_records: new.total(),
            lost_records_total: losses.total(),
            reasons: new.reasons(),
        };
        self.render.lost(&lost, &mut self.lines)?;
        self.flush()?;
        Ok(Some(lost))
    }

    /// A summary is wanted of these counts. It is made between the records that were counted and those that were not, and
    /// comes out of [`Self::summaries`].
    pub fn ask(&mut self, counts: Counts) -> io::Result<()> {
        self.asked.push_back(counts);
        self.answer()
    }

    /// The summaries made since this was last called.
    pub fn summaries(&mut self) -> Vec<Summary> {
        std::mem::take(&mut self.made)
    }

    fn answer(&mut self) -> io::Result<()> {
        while self
            .asked
            .front()
            .is_some_and(|counts| counts.told <= self.tally.closes())
            && let Some(counts) = self.asked.pop_front()
        {
            let summary = self.summary(&counts)?;
            self.made.push(summary);
        }
        Ok(())
    }

    /// How many of what so far: a `summary` line is written. For formats that have none the caller says it in words.
    pub fn summary(&mut self, counts: &Counts) -> io::Result<Summary> {
        let losses = self.losses(counts);
        let mut reasons = losses.reasons();
        if counts.skipped_at_most > 0 && !reasons.contains(&LossReason::ProgramSkipped) {
            reasons.push(LossReason::ProgramSkipped);
            reasons.sort_unstable();
        }
        let summary = Summary {
            time: self.clock.wall(counts.at_ns),
            closes: counts.closes + counts.skipped_at_most,
            delivered: self.tally.delivered,
            filtered: counts.filtered + self.tally.filtered,
            lost_records: losses.total() + counts.skipped_at_most,
            lost_at_most: counts.skipped_at_most,
            reasons,
            after_limit: self.tally.after_limit,
            unresolved: 0,
            open: counts.open,
            elapsed_ns: counts.at_ns.saturating_sub(self.began_ns),
        };
        self.render.summary(&summary, &mut self.lines)?;
        self.flush()?;
        Ok(summary)
    }

    fn losses(&self, counts: &Counts) -> Losses {
        Losses {
            ring_full: counts.ring_full,
            no_storage: counts.no_storage,
            skipped: counts.skipped,
            undecodable: self.tally.undecodable,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        self.out.write_all(&self.lines)?;
        self.lines.clear();
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};
    use kmesh_trace_common::{FLAG_ACTIVE, KIND_CLOSE, KIND_UPDATE, SK_DONE, Snapshot, state};

    use super::*;

    const ALL: Events = Events {
        close: true,
        open: true,
        update: true,
    };
    const CLOSES: Events = Events {
        close: true,
        open: false,
        update: false,
    };

    /// A renderer that writes a letter a line.
    struct Letters;

    impl Render for Letters {
        fn record(&mut self, record: &Record, out: &mut dyn Write) -> io::Result<()> {
            let letter = if record.event == Event::Close { "c" } else { "u" };
            write!(out, "{letter}{} ", record.id.cookie)
        }

        fn lost(&mut self, lost: &Lost, out: &mut dyn Write) -> io::Result<()> {
            write!(out, "lost{} ", lost.lost_records)
        }

        fn summary(&mut self, _: &Summary, out: &mut dyn Write) -> io::Result<()> {
            write!(out, "end ")
        }
    }

    fn pipeline(events: Events, limits: Limits) -> Pipeline<Vec<u8>> {
        let choice = Choice {
            events,
            filter: Filter::default(),
        };
        filtering(choice, limits)
    }

    fn filtering(choice: Choice, limits: Limits) -> Pipeline<Vec<u8>> {
        Pipeline::new(0, Clock::new(0), choice, limits, Box::new(Letters), Vec::new())
    }

    fn record(kind: u32, cookie: u64) -> Vec<u8> {
        let snapshot = Snapshot {
            kind,
            cookie,
            time_ns: cookie,
            association: 1,
            flags: FLAG_ACTIVE,
            old_state: state::FIN_WAIT2,
            sk_flags: SK_DONE,
            ..Snapshot::zeroed()
        };
        let bytes = bytes_of(&snapshot);
        [&(bytes.len() as u64).to_ne_bytes(), bytes].concat()
    }

    fn text(pipeline: &Pipeline<Vec<u8>>) -> &str {
        std::str::from_utf8(&pipeline.out).unwrap()
    }

    #[test]
    fn closes_are_all_accounted_for() {
        let limits = Limits {
            count: NonZeroU64::new(3),
            until_ns: None,
        };
        let mut pipeline = pipeline(CLOSES, limits);
        for cookie in 1..=5 {
            pipeline.hold(&record(KIND_CLOSE, cookie));
        }
        pipeline.hold(&record(77, 9));
        assert!(!pipeline.is_full());
        pipeline.finish().unwrap();
        assert!(pipeline.is_full());
        let counts = Counts {
            closes: 10,
            filtered: 1,
            ring_full: 2,
            skipped_at_most: 4,
            ..Counts::default()
        };
        let lost = pipeline.lost(&counts).unwrap().unwrap();
        assert_eq!((lost.lost_records, lost.lost_records_total), (3, 3));
        assert_eq!(lost.reasons, [LossReason::RingFull, LossReason::Undecodable]);
        assert_eq!(pipeline.lost(&counts).unwrap(), None, "nothing new");
        let summary = pipeline.summary(&counts).unwrap();
        assert_eq!(
            (summary.closes, summary.delivered, summary.after_limit, summary.filtered),
            (14, 3, 2, 1)
        );
        assert_eq!((summary.lost_records, summary.lost_at_most), (7, 4));
        assert_eq!(text(&pipeline), "c1 c2 c3 lost3 end ");
    }

    #[test]
    fn a_summary_on_demand_adds_up_while_more_is_coming() {
        let mut pipeline = pipeline(CLOSES, Limits::default());
        (1..=3).for_each(|cookie| pipeline.hold(&record(KIND_CLOSE, cookie)));
        pipeline
            .ask(Counts {
                closes: 4,
                told: 2,
                filtered: 2,
                ..Counts::default()
            })
            .unwrap();
        assert_eq!(pipeline.summaries(), []);
        pipeline.finish().unwrap();
        let [summary] = &pipeline.summaries()[..] else {
            panic!("one summary")
        };
        assert_eq!((summary.closes, summary.delivered, summary.filtered), (4, 2, 2));
        assert_eq!(text(&pipeline), "c1 c2 end c3 ");
    }

    #[test]
    fn what_happens_after_the_time_limit_is_not_printed() {
        let mut pipeline = pipeline(
            CLOSES,
            Limits {
                count: None,
                until_ns: Some(2),
            },
        );
        (1..=4).for_each(|cookie| pipeline.hold(&record(KIND_CLOSE, cookie)));
        pipeline.finish().unwrap();
        assert_eq!(text(&pipeline), "c1 c2 ");
        assert_eq!(pipeline.summary(&Counts::default()).unwrap().after_limit, 2);
    }

    #[test]
    fn updates_are_printed_and_change_no_sum_of_closes() {
        let mut pipeline = pipeline(ALL, Limits::default());
        pipeline.hold(&record(KIND_UPDATE, 1));
        pipeline.hold(&record(KIND_CLOSE, 2));
        pipeline.finish().unwrap();
        assert_eq!(text(&pipeline), "u1 c2 ");
        assert_eq!(pipeline.summary(&Counts::default()).unwrap().delivered, 1);
    }

    #[test]
    fn closes_that_nobody_asked_for_are_filtered() {
        let mut pipeline = pipeline(Events { close: false, ..ALL }, Limits::default());
        pipeline.hold(&record(KIND_CLOSE, 1));
        pipeline.finish().unwrap();
        assert_eq!(pipeline.summary(&Counts::default()).unwrap().filtered, 1);
    }

    #[test]
    fn what_is_sorted_out_is_counted_and_does_not_count_against_the_limit() {
        let choice = Choice {
            events: ALL,
            filter: Filter {
                // All that these records differ in is their time, and so the time that they took.
                min_duration_ns: Some(3),
                ..Filter::default()
            },
        };
        let limits = Limits {
            count: NonZeroU64::new(2),
            until_ns: None,
        };
        let mut pipeline = filtering(choice, limits);
        for cookie in [1, 2, 3, 4, 5] {
            pipeline.hold(&record(KIND_CLOSE, cookie));
        }
        // Too early to pass, and no close, so in no sum.
        pipeline.hold(&record(KIND_UPDATE, 1));
        pipeline.finish().unwrap();
        assert_eq!(text(&pipeline), "c3 c4 ");
        let counts = Counts {
            closes: 12,
            filtered: 7,
            ..Counts::default()
        };
        let summary = pipeline.summary(&counts).unwrap();
        assert_eq!(
            (summary.delivered, summary.filtered, summary.after_limit),
            (2, 7 + 2, 1),
            "what the kernel sorted out included"
        );
        assert_eq!(
            summary.closes,
            summary.delivered + summary.filtered + summary.lost_records + summary.after_limit
        );
    }

    #[test]
    fn after_the_limit_no_filter_is_asked() {
        let choice = Choice {
            events: CLOSES,
            filter: Filter {
                failed: true,
                ..Filter::default()
            },
        };
        let limits = Limits {
            count: None,
            until_ns: Some(2),
        };
        let mut pipeline = filtering(choice, limits);
        (1..=5).for_each(|cookie| pipeline.hold(&record(KIND_CLOSE, cookie)));
        pipeline.finish().unwrap();
        let summary = pipeline.summary(&Counts::default()).unwrap();
        assert_eq!((summary.delivered, summary.filtered, summary.after_limit), (0, 2, 3));
    }

    #[test]
    fn a_walk_under_way_holds_back_what_is_later() {
        let mut pipeline = pipeline(ALL, Limits::default());
        let far = crate::track::SETTLE_NS + 100;
        let (first, last) = (record(KIND_CLOSE, 1), record(KIND_CLOSE, 60));
        let under_way = Complete {
            ring_empty_ns: Some(far),
            walk_began_ns: Some(crate::track::SETTLE_NS + 50),
        };
        pipeline.take(&[first, last].concat(), under_way).unwrap();
        assert_eq!(text(&pipeline), "c1 ");
        pipeline.hold(&record(KIND_UPDATE, 55));
        pipeline
            .take(
                &[],
                Complete {
                    ring_empty_ns: Some(far),
                    walk_began_ns: None,
                },
            )
            .unwrap();
        assert_eq!(text(&pipeline), "c1 u55 c60 ");
    }
}
