//! The status of the name sources, for the table's header.

use std::sync::{Arc, Mutex, PoisonError};

/// The text about the name sources. Clones share it.
#[derive(Clone, Debug)]
pub struct NameSourceStatus(Arc<Mutex<String>>);

impl Default for NameSourceStatus {
    fn default() -> Self {
        Self(Arc::new(Mutex::new("no names".to_owned())))
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
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Returns the text, such as `names: cri, kubelet`.
    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
