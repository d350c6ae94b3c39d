//! Random lives of sockets. Truth comes from the calls of each life and from a capture of its packets, never from the tool: a
//! model of TCP follows both and says what the record of each end must be.
//!
//! `KMESH_TRACE_LIVES` is the number of lives, `KMESH_TRACE_LIVES_SEED` what all random choices follow from, and
//! `KMESH_TRACE_LIVES_FIRST` the number of the first life: with these three a failure's life runs again, alone.

mod capture;
mod grammar;
mod model;
mod run;
mod world;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::capture::Packet;
use self::model::{Expected, Truth, follow};
use self::run::{Life, PORTS, first_port};
use self::world::{Side, World, networks};
use crate::Topic;
use crate::support::actor::Actor;
use crate::support::bpf;
use crate::support::expect::parse_time;
use crate::support::output::{ReceivedRecord, TracerOutput};
use crate::support::probe::Need;
use crate::support::random::Random;
use crate::support::sock::IpVersion;
use crate::support::tracer::{Tracer, TracerCommand};
use crate::support::{is_small_vm, panic_message, test_timeout};

/// The trials.
pub fn topic() -> Topic {
    Topic::new("lives").standalone("random_lives", &[Need::Nft, Need::Veth], random_lives)
}

const DEFAULT_LIVES: u64 = 100;
/// In a small virtual machine.
const SMALL_LIVES: u64 = 20;
const DEFAULT_SEED: u64 = 20_260_102;
/// Lives whose packets and records are in memory at one time.
const BATCH: u64 = 200;
/// Lives at one time. They mostly wait for timers.
const WORKERS: usize = 16;
/// The server ports of every other 25 lives, from the first one, and of the markers.
const PORT_RANGES: [(u16, u16); 5] = [(1024, 2047), (2048, 2247), (2448, 2647), (2848, 3047), (3248, 3447)];
const MARKER_PORT: u16 = 1999;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}")),
    )
}

/// The fields that a record can lack because the kernel skipped the program.
const CAN_BE_LOST: [&str; 7] = [
    "outcome",
    "errno",
    "closed_by",
    "start",
    "preexisting",
    "connect_ns",
    "duration_ns",
];

/// A tracer with a filter, and the rule that its filter must follow.
struct Watcher {
    name: &'static str,
    tracer: Tracer,
    passes: fn(&Expected) -> bool,
    /// It scans for open connections, and so knows which process holds them.
    scans: bool,
    /// The records that lack something, with the number of their life.
    incomplete: RefCell<Vec<String>>,
    /// The ends without a record whose sockets had another life afterwards.
    missing: RefCell<Vec<String>>,
}

fn in_ranges(expected: &Expected) -> bool {
    let port = expected.dst.port();
    PORT_RANGES.iter().any(|(from, to)| (*from..=*to).contains(&port))
}

impl Watcher {
    fn start(name: &'static str, args: &[&str], passes: fn(&Expected) -> bool) -> Self {
        let own = networks();
        let args = [&["-o", "json", "--ip", &own, "--buffer", "16MiB"], args].concat();
        let tracer = TracerCommand::for_all_connections(&args).start();
        let scans = name.contains("--events");
        Self {
            name,
            tracer,
            passes,
            scans,
            incomplete: RefCell::default(),
            missing: RefCell::default(),
        }
    }

    fn all() -> Vec<Self> {
        let ranges: Vec<String> = PORT_RANGES.iter().map(|(from, to)| format!("{from}-{to}")).collect();
        vec![
            Self::start("", &[], |_| true),
            Self::start("--direction inbound", &["--direction", "inbound"], |expected| {
                expected.direction == "inbound"
            }),
            Self::start("--port", &["--port", &ranges.join(",")], in_ranges),
            Self::start(
                "--events",
                &["--events", "open,update,close", "--interval", "100ms"],
                |_| true,
            ),
        ]
    }

    fn store(&self) -> &TracerOutput {
        &self.tracer.output
    }
}

