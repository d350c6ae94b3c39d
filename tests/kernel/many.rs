//! Crowds of short connections: each end recorded once, to the byte.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::expect::{Scene, own_comm};
use crate::support::probe::Need;
use crate::support::sock::{V, drain, exchange, listen, pair_with, wait_until};
use crate::support::tracer::{Start, Tracer};
use crate::support::{bpf, net, patience, schema, small};
use crate::{Table, shared};

/// The trials.
pub fn table() -> Table {
    Table::new("many")
        .own("fifty_thousand", &[Need::Alone], fifty_thousand)
        .own("places_are_given_back", &[], places_are_given_back)
        .own("put_aside", &[Need::PutAside, Need::Alone], put_aside)
}

/// One record, as far as a crowd is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    inbound: bool,
    src: String,
    dst: String,
    /// Bytes.
    pub sent: u64,
    /// Bytes.
    pub received: u64,
    outcome: String,
    closed_by: String,
    process: String,
}

impl Seen {
    /// The same where no program is known.
    fn of_nobody(&self) -> Self {
        Self {
            process: "/null".to_owned(),
            ..self.clone()
        }
    }
}

/// How often each was seen.
#[derive(Default)]
struct Crowd {
    seen: Mutex<(HashMap<Seen, i64>, usize)>,
    news: Condvar,
}

impl Crowd {
    fn add(&self, seen: Seen) {
        let mut all = self.seen.lock().unwrap();
        *all.0.entry(seen).or_default() += 1;
        all.1 += 1;
        self.news.notify_all();
    }

    /// Waits for so many, then says which are missing (below zero) or too many (above it).
    fn compare(&self, wanted: &[Seen], what: &str) {
        let mut all = self.seen.lock().unwrap();
        // For as long as they keep coming: each is put through a schema, which takes what time a busy machine has for it.
        while all.1 < wanted.len() {
            let (now, waited) = self.news.wait_timeout(all, patience()).unwrap();
            all = now;
            if waited.timed_out() {
                break;
            }
        }
        let count = all.1;
        let mut difference = all.0.clone();
        drop(all);
        for one in wanted {
            *difference.entry(one.clone()).or_default() -= 1;
        }
        difference.retain(|_, count| *count != 0);
        let first: Vec<_> = difference.iter().take(6).collect();
        assert!(
            difference.is_empty() && count == wanted.len(),
            "{what}: {count} records for {} ends, {} different, such as {first:#?}",
            wanted.len(),
            difference.len()
        );
    }
}

/// Fifty thousand connections from four threads, sizes of 0 to 2,000 bytes each way, either end closing first; through the
/// shared tracer as JSON and through one of its own as log lines.
fn fifty_thousand() {
    let json = Arc::new(Crowd::default());
    // What had the namespace's number before has told all it had to.
    drop(Scene::of_new_namespace(&shared().store));
    shared().store.fold(net::inode(), {
        let json = Arc::clone(&json);
        move |record| json.add(of_json(record))
    });
    let log = Arc::new(Crowd::default());
    let logger = Start::new(&["-o", "log"])
        .lines({
            let log = Arc::clone(&log);
            move |line| {
                let line = std::str::from_utf8(line).expect("UTF-8");
                // A log line has no namespace. Nobody else uses this address.
                if line.contains("dst.addr=127.77.7.") {
                    log.add(of_log(line));
                }
            }
        })
        .tracing();
    let each = if small() { 500 } else { 12_500 };
    let wanted: Vec<Seen> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=4).map(|seed| scope.spawn(move || crowd(7, seed, each))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a crowd"))
            .collect()
    });
    assert_eq!(wanted.len(), 8 * each);
    json.compare(&wanted, "JSON");
    log.compare(&wanted, "log");
    shared().store.forget(net::inode());
    let end = logger.interrupt();
    assert!(end.status.success(), "{}: {:?}", end.status, end.stderr);
}

