//! The session of `nodes`: traces nodes of a cluster, each in a pod, and feeds their records to the same engine as a
//! live trace.
//!
//! ```text
//! pod ── exec ──▶ node task ── lines ──▶ viewer: names ──▶ engine ──▶ sinks
//! API server ──▶ sources ── updates ──────▶┘
//! ```
//!
//! This thread runs the tasks of all nodes, and handles signals. The viewer thread alone waits for standard output.

mod arrivals;
mod node;
mod viewer;

use std::collections::HashSet;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::exit;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Once};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use rustix::thread::CapabilitySet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use self::arrivals::Arrivals;
use self::node::{Node, Run};
use self::viewer::{NodeStream, Viewer};
use crate::blocking_io::Blocking;
use crate::capture::Target;
use crate::capture::parse::Line;
use crate::cluster::api::{Api, Phase, RIGHTS, Right};
use crate::cluster::pod::{LABEL, PodSettings};
use crate::config::{ApiServer, CaptureConfig, Config, NodesConfig, Origin, SourceConfig, Verbosity};
use crate::engine::{Engine, Selection};
use crate::names::offline::OfflineNames;
use crate::names::sources::{Sources, Status, StatusMessage};
use crate::names::update::SourceUpdate;
use crate::output::NameSourceStatus;
use crate::output::metrics::Metrics;
use crate::output::metrics::exposition::Exposition;
use crate::output::metrics::server::Server;
use crate::output::stderr::status;
use crate::output::table::view::UiCommand;
use crate::output::term::{self, JobControl};
use crate::privileges;
use crate::record::{Header, RunInfo, WallTime};
use crate::session::exit::Exit;
use crate::session::outputs::{self, Outputs};

/// The number of nodes that are traced without a question.
const MAX_WITHOUT_QUESTION: usize = 20;
/// The number of nodes that the header and the start message name.
const MAX_NAMED: usize = 3;
/// The number of messages that wait for the viewer. Beyond it, the records wait on their nodes.
const QUEUE_CAPACITY: usize = 256;
/// The run has begun when each node is traced or has failed, but at the latest after this time.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// The number of batches of names that wait for the viewer. Beyond it, the source waits.
const NAMES_CAPACITY: usize = 64;
/// The time between two ticks of the viewer.
const TICK: Duration = Duration::from_millis(100);

/// A message to the viewer.
#[derive(Debug)]
pub enum Message {
    /// Lines of the node with this number.
    Lines(usize, Vec<Line>),
    /// No more lines of this node follow.
    Ended(usize),
    /// The queue of names is not empty.
    NamesArrived,
    /// No source is awaited any more.
    NamesSettled,
    /// Time has passed.
    Tick,
    SummaryRequested,
}

/// Traces the nodes until a signal, a limit or the reader of standard output ends the run.
pub fn run(config: &Config, nodes: &NodesConfig) -> Result<Exit> {
    let server = match &config.metrics {
        Some(metrics) => Some(Server::bind(metrics.address)?),
        None => None,
    };
    let target = config.capture.as_ref();
    let target = target.map(|CaptureConfig { path, rotation }| Target::create(path, *rotation));
    let target = target.transpose()?;
    limit_privileges(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    runtime.block_on(async {
        let mut signals = Signals::new().context("cannot listen for signals")?;
        let api = Api::new(&nodes.api_server, nodes.namespace.as_deref())?;
        let names = tokio::select! {
            names = prepare(&api, nodes) => names?,
            () = signals.end() => return Ok(Exit::Ok),
        };
        if names.len() > MAX_WITHOUT_QUESTION && !nodes.yes && !confirm(names.len())? {
            return Ok(Exit::Ok);
        }
        let session = Session::start(config, nodes, &names, target, server)?;
        session.run(config, nodes, api, names, signals).await
    })
}

/// Gives up what a run of `nodes` does not need. Only rotation creates files until the end.
fn limit_privileges(config: &Config) -> Result<()> {
    let is_rotated = config
        .capture
        .as_ref()
        .is_some_and(|capture| capture.rotation.is_some());
    let rotation = match is_rotated {
        true => CapabilitySet::DAC_OVERRIDE,
        false => CapabilitySet::empty(),
    };
    // The kubeconfig may be another user's.
    privileges::limit_to(CapabilitySet::DAC_READ_SEARCH | rotation).context("cannot give up privileges")
}

/// Deletes the finished pods of earlier runs.
pub fn clean(api_server: &ApiServer, namespace: Option<&str>) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    let api = Api::new(api_server, namespace)?;
    runtime.block_on(async {
        let pods = api.pods(&format!("{}={}", LABEL.0, LABEL.1)).await?;
        let (finished, others): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| pod.phase == Phase::Ended);
        for pod in &finished {
            api.delete(&pod.name, 0).await?;
        }
        let namespace = &api.namespace;
        status(&format!(
            "deleted {} in namespace {namespace}",
            counted(finished.len(), "finished pod")
        ));
        if !others.is_empty() {
            let text = counted(others.len(), "pod");
            status(&format!(
                "{text} not finished: another run may use them, and each ends at its deadline"
            ));
        }
        Ok(Exit::Ok)
    })
}

fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Checks the permissions, and returns the names of the nodes to trace.
async fn prepare(api: &Api, nodes: &NodesConfig) -> Result<Vec<Arc<str>>> {
    let missing = api.missing_rights().await;
    if !missing.is_empty() {
        return Err(missing_rights(&missing, &api.namespace));
    }
    let found = api.nodes(nodes.selector.as_deref()).await?;
    let is_named = |name: &String| nodes.nodes.is_empty() || nodes.nodes.contains(name);
    let chosen: Vec<_> = found.iter().filter(|node| is_named(&node.name)).collect();
    for name in &nodes.nodes {
        if !chosen.iter().any(|node| node.name == *name) {
            let with = if nodes.selector.is_some() {
                " with these labels"
            } else {
                ""
            };
            bail!("the cluster has no node {name}{with}\n  try: kubectl get nodes");
        }
    }
    let mut names = Vec::new();
    for node in chosen {
        if node.operating_system != "linux" && !node.operating_system.is_empty() {
            status(&format!(
                "node {}: not traced: its system is {}",
                node.name, node.operating_system
            ));
        } else {
            names.push(Arc::from(&*node.name));
        }
    }
    if names.is_empty() {
        bail!("no node of the cluster matches\n  try: kubectl get nodes -l …");
    }
    if nodes.copy_binary {
        let other = found
            .iter()
            .find(|node| names.iter().any(|name| **name == *node.name) && !is_own(&node.architecture));
        if let Some(node) = other {
            bail!(
                "--copy-binary: node {} is {}, but this program is for {}\n  try: --image with an image for both",
                node.name,
                node.architecture,
                own_architecture()
            );
        }
    }
    Ok(names)
}

fn missing_rights(missing: &[Right], namespace: &str) -> anyhow::Error {
    let rights: Vec<_> = missing.iter().map(|right| right.text(namespace)).collect();
    let all = if missing.len() == RIGHTS.len() {
        ", that is all that it needs"
    } else {
        ""
    };
    anyhow!(
        "missing permissions: {}{all}\n  try: deploy/kubernetes/rbac-nodes.yaml, which grants them",
        rights.join(", ")
    )
}

/// Returns the name that Kubernetes has for this program's architecture.
fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn is_own(architecture: &str) -> bool {
    architecture.is_empty() || architecture == own_architecture()
}

/// Asks whether this number of nodes is meant.
fn confirm(nodes: usize) -> Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("{nodes} nodes match\n  try: --yes, if you mean all of them, or -l or --node for some");
    }
    write!(
        Blocking(io::stderr()),
        "kmesh-trace: start a pod on each of {nodes} nodes? [y/N] "
    )
    .context("cannot ask")?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Returns a text with the first nodes.
