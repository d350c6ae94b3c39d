//! Tens of thousands of short connections. Each end has one record, exact to the byte.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{IpVersion, listen, wait_until};
use crate::support::tracer::{Tracer, TracerCommand};
use crate::support::traffic::{CompactRecord, random_traffic_to_all};
use crate::support::{bpf, is_small_vm, net, test_timeout};
use crate::{Topic, shared_tracer};

pub fn topic() -> Topic {
    Topic::new("stress")
        .standalone("50_000_connections", &[], fifty_thousand_connections)
        .standalone("client_slots_are_reused", &[], client_slots_are_reused)
        .standalone(
            "preempted_programs_lose_no_record_silently",
            &[Need::Preemption, Need::Exclusive],
            preempted_programs_lose_no_record_silently,
        )
}

/// The number of occurrences of each record, and of all records.
#[derive(Default)]
struct RecordCounts {
    counts: Mutex<(HashMap<CompactRecord, i64>, usize)>,
    changed: Condvar,
}

impl RecordCounts {
    fn add(&self, record: CompactRecord) {
        let mut counts = self.counts.lock().unwrap();
        *counts.0.entry(record).or_default() += 1;
        counts.1 += 1;
        self.changed.notify_all();
    }

    /// Waits for the expected number of records, and compares them. A difference is below zero for a missing record.
    fn compare(&self, expected: &[CompactRecord], output: &str) {
        let mut counts = self.counts.lock().unwrap();
        // As long as records come: the schema is checked for each, which takes a busy machine some time.
        while counts.1 < expected.len() {
            let (now, result) = self.changed.wait_timeout(counts, test_timeout()).unwrap();
            counts = now;
            if result.timed_out() {
                break;
            }
        }
        let (mut differences, count) = (counts.0.clone(), counts.1);
        drop(counts);
        for record in expected {
            *differences.entry(record.clone()).or_default() -= 1;
        }
        differences.retain(|_, difference| *difference != 0);
        let first: Vec<_> = differences.iter().take(6).collect();
        assert!(
            differences.is_empty() && count == expected.len(),
            "{output}: {count} records for {} ends, {} different, such as {first:#?}",
            expected.len(),
            differences.len()
        );
    }
}

/// Four threads make connections with 0 to 2,000 bytes each way, and either end closes first. The shared tracer prints
/// them as JSON, another one as log lines.
fn fifty_thousand_connections() {
    let json = Arc::new(RecordCounts::default());
    // Ignores late records of the namespace that had this one's number before.
    drop(RecordView::of_new_namespace(&shared_tracer().output));
    shared_tracer().output.watch_with(net::current_netns(), {
        let json = Arc::clone(&json);
        move |record| json.add(CompactRecord::from_json(record))
    });
    let log = Arc::new(RecordCounts::default());
    let servers: [Ipv4Addr; 4] = std::array::from_fn(|number| net::loopback_v4(number as u8));
    let only = net::comma_separated(&servers);
    let logger = TracerCommand::new(&["-o", "log", "--buffer", "64MiB", "--to-ip", &only])
        .on_line({
            let log = Arc::clone(&log);
            move |line| {
                let line = std::str::from_utf8(line).expect("UTF-8");
                log.add(CompactRecord::from_log_line(line));
            }
        })
        .start();
    let per_server = if is_small_vm() { 500 } else { 12_500 };
    let expected = random_traffic_to_all(&servers, per_server);
    assert_eq!(expected.len(), 8 * per_server);
    json.compare(&expected, "JSON");
    log.compare(&expected, "log");
    shared_tracer().output.unwatch(net::current_netns());
    let exit = logger.interrupt();
    assert!(exit.status.success(), "{}: {:?}", exit.status, exit.stderr);
}

/// Configures the scheduler to use time slices of 0.1 ms and to end them by a timer. Dropping it restores the
/// configuration.
struct ShortSlices {
    scheduler: &'static Path,
    base_slice_ns: String,
    features: String,
}

impl ShortSlices {
    fn new() -> Self {
        let scheduler = Path::new("/sys/kernel/debug/sched");
        let read = |name| fs::read_to_string(scheduler.join(name)).expect("debugfs");
        let slices = Self {
            scheduler,
            base_slice_ns: read("base_slice_ns"),
            features: read("features"),
        };
        slices.set("features", "HRTICK");
        slices.set("base_slice_ns", "100000");
        slices
    }

    fn set(&self, name: &str, value: &str) {
        fs::write(self.scheduler.join(name), value).expect("debugfs");
    }
}

impl Drop for ShortSlices {
    fn drop(&mut self) {
        self.set("base_slice_ns", self.base_slice_ns.trim());
        if self.features.split_whitespace().any(|feature| feature == "NO_HRTICK") {
            self.set("features", "NO_HRTICK");
        }
    }
}

