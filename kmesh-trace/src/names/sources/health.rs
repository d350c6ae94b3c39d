//! The state of each source, and what users are told about it. Pure: time and reports come in as values.
//!
//! A source that the command line names must answer in time, else the run fails. Sources that are found automatically are worth
//! one line together.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::error::SourceError;
use crate::names::objects::object_list::LeftOut;
use crate::output::NameSourceStatus;

/// The time in which a named source must answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time after which the line about automatic sources is printed, whether they have answered or not.
const AUTOMATIC_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest time between two warnings about one source.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Whether the sources do what the run needs.
#[derive(Debug, Default)]
pub struct Status {
    /// A named source has not answered in time, or a source died.
    failed: AtomicBool,
    /// A bit for each named source that has failed and never answered.
    failing: AtomicU64,
}

impl Status {
    /// Whether the run has failed; asked at its end.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.failing.load(Ordering::Relaxed) != 0
    }
}

/// A message about a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusMessage {
    /// A message that quiet runs do not print.
    Note(String),
    /// A message that is always printed.
    Error(String),
}

#[cfg(test)]
impl PartialEq<&str> for StatusMessage {
    fn eq(&self, other: &&str) -> bool {
        matches!(self, Self::Note(text) | Self::Error(text) if text == other)
    }
}

