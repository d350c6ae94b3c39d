//! Hundreds of thousands of preexisting sockets, which other processes own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Instant;

use crate::Topic;
use crate::support::actor::{Actor, payload_by_port};
use crate::support::tracer::{Tracer, TracerCommand};
use crate::support::{is_small_vm, net, peak_memory_kib, test_timeout};

pub fn add(topic: Topic) -> Topic {
    topic.standalone("many_preexisting_sockets", &[], many_preexisting_sockets)
}

/// The number of connections of one process, which has both ends: two descriptors for each connection. Some systems
/// allow a process 20,000 descriptors.
const CONNECTIONS_PER_PROCESS: usize = 9_000;

/// An end: whether it is the server's, the client's port, and the server's address.
type End = (bool, u16, SocketAddr);

/// The number of records of an end.
#[derive(Clone, Copy, Debug, Default)]
struct EventCounts {
    updates: usize,
    closes: usize,
}

#[derive(Default)]
struct State {
    sockets: usize,
    ends: HashMap<End, EventCounts>,
    updates: usize,
    closes: usize,
    wrong_lines: Vec<String>,
}

/// Checks and counts the log lines of a tracer.
#[derive(Default)]
struct LineChecker {
    state: Mutex<State>,
    changed: Condvar,
}

impl LineChecker {
    fn new(sockets: usize) -> Self {
        let checker = Self::default();
        checker.state.lock().unwrap().sockets = sockets;
        checker
    }

    fn check(&self, line: &str) {
        let end = parse_end(line).unwrap_or_else(|| panic!("no end: {line}"));
        let mut state = self.state.lock().unwrap();
        let (is_server, port, _) = end;
        let (up, down) = payload_by_port(port);
        let (sent, received) = if is_server { (down, up) } else { (up, down) };
        let is_close = !line.contains(", event=update,");
        let outcome = if is_close { "ok" } else { "-" };
        let closed_by = match (is_close, is_server) {
            (false, _) => "-",
            (true, false) => "local",
            (true, true) => "peer",
        };
        let expected = [
            format!(" sent_bytes={sent}, received_bytes={received}, "),
            format!(
                " outcome={outcome}, closed_by={closed_by}, errno=-, established=true, connect=-, undelivered_bytes=0, "
            ),
            "preexisting=true".to_owned(),
        ];
        let (all_updates, any_closed, sockets) = (state.updates, state.closes > 0, state.sockets);
        let of_end = state.ends.entry(end).or_default();
        // A scan reports each open end once, so an end has another update only when all ends have as many.
        let is_in_turn = any_closed || all_updates >= of_end.updates * sockets;
        let is_right =
            expected.iter().all(|part| line.contains(part)) && of_end.closes == 0 && (is_close || is_in_turn);
        of_end.closes += usize::from(is_close);
        of_end.updates += usize::from(!is_close);
        if !is_right {
            state.wrong_lines.push(line.to_owned());
        }
        state.closes += usize::from(is_close);
        state.updates += usize::from(!is_close);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits for a condition as long as correct lines come, and returns when it was met.
    fn wait(&self, condition: &str, is_met: impl Fn(&State) -> bool) -> Instant {
        let mut state = self.state.lock().unwrap();
        while !is_met(&state) {
            let (now, result) = self.changed.wait_timeout(state, test_timeout()).unwrap();
            state = now;
            assert_no_wrong_lines(&state);
            assert!(
                !result.timed_out(),
                "timeout: {condition}: {} updates, {} closes",
                state.updates,
                state.closes
            );
        }
        Instant::now()
    }

    fn check_no_wrong_lines(&self) {
        assert_no_wrong_lines(&self.state.lock().unwrap());
    }
}

fn assert_no_wrong_lines(state: &State) {
    assert!(
        state.wrong_lines.is_empty(),
        "{} wrong lines: {:?}",
        state.wrong_lines.len(),
        state.wrong_lines.first()
    );
}

fn parse_end(line: &str) -> Option<End> {
    let field = |name: &str| line.split_once(name)?.1.split(',').next();
    let server: SocketAddr = field(" dst.addr=")?.parse().ok()?;
    let client: SocketAddr = field(" src.addr=")?.parse().ok()?;
    Some((field(" direction=")? == "INBOUND", client.port(), server))
}

/// The number of sockets. `KMESH_TRACE_TEST_SOCKETS` sets it.
fn socket_count() -> usize {
    let count = std::env::var("KMESH_TRACE_TEST_SOCKETS").map(|count| count.parse().unwrap());
    count.unwrap_or(if is_small_vm() { 400 } else { 50_000 })
}

/// Processes that have many connections, and the addresses of their servers.
struct Owners {
    processes: Vec<Actor>,
    servers: Vec<SocketAddr>,
}

impl Owners {
    /// Starts the processes, and opens this number of connections in total.
    fn start(connections: usize) -> Self {
        let (mut processes, mut left) = (Vec::new(), connections);
        while left > 0 {
            let (process, address) = (Actor::start(), net::loopback_v4((processes.len() % 16) as u8));
            let count = left.min(CONNECTIONS_PER_PROCESS);
            process.start_command(&format!("open_connections {address}:0 {count}"));
            processes.push(process);
            left -= count;
        }
        let servers = processes.iter().map(|process| process.wait_result().parse().unwrap());
        let servers = servers.collect();
        Self { processes, servers }
    }

