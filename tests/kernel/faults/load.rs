//! More than a tracer, its ring or its walk is usually asked for.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::SystemTime;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Topic;
use crate::stress::{Seen, crowd_while, crowds, of_json};
use crate::signals::check_accounted;
use crate::support::expect::{CLOCK_ERROR, parse_time};
use crate::support::probe::Need;
use crate::support::tracer::Tracer;
use crate::support::{is_small_vm, net, test_timeout};

/// Adds the trials.
pub fn add(topic: Topic) -> Topic {
    topic
        .standalone("two_tracers_under_load", &[], two_tracers_under_load)
        .standalone("overflow_while_it_reads", &[Need::FullSize], overflow_while_it_reads)
}

/// What a tracer told of the calling thread's namespace, and of when.
fn told(tracer: &Tracer) -> Arc<Mutex<Vec<(Seen, SystemTime)>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    tracer.output.watch_with(net::current_netns(), {
        let told = Arc::clone(&told);
        move |record| {
            let time = parse_time(&record["time"]).expect("a time");
            told.lock().unwrap().push((of_json(record), time));
        }
    });
    told
}

/// Four threads connect until one of two tracers has been interrupted and is gone. The other tells each end; the
/// interrupted one each that was over by then, and none that was not.
fn two_tracers_under_load() {
    let least = if is_small_vm() { 150 } else { 5_000 };
    let servers: [Ipv4Addr; 4] = std::array::from_fn(|number| net::loopback_v4(number as u8));
    // Room for all of it, however late a tracer has its turn.
    let args = ["--buffer", "64MiB", "--to-ip", &net::comma_separated(&servers)];
    let (stays, goes) = (Tracer::json(&args), Tracer::json(&args));
    let (of_stays, of_goes) = (told(&stays), told(&goes));
    let gone = AtomicBool::new(false);
    let (half, halfway) = mpsc::channel();
    let (wanted, interrupted) = thread::scope(|scope| {
        let (gone, half) = (&gone, &half);
        let load = move |server| {
            crowd_while(server, |made| {
                if server == servers[0] && made == least / 2 {
                    half.send(()).expect("the test listens");
                }
                made < least || !gone.load(Ordering::Relaxed)
            })
        };
        let threads: Vec<_> = servers
            .iter()
            .map(|&server| scope.spawn(move || load(server)))
            .collect();
        let begun = halfway.recv_timeout(test_timeout());
        let interrupted = SystemTime::now();
        goes.signal(Signal::SIGINT);
        let ended = goes.ended_within(test_timeout());
        // Whatever has failed, the load must end.
        gone.store(true, Ordering::Relaxed);
        assert!(begun.is_ok() && ended, "{begun:?}, ended: {ended}");
        let made = threads.into_iter().map(|thread| thread.join().expect("a crowd"));
        (counts(made.flatten()), interrupted)
    });
    let (stays, goes) = (stays.interrupt(), goes.wait());
    for end in [&stays, &goes] {
        end.check_lossless();
    }
    let (of_stays, of_goes) = (of_stays.lock().unwrap(), of_goes.lock().unwrap());
    let seen = |told: &[(Seen, SystemTime)]| counts(told.iter().map(|(seen, _)| seen.clone()));
    let (by_stays, by_goes) = (seen(&of_stays), seen(&of_goes));
    let wrong = differences(&by_stays, &wanted, |told, made| told != made);
    assert!(wrong.is_empty(), "of the one that stays: {wrong:#?}");
    let wrong = differences(&by_goes, &wanted, |told, made| told > made);
    assert!(wrong.is_empty(), "of the interrupted one: {wrong:#?}");
    // The tracer that stays knows when each was over.
    let over = interrupted - CLOCK_ERROR;
    let missing: Vec<_> = of_stays
        .iter()
        .filter(|(seen, time)| *time < over && !by_goes.contains_key(seen))
        .take(6)
        .collect();
    assert!(
        missing.is_empty(),
        "over before it was interrupted at {interrupted:?}: {missing:#?}"
    );
    assert!(of_goes.len() < of_stays.len(), "the load went on without it");
}

