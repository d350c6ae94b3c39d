//! Which Services have an address, since when, until when.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use crate::enrich::shared::Few;
use crate::record::WallTime;

/// How long what is gone is remembered, ns.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// How much of it at most; the oldest goes first.
const MOST_REMEMBERED: usize = 50_000;

/// That a Service has something, for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    service: u32,
    /// How many say so now.
    count: u32,
    since: i64,
    until: i64,
    port: u16,
}

/// What Services have, each with a port.
#[derive(Debug)]
pub struct Timed<K> {
    spans: HashMap<K, Few<Span>>,
    ended: VecDeque<(i64, K)>,
}

impl<K> Default for Timed<K> {
    fn default() -> Self {
        Self {
            spans: HashMap::new(),
            ended: VecDeque::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Timed<K> {
    /// This Service has it. Whether that is news; then [`Self::forget`] will once tell that it is forgotten.
    pub fn open(&mut self, key: K, port: u16, service: u32, at: WallTime) -> bool {
        let spans = self.spans.entry(key).or_default();
        let mut same = spans.as_mut_slice().iter_mut().filter(|span| span.port == port);
        if let Some(span) = same.find(|span| span.service == service && span.until == i64::MAX) {
            span.count += 1;
            return false;
        }
        let is_first = !spans.as_slice().iter().any(|span| span.port == port);
        spans.push(Span {
            service,
            count: 1,
            // What nobody had before was there before it was told.
            since: if is_first { i64::MIN } else { at.0 },
            until: i64::MAX,
            port,
        });
        true
    }

    /// One who said so says so no more.
    pub fn close(&mut self, key: K, port: u16, service: u32, at: WallTime) {
        let spans = self.spans.get_mut(&key).map_or(&mut [][..], Few::as_mut_slice);
        let is_it = |span: &&mut Span| (span.port, span.service, span.until) == (port, service, i64::MAX);
        if let Some(span) = spans.iter_mut().find(is_it) {
            span.count -= 1;
            if span.count == 0 {
                span.until = at.0;
                self.ended.push_back((at.0, key));
            }
        }
    }

    /// Those that had it then, whatever the port.
    pub fn at(&self, key: K, time: WallTime) -> impl Iterator<Item = (u16, u32)> + Clone + use<'_, K> {
        let spans = self.spans.get(&key).map_or(&[][..], Few::as_slice).iter();
        spans
            .filter(move |span| (span.since..span.until).contains(&time.0))
            .map(|span| (span.port, span.service))
    }

    /// Forgets what ended long ago: of which Services, as often as each had something.
    pub fn forget(&mut self, now: WallTime) -> Vec<u32> {
        let mut forgotten = Vec::new();
        while let Some(&(until, key)) = self.ended.front()
            && (self.ended.len() > MOST_REMEMBERED || now.0.saturating_sub(until) > REMEMBERED_NS)
        {
            self.ended.pop_front();
            if let Some(spans) = self.spans.get_mut(&key) {
                spans.retain(|span| {
                    if span.until <= until {
                        forgotten.push(span.service);
                    }
                    span.until > until
                });
                if spans.is_empty() {
                    self.spans.remove(&key);
                }
            }
        }
        forgotten
    }
}
