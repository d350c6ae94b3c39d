//! Joins the records of both ends of a connection (`--join`). Pure: time is the time of the records.
//!
//! A close waits for the close of the other end, and both leave as one record. The two belong together if their
//! addresses and ports are the same after every translation is undone, their lifetimes overlap, and the sequence
//! numbers fit: an end cannot have received more than the other one sent, nor less than what it acknowledged. Linux
//! derives the first sequence number of a connection from the clock, so two connections with the same ports do not fit
//! each other. If several closes fit, none of them is joined.

mod fit;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use crate::record::{ConnId, Direction, Event, JoinCounts, Joined, Record, WallTime};
use fit::Fit;

/// The maximum number of closes that wait. Beyond it, the one with the earliest deadline waits no longer.
const MAX_WAITING: usize = 1 << 17;
/// The maximum number of open connections whose ends are known.
const MAX_OPEN: usize = 1 << 19;
/// The maximum number of addresses of traced sockets.
const MAX_LOCAL: usize = 1 << 18;

const SECOND: i64 = 1_000_000_000;
/// The time that a close waits if nothing shows that the other end is traced.
const WAIT_NS: i64 = 10 * SECOND;
/// The time that a close waits if the other end's address is that of a traced socket.
const WAIT_TRACED_NS: i64 = 60 * SECOND;
/// The time that a close waits while updates show that the other end is open.
const WAIT_OPEN_NS: i64 = 3600 * SECOND;
/// The time that the first `open` or `update` of a server's end waits for one of the client's end.
const WAIT_EVENT_NS: i64 = 2 * SECOND;

/// The addresses and ports of a connection, with every translation undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    src: (IpAddr, u16),
    dst: (IpAddr, u16),
}

impl Key {
    fn of(record: &Record) -> Self {
        Self {
            src: (record.src.ip(), record.src.port()),
            // If the client's node translated the address, `dst` is the backend that connection tracking reported.
            dst: (record.dst.ip(), record.dst.port()),
        }
    }
}

/// A record that leaves the stage, and the tags of its ends.
#[derive(Debug, PartialEq, Eq)]
pub struct Tagged {
    pub record: Record,
    /// The tags of the record and of the other end's record.
    pub tags: [Option<u32>; 2],
}

/// A close that waits for the other end.
#[derive(Debug)]
struct Waiting {
    record: Record,
    tag: u32,
    /// Whether updates of this end were delivered, so that the connection counts by this end.
    is_delivered: bool,
    is_ambiguous: bool,
    /// The key in [`Join::deadlines`].
    deadline: (WallTime, u64),
}

/// An end of an open connection.
#[derive(Debug)]
struct OpenEnd {
    id: ConnId,
    direction: Direction,
    is_delivered: bool,
    time: WallTime,
}

/// The stage that joins records.
#[derive(Debug, Default)]
pub struct Join {
    waiting: HashMap<Key, Vec<Waiting>>,
    /// The deadline of each waiting close, made unique by a number.
    deadlines: BTreeMap<(WallTime, u64), Key>,
    next_number: u64,
    open: HashMap<Key, Vec<OpenEnd>>,
    /// The number of ends in `open`.
    open_count: usize,
    /// Events of servers' ends that wait for one of the client's end, each with its deadline.
    events: VecDeque<(WallTime, Record, u32)>,
    /// The addresses of traced sockets.
    local: HashSet<IpAddr>,
    now: Option<WallTime>,
    ready: VecDeque<Tagged>,
    counts: JoinCounts,
}

impl Join {
    /// Takes the next record in the order of time. `tag` comes back with the record.
    pub fn take(&mut self, record: Record, tag: u32) {
        self.advance(record.time);
        if self.local.len() < MAX_LOCAL {
            let local = match record.direction {
                Direction::Outbound => record.src.ip(),
                Direction::Inbound => record.dst.ip(),
            };
            self.local.insert(local);
        }
        if record.joined.is_some() {
            // The capture was joined when it was written.
            self.deliver(record, [Some(tag), None]);
        } else if record.event == Event::Close {
            self.close(record, tag);
        } else {
            self.event(record, tag);
        }
    }

