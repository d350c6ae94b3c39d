//! Random lives: each life makes a random sequence of calls on a few sockets. A model of TCP predicts the record of
//! each end from the calls and from the captured packets, without the tool, and the test compares the records with the
//! prediction.
//!
//! All random choices of a life follow from the seed `KMESH_TRACE_LIVES_SEED` and from the life's number.
//! `KMESH_TRACE_LIVES` sets the number of lives, and `KMESH_TRACE_LIVES_FIRST` the number of the first life. With these
//! three, a life that failed runs again alone.

mod beginnings;
mod call;
mod capture;
mod compare;
mod endpoint;
mod exchange;
mod failures;
mod flow;
mod life;
mod model;
mod state;
mod tracer;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fmt::Write as _;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::capture::Packet;
use self::compare::compare;
use self::failures::{Failures, kind_of};
use self::life::{Life, first_port};
use self::model::{Prediction, predict};
use self::tracer::{FilteredTracer, port_block};
use self::world::{Side, World};
use crate::support::actor::Actor;
use crate::support::probe::Need;
use crate::support::random::Random;
use crate::support::{is_small_vm, panic_message, test_timeout};
use crate::{Topic, untraced_changes};

pub fn topic() -> Topic {
    Topic::new("lives").standalone("random_lives", &[Need::Nft, Need::Veth], random_lives)
}

const DEFAULT_LIVES: u64 = 100;
const SMALL_VM_LIVES: u64 = 20;
const DEFAULT_SEED: u64 = 20_260_102;
/// The number of lives whose packets and records are in memory at the same time.
const BATCH: u64 = 200;
/// The number of concurrent lives. They mostly wait for timers.
const WORKERS: usize = 16;

/// A life after all of its sockets were closed.
struct FinishedLife {
    number: u64,
    beginning: &'static str,
    /// The log of its calls.
    calls: String,
    packets: Vec<Packet>,
    prediction: Prediction,
}

impl FinishedLife {
    /// Returns the calls, the packets, the prediction and the records.
    fn describe(&self, records: &[&Value]) -> String {
        let mut text = format!("{} ({})\npackets:\n", self.calls, self.beginning);
        for packet in &self.packets {
            let _ = writeln!(text, "    {packet}");
        }
        for expected in &self.prediction.records {
            let _ = writeln!(text, "expected: {expected:?}");
        }
        for record in records {
            let _ = writeln!(text, "record: {record}");
        }
        text
    }

    /// Returns a record's text with the life that it belongs to.
    fn describe_record(&self, record: &str) -> String {
        format!("life {} ({}): {record}", self.number, self.beginning)
    }
}

/// Returns the number in an environment variable.
fn env_number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is not a number: {text}")),
    )
}

