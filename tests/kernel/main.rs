//! The kernel suite: real sockets in network namespaces, compared with the records of the real tool. Each test knows
//! the truth from its own system calls: what it wrote and read, what its calls returned, its ports and its pid.
//!
//! Needs root. A scenario that cannot run on this machine shows as skipped with the reason, and is counted.
//! `KMESH_TRACE_BIN` names another binary to test, `KMESH_TRACE_TEST_SMALL=1` is for small virtual machines, and
//! `KMESH_TRACE_TEST_SMOKE=1` selects one scenario of each topic. `KMESH_TRACE_TEST_TWICE=1` runs each scenario twice,
//! as the suite does if the kernel ran no BPF program ([`untraced`]).
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the suite reports its results on the terminal"
)]

#[path = "../support/mod.rs"]
mod support;

mod byte_counts;
mod captures;
mod closing;
mod command_line;
mod edge_cases;
mod events;
mod explain;
mod failures;
mod faults;
mod filters;
mod incidents;
mod joins;
mod lifecycle;
mod lives;
mod metrics;
mod names;
mod namespaces;
mod preexisting;
mod privileges;
mod process;
mod reasons;
mod rollups;
mod security;
mod signals;
mod socket_destroy;
mod stress;
mod tenants;
mod terminal;
mod turns;
mod untraced;
mod without_process;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use serde_json::Value;
use support::probe::{self, Need};
use support::record_view::RecordView;
use support::sock::IpVersion;
use support::tracer::{self, Tracer, TracerCommand};
use support::{actor, bpf, net, panic_message};
use untraced::UntracedChanges;

/// One scenario of each topic. Each takes seconds on an emulated CPU, and together they run most of the programs' code.
const SMOKE: &[&str] = &[
    "byte_counts::client_sends_ipv6",
    "captures::replay_equals_live_output",
    "closing::client_closes_first_ipv4",
    "command_line::short_lines_show_both_ends_and_failures",
    "edge_cases::self_connect_is_one_record_ipv6",
    "events::open_matches_close_ipv6",
    "explain::refused_attempts_are_found",
    "failures::connect_refused_by_rst_ipv4",
    "faults::full_ring_loses_whole_records",
    "filters::listener_that_connects_is_filtered_by_peer_port",
    "incidents::closed_port",
    "joins::reused_ports_join_right",
    "lifecycle::log_lines_are_complete_and_escaped",
    "lives::random_lives",
    "metrics::counters_equal_traffic",
    "names::pods_and_services_behind_translations",
    "namespaces::time_namespace_does_not_shift_times",
    "preexisting::open_connection_ipv4",
    "privileges::unneeded_capabilities_are_dropped",
    "process::each_end_names_its_process_ipv4",
    "reasons::drops_equal_the_counter_of_output_ipv4",
    "rollups::connecting_counts_as_connecting",
    "security::name_files_are_parsed_with_few_capabilities",
    "signals::interrupt_prints_all_records",
    "socket_destroy::client_ipv4",
    "stress::client_slots_are_reused",
    "tenants::transparent_socket_does_not_take_an_address",
    "terminal::closed_terminal_ends_the_tool",
    "turns::server_that_thinks_5_ms_ipv4",
    "without_process::never_accepted_ipv4",
];

/// A test of the suite.
pub struct Scenario {
    name: String,
    needs: &'static [Need],
    run: Box<dyn Fn() + Send + Sync>,
}

/// The scenarios of one module.
pub struct Topic {
    name: &'static str,
    scenarios: Vec<Scenario>,
}

