//! What there is to say of each source, and when: pure.
//!
//! One that was named and does not answer in time is an error, and later silence a warning; those that were only guessed are
//! worth one line together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::Failure;
use crate::note::NamesFrom;

/// By when a named source must have answered.
const PATIENCE: Duration = Duration::from_secs(10);
/// By when guessed sources are told of, whatever they have said.
const GUESSING: Duration = Duration::from_secs(2);
/// Between warnings of the same source.
const QUIET: Duration = Duration::from_secs(60);

/// Whether named sources answered.
#[derive(Debug, Default)]
pub struct Verdict {
    /// One did not, in time.
    missed: AtomicBool,
    /// A bit for each that has failed and never answered.
    failing: AtomicU64,
}

impl Verdict {
    /// Whether one did not; asked at the end of the run.
    pub fn has_failed(&self) -> bool {
        self.missed.load(Ordering::Relaxed) || self.failing.load(Ordering::Relaxed) != 0
    }
}

/// What there is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Of use to who wants to be told.
    Note(String),
    /// To be said in any case.
    Error(String),
}

#[cfg(test)]
impl PartialEq<&str> for Line {
    fn eq(&self, other: &&str) -> bool {
        matches!(self, Self::Note(text) | Self::Error(text) if text == other)
    }
}

struct Standing {
    label: String,
    word: &'static str,
    named: bool,
    answered: bool,
    /// Why it does not answer, as long as it does not.
    failure: Option<Failure>,
    warned: Option<Instant>,
    missed: bool,
}

/// All sources.
pub struct Board {
    sources: Vec<Standing>,
    verdict: Arc<Verdict>,
    names_from: NamesFrom,
    began: Instant,
    /// Of the guessed ones has been told.
    guesses_told: bool,
}

