//! `explain` on a live kernel: each scenario breaks real connections in one way, and expects the finding of its rule.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{SockRef, Socket};

use crate::Topic;
use crate::support::delay::DelayedNetwork;
use crate::support::probe::{self, Need};
use crate::support::sock::{
    ClosedPort, IpVersion, bound_socket, connect_nonblocking, connect_nonblocking_with, drain, exchanged_pair, listen,
    pair, pair_with, recv, reset, send, send_segments, set_small_send_buffer, wait_until,
};
use crate::support::tcp_info::TcpInfo;
use crate::support::tracer::{Tracer, TracerCommand, binary};
use crate::support::{net, schema};

const V4: IpVersion = IpVersion::V4;

pub fn topic() -> Topic {
    Topic::new("explain")
        .standalone("healthy_connections_have_no_finding", &[], healthy)
        .standalone("refused_attempts_are_found", &[], refused)
        .standalone("attempts_without_an_answer_are_found", &[Need::Nft], no_answer)
        .standalone("resets_are_found_with_the_end_that_sent_them", &[], resets)
        .standalone("full_accept_queue_is_found", &[], accept_queue)
        .standalone("connections_that_are_not_closed_are_found", &[], not_closed)
        .standalone("churn_is_found", &[], churn)
        .standalone("reader_that_stops_is_found", &[], stopped_reader)
        .standalone("small_send_buffer_is_found", &[Need::Tun], small_send_buffer)
        .standalone("slow_answers_are_found", &[Need::Turns], slow_answers)
        .standalone(
            "workshop_shows_each_fault_first",
            &[Need::Turns, Need::Nft, Need::Python, Need::FullSize],
            workshop,
        )
}

/// A watch over this scenario's connections.
struct Watch {
    tracer: Tracer,
    lines: Arc<Mutex<Vec<Value>>>,
    started: Instant,
}

impl Watch {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(args: &[&str]) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let mut command = Command::new(binary());
        command.arg("explain");
        let tracer = TracerCommand::wrapped_by(command, &[&["-o", "json", "--duration", "1h"], args].concat())
            .on_line({
                let lines = Arc::clone(&lines);
                move |line| {
                    let value: Value = serde_json::from_slice(line).unwrap();
                    schema::check(&value).unwrap_or_else(|error| panic!("{error}: {value}"));
                    lines.lock().unwrap().push(value);
                }
            })
            .spawn();
        tracer.wait_stderr("kmesh-trace: watching");
        Self {
            tracer,
            lines,
            started: Instant::now(),
        }
    }

    /// Ends the watch. Returns its findings and its summary.
    fn end(self) -> (Vec<Value>, Value) {
        let exit = self.tracer.interrupt();
        assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
        let mut lines = self.lines.lock().unwrap().clone();
        let summary = lines.pop().expect("a summary");
        assert_eq!(summary["type"], "summary");
        (lines, summary)
    }

    /// Ends the watch. Returns its only finding, which must be of this rule.
    fn only(self, rule: &str) -> Value {
        let (findings, summary) = self.end();
        let [finding] = &findings[..] else {
            panic!("{findings:#?}: {summary}");
        };
        assert_eq!(finding["rule"], rule, "{finding:#}");
        finding.clone()
    }

    /// Waits until the watch has lasted this long.
    fn wait(&self, duration: Duration) {
        wait_until("the length of the watch", || self.started.elapsed() >= duration);
    }
}

fn evidence(finding: &Value) -> String {
    let sentences = finding["evidence"].as_array().unwrap().iter();
    sentences
        .map(|sentence| sentence.as_str().unwrap())
        .collect::<Vec<_>>()
        .join(" ")
}

fn healthy() {
    let watch = Watch::start();
    for _ in 0..10 {
        exchanged_pair(V4).close_client_first();
    }
    let (findings, summary) = watch.end();
    assert_eq!(findings, [] as [Value; 0], "{summary}");
}