impl Topic {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            scenarios: Vec::new(),
        }
    }

    /// Adds a scenario that starts its own tracers.
    pub fn standalone(self, name: &str, needs: &'static [Need], run: fn()) -> Self {
        self.add(name, needs, run)
    }

    /// Adds a scenario for each IP version that starts its own tracers.
    pub fn standalone_both_versions(self, name: &str, needs: &'static [Need], run: fn(IpVersion)) -> Self {
        let versions = [IpVersion::V4, IpVersion::V6];
        versions.into_iter().fold(self, |topic, version| {
            topic.add(&format!("{name}_{}", version.name()), needs, move || run(version))
        })
    }

    /// Adds a scenario that views its namespace through the shared tracer.
    pub fn shared(self, name: &str, needs: &'static [Need], run: fn(&RecordView)) -> Self {
        self.add(name, needs, move || {
            run(&RecordView::of_new_namespace(&shared_tracer().output));
        })
    }

    /// Adds a scenario for each IP version that views its namespace through the shared tracer.
    pub fn both_versions(self, name: &str, needs: &'static [Need], run: fn(&RecordView, IpVersion)) -> Self {
        let versions = [IpVersion::V4, IpVersion::V6];
        versions.into_iter().fold(self, |topic, version| {
            topic.add(&format!("{name}_{}", version.name()), needs, move || {
                run(&RecordView::of_new_namespace(&shared_tracer().output), version);
            })
        })
    }

    fn add(mut self, name: &str, needs: &'static [Need], run: impl Fn() + Send + Sync + 'static) -> Self {
        self.scenarios.push(Scenario {
            name: format!("{}::{name}", self.name),
            needs,
            run: Box::new(run),
        });
        self
    }

    /// Returns all scenarios, or only the one in [`SMOKE`].
    fn selected(mut self) -> Vec<Scenario> {
        if support::is_set("KMESH_TRACE_TEST_SMOKE") {
            self.scenarios
                .retain(|scenario| SMOKE.contains(&scenario.name.as_str()));
            assert_eq!(self.scenarios.len(), 1, "scenarios of {} in SMOKE", self.name);
        }
        self.scenarios
    }
}

/// The topics in the order in which they run.
fn topics() -> impl Iterator<Item = Topic> {
    [
        // First, since one of them waits for a minute.
        faults::topic(),
        closing::topic(),
        command_line::topic(),
        failures::topic(),
        socket_destroy::topic(),
        byte_counts::topic(),
        captures::topic(),
        process::topic(),
        reasons::topic(),
        edge_cases::topic(),
        preexisting::topic(),
        security::topic(),
        events::topic(),
        explain::topic(),
        filters::topic(),
        incidents::topic(),
        stress::topic(),
        metrics::topic(),
        privileges::topic(),
        rollups::topic(),
        terminal::topic(),
        turns::topic(),
        without_process::topic(),
        names::topic(),
        joins::topic(),
        namespaces::topic(),
        tenants::topic(),
        lives::topic(),
        lifecycle::topic(),
        signals::topic(),
    ]
    .into_iter()
}

static SHARED_TRACER: OnceLock<Tracer> = OnceLock::new();

/// Returns the tracer that most scenarios share, as all workloads of a node share one. Starts it at its first use.
pub fn shared_tracer() -> &'static Tracer {
    SHARED_TRACER.get_or_init(|| {
        let (capture, lines) = shared_files();
        // An earlier run may have left it.
        _ = fs::remove_file(&capture);
        let capture = capture.to_str().expect("a path in UTF-8");
        // Large enough for everything that happens on the machine while the tracer does not get a processor. With a
        // capture the kernel also reports opens and updates.
        TracerCommand::for_all_connections(&["-o", "json", "--buffer", support::large_buffer(), "--write", capture])
            .copy_to(File::create(lines).expect("a file for the lines"))
            .start()
    })
}

/// Returns the paths of the shared tracer's capture and of its standard output.
fn shared_files() -> (PathBuf, PathBuf) {
    let folder = support::scratch_dir();
    (folder.join("shared.jsonl.zst"), folder.join("shared.jsonl"))
}