/// Returns how often each end occurs: a port may be used again for the same number of bytes.
fn counts(ends: impl Iterator<Item = Seen>) -> HashMap<Seen, usize> {
    let mut counts = HashMap::new();
    ends.for_each(|end| *counts.entry(end).or_default() += 1);
    counts
}

/// Returns some of the ends whose numbers differ: as a tracer recorded them, and as they were made.
fn differences(
    recorded: &HashMap<Seen, usize>,
    made: &HashMap<Seen, usize>,
    differ: impl Fn(usize, usize) -> bool,
) -> Vec<(Seen, usize, usize)> {
    let number = |counts: &HashMap<Seen, usize>, end: &Seen| counts.get(end).copied().unwrap_or(0);
    let ends = made.keys().chain(recorded.keys());
    let numbers = ends.map(|end| (end.clone(), number(recorded, end), number(made, end)));
    numbers
        .filter(|(_, recorded, made)| differ(*recorded, *made))
        .take(6)
        .collect()
}

/// Looks at the ring every 5 ms, and it takes ten records: most are lost. Each end is told, sorted out or counted, each
/// opening told or counted, and what is told is right.
fn overflow_while_it_reads() {
    const EACH: usize = 6_000;
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
    let made = crowds(&servers, EACH);
    let (wanted, sorted_out): (Vec<_>, Vec<_>) = made.into_iter().partition(|seen| seen.is_to(servers[0]));
    let end = tracer.interrupt();
    let totals = end.check();

    let records = end.output.records(net::current_netns());
    let of = |event: &str| {
        records
            .iter()
            .map(|rec| &rec.value)
            .filter(|value| value["event"] == event)
            .collect::<Vec<_>>()
    };
    let (opens, closes) = (of("open"), of("close"));
    assert!(totals.lost > 0 && !closes.is_empty() && !opens.is_empty(), "{totals:?}");
    // Other programs' ends are among the filtered.
    assert!(totals.filtered >= sorted_out.len() as u64, "{totals:?}");
    check_accounted(&totals, wanted.len(), closes.len());
    assert_eq!(totals.open, 0, "{totals:?}");
    let lost_opens = usize::try_from(lost_open_events(&end.stderr)).unwrap();
    assert_eq!(opens.len() + lost_opens, wanted.len(), "each end opens once");

    let wanted: HashSet<_> = wanted.into_iter().collect();
    let wrong: Vec<_> = closes
        .iter()
        .filter(|close| !wanted.contains(&of_json(close)))
        .take(3)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut events: HashMap<&str, Vec<&str>> = HashMap::new();
    for record in &records {
        let text = |field: &str| record.value[field].as_str().unwrap();
        let event = match text("event") {
            "update" if record.value["established"] == false => "connecting",
            event => event,
        };
        events.entry(text("id")).or_default().push(event);
    }
    let in_order = |events: &Vec<&str>| {
        const ORDER: [&str; 4] = ["connecting", "open", "update", "close"];
        let count = |event| events.iter().filter(|&&is| is == event).count();
        let once = count("open") <= 1 && count("close") <= 1;
        once && events.is_sorted_by_key(|event| ORDER.iter().position(|is| is == event))
    };
    if let Some((id, _)) = events.iter().find(|(_, events)| !in_order(events)) {
        let its: Vec<_> = records
            .iter()
            .map(|rec| &rec.value)
            .filter(|value| value["id"] == *id)
            .collect();
        panic!("events of one end: {its:#?}");
    }
    let elapsed_ns = end.output.summaries()[0]["elapsed_ns"].as_u64().unwrap();
    lines_add_up(&end.output.lost_lines(), totals.lost, elapsed_ns);
}

/// The `lost` lines: one a second of the tracer's life at most, and a last one; their sum is that of the summary.
fn lines_add_up(lines: &[Value], lost: u64, elapsed_ns: u64) {
    let said: u64 = lines.iter().map(|line| line["lost_records"].as_u64().unwrap()).sum();
    let last = lines.last().expect("a lost line");
    assert_eq!((&last["lost_records_total"], said), (&lost.into(), lost), "{last}");
    assert!(
        lines
            .iter()
            .all(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("ring"))),
        "{lines:?}"
    );
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
