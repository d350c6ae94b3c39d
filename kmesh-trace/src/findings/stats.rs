//! What the connections of one pair of client and server did during the watch.

use std::collections::HashMap;

use super::limits::Limits;
use crate::record::{ClosedBy, Comm, Outcome, PacketDirection, ReasonSums, Record, WallTime, errno::Errno};
use crate::rollup::{Quantiles, Responses};

/// The initial retransmission timeout of a SYN. An answer that took this long, less some clock ticks, came only after a
/// SYN was sent again.
const SYN_RETRANSMITTED_NS: u64 = 950_000_000;
/// The time after which an attempt that its program gives up counts as unanswered: no round trip within a cluster takes
/// that long.
const LONG_WAIT_NS: u64 = 200_000_000;
/// The duration below which a connection is short: setting it up is a large part of what it costs.
const SHORT_NS: u64 = 1_000_000_000;
/// The maximum number of samples, of processes and of server addresses that a pair stores.
const MAX_SAMPLES: usize = 64;

/// What can go wrong with one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// The SYN was answered by RST.
    Refused,
    /// Nothing answered the SYN, though it was sent several times.
    Unanswered,
    /// ICMP or the neighbor table reported that the server cannot be reached.
    Unreachable,
    ResetByPeer,
    ResetByLocal,
    /// The peer of an established connection stopped answering.
    Stopped,
    /// The connection was established only after the SYN was sent again.
    LateAnswer,
}

impl Symptom {
    const COUNT: usize = Self::LateAnswer as usize + 1;

    /// Returns the symptom of a closed connection that failed.
    fn of(record: &Record) -> Option<Self> {
        let waited = record.tcp.total_retrans > 0 || record.observed_ns >= LONG_WAIT_NS;
        Some(match record.outcome? {
            Outcome::Refused => Self::Refused,
            Outcome::ConnectTimeout => Self::Unanswered,
            Outcome::ConnectAborted if waited || drops_packets(record) => Self::Unanswered,
            Outcome::Unreachable if record.established => Self::Stopped,
            Outcome::Unreachable => Self::Unreachable,
            Outcome::ResetByPeer => Self::ResetByPeer,
            Outcome::ResetByLocal => Self::ResetByLocal,
            Outcome::Timeout => Self::Stopped,
            Outcome::Ok | Outcome::Unknown | Outcome::ConnectAborted => return None,
        })
    }
}

fn drops_packets(record: &Record) -> bool {
    record.drops.as_ref().is_some_and(|drops| !drops.is_empty())
}

/// How often a symptom occurred, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Occurrences {
    pub count: u64,
    pub first: Option<WallTime>,
    pub last: Option<WallTime>,
    /// The attempts that ended before the first occurrence.
    pub attempts_before: u64,
}

impl Occurrences {
    pub(super) fn add(&mut self, time: WallTime, attempts_before: u64) {
        if self.first.is_none() {
            self.attempts_before = attempts_before;
        }
        self.count += 1;
        self.first = Some(self.first.map_or(time, |first| first.min(time)));
        self.last = Some(self.last.map_or(time, |last| last.max(time)));
    }

    fn merge(&mut self, other: &Self) {
        // The attempts of both before the first occurrence cannot be derived; an upper bound is their sum.
        self.attempts_before += other.attempts_before;
        self.count += other.count;
        self.first = [self.first, other.first].into_iter().flatten().min();
        self.last = self.last.max(other.last);
    }
}

/// What is known about the resets of a pair.
#[derive(Clone, Debug, Default)]
pub struct Resets {
    /// The kernel's reasons of the RSTs that this node sent.
    pub reasons: ReasonSums,
    /// The resets that lost bytes that the program had written, and those bytes.
    pub with_loss: u64,
    pub lost_bytes: u64,
    /// How long each was idle before the reset, and otherwise how long it lasted, in ns. The first 64.
    pub idle_ns: Vec<u64>,
    /// Whether `idle_ns` are durations, since the time of the last segment is unknown.
    pub is_duration: bool,
    /// The payload in both directions of each, in bytes. The first 64.
    pub sizes: Vec<u64>,
}

