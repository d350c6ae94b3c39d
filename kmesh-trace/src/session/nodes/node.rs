//! One node of the run: its pod, the tracer in it, and the tracer's lines.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::cluster::api::{Api, GRACE_SECONDS, Phase};
use crate::cluster::exec::{Ending, Input, Output, Part, exec};
use crate::cluster::pod::PodSettings;
use crate::cluster::protocol::{END, HEARTBEAT, HEARTBEAT_INTERVAL, STARTED};
use crate::names::sources::error::SourceError;
use crate::output::stderr::status;

/// The longest time until a pod runs. Pulling an image may take a minute.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// A message says that a node is slow after this time.
const SLOW_START: Duration = Duration::from_secs(10);
/// The time between two requests for the state of a pod.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// The longest time for the last records, when the run ends.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest time until a deleted pod is gone. Afterwards, the cluster deletes it without this program.
const DELETE_TIMEOUT: Duration = Duration::from_secs(20);
/// The size of a message of a copied program, in bytes.
const COPY_PART: usize = 32 << 10;
/// The prefix of a tracer's own messages.
const OWN_PREFIX: &str = "kmesh-trace: ";

/// What the nodes of a run have in common.
pub struct Run {
    pub api: Api,
    pub pods: PodSettings,
    /// This program, if it is copied into the pods.
    pub program: Option<Vec<u8>>,
    /// The flags of the tracers.
    pub flags: Vec<String>,
    /// How far the run is.
    pub progress: watch::Receiver<Progress>,
    /// The numbers of the nodes that are traced, or have failed.
    pub settled: watch::Sender<HashSet<usize>>,
}

/// How far the run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    Tracing,
    /// The tracers must end, and their last records are wanted.
    Ending,
    /// Nobody wants more records.
    Over,
}

/// A node of the run.
pub struct Node {
    pub number: usize,
    pub name: Arc<str>,
    /// The pipe for the lines of its tracer.
    pub lines: pipe::Sender,
}

impl Node {
    /// Traces the node until the run ends. Returns whether nothing failed. The pod is deleted in any case.
    pub async fn run(mut self, run: &Run) -> bool {
        let mut result = self.trace(run).await;
        self.settle(run);
        if let Err(error) = self.delete(run).await
            && result.is_ok()
        {
            result = Err(error.at("cannot delete the pod"));
        }
        if let Err(error) = &result {
            status(&format!("node {}: {}", self.name, error.in_one_line()));
        }
        result.is_ok()
    }

    /// Reports that the node is traced, or has failed.
    fn settle(&self, run: &Run) {
        run.settled.send_modify(|settled| _ = settled.insert(self.number));
    }

    async fn trace(&mut self, run: &Run) -> Result<(), SourceError> {
        let pod = run.pods.name(self.number);
        let object = run.pods.pod(self.number, &self.name);
        let object = object.map_err(|error| SourceError::new(format!("{error:#}")))?;
        let (mut progress, mut end) = (run.progress.clone(), run.progress.clone());
        let starting = async {
            run.api.create(&object).await?;
            self.wait_until_it_runs(run, &pod).await?;
            if let Some(program) = &run.program {
                copy(run, &pod, program).await?;
            }
            let command = [run.pods.program(), "node-trace", "--"].map(str::to_owned);
            exec(&run.api, &pod, &[&command[..], &run.flags].concat()).await
        };
        let (input, output) = tokio::select! {
            started = starting => started?,
            _ = progress.wait_for(|progress| *progress > Progress::Tracing) => return Ok(()),
        };
        let result = tokio::select! {
            result = self.read(run, output) => result,
            error = keep_alive(input, progress) => Err(error),
            _ = end.wait_for(|progress| *progress == Progress::Over) => Ok(()),
        };
        result.map_err(|error| error.at("the stream ended"))
    }

