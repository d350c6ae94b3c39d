//! How a source reports: updates to the store, and its state to the supervisor.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use super::error::SourceError;
use super::health::Report;
use crate::names::objects::object_list::LeftOut;
use crate::names::update::{Change, Object, Scope, SourceId, SourceUpdate};
use crate::record::WallTime;

/// The most changes in one message: records take the same way, and shall not wait behind a long list.
const MAX_BATCH: usize = 64;

/// Takes the updates; it may wait, and breaks off when nobody needs them any more.
pub type Store = Arc<dyn Fn(Vec<SourceUpdate>) -> ControlFlow<()> + Send + Sync>;

/// Nobody needs the updates any more: the source ends.
#[derive(Debug)]
pub struct Stopped;

/// The way from one source to the store and to the supervisor.
#[derive(Clone)]
pub struct Reporter {
    id: SourceId,
    store: Store,
    reports: Sender<(SourceId, Report)>,
}

impl Reporter {
    /// Returns the reporter of this source.
    pub fn new(id: SourceId, store: Store, reports: Sender<(SourceId, Report)>) -> Self {
        Self { id, store, reports }
    }

    /// Reports changes that were true at this time.
    pub fn changes(&self, at: WallTime, changes: impl IntoIterator<Item = Change>) -> Result<(), Stopped> {
        let source = self.id;
        let updates = changes.into_iter().map(|change| SourceUpdate { source, at, change });
        match (self.store)(updates.collect()) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stopped),
        }
    }

    /// Starts a complete list of this scope.
    pub fn list(&self, at: WallTime, scope: Scope) -> List<'_> {
        List {
            reporter: self,
            at,
            batch: vec![Change::ListStart(scope.clone())],
            scope,
            stopped: false,
        }
    }

    /// Reports that the source answered.
    pub fn answered(&self) {
        self.report(Report::Answered);
    }

    /// Reports that the source did not answer, and why.
    pub fn failed(&self, error: SourceError) {
        self.report(Report::Failed(error));
    }

    /// Reports that objects were left out.
    pub fn left_out(&self, left_out: LeftOut) {
        if left_out.count > 0 {
            self.report(Report::LeftOut(left_out));
        }
    }

    /// Reports that the source gives no objects of this resource, and why.
    pub fn lacks(&self, resource: &'static str, error: SourceError) {
        self.report(Report::Lacks(resource, error));
    }

    /// Reports that the source gives objects of this resource.
    pub fn has(&self, resource: &'static str) {
        self.report(Report::Has(resource));
    }

    fn report(&self, report: Report) {
        // The supervisor lives as long as the sources.
        _ = self.reports.send((self.id, report));
    }
}

/// A complete list that is being reported. A list that is dropped before [`List::end`] removes nothing from the store.
pub struct List<'a> {
    reporter: &'a Reporter,
    at: WallTime,
    scope: Scope,
    batch: Vec<Change>,
    stopped: bool,
}

impl List<'_> {
    /// Adds an object.
    pub fn upsert(&mut self, object: Object) {
        self.batch.push(Change::Upsert(object));
        if self.batch.len() >= MAX_BATCH {
            self.send();
        }
    }

    /// Reports what has been added so far.
    pub fn flush(&mut self) -> Result<(), SourceError> {
        self.send();
        match self.stopped {
            true => Err(SourceError::new("nobody needs the list any more".to_owned())),
            false => Ok(()),
        }
    }

    /// Whether nobody needs the list any more.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Reports that objects were left out.
    pub fn left_out(&self, left_out: LeftOut) {
        self.reporter.left_out(left_out);
    }

    /// Ends the list: objects of its scope that it lacks are gone.
    pub fn end(mut self) -> Result<(), Stopped> {
        self.batch.push(Change::ListEnd(self.scope.clone()));
        self.send();
        match self.stopped {
            true => Err(Stopped),
            false => Ok(()),
        }
    }

    fn send(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() && !self.stopped {
            self.stopped = self.reporter.changes(self.at, batch).is_err();
        }
    }
}