    /// Reports that all records before `until` were taken.
    pub fn advance(&mut self, until: WallTime) {
        if self.now.is_some_and(|now| until <= now) {
            return;
        }
        self.now = Some(until);
        while let Some((&(deadline, number), _)) = self.deadlines.first_key_value()
            && deadline <= until
        {
            self.expire((deadline, number));
        }
        while let Some((deadline, ..)) = self.events.front()
            && *deadline <= until
        {
            self.release_event();
        }
    }

    /// Ends the run: no record waits any longer.
    pub fn finish(&mut self) {
        while !self.events.is_empty() {
            self.release_event();
        }
        while let Some((&deadline, _)) = self.deadlines.first_key_value() {
            self.expire(deadline);
        }
    }

    /// Returns the next record that leaves the stage.
    pub fn pop(&mut self) -> Option<Tagged> {
        self.ready.pop_front()
    }

    pub fn counts(&self) -> JoinCounts {
        self.counts
    }

    fn deliver(&mut self, record: Record, tags: [Option<u32>; 2]) {
        self.ready.push_back(Tagged { record, tags });
    }

    /// Delivers the events of one end of a connection: of the end whose event came first, or within
    /// [`WAIT_EVENT_NS`] of the client's end.
    fn event(&mut self, record: Record, tag: u32) {
        let key = Key::of(&record);
        let ends = self.open.entry(key).or_default();
        let other_is_delivered = ends
            .iter()
            .any(|end| end.direction != record.direction && end.is_delivered);
        let known = ends.iter_mut().find(|end| end.id == record.id);
        if let Some(end) = known {
            end.time = record.time;
            match (end.is_delivered, record.direction) {
                (true, _) => self.deliver(record, [Some(tag), None]),
                (false, Direction::Inbound) if !other_is_delivered => self.hold_event(record, tag),
                (false, _) => {}
            }
            return;
        }
        if self.open_count >= MAX_OPEN {
            return self.deliver(record, [Some(tag), None]);
        }
        self.open_count += 1;
        let is_delivered = record.direction == Direction::Outbound && !other_is_delivered;
        ends.push(OpenEnd {
            id: record.id,
            direction: record.direction,
            is_delivered,
            time: record.time,
        });
        if is_delivered {
            self.deliver(record, [Some(tag), None]);
        } else if !other_is_delivered {
            self.hold_event(record, tag);
        }
    }

    fn hold_event(&mut self, record: Record, tag: u32) {
        if self.events.len() >= MAX_WAITING {
            self.release_event();
        }
        let deadline = WallTime(record.time.0.saturating_add(WAIT_EVENT_NS));
        self.events.push_back((deadline, record, tag));
    }

    /// Delivers the first waiting event of a server's end, unless the client's end has events, or this end closed.
    fn release_event(&mut self) {
        let Some((_, record, tag)) = self.events.pop_front() else {
            return;
        };
        let Some(ends) = self.open.get_mut(&Key::of(&record)) else {
            return;
        };
        if ends.iter().any(|end| end.id != record.id && end.is_delivered) {
            return;
        }
        if let Some(end) = ends.iter_mut().find(|end| end.id == record.id) {
            end.is_delivered = true;
            self.deliver(record, [Some(tag), None]);
        }
    }

    /// Forgets an open end. Returns whether its events were delivered.
    fn remove_open(&mut self, key: Key, id: ConnId) -> bool {
        let Some(ends) = self.open.get_mut(&key) else {
            return false;
        };
        let at = ends.iter().position(|end| end.id == id);
        let is_delivered = at.is_some_and(|at| ends.swap_remove(at).is_delivered);
        self.open_count -= usize::from(at.is_some());
        if ends.is_empty() {
            self.open.remove(&key);
        }
        is_delivered
    }