/// A life that is over.
struct Done {
    number: u64,
    beginning: &'static str,
    calls: String,
    truth: Truth,
    packets: Vec<Packet>,
}

/// What went wrong, by kind: how often, and examples.
#[derive(Default)]
struct Failures(BTreeMap<String, Kind>);

/// One kind of failure.
#[derive(Default)]
struct Kind {
    count: u64,
    lives: BTreeSet<u64>,
    /// What was wrong in the first life, and all that is known of that life.
    example: Option<(u64, String, String)>,
}

impl Failures {
    /// Counts a failure. The texts: what is wrong, and the life.
    fn add(&mut self, kind: String, life: u64, texts: impl FnOnce() -> (String, String)) {
        let kind = self.0.entry(kind).or_default();
        kind.count += 1;
        kind.lives.insert(life);
        kind.example.get_or_insert_with(|| {
            let (what, whole) = texts();
            (life, what, whole)
        });
    }

    fn report(&self, seed: u64) -> String {
        let mut report = format!("{} kinds of failures, seed {seed}\n", self.0.len());
        for (name, kind) in &self.0 {
            let lives: Vec<_> = kind.lives.iter().take(8).collect();
            let _ = writeln!(report, "{} times: {name} (lives {lives:?})", kind.count);
        }
        // A life that shows several kinds is printed once.
        let mut printed = BTreeSet::new();
        for (name, kind) in &self.0 {
            if let Some((life, what, whole)) = &kind.example {
                let _ = writeln!(report, "\n--- {name}\nseed {seed}, life {life}: {what}");
                if printed.insert((*life, whole.len())) {
                    report.push_str(whole);
                }
            }
        }
        report
    }
}

fn random_lives() {
    let default = if is_small_vm() { SMALL_LIVES } else { DEFAULT_LIVES };
    let lives = number("KMESH_TRACE_LIVES").unwrap_or(default);
    let seed = number("KMESH_TRACE_LIVES_SEED").unwrap_or(DEFAULT_SEED);
    let first = number("KMESH_TRACE_LIVES_FIRST").unwrap_or(0);
    let world = World::new();
    // Before there is any socket: a process that starts holds all of them for a moment.
    let helpers: Vec<Actor> = (0..WORKERS).map(|_| Actor::start()).collect();
    let watchers = Watcher::all();
    let mut failures = Failures::default();
    let mut undecided = BTreeMap::<&str, u64>::new();
    let (mut records, mut beginnings) = (0, BTreeMap::<&str, u64>::new());
    let began = Instant::now();
    let mut from = first;
    while from < first + lives {
        let to = (from + BATCH).min(first + lives);
        for watcher in &watchers {
            for side in [Side::Near, Side::Far] {
                watcher.store().watch(world.inode(side));
            }
        }
        let batch = batch(&world, &helpers, seed, from..to, &mut failures);
        for done in &batch {
            *beginnings.entry(done.beginning).or_default() += 1;
            for fault in &done.truth.faults {
                let kind = format!("MODEL, {}: {}", done.beginning, kind_of(fault));
                failures.add(kind, done.number, || (fault.clone(), done.describe(&[])));
            }
            for expected in &done.truth.records_expected {
                records += 1;
                for field in &expected.undecided {
                    *undecided.entry(field).or_default() += 1;
                }
            }
        }
        for watcher in &watchers {
            let mut records = by_life(&world, watcher.store());
            for done in &batch {
                let records = records.remove(&first_port(done.number)).unwrap_or_default();
                check(watcher, done, &records, &mut failures);
            }
            for record in records.into_values().flatten() {
                let what = record.1.value.to_string();
                let kind = format!("a record of no life [{}]", watcher.name);
                failures.add(kind, from, || (what, String::new()));
            }
        }
        from = to;
    }
    assert_eq!(world.capture.lost(), 0, "packets that the capture had no room for");
    for watcher in watchers {
        let (incomplete, missing) = (watcher.incomplete.take(), watcher.missing.take());
        let skipped = bpf::skipped_runs(watcher.tracer.pid);
        let totals = watcher.tracer.interrupt().check();
        let account = format!("runs that the kernel skipped: {skipped:?}; {totals:?}");
        println!("[{}] {account}", watcher.name);
        let lost = (totals.lost, totals.lost_at_most, totals.open);
        let is_explained = (incomplete.len() + missing.len()) as u64 <= skipped.values().sum();
        if !is_explained || lost != (missing.len() as u64, 0, 0) {
            let kind = format!("incomplete and missing records [{}]", watcher.name);
            let what = format!("{} incomplete, {} missing, {account}", incomplete.len(), missing.len());
            let all = [incomplete, missing].concat();
            failures.add(kind, 0, || (what, all.join("\n")));
        }
    }
    println!(
        "{lives} lives of seed {seed} in {:.1} s, {records} records: {beginnings:?}",
        began.elapsed().as_secs_f64()
    );
    println!("1 part skipped: queues that delay (netem). Packets that are lost and sent again come late");
    for (field, count) in undecided {
        println!("undecided in {count} records: {field}");
    }
    assert!(failures.0.is_empty(), "{}", failures.report(seed));
}

