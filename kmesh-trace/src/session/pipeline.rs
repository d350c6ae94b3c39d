//! The stages of live tracing: decodes and tracks the kernel's events, annotates the records, and feeds the [`Engine`]
//! with them in the order of time.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use kmesh_trace_common::KIND_UPDATE;

use kmesh_trace_common::RejectKey;

use crate::engine::Engine;
use crate::filter::KnownNames;
use crate::kernel::loader::ReasonCounts;
use crate::kernel::message::{Progress, records};
use crate::names::Annotator;
use crate::names::local::cgroup_tree::CgroupTree;
use crate::names::update::SourceUpdate;
use crate::output::metrics::exposition::Values;
use crate::own_connections::OwnConnections;
use crate::record::{ConnId, Counts, Record, Subject, WallTime};
use crate::session::account::{Account, EventTime};
use crate::track::clock::Clock;
use crate::track::decode::{KernelEvent, decode};
use crate::track::listeners::Listeners;
use crate::track::{SETTLE_NS, Tracker, drops};

/// The stages of live tracing before the engine.
pub struct Pipeline {
    began_ns: u64,
    clock: Clock,
    tracker: Tracker,
    /// The end of `--duration`: CLOCK_MONOTONIC, ns.
    until_ns: Option<u64>,
    names: Annotator,
    /// The connections of this process, which are filtered out.
    own: Option<OwnConnections>,
    pub engine: Engine,
    /// The counts of dropped packets and of rejected connections.
    reason_counts: Option<ReasonCounts>,
    listeners: Listeners,
    /// Records about no connection, with their times (CLOCK_MONOTONIC, ns), not emitted yet.
    reports: Vec<(u64, Record)>,
    account: Account,
    /// The metrics that come from counters, not from records.
    gauges: Option<Arc<Values>>,
    /// The kernel's counters at each request for a summary. The pipeline emits the summary when the engine has received
    /// every close that these counters include.
    requested: VecDeque<Counts>,
}

impl Pipeline {
    /// Returns a pipeline for a run that began at `began_ns` and whose `--duration` ends at `until_ns`
    /// (CLOCK_MONOTONIC, ns).
    pub fn new(tracker: Tracker, began_ns: u64, until_ns: Option<u64>, clock: Clock, engine: Engine) -> Self {
        Self {
            began_ns,
            clock,
            tracker,
            until_ns,
            names: Annotator::without_sources(CgroupTree::open(None, || ())),
            own: None,
            engine,
            reason_counts: None,
            listeners: Listeners::default(),
            reports: Vec::new(),
            account: Account::default(),
            gauges: None,
            requested: VecDeque::new(),
        }
    }

    /// Sets the stage that adds names.
    pub fn with_names(mut self, names: Annotator) -> Self {
        self.names = names;
        self
    }

    /// Filters out the connections of this process.
    pub fn without_own_connections(mut self, own: Option<OwnConnections>) -> Self {
        self.own = own;
        self
    }

    /// Adds the packets that the kernel dropped to the records of their connections, if they are counted.
    pub fn with_reason_counts(mut self, counts: ReasonCounts) -> Self {
        self.reason_counts = Some(counts);
        self
    }

    /// Sets the metrics that [`Self::count`] updates.
    pub fn with_gauges(mut self, gauges: Option<Arc<Values>>) -> Self {
        self.gauges = gauges;
        self
    }

    /// Applies a step of the wall clock.
    pub fn clock_stepped(&mut self, since_ns: u64, difference_ns: i64) {
        self.clock.step(since_ns, difference_ns);
    }

    /// Gives the engine the counters of the connections that were open when tracing began. `bytes` are as in
    /// [`crate::kernel::message::Message::Records`].
    pub fn baseline(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.engine.watermark(self.clock.wall(self.began_ns))?;
        for record in records(bytes) {
            if let Ok(KernelEvent::Snapshot(mut snapshot, _)) = decode(record) {
                snapshot.time_ns = self.began_ns;
                self.engine.baseline(&self.tracker.record(&snapshot, &self.clock))?;
            }
        }
        Ok(())
    }

    /// Takes records as in [`crate::kernel::message::Message::Records`], and emits the records that are settled and
    /// named. `now_ns` is the time of CLOCK_MONOTONIC.
    pub fn take(&mut self, bytes: &[u8], progress: Progress, now_ns: u64) -> io::Result<()> {
        self.hold(bytes);
        // While the ring still holds records, use the newest record's time.
        let ring_ns = progress.ring_empty_ns.unwrap_or_else(|| self.tracker.latest_ns());
        let scan_ns = progress
            .scan_began_ns
            .map(|began_ns| began_ns.max(self.tracker.latest_scan_ns()));
        let complete_ns = scan_ns.map_or(ring_ns, |scan_ns| ring_ns.min(scan_ns));
        self.emit(complete_ns, now_ns)?;
        let settled = self.clock.wall(complete_ns.saturating_sub(SETTLE_NS));
        // The sinks have not seen the records that still wait for names.
        let until = self
            .names
            .first_pending()
            .map_or(settled, |(record, _)| settled.min(record.time));
        self.engine.watermark(until)?;
        self.engine.flush()
    }

