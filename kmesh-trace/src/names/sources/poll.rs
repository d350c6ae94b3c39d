//! Sources that are asked for this node's pods again and again: container runtime, kubelet, pod log folders.

use std::future::{Future, pending};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::error::SourceError;
use super::reporter::{List, Reporter};
use super::{BACK_OFF, RefreshRequests, Source, now};
use crate::names::update::{Kind, Scope};

/// The time between two lists when nothing happens.
const INTERVAL: Duration = Duration::from_secs(30);
/// The time until a doubtful list is checked.
const DOUBTFUL_INTERVAL: Duration = Duration::from_secs(2);

/// Whether a list says which objects are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The list has all objects.
    Complete,
    /// Objects may be missing: the list is to be repeated.
    Doubtful,
}

/// A source that is asked again and again.
pub trait PollSource {
    /// Adds all pods to the list.
    fn list(&mut self, list: &mut List<'_>) -> impl Future<Output = Result<Listed, SourceError>>;

    /// Waits for a reason to ask again; forever, if the source does not tell.
    fn event(&mut self) -> impl Future<Output = ()> {
        pending()
    }
}

/// Asks a [`PollSource`] at intervals, on request, and when something happens.
pub struct Poll<S> {
    /// The source.
    pub source: S,
    /// The shortest time between two lists.
    pub min_interval: Duration,
    /// Requests to ask at once.
    pub requests: RefreshRequests,
}

impl<S: PollSource> Source for Poll<S> {
    async fn run(mut self, reporter: Reporter) {
        let mut back_off = BACK_OFF.0;
        loop {
            // A request from now on is answered by the next list.
            self.requests.mark_seen();
            let asked = Instant::now();
            let mut list = reporter.list(now(), Scope::All(Kind::Pods));
            let (at_least, at_most) = match self.source.list(&mut list).await {
                Ok(Listed::Complete) => {
                    if list.end().is_err() {
                        return;
                    }
                    reporter.answered();
                    back_off = BACK_OFF.0;
                    (self.min_interval, INTERVAL)
                }
                Ok(Listed::Doubtful) => (DOUBTFUL_INTERVAL, DOUBTFUL_INTERVAL),
                Err(_) if list.is_stopped() => return,
                Err(error) => {
                    reporter.failed(error);
                    let wait = back_off;
                    back_off = (back_off * 2).min(BACK_OFF.1);
                    (self.min_interval.max(BACK_OFF.0), wait)
                }
            };
            sleep_until(asked + at_least).await;
            tokio::select! {
                () = sleep_until(asked + at_most) => {}
                () = self.source.event() => {}
                () = self.requests.wait() => {}
            }
        }
    }
}
