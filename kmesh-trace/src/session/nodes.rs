//! The session of `nodes`: traces nodes of a cluster, each in a pod. Their records go through pipes into a replay,
//! which merges live streams by time and feeds the same engine as a live trace.
//!
//! ```text
//! pod ── exec ──▶ task of a node ── pipe ──▶ replay: names, --join ──▶ engine ──▶ sinks
//! API server ──▶ sources ── updates ───────────▶┘
//! ```
//!
//! This thread runs the tasks of all nodes, and handles signals.

mod node;

use std::collections::HashSet;
use std::fs::File;
use std::future::pending;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::node::{Node, Progress, Run};
use super::exit::{Exit, of_names};
use super::replay::{self, Files, Running, allow_many_files};
use super::signals::EndSignals;
use super::{event_loop, outputs, print_status};
use crate::blocking_io::Blocking;
use crate::capture::Target;
use crate::cluster::api::{Api, Phase, RIGHTS, Right};
use crate::cluster::pod::{LABEL, PodSettings};
use crate::config::{ApiServer, Config, NodesConfig, Origin, SourceConfig, Verbosity};
use crate::names::offline::OfflineNames;
use crate::names::sources::{Sources, Status};
use crate::names::update::SourceUpdate;
use crate::output::metrics::server::Server;
use crate::output::stderr::status;
use crate::output::term::JobControl;
use crate::output::{NameSourceStatus, Sink};
use crate::privileges::{self, Stage};
use crate::record::{Header, RunInfo, WallTime};

/// The number of nodes that are traced without a question.
const MAX_WITHOUT_QUESTION: usize = 20;
/// The number of nodes that the header and the start message name.
const MAX_NAMED: usize = 3;
/// The run has begun when each node is traced or has failed, but at the latest after this time.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// The message for a second signal.
const PODS_ARE_LEFT: &str =
    "pods are left: they end at their deadline\n  try: kmesh-trace nodes --clean, which deletes them then";
/// The number of batches of names that wait for the replay. Beyond it, the source waits.
const NAMES_CAPACITY: usize = 64;

