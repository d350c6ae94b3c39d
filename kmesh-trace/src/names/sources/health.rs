//! The state of each source, and the messages about it. Pure: time and reports come in as values.
//!
//! A source that the command line names must answer in time, else the run fails. Sources that are found automatically
//! are worth one line together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::error::SourceError;
use crate::names::objects::object_list::LeftOut;
use crate::output::NameSourceStatus;

/// The time in which a named source must begin to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which the first answer of a named source must end. A list of pods can be hundreds of megabytes.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// The time after which the line about automatic sources is printed, whether they have answered or not.
const AUTOMATIC_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest time between two warnings about one source.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Whether the sources do what the run needs.
#[derive(Debug, Default)]
pub struct Status(Mutex<Option<Vec<String>>>);

impl Status {
    /// Returns whether a source has died, or a named source has not answered in time, or has failed and never answered.
    pub fn has_failed(&self) -> bool {
        self.unreported().is_some()
    }

    /// Returns the errors that fail a run which ends now, except those that a [`StatusMessage::Error`] has reported.
    /// Returns `None` if nothing fails the run.
    pub fn unreported(&self) -> Option<Vec<String>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatusMessage {
    /// A message that quiet runs do not print.
    Note(String),
    /// A message that is always printed.
    Error(String),
}

#[derive(Debug)]
pub enum Report {
    /// The source has begun to list its pods.
    Answering,
    Answered,
    /// The source did not answer.
    Failed(SourceError),
    LeftOut(LeftOut),
    /// The source gives no objects of this resource.
    Lacks(&'static str, SourceError),
    /// The source gives objects of this resource.
    Has(&'static str),
    /// The source has stopped because of an internal error.
    Died(SourceError),
}

#[derive(Default)]
pub struct SourceState {
    label: String,
    /// The kind of source, in a word or two.
    kind: &'static str,
    /// Whether the command line names it.
    named: bool,
    answered: bool,
    /// Whether its list of pods is arriving.
    is_answering: bool,
    /// Whether its list of pods has not ended in the time for an answer.
    is_slow: bool,
    /// Why it does not answer, as long as it does not.
    error: Option<SourceError>,
    warned: Option<Instant>,
    /// Whether it has died, or has not answered in time: this fails the run, whatever comes later.
    has_failed: bool,
    left_out_reported: bool,
    /// The missing resources that a message has mentioned, and why they are missing.
    lacking: BTreeMap<&'static str, SourceError>,
}

impl SourceState {
    /// Returns the state of a source that has not been asked yet.
    pub fn new(label: String, kind: &'static str, named: bool) -> Self {
        Self {
            label,
            kind,
            named,
            ..Self::default()
        }
    }

    fn is_awaited(&self) -> bool {
        self.named && !self.answered && !self.has_failed
    }

    /// Returns why a source that is awaited has no names yet.
    fn why_it_is_awaited(&self) -> SourceError {
        let no_answer = match self.is_answering {
            true => "its list of pods has not ended",
            false => "it has not answered",
        };
        self.error.clone().unwrap_or_else(|| SourceError::new(no_answer))
    }

    /// Returns the time after the start at which a source that is awaited is slow or has failed.
    fn timeout(&self) -> Duration {
        if self.is_answering && self.is_slow {
            LIST_TIMEOUT
        } else {
            ANSWER_TIMEOUT
        }
    }
}

pub struct Health {
    sources: Vec<SourceState>,
    status: Arc<Status>,
    names_from: NameSourceStatus,
    start: Instant,
    /// Whether the line about automatic sources is due.
    is_automatic_due: bool,
}

impl Health {
    pub fn new(sources: Vec<SourceState>, status: Arc<Status>, names_from: NameSourceStatus, start: Instant) -> Self {
        let health = Self {
            is_automatic_due: sources.iter().any(|source| !source.named),
            sources,
            status,
            names_from,
            start,
        };
        health.publish();
        health
    }

    /// Takes a report, and returns the message about it.
    pub fn report(&mut self, index: usize, report: Report, now: Instant) -> Option<StatusMessage> {
        let source = &mut self.sources[index];
        let message = match report {
            Report::Answering => {
                source.is_answering = true;
                None
            }
            Report::Answered => self.answered(index).map(StatusMessage::Note),
            Report::Failed(error) => self.failed(index, error, now).map(StatusMessage::Note),
            Report::LeftOut(left_out) => source.left_out(&left_out).map(StatusMessage::Note),
            Report::Lacks(resource, error) => source.lacks(resource, error).map(StatusMessage::Note),
            Report::Has(resource) => {
                source.lacking.remove(resource);
                None
            }
            Report::Died(error) => {
                source.has_failed = true;
                source.error = Some(error.clone());
                let text = format!("error: no names any more from {}: {error}", source.label);
                Some(StatusMessage::Error(text))
            }
        };
        self.publish();
        message
    }

    fn answered(&mut self, index: usize) -> Option<String> {
        let source = &mut self.sources[index];
        let is_first = !std::mem::replace(&mut source.answered, true);
        let was_warned = source.warned.take().is_some();
        source.error = None;
        if is_first && !source.named && self.is_automatic_due {
            return self.automatic(false);
        }
        match (is_first, was_warned) {
            (true, _) => Some(format!("names come from {}", source.label)),
            (false, true) => Some(format!("names come again from {}", source.label)),
            (false, false) => None,
        }
    }

    fn failed(&mut self, index: usize, error: SourceError, now: Instant) -> Option<String> {
        let source = &mut self.sources[index];
        let before = source.error.replace(error.clone());
        source.is_answering = false;
        if !source.answered && !source.named {
            return self.automatic(false);
        }
        let is_recent = source.warned.is_some_and(|warned| now < warned + WARNING_INTERVAL);
        if is_recent && (source.answered || before.as_ref() == Some(&error)) {
            return None;
        }
        source.warned = Some(now);
        let what = if source.answered { "no updates" } else { "no names yet" };
        Some(format!("warning: {what} from {}: {error}", source.label))
    }

    /// Publishes whether the run has failed, and every source that has answered once, whether it still answers or
    /// not: its names are used. Without one, publishes whether any is still awaited: not after the message that there
    /// are no names.
    fn publish(&self) {
        let awaited = self.sources.iter().filter(|source| source.is_awaited());
        let unreported: Vec<_> = awaited
            .filter(|source| source.error.is_some() || source.is_slow)
            .map(|source| format!("error: no names from {}: {}", source.label, source.why_it_is_awaited()))
            .collect();
        let has_failed = !unreported.is_empty() || self.sources.iter().any(|source| source.has_failed);
        *self.status.lock() = has_failed.then_some(unreported);
        let answered = self.sources.iter().filter(|source| source.answered);
        let is_any_awaited = self.is_automatic_due || self.sources.iter().any(SourceState::is_awaited);
        self.names_from
            .set(&answered.map(|source| source.kind).collect::<Vec<_>>(), is_any_awaited);
    }

    /// Returns the time of the next [`Self::deadline`].
    pub fn next_deadline(&self) -> Option<Instant> {
        let awaited = self.sources.iter().filter(|source| source.is_awaited());
        let named = awaited.map(|source| self.start + source.timeout()).min();
        let automatic = self.is_automatic_due.then_some(self.start + AUTOMATIC_TIMEOUT);
        automatic.or(named)
    }

    /// Returns the messages that are due because time has passed.
    pub fn deadline(&mut self, now: Instant) -> Vec<StatusMessage> {
        let mut messages = Vec::new();
        if now >= self.start + AUTOMATIC_TIMEOUT {
            messages.extend(self.automatic(true).map(StatusMessage::Note));
        }
        let start = self.start;
        let is_late = |source: &SourceState| source.is_awaited() && now >= start + source.timeout();
        for source in self.sources.iter_mut().filter(|source| is_late(source)) {
            if source.is_answering && !std::mem::replace(&mut source.is_slow, true) {
                continue;
            }
            source.has_failed = true;
            source.warned = Some(now);
            let (label, seconds) = (&source.label, source.timeout().as_secs());
            let error = source.why_it_is_awaited();
            let text = format!("error: no names from {label} in the first {seconds} s: {error}");
            messages.push(StatusMessage::Error(text));
        }
        self.publish();
        messages
    }

    /// Returns the line about automatic sources, if each has answered or failed, or if it is time.
    fn automatic(&mut self, is_time: bool) -> Option<String> {
        let automatic = || self.sources.iter().filter(|source| !source.named);
        let is_known = |source: &SourceState| source.answered || source.error.is_some();
        if !self.is_automatic_due || !(is_time || automatic().all(is_known)) {
            return None;
        }
        let found = automatic().filter(|source| source.answered);
        let found = found.map(|source| &*source.label).collect::<Vec<_>>().join(" and ");
        let missing = automatic().filter(|source| !source.answered).map(|source| {
            let why = source.error.as_ref().map_or("no answer yet", SourceError::problem);
            format!("{} ({why})", source.label)
        });
        let missing = missing.collect::<Vec<_>>().join("; ");
        self.is_automatic_due = false;
        Some(match (found.is_empty(), missing.is_empty()) {
            (true, _) => format!("no names, addresses only: {missing}"),
            (false, true) => format!("names come from {found}"),
            (false, false) => format!("names come from {found}, not from {missing}"),
        })
    }
}

impl SourceState {
    fn left_out(&mut self, left_out: &LeftOut) -> Option<String> {
        let is_reported = std::mem::replace(&mut self.left_out_reported, true);
        let LeftOut { count, first } = left_out;
        let label = &self.label;
        (!is_reported).then(|| {
            format!(
                "warning: {count} objects of {label} are left out (later ones are not reported), the first: {first}"
            )
        })
    }

    /// While there are no pods either, the missing pods are reported instead.
    fn lacks(&mut self, resource: &'static str, error: SourceError) -> Option<String> {
        let is_answering = self.answered && self.error.is_none();
        if !is_answering || self.lacking.get(resource) == Some(&error) {
            return None;
        }
        let text = format!("warning: names go without {resource}: {error}");
        self.lacking.insert(resource, error);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Run {
        health: Health,
        status: Arc<Status>,
        start: Instant,
    }

    impl Run {
        fn new(sources: &[(&str, bool)]) -> Self {
            let (status, start) = (Arc::new(Status::default()), Instant::now());
            let sources = sources.iter();
            let sources = sources.map(|&(label, named)| SourceState::new(label.to_owned(), "kind", named));
            let header = NameSourceStatus::default();
            Self {
                health: Health::new(sources.collect(), Arc::clone(&status), header, start),
                status,
                start,
            }
        }

        fn after(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// Reports, and returns the message, empty if there is none.
        fn report(&mut self, index: usize, report: Report, seconds: u64) -> String {
            match self.health.report(index, report, self.after(seconds)) {
                Some(StatusMessage::Note(text) | StatusMessage::Error(text)) => text,
                None => String::new(),
            }
        }

        fn answers(&mut self, index: usize) -> String {
            self.report(index, Report::Answered, 0)
        }

        fn fails(&mut self, index: usize, why: &str, seconds: u64) -> String {
            self.report(index, Report::Failed(SourceError::new(why)), seconds)
        }

        fn passes(&mut self, seconds: u64) -> Vec<StatusMessage> {
            self.health.deadline(self.after(seconds))
        }

        fn header(&self) -> String {
            self.health.names_from.text()
        }
    }

    fn note(text: &str) -> StatusMessage {
        StatusMessage::Note(text.to_owned())
    }

    fn error(text: &str) -> StatusMessage {
        StatusMessage::Error(text.to_owned())
    }

    #[test]
    fn named_source_that_never_answers_is_an_error() {
        let mut run = Run::new(&[("K", true)]);
        assert_eq!(run.health.next_deadline(), Some(run.after(10)));
        assert_eq!(run.fails(0, "refused", 0), "warning: no names yet from K: refused");
        assert_eq!(run.fails(0, "refused", 1), "", "the same is reported once");
        assert_eq!(run.fails(0, "401", 2), "warning: no names yet from K: 401");
        assert_eq!(run.passes(9), []);
        assert_eq!(run.passes(10), [error("error: no names from K in the first 10 s: 401")]);
        assert_eq!((run.passes(11), run.health.next_deadline()), (vec![], None));
        assert_eq!(run.answers(0), "names come from K");
        assert!(run.status.has_failed(), "late is late");
    }

    #[test]
    fn source_that_hangs_is_an_error_without_a_reason() {
        let mut run = Run::new(&[("K", true)]);
        let expected = "error: no names from K in the first 10 s: it has not answered";
        assert_eq!(run.passes(10), [error(expected)]);
    }

    #[test]
    fn source_with_a_long_list_has_more_time() {
        let mut run = Run::new(&[("K", true), ("L", true)]);
        for index in [0, 1] {
            assert_eq!(run.report(index, Report::Answering, 9), "");
        }
        assert!(!run.status.has_failed());
        assert_eq!(run.health.next_deadline(), Some(run.after(10)));
        assert_eq!(run.passes(10), []);
        assert_eq!(run.health.next_deadline(), Some(run.after(60)));
        let unreported =
            ["K", "L"].map(|label| format!("error: no names from {label}: its list of pods has not ended"));
        assert_eq!(
            run.status.unreported(),
            Some(unreported.to_vec()),
            "if the run ends now"
        );
        assert_eq!(run.fails(1, "reset", 20), "warning: no names yet from L: reset");
        assert_eq!(
            run.health.next_deadline(),
            Some(run.after(10)),
            "it does not answer any more"
        );
        assert_eq!(
            run.passes(20),
            [error("error: no names from L in the first 10 s: reset")]
        );
        let expected = "error: no names from K in the first 60 s: its list of pods has not ended";
        assert_eq!(run.passes(60), [error(expected)]);
    }

    #[test]
    fn run_that_ends_early_knows_that_a_source_had_failed() {
        let mut run = Run::new(&[("K", true), ("L", true)]);
        assert!(!run.status.has_failed());
        run.fails(1, "refused", 0);
        assert!(run.status.has_failed());
        assert_eq!(
            run.status.unreported(),
            Some(vec!["error: no names from L: refused".to_owned()])
        );
        run.answers(1);
        assert!(!run.status.has_failed(), "it came in time");
        run.fails(0, "refused", 1);
        run.passes(10);
        assert_eq!(run.status.unreported(), Some(vec![]), "the deadline has reported it");
    }

    #[test]
    fn later_failures_are_warnings_a_minute_apart() {
        let mut run = Run::new(&[("K", true)]);
        assert_eq!(run.answers(0), "names come from K");
        assert_eq!(run.answers(0), "");
        assert_eq!(run.fails(0, "refused", 20), "warning: no updates from K: refused");
        assert_eq!(run.fails(0, "reset", 30), "");
        assert_eq!(run.fails(0, "reset", 80), "warning: no updates from K: reset");
        assert_eq!(run.answers(0), "names come again from K");
        assert!(!run.status.has_failed());
        assert_eq!(run.health.next_deadline(), None);
    }

    #[test]
    fn header_agrees_with_the_messages() {
        let mut automatic = Run::new(&[("C", false), ("K", false)]);
        assert_eq!(automatic.header(), "no names yet");
        assert_eq!(automatic.fails(0, "none", 0), "");
        assert_eq!(automatic.header(), "no names yet");
        let expected = "no names, addresses only: C (none); K (none)";
        assert_eq!(automatic.fails(1, "none", 0), expected);
        assert_eq!(automatic.header(), "no names");
        automatic.answers(1);
        assert_eq!(automatic.header(), "names: kind", "it came up later");

        let mut named = Run::new(&[("K", true), ("F", false)]);
        named.passes(2);
        assert_eq!(named.header(), "no names yet", "K is still awaited");
        named.passes(10);
        assert_eq!(named.header(), "no names");
    }

    #[test]
    fn automatic_sources_are_one_line() {
        let three = [("C", false), ("K", false), ("L", false)];
        let mut run = Run::new(&three);
        assert_eq!([run.answers(0), run.answers(2)], ["", ""]);
        assert_eq!(
            run.fails(1, "refused", 0),
            "names come from C and L, not from K (refused)"
        );
        assert_eq!(run.fails(1, "refused", 1), "");
        assert_eq!(run.answers(1), "names come from K", "it came up later");
        assert!(!run.status.has_failed());

        let mut run = Run::new(&three);
        let lines = [0, 1, 2].map(|index| run.fails(index, "none", 0));
        assert_eq!(
            lines,
            ["", "", "no names, addresses only: C (none); K (none); L (none)"]
        );

        let mut run = Run::new(&three);
        let lines = [0, 1, 2].map(|index| run.answers(index));
        assert_eq!(lines, ["", "", "names come from C and K and L"]);

        let mut run = Run::new(&three);
        run.answers(0);
        assert_eq!(run.health.next_deadline(), Some(run.after(2)));
        let expected = "names come from C, not from K (no answer yet); L (no answer yet)";
        assert_eq!(run.passes(2), [note(expected)]);
        assert_eq!(run.health.next_deadline(), None);
    }

    #[test]
    fn dead_source_is_an_error_in_any_case() {
        let mut run = Run::new(&[("K", false), ("L", true)]);
        run.answers(1);
        for (index, label) in ["K", "L"].iter().enumerate() {
            let died = Report::Died(SourceError::new("internal error"));
            let message = run.health.report(index, died, run.start);
            let expected = format!("error: no names any more from {label}: internal error");
            assert_eq!(message, Some(error(&expected)));
        }
        assert!(run.status.has_failed());
    }

    #[test]
    fn objects_that_are_left_out_are_mentioned_once() {
        let mut run = Run::new(&[("K", true)]);
        let left_out = || {
            Report::LeftOut(LeftOut {
                count: 2,
                first: "Pod shop/odd: why".to_owned(),
            })
        };
        let expected =
            "warning: 2 objects of K are left out (later ones are not reported), the first: Pod shop/odd: why";
        assert_eq!(run.report(0, left_out(), 0), expected);
        assert_eq!(run.report(0, left_out(), 0), "");
    }

    #[test]
    fn missing_resource_is_mentioned_while_there_are_pods() {
        let mut run = Run::new(&[("K", true)]);
        let lacks = || Report::Lacks("jobs.batch", SourceError::new("403"));
        assert_eq!(run.report(0, lacks(), 0), "");
        run.answers(0);
        let expected = "warning: names go without jobs.batch: 403";
        assert_eq!(run.report(0, lacks(), 0), expected);
        assert_eq!(run.report(0, lacks(), 0), "", "the same is reported once");
        run.report(0, Report::Has("jobs.batch"), 0);
        assert_eq!(run.report(0, lacks(), 0), expected);
    }
}