fn refused() {
    let watch = Watch::start();
    let closed = ClosedPort::new();
    let ports: Vec<_> = (0..5)
        .map(|_| connect_nonblocking(V4.at(0), closed.at(V4)).truth.dst.port())
        .collect();
    let finding = watch.only("refused");
    assert_eq!((&finding["count"], &finding["of"]), (&5.into(), &5.into()));
    assert_eq!(finding["subject"]["dst"]["port"], ports[0]);
    assert_eq!(finding["severity"], "critical");
    let evidence = evidence(&finding);
    let expected = match probe::check(&[Need::ResetReasons]) {
        Ok(()) => "NO_SOCKET",
        Err(_) => "answered RST",
    };
    assert!(evidence.contains(expected), "{evidence}");
    let command = finding["command"].as_str().unwrap();
    assert!(
        command.ends_with(&format!("--to-port {} --outcome refused", ports[0])),
        "{command}"
    );
}

fn no_answer() {
    let watch = Watch::start();
    let listener = listen(V4);
    let to = listener.local_addr().unwrap();
    net::set_packet_filter(&[&format!("tcp dport {} drop", to.port())]);
    let sockets: Vec<Socket> = (0..3)
        .map(|_| {
            let socket = bound_socket(V4.at(0));
            socket.set_nonblocking(true).unwrap();
            socket.connect(&to.into()).unwrap_err();
            socket
        })
        .collect();
    wait_until("each SYN was sent three times", || {
        sockets.iter().all(|socket| TcpInfo::read(socket).total_retrans() >= 2)
    });
    drop(sockets);
    let finding = watch.only("no_answer");
    assert_eq!((&finding["count"], &finding["of"]), (&3.into(), &3.into()));
    let evidence = evidence(&finding);
    assert!(evidence.contains("NETFILTER_DROP"), "{evidence}");
}

fn resets() {
    let watch = Watch::start();
    let listener = listen(V4);
    for _ in 0..5 {
        let pair = pair_with(&listener);
        send(&pair.server, 100);
        reset(pair.server);
        // The client notices.
        wait_until("the reset", || {
            let mut bytes = [0; 4096];
            (&pair.client).read(&mut bytes).is_err()
        });
    }
    let finding = watch.only("resets");
    assert_eq!((&finding["count"], &finding["of"]), (&5.into(), &5.into()));
    let text = finding["text"].as_str().unwrap();
    assert!(text.contains("reset by the server's end"), "{text}");
}

fn accept_queue() {
    let watch = Watch::start();
    let listener = bound_socket(V4.at(0));
    listener.listen(2).unwrap();
    let to = listener.local_addr().unwrap().as_socket().unwrap();
    let attempts: Vec<_> = (0..6).map(|_| connect_nonblocking_with(V4.at(0), to, |_| ())).collect();
    watch.wait(Duration::from_millis(1_500));
    let finding = watch.only("accept_queue");
    assert_eq!(finding["subject"]["dst"]["port"], to.port());
    assert!(evidence(&finding).contains("the limit is 2"), "{finding:#}");
    drop(attempts);
}

fn not_closed() {
    let watch = Watch::start();
    let listener = listen(V4);
    let held: Vec<_> = (0..4)
        .map(|_| pair_with(&listener))
        .map(|pair| {
            drop(pair.client);
            pair.server
        })
        .collect();
    // A process has had the time of two scans, 5 s apart, to close them.
    watch.wait(Duration::from_secs(17));
    let finding = watch.only("not_closed");
    assert_eq!((&finding["count"], &finding["of"]), (&4.into(), &4.into()));
    let text = finding["text"].as_str().unwrap();
    assert!(text.contains(&format!("/{}", std::process::id())), "{text}");
    drop(held);
}

/// Many short connections are found if there are 20 a second, which a slow machine may not make.
fn churn() {
    const CONNECTIONS: u64 = 200;
    let before = Instant::now();
    let watch = Watch::start();
    let listener = listen(V4);
    let mut count: u64 = 0;
    while count < CONNECTIONS || watch.started.elapsed() < Duration::from_secs(1) {
        pair_with(&listener).close_client_first();
        count += 1;
    }
    let at_least = watch.started.elapsed();
    let (findings, summary) = watch.end();
    let length = Duration::from_nanos(summary["elapsed_ns"].as_u64().unwrap());
    assert!((at_least..before.elapsed()).contains(&length), "{summary}");
    let expected = if length <= Duration::from_secs(count) / 20 {
        vec![("churn", count)]
    } else {
        vec![]
    };
    let found = findings.iter().map(|finding| {
        let rule = finding["rule"].as_str().unwrap();
        (rule, finding["of"].as_u64().unwrap())
    });
    assert_eq!(found.collect::<Vec<_>>(), expected, "{summary}");
    drop(pair(V4));
}

