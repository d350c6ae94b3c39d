//! What each record adds to what was told of its connection before, so that `update`s and the close together count every
//! byte exactly once. Pure: time is that of the records.

use std::collections::HashMap;

use crate::record::{ConnId, Event, Record, WallTime};

/// Connections kept. What there is no room for is counted whole when it ends: late, but still once.
const MOST: usize = 1 << 19;

/// When there is no room, what has not been told of for so long goes first: its close was lost. No connection that its
/// program has let go lives as long.
const UNTOLD_NS: i64 = 3_600_000_000_000;

/// What a record adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// It is now first known to be established, and that happened while tracing.
    pub opened: bool,
    /// Payload, bytes.
    pub sent_bytes: u64,
    /// Payload, bytes.
    pub received_bytes: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Segments marked lost.
    pub lost_segments: u64,
    /// The connection began before tracing did and is told of for the first time: it may have moved all this in a year, and
    /// no rate can be made of it.
    pub is_past: bool,
}

/// A connection as last told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    sent_bytes: u64,
    received_bytes: u64,
    retransmits: u32,
    lost_segments: u32,
    /// Whether it is established.
    pub(crate) established: bool,
    told: WallTime,
}

impl Totals {
    const NONE: Self = Self {
        sent_bytes: 0,
        received_bytes: 0,
        retransmits: 0,
        lost_segments: 0,
        established: false,
        told: WallTime(0),
    };

    pub(crate) fn of(record: &Record) -> Self {
        Self {
            sent_bytes: record.sent_bytes,
            received_bytes: record.received_bytes,
            retransmits: record.tcp.total_retrans,
            lost_segments: record.tcp.lost,
            established: record.established,
            told: record.time,
        }
    }

    /// The kernel's counters never fall; if one did, it would count as standing still, and later as what it then has more.
    pub(crate) fn most(self, before: Self) -> Self {
        Self {
            sent_bytes: self.sent_bytes.max(before.sent_bytes),
            received_bytes: self.received_bytes.max(before.received_bytes),
            retransmits: self.retransmits.max(before.retransmits),
            lost_segments: self.lost_segments.max(before.lost_segments),
            // A walk may have met a socket just before its `open` was told.
            established: self.established || before.established,
            told: self.told,
        }
    }

    /// What is more than `before`, none of which is more.
    pub(crate) fn since(self, before: Self) -> Moved {
        Moved {
            opened: self.established && !before.established,
            sent_bytes: self.sent_bytes - before.sent_bytes,
            received_bytes: self.received_bytes - before.received_bytes,
            retransmits: u64::from(self.retransmits - before.retransmits),
            lost_segments: u64::from(self.lost_segments - before.lost_segments),
            is_past: false,
        }
    }

    /// All of it: nothing was told of the connection before `record`.
    pub(crate) fn first(self, record: &Record) -> Moved {
        // What opens now was connecting when tracing began.
        let is_past = record.preexisting && record.event != Event::Open;
        let moved = self.since(Self::NONE);
        Moved {
            opened: moved.opened && !is_past,
            is_past,
            ..moved
        }
    }
}

/// The connections that have been told of and have not ended.
#[derive(Debug, Default)]
pub struct Deltas {
    told: HashMap<ConnId, Totals>,
}

impl Deltas {
    /// What the connection moved so far is the past, and not to be counted: it began before tracing did.
    pub fn base(&mut self, record: &Record) {
        if record.preexisting && self.has_room(record) {
            self.told.insert(record.id, Totals::of(record));
        }
    }

    /// What `record` adds.
    pub fn take(&mut self, record: &Record) -> Moved {
        let totals = Totals::of(record);
        if record.event == Event::Close {
            let before = self.told.remove(&record.id);
            return before.map_or_else(|| first(record, totals), |before| totals.most(before).since(before));
        }
        if let Some(before) = self.told.get_mut(&record.id) {
            let totals = totals.most(*before);
            return totals.since(std::mem::replace(before, totals));
        }
        if !self.has_room(record) {
            return Moved::default();
        }
        self.told.insert(record.id, totals);
        first(record, totals)
    }

