//! Which object has a key (an address, a port), and from when until when: addresses are reused.

use std::collections::HashMap;
use std::hash::Hash;

use crate::record::WallTime;

pub const OPEN: i64 = i64::MAX;

/// One object's use of a key. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<V> {
    pub value: V,
    pub since: i64,
    /// The time at which the object stops having the key; [`OPEN`] while it has it.
    pub until: i64,
    /// The number of reports with the object at this key now.
    pub uses: u32,
}

impl<V> Span<V> {
    /// Returns a span that has not ended, with one use.
    pub fn new(value: V, since: i64) -> Self {
        let (until, uses) = (OPEN, 1);
        Self {
            value,
            since,
            until,
            uses,
        }
    }

    /// Returns whether the object had the key at `time`.
    pub fn contains(&self, time: WallTime) -> bool {
        (self.since..self.until).contains(&time.0)
    }
}

/// The spans of one key, and the number of changes of them.
type Spans<V> = (Box<[Span<V>]>, u32);

#[derive(Debug)]
pub struct Timeline<K, V>(HashMap<K, Spans<V>>);

impl<K, V> Default for Timeline<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Copy + Eq> Timeline<K, V> {
    pub fn get(&self, key: &K) -> &[Span<V>] {
        self.0.get(key).map_or(&[], |(spans, _)| spans)
    }

    /// Returns the last change of a key: its number, and the time since which the spans have not changed.
    pub fn last_change(&self, key: &K) -> (u32, i64) {
        let Some((spans, version)) = self.0.get(key) else {
            return (0, i64::MIN);
        };
        let times = spans.iter().flat_map(|span| [span.since, span.until]);
        let latest = times.filter(|&time| time != OPEN).max();
        (*version, latest.unwrap_or(i64::MIN))
    }

    /// Returns the span of this object at this key that started last, to change it.
    pub fn last_mut(&mut self, key: &K, value: V) -> Option<&mut Span<V>> {
        let (spans, version) = self.0.get_mut(key)?;
        *version = version.wrapping_add(1);
        spans.iter_mut().rev().find(|span| span.value == value)
    }

    pub fn push(&mut self, key: K, span: Span<V>) {
        let (spans, version) = self.0.entry(key).or_default();
        *version = version.wrapping_add(1);
        *spans = spans.iter().copied().chain([span]).collect();
    }

    pub fn remove(&mut self, key: &K, value: V) {
        self.retain(key, |span| span.value != value);
    }

    /// Removes the spans of a key that ended at `until` or earlier, and returns their objects.
    pub fn forget(&mut self, key: &K, until: i64) -> Vec<V> {
        let old = self.get(key).iter().filter(|span| span.until <= until);
        let old: Vec<_> = old.map(|span| span.value).collect();
        self.retain(key, |span| span.until > until);
        old
    }

    fn retain(&mut self, key: &K, retains: impl Fn(&Span<V>) -> bool) {
        if let Some((spans, version)) = self.0.get_mut(key) {
            *spans = spans.iter().copied().filter(retains).collect();
            *version = version.wrapping_add(1);
            if spans.is_empty() {
                self.0.remove(key);
            }
        }
    }
}
