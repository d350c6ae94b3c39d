//! The kernel suite: real sockets in network namespaces of their own, of which each test knows the truth itself (what it
//! wrote and read, what its calls returned, its ports and its pid), against the records of the real tool.
//!
//! Needs root. What cannot run here is found out beforehand, shown as skipped with the reason, and counted.
//! `KMESH_TRACE_BIN` names another binary to test, `KMESH_TRACE_TEST_SMALL=1` is for small virtual machines, and
//! `KMESH_TRACE_TEST_SMOKE=1` selects one scenario of each topic.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the counts are for the terminal"
)]

#[path = "../support/mod.rs"]
mod support;

mod before;
mod bounds;
mod bytes;
mod captures;
mod closing;
mod events;
mod failing;
mod faults;
mod filters;
mod killed;
mod lifecycle;
mod lives;
mod many;
mod metrics;
mod names;
mod namespaces;
mod privileges;
mod process;
mod rollups;
mod signals;
mod special;
mod tenants;
mod terminal;
mod unheld;

use std::any::Any;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use serde_json::Value;
use support::expect::Scene;
use support::probe::{self, Need};
use support::sock::V;
use support::tracer::{self, Start, Tracer};
use support::{actor, bpf, net};

/// One scenario of each topic: each takes seconds on an emulated processor, and together they use most of the programs' code.
const SMOKE: &[&str] = &[
    "before::open_ipv4",
    "bounds::directory_at_rotated_name_does_not_end_tracing",
    "bytes::up_only_ipv6",
    "captures::all_events_and_summaries_on_demand",
    "closing::client_first_ipv4",
    "events::open_then_close_ipv6",
    "failing::refused_by_reset_ipv4",
    "faults::few_descriptors",
    "filters::a_listener_that_connects",
    "killed::client_ipv4",
    "lifecycle::log_lines",
    "lives::random_lives",
    "many::places_are_given_back",
    "metrics::equal_what_was_moved",
    "names::filters_by_pod_and_container",
    "namespaces::time_namespace",
    "privileges::the_rest_is_given_up",
    "process::two_processes_ipv4",
    "rollups::still_connecting",
    "signals::interrupt",
    "special::to_itself_ipv6",
    "tenants::transparent_socket_does_not_take_an_address",
    "terminal::quitting_restores_the_screen",
    "unheld::never_accepted_ipv4",
];

/// One trial.
pub struct Scenario {
    name: String,
    needs: &'static [Need],
    run: Box<dyn FnOnce() + Send>,
}

/// The trials of one module.
pub struct Table {
    topic: &'static str,
    rows: Vec<Scenario>,
}

impl Table {
    /// An empty one.
    pub fn new(topic: &'static str) -> Self {
        Self {
            topic,
            rows: Vec::new(),
        }
    }

    /// A scenario with a tracer of its own, or none.
    pub fn own(mut self, name: &str, needs: &'static [Need], run: fn()) -> Self {
        self.rows.push(Scenario {
            name: format!("{}::{name}", self.topic),
            needs,
            run: Box::new(run),
        });
        self
    }

    /// A scenario that looks at its namespace through the shared tracer.
    pub fn shared(mut self, name: &str, needs: &'static [Need], run: fn(&Scene)) -> Self {
        let run = Box::new(move || run(&Scene::of_new_namespace(&shared().store)));
        self.rows.push(Scenario {
            name: format!("{}::{name}", self.topic),
            needs,
            run,
        });
        self
    }

    /// The same for IPv4 and IPv6.
    pub fn both(mut self, name: &str, needs: &'static [Need], run: fn(&Scene, V)) -> Self {
        for v in [V::Four, V::Six] {
            let run = Box::new(move || run(&Scene::of_new_namespace(&shared().store), v));
            self.rows.push(Scenario {
                name: format!("{}::{name}_{}", self.topic, v.name()),
                needs,
                run,
            });
        }
        self
    }

    /// All scenarios, or the one of them that is in [`SMOKE`].
    fn selected(mut self) -> Vec<Scenario> {
        if support::is_set("KMESH_TRACE_TEST_SMOKE") {
            self.rows.retain(|scenario| SMOKE.contains(&scenario.name.as_str()));
            assert_eq!(self.rows.len(), 1, "scenarios of {} in SMOKE", self.topic);
        }
        self.rows
    }
}

static SHARED: OnceLock<Tracer> = OnceLock::new();

/// The one tracer that most scenarios look through, as a node's tracer would see them: all at once. Started at first use.
pub fn shared() -> &'static Tracer {
    SHARED.get_or_init(|| {
        let (capture, lines) = kept();
        // Of an earlier run.
        _ = fs::remove_file(&capture);
        let capture = capture.to_str().expect("a path of this repository");
        // What all scenarios and the rest of the machine do at once has room, however late the tracer has its turn. A capture has
        // opens and updates, too.
        let buffer = if support::small() { "64MiB" } else { "256MiB" };
        Start::of_all(&["-o", "json", "--buffer", buffer, "--write", capture])
            .copy(File::create(lines).expect("a file for the lines"))
            .tracing()
    })
}

/// Where the shared tracer's capture is, and its lines as they came.
fn kept() -> (PathBuf, PathBuf) {
    let folder = support::scratch();
    (folder.join("shared.jsonl.zst"), folder.join("shared.jsonl"))
}

