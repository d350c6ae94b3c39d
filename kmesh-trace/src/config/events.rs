//! The events that a run prints.

use crate::cli::EventName;
use crate::record::{Event, Subject};

/// The events that are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// Whether [`Event::Close`] is printed.
    pub close: bool,
    /// Whether [`Event::Open`] is printed.
    pub open: bool,
    /// Whether [`Event::Update`] is printed.
    pub update: bool,
    /// Whether RSTs sent without a socket are counted and printed.
    pub reject: bool,
    /// Whether the state of listening sockets is printed.
    pub listener: bool,
}

impl Events {
    pub const ALL: Self = Self {
        close: true,
        open: true,
        update: true,
        reject: true,
        listener: true,
    };
    pub const NONE: Self = Self {
        close: false,
        open: false,
        update: false,
        reject: false,
        listener: false,
    };

    pub(super) fn new(names: &[EventName]) -> Self {
        Self {
            close: names.contains(&EventName::Close),
            open: names.contains(&EventName::Open),
            update: names.contains(&EventName::Update),
            reject: names.contains(&EventName::Reject),
            listener: names.contains(&EventName::Listener),
        }
    }

    /// Returns the names of the events, as `--events` takes them.
    pub fn names(self) -> Vec<&'static str> {
        let all = [
            (self.close, "close"),
            (self.open, "open"),
            (self.update, "update"),
            (self.reject, "reject"),
            (self.listener, "listener"),
        ];
        all.into_iter()
            .filter(|(is_printed, _)| *is_printed)
            .map(|(_, name)| name)
            .collect()
    }

    /// Returns whether records with this subject are printed.
    pub fn has_subject(self, subject: Subject) -> bool {
        match subject {
            Subject::Connection => true,
            Subject::Reject(_) => self.reject,
            Subject::Listener(_) => self.listener,
        }
    }

    /// Returns whether `event` is printed.
    pub fn has(self, event: Event) -> bool {
        match event {
            Event::Close => self.close,
            Event::Open => self.open,
            Event::Update => self.update,
        }
    }
}
