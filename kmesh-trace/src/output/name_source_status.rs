//! The status of the name sources, for the table's header.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The status of the name sources. Clones share it.
#[derive(Clone, Debug)]
pub struct NameSourceStatus(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    text: String,
    is_any_awaited: bool,
}

impl Default for NameSourceStatus {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            text: "no names".to_owned(),
            is_any_awaited: false,
        })))
    }
}

impl NameSourceStatus {
    /// Sets the sources that have answered. `is_any_awaited`: whether other sources may still answer.
    pub fn set(&self, sources: &[&str], is_any_awaited: bool) {
        let text = match sources {
            [] if is_any_awaited => "no names yet".to_owned(),
            [] => "no names".to_owned(),
            sources => format!("names: {}", sources.join(", ")),
        };
        *self.lock() = State { text, is_any_awaited };
    }

    /// Returns the text, such as `names: cri, kubelet`.
    pub fn text(&self) -> String {
        self.lock().text.clone()
    }

    /// Returns whether a source may still give its first answer.
    pub fn is_any_awaited(&self) -> bool {
        self.lock().is_any_awaited
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