/// What the capture tells is what the live trace told, to the byte.
fn check_replay() {
    let (capture, lines) = kept();
    let live = fs::read(lines).expect("the lines as they came");
    let replay = Command::new(tracer::binary())
        .args([OsStr::new("--read"), capture.as_os_str()])
        .args(["-o", "json"])
        .output()
        .expect("replay the capture");
    let said = String::from_utf8_lossy(&replay.stderr);
    assert!(replay.status.success() && said.is_empty(), "{}: {said}", replay.status);
    let differs = replay.stdout.iter().zip(&live).position(|(told, live)| told != live);
    assert_eq!(differs, None, "the replay differs at this byte");
    assert_eq!(replay.stdout.len(), live.len(), "the replay is as long");
    let bytes = fs::metadata(&capture).expect("the capture").len();
    println!("shared tracer: {} bytes of JSON, {bytes} as a capture", live.len());
}

/// Held for writing by scenarios that run alone, for reading by all others.
static MACHINE: RwLock<()> = RwLock::new(());

/// How long each scenario took.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

fn trial((number, scenario): (u32, Scenario)) -> Trial {
    let Scenario { name, needs, run } = scenario;
    match probe::missing(needs) {
        Err(why) => {
            let kind = format!("skipped: {}", why.lines().next().unwrap_or_default());
            Trial::test(name, move || Err(Failed::from(why)))
                .with_kind(kind)
                .with_ignored_flag(true)
        }
        Ok(()) => Trial::test(name.clone(), move || {
            let alone = needs
                .contains(&Need::Alone)
                .then(|| MACHINE.write().unwrap_or_else(PoisonError::into_inner));
            let among = alone
                .is_none()
                .then(|| MACHINE.read().unwrap_or_else(PoisonError::into_inner));
            let began = Instant::now();
            let claimed = || {
                net::claim_addresses(number);
                net::add_to_loopback(net::loopback_v6());
                run();
            };
            let result = net::in_namespace(&name, claimed).map_err(|panic| Failed::from(message(&*panic)));
            drop((alone, among));
            let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
            times.push((began.elapsed(), name));
            result
        }),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without text").to_owned()
}

/// Ends the shared tracer and adds it up. None when no scenario used it.
fn last_check() -> Option<Result<(), String>> {
    let tracer = SHARED.get()?;
    let run = || {
        println!(
            "shared tracer: runs that the kernel skipped, by program: {:?}",
            bpf::skipped_runs(tracer.pid)
        );
        tracer.signal(nix::sys::signal::Signal::SIGINT);
        let end = tracer.wait();
        let sums = end.check();
        println!("shared tracer: {sums:?}");
        // One scenario makes connections that cannot be stored, for this tracer as for its own. No other may be lost.
        let without_storage = bounds::WITHOUT_STORAGE.load(Ordering::Relaxed);
        let lost = end.store.lost();
        let is_expected = |line: &Value| line["reason"] == "no_socket_storage";
        assert!(lost.iter().all(is_expected), "{lost:?}");
        assert!(
            sums.lost <= without_storage,
            "{} lost, {without_storage} without storage",
            sums.lost
        );
        check_replay();
    };
    Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).map_err(|panic| message(&*panic)))
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
    // The scenarios mostly wait for the kernel's timers, not for a processor.
    arguments.test_threads.get_or_insert(8);
    std::panic::set_hook(Box::new(|info| {
        // At once: what libtest-mimic tells at the end is lost with a machine that is ended before.
        if let Some(at) = info.location() {
            let why = message(info.payload());
            eprintln!(
                "{}: failed at {at}: {}",
                std::thread::current().name().unwrap_or("a thread"),
                why.lines().next().unwrap_or_default()
            );
        }
    }));
    let tables = [
        // First, since one of them waits for a minute.
        faults::table(),
        closing::table(),
        failing::table(),
        killed::table(),
        bytes::table(),
        captures::table(),
        process::table(),
        special::table(),
        before::table(),
        bounds::table(),
        events::table(),
        filters::table(),
        many::table(),
        metrics::table(),
        privileges::table(),
        rollups::table(),
        terminal::table(),
        unheld::table(),
        names::table(),
        namespaces::table(),
        tenants::table(),
        lives::table(),
        lifecycle::table(),
        signals::table(),
    ];
    let mut scenarios: Vec<_> = tables.into_iter().flat_map(Table::selected).collect();
    // Those that run alone come last: each of them waits until no other runs, and meanwhile no other begins.
    scenarios.sort_by_key(|scenario| scenario.needs.contains(&Need::Alone));
    let trials = (0..).zip(scenarios).map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if arguments.list {
        return ExitCode::SUCCESS;
    }
    print_slowest();
    conclude(&conclusion)
}

fn print_slowest() {
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort_by(|one, other| other.cmp(one));
    for (time, name) in times.iter().take(10) {
        println!("{:6.1} s  {name}", time.as_secs_f64());
    }
}

fn conclude(conclusion: &Conclusion) -> ExitCode {
    let (mut passed, mut failed) = (conclusion.num_passed, conclusion.num_failed);
    match last_check() {
        None => {}
        Some(Ok(())) => {
            println!("the shared tracer's stream, sum and replay, over all scenarios ... ok");
            passed += 1;
        }
        Some(Err(why)) => {
            println!("the shared tracer's stream, sum and replay, over all scenarios ... FAILED\n{why}");
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
