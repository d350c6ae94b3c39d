//! Values that many objects have in common, and the memory that all may take.

use std::sync::Arc;

use super::budget::Budget;
use super::interner::Interner;
use crate::names::update::ControllerRef;
use crate::record::{Labels, Workload};

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    pub(super) kind: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
}

impl Controller {
    /// Returns the controller that an owner reference names.
    pub fn new(reference: &ControllerRef, strings: &mut Interner<str>) -> Self {
        Self {
            kind: strings.intern(&*reference.kind),
            name: strings.intern(&*reference.name),
            uid: strings.intern(&*reference.uid),
        }
    }

    /// Returns the controller as a workload.
    pub fn workload(&self) -> Workload {
        Workload {
            kind: Arc::clone(&self.kind),
            name: Arc::clone(&self.name),
        }
    }
}

/// What pods share, and the memory that they may take.
#[derive(Debug, Default)]
pub struct Shared {
    /// Texts.
    pub strings: Interner<str>,
    /// The labels that the pods of a controller have in common.
    pub labels: Interner<Labels>,
    /// The names of containers that the pods of a controller have in common.
    pub containers: Interner<[Arc<str>]>,
    /// The controllers of pods.
    pub controllers: Interner<Controller>,
    /// The ports that the pods of a controller have in common.
    pub ports: Interner<[(Arc<str>, u16)]>,
    /// The memory of all objects.
    pub budget: Budget,
}