impl Board {
    /// Of these sources, each with a word for it and whether it was named.
    pub fn new(
        sources: Vec<(String, &'static str, bool)>,
        verdict: Arc<Verdict>,
        names_from: NamesFrom,
        began: Instant,
    ) -> Self {
        names_from.set(&[]);
        Self {
            guesses_told: sources.iter().all(|(_, _, named)| *named),
            sources: sources
                .into_iter()
                .map(|(label, word, named)| Standing {
                    label,
                    word,
                    named,
                    answered: false,
                    failure: None,
                    warned: None,
                    missed: false,
                })
                .collect(),
            verdict,
            names_from,
            began,
        }
    }

    /// It answered last time, if it was asked at all.
    pub fn is_answering(&self, place: usize) -> bool {
        self.sources[place].answered && self.sources[place].failure.is_none()
    }

    /// It answered.
    pub fn answered(&mut self, place: usize) -> Vec<Line> {
        let guesses_told = self.guesses_told;
        let source = &mut self.sources[place];
        let first = !std::mem::replace(&mut source.answered, true);
        source.failure = None;
        if first {
            self.list_names();
        }
        let source = &mut self.sources[place];
        self.verdict.failing.fetch_and(!bit(place), Ordering::Relaxed);
        let warned = source.warned.take().is_some();
        if first && !source.named && !guesses_told {
            return self.guesses(false);
        }
        if !first && !warned {
            return Vec::new();
        }
        let again = if first {
            "names come from"
        } else {
            "there are names again from"
        };
        vec![Line::Note(format!("{again} {}", source.label))]
    }

    /// What has answered once is where the names are from, however it fares later.
    fn list_names(&self) {
        let answered = self.sources.iter().filter(|source| source.answered);
        self.names_from
            .set(&answered.map(|source| source.word).collect::<Vec<_>>());
    }

    /// It did not.
    pub fn failed(&mut self, place: usize, why: Failure, now: Instant) -> Vec<Line> {
        let source = &mut self.sources[place];
        let said = source.failure.replace(why.clone()).is_some_and(|before| before == why);
        if !source.answered {
            if !source.named {
                return self.guesses(false);
            }
            self.verdict.failing.fetch_or(bit(place), Ordering::Relaxed);
        }
        let lately = source.warned.is_some_and(|warned| now < warned + QUIET);
        if lately && (said || source.answered) {
            return Vec::new();
        }
        source.warned = Some(now);
        let yet = if source.answered { "no news" } else { "no names yet" };
        vec![Line::Note(format!("warning: {yet} from {}: {why}", source.label))]
    }

    /// When [`Self::at`] has something to say, whatever happens.
    pub fn next_deadline(&self) -> Option<Instant> {
        let guesses = (!self.guesses_told).then_some(self.began + GUESSING);
        let waits = |source: &Standing| source.named && !source.answered && !source.missed;
        let named = self.sources.iter().any(waits).then_some(self.began + PATIENCE);
        guesses.into_iter().chain(named).min()
    }

    /// What there is to say now.
    pub fn at(&mut self, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        if now >= self.began + GUESSING {
            lines.extend(self.guesses(true));
        }
        if now >= self.began + PATIENCE {
            for source in &mut self.sources {
                if source.named && !source.answered && !std::mem::replace(&mut source.missed, true) {
                    self.verdict.missed.store(true, Ordering::Relaxed);
                    source.warned = Some(now);
                    let nothing = Failure::new("it has not answered".to_owned());
                    let why = source.failure.as_ref().unwrap_or(&nothing);
                    lines.push(Line::Error(format!(
                        "error: no names from {} in the first {} s: {why}",
                        source.label,
                        PATIENCE.as_secs()
                    )));
                }
            }
        }
        lines
    }

    /// One line of all guessed ones, when it is known of each how it answers, or it is time.
    fn guesses(&mut self, now: bool) -> Vec<Line> {
        let guessed = || self.sources.iter().filter(|source| !source.named);
        let known = |source: &Standing| source.answered || source.failure.is_some();
        if self.guesses_told || !(now || guessed().all(known)) {
            return Vec::new();
        }
        let found: Vec<_> = guessed()
            .filter(|source| source.answered)
            .map(|source| source.label.as_str())
            .collect();
        let not: Vec<_> = guessed()
            .filter(|source| !source.answered)
            .map(|source| {
                let why = source.failure.as_ref().map_or("no answer yet", Failure::problem);
                format!("{} ({why})", source.label)
            })
            .collect();
        let line = match (found.is_empty(), not.is_empty()) {
            (true, _) => format!("no names, addresses only: {}", not.join("; ")),
            (false, true) => format!("names come from {}", found.join(" and ")),
            (false, false) => format!("names come from {}, not from {}", found.join(" and "), not.join("; ")),
        };
        self.guesses_told = true;
        vec![Line::Note(line)]
    }
}

fn bit(place: usize) -> u64 {
    1 << (place % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        board: Board,
        verdict: Arc<Verdict>,
        began: Instant,
    }

    impl Run {
        fn of(sources: &[(&str, bool)]) -> Self {
            let (verdict, began) = (Arc::new(Verdict::default()), Instant::now());
            let sources = sources.iter().map(|&(label, named)| (label.to_owned(), "word", named));
            Self {
                board: Board::new(sources.collect(), Arc::clone(&verdict), NamesFrom::default(), began),
                verdict,
                began,
            }
        }

        fn after(&self, seconds: u64) -> Instant {
            self.began + Duration::from_secs(seconds)
        }

        fn fails(&mut self, place: usize, why: &str, seconds: u64) -> Vec<Line> {
            let at = self.after(seconds);
            self.board.failed(place, Failure::new(why.to_owned()), at)
        }
    }

    #[test]
    fn a_named_source_that_never_answers_is_an_error() {
        let mut run = Run::of(&[("K", true)]);
        assert_eq!(run.board.next_deadline(), Some(run.after(10)));
        assert_eq!(run.fails(0, "refused", 0), ["warning: no names yet from K: refused"]);
        assert_eq!(run.fails(0, "refused", 1), [""; 0], "the same is said once");
        assert_eq!(run.fails(0, "401", 2), ["warning: no names yet from K: 401"]);
        assert_eq!(run.board.at(run.after(9)), [""; 0]);
        assert_eq!(
            run.board.at(run.after(10)),
            ["error: no names from K in the first 10 s: 401"]
        );
        assert_eq!((run.board.at(run.after(11)), run.board.next_deadline()), (vec![], None));
        assert_eq!(run.board.answered(0), ["names come from K"]);
        assert!(run.verdict.has_failed(), "late is late");
    }

    #[test]
    fn a_hanging_source_is_an_error_without_a_reason() {
        let mut run = Run::of(&[("K", true)]);
        assert_eq!(
            run.board.at(run.after(10)),
            ["error: no names from K in the first 10 s: it has not answered"]
        );
    }

    #[test]
    fn a_run_that_ends_early_knows_that_a_source_had_failed() {
        let mut run = Run::of(&[("K", true), ("L", true)]);
        assert!(!run.verdict.has_failed());
        run.fails(1, "refused", 0);
        assert!(run.verdict.has_failed());
        run.board.answered(1);
        assert!(!run.verdict.has_failed(), "it came in time");
    }

    #[test]
    fn later_failures_are_warnings_a_minute_apart() {
        let mut run = Run::of(&[("K", true)]);
        assert_eq!(run.board.answered(0), ["names come from K"]);
        assert_eq!(run.board.answered(0), [""; 0]);
        assert_eq!(run.fails(0, "refused", 20), ["warning: no news from K: refused"]);
        assert!(!run.board.is_answering(0));
        assert_eq!(run.fails(0, "reset", 30), [""; 0]);
        assert_eq!(run.fails(0, "reset", 80), ["warning: no news from K: reset"]);
        assert_eq!(run.board.answered(0), ["there are names again from K"]);
        assert!(run.board.is_answering(0) && !run.verdict.has_failed());
        assert_eq!(run.board.next_deadline(), None);
    }

    #[test]
    fn guesses_are_one_line() {
        let three = [("C", false), ("K", false), ("L", false)];
        let mut run = Run::of(&three);
        assert_eq!(run.board.answered(0), [""; 0]);
        assert_eq!(run.board.answered(2), [""; 0]);
        assert_eq!(
            run.fails(1, "refused", 0),
            ["names come from C and L, not from K (refused)"]
        );
        assert_eq!(run.fails(1, "refused", 1), [""; 0]);
        assert_eq!(run.board.answered(1), ["names come from K"], "it came up later");
        assert!(!run.verdict.has_failed());

        let mut run = Run::of(&three);
        (0..2).for_each(|place| assert_eq!(run.fails(place, "none", 0), [""; 0]));
        assert_eq!(
            run.fails(2, "none", 0),
            ["no names, addresses only: C (none); K (none); L (none)"]
        );

        let mut run = Run::of(&three);
        (0..3).for_each(|place| {
            let lines = run.board.answered(place);
            assert_eq!(lines.len(), usize::from(place == 2));
        });

        let mut run = Run::of(&three);
        run.board.answered(0);
        assert_eq!(run.board.next_deadline(), Some(run.after(2)));
        assert_eq!(
            run.board.at(run.after(2)),
            ["names come from C, not from K (no answer yet); L (no answer yet)"]
        );
        assert_eq!(run.board.next_deadline(), None);
    }
}
