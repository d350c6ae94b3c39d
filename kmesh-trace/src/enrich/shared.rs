//! What the indexes have in common: values that are kept once, and who tells of an object.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::facts::SourceId;

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
pub struct Sources(u32);

impl Sources {
    fn bit(source: SourceId) -> u32 {
        // There are a handful of kinds of sources, each given once.
        1 << (source.0 & 31)
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

/// One value mostly, several seldom; without a list of its own for one.
#[derive(Clone, Debug, Default)]
pub enum Few<T> {
    /// None.
    #[default]
    No,
    /// One.
    One(T),
    /// Any number.
    More(Vec<T>),
}

impl<T> Few<T> {
    /// All of them.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::No => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::More(all) => all,
        }
    }

    /// All of them, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Self::No => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::More(all) => all,
        }
    }

    /// One more.
    pub fn push(&mut self, value: T) {
        *self = match std::mem::take(self) {
            Self::No => Self::One(value),
            Self::One(one) => Self::More(vec![one, value]),
            Self::More(mut all) => {
                all.push(value);
                Self::More(all)
            }
        };
    }

    /// Keeps those that `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        match self {
            Self::No => {}
            Self::One(one) => {
                if !keep(one) {
                    *self = Self::No;
                }
            }
            Self::More(all) => all.retain(keep),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
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
    fn few_are_as_many_as_were_pushed() {
        let mut few = Few::default();
        for count in 0..4 {
            assert_eq!(few.as_slice(), (0..count).collect::<Vec<_>>());
            few.push(count);
        }
        few.retain(|number| number % 2 == 1);
        assert_eq!(few.as_slice(), [1, 3]);
        few.retain(|_| false);
        assert!(few.is_empty());
    }
}