/// The connections of a pair, or of one pod of it.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// The connections and attempts that ended, or that still wait for an answer at the end.
    pub attempts: u64,
    /// The ended connections that were established.
    pub established: u64,
    /// The ended connections and attempts whose outcome was not ok.
    pub failed: u64,
    symptoms: [Occurrences; Symptom::COUNT],
    /// The error numbers of attempts that failed, and their counts.
    pub errnos: Vec<(u32, u64)>,
    /// The time from SYN to ESTABLISHED of outbound connections, in ns.
    pub connects: Quantiles,
    /// The smallest round-trip time of each connection, in us.
    pub rtts: Quantiles,
    /// The duration of the ended connections that were established, in ns.
    pub durations: Quantiles,
    /// The segments with payload that the traced ends sent, and those of them that were sent again.
    pub segments: u64,
    pub retransmits: u64,
    /// The failed attempts with and without a count of dropped packets.
    pub drops_known: u64,
    pub drops_unknown: u64,
    /// The packets of failed attempts that this node dropped.
    pub sent_drops: ReasonSums,
    pub received_drops: ReasonSums,
    pub resets: Resets,
    /// The established connections that this end closed first. Their ports stay in TIME_WAIT for 60 s.
    pub closed_locally: u64,
    /// The established connections that were short.
    pub short: u64,
    /// The parts of the time with data to send in which a window or a buffer was the limit.
    pub limits: Option<Limits>,
    /// The waits for the first byte of each answer.
    pub answers: Responses,
}

impl Stats {
    pub fn symptom(&self, symptom: Symptom) -> &Occurrences {
        &self.symptoms[symptom as usize]
    }

    /// Adds an occurrence of a symptom of a connection that has not ended.
    pub(super) fn add_waiting(&mut self, since: WallTime) {
        // The number of attempts that ended before `since` is unknown by now, so all of them count.
        self.symptoms[Symptom::Unanswered as usize].add(since, 0);
        self.attempts += 1;
        self.failed += 1;
    }

    /// Adds a connection that ended. `sent` is what it sent since the watch began.
    pub(super) fn close(&mut self, record: &Record, sent: Sent) {
        if let Some(symptom) = Symptom::of(record) {
            self.symptoms[symptom as usize].add(record.time, self.attempts);
        }
        if record.connect_ns.is_some_and(|connect| connect >= SYN_RETRANSMITTED_NS) {
            self.symptoms[Symptom::LateAnswer as usize].add(record.time, self.attempts);
        }
        self.attempts += 1;
        if record.outcome.is_some_and(|outcome| outcome != Outcome::Ok) {
            self.fail(record);
        }
        if record.established {
            self.end_established(record);
        }
        self.send(sent);
    }

    fn fail(&mut self, record: &Record) {
        self.failed += 1;
        if let Some(errno) = record.errno {
            match self.errnos.iter().position(|(known, _)| *known == errno) {
                Some(at) => self.errnos[at].1 += 1,
                None if self.errnos.len() < MAX_SAMPLES => self.errnos.push((errno, 1)),
                None => {}
            }
        }
        match &record.drops {
            None => self.drops_unknown += 1,
            Some(drops) => {
                self.drops_known += 1;
                for drop in drops {
                    let sums = match drop.direction {
                        PacketDirection::Sent => &mut self.sent_drops,
                        PacketDirection::Received => &mut self.received_drops,
                    };
                    sums.add(&drop.reason, drop.packets);
                }
            }
        }
        if matches!(record.outcome, Some(Outcome::ResetByPeer | Outcome::ResetByLocal)) {
            self.reset(record);
        }
    }

    fn reset(&mut self, record: &Record) {
        let resets = &mut self.resets;
        if let Some(reason) = &record.reset_reason {
            resets.reasons.add(reason, 1);
        }
        resets.with_loss += u64::from(record.undelivered_bytes > 0);
        resets.lost_bytes = resets.lost_bytes.saturating_add(record.undelivered_bytes);
        if resets.sizes.len() < MAX_SAMPLES {
            resets
                .sizes
                .push(record.sent_bytes.saturating_add(record.received_bytes));
            let idle = idle_ns(record);
            resets.is_duration |= idle.is_none();
            resets.idle_ns.extend(idle.or(record.duration_ns));
        }
    }

    fn end_established(&mut self, record: &Record) {
        self.established += 1;
        self.closed_locally += u64::from(record.closed_by == Some(ClosedBy::Local));
        if let Some(duration) = record.duration_ns {
            self.durations.add(duration);
            self.short += u64::from(duration < SHORT_NS);
        }
        if let Some(connect) = record.connect_ns {
            self.connects.add(connect);
        }
        if let Some(rtt) = record.tcp.rtt_min_us {
            self.rtts.add(rtt.into());
        }
        if let Some(turns) = &record.turns {
            self.answers.add(turns);
        }
    }

    /// Adds what a connection sent since its last record.
    pub(super) fn send(&mut self, sent: Sent) {
        self.segments += sent.segments;
        self.retransmits += sent.retransmits;
        if let Some(limits) = sent.limits {
            self.limits.get_or_insert_default().add(limits);
        }
    }

