//! The messages of the queue between the kernel's threads and the writer.

use std::time::Duration;

use kmesh_trace_common::RejectKey;

use crate::names::update::SourceUpdate;
use crate::record::Counts;

/// A message of the queue that the writer reads.
#[derive(Debug)]
pub enum Message {
    /// Records from the ring.
    Records {
        /// Records in the form that [`records`] reads.
        bytes: Vec<u8>,
        progress: Progress,
    },
    /// Records of a socket scan, in the form that [`records`] reads. The next [`Message::Records`] has their progress.
    ScanRecords(Vec<u8>),
    /// A socket scan failed.
    ScanFailed(String),
    /// Scans take so long that they run less often than the update interval says. Sent once.
    ScanIsSlow {
        /// The processor time that the scan used.
        used: Duration,
        /// The time between scans from now on.
        scan_interval: Duration,
    },
    /// The wall clock was stepped.
    ClockStepped {
        /// The time of the step: CLOCK_MONOTONIC, ns.
        since_ns: u64,
        /// The wall clock minus CLOCK_MONOTONIC after the step, ns.
        difference_ns: i64,
    },
    /// Updates of the name sources.
    Names(Vec<SourceUpdate>),
    /// Every name source has answered once or failed, and the updates of its first answer were sent.
    NamesSettled,
    /// The RSTs that the kernel sent without a socket since the last such message, at most one message a second.
    Rejects(Vec<(RejectKey, u64)>),
    /// More records were lost.
    Lost(Counts),
    /// An interval, and its scan, ended.
    IntervalEnded(Counts),
    /// The counters at a call of [`super::reader::Control::request_summary`].
    SummaryRequested(Counts),
    /// The process that reads standard output closed it.
    OutputClosed,
    /// [`super::reader::Control::stop`] was called. This is the last message.
    Ended(Counts),
}

/// The time until which the writer has the record of every event, except those that a CPU is still writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The last time when the ring was empty: CLOCK_MONOTONIC, ns. `None` while the ring still holds records; then use
    /// the newest record's time.
    pub ring_empty_ns: Option<u64>,
    /// The time when the current socket scan began: CLOCK_MONOTONIC, ns. More of its records follow, and none of them
    /// is earlier than those that the writer has.
    pub scan_began_ns: Option<u64>,
}

/// Iterates over the records of a message. In front of each record is its length in bytes (u64).
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (record, rest) = rest.split_at_checked(u64::from_ne_bytes(*length) as usize)?;
        bytes = rest;
        Some(record)
    })
}

/// Returns the number of bytes behind the last whole record of a part of a message.
pub fn unfinished(bytes: &[u8]) -> usize {
    let whole: usize = records(bytes).map(|record| size_of::<u64>() + record.len()).sum();
    bytes.len() - whole
}
