//! Values that many objects have in common, stored once, and the memory that all may take.

use std::sync::Arc;

use super::budget::MemoryBudget;
use super::interner::Interner;
use crate::names::update::ControllerRef;
use crate::record::{Labels, Workload};

/// The size of the texts of an ordinary owner reference, in bytes.
const ORDINARY_REFERENCE: usize = 200;

/// A ReplicaSet, a Job, or any other controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    pub(super) kind: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) uid: Arc<str>,
}

impl Controller {
    pub fn new(reference: &ControllerRef, strings: &mut Interner<str>) -> Self {
        Self {
            kind: strings.intern(&*reference.kind),
            name: strings.intern(&*reference.name),
            uid: strings.intern(&*reference.uid),
        }
    }

    pub fn workload(&self) -> Workload {
        Workload {
            kind: Arc::clone(&self.kind),
            name: Arc::clone(&self.name),
        }
    }
}

/// Returns the size of an owner reference beyond that of an ordinary one, which the estimates of objects include, in
/// bytes. Users choose these texts.
pub fn excess_bytes(reference: &ControllerRef) -> usize {
    let texts = [&reference.kind, &reference.name, &reference.uid];
    texts
        .map(|text| text.len())
        .iter()
        .sum::<usize>()
        .saturating_sub(ORDINARY_REFERENCE)
}

/// What objects share, and the memory that they may take.
#[derive(Debug, Default)]
pub struct SharedValues {
    pub strings: Interner<str>,
    pub labels: Interner<Labels>,
    pub containers: Interner<[Arc<str>]>,
    pub ports: Interner<[(Arc<str>, u16)]>,
    pub controllers: Interner<Controller>,
    pub budget: MemoryBudget,
}
