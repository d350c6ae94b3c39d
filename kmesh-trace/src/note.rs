//! What is said on standard error: notes, and what a format of standard output has no line for.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::blocking_io::Blocking;
use crate::config::{Config, Output, Verbosity};
use crate::record::{Lost, RunInfo, Summary};
use crate::render::sanitize::one_line;
use crate::render::{term, words};

/// How a line goes on: with what to try.
const CONTINUED: &str = "\n  ";

/// One note, whatever others chose of its words; while a table hides standard error, on its last line, and once it is gone. That nobody reads it is no reason to
/// stop.
pub fn say(text: &str) {
    let text = harmless(text);
    if term::hold(&text) {
        return;
    }
    _ = writeln!(Blocking(io::stderr()), "kmesh-trace: {text}");
}

/// Nothing in it drives a terminal, and no line of it begins as ours do.
fn harmless(text: &str) -> String {
    let lines: Vec<_> = text.split(CONTINUED).map(one_line).collect();
    lines.join(CONTINUED)
}

/// Where names come from, in a few words, as the sources answer. Clones are one.
#[derive(Clone, Debug)]
pub struct NamesFrom(Arc<Mutex<String>>);

impl Default for NamesFrom {
    fn default() -> Self {
        Self(Arc::new(Mutex::new("no names".to_owned())))
    }
}

impl NamesFrom {
    /// From now on from these sources; from none, if there are none, and `is_any_awaited` says whether some may still come.
    pub fn set(&self, sources: &[&str], is_any_awaited: bool) {
        let text = match sources {
            [] if is_any_awaited => "no names yet".to_owned(),
            [] => "no names".to_owned(),
            sources => format!("names: {}", sources.join(", ")),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// What to tell of them.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Losses and sums in words, where they do not stand among the data.
#[derive(Clone, Debug)]
pub struct Notes {
    output: Output,
    verbosity: Verbosity,
    info: RunInfo,
    /// Openings of which was said that they were lost.
    lost_opens: u64,
}

impl Notes {
    /// Of a run of which `info` is true.
    pub fn new(config: &Config, info: RunInfo) -> Self {
        Self {
            output: config.output,
            verbosity: config.verbosity,
            info,
            lost_opens: 0,
        }
    }

    /// Says what was lost.
    pub fn lost(&self, lost: &Lost) {
        if !self.output.has_reports() {
            say(&words::lost_words(lost));
        }
    }

    /// Says that more openings were lost, for which no format has a line.
    pub fn lost_opens(&mut self, since_start: u64) {
        let before = std::mem::replace(&mut self.lost_opens, since_start);
        if since_start > before {
            say(&words::lost_opens_words(since_start - before, since_start));
        }
    }

    /// Says how long a record has waited for a name at most, ns, if any has.
    pub fn longest_wait(&self, wait_ns: u64) {
        if wait_ns > 0 && self.verbosity == Verbosity::Verbose {
            let wait_ms = wait_ns as f64 / 1e6;
            say(&format!("records waited up to {wait_ms:.1} ms for names"));
        }
    }

    /// Says the sums.
    pub fn summary(&self, summary: &Summary) {
        if !self.output.has_reports() && self.verbosity > Verbosity::Quiet {
            say(&words::summary_words(summary, &self.info));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn notes_drive_no_terminal_and_forge_no_other() {
        let hostile = "item 1 (a\u{1b}]0;x\u{7}/b\u{202e}\nkmesh-trace: all is well):\n  try: this";
        assert_eq!(
            harmless(hostile),
            "item 1 (a\\u001b]0;x\\u0007/b\\u202e\\u000akmesh-trace: all is well):\n  try: this"
        );
    }
}