fn list(nodes: &[Arc<str>]) -> String {
    let first = nodes
        .iter()
        .take(MAX_NAMED)
        .map(|name| &**name)
        .collect::<Vec<_>>()
        .join(",");
    match nodes.len().saturating_sub(MAX_NAMED) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// The threads of a run.
struct Session {
    messages: mpsc::Sender<Message>,
    stop: watch::Sender<bool>,
    jobs: JobControl,
    /// The result of the viewer.
    end: oneshot::Receiver<Result<Exit>>,
    names: Arc<Status>,
}

impl Session {
    fn start(
        config: &Config,
        nodes: &NodesConfig,
        names: &[Arc<str>],
        target: Option<Target>,
        server: Option<Server>,
    ) -> Result<Self> {
        let info = RunInfo {
            node: list(names),
            kernel: "unknown".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let has_names = !config.sources.is_empty();
        let origin = Origin::ApiServer(nodes.api_server.clone());
        let sources = has_names.then_some(SourceConfig { named: true, origin });
        let sources = Sources::prepare(sources.as_slice())?;
        let metrics = serve_metrics(config, &info, server)?;
        let (messages, queue) = mpsc::channel(QUEUE_CAPACITY);
        let stop = watch::Sender::new(false);
        let name_status = NameSourceStatus::default();
        let capture = target.map(|target| (target, header(&info)));
        let Outputs { mut sinks, screen } = outputs::open(config, &info, &name_status, capture, {
            let stop = stop.clone();
            move |command| {
                if *command == UiCommand::Quit {
                    stop.send_replace(true);
                }
            }
        })?;
        sinks.extend(metrics.map(|metrics| Box::new(metrics) as Box<_>));
        let jobs = JobControl::new(screen).context("cannot listen for signals")?;
        let selection = Selection {
            events: config.events,
            filter: config.filter.clone(),
            count: config.count,
        };
        let (updates, update_queue) = sync_channel(NAMES_CAPACITY);
        let viewer = Viewer {
            streams: names.iter().cloned().map(NodeStream::new).collect(),
            names: has_names.then(OfflineNames::default),
            updates: update_queue,
            engine: Engine::new(selection, sinks),
            arrivals: Arrivals::default(),
            stop: stop.clone(),
            verbosity: config.verbosity,
            start: Instant::now(),
        };
        let (ended, end) = oneshot::channel();
        thread::Builder::new()
            .name("viewer".to_owned())
            // The receiver is dropped only when the process is about to end.
            .spawn(move || _ = ended.send(viewer.run(queue)))
            .context("cannot start a thread")?;
        let names = start_sources(config, sources, name_status, messages.clone(), updates)?;
        Ok(Self {
            messages,
            stop,
            jobs,
            end,
            names,
        })
    }

    /// Sends a message to the viewer, unless it has too many.
    fn tell(&self, message: Message) {
        _ = self.messages.try_send(message);
    }

    /// Traces until the end of the run. Afterwards, no pod is left.
    async fn run(
        mut self,
        config: &Config,
        nodes: &NodesConfig,
        api: Api,
        names: Vec<Arc<str>>,
        mut signals: Signals,
    ) -> Result<Exit> {
        let settled = watch::Sender::new(HashSet::new());
        let run = Arc::new(Run {
            api,
            pods: pods(nodes),
            program: nodes.copy_binary.then(read_program).transpose()?,
            flags: nodes.flags.clone(),
            messages: self.messages.clone(),
            stop: self.stop.subscribe(),
            settled: settled.clone(),
        });
        let mut tasks = JoinSet::new();
        for (number, name) in names.iter().cloned().enumerate() {
            let run = Arc::clone(&run);
            tasks.spawn(async move { Node { number, name }.run(&run).await });
        }
        let mut exit = Exit::Ok;
        let (mut is_interrupted, mut is_limit_reached, mut has_begun) = (false, false, false);
        let mut tick = interval(TICK);
        let begin = begin(settled.subscribe(), names.len());
        let limit = limit(config, settled.subscribe(), names.len());
        tokio::pin!(begin, limit);
        let mut result = None;
        while result.is_none() || !tasks.is_empty() {
            tokio::select! {
                ended = &mut self.end, if result.is_none() => {
                    self.stop.send_replace(true);
                    result = Some(ended.context("the viewer thread panicked")?);
                }
                Some(node) = tasks.join_next() => {
                    if !node.context("the task of a node panicked")? {
                        exit = Exit::Failed;
                    }
                }
                _ = tick.tick() => self.tell(Message::Tick),
                () = &mut limit, if !is_limit_reached => {
                    is_limit_reached = true;
                    self.stop.send_replace(true);
                }
                () = &mut begin, if !has_begun => {
                    has_begun = true;
                    if config.verbosity > Verbosity::Quiet && !tasks.is_empty() && !*self.stop.borrow() {
                        status(&start_text(&names, &settled.borrow()));
                    }
                }
                () = self.jobs.handle_next() => {}
                request = signals.next() => match request {
                    Request::Summary => self.tell(Message::SummaryRequested),
                    Request::End => stop_or_exit(&self.stop, &mut is_interrupted),
                },
            }
        }
        match result {
            Some(Err(error)) => Err(error),
            _ if self.names.has_failed() => Ok(Exit::Failed),
            _ => Ok(exit),
        }
    }
}

fn pods(nodes: &NodesConfig) -> PodSettings {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    PodSettings {
        run: format!("{:x}", since.as_micros()),
        image: nodes.image.clone(),
        pull_policy: nodes.pull_policy,
        copy_binary: nodes.copy_binary,
        deadline: nodes.deadline,
    }
}

fn read_program() -> Result<Vec<u8>> {
    std::fs::read("/proc/self/exe").context("cannot read this program")
}

/// Waits until each node is traced or has failed, for a limited time.
async fn begin(mut settled: watch::Receiver<HashSet<usize>>, nodes: usize) {
    let all = settled.wait_for(|settled| settled.len() == nodes);
    // The sender lives as long as the run.
    _ = timeout(START_TIMEOUT, all).await;
}

/// Waits for the end of `--duration`, which counts from the beginning of the run.
async fn limit(config: &Config, settled: watch::Receiver<HashSet<usize>>, nodes: usize) {
    let Some(duration) = config.duration else {
        return pending().await;
    };
    begin(settled, nodes).await;
    sleep(duration).await;
}

/// Returns the start message: the nodes that are traced or have failed, and the number of those that are slow.
fn start_text(nodes: &[Arc<str>], settled: &HashSet<usize>) -> String {
    match nodes.len() - settled.len() {
        0 => format!("tracing {}; Ctrl-C ends it", list(nodes)),
        slow => format!(
            "tracing; {slow} of {} are not ready yet; Ctrl-C ends it",
            counted(nodes.len(), "node")
        ),
    }
}

fn header(info: &RunInfo) -> Header {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Header {
        info: info.clone(),
        start: WallTime(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
        part: 0,
        closes_before: 0,
    }
}

/// Starts to serve metrics, if `config` asks for them.
fn serve_metrics(config: &Config, info: &RunInfo, server: Option<Server>) -> Result<Option<Metrics>> {
    let (Some(settings), Some(server)) = (&config.metrics, server) else {
        return Ok(None);
    };
    let metrics = Metrics::new(settings.series.clone(), info);
    if config.verbosity > Verbosity::Quiet {
        status(&format!("serving metrics on http://{}/metrics", server.address));
    }
    server.serve(Exposition::new(metrics.values()))?;
    Ok(Some(metrics))
}

/// Starts the thread of the API server's names, which sends its updates to the viewer.
fn start_sources(
    config: &Config,
    sources: Sources,
    names: NameSourceStatus,
    messages: mpsc::Sender<Message>,
    updates: SyncSender<Vec<SourceUpdate>>,
) -> Result<Arc<Status>> {
    let (verbosity, settled) = (config.verbosity, Once::new());
    let (known, to_viewer) = (names.clone(), messages.clone());
    let emit = move |message| {
        match message {
            StatusMessage::Note(text) if verbosity > Verbosity::Quiet => status(&text),
            StatusMessage::Note(_) => {}
            StatusMessage::Error(text) => status(&text),
        }
        if !known.is_any_awaited() {
            // The send fails only at the end of the run.
            settled.call_once(|| _ = to_viewer.blocking_send(Message::NamesSettled));
        }
    };
    let send = move |batch| match updates.send(batch) {
        Ok(()) => {
            // If the viewer has other messages, it looks at the names, too.
            _ = messages.try_send(Message::NamesArrived);
            ControlFlow::Continue(())
        }
        Err(_) => ControlFlow::Break(()),
    };
    sources.start(names, emit, send).context("cannot start a thread")
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.interrupt.recv() => Request::End,
            _ = self.terminate.recv() => Request::End,
            _ = self.hangup.recv() => Request::End,
            _ = self.user.recv() => Request::Summary,
        }
    }

    /// Waits for a signal that ends the run.
    async fn end(&mut self) {
        while self.next().await != Request::End {}
    }
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    End,
    Summary,
}

/// Ends the run in order at the first signal. Exits at once at the second one: the pods stay until their deadline.
fn stop_or_exit(stop: &watch::Sender<bool>, is_interrupted: &mut bool) {
    if *is_interrupted {
        term::leave();
        status("pods are left: they end at their deadline\n  try: kmesh-trace nodes --clean, which deletes them then");
        exit(Exit::Ok as i32);
    }
    *is_interrupted = true;
    stop.send_replace(true);
}
