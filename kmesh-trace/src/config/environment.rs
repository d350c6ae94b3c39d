//! The environment of the process, as far as settings depend on it.

use std::ffi::OsStr;

use crate::cli::Color;

/// The properties of the process and the system that settings depend on.
#[derive(Clone, Copy, Debug)]
pub struct Environment<'a> {
    /// The value of NO_COLOR, if set.
    pub no_color: Option<&'a OsStr>,
    /// Whether standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Whether standard input is a terminal.
    pub stdin_is_terminal: bool,
    /// The value of TERM, if set.
    pub term: Option<&'a OsStr>,
    /// The size of a memory page in bytes, which is a power of two.
    pub page_size: u32,
}

impl Environment<'_> {
    /// Returns whether standard output is a terminal that understands escape sequences.
    fn stdout_has_escapes(&self) -> bool {
        self.stdout_is_terminal && has_escapes(self.term)
    }

    /// Returns whether a user can see a screen on standard output and press keys.
    pub(super) fn is_interactive(&self) -> bool {
        self.stdin_is_terminal && self.stdout_has_escapes()
    }

    /// Returns whether output has colors. The flag takes precedence over NO_COLOR, which counts only if it is not empty
    /// (no-color.org).
    pub(super) fn has_color(&self, color: Color) -> bool {
        match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => self.stdout_has_escapes() && self.no_color.is_none_or(OsStr::is_empty),
        }
    }
}

/// Returns whether a terminal with this TERM understands escape sequences. Without TERM, the answer is no.
pub fn has_escapes(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}
