//! The sources of names: container runtime, kubelet, pod log folders, API server, and files.
//!
//! Each source runs on its own thread, so that one that hangs, is slow or panics does not disturb the others. A
//! supervisor knows the state of each source and emits the messages about it. Tracing waits for none of them.

pub mod apiserver;
pub mod cri;
pub mod kubeconfig;
pub mod kubelet;
pub mod podlogs;

#[cfg(target_os = "linux")]
mod check;
mod credentials;
pub(crate) mod error;
mod health;
pub(crate) mod http_client;
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

#[cfg(target_os = "linux")]
pub use self::check::check;
use self::error::SourceError;
use self::health::{Health, Report, SourceState};
pub use self::health::{Status, StatusMessage};
use self::poll::{Poll, PollSource};
use self::reporter::{Reporter, UpdateSink};
use super::objects::file::{self, PodsFile};
use super::update::{Kind, Scope, SourceId, SourceUpdate};
use crate::config::{Origin, SourceConfig};
use crate::output::NameSourceStatus;
use crate::record::WallTime;

/// The shortest time between two lists that are requested of a kubelet or an API server.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two lists of a source that is cheap to ask.
const MIN_LOCAL_INTERVAL: Duration = Duration::from_millis(100);
/// The first and the longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The prefix of the name of each source's thread.
const THREAD_PREFIX: &str = "names-";

/// Requests that all sources list this node's pods again: a container or an address turned up that no source knows.
#[derive(Clone, Debug)]
pub struct RefreshRequest(Arc<watch::Sender<()>>);

impl RefreshRequest {
    /// Requests the lists. This is cheap, and no request is lost, however often they come.
    pub fn request(&self) {
        self.0.send_replace(());
    }
}

/// A source of names.
trait Source {
    /// Reports for as long as the future is polled.
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
        let requests = request.0.subscribe();
        // An automatic kubelet is asked only where something shows that there is one: each request is a traced
        // connection.
        let is_likely = |origin: &Origin| !matches!(origin, Origin::Kubelet(_)) || kubelet::is_likely();
        let wanted = configs
            .iter()
            .filter(|config| config.named || is_likely(&config.origin));
        let sources = wanted.map(|config| prepare(config, &requests)).collect::<Result<_>>()?;
        Ok(Self { sources, request })
    }

    pub fn refresh_request(&self) -> RefreshRequest {
        self.request.clone()
    }

    /// Starts the sources. `store` takes their updates; it may wait, and ends them by breaking off. `emit` takes
    /// messages to the user, and `names_from` the names of the sources that answer.
    pub fn start(
        self,
        names_from: NameSourceStatus,
        emit: impl Fn(StatusMessage) + Send + 'static,
        store: impl Fn(Vec<SourceUpdate>) -> ControlFlow<()> + Send + Sync + 'static,
    ) -> io::Result<Arc<Status>> {
        let status = Arc::new(Status::default());
        if self.sources.is_empty() {
            return Ok(status);
        }
        hide_panics_of_sources();
        let store: UpdateSink = Arc::new(store);
        let (reports, received) = channel();
        let mut states = Vec::new();
        for (number, source) in self.sources.into_iter().enumerate() {
            let reporter = Reporter::new(SourceId(number as u8), Arc::clone(&store), reports.clone());
            states.push(source.state);
            let thread = thread::Builder::new().name(format!("{THREAD_PREFIX}{number}"));
            thread.spawn(move || run_source(source.start, &reporter))?;
        }
        let mut health = Health::new(states, Arc::clone(&status), names_from, Instant::now());
        let thread = thread::Builder::new().name("names".to_owned());
        thread.spawn(move || while supervise(&mut health, &received, &emit) {})?;
        Ok(status)
    }
}

/// Runs a source on this thread. A panic is a report.
fn run_source(start: Start, reporter: &Reporter) {
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        start(&runtime, reporter.clone());
        // A look-up of a name that hangs does not hold the thread.
        runtime.shutdown_background();
        io::Result::Ok(())
    }));
    let error = match ended {
        Ok(Ok(())) => return,
        Ok(Err(error)) => SourceError::new(format!("cannot start: {}", error::io(&error))),
        Err(_) => SourceError::new("internal error: this source has stopped"),
    };
    reporter.report(Report::Died(error));
}

/// Keeps the text of a source's panic off standard error: the panic is reported like any other failure.
fn hide_panics_of_sources() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let is_source = |name: &str| name.starts_with(THREAD_PREFIX);
        if !thread::current().name().is_some_and(is_source) {
            before(info);
        }
    }));
}