/// The server does not read for most of the time in which the client has data to send.
fn stopped_reader() {
    const BYTES: usize = 1 << 20;
    let watch = Watch::start();
    let listener = listen(V4);
    SockRef::from(&listener).set_recv_buffer_size(8 << 10).unwrap();
    let pair = pair_with(&listener);
    thread::scope(|scope| {
        // The send buffer of many kernels holds less.
        scope.spawn(|| send(&pair.client, BYTES));
        watch.wait(Duration::from_secs(2));
        recv(&pair.server, BYTES);
    });
    pair.close_client_first();
    let finding = watch.only("held_back");
    let text = finding["text"].as_str().unwrap();
    assert!(text.contains("the client waits for the receiver's window"), "{text}");
    let evidence = evidence(&finding);
    let process = format!("/{} does not read fast enough", std::process::id());
    assert!(evidence.contains(&process), "{evidence}");
}

/// The client's send buffer holds less than the network does, and the server reads at once.
fn small_send_buffer() {
    // Much longer than a slow machine needs to send a buffer.
    let network = DelayedNetwork::new(Duration::from_millis(50));
    let watch = Watch::start();
    let pair = pair_with(&network.listener);
    set_small_send_buffer(&pair.client);
    thread::scope(|scope| {
        let ends = &pair;
        scope.spawn(|| {
            // Longer than the rule's minimum.
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(4) {
                send_segments(&ends.client, 1);
            }
            ends.client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        drain(&ends.server);
    });
    drop(pair);
    let finding = watch.only("held_back");
    let text = finding["text"].as_str().unwrap();
    assert!(text.contains("the client waits for its own send buffer"), "{text}");
}

/// The server thinks for longer than the rule allows. Some requests at once, so that the scenario takes a second.
fn slow_answers() {
    const REQUESTS: u64 = 24;
    const THINK: Duration = Duration::from_millis(600);
    let watch = Watch::start_with(&["--turns"]);
    let listener = listen(V4);
    let pairs: Vec<_> = (0..REQUESTS).map(|_| pair_with(&listener)).collect();
    for pair in &pairs {
        send(&pair.client, 100);
        recv(&pair.server, 100);
    }
    thread::sleep(THINK);
    for pair in pairs {
        send(&pair.server, 300);
        recv(&pair.client, 300);
        pair.close_client_first();
    }
    let finding = watch.only("slow_answers");
    assert_eq!(finding["of"], REQUESTS);
    let evidence = evidence(&finding);
    assert!(evidence.contains("The server's process took p95"), "{evidence}");
}

/// The faults of `examples/workshop`: one for each rule.
const WORKSHOP: [&str; 11] = [
    "refused",
    "no_answer",
    "resets",
    "accept_queue",
    "slow_connect",
    "loss",
    "slow_answers",
    "held_back",
    "not_closed",
    "churn",
    "one_of_many",
];

/// Runs the workshop with all faults at once, since each has its own network namespace and port.
fn workshop() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/workshop/workshop.sh");
    let runs = WORKSHOP.map(|fault| {
        let mut command = Command::new(script);
        command.args([fault, "-o", "json"]).env("KMESH_TRACE", binary());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        (fault, command.spawn().unwrap())
    });
    let mut failures = Vec::new();
    for (fault, run) in runs {
        let output = run.wait_with_output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let rules: Vec<_> = lines.iter().map(|line| line["rule"].as_str()).collect();
        println!("{fault}: {rules:?}");
        if !output.status.success() || rules.first() != Some(&Some(fault)) {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            failures.push(format!("{fault}: {}, {lines:#?}, {stderr}", output.status));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