    /// Applies updates of the name sources.
    pub fn apply(&mut self, updates: &[SourceUpdate], now_ns: u64) -> io::Result<()> {
        updates.iter().for_each(|update| self.names.apply(update));
        self.release(now_ns)
    }

    /// Returns a warning, once, if objects of the sources exceeded the memory budget.
    pub fn memory_warning(&mut self) -> Option<String> {
        self.names.store()?.warning()
    }

    /// Returns a warning for each name in the filter that no source knows.
    pub fn unknown_names(&mut self) -> Vec<String> {
        let filter = self.engine.filter();
        if !filter.has_names() {
            return Vec::new();
        }
        let mut known = KnownNames::default();
        if let Some(store) = self.names.store() {
            store.for_each_pod(|pod| known.add_pod(pod));
            store.for_each_service(|service| known.add_service(service));
        }
        known.warnings(filter)
    }

    /// Returns the longest time that a record has waited for a name, ns.
    pub fn longest_wait_ns(&self) -> u64 {
        self.names.longest_wait_ns()
    }

    /// Returns when [`Self::release`] is due: the time at which the first pending record has waited long enough for its
    /// name.
    pub fn waits_until_ns(&self) -> Option<u64> {
        self.names.first_pending().map(|(_, until_ns)| until_ns)
    }

    /// Emits the records that no longer need to wait for names.
    pub fn release(&mut self, now_ns: u64) -> io::Result<()> {
        self.emit_named(now_ns)?;
        self.engine.flush()
    }

    /// Takes records, and emits nothing yet.
    pub fn hold(&mut self, bytes: &[u8]) {
        for record in records(bytes) {
            match decode(record) {
                Ok(KernelEvent::Listener(listener)) => {
                    if let Some(queue) = self.listeners.take(&listener) {
                        let record = self.tracker.listener(&listener, queue, &self.clock);
                        self.reports.push((listener.time_ns, record));
                    }
                }
                Ok(event) if self.tracker.is_late(&event) => {}
                Ok(event) => self.tracker.take(self.within_duration(event)),
                Err(_) => self.account.undecodable(),
            }
        }
    }

    /// Makes an update of the scan at the stop count as one at the end of `--duration`.
    fn within_duration(&self, event: KernelEvent) -> KernelEvent {
        match (event, self.until_ns) {
            (KernelEvent::Snapshot(mut snapshot, turns), Some(until_ns)) if snapshot.kind == KIND_UPDATE => {
                snapshot.time_ns = snapshot.time_ns.min(until_ns);
                KernelEvent::Snapshot(snapshot, turns)
            }
            (event, _) => event,
        }
    }

    /// Emits all records except those that wait for names. The reader sends no more records.
    pub fn settle(&mut self, now_ns: u64) -> io::Result<()> {
        self.emit(u64::MAX, now_ns)?;
        self.engine.flush()
    }

    /// Emits all records and the final summary, whose counters are `counts`. No more records and names follow.
    pub fn finish(&mut self, counts: &Counts) -> io::Result<()> {
        self.settle(u64::MAX)?;
        self.release(u64::MAX)?;
        // A replay ends its windows at the same time.
        self.engine.watermark(self.time(counts).time)?;
        self.engine.watermark(WallTime::MAX)?;
        self.lost(counts)?;
        self.summary(counts)
    }

    fn emit(&mut self, complete_ns: u64, now_ns: u64) -> io::Result<()> {
        for (happened_ns, record) in std::mem::take(&mut self.reports) {
            self.annotate(record, happened_ns, now_ns)?;
        }
        while let Some((happened_ns, mut record)) = self.tracker.next(complete_ns, &self.clock) {
            if let Some(counts) = self.counting_drops() {
                add_drops(&mut record, counts);
            }
            let is_late = self.until_ns.is_some_and(|until_ns| happened_ns > until_ns);
            let now = self.clock.wall(now_ns);
            if let Some((record, is_late)) = self.names.take(record, happened_ns, is_late, now, now_ns) {
                self.record(&record, is_late)?;
            }
            // One record out for each record in: the queue of pending records stays within its bound.
            if let Some((record, is_late)) = self.names.next(now, now_ns) {
                self.record(&record, is_late)?;
            }
        }
        self.emit_named(now_ns)
    }

