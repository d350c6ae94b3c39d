//! Collects failures by kind, so that the report of many lives stays short.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The failures by the name of their kind.
#[derive(Default)]
pub struct Failures(BTreeMap<String, Kind>);

#[derive(Default)]
struct Kind {
    count: u64,
    lives: BTreeSet<u64>,
    example: Option<Example>,
}

/// The first failure of a kind.
struct Example {
    life: u64,
    failure: String,
    /// The calls, packets and records of the life.
    description: String,
}

impl Failures {
    /// Adds a failure. `texts` returns what failed and the description of the life; it runs only for the first failure
    /// of a kind.
    pub fn add(&mut self, kind: String, life: u64, texts: impl FnOnce() -> (String, String)) {
        let kind = self.0.entry(kind).or_default();
        kind.count += 1;
        kind.lives.insert(life);
        kind.example.get_or_insert_with(|| {
            let (failure, description) = texts();
            Example {
                life,
                failure,
                description,
            }
        });
    }

    /// Panics with a report if there are failures.
    pub fn check(&self, seed: u64) {
        assert!(self.0.is_empty(), "{}", self.report(seed));
    }

    fn report(&self, seed: u64) -> String {
        let mut report = format!("{} kinds of failures, seed {seed}\n", self.0.len());
        // Prints the description of a life once, even if several kinds have it as their example.
        let mut printed = BTreeSet::new();
        for (name, kind) in &self.0 {
            let lives: Vec<_> = kind.lives.iter().take(8).collect();
            let _ = writeln!(report, "\n--- {} times: {name} (lives {lives:?})", kind.count);
            if let Some(example) = &kind.example {
                let (life, failure) = (example.life, &example.failure);
                let _ = writeln!(report, "seed {seed}, life {life}: {failure}");
                if printed.insert((life, example.description.len())) {
                    report.push_str(&example.description);
                }
            }
        }
        report
    }
}

/// Returns the kind of a failure: its text without numbers.
pub fn kind_of(text: &str) -> String {
    let words = text
        .split(' ')
        .filter(|word| !word.contains(|char: char| char.is_ascii_digit() || char == '['));
    words.take(20).collect::<Vec<_>>().join(" ")
}
