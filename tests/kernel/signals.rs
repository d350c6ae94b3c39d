//! Signals, limits, and readers that do not keep up: what is lost is counted.

use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::Table;
use crate::support::expect::Scene;
use crate::support::sock::{V, drain, exchange, listen, pair, pair_with, wait_ended, wait_until};
use crate::support::tracer::{Start, Sums, Tracer};
use crate::support::{bpf, net, small};

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
        .own("overflow_4096", &[], || overflow("4096"))
        .own("overflow_64Ki", &[], || overflow("64Ki"))
        .own("stalled_reader", &[], stalled_reader)
}

/// `count` connections to the scenario's loopback address, both ends closed cleanly and ended.
pub fn traffic(count: usize) {
    let listener = listen(V::Four);
    traffic_through(&listener, count);
    wait_ended(listener.local_addr().expect("its address").port());
}

/// Connections to this listener, both ends closed cleanly.
pub fn traffic_through(listener: &TcpListener, count: usize) {
    for _ in 0..count {
        let pair = pair_with(listener);
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
    let server = net::address(0);
    let tracer = Tracer::json(&["--count", "5", "--to-ip", &server.to_string()]);
    tracer.signal(Signal::SIGSTOP);
    traffic(20);
    tracer.signal(Signal::SIGCONT);
    let sums = tracer.wait().check_whole();
    assert_eq!(sums.delivered, 5);
    assert!(sums.closes >= 40 && sums.after_limit >= 35, "{sums:?}");
}

/// All `made` ends of the connections that the filter passes are either delivered or counted as lost. What other programs do is
/// among the filtered.
pub fn check_accounted(sums: &Sums, made: usize, delivered: usize) {
    assert_eq!(sums.delivered, delivered as u64, "{sums:?}");
    assert_eq!(sums.delivered + sums.lost, made as u64, "{made} ends made: {sums:?}");
}

/// The tracer is stopped, so nobody empties the ring.
fn overflow(buffer: &str) {
    let made = if small() { 600 } else { 5000 };
    let server = net::address(0);
    let tracer = Tracer::json(&["--buffer", buffer, "--to-ip", &server.to_string()]);
    tracer.store.keep(net::inode());
    tracer.signal(Signal::SIGSTOP);
    traffic(made);
    tracer.signal(Signal::SIGCONT);
    let end = tracer.interrupt();
    let sums = end.check();
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
    check_accounted(&sums, 2 * made, end.store.records(net::inode()).len());
}

/// Nobody reads while more connections end than ring, queue and pipe have room for. The tracer stays, and counts what it could not
/// keep.
fn stalled_reader() {
    // 16,000 records of 360 bytes at least; the queue takes 4 MiB of them.
    const MADE: usize = 8_000;
    let server = net::address(0);
    let (open, gate) = mpsc::channel();
    let args = ["-o", "json", "--buffer", "64Ki", "--to-ip", &server.to_string()];
    let tracer = Start::new(&args).gate(gate).tracing();
    tracer.store.keep(net::inode());
    traffic(MADE);
    assert!(!tracer.ended_within(Duration::ZERO), "it went away");
    open.send(()).unwrap();
    // Once it prints again, new records come too, unless they are among the lost.
    traffic(10);
    let end = tracer.interrupt();
    let sums = end.check();
    assert!(sums.lost > 0, "{sums:?}");
    check_accounted(&sums, 2 * (MADE + 10), end.store.records(net::inode()).len());
}
