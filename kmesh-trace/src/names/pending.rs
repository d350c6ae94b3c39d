//! Records that wait for the first answer about their own pod. Pure.
//!
//! A record waits for 200 ms at most, and all records stay in their order. No pod can delay the records of others:
//! beyond its share of the queue, its own records no longer wait.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// The longest wait of a record, ns.
const MAX_WAIT_NS: u64 = 200_000_000;
/// The number of records that may wait. Beyond it, the first one is emitted with the names that are known.
const MAX_RECORDS: usize = 4096;
/// The number of records that may wait for one answer.
const MAX_RECORDS_EACH: usize = 512;
/// How long a question without answer is remembered, ns.
const FORGET_NS: u64 = 60_000_000_000;
/// The number of questions that are remembered.
const MAX_QUESTIONS: usize = 4096;

#[derive(Debug)]
struct QuestionState {
    asked_ns: u64,
    /// The number of records that wait for the answer.
    records: usize,
}

#[derive(Debug)]
struct Waiter<T, K> {
    record: T,
    question: Option<K>,
    pushed_ns: u64,
    deadline_ns: u64,
}

/// The questions that are open, by what they ask for.
#[derive(Debug)]
pub struct Questions<K>(HashMap<K, QuestionState>);

impl<K: Clone + Eq + Hash> Questions<K> {
    /// Records a question. Returns whether it is new, so that it is worth asking.
    pub fn ask(&mut self, question: &K, now_ns: u64) -> bool {
        if let Some(known) = self.0.get_mut(question) {
            let is_new = now_ns.saturating_sub(known.asked_ns) >= FORGET_NS;
            if is_new {
                known.asked_ns = now_ns;
            }
            return is_new;
        }
        if self.0.len() >= MAX_QUESTIONS {
            self.0.retain(|_, known| known.records > 0);
        }
        if self.0.len() < MAX_QUESTIONS {
            let (asked_ns, records) = (now_ns, 0);
            self.0.insert(question.clone(), QuestionState { asked_ns, records });
        }
        true
    }
}

/// A queue of records in their order.
#[derive(Debug)]
pub struct Pending<T, K> {
    queue: VecDeque<Waiter<T, K>>,
    /// The latest time until which any record has waited.
    due_ns: u64,
    longest_wait_ns: u64,
    /// The questions that records wait for, or waited for.
    pub questions: Questions<K>,
}

impl<T, K> Default for Pending<T, K> {
    fn default() -> Self {
        Self {
            queue: VecDeque::new(),
            due_ns: 0,
            longest_wait_ns: 0,
            questions: Questions(HashMap::new()),
        }
    }
}

impl<T, K: Clone + Eq + Hash> Pending<T, K> {
    /// Adds the next record, and the question that it waits for.
    pub fn push(&mut self, record: T, question: Option<K>, now_ns: u64) {
        let mut deadline_ns = 0;
        if let Some(question) = &question
            && let Some(known) = self.questions.0.get_mut(question)
        {
            known.records += 1;
            if known.records <= MAX_RECORDS_EACH {
                deadline_ns = known.asked_ns.saturating_add(MAX_WAIT_NS);
            }
        }
        self.queue.push_back(Waiter {
            record,
            question,
            pushed_ns: now_ns,
            deadline_ns,
        });
    }

    /// Returns the first record, if it need not wait any more. `is_ready` may ask further questions.
    pub fn pop(&mut self, now_ns: u64, is_ready: impl FnOnce(&mut T, &mut Questions<K>) -> bool) -> Option<T> {
        let is_full = self.queue.len() > MAX_RECORDS;
        let Self { queue, questions, .. } = self;
        let first = queue.front_mut()?;
        let waits = first.question.is_some() && first.deadline_ns > now_ns && !is_full;
        if waits && !is_ready(&mut first.record, questions) {
            return None;
        }
        let first = queue.pop_front()?;
        // The delay of a thread that is scheduled late is no wait for a name.
        self.due_ns = self.due_ns.max(first.deadline_ns);
        let waited_ns = now_ns.min(self.due_ns).saturating_sub(first.pushed_ns);
        self.longest_wait_ns = self.longest_wait_ns.max(waited_ns);
        if let Some(known) = first.question.and_then(|question| questions.0.get_mut(&question)) {
            known.records = known.records.saturating_sub(1);
        }
        Some(first.record)
    }

    /// Returns the first record, and the time until which it waits at most (CLOCK_MONOTONIC, ns).
    pub fn first(&self) -> Option<(&T, u64)> {
        self.queue.front().map(|first| (&first.record, first.deadline_ns))
    }

