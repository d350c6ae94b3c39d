//! Two tracers under load, and more load than a small ring buffer can take.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Topic;
use crate::signals::check_all_counted;
use crate::support::expect::{CLOCK_ERROR, parse_time};
use crate::support::output::ReceivedRecord;
use crate::support::probe::Need;
use crate::support::tracer::{Tracer, TracerExit};
use crate::support::traffic::{CompactRecord, random_traffic_to_all, random_traffic_while};
use crate::support::{is_small_vm, net, test_timeout};

pub fn add(topic: Topic) -> Topic {
    topic
        .standalone("interrupting_one_of_two_tracers", &[], interrupting_one_of_two_tracers)
        .standalone("ring_overflow_under_load", &[Need::FullSize], ring_overflow_under_load)
}

type TimedRecords = Vec<(CompactRecord, SystemTime)>;

/// Collects a tracer's records of the calling thread's namespace, with their times.
fn collect(tracer: &Tracer) -> Arc<Mutex<TimedRecords>> {
    let records = Arc::new(Mutex::new(Vec::new()));
    tracer.output.watch_with(net::current_netns(), {
        let records = Arc::clone(&records);
        move |record| {
            let time = parse_time(&record["time"]).expect("a time");
            records.lock().unwrap().push((CompactRecord::from_json(record), time));
        }
    });
    records
}

/// Makes connections from a thread for each server. Interrupts `tracer` halfway, and goes on until it has exited.
/// Returns the expected records and the time of the interrupt.
fn interrupt_under_load(tracer: &Tracer, servers: &[Ipv4Addr]) -> (Vec<CompactRecord>, SystemTime) {
    let min = if is_small_vm() { 150 } else { 5_000 };
    let has_exited = AtomicBool::new(false);
    let (half, halfway) = mpsc::channel();
    thread::scope(|scope| {
        let (has_exited, half) = (&has_exited, &half);
        let load = move |server| {
            random_traffic_while(server, |made| {
                if server == servers[0] && made == min / 2 {
                    half.send(()).expect("the test waits");
                }
                made < min || !has_exited.load(Ordering::Relaxed)
            })
        };
        let threads: Vec<_> = servers
            .iter()
            .map(|&server| scope.spawn(move || load(server)))
            .collect();
        let half = halfway.recv_timeout(test_timeout());
        let interrupted = SystemTime::now();
        tracer.signal(Signal::SIGINT);
        let ended = tracer.ended_within(test_timeout());
        // The load must end even if the test has failed.
        has_exited.store(true, Ordering::Relaxed);
        assert!(half.is_ok() && ended, "{half:?}, ended: {ended}");
        let records = threads.into_iter().map(|thread| thread.join().expect("traffic"));
        (records.flatten().collect(), interrupted)
    })
}

/// Four threads make connections until one of two tracers has been interrupted and has exited. The other one prints
/// each end. The interrupted one prints each end that had closed before the interrupt, and none that did not close.
fn interrupting_one_of_two_tracers() {
    let servers: [Ipv4Addr; 4] = std::array::from_fn(|number| net::loopback_v4(number as u8));
    // The ring holds all records while a tracer gets no processor time.
    let args = ["--buffer", "64MiB", "--to-ip", &net::comma_separated(&servers)];
    let (other, interrupted) = (Tracer::json(&args), Tracer::json(&args));
    let (of_other, of_interrupted) = (collect(&other), collect(&interrupted));
    let (expected, interrupted_at) = interrupt_under_load(&interrupted, &servers);
    other.interrupt().check_lossless();
    interrupted.wait().check_lossless();
    let expected = counts(expected.into_iter());
    let (of_other, of_interrupted) = (of_other.lock().unwrap(), of_interrupted.lock().unwrap());
    let count = |records: &TimedRecords| counts(records.iter().map(|(record, _)| record.clone()));
    let (by_other, by_interrupted) = (count(&of_other), count(&of_interrupted));
    let wrong = differences(&by_other, &expected, |printed, made| printed != made);
    assert!(wrong.is_empty(), "of the other tracer: {wrong:#?}");
    let wrong = differences(&by_interrupted, &expected, |printed, made| printed > made);
    assert!(wrong.is_empty(), "of the interrupted tracer: {wrong:#?}");
    // The other tracer has the times of all closes.
    let closed_before = interrupted_at - CLOCK_ERROR;
    let missing: Vec<_> = of_other
        .iter()
        .filter(|(record, time)| *time < closed_before && !by_interrupted.contains_key(record))
        .take(6)
        .collect();
    assert!(
        missing.is_empty(),
        "closed before the interrupt at {interrupted_at:?}: {missing:#?}"
    );
    assert!(
        of_interrupted.len() < of_other.len(),
        "the load went on after the interrupt"
    );
}

/// Counts how often each record occurs: a port may be used again, for the same number of bytes.
fn counts(records: impl Iterator<Item = CompactRecord>) -> HashMap<CompactRecord, usize> {
    let mut counts = HashMap::new();
    records.for_each(|record| *counts.entry(record).or_default() += 1);
    counts
}

