//! The front half: from the queue to finished records, in the order of time. Decode, track, name; then
//! [`Delivery`] has them.

use std::io::{self, Write};
use std::time::Instant;

use crate::clock::Clock;
use crate::decode::{Event, decode};
use crate::delivery::{Delivery, Moment};
use crate::names::Annotator;
use crate::names::local::cgroup_tree::CgroupTree;
use crate::names::update::SourceUpdate;
use crate::record::{Counts, Lost, Record, Summary, WallTime};
use crate::source::reader::{Complete, records};
use crate::track::{SETTLE_NS, Tracker};

/// The state between queue and [`Delivery`].
pub struct Pipeline<W> {
    began_ns: u64,
    clock: Clock,
    tracker: Tracker,
    /// When `--duration` is over: CLOCK_MONOTONIC, ns.
    until_ns: Option<u64>,
    names: Annotator,
    delivery: Delivery<W>,
}

impl<W: Write> Pipeline<W> {
    /// Tracing began at `began_ns` and what happens after `until_ns` is not wanted (CLOCK_MONOTONIC, ns).
    pub fn new(began_ns: u64, until_ns: Option<u64>, clock: Clock, delivery: Delivery<W>) -> Self {
        Self {
            began_ns,
            clock,
            tracker: Tracker::new(began_ns),
            until_ns,
            names: Annotator::without_sources(CgroupTree::open(None, || ())),
            delivery,
        }
    }

    /// Names what `names` can.
    pub fn with_names(mut self, names: Annotator) -> Self {
        self.names = names;
        self
    }

    /// The wall clock was stepped.
    pub fn clock_stepped(&mut self, since_ns: u64, difference_ns: i64) {
        self.clock.step(since_ns, difference_ns);
    }

    /// Takes what a walk told of the connections that were open when tracing began, a record each as in
    /// [`crate::source::reader::Message::Records`].
    pub fn base(&mut self, bytes: &[u8]) {
        for record in records(bytes) {
            if let Ok(Event::Snapshot(snapshot)) = decode(record) {
                self.delivery.base(&self.tracker.record(&snapshot, &self.clock));
            }
        }
    }

    /// Takes records as [`crate::source::reader::Message::Records`] has them, and writes what is settled and named. It is
    /// `now_ns` (CLOCK_MONOTONIC).
    pub fn take(&mut self, bytes: &[u8], complete: Complete, now_ns: u64) -> io::Result<()> {
        self.hold(bytes);
        // While the ring is never empty, what it has told so far goes as far as its latest record.
        let ring_ns = complete.ring_empty_ns.unwrap_or_else(|| self.tracker.latest_ns());
        let complete_ns = complete.walk_began_ns.map_or(ring_ns, |began_ns| ring_ns.min(began_ns));
        self.emit(complete_ns, now_ns)?;
        let settled = self.clock.wall(complete_ns.saturating_sub(SETTLE_NS));
        // What waits for its name has not come yet.
        let until = self
            .names
            .first_pending()
            .map_or(settled, |(record, _)| settled.min(record.time));
        self.delivery.complete(until)
    }

    /// Takes news of names.
    pub fn learn(&mut self, told: &[SourceUpdate], now_ns: u64) -> io::Result<()> {
        told.iter().for_each(|told| self.names.apply(told));
        self.release(now_ns)
    }

    /// Returns the longest time that a record has waited for a name, ns.
    pub fn longest_wait_ns(&self) -> u64 {
        self.names.longest_wait_ns()
    }

    /// Until when a record waits for its name, at most; then [`Self::release`] is to be called.
    pub fn waits_until_ns(&self) -> Option<u64> {
        self.names.first_pending().map(|(_, until_ns)| until_ns)
    }

    /// Writes those that need not wait any more.
    pub fn release(&mut self, now_ns: u64) -> io::Result<()> {
        let mut any = false;
        while let Some((record, too_late)) = self.names.next(self.clock.wall(now_ns), now_ns) {
            self.hand_over(&record, too_late)?;
            any = true;
        }
        if any { self.delivery.flush() } else { Ok(()) }
    }

