//! Computes what each record adds to the last record of the same connection, so that the updates and the close together
//! count every byte exactly once. Pure: time comes from the records.

use std::collections::HashMap;

use crate::record::{ConnId, Event, ReasonSums, Record, Turns, WallTime};

/// The maximum number of stored connections. The delta of any further connection comes in whole with its close.
const MAX_CONNECTIONS: usize = 1 << 19;

/// The maximum number of stored connections with dropped packets. The drops of any further one come in whole with its
/// close.
const MAX_DROPS: usize = 1 << 16;

/// The maximum number of stored connections with turns, 272 bytes each. The turns of any further one come in whole with
/// its close.
const MAX_TURNS: usize = 1 << 18;

/// At [`MAX_CONNECTIONS`], connections without a record for this long are removed, because their closes were lost. No
/// connection lives that long after its process closed it.
const STALE_AFTER_NS: i64 = 3_600_000_000_000;

/// What a record adds to the last record of its connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Whether the connection became established while tracing, and this is its first record since then.
    pub opened: bool,
    /// The payload sent, bytes.
    pub sent_bytes: u64,
    /// The payload received, bytes.
    pub received_bytes: u64,
    pub retransmits: u64,
    pub lost_segments: u64,
    /// The time with data to send, µs.
    pub busy_us: u64,
    /// The part of `busy_us` in which the peer's window was the limit.
    pub rwnd_limited_us: u64,
    /// The part of `busy_us` in which the send buffer was the limit.
    pub sndbuf_limited_us: u64,
    /// The packets that this node dropped, both directions together.
    pub drops: ReasonSums,
    /// The changes of direction, if they are measured and there were any.
    pub turns: Option<Box<Turns>>,
    /// Whether this is the first record of a preexisting connection without a baseline. Its bytes may have taken a
    /// year, so rates must not include them.
    pub has_no_baseline: bool,
}

/// The counters of a connection as of its last record.
#[derive(Clone, Copy, Debug)]
struct Totals {
    sent_bytes: u64,
    received_bytes: u64,
    retransmits: u32,
    lost_segments: u32,
    busy_us: u64,
    rwnd_limited_us: u64,
    sndbuf_limited_us: u64,
    established: bool,
    time: WallTime,
}

impl Totals {
    const NONE: Self = Self {
        sent_bytes: 0,
        received_bytes: 0,
        retransmits: 0,
        lost_segments: 0,
        busy_us: 0,
        rwnd_limited_us: 0,
        sndbuf_limited_us: 0,
        established: false,
        time: WallTime(0),
    };

    fn of(record: &Record) -> Self {
        Self {
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            retransmits: record.tcp.total_retrans,
            lost_segments: record.tcp.lost,
            busy_us: record.tcp.busy_us.unwrap_or(0),
            rwnd_limited_us: record.tcp.rwnd_limited_us.unwrap_or(0),
            sndbuf_limited_us: record.tcp.sndbuf_limited_us.unwrap_or(0),
            established: record.established,
            time: record.time,
        }
    }

    /// Returns the larger of each counter. The kernel's counters never fall; if one did, the delta would be 0.
    fn max(self, before: Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes.max(before.sent_bytes),
            received_bytes: self.received_bytes.max(before.received_bytes),
            retransmits: self.retransmits.max(before.retransmits),
            lost_segments: self.lost_segments.max(before.lost_segments),
            busy_us: self.busy_us.max(before.busy_us),
            rwnd_limited_us: self.rwnd_limited_us.max(before.rwnd_limited_us),
            sndbuf_limited_us: self.sndbuf_limited_us.max(before.sndbuf_limited_us),
            // A scan may have visited a socket just before its `open` was reported.
            established: self.established || before.established,
            time: self.time,
        }
    }

    /// Returns the difference to `before`. No counter of `before` may be larger.
    fn since(self, before: Self) -> Delta {
        Delta {
            opened: self.established && !before.established,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received_bytes: self.received_bytes - before.received_bytes,
            retransmits: u64::from(self.retransmits - before.retransmits),
            lost_segments: u64::from(self.lost_segments - before.lost_segments),
            busy_us: self.busy_us - before.busy_us,
            rwnd_limited_us: self.rwnd_limited_us - before.rwnd_limited_us,
            sndbuf_limited_us: self.sndbuf_limited_us - before.sndbuf_limited_us,
            ..Delta::default()
        }
    }

    /// Returns the delta of the first record of a connection.
    fn first(self, record: &Record) -> Delta {
        // A connection that opens now was connecting when tracing began, so all its bytes are new.
        let has_no_baseline = record.preexisting && record.event != Event::Open;
        let delta = self.since(Self::NONE);
        Delta {
            opened: delta.opened && !has_no_baseline,
            has_no_baseline,
            ..delta
        }
    }
}

