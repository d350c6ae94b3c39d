//! The sources of names: container runtime, kubelet, pod log folders, API server, and files.
//!
//! Each source runs on a thread of its own, so that one that hangs, is slow or panics does not disturb the others. A supervisor
//! knows the state of each source and says what users need to know. Tracing waits for none of them.

pub mod apiserver;
pub mod cri;
pub mod kubeconfig;
pub mod kubelet;
pub mod podlogs;

mod check;
mod credentials;
mod error;
mod health;
mod http_client;
mod poll;
mod protobuf;
mod proxy;
mod reporter;
#[cfg(test)]
mod test_server;
mod tls;

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use rustix::system::uname;
use tokio::sync::watch;

pub use self::check::check;
use self::error::SourceError;
use self::health::{Health, Report, SourceState};
pub use self::health::{Status, StatusMessage};
use self::poll::Poll;
use self::reporter::{Reporter, Store};
use super::objects::file::{self, PodsFile};
use super::update::{Kind, Scope, SourceId, SourceUpdate};
use crate::config::{Origin, SourceConfig};
use crate::output::NameSourceStatus;
use crate::record::WallTime;

/// The shortest time between two lists that are requested of a kubelet or an API server.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two lists of what is cheap to ask.
const MIN_LOCAL_INTERVAL: Duration = Duration::from_millis(100);
/// The first and the longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The prefix of the name of each source's thread.
const THREAD_PREFIX: &str = "names-";

/// Asks all sources to list this node's pods again: a container or an address turned up that no source knows.
#[derive(Clone, Debug)]
pub struct RefreshRequest(Arc<watch::Sender<()>>);

impl RefreshRequest {
    /// Requests it. This is cheap, and no request is lost, however often they come.
    pub fn request(&self) {
        self.0.send_replace(());
    }
}

/// The requests as one source sees them.
#[derive(Clone)]
pub struct RefreshRequests(watch::Receiver<()>);

impl RefreshRequests {
    /// Takes note of all requests so far.
    fn mark_seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits for a request that was not seen.
    async fn wait(&mut self) {
        // The sender lives as long as the process.
        _ = self.0.changed().await;
    }
}

/// A source of names.
trait Source {
    /// Reports for as long as somebody needs it.
    fn run(self, reporter: Reporter) -> impl Future<Output = ()>;
}

/// The sources of a run, with all that is read before it starts.
pub struct Sources {
    sources: Vec<PreparedSource>,
    request: RefreshRequest,
}

struct PreparedSource {
    state: SourceState,
    start: Start,
}

/// Runs a source to its end.
type Start = Box<dyn FnOnce(&tokio::runtime::Runtime, Reporter) + Send>;

impl Sources {
    /// Reads the files that the command line names: what is wrong with them is known before tracing begins.
    pub fn prepare(configs: &[SourceConfig]) -> Result<Self> {
        let request = RefreshRequest(Arc::new(watch::Sender::new(())));
        let requests = RefreshRequests(request.0.subscribe());
        let wanted = configs
            .iter()
            .filter(|config| config.named || is_likely(&config.origin));
        let sources = wanted.map(|config| prepare(config, &requests)).collect::<Result<_>>()?;
        Ok(Self { sources, request })
    }

    /// Returns the handle that requests a list.
    pub fn refresh_request(&self) -> RefreshRequest {
        self.request.clone()
    }

