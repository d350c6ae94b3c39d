//! What goes wrong around a tracer: it is stopped, killed as it starts, short of memory or descriptors, started again and
//! again, has more to do than it can, and asks sources that lie.

mod clock;
mod held;
mod load;
mod sources;

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::Table;
use crate::many::crowd;
use crate::signals::traffic_through;
use crate::support::expect::{CLOCK_ERROR, moment};
use crate::support::probe::Need;
use crate::support::sock::{V, drain, error_of, give, listen, pair_with, wait_until};
use crate::support::store::Rec;
use crate::support::tracer::{Start, Tracer, binary};
use crate::support::{bpf, net};

/// The trials.
pub fn table() -> Table {
    // First those hundreds of thousands of sockets, before there is a shared tracer, each of whose lines is put through the
    // schema.
    let table = held::add(Table::new("faults"))
        .own("stopped_for_a_while", &[Need::Big], stopped_for_a_while)
        .own(
            "a_full_ring_loses_whole_records",
            &[Need::Nft],
            a_full_ring_loses_whole_records,
        )
        .own("started_again_and_again", &[Need::Big], started_again_and_again)
        .own("killed_while_starting", &[], killed_while_starting)
        .own("few_descriptors", &[], few_descriptors)
        .own("memory_limit", &[Need::MemoryCgroup, Need::Big], memory_limit);
    sources::add(clock::add(load::add(table)))
}

/// What is closed meanwhile is told afterwards, with its own times. What others close is sorted out in the kernel: it may be more
/// than the ring takes.
fn stopped_for_a_while() {
    /// Longer than each of the times that a tracer without sources of names waits for: the longest is an interval, 5 s.
    const A_WHILE: Duration = Duration::from_secs(15);
    let server = net::address(0);
    let tracer = Tracer::json(&["--to-ip", &server.to_string()]);
    tracer.store.keep(net::inode());
    tracer.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let ends = crowd(server, 200).len();
    let closed_by = SystemTime::now();
    // The time is what is tested.
    thread::sleep(A_WHILE.saturating_sub(stopped.elapsed()));
    tracer.signal(Signal::SIGCONT);
    let end = tracer.interrupt();
    end.check_whole();
    let records = end.store.records(net::inode());
    assert_eq!((ends, records.len()), (400, 400));
    let latest = records.iter().filter_map(|record| moment(&record.value["time"])).max();
    assert!(
        latest.is_some_and(|time| time <= closed_by + CLOCK_ERROR),
        "{latest:?} {closed_by:?}"
    );
}

/// The ring of a stopped tracer fills up. Some outcomes depend on a RST, which the kernel sends after the close. The ring takes both
/// records or neither, so each record that the tracer prints is right, and the others are counted as lost.
fn a_full_ring_loses_whole_records() {
    /// More than the smallest ring holds.
    const CONNECTIONS: usize = 260;
    let tracer = Tracer::json(&["--direction", "outbound", "--buffer", "64KiB"]);
    tracer.store.keep(net::inode());
    let (plain, reset) = (listen(V::Four), listen(V::Four));
    let port = reset.local_addr().unwrap().port();
    net::rules(&[&format!("tcp dport {port} tcp flags & fin == fin drop")]);
    // An end takes 256 bytes of the ring, and with a RST 280. After 0 to 11 others, the ring is full at each place of such a pair.
    for others in 0..12 {
        tracer.signal(Signal::SIGSTOP);
        for _ in 0..others {
            let pair = pair_with(&plain);
            drop(pair.client);
            drain(&pair.server);
        }
        for _ in others..CONNECTIONS {
            let pair = pair_with(&reset);
            drop(pair.client);
            // Its FIN is lost, and data meets it.
            give(&pair.server, 1);
            assert_eq!(error_of(&pair.server), Errno::ECONNRESET);
        }
        tracer.signal(Signal::SIGCONT);
        // A summary comes after all that was in the ring.
        tracer.signal(Signal::SIGUSR1);
        tracer.store.wait_summaries(others + 1).unwrap();
    }
    let end = tracer.interrupt();
    let sums = end.check();
    assert!(sums.lost > 0, "the ring was never full");
    let records = end.store.records(net::inode());
    // At least half of the ring, however many processors there are.
    assert!(records.len() > 12 * 100, "{} records", records.len());
    for Rec { value, .. } in records {
        let outcome = if value["dst"]["port"] == port {
            "reset_by_local"
        } else {
            "ok"
        };
        assert_eq!(value["outcome"], outcome, "{value}");
    }
}

