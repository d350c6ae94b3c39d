//! The events that a run prints.

use crate::cli::EventName;
use crate::record::Event;

/// The events that are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Events {
    /// Whether [`Event::Close`] is printed.
    pub close: bool,
    /// Whether [`Event::Open`] is printed.
    pub open: bool,
    /// Whether [`Event::Update`] is printed.
    pub update: bool,
}

impl Events {
    pub(super) const ALL: Self = Self {
        close: true,
        open: true,
        update: true,
    };

    pub const NONE: Self = Self {
        close: false,
        open: false,
        update: false,
    };

    pub(super) fn new(names: &[EventName]) -> Self {
        Self {
            close: names.contains(&EventName::Close),
            open: names.contains(&EventName::Open),
            update: names.contains(&EventName::Update),
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
