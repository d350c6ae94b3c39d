//! Crowds of short connections: each end recorded once, to the byte.

use std::collections::HashMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::expect::{Scene, own_comm};
use crate::support::probe::Need;
use crate::support::sock::{V, drain, exchange, listen, pair_with, wait_ended, wait_until};
use crate::support::tracer::{Start, Tracer};
use crate::support::{bpf, net, patience, small};
use crate::{Table, shared};

/// The trials.
pub fn table() -> Table {
    Table::new("many")
        .own("fifty_thousand", &[], fifty_thousand)
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
    /// Whether its server has this address.
    pub fn is_to(&self, server: Ipv4Addr) -> bool {
        self.dst.parse::<SocketAddr>().is_ok_and(|dst| dst.ip() == server)
    }

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
    let servers: [Ipv4Addr; 4] = std::array::from_fn(|number| net::address(number as u8));
    let logger = Start::new(&["-o", "log", "--buffer", "64MiB", "--to-ip", &net::list(&servers)])
        .lines({
            let log = Arc::clone(&log);
            move |line| {
                let line = std::str::from_utf8(line).expect("UTF-8");
                log.add(of_log(line));
            }
        })
        .tracing();
    let each = if small() { 500 } else { 12_500 };
    let wanted = crowds(&servers, each);
    assert_eq!(wanted.len(), 8 * each);
    json.compare(&wanted, "JSON");
    log.compare(&wanted, "log");
    shared().store.forget(net::inode());
    let end = logger.interrupt();
    assert!(end.status.success(), "{}: {:?}", end.status, end.stderr);
}

/// The scheduler with slices of 0.1 ms that end wherever a task is, until this is dropped.
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

/// More threads than processors, in short slices, until the kernel has preempted a program and skipped its runs for other
/// connections. What is told is right nevertheless, and what is not told is counted.
fn put_aside() {
    let _slices = ShortSlices::new();
    let tracer = Tracer::json(&[]);
    tracer.store.keep(net::inode());
    // Keeps nothing of them.
    let another = Tracer::json(&["--port", "9"]);
    let servers: [Ipv4Addr; 8] = std::array::from_fn(|number| net::address(number as u8));
    let mut wanted = crowds(&servers, 250);
    let mut skipped = bpf::skipped_runs(tracer.pid);
    wait_until("the kernel skips a run", || {
        if skipped.is_empty() {
            wanted.extend(crowds(&servers, 50));
            skipped = bpf::skipped_runs(tracer.pid);
        }
        !skipped.is_empty()
    });
    println!("runs that the kernel skipped, by program: {skipped:?}");
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

/// One thread's connections to this address, both ends in its hands, all ended.
pub fn crowd(server: Ipv4Addr, count: usize) -> Vec<Seen> {
    crowd_while(server, |made| made < count)
}

/// The same from a thread for each of these addresses.
pub fn crowds(servers: &[Ipv4Addr], count: usize) -> Vec<Seen> {
    thread::scope(|scope| {
        let threads: Vec<_> = servers
            .iter()
            .map(|&server| scope.spawn(move || crowd(server, count)))
            .collect();
        let made = threads.into_iter().map(|thread| thread.join().expect("a crowd"));
        made.flatten().collect()
    })
}

/// Connections to this address for as long as `more` says so, which is told how many there have been.
pub fn crowd_while(server: Ipv4Addr, mut more: impl FnMut(usize) -> bool) -> Vec<Seen> {
    let address = SocketAddr::from((server, 0));
    // Several, since each closed connection keeps its client's port for a minute.
    let listeners: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind(address).expect("listen")).collect();
    let me = format!("{}/{}", own_comm(), std::process::id());
    let mut random = u64::from(server.octets()[3]);
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
    for listener in listeners {
        wait_ended(listener.local_addr().expect("its address").port());
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
        bpf::elements(&objects, "KMESH_CLIENTS")
            .iter()
            .filter(|slot| slot[2] != 0)
            .count()
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
    // A row may end among them, and each of the next row's meet one of the last row's.
    assert!((CLIENTS / 2..=CLIENTS).contains(&most), "{most} of {CLIENTS}");
    drop(ends);
    wait_until("each place is free", || taken() == 0);
    let sums = tracer.interrupt().check_whole();
    assert_eq!((sums.delivered, sums.open), (2 * CLIENTS as u64, 0), "{sums:?}");
}
