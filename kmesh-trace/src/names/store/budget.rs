//! The memory that objects of Kubernetes may take in all, shared fairly between namespaces.
//!
//! While memory is free, every namespace gets what it asks for. When it is used up, a namespace may still take an
//! eighth of an equal share, so no namespace can use up the memory of another.

use std::collections::HashMap;
use std::sync::Arc;

/// The memory for all objects, bytes. 100,000 pods and 20,000 Services take less, and hostile ones at most an eighth
/// more.
pub const MAX_BYTES: usize = 192 << 20;

/// The memory that each namespace uses, by estimates made when an object was added.
#[derive(Debug)]
pub struct MemoryBudget {
    max: usize,
    total: usize,
    namespaces: HashMap<Arc<str>, usize>,
}

impl MemoryBudget {
    /// Returns a budget of `max` bytes.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            total: 0,
            namespaces: HashMap::new(),
        }
    }

    /// Takes `bytes` for a namespace in place of the `freed` bytes that it gives back. Returns `false` and changes
    /// nothing when the budget does not allow it.
    pub fn replace(&mut self, namespace: &Arc<str>, freed: usize, bytes: usize) -> bool {
        let used = self.namespaces.get(namespace).copied().unwrap_or(0);
        let used_then = used.saturating_sub(freed) + bytes;
        let total_then = self.total.saturating_sub(freed) + bytes;
        let share = self.max / (8 * self.namespaces.len().max(1));
        if bytes > freed && total_then > self.max && used_then > share {
            return false;
        }
        self.total = total_then;
        match used_then {
            0 => _ = self.namespaces.remove(namespace),
            _ => _ = self.namespaces.insert(Arc::clone(namespace), used_then),
        }
        true
    }
}

impl Default for MemoryBudget {
    fn default() -> Self {
        Self::new(MAX_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_namespace_uses_up_the_memory_of_another() {
        let [greedy, modest]: [Arc<str>; 2] = ["greedy".into(), "modest".into()];
        let mut budget = MemoryBudget::new(1_600);
        assert!(budget.replace(&modest, 0, 10));
        assert!((0..159).all(|_| budget.replace(&greedy, 0, 10)));
        assert!(!budget.replace(&greedy, 0, 10), "all memory is used");
        assert!((0..9).all(|_| budget.replace(&modest, 0, 10)), "an eighth of a share");
        assert!(!budget.replace(&modest, 0, 10));
        assert!(budget.replace(&greedy, 10, 10) && budget.replace(&greedy, 500, 0));
        assert!(budget.replace(&modest, 0, 100), "memory is free again");
        assert!(budget.replace(&modest, 200, 0) && budget.replace(&greedy, 1_090, 0));
        assert_eq!((budget.total, budget.namespaces.len()), (0, 0));
    }
}
