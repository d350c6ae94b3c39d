//! Which object has a key (an address, a port), and from when until when: addresses are reused.

use std::collections::HashMap;
use std::hash::Hash;

use crate::record::WallTime;

/// The end of a span that has not ended.
pub const OPEN: i64 = i64::MAX;

/// One object's use of a key. Times are nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span<V> {
    /// The object.
    pub value: V,
    /// The time from which on the object has the key.
    pub since: i64,
    /// The time at which it stops having the key; [`OPEN`] while it has it.
    pub until: i64,
    /// The number of reports that say so now.
    pub uses: u32,
}

impl<V> Span<V> {
    /// Returns whether the object had the key at `time`.
    pub fn contains(&self, time: WallTime) -> bool {
        (self.since..self.until).contains(&time.0)
    }
}

/// The spans of each key.
#[derive(Debug)]
pub struct Timeline<K, V> {
    spans: HashMap<K, Vec<Span<V>>>,
}

impl<K, V> Default for Timeline<K, V> {
    fn default() -> Self {
        Self { spans: HashMap::new() }
    }
}

impl<K: Eq + Hash, V: Copy + Eq> Timeline<K, V> {
    /// Returns all spans of a key, past ones included.
    pub fn get(&self, key: &K) -> &[Span<V>] {
        self.spans.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns the span of this object at this key that started last.
    pub fn last_mut(&mut self, key: &K, value: V) -> Option<&mut Span<V>> {
        let spans = self.spans.get_mut(key)?;
        spans.iter_mut().rev().find(|span| span.value == value)
    }

    /// Adds a span.
    pub fn push(&mut self, key: K, span: Span<V>) {
        let spans = self.spans.entry(key).or_default();
        spans.reserve_exact(1);
        spans.push(span);
    }

    /// Removes the spans of this object at this key.
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

    fn retain(&mut self, key: &K, is_kept: impl Fn(&Span<V>) -> bool) {
        if let Some(spans) = self.spans.get_mut(key) {
            spans.retain(is_kept);
            if spans.is_empty() {
                self.spans.remove(key);
            }
        }
    }
}
