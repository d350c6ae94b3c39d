//! How a source reports: updates to the store, and its state to the supervisor.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use tokio::sync::Notify;

use super::error::SourceError;
use super::health::Report;
use super::http_client::{ANSWER_TIMEOUT, Answer};
use crate::names::objects::object_list::{LeftOut, ListMeta, ObjectReader, ScanError};
use crate::names::update::{Change, Kind, Object, Scope, SourceId, SourceUpdate};
use crate::record::WallTime;

/// The largest number of changes in one message: records take the same way, and must not wait behind a long list.
const MAX_BATCH: usize = 64;

/// Takes the updates. It may wait, and breaks off when the store needs no more updates.
pub type UpdateSink = Arc<dyn Fn(Vec<SourceUpdate>) -> ControlFlow<()> + Send + Sync>;

/// The way from one source to the store and to the supervisor.
#[derive(Clone)]
pub struct Reporter {
    id: SourceId,
    store: UpdateSink,
    reports: Sender<(SourceId, Report)>,
    /// Notified when the store needs no more updates: the source is to end.
    pub stop: Arc<Notify>,
}

impl Reporter {
    pub fn new(id: SourceId, store: UpdateSink, reports: Sender<(SourceId, Report)>) -> Self {
        let stop = Arc::default();
        Self {
            id,
            store,
            reports,
            stop,
        }
    }

    /// Reports changes that were true at this time.
    pub fn changes(&self, at: WallTime, changes: impl IntoIterator<Item = Change>) {
        let source = self.id;
        let updates = changes.into_iter().map(|change| SourceUpdate { source, at, change });
        if (self.store)(updates.collect()).is_break() {
            self.stop.notify_one();
        }
    }

    /// Starts a complete list of this scope.
    pub fn list(&self, at: WallTime, scope: Scope) -> List<'_> {
        List {
            reporter: self,
            at,
            batch: vec![Change::ListStart(scope.clone())],
            scope,
        }
    }

    pub fn report(&self, report: Report) {
        // The supervisor lives as long as the sources.
        _ = self.reports.send((self.id, report));
    }

    /// Reports that objects were left out, if there are any.
    pub fn left_out(&self, left_out: LeftOut) {
        if left_out.count > 0 {
            self.report(Report::LeftOut(left_out));
        }
    }
}

/// A complete list that is being reported. A list that is dropped before [`List::end`] removes nothing from the store.
pub struct List<'a> {
    pub reporter: &'a Reporter,
    at: WallTime,
    scope: Scope,
    batch: Vec<Change>,
}

impl List<'_> {
    pub fn upsert(&mut self, object: Object) {
        self.batch.push(Change::Upsert(object));
        if self.batch.len() >= MAX_BATCH {
            self.flush();
        }
    }

    /// Adds the objects of an answer for which `is_wanted` holds. An answer that is no list is the error `invalid`.
    pub async fn read(
        &mut self,
        mut answer: Answer,
        mut reader: ObjectReader,
        invalid: fn() -> SourceError,
        mut is_wanted: impl FnMut(&Object) -> bool,
    ) -> Result<ListMeta, SourceError> {
        let invalid_because = |error: ScanError| invalid().because(&error.to_string());
        let mut is_first = self.scope == Scope::All(Kind::Pods);
        while let Some(part) = answer.part(ANSWER_TIMEOUT).await? {
            if std::mem::take(&mut is_first) {
                self.reporter.report(Report::Answering);
            }
            let read = reader.feed(&part, &mut |object| {
                if is_wanted(&object) {
                    self.upsert(object);
                }
            });
            read.map_err(invalid_because)?;
            self.flush();
        }
        reader.finish().map_err(invalid_because)?;
        self.reporter.left_out(reader.left_out);
        reader.list.ok_or_else(invalid)
    }

    /// Reports what has been added so far.
    pub fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            self.reporter.changes(self.at, batch);
        }
    }

    /// Ends the list: objects of its scope that it lacks are gone.
    pub fn end(mut self) {
        self.batch.push(Change::ListEnd(self.scope.clone()));
        self.flush();
    }
}
