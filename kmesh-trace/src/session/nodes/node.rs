//! One node of the run: its pod, the tracer in it, and the tracer's lines.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::Message;
use crate::capture::parse::{Line, Parser};
use crate::cluster::api::{Api, GRACE_SECONDS, Phase};
use crate::cluster::exec::{Ending, Input, Output, Part, exec};
use crate::cluster::pod::PodSettings;
use crate::names::sources::error::SourceError;
use crate::output::stderr::status;
use crate::session::node_trace::{END, HEARTBEAT, HEARTBEAT_INTERVAL, STARTED};

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
/// The longest line, in bytes.
const MAX_LINE: usize = 4 << 20;
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
    /// Where records go.
    pub messages: mpsc::Sender<Message>,
    /// Becomes true when the run ends.
    pub stop: watch::Receiver<bool>,
    /// The numbers of the nodes that are traced, or have failed.
    pub settled: watch::Sender<HashSet<usize>>,
}

/// A node of the run.
pub struct Node {
    pub number: usize,
    pub name: Arc<str>,
}

impl Node {
    /// Traces the node until the run ends. Returns whether nothing failed. The pod is deleted in any case.
    pub async fn run(self, run: &Run) -> bool {
        let mut result = self.trace(run).await;
        self.settle(run);
        // The receiver is gone if an output has failed.
        _ = run.messages.send(Message::Ended(self.number)).await;
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

    async fn trace(&self, run: &Run) -> Result<(), SourceError> {
        let pod = run.pods.name(self.number);
        let object = run.pods.pod(self.number, &self.name);
        let object = object.map_err(|error| SourceError::new(format!("{error:#}")))?;
        let mut stop = run.stop.clone();
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
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let lines = Lines {
            node: self,
            run,
            parser: Parser::default(),
            text: Vec::new(),
            message: String::new(),
        };
        let result = tokio::select! {
            result = lines.read(output) => result,
            error = keep_alive(input, stop) => Err(error),
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
async fn keep_alive(mut input: Input, mut stop: watch::Receiver<bool>) -> SourceError {
    let mut heartbeat = interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let byte = tokio::select! {
            _ = heartbeat.tick() => HEARTBEAT,
            _ = stop.wait_for(|stop| *stop) => END,
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

/// The lines of one tracer.
struct Lines<'a> {
    node: &'a Node,
    run: &'a Run,
    parser: Parser,
    /// The bytes after the last complete line.
    text: Vec<u8>,
    /// The last message of the tracer, which is not printed yet: more may belong to it, or it is why the tracer fails.
    message: String,
}

impl Lines<'_> {
    /// Passes lines on until the tracer ends.
    async fn read(mut self, mut output: Output) -> Result<(), SourceError> {
        loop {
            match output.next().await? {
                Part::Stdout(bytes) => {
                    self.flush_message();
                    self.take(&bytes).await?;
                }
                Part::Stderr(text) => self.add_message(&String::from_utf8_lossy(&text)),
                Part::Ended(Ending::Succeeded) => {
                    self.flush_message();
                    return Ok(());
                }
                Part::Ended(Ending::Failed(status)) if self.message.is_empty() => {
                    return Err(SourceError::new(format!("the tracer failed with status {status}")));
                }
                Part::Ended(Ending::Failed(_)) => return Err(SourceError::new(&self.message)),
                Part::Ended(Ending::Error(error)) => return Err(SourceError::new(error)),
            }
        }
    }

    /// Parses the complete lines.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        let (text, rest) = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(end) => (&bytes[..end], &bytes[end + 1..]),
            None => (&bytes[..0], bytes),
        };
        if text.is_empty() && rest.len() == bytes.len() {
            if self.text.len() + rest.len() > MAX_LINE {
                return Err(SourceError::new(format!("a line has more than {} MiB", MAX_LINE >> 20)));
            }
            self.text.extend_from_slice(rest);
            return Ok(());
        }
        self.text.extend_from_slice(text);
        let complete = std::mem::replace(&mut self.text, rest.to_vec());
        let mut lines: Vec<Line> = Vec::new();
        for line in complete.split(|&byte| byte == b'\n') {
            match self.parser.parse(line) {
                Ok(line) => lines.push(line),
                Err(problem) => return Err(SourceError::new(format!("not a line of kmesh-trace: {problem}"))),
            }
        }
        // The receiver is gone at the end of the run.
        _ = self.run.messages.send(Message::Lines(self.node.number, lines)).await;
        Ok(())
    }

    fn add_message(&mut self, text: &str) {
        for line in text.lines() {
            if line == STARTED {
                self.node.settle(self.run);
                continue;
            }
            match line.strip_prefix("  ") {
                Some(continued) => self.message += &format!("; {}", continued.trim()),
                None => {
                    self.flush_message();
                    self.message = line.strip_prefix(OWN_PREFIX).unwrap_or(line).to_owned();
                }
            }
        }
    }

    fn flush_message(&mut self) {
        if !self.message.is_empty() {
            status(&format!("node {}: {}", self.node.name, self.message));
            self.message.clear();
        }
    }
}
