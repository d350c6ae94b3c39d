//! The running kernel's names of the reasons why it drops a packet or sends a RST, and counts by reason.

use std::sync::Arc;

use kmesh_trace_common::MAX_DROP_REASONS;

/// The name of a reason that says nothing.
const NOT_SPECIFIED: &str = "NOT_SPECIFIED";
/// The name of the number after the last reason.
const MAX: &str = "MAX";

/// The names of one kind of reason, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasonNames(Arc<[Option<Arc<str>>]>);

impl ReasonNames {
    /// Returns the names of the enumerators that begin with `prefix`, without it.
    pub fn new(enumerators: impl IntoIterator<Item = (u32, String)>, prefix: &str) -> Self {
        let mut names = Vec::new();
        for (number, name) in enumerators {
            let (Some(name), number) = (name.strip_prefix(prefix), number as usize) else {
                continue;
            };
            if number >= MAX_DROP_REASONS || [MAX, NOT_SPECIFIED].contains(&name) {
                continue;
            }
            if names.len() <= number {
                names.resize(number + 1, None);
            }
            names[number] = Some(Arc::from(name));
        }
        Self(names.into())
    }

    /// Returns the name of a reason; `None` if the kernel does not specify it.
    pub fn name(&self, number: u32) -> Option<Arc<str>> {
        self.0.get(number as usize)?.clone()
    }

    /// Returns all reasons with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        (0..)
            .zip(self.0.iter())
            .filter_map(|(number, name)| Some((number, name.as_ref()?)))
    }
}

/// The maximum number of reasons in [`ReasonSums`]. The kernel has about a hundred, a capture may have any.
const MAX_SUMS: usize = 16;
/// The reason of everything beyond [`MAX_SUMS`]. The kernel's names are in upper case.
const OTHER: &str = "other";

/// Counts by reason. Without a count, they own no heap memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasonSums {
    /// The count of each reason, sorted by reason.
    sums: Vec<(Arc<str>, u64)>,
}

impl ReasonSums {
    /// Adds to the count of a reason. Beyond 16 reasons, further ones count as `other`.
    pub fn add(&mut self, reason: &Arc<str>, count: u64) {
        if count == 0 {
            return;
        }
        match self.position(reason) {
            Ok(at) => self.sums[at].1 = self.sums[at].1.saturating_add(count),
            Err(at) if self.sums.len() < MAX_SUMS => self.sums.insert(at, (Arc::clone(reason), count)),
            Err(_) => match self.position(OTHER) {
                Ok(at) => self.sums[at].1 = self.sums[at].1.saturating_add(count),
                Err(at) => self.sums.insert(at, (Arc::from(OTHER), count)),
            },
        }
    }

    /// Adds all counts of `others`.
    pub fn merge(&mut self, others: &Self) {
        for (reason, count) in &others.sums {
            self.add(reason, *count);
        }
    }

    /// Returns what `self` has more than `before`. A count that fell counts as 0.
    pub fn since(&self, before: &Self) -> Self {
        let count_before = |reason: &str| before.position(reason).map_or(0, |at| before.sums[at].1);
        let more = |(reason, count): &(Arc<str>, u64)| (Arc::clone(reason), count.saturating_sub(count_before(reason)));
        let sums = self.sums.iter().map(more).filter(|(_, count)| *count > 0);
        Self { sums: sums.collect() }
    }

    /// Iterates over the reasons that occurred, sorted by their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.sums.iter().map(|(reason, count)| (&**reason, *count))
    }

    /// Returns whether no reason occurred.
    pub fn is_empty(&self) -> bool {
        self.sums.is_empty()
    }

    /// Returns the sum of all counts.
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).fold(0, u64::saturating_add)
    }

    /// Returns the most frequent reason and its count. If several are equally frequent, the alphabetically first.
    pub fn main(&self) -> Option<(&str, u64)> {
        self.iter()
            .reduce(|most, next| if next.1 > most.1 { next } else { most })
    }

    fn position(&self, reason: &str) -> Result<usize, usize> {
        self.sums.binary_search_by(|(known, _)| (**known).cmp(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(counts: &[(&str, u64)]) -> ReasonSums {
        let mut sums = ReasonSums::default();
        for &(reason, count) in counts {
            sums.add(&reason.into(), count);
        }
        sums
    }

    #[test]
    fn counts_are_added_by_reason() {
        let mut all = sums(&[("B", 1), ("A", 2), ("B", 3), ("C", 0)]);
        assert_eq!(all.iter().collect::<Vec<_>>(), [("A", 2), ("B", 4)]);
        assert_eq!((all.total(), all.main()), (6, Some(("B", 4))));
        all.merge(&sums(&[("A", 2), ("D", u64::MAX)]));
        assert_eq!(all.iter().collect::<Vec<_>>(), [("A", 4), ("B", 4), ("D", u64::MAX)]);
        assert_eq!((all.total(), all.main()), (u64::MAX, Some(("D", u64::MAX))));
        assert_eq!(sums(&[("B", 1), ("A", 1)]).main(), Some(("A", 1)));
        assert_eq!((sums(&[]).total(), sums(&[]).main()), (0, None));
    }

    #[test]
    fn difference_has_only_what_was_added() {
        let before = sums(&[("A", 2), ("B", 5), ("C", 9)]);
        let after = sums(&[("A", 2), ("B", 7), ("C", 1), ("D", 4)]);
        assert_eq!(after.since(&before), sums(&[("B", 2), ("D", 4)]));
        assert_eq!(after.since(&ReasonSums::default()), after);
    }

    #[test]
    fn further_reasons_count_as_other() {
        let mut all = ReasonSums::default();
        for number in 0..1_000 {
            all.add(&format!("REASON_{number}").into(), 1);
        }
        assert_eq!(all.iter().count(), MAX_SUMS + 1);
        assert_eq!(
            (all.total(), all.main()),
            (1_000, Some((OTHER, 1_000 - MAX_SUMS as u64)))
        );
    }
}