/// More threads than processors run in short time slices until the kernel has preempted a program and skipped its runs
/// for other connections. The records that are printed are right, and the others are counted as lost.
fn preempted_programs_lose_no_record_silently() {
    let _slices = ShortSlices::new();
    let tracer = Tracer::json(&[]);
    tracer.output.watch(net::current_netns());
    // Its filter passes none of the connections.
    let rejecting = Tracer::json(&["--port", "9"]);
    let servers: [Ipv4Addr; 8] = std::array::from_fn(|number| net::loopback_v4(number as u8));
    let mut expected = random_traffic_to_all(&servers, 250);
    let mut skipped = bpf::skipped_runs(tracer.pid);
    wait_until("the kernel skips a run", || {
        if skipped.is_empty() {
            expected.extend(random_traffic_to_all(&servers, 50));
            skipped = bpf::skipped_runs(tracer.pid);
        }
        !skipped.is_empty()
    });
    println!("runs that the kernel skipped, by program: {skipped:?}");
    let exit = tracer.interrupt();
    let totals = exit.check();
    println!("{totals:?}");
    let records = exit.output.records(net::current_netns());
    let records: Vec<_> = records
        .iter()
        .map(|record| CompactRecord::from_json(&record.value))
        .collect();
    check_each_is_expected(&records, &expected);
    let (made, printed) = (expected.len() as u64, records.len() as u64);
    let certainly_lost = totals.lost - totals.lost_at_most;
    assert!(
        printed + certainly_lost <= made && made <= printed + totals.lost,
        "{made} ends, {printed} printed: {totals:?}"
    );
    assert_eq!(
        totals.open, totals.lost_at_most,
        "a missed close leaves its connection open"
    );
    let totals = rejecting.interrupt().check_lossless();
    assert_eq!((totals.delivered, totals.open), (0, 0), "{totals:?}");
}

/// Checks that each record is one of the expected records, and that none occurs more often.
fn check_each_is_expected(records: &[CompactRecord], expected: &[CompactRecord]) {
    // By addresses: the same ones occur again if the run takes longer than a second.
    type Addresses<'a> = (bool, &'a str, &'a str);
    fn addresses(record: &CompactRecord) -> Addresses<'_> {
        (record.is_inbound, &record.src, &record.dst)
    }
    let mut by_addresses: HashMap<Addresses<'_>, Vec<&CompactRecord>> = HashMap::new();
    for record in expected {
        by_addresses.entry(addresses(record)).or_default().push(record);
    }
    for record in records {
        let candidates = by_addresses.entry(addresses(record)).or_default();
        // The owner is unknown if the kernel skipped the program at the system call.
        let is_it = |one: &&CompactRecord| *one == record || one.without_process() == *record;
        let found = candidates.iter().position(is_it);
        assert!(found.is_some(), "{record:#?} is none of {candidates:#?}");
        candidates.swap_remove(found.unwrap_or_default());
    }
}

/// The kernel side stores a client's state in a slot while its socket exists, and then frees the slot. (The tracer's
/// filter passes no clients of other scenarios.)
fn client_slots_are_reused() {
    const CLIENTS: usize = 100;
    let listener = listen(IpVersion::V4);
    let server = listener.local_addr().unwrap();
    let tracer = TracerCommand::new(&["-o", "json", &format!("--port={}", server.port())]).start();
    let objects = bpf::objects_of(tracer.pid);
    let used_slots = || {
        // The words of a slot: the socket's cookie, when the socket ended, the number of users, then the state.
        bpf::elements(&objects, "KMESH_CLIENTS")
            .iter()
            .filter(|slot| slot[2] != 0)
            .count()
    };
    assert_eq!(used_slots(), 0);
    // Each processor assigns its own range of cookies. Two cookies of different ranges may have the same slot, which
    // only one gets.
    let mut this_cpu = CpuSet::new();
    this_cpu.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &this_cpu).unwrap();
    let ends: Vec<_> = (0..CLIENTS)
        .map(|_| (TcpStream::connect(server).unwrap(), listener.accept().unwrap()))
        .collect();
    let used = used_slots();
    // The range may end in the middle, and each cookie of the next range may have a slot of the last one.
    assert!((CLIENTS / 2..=CLIENTS).contains(&used), "{used} of {CLIENTS}");
    drop(ends);
    wait_until("all slots are free", || used_slots() == 0);
    let totals = tracer.interrupt().check_lossless();
    assert_eq!((totals.delivered, totals.open), (2 * CLIENTS as u64, 0), "{totals:?}");
}
