//! The tool as a child process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};
use serde_json::Value;

use super::output::TracerOutput;
use super::{is_small_vm, net, schema, test_timeout};

/// Returns the path of the program under test.
pub fn binary() -> OsString {
    std::env::var_os("KMESH_TRACE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_kmesh-trace").into())
}

/// A copy of the binary that any user can run. Dropping it removes the copy.
pub struct BinaryCopy(PathBuf);

impl BinaryCopy {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kmesh-trace-binary-{}-{number}", std::process::id()));
        fs::copy(binary(), &path).expect("copy the binary");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it executable");
        Self(path)
    }

    /// Runs the tool as the user nobody without capabilities, and waits until it exits.
    pub fn run_as_nobody(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.0);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .uid(65534)
            .gid(65534)
            .current_dir("/");
        command.output().expect("run as nobody")
    }

    /// Returns a command that runs the tool as the user nobody with exactly these capabilities.
    pub fn with_capabilities(&self, capabilities: &[&str]) -> Command {
        let list = |capabilities: &[&str]| {
            let added = capabilities.iter().map(|name| format!(",+{name}"));
            format!("-all{}", added.collect::<String>())
        };
        let list = list(capabilities);
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--no-new-privs",
        ]);
        command.args(["--inh-caps", &list, "--ambient-caps", &list, "--bounding-set", &list]);
        command.arg(&self.0);
        command
    }
}

impl Drop for BinaryCopy {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

/// The lines that a tracer has printed on standard error.
#[derive(Default)]
struct Stderr {
    state: Mutex<StderrState>,
    changed: Condvar,
}

#[derive(Default)]
struct StderrState {
    lines: Vec<String>,
    ended: bool,
}

impl Stderr {
    fn read(&self, from: impl Read) {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            self.state.lock().unwrap().lines.push(line);
            self.changed.notify_all();
        }
        self.state.lock().unwrap().ended = true;
        self.changed.notify_all();
    }