    /// Starts a tracer for these connections.
    fn trace(&self, on_line: impl FnMut(&[u8]) + Send + 'static) -> Tracer {
        let addresses: Vec<String> = self.servers.iter().map(|server| server.ip().to_string()).collect();
        let args = ["-o", "log", "--events", "update,close", "--interval", "4s", "--to-ip"];
        TracerCommand::new(&[&args[..], &[&addresses.join(",")]].concat())
            .on_line(on_line)
            .start()
    }
}

/// Each of at least two scans reports each end once, and each end has one close.
fn many_preexisting_sockets() {
    let sockets = socket_count();
    let start = Instant::now();
    let owners = Owners::start(sockets / 2);
    let opened = start.elapsed();
    let checker = Arc::new(LineChecker::new(sockets));
    // In another thread, so that a slow check does not fill the tracer's pipe.
    let (lines, received) = mpsc::channel::<Vec<u8>>();
    let checking = thread::spawn({
        let checker = Arc::clone(&checker);
        move || {
            for line in received {
                checker.check(std::str::from_utf8(&line).expect("UTF-8"));
            }
        }
    });
    let tracer = owners.trace(move |line| _ = lines.send(line.to_vec()));
    let ready = start.elapsed();
    let first = checker.wait("the first scan", |state| state.updates >= sockets);
    let second = checker.wait("the second scan", |state| state.updates >= 2 * sockets);
    println!(
        "opened in {opened:?}, tracing after {ready:?}, scanned after {:?} and {:?}, {} KiB",
        first - start,
        second - start,
        peak_memory_kib(tracer.pid)
    );
    checker.check_no_wrong_lines();
    {
        let state = checker.state.lock().unwrap();
        assert_eq!(state.ends.len(), sockets, "ends that have updates");
        let is_known = |(_, _, server): &End| owners.servers.contains(server);
        assert!(state.ends.keys().all(is_known));
    }
    // One process after another: the ring buffer cannot hold the closes of all processes.
    let mut left = sockets;
    for process in &owners.processes {
        process.run("close_connections");
        left = left.saturating_sub(2 * CONNECTIONS_PER_PROCESS);
        checker.wait("a process's closes", |state| state.closes >= sockets - left);
    }
    let peak = peak_memory_kib(tracer.pid);
    let exit = tracer.interrupt();
    checking.join().expect("the checking thread");
    println!(
        "closed after {:?}, {peak} KiB: {:?}",
        start.elapsed(),
        exit.stderr.last()
    );
    assert!(exit.status.success(), "{:?}", exit.stderr);
    let is_loss = |line: &&String| line.contains("lost") && !line.contains(" 0 lost");
    assert_eq!(exit.stderr.iter().find(is_loss), None);
    checker.check_no_wrong_lines();
    let state = checker.state.lock().unwrap();
    assert_eq!((state.ends.len(), state.closes), (sockets, sockets));
    let other = state.ends.iter().find(|(_, counts)| counts.closes != 1);
    assert!(other.is_none(), "not closed once: {other:?}");
    // The tracer prints updates in the order of time, so it stores each, in 0.4 KiB, until the ring has been read once
    // more. If the reading thread gets no processor during a scan, that is all updates of the scan, and twice as much
    // while their queue grows.
    let max = (10 << 10) + sockets as u64 * 4 / 5;
    assert!(peak <= max, "{peak} KiB");
}