/// What a source reports about itself.
#[derive(Debug)]
pub enum Report {
    /// It answered.
    Answered,
    /// It did not answer.
    Failed(SourceError),
    /// It left out objects.
    LeftOut(LeftOut),
    /// It gives no objects of this resource.
    Lacks(&'static str, SourceError),
    /// It gives objects of this resource.
    Has(&'static str),
    /// It has ended as it should.
    Ended,
    /// It has stopped by an error of its own.
    Died(SourceError),
}

/// The state of one source.
pub struct SourceState {
    label: String,
    /// What it is, in a word or two.
    word: &'static str,
    /// Whether the command line names it.
    named: bool,
    answered: bool,
    /// Why it does not answer, as long as it does not.
    error: Option<SourceError>,
    warned: Option<Instant>,
    late: bool,
    left_out_reported: bool,
    /// What was said of resources that are missing.
    lacking: BTreeMap<&'static str, SourceError>,
}

impl SourceState {
    /// Returns the state of a source that has not been asked yet.
    pub fn new(label: String, word: &'static str, named: bool) -> Self {
        Self {
            label,
            word,
            named,
            answered: false,
            error: None,
            warned: None,
            late: false,
            left_out_reported: false,
            lacking: BTreeMap::new(),
        }
    }
}

/// The state of all sources.
pub struct Health {
    sources: Vec<SourceState>,
    status: Arc<Status>,
    names_from: NameSourceStatus,
    began: Instant,
    /// Whether the line about automatic sources is due.
    automatic_due: bool,
}

impl Health {
    /// Returns the state at the start of the sources.
    pub fn new(sources: Vec<SourceState>, status: Arc<Status>, names_from: NameSourceStatus, began: Instant) -> Self {
        let health = Self {
            automatic_due: sources.iter().any(|source| !source.named),
            sources,
            status,
            names_from,
            began,
        };
        health.show_sources();
        health
    }

    /// Takes a report, and returns what is to be said.
    pub fn report(&mut self, index: usize, report: Report, now: Instant) -> Vec<StatusMessage> {
        let messages = self.messages(index, report, now);
        self.show_sources();
        messages
    }

    fn messages(&mut self, index: usize, report: Report, now: Instant) -> Vec<StatusMessage> {
        match report {
            Report::Answered => self.answered(index),
            Report::Failed(error) => self.failed(index, error, now),
            Report::LeftOut(left_out) => self.left_out(index, &left_out),
            Report::Lacks(resource, error) => self.lacks(index, resource, error),
            Report::Has(resource) => {
                self.sources[index].lacking.remove(resource);
                Vec::new()
            }
            Report::Ended => Vec::new(),
            Report::Died(error) => {
                self.status.failed.store(true, Ordering::Relaxed);
                let source = &mut self.sources[index];
                source.late = true;
                source.error = Some(error.clone());
                let text = format!("error: no names any more from {}: {error}", source.label);
                vec![StatusMessage::Error(text)]
            }
        }
    }

    fn answered(&mut self, index: usize) -> Vec<StatusMessage> {
        let source = &mut self.sources[index];
        let is_first = !std::mem::replace(&mut source.answered, true);
        source.error = None;
        let was_warned = source.warned.take().is_some();
        let (named, label) = (source.named, source.label.clone());
        self.status.failing.fetch_and(!bit(index), Ordering::Relaxed);
        if is_first && !named && self.automatic_due {
            return self.automatic(false);
        }
        let text = match (is_first, was_warned) {
            (true, _) => format!("names come from {label}"),
            (false, true) => format!("names come again from {label}"),
            (false, false) => return Vec::new(),
        };
        vec![StatusMessage::Note(text)]
    }

    /// Shows every source that has answered once, whether it still answers or not: its names are used. Without one, says whether
    /// any is still awaited: not once a message has said that there are no names.
    fn show_sources(&self) {
        let answered = self.sources.iter().filter(|source| source.answered);
        let is_awaited = |source: &SourceState| match source.named {
            true => !source.late,
            false => self.automatic_due,
        };
        let is_any_awaited = self.sources.iter().any(is_awaited);
        self.names_from
            .set(&answered.map(|source| source.word).collect::<Vec<_>>(), is_any_awaited);
    }

    fn failed(&mut self, index: usize, error: SourceError, now: Instant) -> Vec<StatusMessage> {
        let source = &mut self.sources[index];
        let is_same = source
            .error
            .replace(error.clone())
            .is_some_and(|before| before == error);
        if !source.answered {
            if !source.named {
                return self.automatic(false);
            }
            self.status.failing.fetch_or(bit(index), Ordering::Relaxed);
        }
        let is_recent = source.warned.is_some_and(|warned| now < warned + WARNING_INTERVAL);
        if is_recent && (is_same || source.answered) {
            return Vec::new();
        }
        source.warned = Some(now);
        let what = if source.answered { "no updates" } else { "no names yet" };
        let text = format!("warning: {what} from {}: {error}", source.label);
        vec![StatusMessage::Note(text)]
    }

    fn left_out(&mut self, index: usize, left_out: &LeftOut) -> Vec<StatusMessage> {
        let source = &mut self.sources[index];
        if std::mem::replace(&mut source.left_out_reported, true) {
            return Vec::new();
        }
        let text = format!(
            "warning: {} objects of {} are left out (later ones are not reported), the first: {}",
            left_out.count, source.label, left_out.first
        );
        vec![StatusMessage::Note(text)]
    }

    /// While there are no pods either, the missing pods are reported instead.
    fn lacks(&mut self, index: usize, resource: &'static str, error: SourceError) -> Vec<StatusMessage> {
        let source = &mut self.sources[index];
        let is_answering = source.answered && source.error.is_none();
        if !is_answering || source.lacking.get(resource) == Some(&error) {
            return Vec::new();
        }
        let text = format!("warning: names go without {resource}: {error}");
        source.lacking.insert(resource, error);
        vec![StatusMessage::Note(text)]
    }

    /// Returns the time of the next [`Self::deadline`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let automatic = self.automatic_due.then_some(self.began + AUTOMATIC_TIMEOUT);
        let is_awaited = |source: &SourceState| source.named && !source.answered && !source.late;
        let named = self
            .sources
            .iter()
            .any(is_awaited)
            .then_some(self.began + ANSWER_TIMEOUT);
        automatic.into_iter().chain(named).min()
    }

    /// Returns what is to be said because time has passed.
    pub fn deadline(&mut self, now: Instant) -> Vec<StatusMessage> {
        let mut messages = Vec::new();
        if now >= self.began + AUTOMATIC_TIMEOUT {
            messages.extend(self.automatic(true));
        }
        if now >= self.began + ANSWER_TIMEOUT {
            for source in &mut self.sources {
                if source.named && !source.answered && !std::mem::replace(&mut source.late, true) {
                    self.status.failed.store(true, Ordering::Relaxed);
                    source.warned = Some(now);
                    let none = SourceError::new("it has not answered".to_owned());
                    let error = source.error.as_ref().unwrap_or(&none);
                    messages.push(StatusMessage::Error(format!(
                        "error: no names from {} in the first {} s: {error}",
                        source.label,
                        ANSWER_TIMEOUT.as_secs()
                    )));
                }
            }
        }
        self.show_sources();
        messages
    }

    /// Returns the line about automatic sources, if each has answered or failed, or if it is time.
    fn automatic(&mut self, is_time: bool) -> Vec<StatusMessage> {
        let automatic = || self.sources.iter().filter(|source| !source.named);
        let is_known = |source: &SourceState| source.answered || source.error.is_some();
        if !self.automatic_due || !(is_time || automatic().all(is_known)) {
            return Vec::new();
        }
        let found: Vec<_> = automatic()
            .filter(|source| source.answered)
            .map(|source| source.label.as_str())
            .collect();
        let missing: Vec<_> = automatic()
            .filter(|source| !source.answered)
            .map(|source| {
                let why = source.error.as_ref().map_or("no answer yet", SourceError::problem);
                format!("{} ({why})", source.label)
            })
            .collect();
        let text = match (found.is_empty(), missing.is_empty()) {
            (true, _) => format!("no names, addresses only: {}", missing.join("; ")),
            (false, true) => format!("names come from {}", found.join(" and ")),
            (false, false) => format!(
                "names come from {}, not from {}",
                found.join(" and "),
                missing.join("; ")
            ),
        };
        self.automatic_due = false;
        vec![StatusMessage::Note(text)]
    }
}

fn bit(index: usize) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        health: Health,
        status: Arc<Status>,
        began: Instant,
    }

    impl Run {
        fn of(sources: &[(&str, bool)]) -> Self {
            let (status, began) = (Arc::new(Status::default()), Instant::now());
            let sources = sources
                .iter()
                .map(|&(label, named)| SourceState::new(label.to_owned(), "word", named));
            Self {
                health: Health::new(
                    sources.collect(),
                    Arc::clone(&status),
                    NameSourceStatus::default(),
                    began,
                ),
                status,
                began,
            }
        }

        fn after(&self, seconds: u64) -> Instant {
            self.began + Duration::from_secs(seconds)
        }

        fn fails(&mut self, index: usize, why: &str, seconds: u64) -> Vec<StatusMessage> {
            let at = self.after(seconds);
            self.health.failed(index, SourceError::new(why.to_owned()), at)
        }
    }

    #[test]
    fn a_named_source_that_never_answers_is_an_error() {
        let mut run = Run::of(&[("K", true)]);
        assert_eq!(run.health.next_deadline(), Some(run.after(10)));
        assert_eq!(run.fails(0, "refused", 0), ["warning: no names yet from K: refused"]);
        assert_eq!(run.fails(0, "refused", 1), [""; 0], "the same is said once");
        assert_eq!(run.fails(0, "401", 2), ["warning: no names yet from K: 401"]);
        assert_eq!(run.health.deadline(run.after(9)), [""; 0]);
        assert_eq!(
            run.health.deadline(run.after(10)),
            ["error: no names from K in the first 10 s: 401"]
        );
        assert_eq!(
            (run.health.deadline(run.after(11)), run.health.next_deadline()),
            (vec![], None)
        );
        assert_eq!(run.health.answered(0), ["names come from K"]);
        assert!(run.status.has_failed(), "late is late");
    }

    #[test]
    fn a_hanging_source_is_an_error_without_a_reason() {
        let mut run = Run::of(&[("K", true)]);
        assert_eq!(
            run.health.deadline(run.after(10)),
            ["error: no names from K in the first 10 s: it has not answered"]
        );
    }

    #[test]
    fn a_run_that_ends_early_knows_that_a_source_had_failed() {
        let mut run = Run::of(&[("K", true), ("L", true)]);
        assert!(!run.status.has_failed());
        run.fails(1, "refused", 0);
        assert!(run.status.has_failed());
        run.health.answered(1);
        assert!(!run.status.has_failed(), "it came in time");
    }

    #[test]
    fn later_failures_are_warnings_a_minute_apart() {
        let mut run = Run::of(&[("K", true)]);
        assert_eq!(run.health.answered(0), ["names come from K"]);
        assert_eq!(run.health.answered(0), [""; 0]);
        assert_eq!(run.fails(0, "refused", 20), ["warning: no updates from K: refused"]);
        assert_eq!(run.fails(0, "reset", 30), [""; 0]);
        assert_eq!(run.fails(0, "reset", 80), ["warning: no updates from K: reset"]);
        assert_eq!(run.health.answered(0), ["names come again from K"]);
        assert!(!run.status.has_failed());
        assert_eq!(run.health.next_deadline(), None);
    }

    #[test]
    fn header_says_what_messages_say() {
        let failed = || Report::Failed(SourceError::new("none".to_owned()));
        let header = |run: &Run| run.health.names_from.text();
        let mut automatic = Run::of(&[("C", false), ("K", false)]);
        let now = automatic.after(0);
        assert_eq!(header(&automatic), "no names yet");
        assert_eq!(automatic.health.report(0, failed(), now), [""; 0]);
        assert_eq!(header(&automatic), "no names yet");
        let messages = automatic.health.report(1, failed(), now);
        assert_eq!(messages, ["no names, addresses only: C (none); K (none)"]);
        assert_eq!(header(&automatic), "no names");
        automatic.health.report(1, Report::Answered, now);
        assert_eq!(header(&automatic), "names: word", "it came up later");

        let mut named = Run::of(&[("K", true), ("F", false)]);
        named.health.deadline(named.after(2));
        assert_eq!(header(&named), "no names yet", "K is still awaited");
        named.health.deadline(named.after(10));
        assert_eq!(header(&named), "no names");
    }

    #[test]
    fn automatic_sources_are_one_line() {
        let three = [("C", false), ("K", false), ("L", false)];
        let mut run = Run::of(&three);
        assert_eq!(run.health.answered(0), [""; 0]);
        assert_eq!(run.health.answered(2), [""; 0]);
        assert_eq!(
            run.fails(1, "refused", 0),
            ["names come from C and L, not from K (refused)"]
        );
        assert_eq!(run.fails(1, "refused", 1), [""; 0]);
        assert_eq!(run.health.answered(1), ["names come from K"], "it came up later");
        assert!(!run.status.has_failed());

        let mut run = Run::of(&three);
        (0..2).for_each(|index| assert_eq!(run.fails(index, "none", 0), [""; 0]));
        assert_eq!(
            run.fails(2, "none", 0),
            ["no names, addresses only: C (none); K (none); L (none)"]
        );

        let mut run = Run::of(&three);
        (0..3).for_each(|index| {
            let lines = run.health.answered(index);
            assert_eq!(lines.len(), usize::from(index == 2));
        });

        let mut run = Run::of(&three);
        run.health.answered(0);
        assert_eq!(run.health.next_deadline(), Some(run.after(2)));
        assert_eq!(
            run.health.deadline(run.after(2)),
            ["names come from C, not from K (no answer yet); L (no answer yet)"]
        );
        assert_eq!(run.health.next_deadline(), None);
    }

    #[test]
    fn dead_source_is_an_error_in_any_case() {
        let mut run = Run::of(&[("K", false), ("L", true)]);
        run.health.answered(1);
        let died = || Report::Died(SourceError::new("internal error".to_owned()));
        for (index, label) in ["K", "L"].iter().enumerate() {
            let messages = run.health.report(index, died(), run.began);
            let expected = format!("error: no names any more from {label}: internal error");
            assert_eq!(messages, [StatusMessage::Error(expected)]);
        }
        assert!(run.status.has_failed());
    }

    #[test]
    fn objects_that_are_left_out_are_mentioned_once() {
        let mut run = Run::of(&[("K", true)]);
        let left_out = || {
            Report::LeftOut(LeftOut {
                count: 2,
                first: "Pod shop/odd: why".to_owned(),
            })
        };
        let messages = run.health.report(0, left_out(), run.began);
        assert_eq!(
            messages,
            ["warning: 2 objects of K are left out (later ones are not reported), the first: Pod shop/odd: why"]
        );
        assert_eq!(run.health.report(0, left_out(), run.began), [""; 0]);
    }

    #[test]
    fn missing_resource_is_mentioned_while_there_are_pods() {
        let mut run = Run::of(&[("K", true)]);
        let lacks = || Report::Lacks("jobs.batch", SourceError::new("403".to_owned()));
        assert_eq!(run.health.report(0, lacks(), run.began), [""; 0]);
        run.health.answered(0);
        let text = "warning: names go without jobs.batch: 403";
        assert_eq!(run.health.report(0, lacks(), run.began), [text]);
        assert_eq!(
            run.health.report(0, lacks(), run.began),
            [""; 0],
            "the same is said once"
        );
        run.health.report(0, Report::Has("jobs.batch"), run.began);
        assert_eq!(run.health.report(0, lacks(), run.began), [text]);
    }
}
