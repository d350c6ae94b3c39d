//! Signals, limits, and readers that do not keep up: what is lost is counted.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::expect::Scene;
use crate::support::probe::Need;
use crate::support::sock::{V, drain, exchange, listen, pair, pair_with, wait_until};
use crate::support::tracer::{Start, Sums, Tracer};
use crate::support::{bpf, net, small};
use crate::{Table, shared};

/// The trials.
pub fn table() -> Table {
    Table::new("signals")
        .own("interrupt", &[], || ends_by(Signal::SIGINT))
        .own("terminate", &[], || ends_by(Signal::SIGTERM))
        .own("interrupted_twice", &[], interrupted_twice)
        .own("killed_leaves_nothing", &[], killed_leaves_nothing)
        .own("summary_on_demand", &[], summary_on_demand)
        .own("duration", &[], duration)
        .own("count", &[], count)
        .own("overflow_4096", &[Need::Alone], || overflow("4096"))
        .own("overflow_64Ki", &[Need::Alone], || overflow("64Ki"))
        .own("stalled_reader", &[Need::Alone], stalled_reader)
}

/// `count` connections, both ends closed cleanly.
pub fn traffic(count: usize) {
    let listener = listen(V::Four);
    for _ in 0..count {
        let pair = pair_with(&listener);
        exchange(&pair, 10, 20);
        drop(pair.client);
        assert_eq!(drain(&pair.server), 0);
    }
}

/// The summary is the last line, it adds up, and what the kernel had recorded before the signal is all there.
fn ends_by(signal: Signal) {
    let tracer = Tracer::json(&[]);
    tracer.store.keep(net::inode());
    let objects = bpf::objects_of(tracer.pid);
    traffic(50);
    tracer.signal(signal);
    let end = tracer.wait();
    end.check_whole();
    assert_eq!(end.store.summaries().len(), 1);
    assert_eq!(end.store.records(net::inode()).len(), 100, "recorded before the signal");
    wait_until("the kernel has let go", || bpf::alive(&objects).is_empty());
}

/// Standard output takes nothing, so the first interrupt cannot finish; another ends it all the same.
fn interrupted_twice() {
    let (reader, writer) = std::io::pipe().unwrap();
    let tracer = Start::new(&["-o", "json"]).stdout(writer).tracing();
    traffic(300);
    tracer.signal(Signal::SIGINT);
    let deadline = Instant::now() + crate::support::patience();
    // How soon the first one is seen is the scheduler's affair, and two that come too close are one; so, like a person, again.
    while !tracer.ended_within(Duration::from_millis(200)) {
        assert!(Instant::now() < deadline, "it hangs");
        tracer.signal(Signal::SIGINT);
    }
    drop(reader);
    let end = tracer.wait();
    assert!(
        !end.stderr.iter().any(|line| line.contains("panicked")),
        "{:?}",
        end.stderr
    );
}

/// After SIGKILL no program, map or link of it is left in the kernel.
fn killed_leaves_nothing() {
    let tracer = Tracer::json(&[]);
    let objects = bpf::objects_of(tracer.pid);
    let kinds = |kind| objects.iter().filter(|object| object.kind == kind).count();
    assert!(
        kinds(bpf::Kind::Program) > 0 && kinds(bpf::Kind::Map) > 0,
        "it has {objects:?}"
    );
    assert_eq!(bpf::alive(&objects).len(), objects.len(), "the ids are right");
    tracer.signal(Signal::SIGKILL);
    let end = tracer.wait();
    assert!(!end.status.success());
    // The kernel lets go in its own time, from a worker.
    wait_until("the kernel has let go", || bpf::alive(&objects).is_empty());
}

/// SIGUSR1: the sum so far, and on it goes.
fn summary_on_demand() {
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    for asked in 1..=2 {
        let pair = pair(V::Four);
        drop(pair.client);
        drop(pair.server);
        scene.expect(&[pair.truth.outbound().ok("local"), pair.truth.inbound().ok("peer")]);
        tracer.signal(Signal::SIGUSR1);
        let summaries = tracer.store.wait_summaries(asked).unwrap();
        let sums = Sums::of(&summaries[asked - 1]);
        sums.check();
        // With the markers of the scene, four ends a round.
        assert!(sums.delivered >= 4 * asked as u64, "{sums:?}");
    }
    let end = tracer.interrupt();
    end.check_whole();
    assert_eq!(end.store.summaries().len(), 3);
}

