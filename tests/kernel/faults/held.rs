//! Hundreds of thousands of sockets that are older than the tracer, held open by other processes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::Table;
use crate::support::actor::{Actor, held_bytes};
use crate::support::probe::Need;
use crate::support::tracer::Start;
use crate::support::{patience, peak_kib, small};

/// Adds the trials.
pub fn add(table: Table) -> Table {
    table.own(
        "two_hundred_thousand_sockets",
        &[Need::Alone],
        two_hundred_thousand_sockets,
    )
}

/// Connections a process: two descriptors each, under the usual limit of 20,000.
const EACH: usize = 9_000;
const INTERVAL: Duration = Duration::from_secs(4);

/// One end: whether it is the server's, the client's port, the server's address.
type End = (bool, u16, SocketAddr);

/// What was told of an end.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    updates: u32,
    closes: u32,
}

#[derive(Default)]
struct All {
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
    /// A line of a held end is looked at. In rounds: an end that is told of comes again only once all others have been told
    /// of as often.
    fn look(&self, line: &str) {
        let Some(end) = end(line) else { return };
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
        let told = all.ends.entry(end).or_default();
        let right = wanted.iter().all(|part| line.contains(part)) && told.closes == 0;
        told.closes += u32::from(close);
        told.updates += u32::from(!close);
        if !right {
            all.wrong.push(line.to_owned());
        }
        all.closes += usize::from(close);
        all.updates += usize::from(!close);
        drop(all);
        self.news.notify_all();
    }

    /// Waits until `is_so`, and tells when that was.
    fn wait(&self, what: &str, is_so: impl Fn(&All) -> bool) -> Instant {
        let all = self.all.lock().unwrap();
        let (all, waited) = self
            .news
            .wait_timeout_while(all, patience(), |all| !is_so(all))
            .unwrap();
        assert!(
            !waited.timed_out(),
            "{what}: {} updates, {} closes",
            all.updates,
            all.closes
        );
        Instant::now()
    }
}

/// Of the network that only this test uses.
fn end(line: &str) -> Option<End> {
    let field = |name: &str| line.split_once(name)?.1.split(',').next();
    let server: SocketAddr = field(" dst.addr=")?.parse().ok()?;
    let client: SocketAddr = field(" src.addr=")?.parse().ok()?;
    let inbound = field(" direction=")? == "INBOUND";
    line.contains(" dst.addr=127.77.15.")
        .then_some((inbound, client.port(), server))
}

/// `KMESH_TRACE_TEST_SOCKETS` says how many.
fn sockets() -> usize {
    let asked = std::env::var("KMESH_TRACE_TEST_SOCKETS").map(|sockets| sockets.parse().unwrap());
    asked.unwrap_or(if small() { 400 } else { 200_000 })
}

/// All are told of once in each of two intervals, then at their ends.
fn two_hundred_thousand_sockets() {
    let sockets = sockets();
    let began = Instant::now();
    let (mut actors, mut left) = (Vec::new(), sockets / 2);
    while left > 0 {
        let actor = Actor::start();
        actor.begin(&format!("hold 127.77.15.{}:0 {}", actors.len() + 1, left.min(EACH)));
        actors.push(actor);
        left = left.saturating_sub(EACH);
    }
    let servers: Vec<SocketAddr> = actors.iter().map(|actor| actor.done().parse().unwrap()).collect();
    let opened = began.elapsed();

    let looked = Arc::new(Looked::default());
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
    let interval = format!("{}s", INTERVAL.as_secs());
    let tracer = Start::new(&["-o", "log", "--events", "update,close", "--interval", &interval])
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
    // One by one, or they would leave the tracer no processor.
    for actor in &actors {
        actor.ask("release");
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
    let odd = all.ends.iter().find(|(_, told)| told.updates != 2);
    assert_eq!(
        odd.map(|(end, told)| (*end, told.updates)),
        None,
        "each twice, in two intervals"
    );
}