/// `KMESH_TRACE_TEST_STARTS` says how often. One object that one of them leaves behind is enough to fail.
fn started_again_and_again() {
    let times = std::env::var("KMESH_TRACE_TEST_STARTS").map_or(20, |times| times.parse().unwrap());
    let mut left = Vec::new();
    for _ in 0..times {
        let tracer = Start::new(&["-o", "none"]).tracing();
        left.extend(bpf::objects_of(tracer.pid));
        let end = tracer.interrupt();
        assert!(end.status.success(), "{:?}", end.stderr);
    }
    assert!(left.len() > 10 * times, "{} objects in {times} runs", left.len());
    wait_until("the kernel has let go of all", || bpf::alive(&left).is_empty());
}

/// At each stage: with nothing in the kernel yet, and as each of its objects is there.
fn killed_while_starting() {
    let tracer = Start::new(&["-o", "none"]).tracing();
    let all = bpf::objects_of(tracer.pid).len();
    assert!(all > 10, "{all} objects");
    tracer.interrupt();
    let mut seen = Vec::new();
    for stage in 0..=all {
        let mut child = Command::new(binary())
            .args(["--no-resolve", "-o", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let mut objects = Vec::new();
        wait_until(&format!("{stage} of {all} objects are there"), || {
            objects = bpf::objects_of(pid);
            objects.len() >= stage
        });
        child.kill().unwrap();
        child.wait().unwrap();
        seen.extend(objects);
    }
    wait_until("the kernel has let go of all", || bpf::alive(&seen).is_empty());
}

/// With each limit it says what it lacks, or traces: from some limit on, always.
fn few_descriptors() {
    let mut traced = Vec::new();
    for limit in (4..=64_u64).step_by(4) {
        let mut command = Command::new(binary());
        command
            .args(["--no-resolve", "-o", "json", "--duration", "100ms"])
            .stdin(Stdio::null());
        // SAFETY: one system call, which may be made between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)) };
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => traced.push(limit),
            Some(1 | 3) => {
                assert!(traced.is_empty(), "{limit} is too little, but {traced:?} were enough");
                let wanted = said.contains("Too many open files") || said.contains("No file descriptors available");
                assert!(wanted && !said.contains("5.12"), "{limit}: {said}");
            }
            // The loader of programs of the C library, below what it needs itself.
            Some(127) if limit == 4 => {}
            other => panic!("{limit}: {other:?}: {said}"),
        }
    }
    let least = traced.first().copied().unwrap_or(u64::MAX);
    assert!(
        least > 4 && least <= 64,
        "it lacks nothing with {least} descriptors, the least that were enough"
    );
}

/// A cgroup that may hold so much memory, removed when dropped.
pub struct Limited(PathBuf);

impl Limited {
    /// Makes one.
    pub fn new(bytes: u64) -> Self {
        let folder = crate::support::probe::MEMORY_CGROUP.clone().unwrap();
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let folder = folder.join(format!("kmesh-trace-test-{process}-{number}"));
        fs::create_dir(&folder).unwrap();
        let limited = Self(folder);
        let limit = ["memory.max", "memory.limit_in_bytes"].map(|name| limited.0.join(name));
        let limit = limit.into_iter().find(|file| file.exists()).unwrap();
        fs::write(limit, bytes.to_string()).unwrap();
        limited
    }

    /// A command in it.
    pub fn command(&self, program: &Path) -> Command {
        let procs = self.0.join("cgroup.procs");
        let mut command = Command::new(program);
        // SAFETY: opens, writes and closes a file, which may be done between fork and exec.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        command
    }

    /// The most memory that it has had, bytes.
    pub fn most(&self) -> u64 {
        let peak = ["memory.peak", "memory.max_usage_in_bytes"].map(|name| self.0.join(name));
        let text = peak
            .iter()
            .find_map(|file| fs::read_to_string(file).ok())
            .unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // Processes that have ended leave it in the kernel's own time.
        let deadline = Instant::now() + crate::support::patience();
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// With twice what it takes it does all it is asked; with less than its buffer it says so.
fn memory_limit() {
    let enough = Limited::new(32 << 20);
    let binary = PathBuf::from(binary());
    let listener = listen(V::Four);
    // What is kept of the connections to a listener counts, unless its port is none of the filter's.
    let port = listener.local_addr().unwrap().port().to_string();
    let args = [
        "-o",
        "json",
        "--events",
        "open,update,close",
        "--interval",
        "1s",
        "--port",
        &port,
    ];
    let tracer = Start::with(enough.command(&binary), &args).tracing();
    traffic_through(&listener, 5_000);
    let end = tracer.interrupt();
    let sums = end.check_whole();
    assert!(sums.delivered >= 10_000, "{sums:?}");
    let most = enough.most();
    assert!(most <= 32 << 20, "{most}");

    let little = Limited::new(24 << 20);
    let output = little
        .command(&binary)
        .args(["--no-resolve", "-o", "none", "--buffer", "64Mi", "--duration", "1s"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("memory") && said.contains("--buffer"), "{said}");
}