    fn has_room(&mut self, record: &Record) -> bool {
        if self.told.len() >= MOST {
            let oldest = record.time.0.saturating_sub(UNTOLD_NS);
            self.told.retain(|_, totals| totals.told.0 > oldest);
        }
        self.told.len() < MOST
    }
}

/// What a connection adds when nothing was told of it before. What it may have moved before tracing, another tracer may have
/// counted.
fn first(record: &Record, totals: Totals) -> Moved {
    let moved = totals.first(record);
    if moved.is_past { Moved::default() } else { moved }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::testing;

    fn told(event: Event, sent_bytes: u64, received_bytes: u64) -> Record {
        Record {
            event,
            sent_bytes,
            received_bytes,
            established: true,
            ..testing::example()
        }
    }

    fn moved(opened: bool, sent_bytes: u64, received_bytes: u64) -> Moved {
        Moved {
            opened,
            sent_bytes,
            received_bytes,
            ..Moved::default()
        }
    }

    #[test]
    fn updates_and_the_close_add_up_to_the_close() {
        let mut deltas = Deltas::default();
        let cases = [
            (told(Event::Update, 10, 0), moved(true, 10, 0)),
            (told(Event::Update, 10, 7), moved(false, 0, 7)),
            (told(Event::Update, 9, 7), moved(false, 0, 0)),
            (told(Event::Update, 12, 7), moved(false, 2, 0)),
            (told(Event::Close, 30, 8), moved(false, 18, 1)),
        ];
        for (record, expected) in cases {
            assert_eq!(deltas.take(&record), expected, "{record:?}");
        }
        assert!(deltas.told.is_empty());
    }

    #[test]
    fn one_that_is_only_told_of_at_its_end_counts_whole() {
        let mut deltas = Deltas::default();
        assert_eq!(deltas.take(&told(Event::Close, 5, 292)), moved(true, 5, 292));
    }

    #[test]
    fn an_attempt_opens_once_it_is_established() {
        let mut deltas = Deltas::default();
        let attempt = Record {
            established: false,
            ..told(Event::Update, 0, 0)
        };
        assert_eq!(deltas.take(&attempt), moved(false, 0, 0));
        assert_eq!(deltas.take(&told(Event::Open, 0, 0)), moved(true, 0, 0));
        assert_eq!(deltas.take(&attempt), moved(false, 0, 0), "a walk that came before");
        assert_eq!(deltas.take(&told(Event::Close, 1, 1)), moved(false, 1, 1));
    }

    #[test]
    fn what_was_before_tracing_is_not_counted() {
        let mut deltas = Deltas::default();
        let old = |event, sent| Record {
            preexisting: true,
            ..told(event, sent, 0)
        };
        deltas.base(&old(Event::Update, 1_000));
        assert_eq!(deltas.take(&old(Event::Update, 1_001)), moved(false, 1, 0));
        assert_eq!(deltas.take(&old(Event::Close, 1_005)), moved(false, 4, 0));
        assert_eq!(deltas.take(&old(Event::Close, 500)), moved(false, 0, 0), "no base");
        assert_eq!(
            deltas.take(&old(Event::Open, 0)),
            moved(true, 0, 0),
            "it was connecting then"
        );
    }

    #[test]
    fn associations_of_one_socket_are_apart() {
        let mut deltas = Deltas::default();
        deltas.take(&told(Event::Update, 10, 0));
        let mut second = told(Event::Close, 3, 0);
        second.id.association = 2;
        assert_eq!(deltas.take(&second), moved(true, 3, 0));
    }

    #[test]
    fn without_room_everything_is_still_counted_once() {
        let mut deltas = Deltas::default();
        let one = |cookie: u64, event, sent| {
            let mut record = told(event, sent, 0);
            record.id.cookie = cookie;
            record
        };
        for cookie in 0..MOST as u64 {
            deltas.take(&one(cookie, Event::Update, 1));
        }
        let late = MOST as u64;
        assert_eq!(deltas.take(&one(late, Event::Update, 4)), Moved::default());
        assert_eq!(deltas.take(&one(late, Event::Close, 9)), moved(true, 9, 0));
        let mut hours_later = one(late, Event::Update, 2);
        hours_later.time.0 += 2 * UNTOLD_NS;
        assert_eq!(deltas.take(&hours_later), moved(true, 2, 0));
        assert_eq!(deltas.told.len(), 1);
    }
}
