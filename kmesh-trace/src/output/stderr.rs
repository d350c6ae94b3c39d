//! Messages on standard error, and reports of losses and summaries for formats without such lines.

use std::io::{self, Write};

use crate::blocking_io::Blocking;
use crate::config::{Config, Verbosity};
use crate::output::sanitize::one_line;
use crate::output::{Sink, summary_text, term};
use crate::record::{Lost, Record, RunInfo, Summary};
use crate::track::delta::Delta;

/// The line break and the indent between a message and its remedy.
const CONTINUED: &str = "\n  ";

/// Prints a warning, like [`status`].
pub fn warn(text: &str) {
    status(&format!("warning: {text}"));
}

/// Prints a sanitized message to standard error. While the table is on screen, shows the message on the last line and
/// prints it after the table closes. Ignores errors, so that a closed standard error does not stop the run.
pub fn status(text: &str) {
    let text = harmless(text);
    if term::defer(&text) {
        return;
    }
    _ = writeln!(Blocking(io::stderr()), "kmesh-trace: {text}");
}

/// Escapes control characters in `text`, except the line breaks before remedies, so that no part of it looks like
/// another message.
fn harmless(text: &str) -> String {
    let lines: Vec<_> = text.split(CONTINUED).map(one_line).collect();
    lines.join(CONTINUED)
}

/// The sink that reports losses and summaries on standard error, if the output format has no lines for them.
#[derive(Clone, Debug)]
pub struct Reports {
    verbosity: Verbosity,
    info: RunInfo,
}

impl Reports {
    /// Returns the sink for a run that `info` describes. `None` if the output format has lines for losses and
    /// summaries.
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
        status(&summary_text::lost(lost));
        Ok(())
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        if self.verbosity > Verbosity::Quiet {
            status(&summary_text::summary(summary, &self.info));
        }
        Ok(())
    }

    fn stream_summary(&mut self, summary: &Summary, info: &RunInfo) -> io::Result<()> {
        if self.verbosity > Verbosity::Quiet {
            status(&summary_text::summary(summary, info));
        }
        Ok(())
    }

    fn set_info(&mut self, info: &RunInfo) {
        self.info.clone_from(info);
    }
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn message_cannot_control_the_terminal_or_forge_a_message() {
        let hostile = "item 1 (a\u{1b}]0;x\u{7}/b\u{202e}\nkmesh-trace: all is well):\n  try: this";
        assert_eq!(
            harmless(hostile),
            "item 1 (a\\u001b]0;x\\u0007/b\\u202e\\u000akmesh-trace: all is well):\n  try: this"
        );
    }
}