    async fn wait_until_it_runs(&self, run: &Run, pod: &str) -> Result<(), SourceError> {
        let start = Instant::now();
        let mut is_reported = false;
        let mut connection = None;
        loop {
            let state = run.api.pod(&mut connection, pod).await?;
            let state = state.ok_or_else(|| SourceError::new("somebody deleted the pod"))?;
            match state.phase {
                Phase::Running => return Ok(()),
                Phase::Stuck => return Err(SourceError::new(format!("the pod cannot start: {}", state.reason))),
                Phase::Ended => return Err(SourceError::new(format!("the pod ended: {}", state.reason))),
                Phase::Waiting => {}
            }
            let reason = if state.reason.is_empty() {
                "the kubelet has not answered"
            } else {
                &state.reason
            };
            if start.elapsed() > START_TIMEOUT {
                let seconds = START_TIMEOUT.as_secs();
                return Err(SourceError::new(format!(
                    "the pod does not run after {seconds} s: {reason}"
                )));
            }
            if start.elapsed() > SLOW_START && !std::mem::replace(&mut is_reported, true) {
                status(&format!("node {}: still waiting for the pod: {reason}", self.name));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Deletes the pod, and waits until it is gone.
    async fn delete(&self, run: &Run) -> Result<(), SourceError> {
        let pod = run.pods.name(self.number);
        if !run.api.delete(&pod, GRACE_SECONDS).await? {
            return Ok(());
        }
        let gone = async {
            let mut connection = None;
            while let Some(state) = run.api.pod(&mut connection, &pod).await? {
                // A kubelet may take half a minute to tidy up after a container, and one that is gone never answers.
                if state.phase == Phase::Ended || state.is_new {
                    return run.api.delete(&pod, 0).await.map(drop);
                }
                sleep(POLL_INTERVAL).await;
            }
            Ok(())
        };
        let late = |_| {
            SourceError::new(format!(
                "the kubelet has not ended it within {} s",
                DELETE_TIMEOUT.as_secs()
            ))
        };
        timeout(DELETE_TIMEOUT, gone).await.map_err(late)?
    }

    /// Passes the lines of the tracer on until it ends.
    async fn read(&mut self, run: &Run, mut output: Output) -> Result<(), SourceError> {
        let mut stderr = Stderr::default();
        loop {
            match output.next().await? {
                Part::Stdout(lines) => {
                    stderr.flush(&self.name);
                    // Writing fails when the replay has ended.
                    if self.lines.write_all(&lines).await.is_err() {
                        return Ok(());
                    }
                }
                Part::Stderr(text) => {
                    if stderr.add(&self.name, &String::from_utf8_lossy(&text)) {
                        self.settle(run);
                    }
                }
                Part::Ended(Ending::Succeeded) => {
                    stderr.flush(&self.name);
                    let is_asked = *run.progress.borrow() > Progress::Tracing;
                    let unasked = || SourceError::new("somebody ended the tracer");
                    return is_asked.then_some(()).ok_or_else(unasked);
                }
                Part::Ended(Ending::Failed(status)) if stderr.message.is_empty() => {
                    return Err(SourceError::new(format!("the tracer failed with status {status}")));
                }
                Part::Ended(Ending::Failed(_)) => return Err(SourceError::new(&stderr.message)),
                Part::Ended(Ending::Error(error)) => return Err(SourceError::new(error)),
            }
        }
    }
}

/// Copies the program into the pod.
async fn copy(run: &Run, pod: &str, program: &[u8]) -> Result<(), SourceError> {
    let command = run.pods.receive_command(program.len() as u64);
    let failed = |error: SourceError| error.at("cannot copy the program");
    let (mut input, mut output) = exec(&run.api, pod, &command).await.map_err(failed)?;
    let write = async {
        for part in program.chunks(COPY_PART) {
            input.write(part).await?;
        }
        Ok(())
    };
    let read = async {
        let mut message = String::new();
        loop {
            match output.next().await? {
                Part::Stdout(_) => {}
                Part::Stderr(text) => message += &String::from_utf8_lossy(&text),
                Part::Ended(Ending::Succeeded) => return Ok(()),
                Part::Ended(Ending::Failed(_)) => return Err(SourceError::new(message.trim())),
                Part::Ended(Ending::Error(error)) => return Err(SourceError::new(error)),
            }
        }
    };
    // The answer may come before the last part is sent only if the copy has failed.
    let result: Result<((), ()), SourceError> = tokio::try_join!(write, read);
    result.map(drop).map_err(failed)
}

/// Sends heartbeats. When the run ends, asks the tracer to end. Returns an error when the connection does, or when the
/// tracer does not end in time.
async fn keep_alive(mut input: Input, mut progress: watch::Receiver<Progress>) -> SourceError {
    let mut heartbeat = interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let byte = tokio::select! {
            _ = heartbeat.tick() => HEARTBEAT,
            _ = progress.wait_for(|progress| *progress > Progress::Tracing) => END,
        };
        if let Err(error) = input.write(&[byte]).await {
            return error;
        }
        if byte == END {
            sleep(END_TIMEOUT).await;
            return SourceError::new(format!("the tracer has not ended within {} s", END_TIMEOUT.as_secs()));
        }
    }
}

/// The last message of a tracer, which is not printed yet: more may belong to it, or it is why the tracer fails.
#[derive(Default)]
struct Stderr {
    message: String,
}

impl Stderr {
    /// Adds what a tracer printed. Returns whether tracing has begun.
    fn add(&mut self, node: &str, text: &str) -> bool {
        let mut has_begun = false;
        for line in text.lines() {
            if line == STARTED {
                has_begun = true;
            } else if let Some(continued) = line.strip_prefix("  ") {
                self.message += &format!("; {}", continued.trim());
            } else {
                self.flush(node);
                self.message = line.strip_prefix(OWN_PREFIX).unwrap_or(line).to_owned();
            }
        }
        has_begun
    }

    fn flush(&mut self, node: &str) {
        if !self.message.is_empty() {
            status(&format!("node {node}: {}", self.message));
            self.message.clear();
        }
    }
}