/// The counters of all connections that have records and have not closed.
#[derive(Debug, Default)]
pub struct Deltas {
    connections: HashMap<ConnId, Totals>,
    /// The dropped packets of those among them that have any.
    drops: HashMap<ConnId, ReasonSums>,
    /// The turns of those among them that have any.
    turns: HashMap<ConnId, Box<Turns>>,
}

impl Deltas {
    /// Sets the counters of a preexisting connection as its baseline.
    pub fn baseline(&mut self, record: &Record) {
        if record.preexisting && self.has_capacity(record) {
            self.connections.insert(record.id, Totals::of(record));
        }
    }

    /// Returns what `record` adds.
    pub fn take(&mut self, record: &Record) -> Delta {
        Delta {
            drops: self.take_drops(record),
            turns: self.take_turns(record),
            ..self.take_counters(record)
        }
    }

    fn take_drops(&mut self, record: &Record) -> ReasonSums {
        let mut drops = ReasonSums::default();
        for drop in record.drops.iter().flatten() {
            drops.add(&drop.reason, drop.packets);
        }
        if record.event == Event::Close {
            let before = self.drops.remove(&record.id);
            return before.map_or_else(|| drops.clone(), |before| drops.since(&before));
        }
        if drops.is_empty() {
            return drops;
        }
        if let Some(before) = self.drops.get_mut(&record.id) {
            let more = drops.since(before);
            before.merge(&more);
            return more;
        }
        if self.drops.len() >= MAX_DROPS {
            return ReasonSums::default();
        }
        self.drops.insert(record.id, drops.clone());
        drops
    }

    fn take_turns(&mut self, record: &Record) -> Option<Box<Turns>> {
        let turns = record.turns.as_deref().filter(|turns| turns.count > 0);
        let before = self.turns.remove(&record.id);
        let turns = turns?;
        let more = turns.since(before.as_deref().unwrap_or(&Turns::default()));
        if record.event != Event::Close {
            if before.is_none() && self.turns.len() >= MAX_TURNS {
                return None;
            }
            self.turns.insert(record.id, Box::new(turns.clone()));
        }
        (more.count > 0).then(|| Box::new(more))
    }

    fn take_counters(&mut self, record: &Record) -> Delta {
        let totals = Totals::of(record);
        if record.event == Event::Close {
            let before = self.connections.remove(&record.id);
            return before.map_or_else(|| totals.first(record), |before| totals.max(before).since(before));
        }
        if let Some(before) = self.connections.get_mut(&record.id) {
            let totals = totals.max(*before);
            return totals.since(std::mem::replace(before, totals));
        }
        if !self.has_capacity(record) {
            return Delta::default();
        }
        self.connections.insert(record.id, totals);
        totals.first(record)
    }

    /// Removes a connection whose close the filter rejects.
    pub fn forget(&mut self, id: ConnId) {
        self.connections.remove(&id);
        self.drops.remove(&id);
        self.turns.remove(&id);
    }

