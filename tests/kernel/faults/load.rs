//! More than a tracer, its ring or its walk is usually asked for.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Table;
use crate::many::{Seen, crowd, crowd_while, of_json};
use crate::signals::{Beside, all_accounted};
use crate::support::expect::moment;
use crate::support::probe::Need;
use crate::support::tracer::Tracer;
use crate::support::{net, patience, schema, small};

/// Adds the trials.
pub fn add(table: Table) -> Table {
    table
        .own("two_tracers_under_load", &[Need::Alone], two_tracers_under_load)
        .own(
            "overflow_while_it_reads",
            &[Need::Alone, Need::Big],
            overflow_while_it_reads,
        )
}

/// What a tracer told of the calling thread's namespace, and of when.
fn told(tracer: &Tracer) -> Arc<Mutex<Vec<(Seen, SystemTime)>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    tracer.store.fold(net::inode(), {
        let told = Arc::clone(&told);
        move |record| {
            let time = moment(&record["time"]).expect("a time");
            told.lock().unwrap().push((of_json(record), time));
        }
    });
    told
}

/// Four threads connect until one of two tracers has been interrupted and is gone. The other tells each end; the
/// interrupted one each that was over by then, and none that was not.
fn two_tracers_under_load() {
    let least = if small() { 150 } else { 5_000 };
    // The first look asks the tool for its schema. That process must not come into the world amid the load, since until it
    // has called exec it holds all sockets of this one, and may be the last to close some.
    _ = schema::check(&Value::Null);
    let (stays, goes) = (Tracer::json(&[]), Tracer::json(&[]));
    let (of_stays, of_goes) = (told(&stays), told(&goes));
    let gone = AtomicBool::new(false);
    let (half, halfway) = mpsc::channel();
    let (wanted, interrupted) = thread::scope(|scope| {
        let (gone, half) = (&gone, &half);
        let load = move |seed| {
            crowd_while(13, seed, |made| {
                if seed == 1 && made == least / 2 {
                    half.send(()).expect("the test listens");
                }
                made < least || !gone.load(Ordering::Relaxed)
            })
        };
        let threads: Vec<_> = (1..=4).map(|seed| scope.spawn(move || load(seed))).collect();
        let begun = halfway.recv_timeout(patience());
        let interrupted = SystemTime::now();
        goes.signal(Signal::SIGINT);
        let ended = goes.ended_within(patience());
        // Whatever has failed, the load must end.
        gone.store(true, Ordering::Relaxed);
        assert!(begun.is_ok() && ended, "{begun:?}, ended: {ended}");
        let made = threads.into_iter().map(|thread| thread.join().expect("a crowd"));
        (made.flatten().collect::<HashSet<_>>(), interrupted)
    });
    let (stays, goes) = (stays.interrupt(), goes.wait());
    for end in [&stays, &goes] {
        end.check_whole();
    }
    let (of_stays, of_goes) = (of_stays.lock().unwrap(), of_goes.lock().unwrap());
    let seen = |told: &[(Seen, SystemTime)]| told.iter().map(|(seen, _)| seen.clone()).collect::<HashSet<_>>();
    assert_eq!(of_stays.len(), wanted.len(), "each end once");
    let wrong: Vec<_> = seen(&of_stays).symmetric_difference(&wanted).take(6).cloned().collect();
    assert!(wrong.is_empty(), "of the one that stays: {wrong:#?}");
    let of_gone = seen(&of_goes);
    assert_eq!(of_gone.len(), of_goes.len(), "none twice");
    let wrong: Vec<_> = of_gone.difference(&wanted).take(6).collect();
    assert!(wrong.is_empty(), "of the interrupted one: {wrong:#?}");
    // The tracer that stays knows when each was over. The clock is read in turns with the kernel's own.
    let over = interrupted - Duration::from_millis(10);
    let missing: Vec<_> = of_stays
        .iter()
        .filter(|(seen, time)| *time < over && !of_gone.contains(seen))
        .take(6)
        .collect();
    assert!(
        missing.is_empty(),
        "over before it was interrupted at {interrupted:?}: {missing:#?}"
    );
    assert!(of_gone.len() < wanted.len(), "the load went on without it");
}

/// Looks at the ring every 5 ms, and it takes ten records: most are lost. Each end is told, sorted out or counted, each
/// opening told or counted, and what is told is right.
fn overflow_while_it_reads() {
    const EACH: usize = 6_000;
    _ = schema::check(&Value::Null);
    let beside = Beside::begin();
    let args = [
        "--buffer",
        "4096",
        "--events",
        "open,update,close",
        "--interval",
        "200ms",
    ];
    let tracer = Tracer::json(&[&args[..], &["--ip", "!127.77.14.2"]].concat());
    tracer.store.keep(net::inode());
    let [wanted, sorted_out] = thread::scope(|scope| {
        let threads = [1, 2].map(|seed| scope.spawn(move || crowd(14, seed, EACH)));
        threads.map(|thread| thread.join().expect("a crowd"))
    });
    let end = tracer.interrupt();
    let sums = end.check();
    let all = wanted.len() + sorted_out.len();
    let foreign = beside.foreign(all);

    let records = end.store.records(net::inode());
    let of = |event: &str| {
        records
            .iter()
            .map(|rec| &rec.value)
            .filter(|value| value["event"] == event)
            .collect::<Vec<_>>()
    };
    let (opens, closes) = (of("open"), of("close"));
    assert!(sums.lost > 0 && !closes.is_empty() && !opens.is_empty(), "{sums:?}");
    assert_eq!(sums.filtered, sorted_out.len() as u64, "sorted out by the kernel half");
    all_accounted("ends", wanted.len(), closes.len(), sums.lost, foreign);
    // Each end opens once; what others have opened has ended, or is still open.
    all_accounted(
        "openings",
        wanted.len(),
        opens.len(),
        openings_lost(&end.stderr),
        foreign + sums.open,
    );

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
    lines_add_up(&end.store.lost(), sums.lost);
}

/// The `lost` lines: no more than one a second but for the last, and their sum is that of the summary.
fn lines_add_up(lines: &[Value], lost: u64) {
    let said: u64 = lines.iter().map(|line| line["lost_records"].as_u64().unwrap()).sum();
    let last = lines.last().expect("a lost line");
    assert_eq!((&last["lost_records_total"], said), (&lost.into(), lost), "{last}");
    assert!(
        lines
            .iter()
            .all(|line| line["reason"].as_str().is_some_and(|reason| reason.contains("ring"))),
        "{lines:?}"
    );
    let times: Vec<_> = lines.iter().map(|line| moment(&line["time"]).unwrap()).collect();
    let apart = times[..times.len() - 1]
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]).unwrap());
    // By the counters' own times, which are those of the lines.
    assert!(
        apart.into_iter().all(|apart| apart >= Duration::from_millis(990)),
        "{times:?}"
    );
}

/// Openings that the tracer says were lost, in all: `lost 3 openings, 9 since the start: …`.
fn openings_lost(stderr: &[String]) -> u64 {
    let lines = stderr.iter().filter_map(|line| line.strip_prefix("kmesh-trace: lost "));
    let number = |line: &str| line.split(" opening").next()?.parse::<u64>().ok();
    lines.filter_map(number).sum()
}