    /// Notes that a socket scan has ended. The sinks forget the listeners that it did not find.
    pub fn end_scan(&mut self) -> io::Result<()> {
        for cookie in self.listeners.end_scan() {
            self.engine.exclude(ConnId {
                cookie,
                attempt: 0,
                node: 0,
            })?;
        }
        Ok(())
    }

    /// Emits reports of RSTs sent without a socket, each with the number of them since its last report.
    pub fn take_rejects(&mut self, counts: &[(RejectKey, u64)], now_ns: u64) -> io::Result<()> {
        for (key, count) in counts {
            let mut record = self.tracker.reject(key, *count, now_ns, &self.clock);
            let own = self.own.map_or(0, |own| own.take_rejected(&record));
            if own >= *count {
                continue;
            }
            record.subject = Subject::Reject(*count - own);
            self.annotate(record, now_ns, now_ns)?;
        }
        self.engine.flush()
    }

    /// Adds names to a record that is about no connection, and emits it unless it waits for them.
    fn annotate(&mut self, record: Record, happened_ns: u64, now_ns: u64) -> io::Result<()> {
        let is_late = self.until_ns.is_some_and(|until_ns| happened_ns > until_ns);
        let now = self.clock.wall(now_ns);
        match self.names.take(record, happened_ns, is_late, now, now_ns) {
            Some((record, is_late)) => self.record(&record, is_late),
            None => Ok(()),
        }
    }

    fn emit_named(&mut self, now_ns: u64) -> io::Result<()> {
        while let Some((record, is_late)) = self.names.next(self.clock.wall(now_ns), now_ns) {
            self.record(&record, is_late)?;
        }
        Ok(())
    }

    fn record(&mut self, record: &Record, is_late: bool) -> io::Result<()> {
        if self.own.is_some_and(|own| own.contain(record)) {
            self.engine.reject(record, is_late)?;
        } else {
            self.engine.record(record, is_late)?;
        }
        self.emit_requested_summaries()
    }

    /// Reports the records lost since the last report, if any.
    pub fn lost(&mut self, counts: &Counts) -> io::Result<()> {
        self.count(counts);
        match self.account.lost(counts, self.time(counts).time) {
            Some(lost) => self.engine.lost(&lost),
            None => Ok(()),
        }
    }

    /// Updates the metrics that come from counters.
    pub fn count(&self, counts: &Counts) {
        if let Some(gauges) = &self.gauges {
            gauges.set_lost(self.account.total(counts));
            gauges.set_open(counts.open);
            gauges.set_pods(self.names.pods());
            if let Some(counts) = &self.reason_counts {
                gauges.set_reasons(counts.drop_totals(), counts.reject_totals());
            }
        }
    }

    /// Requests a summary with the counters `counts`. The summary comes after the last record that the counters
    /// include.
    pub fn request_summary(&mut self, counts: Counts) -> io::Result<()> {
        self.requested.push_back(counts);
        self.emit_requested_summaries()
    }

    fn emit_requested_summaries(&mut self) -> io::Result<()> {
        while let Some(counts) = self.requested.front().copied()
            && counts.submitted <= self.account.closes(self.engine.tally())
        {
            self.requested.pop_front();
            self.summary(&counts)?;
        }
        Ok(())
    }

    fn counting_drops(&self) -> Option<&ReasonCounts> {
        self.reason_counts.as_ref().filter(|counts| counts.counts_drops())
    }

    fn summary(&mut self, counts: &Counts) -> io::Result<()> {
        let mut summary = self.account.summary(counts, self.engine.tally(), self.time(counts));
        summary.drops_evicted = self.counting_drops().map(ReasonCounts::drops_evicted);
        self.engine.summary(&summary)
    }

    fn time(&self, counts: &Counts) -> EventTime {
        EventTime {
            time: self.clock.wall(counts.at_ns),
            elapsed_ns: counts.at_ns.saturating_sub(self.began_ns),
        }
    }
}

/// Adds the packets of a connection that the kernel dropped.
fn add_drops(record: &mut Record, counts: &ReasonCounts) {
    let (tuple, is_local_lesser) = drops::tuple(record);
    let counted = counts.drops(&tuple);
    let of_connection = counted.map(|counted| {
        let drops = drops::of_connection(record, is_local_lesser, &counted, &counts.reasons.drop);
        let backend = drops::backend(&counted).filter(|_| !drops.is_empty());
        (drops, backend)
    });
    let (drops, backend) = of_connection.unwrap_or_default();
    (record.drops, record.dropped_to) = (Some(drops), backend);
}

#[cfg(test)]
mod tests;