    /// Starts the sources. `store` takes their updates; it may wait, and ends them by breaking off. `say` takes messages to the
    /// user, and `names_from` the names of the sources that answer.
    pub fn start(
        self,
        names_from: NameSourceStatus,
        say: impl Fn(StatusMessage) + Send + 'static,
        store: impl Fn(Vec<SourceUpdate>) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> io::Result<Arc<Status>> {
        let status = Arc::new(Status::default());
        if self.sources.is_empty() {
            return Ok(status);
        }
        hide_panics_of_sources();
        let store: Store = Arc::new(store);
        let (reports, received) = channel();
        let mut states = Vec::new();
        for (number, source) in self.sources.into_iter().enumerate() {
            let id = SourceId(number as u8);
            let name = format!("{THREAD_PREFIX}{number}");
            states.push(source.state);
            let reporter = Reporter::new(id, Arc::clone(&store), reports.clone());
            let (start, reports) = (source.start, reports.clone());
            thread::Builder::new().name(name).spawn(move || {
                let end = run_source(start, reporter);
                // The supervisor lives as long as the sources.
                _ = reports.send((id, end));
            })?;
        }
        let health = Health::new(states, Arc::clone(&status), names_from, Instant::now());
        thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || supervise(health, &received, &say))?;
        Ok(status)
    }
}

/// Runs a source on this thread. A panic is a report.
fn run_source(start: Start, reporter: Reporter) -> Report {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        start(&runtime, reporter);
        // A look-up of a name that hangs does not hold the thread.
        runtime.shutdown_background();
        io::Result::Ok(())
    }));
    match ended {
        Ok(Ok(())) => Report::Ended,
        Ok(Err(error)) => Report::Died(SourceError::new(format!("cannot start: {}", error::io(&error)))),
        Err(_) => Report::Died(SourceError::new("internal error: this source has stopped".to_owned())),
    }
}

/// A source that panics is reported like any other failure, without the panic's own text.
fn hide_panics_of_sources() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let is_source = thread::current()
            .name()
            .is_some_and(|name| name.starts_with(THREAD_PREFIX));
        if !is_source {
            before(info);
        }
    }));
}

/// Says what there is to say about the sources, at the reports and at the deadlines.
fn supervise(mut health: Health, reports: &Receiver<(SourceId, Report)>, say: &dyn Fn(StatusMessage)) {
    loop {
        let received = match health.next_deadline() {
            Some(at) => reports.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let messages = match received {
            Ok((id, report)) => health.report(usize::from(id.0), report, Instant::now()),
            Err(RecvTimeoutError::Timeout) => health.deadline(Instant::now()),
            Err(RecvTimeoutError::Disconnected) => return,
        };
        messages.into_iter().for_each(say);
    }
}

/// An automatic kubelet is asked only where something shows that there is one: each request is a connection, and is traced.
fn is_likely(origin: &Origin) -> bool {
    !matches!(origin, Origin::Kubelet(_)) || kubelet::is_likely()
}

fn prepare(config: &SourceConfig, requests: &RefreshRequests) -> Result<PreparedSource> {
    let label = label(&config.origin);
    let requests = requests.clone();
    let (label, start) = match &config.origin {
        Origin::Cri(sockets) => {
            let source = cri::CriSource::new(sockets);
            (label, start(poll(source, MIN_LOCAL_INTERVAL, requests)))
        }
        Origin::Kubelet(kubelet) => {
            let source = kubelet::KubeletSource::new(kubelet, &node_name())?;
            (label, start(poll(source, MIN_REFRESH_INTERVAL, requests)))
        }
        Origin::PodLogs => (label, start(poll(podlogs::PodLogsSource, MIN_LOCAL_INTERVAL, requests))),
        Origin::ApiServer(api_server) => {
            let client = kubeconfig::client(api_server)?;
            let label = format!("the API server at {}", client.server.to_string().trim_end_matches('/'));
            let source = apiserver::ApiServerSource {
                client,
                node: node_name(),
                this_node: api_server.this_node,
                requests,
            };
            (label, start(source))
        }
        Origin::File(path) => {
            let file = file::read(path)?;
            (format!("{} ({file})", path.display()), start(file))
        }
    };
    Ok(PreparedSource {
        state: SourceState::new(label, config.origin.label(), config.named),
        start,
    })
}

fn label(origin: &Origin) -> String {
    match origin {
        Origin::Cri(sockets) => match &sockets[..] {
            [socket] => format!("the container runtime at {}", socket.display()),
            _ => "the container runtime".to_owned(),
        },
        Origin::Kubelet(kubelet) => format!("the kubelet at {}", kubelet.url),
        Origin::PodLogs => format!("the log folders in {}", podlogs::FOLDER),
        Origin::ApiServer(_) => "the API server".to_owned(),
        Origin::File(path) => path.display().to_string(),
    }
}

fn poll<S>(source: S, min_interval: Duration, requests: RefreshRequests) -> Poll<S> {
    Poll {
        source,
        min_interval,
        requests,
    }
}

fn start(source: impl Source + Send + 'static) -> Start {
    Box::new(move |runtime, reporter| runtime.block_on(source.run(reporter)))
}

impl Source for PodsFile {
    async fn run(self, reporter: Reporter) {
        let at = now();
        let kinds = [
            Kind::Pods,
            Kind::Services,
            Kind::Endpoints,
            Kind::ReplicaSets,
            Kind::Jobs,
            Kind::Nodes,
        ];
        let is_listed = |kind: &Kind| {
            *kind == Kind::Pods || self.objects.iter().any(|object| super::objects::kind(object) == *kind)
        };
        let kinds = kinds.into_iter().filter(is_listed);
        let mut lists: Vec<_> = kinds.map(|kind| (kind, reporter.list(at, Scope::All(kind)))).collect();
        for object in self.objects {
            let kind = super::objects::kind(&object);
            if let Some((_, list)) = lists.iter_mut().find(|(one, _)| *one == kind) {
                list.upsert(object);
            }
        }
        for (_, list) in lists {
            if list.end().is_err() {
                return;
            }
        }
        reporter.answered();
    }
}

/// Returns the name that the cluster has for this node: what a pod is told, or else what a kubelet takes by default.
fn node_name() -> String {
    let named = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| uname().nodename().to_string_lossy().to_lowercase())
}