fn duration() {
    let started = Instant::now();
    let tracer = Tracer::json(&["--duration", "1500ms"]);
    traffic(1);
    let end = tracer.wait();
    assert!(started.elapsed() >= Duration::from_millis(1500));
    end.check_whole();
    let elapsed = end.store.summaries()[0]["elapsed_ns"].as_u64().unwrap();
    assert!(elapsed >= 1_500_000_000, "{elapsed}");
}

/// Five lines, however many connections end before it can stop.
fn count() {
    let tracer = Tracer::json(&["--count", "5"]);
    tracer.signal(Signal::SIGSTOP);
    traffic(20);
    tracer.signal(Signal::SIGCONT);
    let sums = tracer.wait().check_whole();
    assert_eq!(sums.delivered, 5);
    assert!(sums.closes >= 40 && sums.after_limit >= 35, "{sums:?}");
}

/// The shared tracer, which has room for all, beside one that has not.
pub struct Beside {
    scene: Scene<'static>,
    foreign: u64,
}

impl Beside {
    /// From now on it looks at the calling thread's namespace, too.
    pub fn begin() -> Self {
        Self {
            scene: Scene::of_new_namespace(&shared().store),
            foreign: shared().store.foreign(),
        }
    }

    /// It has told of all `made` ends of this test, and so of others' until now: how many these were at most.
    pub fn foreign(self, made: usize) -> u64 {
        assert_eq!(self.scene.wait_count(made).len(), made, "the shared tracer's view");
        shared().store.foreign() - self.foreign
    }
}

/// `made` ends (or openings) of this test are all either delivered or counted as lost. Others' of the same time may be among
/// the lost.
pub fn all_accounted(what: &str, made: usize, delivered: usize, lost: u64, foreign: u64) {
    let (made, delivered) = (made as u64, delivered as u64);
    assert!(
        made <= delivered + lost && delivered + lost <= made + foreign,
        "{made} {what} made, {delivered} delivered and {lost} lost, {foreign} of others"
    );
}

/// The tracer is stopped, so nobody empties the ring.
fn overflow(buffer: &'static str) {
    let made = if small() { 600 } else { 5000 };
    let beside = Beside::begin();
    let tracer = Tracer::json(&["--buffer", buffer]);
    tracer.store.keep(net::inode());
    tracer.signal(Signal::SIGSTOP);
    traffic(made);
    tracer.signal(Signal::SIGCONT);
    let end = tracer.interrupt();
    let sums = end.check();
    let ours = end.store.records(net::inode()).len();
    assert!(sums.lost > 0, "nothing lost with --buffer {buffer}: {sums:?}");
    let lost = end.store.lost();
    assert!(!lost.is_empty(), "no lost line");
    let said: u64 = lost.iter().map(|line| line["lost_records"].as_u64().unwrap()).sum();
    assert_eq!(
        lost.last().unwrap()["lost_records_total"],
        said,
        "the lost lines' own sum"
    );
    assert!(
        lost.iter()
            .all(|line| !line["reason"].as_str().unwrap_or_default().is_empty()),
        "{lost:?}"
    );
    all_accounted("ends", 2 * made, ours, sums.lost, beside.foreign(2 * made));
}

/// Nobody reads for ten seconds while connections come and go. The tracer stays, and counts what it could not keep.
fn stalled_reader() {
    let made = if small() { 600 } else { 20_000 };
    let beside = Beside::begin();
    let (open, gate) = mpsc::channel();
    let tracer = Start::new(&["-o", "json"]).gate(gate).tracing();
    tracer.store.keep(net::inode());
    let stall = Instant::now() + Duration::from_secs(10);
    traffic(made);
    std::thread::sleep(stall.saturating_duration_since(Instant::now()));
    assert!(!tracer.ended_within(Duration::ZERO), "it went away");
    open.send(()).unwrap();
    // Once it prints again, new records come too, unless they are among the lost.
    traffic(10);
    let end = tracer.interrupt();
    let sums = end.check();
    let ours = end.store.records(net::inode()).len();
    let all = 2 * (made + 10);
    all_accounted("ends", all, ours, sums.lost, beside.foreign(all));
}