/// More threads than processors, in slices of 0.1 ms that end wherever the task is. Where the kernel may put a program aside
/// with its task (from 7.0 on), it then skips runs of each for other connections. What is told is right nevertheless, and
/// what is not told is counted.
fn put_aside() {
    let scheduler = Path::new("/sys/kernel/debug/sched");
    std::fs::write(scheduler.join("features"), "HRTICK").expect("debugfs");
    // Kernels before 6.6 have none, nor any that skips.
    _ = std::fs::write(scheduler.join("base_slice_ns"), "100000");
    // The first look asks the tool for its schema: see `two_tracers_under_load`.
    _ = schema::check(&Value::Null);
    let tracer = Tracer::json(&[]);
    tracer.store.keep(net::inode());
    // Keeps nothing of them.
    let another = Tracer::json(&["--port", "9"]);
    let wanted: Vec<Seen> = thread::scope(|scope| {
        let threads: Vec<_> = (1..=8).map(|seed| scope.spawn(move || crowd(15, seed, 250))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a crowd"))
            .collect()
    });
    println!(
        "runs that the kernel skipped, by program: {:?}",
        bpf::skipped_runs(tracer.pid)
    );
    let end = tracer.interrupt();
    let sums = end.check();
    println!("{sums:?}");
    // By their addresses, which come again where the run takes longer than a second.
    let mut ends: HashMap<_, Vec<&Seen>> = HashMap::new();
    for seen in &wanted {
        let there = ends.entry((seen.inbound, &*seen.src, &*seen.dst)).or_default();
        there.push(seen);
    }
    let told: Vec<_> = end
        .store
        .records(net::inode())
        .iter()
        .map(|rec| of_json(&rec.value))
        .collect();
    for seen in &told {
        let there = ends.entry((seen.inbound, &*seen.src, &*seen.dst)).or_default();
        // Whose it is shows in the system calls alone.
        let alike = |one: &&Seen| *one == seen || one.of_nobody() == *seen;
        let at = there.iter().position(alike);
        assert!(at.is_some(), "{seen:#?} is none of {there:#?}");
        there.swap_remove(at.unwrap_or_default());
    }
    let (made, told) = (wanted.len() as u64, told.len() as u64);
    let certainly_lost = sums.lost - sums.lost_at_most;
    assert!(
        told + certainly_lost <= made && made <= told + sums.lost,
        "{made} ends, {told} told: {sums:?}"
    );
    assert_eq!(sums.open, sums.lost_at_most, "what is not told is not open");
    let sums = another.interrupt().check_whole();
    assert_eq!((sums.delivered, sums.open), (0, 0), "{sums:?}");
}

/// One thread's connections, both ends in its hands, to an address of the network 127.77.`third`.0/24.
pub fn crowd(third: u8, seed: u8, count: usize) -> Vec<Seen> {
    crowd_while(third, seed, |made| made < count)
}

/// The same for as long as `more` says so, which is told how many there have been.
pub fn crowd_while(third: u8, seed: u8, mut more: impl FnMut(usize) -> bool) -> Vec<Seen> {
    let address = SocketAddr::from((Ipv4Addr::new(127, 77, third, seed), 0));
    // Several, since each closed connection keeps its client's port for a minute.
    let listeners: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind(address).expect("listen")).collect();
    let me = format!("{}/{}", own_comm(), std::process::id());
    let mut random = u64::from(seed);
    let mut next = |below: u64| {
        // Knuth's MMIX generator: any sequence will do, as long as it is the same each time.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut wanted = Vec::new();
    let mut made = 0;
    while more(made) {
        let pair = pair_with(&listeners[made % listeners.len()]);
        let (up, down) = (next(2001), next(2001));
        exchange(&pair, usize::try_from(up).unwrap(), usize::try_from(down).unwrap());
        let client_first = next(2) == 0;
        let (first, second) = if client_first {
            (pair.client, pair.server)
        } else {
            (pair.server, pair.client)
        };
        drop(first);
        assert_eq!(drain(&second), 0);
        drop(second);
        for inbound in [false, true] {
            wanted.push(Seen {
                inbound,
                src: pair.truth.src.to_string(),
                dst: pair.truth.dst.to_string(),
                sent: if inbound { down } else { up },
                received: if inbound { up } else { down },
                outcome: "ok".to_owned(),
                closed_by: if inbound == client_first { "peer" } else { "local" }.to_owned(),
                process: me.clone(),
            });
        }
        made += 1;
    }
    wanted
}

/// A record, as far as a crowd is looked at.
pub fn of_json(record: &Value) -> Seen {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let end = |end: &Value| format!("{}:{}", text(&end["ip"]), end["port"]);
    Seen {
        inbound: record["direction"] == "inbound",
        src: end(&record["src"]),
        dst: end(&record["dst"]),
        sent: record["sent_bytes"].as_u64().unwrap_or(u64::MAX),
        received: record["received_bytes"].as_u64().unwrap_or(u64::MAX),
        outcome: text(&record["outcome"]),
        closed_by: text(&record["closed_by"]),
        process: format!("{}/{}", text(&record["process"]["comm"]), record["process"]["pid"]),
    }
}

fn of_log(line: &str) -> Seen {
    let field = |name: &str| {
        let at = line
            .find(&format!(" {name}="))
            .unwrap_or_else(|| panic!("no {name} in {line}"));
        let rest = &line[at + name.len() + 2..];
        rest.split([',', '\n'])
            .next()
            .unwrap_or_default()
            .trim_matches('"')
            .to_owned()
    };
    Seen {
        inbound: field("direction") == "INBOUND",
        src: field("src.addr"),
        dst: field("dst.addr"),
        sent: field("sent_bytes").parse().unwrap_or(u64::MAX),
        received: field("received_bytes").parse().unwrap_or(u64::MAX),
        outcome: field("outcome"),
        closed_by: field("closed_by"),
        process: field("process"),
    }
}

/// What is kept of a client has a place of its own while its socket is there, and none after. (Of the clients of other scenarios
/// nothing is kept.)
fn places_are_given_back() {
    const CLIENTS: usize = 100;
    let listener = listen(V::Four);
    let server = listener.local_addr().unwrap();
    let tracer = Start::new(&["-o", "json", &format!("--port={}", server.port())]).tracing();
    let objects = bpf::objects_of(tracer.pid);
    let taken = || {
        // A slot: its socket's cookie, when that went, and how many have it; then what is kept.
        let slots: Vec<[u64; 11]> = bpf::elements(&objects, "KMESH_CLIENTS");
        slots.iter().filter(|[_, _, claims, ..]| *claims != 0).count()
    };
    assert_eq!(taken(), 0);
    // Each processor gives out cookies of a row of its own, and where two rows meet, one of two sockets has no place.
    let mut here = CpuSet::new();
    here.set(sched_getcpu().unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
    let ends: Vec<_> = (0..CLIENTS)
        .map(|_| (TcpStream::connect(server).unwrap(), listener.accept().unwrap()))
        .collect();
    let most = taken();
    // A row may end among them.
    assert!((CLIENTS * 9 / 10..=CLIENTS).contains(&most), "{most} of {CLIENTS}");
    drop(ends);
    wait_until("each place is free", || taken() == 0);
    let sums = tracer.interrupt().check_whole();
    assert_eq!((sums.delivered, sums.open), (2 * CLIENTS as u64, 0), "{sums:?}");
}