    fn has_capacity(&mut self, record: &Record) -> bool {
        if self.connections.len() >= MAX_CONNECTIONS {
            let oldest = record.time.0.saturating_sub(STALE_AFTER_NS);
            self.connections.retain(|_, totals| totals.time.0 > oldest);
            self.drops.retain(|id, _| self.connections.contains_key(id));
            self.turns.retain(|id, _| self.connections.contains_key(id));
        }
        self.connections.len() < MAX_CONNECTIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing;
    use crate::record::PacketDirection;

    fn record(event: Event, sent_bytes: u64, received_bytes: u64) -> Record {
        Record {
            event,
            sent_bytes,
            received_bytes,
            established: true,
            ..testing::example()
        }
    }

    fn delta(opened: bool, sent_bytes: u64, received_bytes: u64) -> Delta {
        Delta {
            opened,
            sent_bytes,
            received_bytes,
            ..Delta::default()
        }
    }

    #[test]
    fn deltas_of_connection_add_up_to_close() {
        let mut deltas = Deltas::default();
        let cases = [
            (record(Event::Update, 10, 0), delta(true, 10, 0)),
            (record(Event::Update, 10, 7), delta(false, 0, 7)),
            (record(Event::Update, 9, 7), delta(false, 0, 0)),
            (record(Event::Update, 12, 7), delta(false, 2, 0)),
            (record(Event::Close, 30, 8), delta(false, 18, 1)),
        ];
        for (record, expected) in cases {
            assert_eq!(deltas.take(&record), expected, "{record:?}");
        }
        assert!(deltas.connections.is_empty());
    }

    #[test]
    fn close_without_earlier_record_counts_whole() {
        let mut deltas = Deltas::default();
        assert_eq!(deltas.take(&record(Event::Close, 5, 292)), delta(true, 5, 292));
    }

    #[test]
    fn attempt_opens_when_established() {
        let mut deltas = Deltas::default();
        let attempt = Record {
            established: false,
            ..record(Event::Update, 0, 0)
        };
        assert_eq!(deltas.take(&attempt), delta(false, 0, 0));
        assert_eq!(deltas.take(&record(Event::Open, 0, 0)), delta(true, 0, 0));
        assert_eq!(
            deltas.take(&attempt),
            delta(false, 0, 0),
            "an update from before the open"
        );
        assert_eq!(deltas.take(&record(Event::Close, 1, 1)), delta(false, 1, 1));
    }

    #[test]
    fn delta_does_not_count_baseline() {
        let mut deltas = Deltas::default();
        let old = |event, sent| Record {
            preexisting: true,
            ..record(event, sent, 0)
        };
        deltas.baseline(&old(Event::Update, 1_000));
        assert_eq!(deltas.take(&old(Event::Update, 1_001)), delta(false, 1, 0));
        assert_eq!(deltas.take(&old(Event::Close, 1_005)), delta(false, 4, 0));
        let past = Delta {
            has_no_baseline: true,
            ..delta(false, 500, 0)
        };
        assert_eq!(deltas.take(&old(Event::Close, 500)), past, "no baseline");
        assert_eq!(
            deltas.take(&old(Event::Open, 0)),
            delta(true, 0, 0),
            "it was connecting when tracing began"
        );
    }

    #[test]
    fn drops_of_connection_add_up_to_close() {
        let mut deltas = Deltas::default();
        let dropped = |event, counts: &[(PacketDirection, &str, u64)]| {
            let drops = counts
                .iter()
                .map(|&(direction, reason, packets)| testing::drops(direction, reason, packets));
            Record {
                drops: Some(drops.collect()),
                ..record(event, 0, 0)
            }
        };
        let (sent, received) = (PacketDirection::Sent, PacketDirection::Received);
        let cases = [
            (dropped(Event::Update, &[]), ""),
            (dropped(Event::Update, &[(sent, "A", 2), (received, "A", 1)]), "A 3"),
            (dropped(Event::Update, &[(sent, "A", 2), (received, "A", 1)]), ""),
            // The kernel's map evicted the counts, so they start at 0 again.
            (dropped(Event::Update, &[(sent, "B", 4)]), "B 4"),
            (dropped(Event::Close, &[(sent, "A", 4), (sent, "B", 5)]), "A 1, B 1"),
            (dropped(Event::Close, &[(sent, "A", 4)]), "A 4"),
        ];
        for (record, expected) in cases {
            let delta = deltas.take(&record);
            let counts = delta.drops.iter().map(|(reason, count)| format!("{reason} {count}"));
            assert_eq!(counts.collect::<Vec<_>>().join(", "), expected, "{:?}", record.drops);
        }
        assert!(deltas.drops.is_empty());
        deltas.take(&dropped(Event::Update, &[(sent, "A", 1)]));
        deltas.forget(testing::example().id);
        assert!(deltas.drops.is_empty());
    }

    #[test]
    fn attempts_of_one_socket_count_separately() {
        let mut deltas = Deltas::default();
        deltas.take(&record(Event::Update, 10, 0));
        let mut second = record(Event::Close, 3, 0);
        second.id.attempt = 2;
        assert_eq!(deltas.take(&second), delta(true, 3, 0));
    }

    #[test]
    fn beyond_capacity_everything_counts_once() {
        let mut deltas = Deltas::default();
        let one = |cookie: u64, event, sent| {
            let mut record = record(event, sent, 0);
            record.id.cookie = cookie;
            record
        };
        for cookie in 0..MAX_CONNECTIONS as u64 {
            deltas.take(&one(cookie, Event::Update, 1));
        }
        let late = MAX_CONNECTIONS as u64;
        assert_eq!(deltas.take(&one(late, Event::Update, 4)), Delta::default());
        assert_eq!(deltas.take(&one(late, Event::Close, 9)), delta(true, 9, 0));
        let mut hours_later = one(late, Event::Update, 2);
        hours_later.time.0 += 2 * STALE_AFTER_NS;
        assert_eq!(deltas.take(&hours_later), delta(true, 2, 0));
        assert_eq!(deltas.connections.len(), 1);
    }
}
