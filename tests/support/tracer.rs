//! The tool as a child process: started, listened to, and ended.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::Value;

use super::store::Store;
use super::{net, patience, small};

/// The program under test.
pub fn binary() -> OsString {
    std::env::var_os("KMESH_TRACE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_kmesh-trace").into())
}

/// What a tracer said on standard error.
#[derive(Default)]
struct Said {
    lines: Mutex<(Vec<String>, bool)>,
    news: Condvar,
}

impl Said {
    fn listen(&self, from: impl Read) {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            self.lines
                .lock()
                .unwrap()
                .0
                .push(String::from_utf8_lossy(&line).into_owned());
            self.news.notify_all();
        }
        self.lines.lock().unwrap().1 = true;
        self.news.notify_all();
    }

    fn wait(&self, is_it: impl Fn(&str) -> bool) -> Result<String, String> {
        let deadline = Instant::now() + patience();
        let mut lines = self.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.0.iter().find(|line| is_it(line)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if lines.1 || left.is_zero() {
                return Err(format!(
                    "the awaited line did not come on standard error, which says: {:?}",
                    lines.0
                ));
            }
            lines = self.news.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// The flag that passes this scenario's connections alone, whatever other programs do meanwhile. None on a small virtual machine,
/// which has no other programs: there the tool runs without a filter.
fn only_own() -> Option<String> {
    (!small() && net::has_own_addresses()).then(|| format!("--ip={}", net::networks().join(",")))
}

/// How to start a tracer.
pub struct Start {
    command: Command,
    reader: Reader,
    gate: Option<mpsc::Receiver<()>>,
    copy: Option<File>,
}

/// Gets each line with its end.
type Look = Box<dyn FnMut(&[u8]) + Send>;

enum Reader {
    Json,
    Text(Look),
    Nobody,
}

impl Start {
    /// The tool with these arguments, for this scenario's connections alone, and without names, since to ask for them makes
    /// connections of its own; its standard output is read as JSON lines.
    pub fn new(args: &[&str]) -> Self {
        Self::with(Command::new(binary()), args)
    }

    /// The same, started by a command that ends with the tool.
    pub fn with(command: Command, args: &[&str]) -> Self {
        let own = only_own();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        Self::called(command, &[&["--no-resolve"], &own[..], args].concat())
    }

    /// The tool with these arguments, for all connections of this machine.
    pub fn of_all(args: &[&str]) -> Self {
        Self::called(Command::new(binary()), &[&["--no-resolve"], args].concat())
    }

    /// The tool with a source of names among its arguments, for this scenario's connections alone.
    pub fn resolving(args: &[&str]) -> Self {
        let own = only_own();
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        Self::called(Command::new(binary()), &[&own[..], args].concat())
    }

    /// A command that ends with the tool, and whatever arguments.
    pub fn called(mut command: Command, args: &[&str]) -> Self {
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            reader: Reader::Json,
            gate: None,
            copy: None,
        }
    }

    /// As on a node whose network namespace is the calling thread's: the tool is the first process of a pid namespace.
    pub fn on_node(args: &[&str]) -> Self {
        let mut start = Self::of_all(&[]);
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(binary())
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        start.command = command;
        start
    }

    /// The tool has this environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Standard output is this, and not read here.
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self.reader = Reader::Nobody;
        self
    }

    /// Standard output is read only once something comes through `gate`.
    pub fn gate(mut self, gate: mpsc::Receiver<()>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// JSON lines go there, too, as they are.
    pub fn copy(mut self, to: File) -> Self {
        self.copy = Some(to);
        self
    }

    /// Standard output is text: `look` gets each line with its end.
    pub fn lines(mut self, look: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.reader = Reader::Text(Box::new(look));
        self
    }

    /// Starts it without waiting for anything.
    pub fn spawn(mut self) -> Tracer {
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("start {:?}: {error}", binary()));
        let store = Arc::new(Store::default());
        let said = Arc::new(Said::default());
        let mut threads = Vec::new();
        let stderr = child.stderr.take().expect("standard error is a pipe");
        threads.push(spawn("stderr", {
            let said = Arc::clone(&said);
            move || said.listen(stderr)
        }));
        let stdout = child.stdout.take();
        match (self.reader, stdout) {
            (Reader::Json, Some(stdout)) => {
                // Two threads, so that a slow check never makes the tracer's pipe full: that would be a test of another thing.
                let (lines, checks) = mpsc::channel();
                let (gate, mut copy) = (self.gate, self.copy);
                threads.push(spawn("stdout", move || {
                    // A test that has failed opens no gate, and needs no reader.
                    if gate.is_none_or(|gate| gate.recv().is_ok()) {
                        each_line(stdout, |line| {
                            let sent = lines.send((line.to_vec(), SystemTime::now())).is_ok();
                            sent && copy.as_mut().is_none_or(|copy| copy.write_all(line).is_ok())
                        });
                    }
                }));
                let store = Arc::clone(&store);
                threads.push(spawn("check", move || {
                    for (line, seen) in checks {
                        store.ingest(&line, seen);
                    }
                    store.end();
                }));
            }
            (Reader::Text(mut look), Some(stdout)) => threads.push(spawn("stdout", move || {
                each_line(stdout, |line| {
                    look(line);
                    true
                });
            })),
            _ => {}
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        Tracer {
            child: Mutex::new(child),
            pid,
            store,
            said,
            threads: Mutex::new(threads),
            over: AtomicBool::new(false),
        }
    }

    /// Starts it and waits until it captures: hooks attached, sockets that were open before seen.
    pub fn tracing(self) -> Tracer {
        let tracer = self.spawn();
        tracer.wait_said("kmesh-trace: tracing");
        tracer
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .expect("spawn a thread")
}

/// Hands each line, with its end, to `look`, until that says enough.
fn each_line(from: impl Read, mut look: impl FnMut(&[u8]) -> bool) {
    let mut from = BufReader::with_capacity(1 << 20, from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.read_until(b'\n', &mut line) {
            Ok(got) if got > 0 && look(&line) => {}
            _ => return,
        }
    }
}

/// A running tracer.
pub struct Tracer {
    child: Mutex<Child>,
    /// Its process.
    pub pid: Pid,
    /// What it printed.
    pub store: Arc<Store>,
    said: Arc<Said>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    over: AtomicBool,
}

/// How a tracer ended.
pub struct End {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it said on standard error, a line each.
    pub stderr: Vec<String>,
    /// What it printed on standard output.
    pub store: Arc<Store>,
}

impl Tracer {
    /// A JSON tracer that captures by the time this returns.
    pub fn json(args: &[&str]) -> Self {
        Start::new(&[&["-o", "json"], args].concat()).tracing()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("signal the tracer");
    }

    /// Waits for a line on standard error that starts so.
    pub fn wait_said(&self, prefix: &str) -> String {
        self.said
            .wait(|line| line.starts_with(prefix))
            .unwrap_or_else(|error| panic!("{prefix:?}: {error}"))
    }

    /// Waits for a line on standard error with these words in it.
    pub fn wait_said_with(&self, words: &str) -> String {
        self.said
            .wait(|line| line.contains(words))
            .unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// What it said so far.
    pub fn said(&self) -> Vec<String> {
        self.said.lines.lock().unwrap().0.clone()
    }

    /// Waits for it to end by itself.
    pub fn wait(&self) -> End {
        self.wait_within(patience())
    }

    /// Whether it ends by itself within this time.
    pub fn ended_within(&self, limit: Duration) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child.lock().unwrap());
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
        let limit = Timespec::try_from(limit).expect("a time limit");
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).expect("poll") > 0
    }

    /// Waits this long at most. It is killed and the test fails when it takes longer.
    pub fn wait_within(&self, limit: Duration) -> End {
        assert!(
            self.ended_within(limit),
            "the tracer still runs after {limit:?}; it said {:?}",
            self.said()
        );
        let mut child = self.child.lock().unwrap();
        let status = child.wait().expect("wait for the tracer");
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().unwrap().drain(..) {
            thread.join().expect("a reader thread");
        }
        let stderr = self.said();
        End {
            status,
            stderr,
            store: Arc::clone(&self.store),
        }
    }

    /// Interrupts it and waits.
    pub fn interrupt(&self) -> End {
        self.signal(Signal::SIGINT);
        self.wait()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.over.load(Ordering::Relaxed) {
            // A test has failed already; nothing may stay behind it.
            let mut child = self.child.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a tracer's summary says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// All that the kernel saw end.
    pub closes: u64,
    /// Printed.
    pub delivered: u64,
    /// Sorted out.
    pub filtered: u64,
    /// Missed.
    pub lost: u64,
    /// Of these, the ones that may have been missed.
    pub lost_at_most: u64,
    /// Came after a limit.
    pub after_limit: u64,
    /// Not closed at the end.
    pub open: u64,
}

impl Sums {
    /// From a `summary` line.
    pub fn of(summary: &Value) -> Self {
        let count = |name: &str| {
            summary[name]
                .as_u64()
                .unwrap_or_else(|| panic!("no {name} in {summary}"))
        };
        Self {
            closes: count("closes"),
            delivered: count("delivered"),
            filtered: count("filtered"),
            lost: count("lost_records"),
            lost_at_most: count("lost_at_most"),
            after_limit: count("after_limit"),
            open: count("open"),
        }
    }

    /// The sum that must add up in every run.
    pub fn check(&self) {
        let parts = self.delivered + self.filtered + self.lost + self.after_limit;
        assert_eq!(
            self.closes, parts,
            "closes = delivered + filtered + lost + after_limit: {self:?}"
        );
    }
}

impl End {
    /// That it ended well, the stream without fault, the last line one summary whose sum adds up and which counts what was
    /// really printed.
    pub fn check(&self) -> Sums {
        assert!(
            self.status.success(),
            "{}, standard error: {:?}",
            self.status,
            self.stderr
        );
        let faults = self.store.faults();
        assert!(
            faults.is_empty(),
            "{} faults in the stream, first: {:?}",
            faults.len(),
            &faults[..faults.len().min(5)]
        );
        let sums = Sums::of(self.store.summaries().last().expect("a summary"));
        sums.check();
        assert_eq!(sums.delivered, self.store.conns(), "delivered = conn lines printed");
        let lines: u64 = self
            .store
            .lost()
            .iter()
            .map(|line| line["lost_records"].as_u64().unwrap_or(0))
            .sum();
        assert!(lines <= sums.lost, "lost lines say {lines}, the summary {}", sums.lost);
        sums
    }

    /// As [`End::check`], with nothing lost either.
    pub fn check_whole(&self) -> Sums {
        let sums = self.check();
        assert_eq!(
            sums.lost,
            0,
            "nothing may be lost here: {sums:?}, {:?}",
            self.store.lost()
        );
        sums
    }
}
