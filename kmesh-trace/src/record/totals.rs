//! The totals of a run, its losses, and the facts that all its lines share.

use super::{JoinCounts, WallTime};

/// The counters of the eBPF programs at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The instant: CLOCK_MONOTONIC, ns.
    pub at_ns: u64,
    /// All closes: submitted, filtered out or lost.
    pub closes: u64,
    /// Closes whose record was submitted to the ring.
    pub submitted: u64,
    /// Closes that the kernel filter rejected.
    pub filtered: u64,
    /// `open` events lost because the ring was full.
    pub lost_opens: u64,
    /// Closes lost because the ring was full.
    pub ring_full: u64,
    /// Closes lost because the socket had no BPF socket storage.
    pub no_storage: u64,
    /// Closes that were certainly lost because the kernel skipped the programs.
    pub skipped: u64,
    /// An upper bound on further closes that were lost because the kernel skipped the programs.
    pub skipped_at_most: u64,
    /// The connections that have not closed.
    pub open: u64,
    /// The part of `open` that the last socket scan did not reach. `None` before the first scan.
    pub not_scanned: Option<u64>,
}

/// The reason for a loss of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LossReason {
    /// The ring buffer was full.
    RingFull,
    /// The kernel had no socket storage: `net.core.optmem_max` was reached, or memory was short.
    NoSocketStorage,
    /// The kernel skipped the programs. The number of these losses is an upper bound.
    ProgramSkipped,
    /// The bytes on the ring were not a valid record.
    Undecodable,
}

spelling!(LossReason {
    RingFull => "ring_full",
    NoSocketStorage => "no_socket_storage",
    ProgramSkipped => "program_skipped",
    Undecodable => "undecodable",
});

/// A report of the records lost since the last report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The time when the tracer noticed the loss.
    pub time: WallTime,
    /// The records lost since the last report.
    pub lost_records: u64,
    /// The records lost since tracing began.
    pub lost_records_total: u64,
    /// The reasons for the losses since the last report, sorted, without duplicates.
    pub reasons: Vec<LossReason>,
}

/// The totals of a run, at its end or so far. At the end, `closes = delivered + filtered + lost_records + after_limit`.
/// Each is counted separately.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The time at which the totals were taken.
    pub time: WallTime,
    /// The connections that the kernel saw close while tracing.
    pub closes: u64,
    /// The closes that passed the filters and were sent to the sinks.
    pub delivered: u64,
    /// The closes that the filters rejected.
    pub filtered: u64,
    /// The lost closes, for all reasons.
    pub lost_records: u64,
    /// The part of `lost_records` that is only an upper bound: the kernel may have skipped the programs.
    pub lost_at_most: u64,
    /// The reasons for `lost_records`.
    pub reasons: Vec<LossReason>,
    /// The closes after `--count` or `--duration` was reached.
    pub after_limit: u64,
    /// The delivered closes with an end that belongs to a pod of this node and has no name.
    pub unresolved: u64,
    /// The connections that have not closed.
    pub open: u64,
    /// The part of `open` that the last socket scan did not reach. `None` without a scan.
    pub not_scanned: Option<u64>,
    /// The counts of dropped packets that did not fit into the kernel's map. `None` if they were not counted.
    pub drops_evicted: Option<u64>,
    /// The time since tracing began, in ns.
    pub elapsed_ns: u64,
    /// What `--join` did. `None` without `--join`.
    pub join: Option<JoinCounts>,
}

impl Summary {
    /// Returns a summary with all totals zero.
    pub fn zero(time: WallTime) -> Self {
        Self {
            time,
            closes: 0,
            delivered: 0,
            filtered: 0,
            lost_records: 0,
            lost_at_most: 0,
            reasons: Vec::new(),
            after_limit: 0,
            unresolved: 0,
            open: 0,
            not_scanned: None,
            drops_evicted: None,
            elapsed_ns: 0,
            join: None,
        }
    }

    /// Adds the totals of another run, except its time.
    pub fn add(&mut self, other: &Self) {
        for (sum, number) in [
            (&mut self.closes, other.closes),
            (&mut self.delivered, other.delivered),
            (&mut self.filtered, other.filtered),
            (&mut self.lost_records, other.lost_records),
            (&mut self.lost_at_most, other.lost_at_most),
            (&mut self.after_limit, other.after_limit),
            (&mut self.unresolved, other.unresolved),
            (&mut self.open, other.open),
        ] {
            *sum = sum.saturating_add(number);
        }
        for (sum, number) in [
            (&mut self.not_scanned, other.not_scanned),
            (&mut self.drops_evicted, other.drops_evicted),
        ] {
            *sum = match (*sum, number) {
                (Some(sum), Some(number)) => Some(sum.saturating_add(number)),
                (sum, number) => sum.or(number),
            };
        }
        self.reasons.extend(&other.reasons);
        self.reasons.sort_unstable();
        self.reasons.dedup();
    }
}

/// The facts that all lines of a run share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// The node's name: its host name.
    pub node: String,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The version of kmesh-trace.
    pub version: String,
}

/// The first line of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The node, its kernel and the version of the tracer.
    pub info: RunInfo,
    /// The time when tracing began. An update at exactly this time is a baseline: its counters are from before tracing.
    pub start: WallTime,
    /// The index of this file in a rotated capture, from 0.
    pub part: u32,
    /// The number of closes in the parts before this one.
    pub closes_before: u64,
}

impl Header {
    /// Returns the header of the first file of a capture that begins at `start`.
    pub fn new(info: RunInfo, start: WallTime) -> Self {
        Self {
            info,
            start,
            part: 0,
            closes_before: 0,
        }
    }

    /// Returns the header for input without a header line, such as saved `-o json` output.
    pub fn unknown() -> Self {
        let unknown = || "unknown".to_owned();
        let info = RunInfo {
            node: unknown(),
            kernel: unknown(),
            version: unknown(),
        };
        Self::new(info, WallTime(0))
    }
}
