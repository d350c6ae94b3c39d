//! Records that wait for the first answer about their own pod: not long, not many, and all stay in their order. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// How long a record waits, ns.
const PATIENCE_NS: u64 = 200_000_000;
/// How many wait at most; then the first goes out with what is known.
const MOST: usize = 4096;
/// How long it is remembered that nobody knew a pod, ns.
const FORGOTTEN_NS: u64 = 60_000_000_000;
/// Of how many pods at most.
const MOST_ASKED: usize = 4096;

/// A queue of whatever waits.
#[derive(Debug)]
pub struct Pending<T> {
    queue: VecDeque<Waiter<T>>,
    /// When each pod that was unknown first turned up.
    asked: HashMap<Arc<str>, u64>,
}

#[derive(Debug)]
struct Waiter<T> {
    what: T,
    /// The pod that must be known first.
    pod: Option<Arc<str>>,
    until_ns: u64,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            asked: HashMap::new(),
        }
    }
}

impl<T> Pending<T> {
    /// Whether a record of this unknown pod is the first for long, so that it is worth asking for it.
    pub fn is_new(&mut self, pod: &Arc<str>, now_ns: u64) -> bool {
        if self
            .asked
            .get(pod)
            .is_some_and(|asked| now_ns.saturating_sub(*asked) < FORGOTTEN_NS)
        {
            return false;
        }
        if self.asked.len() >= MOST_ASKED {
            self.asked.clear();
        }
        self.asked.insert(Arc::clone(pod), now_ns);
        true
    }

    /// Takes the next one. `pod`: the unknown pod that it is of, if any.
    pub fn push(&mut self, what: T, pod: Option<Arc<str>>) {
        let asked = pod.as_ref().and_then(|pod| self.asked.get(pod));
        let until_ns = asked.map_or(0, |asked| asked.saturating_add(PATIENCE_NS));
        self.queue.push_back(Waiter { what, pod, until_ns });
    }

    /// The first one, if it need not wait any more.
    pub fn pop(&mut self, now_ns: u64, is_known: impl Fn(&str) -> bool) -> Option<T> {
        let first = self.queue.front()?;
        let waits = first.until_ns > now_ns && first.pod.as_ref().is_some_and(|pod| !is_known(pod));
        if waits && self.queue.len() <= MOST {
            return None;
        }
        self.queue.pop_front().map(|first| first.what)
    }

    /// The first one.
    pub fn first(&self) -> Option<&T> {
        self.queue.front().map(|first| &first.what)
    }

    /// Until when the first one waits.
    pub fn until_ns(&self) -> Option<u64> {
        self.queue.front().map(|first| first.until_ns)
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn push(waiting: &mut Pending<u32>, number: u32, pod: Option<&str>, now_ns: u64) -> bool {
        let pod: Option<Arc<str>> = pod.map(Arc::from);
        let is_new = pod.as_ref().is_some_and(|pod| waiting.is_new(pod, now_ns));
        waiting.push(number, pod);
        is_new
    }

    fn pop(waiting: &mut Pending<u32>, now_ns: u64, known: &[&str]) -> Vec<u32> {
        std::iter::from_fn(|| waiting.pop(now_ns, |pod| known.contains(&pod))).collect()
    }

    #[test]
    fn one_waits_for_its_answer_and_all_behind_it_wait_with_it() {
        let mut waiting = Pending::default();
        push(&mut waiting, 1, None, 0);
        assert!(push(&mut waiting, 2, Some("a"), 0));
        push(&mut waiting, 3, None, 10 * MS);
        assert!(!push(&mut waiting, 4, Some("a"), 150 * MS), "asked for already");
        assert!(push(&mut waiting, 5, Some("b"), 150 * MS));
        assert_eq!(pop(&mut waiting, 150 * MS, &[]), [1]);
        assert_eq!(waiting.until_ns(), Some(200 * MS));
        assert_eq!(pop(&mut waiting, 199 * MS, &[]), [0; 0]);
        assert_eq!(pop(&mut waiting, 200 * MS, &[]), [2, 3, 4]);
        assert_eq!(pop(&mut waiting, 201 * MS, &["b"]), [5]);
        assert!(waiting.is_empty());
        // What nobody knew holds up nothing for a while.
        push(&mut waiting, 6, Some("a"), 300 * MS);
        assert_eq!(pop(&mut waiting, 300 * MS, &[]), [6]);
    }

    #[test]
    fn an_answer_lets_go_at_once() {
        let mut waiting = Pending::default();
        push(&mut waiting, 1, Some("a"), 0);
        push(&mut waiting, 2, Some("b"), 0);
        assert_eq!(pop(&mut waiting, 1, &["a"]), [1]);
        assert_eq!(pop(&mut waiting, 2, &["a", "b"]), [2]);
    }

    #[test]
    fn only_so_many_wait() {
        let mut waiting = Pending::default();
        (0..MOST as u32 + 10).for_each(|number| _ = push(&mut waiting, number, Some("a"), 0));
        assert_eq!(pop(&mut waiting, 0, &[]).len(), 10);
        for number in 0..3 * MOST_ASKED as u64 {
            waiting.is_new(&number.to_string().into(), 0);
        }
        assert!(waiting.asked.len() <= MOST_ASKED);
    }
}
