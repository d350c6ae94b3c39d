//! Values that many objects share: namespaces, label keys and values, names of containers and ports.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// The size below which no sweep happens.
const MIN_SWEEP: usize = 1024;

/// Stores each value once, however many objects have it. A sweep drops the values that no object has any more.
#[derive(Debug)]
pub struct Interner<T: ?Sized> {
    values: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: HashSet::new(),
            sweep_at: MIN_SWEEP,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Interner<T> {
    /// Returns the stored value that equals `value`.
    pub fn intern<Q: Borrow<T> + Into<Arc<T>>>(&mut self, value: Q) -> Arc<T> {
        if let Some(known) = self.values.get(value.borrow()) {
            return Arc::clone(known);
        }
        if self.values.len() >= self.sweep_at {
            self.values.retain(|one| Arc::strong_count(one) > 1);
            self.sweep_at = (self.values.len() * 2).max(MIN_SWEEP);
        }
        let new: Arc<T> = value.into();
        self.values.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_shared_and_unused_values_are_dropped() {
        let mut strings = Interner::<str>::default();
        let used = strings.intern("used");
        assert!(Arc::ptr_eq(&used, &strings.intern("used")));
        (0..10_000).for_each(|number| _ = strings.intern(&*number.to_string()));
        assert!(strings.values.len() <= MIN_SWEEP);
        assert!(Arc::ptr_eq(&used, &strings.intern("used")));
    }
}