/// A kind of failure is its text without numbers.
fn kind_of(text: &str) -> String {
    let words = text
        .split(' ')
        .filter(|word| !word.contains(|char: char| char.is_ascii_digit() || char == '['));
    words.take(20).collect::<Vec<_>>().join(" ")
}

/// Runs these lives, several at a time, and waits until all of their sockets have ended.
fn batch(
    world: &World,
    helpers: &[Actor],
    seed: u64,
    lives: std::ops::Range<u64>,
    failures: &mut Failures,
) -> Vec<Done> {
    let next = AtomicU64::new(lives.start);
    let over = Mutex::new(Vec::new());
    let broken = Mutex::new(Vec::new());
    let is_over = AtomicU64::new(0);
    thread::scope(|scope| {
        let workers: Vec<_> = helpers
            .iter()
            .map(|helper| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= lives.end {
                            return;
                        }
                        let mut random = Random::of_part(seed, number);
                        let (of_ipv6, mapped) =
                            *random.pick(&[(false, false), (false, false), (true, false), (false, true)]);
                        let (name, run) = grammar::beginning(&mut random);
                        let mut life = Life::new(number, world, helper, of_ipv6, mapped);
                        let ran = catch_unwind(AssertUnwindSafe(|| run(&mut life, &mut random)));
                        match ran {
                            Ok(()) => {}
                            Err(panic) => broken.lock().unwrap_or_else(PoisonError::into_inner).push((
                                number,
                                format!(
                                    "LIFE, {name}: {}",
                                    kind_of(panic_message(&*panic).lines().next().unwrap_or_default())
                                ),
                                format!("{}\n{}", panic_message(&*panic), life.text()),
                            )),
                        }
                        life.finish();
                        over.lock().unwrap_or_else(PoisonError::into_inner).push((name, life));
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while is_over.load(Ordering::Relaxed) == 0 {
                world.capture.read();
                thread::sleep(Duration::from_millis(10));
            }
        });
        let ends: Vec<_> = workers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(1, Ordering::Relaxed);
        for end in ends {
            end.expect("a worker");
        }
    });
    for side in [Side::Near, Side::Far] {
        world.within(side, wait_ended);
    }
    let mut packets = BTreeMap::<u64, Vec<Packet>>::new();
    for packet in world.capture.take() {
        let numbers = lives.clone();
        let block = [packet.from.port(), packet.to.port()].into_iter().find_map(block_of);
        // The batch is shorter than the number of blocks.
        let life = block.and_then(|block| numbers.into_iter().find(|number| first_port(*number) == block));
        if let Some(life) = life {
            packets.entry(life).or_default().push(packet);
        }
    }
    for (number, kind, text) in broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        failures.add(kind, number, || (String::new(), text));
    }
    let over = over.into_inner().unwrap_or_else(PoisonError::into_inner);
    over.into_iter()
        .map(|(beginning, life)| {
            let packets = packets.remove(&life.number).unwrap_or_default();
            Done {
                number: life.number,
                beginning,
                calls: life.text(),
                truth: follow(&life, &packets),
                packets,
            }
        })
        .collect()
}

