//! Sources that list this node's pods again and again: container runtime, kubelet, pod log folders.

use std::future::{Future, pending};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::error::SourceError;
use super::health::Report;
use super::reporter::{List, Reporter};
use super::{BACK_OFF, Source, now};
use crate::names::update::{Kind, Scope};

/// The time between two lists when nothing happens.
const INTERVAL: Duration = Duration::from_secs(30);
/// The time until a doubtful list is repeated.
const DOUBTFUL_INTERVAL: Duration = Duration::from_secs(2);

/// Whether a list says which objects are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The list has all objects.
    Complete,
    /// Objects may be missing: the list is to be repeated.
    Doubtful,
}

/// A source that is polled.
pub trait PollSource {
    /// Adds all pods to the list.
    fn list(&mut self, list: &mut List<'_>) -> impl Future<Output = Result<Listed, SourceError>>;

    /// Waits for a reason to list again; forever, if the source streams no events.
    fn event(&mut self) -> impl Future<Output = ()> {
        pending()
    }
}

/// Polls a [`PollSource`] at intervals, on request, and when something happens.
pub struct Poll<S> {
    pub source: S,
    /// The shortest time between two lists.
    pub min_interval: Duration,
    /// Requests to list at once.
    pub requests: watch::Receiver<()>,
}

impl<S: PollSource> Source for Poll<S> {
    async fn run(mut self, reporter: Reporter) {
        let mut back_off = BACK_OFF.0;
        loop {
            // The next list answers all requests so far.
            self.requests.mark_unchanged();
            let start = Instant::now();
            let mut list = reporter.list(now(), Scope::All(Kind::Pods));
            let (at_least, at_most) = match self.source.list(&mut list).await {
                Ok(Listed::Complete) => {
                    list.end();
                    reporter.report(Report::Answered);
                    back_off = BACK_OFF.0;
                    (self.min_interval, INTERVAL)
                }
                Ok(Listed::Doubtful) => (DOUBTFUL_INTERVAL, DOUBTFUL_INTERVAL),
                Err(error) => {
                    reporter.report(Report::Failed(error));
                    let wait = back_off;
                    back_off = (back_off * 2).min(BACK_OFF.1);
                    (self.min_interval.max(BACK_OFF.0), wait)
                }
            };
            sleep_until(start + at_least).await;
            tokio::select! {
                () = sleep_until(start + at_most) => {}
                () = self.source.event() => {}
                _ = self.requests.changed() => {}
            }
        }
    }
}
