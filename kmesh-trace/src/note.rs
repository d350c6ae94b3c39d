//! What is said on standard error: notes, and what a format of standard output has no line for.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use crate::blocking_io::Blocking;
use crate::config::{Config, Verbosity};
use crate::deltas::Delta;
use crate::record::{Lost, Record, RunInfo, Summary};
use crate::render::sanitize::one_line;
use crate::render::{Sink, term, words};

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

/// The sink that reports losses and summaries on standard error, where the output has no lines for them.
#[derive(Clone, Debug)]
pub struct Reports {
    verbosity: Verbosity,
    info: RunInfo,
}

impl Reports {
    /// Returns the sink for a run that `info` describes. `None` if the output has these lines itself.
    pub fn new(config: &Config, info: &RunInfo) -> Option<Self> {
        (!config.output.has_reports()).then(|| Self {
            verbosity: config.verbosity,
            info: info.clone(),
        })
    }
}

impl Sink for Reports {
    fn record(&mut self, _: &Record, _: &Delta) -> io::Result<()> {
        Ok(())
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        say(&words::lost_words(lost));
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        if self.verbosity > Verbosity::Quiet {
            say(&words::summary_words(summary, &self.info));
        }
        Ok(())
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