/// The first port of the life that this port belongs to.
fn block_of(port: u16) -> Option<u16> {
    let offset = port.checked_sub(first_port(0))?;
    (port < 40_000).then(|| first_port(0) + offset / PORTS * PORTS)
}

/// Waits until the calling thread's namespace has no TCP sockets but listeners and time-wait stubs.
fn wait_ended() {
    let began = Instant::now();
    while has_sockets() {
        assert!(began.elapsed() < test_timeout(), "sockets that do not end");
        // To read them all takes a while.
        thread::sleep(Duration::from_millis(20));
    }
}

fn has_sockets() -> bool {
    ["tcp", "tcp6"].iter().any(|file| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).expect("the namespace's sockets");
        text.lines().skip(1).any(|line| {
            // sl, local address, remote address, state, queues, timer. A stub may show FIN_WAIT2, but has a timer of its own.
            let fields: Vec<&str> = line.split_whitespace().take(6).collect();
            fields[3] != "0A" && !fields[5].starts_with("03:")
        })
    })
}

/// All records of a side so far: those before the ones of a connection that is made for this alone.
fn records(world: &World, store: &TracerOutput, side: Side) -> Vec<ReceivedRecord> {
    let netns = world.inode(side);
    world.within(side, || {
        let at = IpVersion::V4.at(MARKER_PORT);
        let listener = TcpListener::bind(at).expect("the marker's listener");
        let client = TcpStream::connect(at).expect("the marker's connection");
        let port = client.local_addr().expect("its address").port();
        drop((listener.accept().expect("accept the marker"), client));
        let is_marker = |record: &ReceivedRecord| {
            record.value["src"]["port"] == port
                && record.value["dst"]["port"] == MARKER_PORT
                && record.value["event"] == "close"
        };
        let found = store.wait(netns, |records| {
            // Of two ends, one may be filtered out; the earlier one is later than all lives.
            let at = records.iter().position(is_marker)?;
            Some(records[..at].to_vec())
        });
        found.unwrap_or_else(|why| panic!("the marker's records did not come: {why}"))
    })
}

/// The records of a batch, by the first port of each life.
fn by_life(world: &World, store: &TracerOutput) -> BTreeMap<u16, Vec<(Side, ReceivedRecord)>> {
    let mut lives = BTreeMap::<u16, Vec<(Side, ReceivedRecord)>>::new();
    for side in [Side::Near, Side::Far] {
        for record in records(world, store, side) {
            // Of an earlier batch's end.
            if record.value["dst"]["port"] == MARKER_PORT {
                continue;
            }
            let port = |end: &str| u16::try_from(record.value[end]["port"].as_u64().unwrap_or_default()).ok();
            let block = ["src", "dst"].into_iter().filter_map(port).find_map(block_of);
            lives.entry(block.unwrap_or_default()).or_default().push((side, record));
        }
    }
    lives
}

impl Done {
    /// All that is known of the life.
    fn describe(&self, records: &[&Value]) -> String {
        let mut text = format!("{} ({})\npackets:\n", self.calls, self.beginning);
        for packet in &self.packets {
            let _ = writeln!(text, "    {packet}");
        }
        for expected in &self.truth.records_expected {
            let _ = writeln!(text, "wanted: {expected:?}");
        }
        for record in records {
            let _ = writeln!(text, "record: {record}");
        }
        text
    }
}