    fn close(&mut self, record: Record, tag: u32) {
        let key = Key::of(&record);
        let is_delivered = self.remove_open(key, record.id);
        let ends = self.waiting.get(&key).map_or(&[][..], Vec::as_slice);
        let fitting = |ends: &[Waiting]| -> Vec<usize> {
            let fits = |at: &usize| fit::fit(&record, &ends[*at].record) == Fit::Sequence;
            (0..ends.len()).filter(fits).collect()
        };
        let fitting = fitting(ends);
        let mut is_ambiguous = false;
        match fitting[..] {
            [] => {}
            [at] if !ends[at].is_ambiguous => {
                let other = self.remove_waiting(key, at);
                let this = Waiting {
                    record,
                    tag,
                    is_delivered,
                    is_ambiguous: false,
                    deadline: (WallTime(0), 0),
                };
                return self.join(this, other);
            }
            _ => {
                is_ambiguous = true;
                for at in fitting {
                    self.set_ambiguous(key, at);
                }
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        let deadline = (self.deadline(key, &record), number);
        self.deadlines.insert(deadline, key);
        self.waiting.entry(key).or_default().push(Waiting {
            record,
            tag,
            is_delivered,
            is_ambiguous,
            deadline,
        });
        if self.deadlines.len() > MAX_WAITING
            && let Some((&deadline, _)) = self.deadlines.first_key_value()
        {
            self.counts.early += 1;
            self.expire(deadline);
        }
    }

    fn set_ambiguous(&mut self, key: Key, at: usize) {
        if let Some(end) = self.waiting.get_mut(&key).and_then(|ends| ends.get_mut(at)) {
            end.is_ambiguous = true;
        }
    }

    /// Returns the time until which a close waits for the other end.
    fn deadline(&self, key: Key, record: &Record) -> WallTime {
        let remote = match record.direction {
            Direction::Outbound => key.dst.0,
            Direction::Inbound => key.src.0,
        };
        let is_other_open = self.open.get(&key).is_some_and(|ends| {
            let is_other = |end: &OpenEnd| end.direction != record.direction;
            ends.iter().any(is_other)
        });
        let wait_ns = match (is_other_open, self.local.contains(&remote)) {
            (true, _) => WAIT_OPEN_NS,
            (false, true) => WAIT_TRACED_NS,
            (false, false) => WAIT_NS,
        };
        WallTime(record.time.0.saturating_add(wait_ns))
    }

    fn remove_waiting(&mut self, key: Key, at: usize) -> Waiting {
        let ends = self.waiting.entry(key).or_default();
        let end = ends.swap_remove(at);
        if ends.is_empty() {
            self.waiting.remove(&key);
        }
        self.deadlines.remove(&end.deadline);
        end
    }

    /// Delivers a close whose wait is over: with the only close that its addresses fit if sequence numbers are
    /// unknown, else alone.
    fn expire(&mut self, deadline: (WallTime, u64)) {
        let Some(key) = self.deadlines.remove(&deadline) else {
            return;
        };
        let Some(ends) = self.waiting.get(&key) else { return };
        let Some(at) = ends.iter().position(|end| end.deadline == deadline) else {
            return;
        };
        let by_addresses = |at: usize| -> Vec<usize> {
            let fits =
                |other: &usize| *other != at && fit::fit(&ends[at].record, &ends[*other].record) == Fit::Addresses;
            (0..ends.len()).filter(fits).collect()
        };
        let others = by_addresses(at);
        let only = match others[..] {
            [other] if by_addresses(other).len() == 1 => Some(other),
            _ => None,
        };
        let is_ambiguous = ends[at].is_ambiguous || (!others.is_empty() && only.is_none());
        if is_ambiguous {
            for other in others {
                self.set_ambiguous(key, other);
            }
        }
        match only.filter(|_| !is_ambiguous) {
            Some(other) => {
                // The larger index first, because a removal moves the last end.
                let (first, second) = (at.max(other), at.min(other));
                let (first, second) = (self.remove_waiting(key, first), self.remove_waiting(key, second));
                self.join(first, second);
            }
            None => {
                let mut end = self.remove_waiting(key, at);
                let count = if is_ambiguous {
                    &mut self.counts.ambiguous
                } else {
                    &mut self.counts.one_ended
                };
                *count += 1;
                end.record.joined = Some(Box::new(Joined { other: None }));
                self.deliver(end.record, [Some(end.tag), None]);
            }
        }
    }

    /// Delivers both ends as one record: that of the end whose events were delivered, else the client's.
    fn join(&mut self, one: Waiting, two: Waiting) {
        let is_first = match (one.is_delivered, two.is_delivered) {
            (true, false) => true,
            (false, true) => false,
            _ => one.record.direction == Direction::Outbound,
        };
        let (mut this, other) = if is_first { (one, two) } else { (two, one) };
        self.counts.pairs += 1;
        this.record.joined = Some(Box::new(Joined {
            other: Some(other.record),
        }));
        self.deliver(this.record, [Some(this.tag), Some(other.tag)]);
    }
}
