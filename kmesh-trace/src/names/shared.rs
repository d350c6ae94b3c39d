//! What the indexes have in common: values that are kept once, who tells of an object, and where what has a key is.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use hashbrown::hash_table::{HashTable, IterHash};

use super::update::SourceId;

/// Values kept once, however often they are told: most of what is told of a pod is told of its neighbours, too.
#[derive(Debug)]
pub struct Shared<T: ?Sized> {
    all: HashSet<Arc<T>>,
    /// How many there may be before those that nobody uses are dropped.
    sweep: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self {
            all: HashSet::new(),
            sweep: 1024,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The one that equals `value`.
    pub fn one<Q: Borrow<T> + Into<Arc<T>>>(&mut self, value: Q) -> Arc<T> {
        if let Some(known) = self.all.get(value.borrow()) {
            return Arc::clone(known);
        }
        if self.all.len() >= self.sweep {
            self.all.retain(|one| Arc::strong_count(one) > 1);
            self.sweep = (self.all.len() * 2).max(1024);
        }
        let new: Arc<T> = value.into();
        self.all.insert(Arc::clone(&new));
        new
    }
}

/// A set of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources(u16);

impl Sources {
    fn bit(source: SourceId) -> u16 {
        // There are a handful of kinds of sources, each given once and with two ids at most.
        1 << (source.0 & 15)
    }

    /// Puts one in.
    pub fn insert(&mut self, source: SourceId) {
        self.0 |= Self::bit(source);
    }

    /// Takes one out.
    pub fn remove(&mut self, source: SourceId) {
        self.0 &= !Self::bit(source);
    }

    /// Whether it is in.
    pub fn has(self, source: SourceId) -> bool {
        self.0 & Self::bit(source) != 0
    }

    /// Whether none is in.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Which sources tell of an object, and of which of them a list is under way that has not had it yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToldBy {
    by: Sources,
    awaited: Sources,
}

impl ToldBy {
    /// This one tells of it.
    pub fn told(&mut self, source: SourceId) {
        self.by.insert(source);
        self.awaited.remove(source);
    }

    /// A list of this one begins, and should have it.
    pub fn list_begins(&mut self, source: SourceId) {
        if self.by.has(source) {
            self.awaited.insert(source);
        }
    }

    /// That list is whole: whether it lacked the object.
    pub fn is_missing(self, source: SourceId) -> bool {
        self.awaited.has(source)
    }

    /// This one tells of it no more.
    pub fn gone(&mut self, source: SourceId) {
        self.by.remove(source);
        self.awaited.remove(source);
    }

    /// Whether any source tells of it.
    pub fn is_known(self) -> bool {
        !self.by.is_empty()
    }
}

/// Leads from keys to the slots of what has them. Keys are not kept, so that whoever asks must look at what the slots hold.
#[derive(Debug, Default)]
pub struct Slots {
    /// Of each key half the hash, and the slot.
    table: HashTable<(u32, u32)>,
    state: RandomState,
}

impl Slots {
    /// The key leads to this slot, too.
    pub fn insert<K: Hash + ?Sized>(&mut self, key: &K, slot: u32) {
        let hash = self.hash(key);
        self.table
            .insert_unique(whole(hash), (hash, slot), |(hash, _)| whole(*hash));
    }

    /// It leads there no more.
    pub fn remove<K: Hash + ?Sized>(&mut self, key: &K, slot: u32) {
        let hash = self.hash(key);
        if let Ok(found) = self.table.find_entry(whole(hash), |one| *one == (hash, slot)) {
            found.remove();
        }
    }

    /// Where the key leads, and seldom elsewhere besides.
    pub fn get<K: Hash + ?Sized>(&self, key: &K) -> Leads<'_> {
        if self.table.is_empty() {
            return Leads::default();
        }
        let hash = self.hash(key);
        let likely = self.table.iter_hash(whole(hash));
        Leads { hash, likely }
    }

    /// How many times a key leads to a slot.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.table.len()
    }

    fn hash<K: Hash + ?Sized>(&self, key: &K) -> u32 {
        self.state.hash_one(key) as u32
    }
}

/// Where a key leads.
#[derive(Clone, Debug, Default)]
pub struct Leads<'a> {
    hash: u32,
    likely: IterHash<'a, (u32, u32)>,
}

impl Iterator for Leads<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (_, slot) = self.likely.find(|(hash, _)| *hash == self.hash)?;
        Some(*slot)
    }
}

/// The table looks at the highest bits and at the lowest.
fn whole(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_and_unused_ones_go() {
        let mut strings = Shared::<str>::default();
        let kept = strings.one("kept");
        assert!(Arc::ptr_eq(&kept, &strings.one("kept")));
        (0..10_000).for_each(|number| _ = strings.one(&*number.to_string()));
        assert!(strings.all.len() <= 1024);
        assert!(Arc::ptr_eq(&kept, &strings.one("kept")));
    }

    #[test]
    fn who_tells() {
        let [one, other] = [SourceId(0), SourceId(3)];
        let mut told = ToldBy::default();
        told.told(one);
        told.list_begins(one);
        told.list_begins(other);
        assert!(
            told.is_missing(one) && !told.is_missing(other),
            "the other never told of it"
        );
        told.told(other);
        told.gone(one);
        assert!(told.is_known() && !told.is_missing(one));
        told.gone(other);
        assert!(!told.is_known());
    }

    #[test]
    fn a_key_leads_wherever_it_was_said_to() {
        let mut slots = Slots::default();
        for number in 0..10_000_u32 {
            slots.insert(&(number % 5_000), number);
        }
        let at = |slots: &Slots, key: u32| {
            let mut found: Vec<_> = slots.get(&key).filter(|slot| slot % 5_000 == key).collect();
            found.sort_unstable();
            found
        };
        assert!((0..5_000).all(|key| at(&slots, key) == [key, key + 5_000]));
        slots.remove(&7, 7);
        slots.remove(&7, 7);
        assert_eq!(at(&slots, 7), [5_007]);
        assert_eq!(slots.count(), 9_999);
        assert!(at(&slots, 5_000).is_empty());
    }
}