/// Emits the messages about the next report, or at the next deadline. Returns false at the end of all sources.
fn supervise(health: &mut Health, reports: &Receiver<(SourceId, Report)>, emit: &dyn Fn(StatusMessage)) -> bool {
    let received = match health.next_deadline() {
        Some(at) => reports.recv_timeout(at.saturating_duration_since(Instant::now())),
        None => reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
    };
    match received {
        Ok((id, report)) => {
            let message = health.report(usize::from(id.0), report, Instant::now());
            message.into_iter().for_each(emit);
        }
        Err(RecvTimeoutError::Timeout) => health.deadline(Instant::now()).into_iter().for_each(emit),
        Err(RecvTimeoutError::Disconnected) => return false,
    }
    true
}

fn prepare(config: &SourceConfig, requests: &watch::Receiver<()>) -> Result<PreparedSource> {
    let mut label = label(&config.origin);
    let start = match &config.origin {
        Origin::Cri(sockets) => poll(cri::CriSource::new(sockets), MIN_LOCAL_INTERVAL, requests),
        Origin::Kubelet(kubelet) => {
            let source = kubelet::KubeletSource::new(kubelet, &node_name())?;
            poll(source, MIN_REFRESH_INTERVAL, requests)
        }
        Origin::PodLogs => poll(podlogs::PodLogsSource, MIN_LOCAL_INTERVAL, requests),
        Origin::ApiServer(api_server) => {
            let client = kubeconfig::client(api_server)?;
            label = format!("{label} at {}", client.server.to_string().trim_end_matches('/'));
            start(apiserver::ApiServerSource {
                client,
                node: node_name(),
                this_node: api_server.this_node,
                requests: requests.clone(),
            })
        }
        Origin::File(path) => {
            let file = file::read(path)?;
            label = format!("{label} ({file})");
            start(file)
        }
    };
    let state = SourceState::new(label, config.origin.label(), config.named);
    Ok(PreparedSource { state, start })
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

fn poll(source: impl PollSource + Send + 'static, min_interval: Duration, requests: &watch::Receiver<()>) -> Start {
    start(Poll {
        source,
        min_interval,
        requests: requests.clone(),
    })
}

fn start(source: impl Source + Send + 'static) -> Start {
    Box::new(move |runtime, reporter| {
        let stop = Arc::clone(&reporter.stop);
        runtime.block_on(async {
            tokio::select! {
                () = source.run(reporter) => {}
                () = stop.notified() => {}
            }
        });
    })
}

impl Source for PodsFile {
    async fn run(self, reporter: Reporter) {
        let at = now();
        let mut objects = self.objects;
        for kind in Kind::ALL {
            let mut found = objects.extract_if(.., |object| object.kind() == kind).peekable();
            if kind == Kind::Pods || found.peek().is_some() {
                let mut list = reporter.list(at, Scope::All(kind));
                found.for_each(|object| list.upsert(object));
                list.end();
            }
        }
        reporter.report(Report::Answered);
    }
}

/// Returns the name that the cluster has for this node: `$NODE_NAME`, else the default name of a kubelet, the host
/// name.
fn node_name() -> String {
    let named = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| uname().nodename().to_string_lossy().to_lowercase())
}

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
                Self::Panics => panic!("a library's own text"),
                // This blocks its thread.
                Self::Hangs => loop {
                    thread::park();
                },
                Self::Works => {
                    let pod = Object::Pod(PodObject {
                        uid: "u".to_owned(),
                        ..PodObject::default()
                    });
                    reporter.changes(now(), [Change::Upsert(pod)]);
                    reporter.report(Report::Answered);
                }
            }
        }
    }

    fn prepared(label: &str, source: Fake) -> PreparedSource {
        PreparedSource {
            state: SourceState::new(label.to_owned(), "kind", true),
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
        let (messages, received) = channel();
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
        let mut first = [received.recv().unwrap(), received.recv().unwrap()];
        first.sort_by_key(|message| matches!(message, StatusMessage::Error(_)));
        let error = |text: &str| StatusMessage::Error(text.to_owned());
        let died = error("error: no names any more from P: internal error: this source has stopped");
        assert_eq!(first, [StatusMessage::Note("names come from W".to_owned()), died]);
        assert!(status.has_failed());
        let late = error("error: no names from H in the first 10 s: it has not answered");
        assert_eq!(received.recv().unwrap(), late);
    }
}