    fn wait(&self, is_it: impl Fn(&str) -> bool) -> Result<String, String> {
        let deadline = Instant::now() + test_timeout();
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(line) = state.lines.iter().find(|line| is_it(line)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                return Err(format!("no such line on standard error: {:?}", state.lines));
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// The flag with which the tool traces this scenario's connections alone, whatever other programs do. None in a small
/// virtual machine, which runs no other programs: there the tool runs without a filter.
fn scenario_filter() -> Option<String> {
    (!is_small_vm() && net::has_claimed_addresses()).then(|| format!("--ip={}", net::scenario_networks().join(",")))
}

/// Configures and starts a tracer. Standard output is read as JSON lines, unless a method changes that.
pub struct TracerCommand {
    command: Command,
    reader: StdoutReader,
    read_after: Option<mpsc::Receiver<()>>,
    copy_to: Option<File>,
}

/// Gets each line, including its newline.
type OnLine = Box<dyn FnMut(&[u8]) + Send>;

enum StdoutReader {
    Json,
    Text(OnLine),
    None,
}

impl TracerCommand {
    /// The tool without names (to ask for names makes connections), for this scenario's connections alone.
    pub fn new(args: &[&str]) -> Self {
        Self::wrapped_by(Command::new(binary()), args)
    }

    /// The tool without names, for this scenario's connections alone, started by a command that ends with the tool's
    /// path.
    pub fn wrapped_by(command: Command, args: &[&str]) -> Self {
        let filter = scenario_filter();
        let filter: Vec<&str> = filter.iter().map(String::as_str).collect();
        Self::from_command(command, &[&["--no-resolve"], &filter[..], args].concat())
    }

    /// The tool without names, for all connections of this machine.
    pub fn for_all_connections(args: &[&str]) -> Self {
        Self::from_command(Command::new(binary()), &[&["--no-resolve"], args].concat())
    }

    /// The tool with a name source among its arguments, for this scenario's connections alone.
    pub fn with_names(args: &[&str]) -> Self {
        let filter = scenario_filter();
        let filter: Vec<&str> = filter.iter().map(String::as_str).collect();
        Self::from_command(Command::new(binary()), &[&filter[..], args].concat())
    }

    /// A command that ends with the tool's path, and exactly these arguments.
    pub fn from_command(mut command: Command, args: &[&str]) -> Self {
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            reader: StdoutReader::Json,
            read_after: None,
            copy_to: None,
        }
    }

    /// The tool as on a node whose network namespace is the calling thread's: in a pid namespace in which it is the
    /// first process.
    pub fn on_node(args: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(binary());
        Self::from_command(command, args)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Redirects standard output, which is then not read here.
    pub fn stdout(mut self, to: impl Into<Stdio>) -> Self {
        self.command.stdout(to);
        self.reader = StdoutReader::None;
        self
    }

    /// Reads standard output only after a message on `gate`.
    pub fn read_after(mut self, gate: mpsc::Receiver<()>) -> Self {
        self.read_after = Some(gate);
        self
    }

    /// Copies the JSON lines to a file as well.
    pub fn copy_to(mut self, file: File) -> Self {
        self.copy_to = Some(file);
        self
    }

    /// Reads standard output as text: calls `on_line` with each line, including its newline.
    pub fn on_line(mut self, on_line: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.reader = StdoutReader::Text(Box::new(on_line));
        self
    }

    /// Starts the tool without waiting for anything.
    pub fn spawn(mut self) -> Tracer {
        schema::load();
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("start {:?}: {error}", binary()));
        let output = Arc::new(TracerOutput::default());
        let stderr = Arc::new(Stderr::default());
        let mut threads = Vec::new();
        let stderr_pipe = child.stderr.take().expect("standard error is a pipe");
        threads.push(spawn_thread("stderr", {
            let stderr = Arc::clone(&stderr);
            move || stderr.read(stderr_pipe)
        }));
        match (self.reader, child.stdout.take()) {
            (StdoutReader::Json, Some(stdout)) => {
                let (gate, copy_to) = (self.read_after, self.copy_to);
                threads.extend(read_json(stdout, gate, copy_to, Arc::clone(&output)));
            }
            (StdoutReader::Text(mut on_line), Some(stdout)) => threads.push(spawn_thread("stdout", move || {
                each_line(stdout, |line| {
                    on_line(line);
                    true
                });
            })),
            _ => {}
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        Tracer {
            child: Mutex::new(child),
            pid,
            output,
            stderr,
            threads: Mutex::new(threads),
            has_exited: AtomicBool::new(false),
        }
    }

    /// Starts the tool and waits until it traces: all programs are attached, and the sockets that are open are known.
    pub fn start(self) -> Tracer {
        let tracer = self.spawn();
        tracer.wait_stderr("kmesh-trace: tracing");
        tracer
    }
}

fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .expect("spawn a thread")
}

/// Starts the threads that read and check JSON lines. Two threads: a slow check must not fill the tracer's pipe.
fn read_json(
    stdout: impl Read + Send + 'static,
    gate: Option<mpsc::Receiver<()>>,
    mut copy_to: Option<File>,
    output: Arc<TracerOutput>,
) -> [JoinHandle<()>; 2] {
    let (lines, received) = mpsc::channel();
    let printed = Arc::clone(&output);
    let reader = spawn_thread("stdout", move || {
        // A test that has failed opens no gate, and needs no reader.
        if gate.is_none_or(|gate| gate.recv().is_ok()) {
            each_line(stdout, |line| {
                printed.count_line();
                let is_sent = lines.send((line.to_vec(), SystemTime::now())).is_ok();
                is_sent && copy_to.as_mut().is_none_or(|file| file.write_all(line).is_ok())
            });
        }
    });
    let checker = spawn_thread("check", move || {
        for (line, received_at) in received {
            output.add_line(&line, received_at);
        }
        output.end();
    });
    [reader, checker]
}

/// Calls `on_line` with each line, including its newline, until it returns false.
fn each_line(from: impl Read, mut on_line: impl FnMut(&[u8]) -> bool) {
    let mut from = BufReader::with_capacity(1 << 20, from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.read_until(b'\n', &mut line) {
            Ok(got) if got > 0 && on_line(&line) => {}
            _ => return,
        }
    }
}

/// A tracer that runs. Dropping it kills it.
pub struct Tracer {
    child: Mutex<Child>,
    pub pid: Pid,
    pub output: Arc<TracerOutput>,
    stderr: Arc<Stderr>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    has_exited: AtomicBool,
}

/// A tracer that has exited.
pub struct TracerExit {
    pub status: ExitStatus,
    /// The lines of standard error.
    pub stderr: Vec<String>,
    pub output: Arc<TracerOutput>,
}

impl Tracer {
    /// Starts a tracer that prints JSON, and waits until it traces.
    pub fn json(args: &[&str]) -> Self {
        TracerCommand::new(&[&["-o", "json"], args].concat()).start()
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("signal the tracer");
    }

    /// Waits for a line on standard error that starts with `prefix`.
    pub fn wait_stderr(&self, prefix: &str) -> String {
        self.stderr
            .wait(|line| line.starts_with(prefix))
            .unwrap_or_else(|error| panic!("{prefix:?}: {error}"))
    }

    /// Waits for a line on standard error that contains `text`.
    pub fn wait_stderr_containing(&self, text: &str) -> String {
        self.stderr
            .wait(|line| line.contains(text))
            .unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    /// Returns the lines on standard error so far.
    pub fn stderr_lines(&self) -> Vec<String> {
        self.stderr.state.lock().unwrap().lines.clone()
    }

    /// Requests a summary (SIGUSR1), and waits for it.
    pub fn request_summary(&self) -> Value {
        let count = self.output.summaries().len();
        self.signal(Signal::SIGUSR1);
        let mut summaries = self.output.wait_summaries(count + 1).expect("a summary");
        summaries.swap_remove(count)
    }

    /// Waits until the tracer exits.
    pub fn wait(&self) -> TracerExit {
        self.wait_within(test_timeout())
    }

    /// Waits up to `limit` for the tracer to exit. Returns whether it has.
    pub fn ended_within(&self, limit: Duration) -> bool {
        let pid = rustix::process::Pid::from_child(&self.child.lock().unwrap());
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd_open");
        let limit = Timespec::try_from(limit).expect("a time limit");
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).expect("poll") > 0
    }

    /// Waits until the tracer exits. Fails the test after `limit`.
    pub fn wait_within(&self, limit: Duration) -> TracerExit {
        assert!(
            self.ended_within(limit),
            "the tracer still runs after {limit:?}, standard error: {:?}",
            self.stderr_lines()
        );
        let mut child = self.child.lock().unwrap();
        let status = child.wait().expect("wait for the tracer");
        self.has_exited.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().unwrap().drain(..) {
            thread.join().expect("a reader thread");
        }
        TracerExit {
            status,
            stderr: self.stderr_lines(),
            output: Arc::clone(&self.output),
        }
    }

    /// Interrupts the tracer and waits until it exits.
    pub fn interrupt(&self) -> TracerExit {
        self.signal(Signal::SIGINT);
        self.wait()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.has_exited.load(Ordering::Relaxed) {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The counts of a summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub closes: u64,
    pub delivered: u64,
    pub filtered: u64,
    pub lost: u64,
    pub lost_at_most: u64,
    pub after_limit: u64,
    pub open: u64,
}

impl Totals {
    pub fn from_summary(summary: &Value) -> Self {
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

    /// Checks that every close is counted in exactly one way.
    pub fn check(&self) {
        let parts = self.delivered + self.filtered + self.lost + self.after_limit;
        assert_eq!(
            self.closes, parts,
            "closes = delivered + filtered + lost + after_limit: {self:?}"
        );
    }
}

impl TracerExit {
    /// Checks that the tracer succeeded, that the stream has no error, and that the summary adds up and counts the
    /// records that were printed.
    pub fn check(&self) -> Totals {
        assert!(
            self.status.success(),
            "{}, standard error: {:?}",
            self.status,
            self.stderr
        );
        let errors = self.output.stream_errors();
        assert!(
            errors.is_empty(),
            "{} errors in the stream, first: {:?}",
            errors.len(),
            &errors[..errors.len().min(5)]
        );
        let totals = Totals::from_summary(self.output.summaries().last().expect("a summary"));
        totals.check();
        assert_eq!(totals.delivered, self.output.close_count(), "delivered = close records");
        let lost_lines = self.output.lost_lines();
        let lost = lost_lines.iter().map(|line| line["lost_records"].as_u64().unwrap_or(0));
        let lost: u64 = lost.sum();
        assert!(lost <= totals.lost, "lost lines: {lost}, summary: {}", totals.lost);
        totals
    }

    /// Checks the same as [`TracerExit::check`], and that no record was lost.
    pub fn check_lossless(&self) -> Totals {
        let totals = self.check();
        assert_eq!(
            totals.lost,
            0,
            "no record may be lost: {totals:?}, {:?}",
            self.output.lost_lines()
        );
        totals
    }
}