/// Returns the wall-clock time.
fn now() -> WallTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::names::update::{Change, Object, PodObject};

    enum Fake {
        Panics,
        Hangs,
        Works,
    }

    impl Source for Fake {
        async fn run(self, reporter: Reporter) {
            match self {
                Self::Panics => panic!("a library's own words"),
                // Not even its own thread goes on.
                Self::Hangs => loop {
                    thread::park();
                },
                Self::Works => {
                    let pod = Object::Pod(PodObject {
                        uid: "u".to_owned(),
                        ..PodObject::default()
                    });
                    reporter.changes(now(), [Change::Upsert(pod)]).unwrap();
                    reporter.answered();
                }
            }
        }
    }

    fn prepared(label: &str, source: Fake) -> PreparedSource {
        PreparedSource {
            state: SourceState::new(label.to_owned(), "word", true),
            start: start(source),
        }
    }

    fn sender<T: Send + 'static>(sender: Sender<T>) -> impl Fn(T) + Send + 'static {
        move |value| _ = sender.send(value)
    }

    #[test]
    fn source_that_hangs_or_panics_disturbs_no_other() {
        let sources = Sources {
            sources: vec![
                prepared("H", Fake::Hangs),
                prepared("P", Fake::Panics),
                prepared("W", Fake::Works),
            ],
            request: RefreshRequest(Arc::new(watch::Sender::new(()))),
        };
        let (messages, said) = channel();
        let (updates, stored) = channel();
        let store = move |update| match updates.send(update) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        let status = sources
            .start(NameSourceStatus::default(), sender(messages), store)
            .unwrap();
        let update: Vec<SourceUpdate> = stored.recv().unwrap();
        assert_eq!(update[0].source, SourceId(2));
        let mut first = vec![said.recv().unwrap(), said.recv().unwrap()];
        first.sort_by_key(|message| matches!(message, StatusMessage::Error(_)));
        let died = "error: no names any more from P: internal error: this source has stopped";
        assert_eq!(first, ["names come from W", died]);
        assert!(status.has_failed());
        let late = said.recv().unwrap();
        assert_eq!(late, "error: no names from H in the first 10 s: it has not answered");
    }
}