fn random_lives() {
    let default = if is_small_vm() { SMALL_VM_LIVES } else { DEFAULT_LIVES };
    let lives = env_number("KMESH_TRACE_LIVES").unwrap_or(default);
    let seed = env_number("KMESH_TRACE_LIVES_SEED").unwrap_or(DEFAULT_SEED);
    let first = env_number("KMESH_TRACE_LIVES_FIRST").unwrap_or(0);
    let world = World::new();
    // The helpers start before there are sockets: a new process shares all descriptors until it executes its program.
    let helpers: Vec<Actor> = (0..WORKERS).map(|_| Actor::start()).collect();
    let tracers = FilteredTracer::start_all();
    let mut failures = Failures::default();
    let (mut records, mut undecided, mut beginnings) = (0, BTreeMap::new(), BTreeMap::new());
    let started = Instant::now();
    let (mut from, mut untraced, mut not_compared) = (first, 0, 0);
    while from < first + lives {
        let to = (from + BATCH).min(first + lives);
        let untraced_before = untraced_changes().len();
        for tracer in &tracers {
            tracer.watch(&world);
        }
        let mut batch = run_batch(&world, &helpers, seed, from..to, &mut failures);
        let changes = untraced_changes().split_off(untraced_before);
        untraced += changes.len() as u64;
        let untraced_lives: BTreeSet<u16> = changes.iter().filter_map(|change| life_of_change(change)).collect();
        batch.retain(|life| !untraced_lives.contains(&first_port(life.number)));
        not_compared += untraced_lives.len();
        for life in &batch {
            *beginnings.entry(life.beginning).or_insert(0) += 1;
            for contradiction in &life.prediction.contradictions {
                let kind = format!("MODEL, {}: {}", life.beginning, kind_of(contradiction));
                failures.add(kind, life.number, || (contradiction.clone(), life.describe(&[])));
            }
            for expected in &life.prediction.records {
                records += 1;
                for field in &expected.undecided {
                    *undecided.entry(*field).or_insert(0) += 1;
                }
            }
        }
        for tracer in &tracers {
            compare_batch(&world, tracer, &batch, &untraced_lives, &mut failures);
        }
        from = to;
    }
    assert_eq!(world.capture.dropped(), 0, "the capture dropped packets");
    for tracer in tracers {
        tracer.stop(untraced, &mut failures);
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{lives} lives of seed {seed} in {seconds:.1} s, {records} records: {beginnings:?}");
    println!("1 part skipped: queues that delay packets (netem), because lost and retransmitted packets come late");
    println!("{not_compared} lives not compared: the kernel ran no BPF program at {untraced} changes of state");
    for (field, count) in undecided {
        println!("undecided in {count} records: {field}");
    }
    failures.check(seed);
}

/// Returns the first port of the life whose socket changed its state, from the kernel's line about the change.
fn life_of_change(line: &str) -> Option<u16> {
    let port = |name: &str| line.split_once(name)?.1.split(' ').next()?.parse().ok();
    [" sport=", " dport="]
        .into_iter()
        .find_map(|name| port(name).and_then(port_block))
}

/// Compares the records of a batch with the predictions. `untraced_lives`: the first ports of further lives, whose
/// records do not count.
fn compare_batch(
    world: &World,
    tracer: &FilteredTracer,
    batch: &[FinishedLife],
    untraced_lives: &BTreeSet<u16>,
    failures: &mut Failures,
) {
    let mut records = tracer.records_by_life(world);
    records.retain(|first_port, _| !untraced_lives.contains(first_port));
    let first_life = batch.first().map_or(0, |life| life.number);
    for life in batch {
        let records = records.remove(&first_port(life.number)).unwrap_or_default();
        compare(tracer, life, &records, failures);
    }
    for (_, record) in records.into_values().flatten() {
        let kind = format!("a record of no life [{}]", tracer.name);
        failures.add(kind, first_life, || (record.value.to_string(), String::new()));
    }
}

/// Runs these lives, several at a time, and waits until all of their sockets are closed.
fn run_batch(
    world: &World,
    helpers: &[Actor],
    seed: u64,
    lives: Range<u64>,
    failures: &mut Failures,
) -> Vec<FinishedLife> {
    let next = AtomicU64::new(lives.start);
    let finished = Mutex::new(Vec::new());
    let panicked = Mutex::new(Vec::new());
    let is_done = AtomicBool::new(false);
    let run_lives = |helper| {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= lives.end {
                return;
            }
            let (beginning, life, failure) = run_life(world, helper, seed, number);
            panicked.lock().unwrap_or_else(PoisonError::into_inner).extend(failure);
            let mut finished = finished.lock().unwrap_or_else(PoisonError::into_inner);
            finished.push((beginning, life));
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = helpers.iter().map(|helper| scope.spawn(|| run_lives(helper))).collect();
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                world.capture.read();
                thread::sleep(Duration::from_millis(10));
            }
        });
        let results: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_done.store(true, Ordering::Relaxed);
        for result in results {
            result.expect("a worker");
        }
    });
    for side in [Side::Near, Side::Far] {
        world.run_in(side, wait_sockets_closed);
    }
    for (number, kind, description) in panicked.into_inner().unwrap_or_else(PoisonError::into_inner) {
        failures.add(kind, number, || (String::new(), description));
    }
    let mut packets = packets_by_life(world);
    let finished = finished.into_inner().unwrap_or_else(PoisonError::into_inner);
    finished
        .into_iter()
        .map(|(beginning, life)| {
            let packets = packets.remove(&first_port(life.number)).unwrap_or_default();
            FinishedLife {
                number: life.number,
                beginning,
                calls: life.call_log(),
                prediction: predict(&life, &packets),
                packets,
            }
        })
        .collect()
}

/// Runs a life. Returns the name of its beginning, the life, and its failure if it panicked: its number, the kind and
/// the description.
fn run_life<'a>(
    world: &'a World,
    helper: &'a Actor,
    seed: u64,
    number: u64,
) -> (&'static str, Life<'a>, Option<(u64, String, String)>) {
    let mut random = Random::of_part(seed, number);
    let (is_ipv6, is_mapped) = *random.pick(&[(false, false), (false, false), (true, false), (false, true)]);
    let (beginning, run) = beginnings::random_beginning(&mut random);
    let mut life = Life::new(number, world, helper, is_ipv6, is_mapped);
    let result = catch_unwind(AssertUnwindSafe(|| run(&mut life, &mut random)));
    let failure = result.err().map(|panic| {
        let message = panic_message(&*panic);
        let kind = kind_of(message.lines().next().unwrap_or_default());
        let description = format!("{message}\n{}", life.call_log());
        (number, format!("LIFE, {beginning}: {kind}"), description)
    });
    life.close_all();
    (beginning, life, failure)
}

/// Takes the captured packets, and groups them by the first port of their life. A batch has fewer lives than there are
/// port blocks, so a block belongs to one life.
fn packets_by_life(world: &World) -> BTreeMap<u16, Vec<Packet>> {
    let mut lives = BTreeMap::<u16, Vec<Packet>>::new();
    for packet in world.capture.take() {
        let ports = [packet.from.port(), packet.to.port()];
        if let Some(block) = ports.into_iter().find_map(port_block) {
            lives.entry(block).or_default().push(packet);
        }
    }
    lives
}

/// Waits until the calling thread's namespace has no TCP sockets other than listeners and time-wait sockets.
fn wait_sockets_closed() {
    let started = Instant::now();
    while has_open_sockets() {
        assert!(started.elapsed() < test_timeout(), "some sockets do not close");
        // The kernel takes long to list all sockets.
        thread::sleep(Duration::from_millis(20));
    }
}

fn has_open_sockets() -> bool {
    const LISTEN: &str = "0A";
    const TIME_WAIT_TIMER: &str = "03:";
    ["tcp", "tcp6"].iter().any(|file| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the namespace's sockets");
        text.lines().skip(1).any(|line| {
            // The fields: number, local address, remote address, state, queues, timer. A time-wait socket can be in
            // FIN_WAIT2, but has the time-wait timer.
            let fields: Vec<&str> = line.split_whitespace().take(6).collect();
            fields[3] != LISTEN && !fields[5].starts_with(TIME_WAIT_TIMER)
        })
    })
}