/// Compares a life's records with what they must say.
fn check(watcher: &Watcher, done: &Done, records: &[(Side, ReceivedRecord)], failures: &mut Failures) {
    let all: Vec<&Value> = records.iter().map(|(_, record)| &record.value).collect();
    let is_close = |record: &&(Side, ReceivedRecord)| record.1.value["event"] == "close";
    let mut left: Vec<&(Side, ReceivedRecord)> = records.iter().filter(is_close).collect();
    // The ids of attempts, and whether they connected.
    let mut attempts = HashMap::new();
    let mut fail = |kind: String, what: &str| {
        let filter = if watcher.name.is_empty() {
            String::new()
        } else {
            format!(" [{}]", watcher.name)
        };
        failures.add(format!("{}{filter}: {kind}", done.beginning), done.number, || {
            (what.to_owned(), done.describe(&all))
        });
    };
    let mut records_expected: Vec<&Expected> = done
        .truth
        .records_expected
        .iter()
        .filter(|expected| (watcher.passes)(expected))
        .collect();
    records_expected.sort_by_key(|expected| expected.end);
    for expected in records_expected.iter().copied() {
        let of_these = |record: &Value| {
            let ends = (address(&record["src"]), address(&record["dst"]));
            ends == (Some(expected.src), Some(expected.dst)) || ends == (Some(expected.dst), Some(expected.src))
        };
        let candidates = || {
            left.iter()
                .enumerate()
                .filter(|(_, (side, record))| *side == expected.side && of_these(&record.value))
        };
        // Of several attempts between the same addresses: the one that this record suits best.
        let faults = |record: &ReceivedRecord| differences(expected, record, watcher.scans).len();
        let best = candidates().min_by_key(|(_, (_, record))| faults(record));
        // What suits a later attempt with the same addresses better is no record of one that may have none.
        let is_anothers = |record: &ReceivedRecord| {
            let is_better = |other: &&Expected| {
                (other.src, other.dst, other.side) == (expected.src, expected.dst, expected.side)
                    && other.end > expected.end
                    && differences(other, record, watcher.scans).len() < faults(record)
            };
            expected.is_reused && records_expected.iter().any(is_better)
        };
        let best = best.filter(|(_, (_, record))| !is_anothers(record));
        let Some(at) = best.map(|(at, _)| at) else {
            // If the kernel skipped the program, nothing is left of such an end but the count of lost closes.
            if expected.is_reused {
                let what = format!("life {} ({}): {expected:?}", done.number, done.beginning);
                watcher.missing.borrow_mut().push(what);
                continue;
            }
            fail(
                format!("no record, {} {}", expected.direction, expected.ending.outcome),
                &format!("no record of {expected:?}"),
            );
            continue;
        };
        let (_, record) = left.remove(at);
        attempts.insert(record.value["id"].to_string(), expected.established);
        // Where the kernel skipped the program, a record lacks the beginning, or the error, which is gone when the socket goes.
        let value = &record.value;
        let lacks_connect = expected.connect.is_some() && value["connect_ns"].is_null();
        let is_lost = value["outcome"] == "unknown" || value["preexisting"] == true || lacks_connect;
        if is_lost {
            let what = format!("life {} ({}): {value}", done.number, done.beginning);
            watcher.incomplete.borrow_mut().push(what);
        }
        for (field, what) in differences(expected, record, watcher.scans) {
            if is_lost && CAN_BE_LOST.iter().any(|lost| field.starts_with(lost)) {
                continue;
            }
            fail(
                format!("{field}, {} {}", expected.direction, expected.ending.outcome),
                &what,
            );
        }
    }
    for (_, record) in left {
        let value = &record.value;
        let kind = format!("a record too many, {} {}", value["direction"], value["outcome"]);
        fail(kind, &format!("a record too many: {value}"));
    }
    for (_, record) in records.iter().filter(|record| !is_close(record)) {
        let value = &record.value;
        match attempts.get(&value["id"].to_string()) {
            None => fail(format!("{} without an attempt", value["event"]), &value.to_string()),
            Some(false) if value["event"] == "open" => fail("open of a failed attempt".to_owned(), &value.to_string()),
            Some(_) => {}
        }
    }
}

fn address(end: &Value) -> Option<SocketAddr> {
    let ip: IpAddr = end["ip"].as_str()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(end["port"].as_u64()?).ok()?))
}

