//! Hundreds of thousands of sockets that are older than the tracer, held open by other processes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Instant;

use crate::Table;
use crate::support::actor::{Actor, held_bytes};
use crate::support::tracer::Start;
use crate::support::{net, patience, peak_kib, small};

/// Adds the trials.
pub fn add(table: Table) -> Table {
    table.own("many_sockets_from_before", &[], many_sockets_from_before)
}

/// Connections a process: two descriptors each, under the usual limit of 20,000.
const EACH: usize = 9_000;

/// One end: whether it is the server's, the client's port, the server's address.
type End = (bool, u16, SocketAddr);

/// What was told of an end.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    updates: usize,
    closes: usize,
}

#[derive(Default)]
struct All {
    sockets: usize,
    ends: HashMap<End, Told>,
    updates: usize,
    closes: usize,
    wrong: Vec<String>,
}

#[derive(Default)]
struct Looked {
    all: Mutex<All>,
    news: Condvar,
}

impl Looked {
    fn new(sockets: usize) -> Self {
        let looked = Self::default();
        looked.all.lock().unwrap().sockets = sockets;
        looked
    }

    /// A line of a held end is looked at.
    fn look(&self, line: &str) {
        let end = end(line).unwrap_or_else(|| panic!("no end: {line}"));
        let mut all = self.all.lock().unwrap();
        let (up, down) = held_bytes(end.1);
        let (sent, received) = if end.0 { (down, up) } else { (up, down) };
        let close = !line.ends_with("event=update\n");
        let outcome = if close { "ok" } else { "-" };
        let closed_by = match (close, end.0) {
            (false, _) => "-",
            (true, false) => "local",
            (true, true) => "peer",
        };
        let wanted = [
            format!(" sent_bytes={sent}, received_bytes={received}, "),
            format!(
                " outcome={outcome}, closed_by={closed_by}, errno=-, established=true, connect=-, undelivered_bytes=0, "
            ),
            "preexisting=true".to_owned(),
        ];
        let (told_by_now, any_closed, sockets) = (all.updates, all.closes > 0, all.sockets);
        let told = all.ends.entry(end).or_default();
        // Each walk tells each open end once: an end comes again only when all ends have come as often.
        let in_turn = any_closed || told_by_now >= told.updates * sockets;
        let right = wanted.iter().all(|part| line.contains(part)) && told.closes == 0 && (close || in_turn);
        told.closes += usize::from(close);
        told.updates += usize::from(!close);
        if !right {
            all.wrong.push(line.to_owned());
        }
        all.closes += usize::from(close);
        all.updates += usize::from(!close);
        drop(all);
        self.news.notify_all();
    }

    /// Waits until `is_so`, for as long as lines keep coming, and tells when that was.
    fn wait(&self, what: &str, is_so: impl Fn(&All) -> bool) -> Instant {
        let mut all = self.all.lock().unwrap();
        while !is_so(&all) {
            let (now, waited) = self.news.wait_timeout(all, patience()).unwrap();
            all = now;
            assert!(
                !waited.timed_out(),
                "{what}: {} updates, {} closes",
                all.updates,
                all.closes
            );
        }
        Instant::now()
    }
}

fn end(line: &str) -> Option<End> {
    let field = |name: &str| line.split_once(name)?.1.split(',').next();
    let server: SocketAddr = field(" dst.addr=")?.parse().ok()?;
    let client: SocketAddr = field(" src.addr=")?.parse().ok()?;
    Some((field(" direction=")? == "INBOUND", client.port(), server))
}

/// `KMESH_TRACE_TEST_SOCKETS` says how many.
fn sockets() -> usize {
    let asked = std::env::var("KMESH_TRACE_TEST_SOCKETS").map(|sockets| sockets.parse().unwrap());
    asked.unwrap_or(if small() { 400 } else { 50_000 })
}

/// Each is told of once a walk, in two walks at least, then at its end.
fn many_sockets_from_before() {
    let sockets = sockets();
    let began = Instant::now();
    let (mut actors, mut addresses, mut left) = (Vec::new(), Vec::new(), sockets / 2);
    while left > 0 {
        let (actor, address) = (Actor::start(), net::address((actors.len() % 16) as u8));
        actor.begin(&format!("hold {address}:0 {}", left.min(EACH)));
        actors.push(actor);
        addresses.push(address);
        left = left.saturating_sub(EACH);
    }
    let servers: Vec<SocketAddr> = actors.iter().map(|actor| actor.done().parse().unwrap()).collect();
    let opened = began.elapsed();

    let looked = Arc::new(Looked::new(sockets));
    // Looked at elsewhere, so that a slow look never makes the tracer's pipe full.
    let (lines, told) = mpsc::channel::<Vec<u8>>();
    let checking = thread::spawn({
        let looked = Arc::clone(&looked);
        move || {
            for line in told {
                looked.look(std::str::from_utf8(&line).expect("UTF-8"));
            }
        }
    });
    let only = net::list(&addresses);
    let tracer = Start::new(&[
        "-o",
        "log",
        "--events",
        "update,close",
        "--interval",
        "4s",
        "--to-ip",
        &only,
    ])
    .lines(move |line| _ = lines.send(line.to_vec()))
    .tracing();
    let ready = began.elapsed();
    let first = looked.wait("the first interval", |all| all.updates >= sockets);
    let second = looked.wait("the second interval", |all| all.updates >= 2 * sockets);
    println!(
        "opened in {opened:?}, seeded by {ready:?}, told of by {:?} and {:?}, {} KiB",
        first - began,
        second - began,
        peak_kib(tracer.pid)
    );
    check_rounds(&looked, &servers, sockets);
    // The tracer tells one actor's ends before the next ones come: its ring has no room for those of all.
    let mut left = sockets;
    for actor in &actors {
        actor.ask("release");
        left = left.saturating_sub(2 * EACH);
        looked.wait("the ends of an actor's", |all| all.closes >= sockets - left);
    }
    let most = peak_kib(tracer.pid);
    let end = tracer.interrupt();
    checking.join().expect("what looks at lines");
    println!("closed by {:?}, {most} KiB: {:?}", began.elapsed(), end.stderr.last());
    assert!(end.status.success(), "{:?}", end.stderr);
    let all = looked.all.lock().unwrap();
    let lost = end
        .stderr
        .iter()
        .find(|line| line.contains("lost") && !line.contains(" 0 lost"));
    assert_eq!(lost, None);
    assert!(
        all.wrong.is_empty(),
        "{} wrong: {:?}",
        all.wrong.len(),
        all.wrong.first()
    );
    assert_eq!((all.ends.len(), all.closes), (sockets, sockets));
    let odd = all.ends.iter().find(|(_, told)| told.closes != 1);
    assert!(odd.is_none(), "closed once: {odd:?}");
    // What a walk tells is kept until the walk is over, to be told in the order of time.
    let bound = (10 << 10) + sockets as u64 / 2;
    assert!(most <= bound, "{most} KiB");
}

fn check_rounds(looked: &Looked, servers: &[SocketAddr], sockets: usize) {
    let all = looked.all.lock().unwrap();
    assert_eq!(all.ends.len(), sockets, "ends told of");
    assert!(all.ends.keys().all(|(_, _, server)| servers.contains(server)));
    assert!(
        all.wrong.is_empty(),
        "{} wrong: {:?}",
        all.wrong.len(),
        all.wrong.first()
    );
}