/// Traces the nodes until a signal, a limit or the reader of standard output ends the run.
pub fn run(config: &Config, nodes: &NodesConfig) -> Result<Exit> {
    let server = outputs::bind_server(config)?;
    let target = outputs::create_target(config)?;
    // The kubeconfig may be another user's.
    privileges::limit(Stage::UserFiles {
        is_rotated: config.is_rotated(),
    })?;
    let runtime = event_loop()?;
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

/// Deletes the finished pods of earlier runs.
pub fn clean(api_server: &ApiServer, namespace: Option<&str>) -> Result<Exit> {
    let runtime = event_loop()?;
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
    .context("cannot ask on standard error (--yes needs no question)")?;
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

/// The parts of a run.
struct Session {
    progress: watch::Sender<Progress>,
    replay: Running,
    /// The pipes for the lines of the tracers.
    pipes: Vec<pipe::Sender>,
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
        let origin = Origin::ApiServer(nodes.api_server.clone());
        let has_names = !config.sources.is_empty();
        let sources = has_names.then_some(SourceConfig { named: true, origin });
        let sources = Sources::prepare(sources.as_slice())?;
        let metrics = outputs::serve_metrics(config, &info, server)?;
        allow_many_files();
        let (mut inputs, mut pipes) = (Vec::new(), Vec::new());
        for name in names {
            let (reader, writer) = io::pipe().context("cannot make a pipe")?;
            inputs.push((Arc::clone(name), File::from(OwnedFd::from(reader))));
            pipes.push(pipe::Sender::from_owned_fd(writer.into()).context("cannot make a pipe for a node")?);
        }
        let (updates, queue) = sync_channel(NAMES_CAPACITY);
        let name_status = NameSourceStatus::default();
        // The duration counts from the time when the nodes are traced.
        let config = Config {
            duration: None,
            ..config.clone()
        };
        let more = metrics.map(|metrics| Box::new(metrics) as Box<dyn Sink>);
        let replay = replay::begin(
            &config,
            Files::of_nodes(inputs, target, header(&info)),
            has_names.then(|| OfflineNames::from_sources(queue)),
            &name_status,
            more.into_iter().collect(),
        )?;
        Ok(Self {
            progress: watch::Sender::new(Progress::Tracing),
            replay,
            pipes,
            names: start_sources(config.verbosity, sources, name_status, updates)?,
        })
    }

    /// Traces until the end of the run. Afterwards, no pod is left.
    async fn run(
        self,
        config: &Config,
        nodes: &NodesConfig,
        api: Api,
        names: Vec<Arc<str>>,
        mut signals: Signals,
    ) -> Result<Exit> {
        let Self {
            progress,
            replay,
            pipes,
            names: name_status,
        } = self;
        let settled = watch::Sender::new(HashSet::new());
        let run = Arc::new(Run {
            api,
            pods: pods(nodes),
            program: nodes.copy_binary.then(read_program).transpose()?,
            flags: nodes.flags.clone(),
            progress: progress.subscribe(),
            settled: settled.clone(),
        });
        let mut tasks = JoinSet::new();
        for (number, (name, lines)) in names.iter().cloned().zip(pipes).enumerate() {
            let run = Arc::clone(&run);
            tasks.spawn(async move { Node { number, name, lines }.run(&run).await });
        }
        let mut jobs = JobControl::new(replay.screen).context("cannot listen for signals")?;
        let begin = begin(settled.subscribe(), names.len());
        let limit = limit(config, settled.subscribe(), names.len());
        tokio::pin!(begin, limit);
        let (mut end, mut result, mut exit) = (replay.end, None, Exit::Ok);
        let (mut is_limit_reached, mut has_begun) = (false, false);
        while result.is_none() || !tasks.is_empty() {
            tokio::select! {
                ended = &mut end, if result.is_none() => {
                    progress.send_replace(Progress::Over);
                    result = Some(ended.context("the replay thread panicked")?);
                }
                Some(node) = tasks.join_next() => {
                    if !node.context("the task of a node panicked")? {
                        exit = Exit::Failed;
                    }
                }
                () = &mut limit, if !is_limit_reached => {
                    is_limit_reached = true;
                    stop(&progress);
                }
                () = &mut begin, if !has_begun => {
                    has_begun = true;
                    let is_tracing = *progress.borrow() == Progress::Tracing && !tasks.is_empty();
                    if is_tracing && config.verbosity > Verbosity::Quiet {
                        status(&start_text(&names, &settled.borrow()));
                    }
                }
                () = jobs.handle_next() => {}
                () = signals.end() => stop(&progress),
            }
        }
        match result {
            Some(Ok(Exit::Ok)) => match of_names(&name_status) {
                Exit::Ok => Ok(exit),
                failed => Ok(failed),
            },
            None => Ok(exit),
            Some(other) => other,
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

/// Returns the header of a capture that begins now.
fn header(info: &RunInfo) -> Header {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = WallTime(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
    Header::new(info.clone(), start)
}

/// Starts the thread of the API server's names, which sends its updates to the replay.
fn start_sources(
    verbosity: Verbosity,
    sources: Sources,
    names: NameSourceStatus,
    updates: SyncSender<Vec<SourceUpdate>>,
) -> Result<Arc<Status>> {
    let emit = move |message| print_status(&message, verbosity);
    let send = move |batch| match updates.send(batch) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    };
    sources
        .start(names, emit, send)
        .context("cannot start the threads of the name sources")
}

struct Signals {
    end: EndSignals,
    user: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            end: EndSignals::new()?.with_message_at_exit(PODS_ARE_LEFT),
            user: signal(SignalKind::user_defined1())?,
        })
    }

    /// Waits for a signal that ends the run.
    async fn end(&mut self) {
        loop {
            tokio::select! {
                () = self.end.next() => return,
                // Without this, the signal would end the program, and leave the pods.
                _ = self.user.recv() => status("a trace of nodes has a summary only at its end"),
            }
        }
    }
}

/// Asks the tracers to end, unless the run is over.
fn stop(progress: &watch::Sender<Progress>) {
    progress.send_modify(|progress| *progress = Progress::Ending.max(*progress));
}