/// Returns up to six of the records whose counts differ, with the printed and the expected count.
fn differences(
    printed: &HashMap<CompactRecord, usize>,
    expected: &HashMap<CompactRecord, usize>,
    differ: impl Fn(usize, usize) -> bool,
) -> Vec<(CompactRecord, usize, usize)> {
    let count = |counts: &HashMap<CompactRecord, usize>, record| counts.get(record).copied().unwrap_or(0);
    let records = expected.keys().chain(printed.keys());
    let counts = records.map(|record| (record.clone(), count(printed, record), count(expected, record)));
    counts
        .filter(|(_, printed, expected)| differ(*printed, *expected))
        .take(6)
        .collect()
}

/// The tracer reads the ring buffer every 5 ms, and the buffer holds ten events: most are lost. Each close is printed,
/// filtered out or counted as lost, each open is printed or counted as lost, and what is printed is right.
fn ring_overflow_under_load() {
    const PER_SERVER: usize = 6_000;
    let servers: [Ipv4Addr; 2] = std::array::from_fn(|number| net::loopback_v4(number as u8));
    let (both, not_the_second) = (net::comma_separated(&servers), format!("!{}", servers[1]));
    let args = [
        "--buffer",
        "4096",
        "--events",
        "open,update,close",
        "--interval",
        "200ms",
    ];
    let tracer = Tracer::json(&[&args[..], &["--to-ip", &both, "--ip", &not_the_second]].concat());
    tracer.output.watch(net::current_netns());
    let made = random_traffic_to_all(&servers, PER_SERVER);
    let (expected, filtered_out): (Vec<_>, Vec<_>) = made.into_iter().partition(|end| end.is_to(servers[0]));
    let exit = tracer.interrupt();
    let totals = exit.check();

    let records = exit.output.records(net::current_netns());
    let of_event = |event: &str| {
        let values = records.iter().map(|record| &record.value);
        values.filter(|value| value["event"] == event).collect::<Vec<_>>()
    };
    let (opens, closes) = (of_event("open"), of_event("close"));
    assert!(totals.lost > 0 && !closes.is_empty() && !opens.is_empty(), "{totals:?}");
    // Other programs' connections are also filtered out.
    assert!(totals.filtered >= filtered_out.len() as u64, "{totals:?}");
    check_all_counted(&totals, expected.len(), closes.len());
    assert_eq!(totals.open, 0, "{totals:?}");
    let lost_opens = usize::try_from(lost_open_events(&exit.stderr)).unwrap();
    assert_eq!(opens.len() + lost_opens, expected.len(), "each end opens once");

    let expected: HashSet<_> = expected.into_iter().collect();
    let wrong: Vec<_> = closes
        .iter()
        .filter(|close| !expected.contains(&CompactRecord::from_json(close)))
        .take(3)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    check_order_of_events(&records);
    check_lost_lines(&exit, totals.lost);
}

/// Checks that each end has at most one open and one close, and all events in order.
fn check_order_of_events(records: &[ReceivedRecord]) {
    const ORDER: [&str; 4] = ["connecting", "open", "update", "close"];
    let mut ends: HashMap<&str, Vec<&str>> = HashMap::new();
    for ReceivedRecord { value, .. } in records {
        let text = |member: &str| value[member].as_str().unwrap();
        let event = match text("event") {
            "update" if value["established"] == false => "connecting",
            event => event,
        };
        ends.entry(text("id")).or_default().push(event);
    }
    for (id, events) in ends {
        let count = |event| events.iter().filter(|&&is| is == event).count();
        let is_in_order = events.is_sorted_by_key(|event| ORDER.iter().position(|is| is == event));
        if !is_in_order || count("open") > 1 || count("close") > 1 {
            let of_end = records.iter().map(|record| &record.value);
            let of_end: Vec<_> = of_end.filter(|value| value["id"] == *id).collect();
            panic!("events of one end: {of_end:#?}");
        }
    }
}

/// Checks the `lost` lines: at most one for each second and a last one, whose sum is the summary's count.
fn check_lost_lines(exit: &TracerExit, lost: u64) {
    let lines = exit.output.lost_lines();
    let sum: u64 = lines.iter().map(|line| line["lost_records"].as_u64().unwrap()).sum();
    let last = lines.last().expect("a lost line");
    assert_eq!((&last["lost_records_total"], sum), (&lost.into(), lost), "{last}");
    let names_the_ring = |line: &Value| line["reason"].as_str().is_some_and(|reason| reason.contains("ring"));
    assert!(lines.iter().all(names_the_ring), "{lines:?}");
    let elapsed_ns = exit.output.summaries()[0]["elapsed_ns"].as_u64().unwrap();
    let seconds = elapsed_ns / 1_000_000_000;
    assert!(
        lines.len() as u64 <= seconds + 1,
        "{} lines in {seconds} s",
        lines.len()
    );
}

/// Returns the number of lost `open` events that standard error reports: `lost 3 open events, 9 since the start: …`.
fn lost_open_events(stderr: &[String]) -> u64 {
    let lines = stderr.iter().filter_map(|line| line.strip_prefix("kmesh-trace: lost "));
    let number = |line: &str| line.split(" open event").next()?.parse::<u64>().ok();
    lines.filter_map(number).sum()
}