    /// Adds the connections of another pair.
    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.symptoms.iter_mut().zip(&other.symptoms) {
            mine.merge(theirs);
        }
        for (mine, theirs) in [
            (&mut self.attempts, other.attempts),
            (&mut self.established, other.established),
            (&mut self.failed, other.failed),
            (&mut self.segments, other.segments),
            (&mut self.retransmits, other.retransmits),
            (&mut self.short, other.short),
            (&mut self.closed_locally, other.closed_locally),
        ] {
            *mine += theirs;
        }
        self.connects.merge(&other.connects);
        self.rtts.merge(&other.rtts);
        self.durations.merge(&other.durations);
        self.answers.merge(&other.answers);
    }

    /// Returns the most frequent error of the failed attempts.
    pub fn main_errno(&self) -> Option<Errno> {
        let most = self.errnos.iter().max_by_key(|(_, count)| *count)?;
        Some(Errno(most.0))
    }
}

/// What a connection sent since its last record.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    pub segments: u64,
    pub retransmits: u64,
    pub limits: Option<Limits>,
}

/// The counters of a connection at its last record.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    segments: u32,
    retransmits: u32,
    limits: Option<Limits>,
}

impl Counters {
    pub(super) fn of(record: &Record) -> Self {
        Self {
            segments: record.tcp.data_segs_out,
            // A retransmitted SYN is a late answer, no loss of data.
            retransmits: record.tcp.total_retrans.saturating_sub(repeated_syns(record)),
            limits: Limits::of(record),
        }
    }

    pub(super) fn since(self, before: Self) -> Sent {
        Sent {
            segments: self.segments.saturating_sub(before.segments).into(),
            retransmits: self.retransmits.saturating_sub(before.retransmits).into(),
            limits: self
                .limits
                .map(|limits| limits.since(before.limits.unwrap_or_default())),
        }
    }
}

/// Returns how long a connection had moved no data when it ended. `None`: its record does not have it.
fn idle_ns(record: &Record) -> Option<u64> {
    let idle_ms = record.tcp.last_send_ms?.min(record.tcp.last_receive_ms?);
    Some(u64::from(idle_ms) * 1_000_000)
}

/// Returns how often the SYN was sent again. The kernel waits 1, 2, 4 … s.
fn repeated_syns(record: &Record) -> u32 {
    match (record.established, record.connect_ns) {
        (false, _) => u32::MAX,
        (true, Some(connect)) if connect >= SYN_RETRANSMITTED_NS => {
            let seconds = (connect + 1_000_000_000 - SYN_RETRANSMITTED_NS) / 1_000_000_000;
            (seconds + 1).ilog2()
        }
        (true, _) => 0,
    }
}

/// The processes of the traced ends, with the number of their records.
#[derive(Clone, Debug, Default)]
pub struct Processes(HashMap<(u32, Comm), u64>);

impl Processes {
    pub(super) fn add(&mut self, record: &Record) {
        let Some(process) = &record.process else { return };
        let key = (process.pid, process.comm);
        if self.0.len() < MAX_SAMPLES || self.0.contains_key(&key) {
            *self.0.entry(key).or_default() += 1;
        }
    }

    /// Returns the process with the most records.
    pub fn main(&self) -> Option<(u32, Comm)> {
        let most = self.0.iter().max_by_key(|&(key, count)| (*count, *key))?;
        Some(*most.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing;

    #[test]
    fn repeated_syns_follow_from_the_time_to_connect() {
        let cases = [
            (100, 0),
            (949, 0),
            (1_001, 1),
            (2_000, 1),
            (3_010, 2),
            (7_050, 3),
            (15_000, 4),
        ];
        for (milliseconds, expected) in cases {
            let mut record = testing::example();
            record.connect_ns = Some(milliseconds * 1_000_000);
            assert_eq!(repeated_syns(&record), expected, "{milliseconds} ms");
        }
    }

    #[test]
    fn attempt_aborted_at_once_is_no_symptom() {
        let mut record = testing::refused();
        record.outcome = Some(Outcome::ConnectAborted);
        record.tcp.total_retrans = 0;
        record.observed_ns = 100_000_000;
        record.drops = None;
        assert_eq!(Symptom::of(&record), None);
        record.tcp.total_retrans = 1;
        assert_eq!(Symptom::of(&record), Some(Symptom::Unanswered));
        record.tcp.total_retrans = 0;
        record.observed_ns = 250_000_000;
        assert_eq!(Symptom::of(&record), Some(Symptom::Unanswered));
        record.observed_ns = 100_000_000;
        record.drops = Some(vec![testing::drops(PacketDirection::Sent, "NETFILTER_DROP", 1)]);
        assert_eq!(Symptom::of(&record), Some(Symptom::Unanswered));
    }
}