    /// Takes records, and writes nothing yet.
    pub fn hold(&mut self, bytes: &[u8]) {
        for record in records(bytes) {
            match decode(record) {
                Ok(event) => self.tracker.take(event),
                Err(_) => self.delivery.undecodable(),
            }
        }
    }

    /// No more records will come: writes those that were still held, but for those that wait for their names.
    pub fn settle(&mut self, now_ns: u64) -> io::Result<()> {
        self.emit(u64::MAX, now_ns)?;
        self.delivery.flush()
    }

    /// No more names will come either: writes all.
    pub fn finish(&mut self) -> io::Result<()> {
        self.settle(u64::MAX)?;
        self.release(u64::MAX)?;
        self.delivery.complete(WallTime(i64::MAX))
    }

    fn emit(&mut self, complete_ns: u64, now_ns: u64) -> io::Result<()> {
        while let Some((happened_ns, record)) = self.tracker.next(complete_ns, &self.clock) {
            let too_late = self.until_ns.is_some_and(|until_ns| happened_ns > until_ns);
            if let Some((record, too_late)) =
                self.names
                    .take(record, happened_ns, too_late, self.clock.wall(now_ns), now_ns)
            {
                self.hand_over(&record, too_late)?;
            }
            // The queue of those that wait stays within its bound, however many come at once.
            if let Some((record, too_late)) = self.names.next(self.clock.wall(now_ns), now_ns) {
                self.hand_over(&record, too_late)?;
            }
        }
        while let Some((record, too_late)) = self.names.next(self.clock.wall(now_ns), now_ns) {
            self.hand_over(&record, too_late)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, record: &Record, too_late: bool) -> io::Result<()> {
        self.delivery.record(record, too_late)
    }

    /// [`Delivery::due`].
    pub fn due(&self) -> Option<Instant> {
        self.delivery.due()
    }

    /// [`Delivery::keep_up`].
    pub fn keep_up(&mut self) -> io::Result<()> {
        self.delivery.keep_up()
    }

    /// [`Delivery::end`].
    pub fn end(&mut self) -> io::Result<()> {
        self.delivery.end()
    }

    /// [`Delivery::end_keep`].
    pub fn end_keep(&mut self) -> io::Result<()> {
        self.delivery.end_keep()
    }

    /// Whether `--count` is reached.
    pub fn is_full(&self) -> bool {
        self.delivery.is_full()
    }

    /// [`Delivery::lost`] of counts made just now.
    pub fn lost(&mut self, counts: &Counts) -> io::Result<Option<Lost>> {
        let at = self.moment(counts);
        self.delivery.lost(counts, at)
    }

    /// [`Delivery::counted`].
    pub fn counted(&self, counts: &Counts) {
        self.delivery.counted(counts);
        self.delivery.pods(self.names.pods());
    }

    /// [`Delivery::ask`], likewise.
    pub fn ask(&mut self, counts: Counts) -> io::Result<()> {
        let at = self.moment(&counts);
        self.delivery.ask(counts, at)
    }

    /// [`Delivery::summaries`].
    pub fn summaries(&mut self) -> Vec<Summary> {
        self.delivery.summaries()
    }

    /// [`Delivery::summary`], likewise.
    pub fn summary(&mut self, counts: &Counts) -> io::Result<Summary> {
        let at = self.moment(counts);
        self.delivery.summary(counts, at)
    }

    fn moment(&self, counts: &Counts) -> Moment {
        Moment {
            time: self.clock.wall(counts.at_ns),
            elapsed_ns: counts.at_ns.saturating_sub(self.began_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Zeroable, bytes_of};
    use kmesh_trace_common::{FLAG_ACTIVE, KIND_CLOSE, KIND_UPDATE, SK_DONE, Snapshot, state};

    use super::*;
    use std::num::NonZeroU64;

    use crate::config::Events;
    use crate::delivery::Choice;
    use crate::filter::Filter;
    use crate::record::{self, LossReason, Record};
    use crate::render::Render;

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
            let letter = if record.event == record::Event::Close { "c" } else { "u" };
            write!(out, "{letter}{} ", record.id.cookie)
        }

        fn lost(&mut self, lost: &Lost, out: &mut dyn Write) -> io::Result<()> {
            write!(out, "lost{} ", lost.lost_records)
        }

        fn summary(&mut self, _: &Summary, out: &mut dyn Write) -> io::Result<()> {
            write!(out, "end ")
        }
    }

    fn all_of(events: Events) -> Choice {
        Choice {
            events,
            filter: Filter::default(),
            count: None,
        }
    }

    fn pipeline(choice: Choice, until_ns: Option<u64>) -> Pipeline<Vec<u8>> {
        let delivery = Delivery::new(choice, Box::new(Letters), Vec::new());
        Pipeline::new(0, until_ns, Clock::new(0), delivery)
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
        pipeline.delivery.text()
    }

    #[test]
    fn closes_are_all_accounted_for() {
        let choice = Choice {
            count: NonZeroU64::new(3),
            ..all_of(CLOSES)
        };
        let mut pipeline = pipeline(choice, None);
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
        let mut pipeline = pipeline(all_of(CLOSES), None);
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
        let mut pipeline = pipeline(all_of(CLOSES), Some(2));
        (1..=4).for_each(|cookie| pipeline.hold(&record(KIND_CLOSE, cookie)));
        pipeline.finish().unwrap();
        assert_eq!(text(&pipeline), "c1 c2 ");
        assert_eq!(pipeline.summary(&Counts::default()).unwrap().after_limit, 2);
    }

    #[test]
    fn updates_are_printed_and_change_no_sum_of_closes() {
        let mut pipeline = pipeline(all_of(ALL), None);
        pipeline.hold(&record(KIND_UPDATE, 1));
        pipeline.hold(&record(KIND_CLOSE, 2));
        pipeline.finish().unwrap();
        assert_eq!(text(&pipeline), "u1 c2 ");
        assert_eq!(pipeline.summary(&Counts::default()).unwrap().delivered, 1);
    }

    #[test]
    fn closes_that_nobody_asked_for_are_filtered() {
        let mut pipeline = pipeline(all_of(Events { close: false, ..ALL }), None);
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
            count: NonZeroU64::new(2),
        };
        let mut pipeline = pipeline(choice, None);
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
            ..all_of(CLOSES)
        };
        let mut pipeline = pipeline(choice, Some(2));
        (1..=5).for_each(|cookie| pipeline.hold(&record(KIND_CLOSE, cookie)));
        pipeline.finish().unwrap();
        let summary = pipeline.summary(&Counts::default()).unwrap();
        assert_eq!((summary.delivered, summary.filtered, summary.after_limit), (0, 2, 3));
    }

    #[test]
    fn a_walk_under_way_holds_back_what_is_later() {
        let mut pipeline = pipeline(all_of(ALL), None);
        let far = crate::track::SETTLE_NS + 100;
        let (first, last) = (record(KIND_CLOSE, 1), record(KIND_CLOSE, 60));
        let under_way = Complete {
            ring_empty_ns: Some(far),
            walk_began_ns: Some(crate::track::SETTLE_NS + 50),
        };
        pipeline.take(&[first, last].concat(), under_way, far).unwrap();
        assert_eq!(text(&pipeline), "c1 ");
        pipeline.hold(&record(KIND_UPDATE, 55));
        pipeline
            .take(
                &[],
                Complete {
                    ring_empty_ns: Some(far),
                    walk_began_ns: None,
                },
                far,
            )
            .unwrap();
        assert_eq!(text(&pipeline), "c1 u55 c60 ");
    }
}