/// What a record says otherwise: the field with both values where they are names, and the whole of it.
fn differences(expected: &Expected, record: &ReceivedRecord, scans: bool) -> Vec<(String, String)> {
    let value = &record.value;
    let mut wrong = Vec::new();
    let mut exact = |name: &str, wanted: Value| {
        if value[name] != wanted {
            let what = format!("{name} is {}, not {wanted}", value[name]);
            let kind = if wanted.is_number() {
                name.to_owned()
            } else {
                what.clone()
            };
            wrong.push((kind, what));
        }
    };
    exact("event", "close".into());
    exact("direction", expected.direction.into());
    exact("sent_bytes", expected.sent.into());
    exact("received_bytes", expected.received.into());
    exact("undelivered_bytes", expected.undelivered.into());
    exact("established", expected.established.into());
    let other = expected.other_outcome.filter(|other| value["outcome"] == *other);
    exact("outcome", other.unwrap_or(expected.ending.outcome).into());
    exact("closed_by", expected.ending.closed_by.into());
    exact("preexisting", false.into());
    exact("family", if expected.src.is_ipv4() { "ipv4" } else { "ipv6" }.into());
    if (address(&value["src"]), address(&value["dst"])) != (Some(expected.src), Some(expected.dst)) {
        let what = format!(
            "src and dst are {} and {}, not {} and {}",
            value["src"], value["dst"], expected.src, expected.dst
        );
        wrong.push(("src and dst".to_owned(), what));
    }
    let errno = value["errno"].as_str();
    if !expected.ending.errno.contains(&errno) {
        let what = format!("errno is {errno:?}, not {:?}", expected.ending.errno);
        wrong.push((what.clone(), what));
    }
    let process = &value["process"];
    let pid = process["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let by = process["by"].as_str().unwrap_or("nothing");
    let is_expected = pid.is_some_and(|pid| expected.pids.contains(&pid));
    // What a scan finds is better than the owner of the listener.
    let is_found =
        scans && by == "scan" && expected.by.contains(&"listener") && (is_expected || pid == expected.holder);
    if !(is_found || is_expected && expected.by.contains(&by)) {
        let what = format!("process is {process}, not {:?} by {:?}", expected.pids, expected.by);
        let right = pid.is_some_and(|pid| expected.pids.contains(&pid));
        let kind = format!(
            "process ({}) by {by}, not {:?}",
            if right { "right" } else { "wrong" },
            expected.by
        );
        wrong.push((kind, what));
    }
    wrong.extend(time_differences(expected, record));
    wrong
}

fn time_differences(expected: &Expected, record: &ReceivedRecord) -> Vec<(String, String)> {
    let value = &record.value;
    let mut wrong = Vec::new();
    let (start, time) = (parse_time(&value["start"]), parse_time(&value["time"]));
    if !start.is_some_and(|start| expected.starts(start)) {
        let what = format!("start is {}, not within {:?}", value["start"], expected.start);
        wrong.push(("start".to_owned(), what));
    }
    if !time.is_some_and(|time| expected.end <= time && time <= record.received_at + Duration::from_millis(1)) {
        let what = format!(
            "time is {}, not from {:?} to {:?}",
            value["time"], expected.end, record.received_at
        );
        wrong.push(("time".to_owned(), what));
    }
    let lasted = start
        .zip(time)
        .and_then(|(start, time)| time.duration_since(start).ok());
    let duration = value["duration_ns"].as_u64().map(Duration::from_nanos);
    let agree = lasted
        .zip(duration)
        .is_some_and(|(one, other)| one.abs_diff(other) <= Duration::from_millis(1));
    if start.is_some() && !agree {
        wrong.push((
            "duration_ns".to_owned(),
            format!("duration_ns is {duration:?}, time less start {lasted:?}"),
        ));
    }
    let connect = value["connect_ns"].as_u64().map(Duration::from_nanos);
    let right = match (connect, expected.connect) {
        (Some(connect), Some((least, most))) => least <= connect && connect <= most,
        (connect, wanted) => connect.is_none() && wanted.is_none(),
    };
    if !right {
        let what = format!("connect_ns is {connect:?}, not within {:?}", expected.connect);
        wrong.push(("connect_ns".to_owned(), what));
    }
    wrong
}
