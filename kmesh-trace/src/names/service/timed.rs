//! Which Services have an address, since when, until when.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

use crate::record::WallTime;

/// How long what is gone is remembered, ns.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// How much of it at most; the oldest goes first.
const MOST_REMEMBERED: usize = 50_000;

/// That a Service has something, for a time.
#[derive(Clone, Copy, Debug)]
struct Span<K> {
    key: K,
    port: u16,
    service: u32,
    /// How many say so now.
    count: u32,
    since: i64,
    until: i64,
}

/// What Services have, each with a port.
#[derive(Debug)]
pub struct Timed<K> {
    spans: HashTable<Span<K>>,
    state: RandomState,
    ended: VecDeque<(i64, K)>,
}

impl<K> Default for Timed<K> {
    fn default() -> Self {
        Self {
            spans: HashTable::new(),
            state: RandomState::new(),
            ended: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Timed<K> {
    /// This Service has it. Whether that is news; then [`Self::forget`] will once tell that it is forgotten.
    pub fn open(&mut self, key: K, port: u16, service: u32, at: WallTime) -> bool {
        if let Some(span) = self.open_span(key, port, service) {
            span.count += 1;
            return false;
        }
        let is_first = !self.of(key).any(|span| span.port == port);
        let span = Span {
            key,
            port,
            service,
            count: 1,
            // What nobody had before was there before it was told.
            since: if is_first { i64::MIN } else { at.0 },
            until: i64::MAX,
        };
        let hash = |key: K| self.state.hash_one(key);
        self.spans.insert_unique(hash(key), span, |span| hash(span.key));
        true
    }

    /// One who said so says so no more.
    pub fn close(&mut self, key: K, port: u16, service: u32, at: WallTime) {
        if let Some(span) = self.open_span(key, port, service) {
            span.count -= 1;
            if span.count == 0 {
                span.until = at.0;
                self.ended.push_back((at.0, key));
            }
        }
    }

    fn open_span(&mut self, key: K, port: u16, service: u32) -> Option<&mut Span<K>> {
        let what = (key, port, service, i64::MAX);
        let is_it = |span: &Span<K>| (span.key, span.port, span.service, span.until) == what;
        self.spans.find_mut(self.state.hash_one(key), is_it)
    }

    /// Those that had it then, whatever the port.
    pub fn at(&self, key: K, time: WallTime) -> impl Iterator<Item = (u16, u32)> + Clone + use<'_, K> {
        let then = self
            .of(key)
            .filter(move |span| (span.since..span.until).contains(&time.0));
        then.map(|span| (span.port, span.service))
    }

    fn of(&self, key: K) -> impl Iterator<Item = &Span<K>> + Clone {
        let likely = self.spans.iter_hash(self.state.hash_one(key));
        likely.filter(move |span| span.key == key)
    }

    /// Forgets what ended long ago: of which Services, as often as each had something.
    pub fn forget(&mut self, now: WallTime) -> Vec<u32> {
        let mut forgotten = Vec::new();
        while let Some(&(until, key)) = self.ended.front()
            && (self.ended.len() > MOST_REMEMBERED || now.0.saturating_sub(until) > REMEMBERED_NS)
        {
            self.ended.pop_front();
            let is_old = |span: &Span<K>| span.key == key && span.until <= until;
            while let Ok(found) = self.spans.find_entry(self.state.hash_one(key), is_old) {
                forgotten.push(found.remove().0.service);
            }
        }
        forgotten
    }
}