/// Checks that a replay of the shared tracer's capture prints the same bytes as the live trace.
fn check_replay() {
    let (capture, lines) = shared_files();
    let live = File::open(&lines).expect("the tracer's standard output");
    let mut replay = Command::new(tracer::binary())
        .args([OsStr::new("--read"), capture.as_os_str()])
        .args(["-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("replay the capture");
    // Both are larger than half the memory of a VM.
    let replayed = BufReader::new(replay.stdout.take().expect("a pipe"));
    let difference = first_difference(replayed, BufReader::new(live)).expect("read both");
    let replay = replay.wait_with_output().expect("the end of the replay");
    let stderr = String::from_utf8_lossy(&replay.stderr);
    assert!(
        replay.status.success() && stderr.is_empty(),
        "{}: {stderr}",
        replay.status
    );
    assert_eq!(difference, None, "the replay differs at this byte");
    let [live, bytes] = [lines, capture].map(|file| fs::metadata(file).expect("a file").len());
    println!("shared tracer: {live} bytes of JSON, {bytes} as a capture");
}

/// Returns the position of the first byte in which two streams differ. One of them may end there.
fn first_difference(mut one: impl BufRead, mut other: impl BufRead) -> io::Result<Option<usize>> {
    let mut position = 0;
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        if let Some(at) = left.iter().zip(right).position(|(left, right)| left != right) {
            return Ok(Some(position + at));
        }
        let length = left.len().min(right.len());
        if length == 0 {
            return Ok((left.len() != right.len()).then_some(position));
        }
        one.consume(length);
        other.consume(length);
        position += length;
    }
}

/// An exclusive scenario holds it for writing, each other scenario for reading.
static MACHINE: RwLock<()> = RwLock::new(());

/// The duration of each scenario that has ended.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// The scenarios that run, and when each began.
static RUNNING: Mutex<Vec<(Instant, String)>> = Mutex::new(Vec::new());

/// The scenarios that ran twice, because they failed while the kernel ran no BPF program at a change of state.
static REPEATED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// `None` if the kernel has no trace buffer. Then a scenario fails if the kernel runs no BPF program.
static UNTRACED: Mutex<Option<UntracedChanges>> = Mutex::new(None);

/// Returns the changes of state until now at which the kernel ran no BPF program.
fn untraced_changes() -> Vec<String> {
    lock(&UNTRACED).as_mut().map_or_else(Vec::new, UntracedChanges::lines)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the suite as failed if a scenario runs for longer than any should. Many scenarios wait as long as the tracer
/// prints lines, so a condition that no line meets would let them wait forever.
fn watch_running_scenarios() {
    let limit = 10 * support::test_timeout();
    loop {
        thread::sleep(Duration::from_secs(10));
        let running = lock(&RUNNING);
        if let Some((_, name)) = running.iter().find(|(start, _)| start.elapsed() > limit) {
            println!("{name} ... FAILED: it has not ended after {limit:?}");
            println!("0 passed, 1 failed, 0 skipped");
            std::process::exit(1);
        }
    }
}

fn trial((number, scenario): (u32, Scenario)) -> Trial {
    let Scenario { name, needs, run } = scenario;
    match probe::check(needs) {
        Err(why) => {
            let kind = format!("skipped: {}", why.lines().next().unwrap_or_default());
            Trial::test(name, move || Err(Failed::from(why)))
                .with_kind(kind)
                .with_ignored_flag(true)
        }
        Ok(()) => Trial::test(name.clone(), move || {
            let is_exclusive = needs.contains(&Need::Exclusive);
            let exclusive = is_exclusive.then(|| MACHINE.write().unwrap_or_else(PoisonError::into_inner));
            let shared = (!is_exclusive).then(|| MACHINE.read().unwrap_or_else(PoisonError::into_inner));
            let start = Instant::now();
            lock(&RUNNING).push((start, name.clone()));
            let run_in_namespace = || {
                let run_with_addresses = || {
                    net::claim_addresses(number);
                    net::add_to_loopback(net::loopback_v6());
                    run();
                };
                net::in_namespace(&name, run_with_addresses).map_err(|panic| Failed::from(panic_message(&*panic)))
            };
            let untraced_before = untraced_changes().len();
            let mut result = run_in_namespace();
            let untraced = untraced_changes().split_off(untraced_before);
            if let Err(failed) = &result
                && !untraced.is_empty()
            {
                let why = failed.message().unwrap_or_default();
                println!("{name}: repeated, because the kernel ran no BPF program at {untraced:#?}: {why}");
                lock(&REPEATED).push(name.clone());
                result = run_in_namespace();
            } else if support::is_set("KMESH_TRACE_TEST_TWICE") {
                result = result.and_then(|()| run_in_namespace());
            }
            drop((exclusive, shared));
            lock(&RUNNING).retain(|(_, running)| *running != name);
            lock(&TIMES).push((start.elapsed(), name));
            result
        }),
    }
}

/// Stops the shared tracer, and checks its summary and its capture. None if no scenario used it.
fn check_shared_tracer() -> Option<Result<(), String>> {
    let tracer = SHARED_TRACER.get()?;
    let run = || {
        println!(
            "shared tracer: runs that the kernel skipped, by program: {:?}",
            bpf::skipped_runs(tracer.pid)
        );
        let exit = tracer.interrupt();
        let totals = exit.check();
        println!("shared tracer: {totals:?}");
        // One scenario makes connections that no tracer can store. No other connection may be lost.
        let without_storage = security::WITHOUT_STORAGE.load(Ordering::Relaxed);
        let lost = exit.output.lost_lines();
        let is_expected = |line: &Value| line["reason"] == "no_socket_storage";
        assert!(lost.iter().all(is_expected), "{lost:?}");
        assert!(
            totals.lost <= without_storage,
            "{} lost, {without_storage} without storage",
            totals.lost
        );
        check_replay();
    };
    Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|panic| panic_message(&*panic)))
}

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(actor::ARGUMENT) => return actor::main().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
        Some(terminal::ARGUMENT) => terminal::panics_at_the_screen(),
        Some(filters::ARGUMENT) => {
            filters::main(&std::env::args().nth(2).unwrap_or_default());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // Most scenarios wait for the kernel's timers, not for a processor.
    arguments.test_threads.get_or_insert(8);
    std::panic::set_hook(Box::new(|info| {
        // Immediately: libtest-mimic reports failures at the end, which is too late if the virtual machine stops
        // before.
        if let Some(at) = info.location() {
            let why = panic_message(info.payload());
            eprintln!(
                "{}: failed at {at}: {}",
                std::thread::current().name().unwrap_or("a thread"),
                why.lines().next().unwrap_or_default()
            );
        }
    }));
    let mut scenarios: Vec<_> = topics().flat_map(Topic::selected).collect();
    // Exclusive scenarios run last: each waits until no other runs, and meanwhile no other starts.
    scenarios.sort_by_key(|scenario| scenario.needs.contains(&Need::Exclusive));
    let trials = (0..).zip(scenarios).map(trial).collect();
    if !arguments.list {
        thread::spawn(watch_running_scenarios);
        match UntracedChanges::record() {
            Ok(changes) => *lock(&UNTRACED) = Some(changes),
            Err(error) => println!("no record of untraced state changes: {error}"),
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    println!(
        "state changes at which the kernel ran no BPF program: {:#?}; scenarios repeated for them: {:?}",
        untraced_changes(),
        lock(&REPEATED)
    );
    drop(lock(&UNTRACED).take());
    print_slowest();
    conclude(&conclusion)
}

fn print_slowest() {
    let mut times = lock(&TIMES);
    times.sort_by(|one, other| other.cmp(one));
    for (time, name) in times.iter().take(10) {
        println!("{:6.1} s  {name}", time.as_secs_f64());
    }
}

fn conclude(conclusion: &Conclusion) -> ExitCode {
    const CHECK: &str = "the shared tracer's stream, summary and replay, over all scenarios";
    let (mut passed, mut failed) = (conclusion.num_passed, conclusion.num_failed);
    match check_shared_tracer() {
        None => {}
        Some(Ok(())) => {
            println!("{CHECK} ... ok");
            passed += 1;
        }
        Some(Err(why)) => {
            println!("{CHECK} ... FAILED\n{why}");
            failed += 1;
        }
    }
    println!("{passed} passed, {failed} failed, {} skipped", conclusion.num_ignored);
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