    /// Returns the longest time that a record has waited for its own name or for that of an earlier record, ns.
    pub fn longest_wait_ns(&self) -> u64 {
        self.longest_wait_ns
    }

    /// Returns whether no record waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    type Queue = Pending<(u32, Option<&'static str>), &'static str>;

    fn push(pending: &mut Queue, number: u32, pod: Option<&'static str>, now_ns: u64) -> bool {
        let is_new = pod.as_ref().is_some_and(|pod| pending.questions.ask(pod, now_ns));
        pending.push((number, pod), pod, now_ns);
        is_new
    }

    fn pop(pending: &mut Queue, now_ns: u64, known: &[&str]) -> Vec<u32> {
        let is_ready = |(_, pod): &mut (u32, Option<&str>)| pod.is_none_or(|pod| known.contains(&pod));
        std::iter::from_fn(|| pending.pop(now_ns, |record, _| is_ready(record)))
            .map(|(number, _)| number)
            .collect()
    }

    #[test]
    fn record_waits_for_its_answer_in_order() {
        let mut pending = Queue::default();
        push(&mut pending, 1, None, 0);
        assert!(push(&mut pending, 2, Some("a"), 0));
        push(&mut pending, 3, None, 10 * MS);
        assert!(!push(&mut pending, 4, Some("a"), 150 * MS), "asked already");
        assert!(push(&mut pending, 5, Some("b"), 150 * MS));
        assert_eq!(pop(&mut pending, 150 * MS, &[]), [1]);
        assert_eq!(pending.first(), Some((&(2, Some("a")), 200 * MS)));
        assert_eq!(pop(&mut pending, 199 * MS, &[]), [0; 0]);
        assert_eq!(pop(&mut pending, 200 * MS, &[]), [2, 3, 4]);
        assert_eq!(pop(&mut pending, 201 * MS, &["b"]), [5]);
        assert!(pending.is_empty());
        push(&mut pending, 6, Some("a"), 300 * MS);
        assert_eq!(
            pop(&mut pending, 300 * MS, &[]),
            [6],
            "there was no answer a moment ago"
        );
        assert!(
            push(&mut pending, 7, Some("a"), FORGET_NS),
            "asked again a minute later"
        );
    }

    #[test]
    fn no_record_waits_longer_than_the_limit() {
        let mut pending = Queue::default();
        let pods = ["a", "b", "c", "d"];
        let mut seed = 1_u64;
        for step in 0..20_000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let now_ns = step * 7 * MS;
            let pod = pods.get((seed >> 33) as usize % 8).copied();
            push(&mut pending, step as u32, pod, now_ns);
            pop(&mut pending, now_ns, &pods[..(seed >> 40) as usize % 3]);
        }
        let longest_ns = pending.longest_wait_ns();
        assert!((100 * MS..=MAX_WAIT_NS).contains(&longest_ns), "{longest_ns}");
    }

    #[test]
    fn answer_releases_its_records_at_once() {
        let mut pending = Queue::default();
        push(&mut pending, 1, Some("a"), 0);
        push(&mut pending, 2, Some("b"), 0);
        assert_eq!(pop(&mut pending, 1, &["a"]), [1]);
        assert_eq!(pop(&mut pending, 2, &["a", "b"]), [2]);
    }

    #[test]
    fn pod_with_many_records_does_not_delay_others() {
        let mut pending = Queue::default();
        let count = MAX_RECORDS_EACH as u32 + 10;
        (0..count).for_each(|number| _ = push(&mut pending, number, Some("a"), 0));
        push(&mut pending, u32::MAX, Some("b"), 0);
        assert_eq!(pop(&mut pending, 0, &[]), [0; 0], "the first ones wait");
        assert_eq!(pop(&mut pending, 200 * MS - 1, &["a"]).len(), count as usize);
        assert_eq!(pending.first(), Some((&(u32::MAX, Some("b")), 200 * MS)));
    }

    #[test]
    fn queue_and_questions_are_bounded() {
        let mut pending = Pending::<u64, u64>::default();
        for number in 0..MAX_RECORDS as u64 + 10 {
            pending.questions.ask(&(number / 100), 0);
            pending.push(number, Some(number / 100), 0);
        }
        let released = std::iter::from_fn(|| pending.pop(0, |_, _| false));
        assert_eq!(released.count(), 10);
        (0..3 * MAX_QUESTIONS as u64).for_each(|number| _ = pending.questions.ask(&(number + 1_000), 0));
        assert!(pending.questions.0.len() <= MAX_QUESTIONS);
    }
}
