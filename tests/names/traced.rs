//! The tool itself, with sources at work.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::Row;
use crate::listener::listen;
use crate::node::{by_certificate, running};
use crate::stage::{self, kubelet};
use crate::support::net;
use crate::support::tracer::{TracerExit, Tracer, TracerCommand, binary};

/// Want nothing that is started for them.
pub const ALONE: &[Row] = &[
    ("traced::a_source_that_does_not_answer", a_source_that_does_not_answer),
    (
        "traced::a_source_that_had_no_time_to_answer",
        a_source_that_had_no_time_to_answer,
    ),
    ("traced::files_that_are_no_good", files_that_are_no_good),
];

/// Want the kubelet.
pub const WITH_A_NODE: &[Row] = &[
    ("traced::a_source_that_answers", a_source_that_answers),
    ("traced::what_check_tells", what_check_tells),
    ("traced::first_names", first_names),
];

/// Runs the tool to its end.
fn run(arguments: &str) -> (Option<i32>, String, String) {
    let mut tool = Command::new(binary());
    tool.args(arguments.split_whitespace()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = tool.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Starts the tool, and keeps the records of this network namespace.
fn start(arguments: &str) -> Tracer {
    let tracer = TracerCommand::with_names(&arguments.split_whitespace().collect::<Vec<_>>()).spawn();
    tracer.output.watch(net::current_netns());
    tracer
}

/// Traces until a connection made meanwhile has its record and standard error has a line that begins so, if one is
/// given. Returns how the tool ended after an interrupt.
fn trace_until(arguments: &str, line: Option<&str>) -> TracerExit {
    let tracer = start(arguments);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    stage::wait_until("a record of a connection", || {
        drop((TcpStream::connect(address).unwrap(), listener.accept().unwrap()));
        let records = tracer.output.records(net::current_netns());
        records
            .iter()
            .any(|record| record.value["dst"]["port"] == address.port())
    });
    if let Some(line) = line {
        tracer.wait_stderr(&format!("kmesh-trace: {line}"));
    }
    tracer.signal(Signal::SIGINT);
    let end = tracer.wait_within(stage::PATIENCE);
    assert_eq!(end.output.stream_errors(), [""; 0]);
    end
}

fn a_source_that_answers() {
    stage::node();
    let socket = kubelet().join("containerd.sock");
    let arguments = format!("-o json --cri={}", socket.display());
    let end = trace_until(&arguments, Some("names come from the container runtime"));
    end.check();
}

fn a_source_that_does_not_answer() {
    let error = "error: no names from the kubelet at https://127.0.0.1:1/pods in the first 10 s";
    let end = trace_until("-o json -q --kubelet=https://127.0.0.1:1", Some(error));
    assert_eq!(end.status.code(), Some(1), "{:?}", end.stderr);
    assert_eq!(end.stderr.len(), 1, "quiet, but for the error: {:?}", end.stderr);
    assert!(end.stderr[0].contains("Connection refused"), "{:?}", end.stderr);
}

fn a_source_that_had_no_time_to_answer() {
    let warning = "warning: no names yet from";
    let end = trace_until("-o json --kubelet=https://127.0.0.1:1", Some(warning));
    assert_eq!(end.status.code(), Some(1), "{:?}", end.stderr);
    let end = trace_until("-o json --no-resolve", None);
    end.check();
    let of_names = end.stderr.iter().find(|line| line.contains("names"));
    assert_eq!(of_names, None);
}

fn files_that_are_no_good() {
    let no_list = crate::node::write("no-list.json", r#"{"kind":"Status","status":"Failure"}"#);
    for (arguments, part) in [
        ("--pods-file /nonexistent".to_owned(), "No such file"),
        (format!("--pods-file {no_list}"), "none that names need"),
        ("--kubeconfig=/nonexistent".to_owned(), "No such file"),
    ] {
        let (status, told, said) = run(&arguments);
        assert_eq!(
            (status, told.as_str()),
            (Some(1), ""),
            "before anything is traced: {said}"
        );
        assert!(said.contains(part) && said.lines().count() <= 3, "{said}");
    }
}

fn what_check_tells() {
    stage::node();
    let (status, told, said) = run("check");
    assert_eq!(status, Some(0), "names are no requirement: {told}{said}");
    for part in [
        "the container runtime",
        "the kubelet at",
        "/var/log/pods: ",
        "--kubeconfig",
    ] {
        let line = told.lines().find(|line| line.contains(part));
        assert!(line.is_some_and(|line| line.contains("names")), "{part}: {told}");
    }
}

/// A client connects to a pod all the time, and each record of it can name the pod. Prints how soon after the start of
/// the tool the first named record came, for each source.
fn first_names() {
    const BETWEEN: Duration = Duration::from_millis(2);
    stage::node();
    let socket = kubelet().join("containerd.sock");
    let cri = format!("--cri={}", socket.display());
    let ip: Ipv4Addr = running(&listen(&cri), "web").ips[0].to_string().parse().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let client = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::Relaxed) {
                drop(TcpStream::connect((ip, 8080)));
                std::thread::sleep(BETWEEN);
            }
        }
    });
    for (what, source) in [("the container runtime", cri), ("the kubelet", by_certificate())] {
        let began = SystemTime::now();
        let tracer = start(&format!("-o json -q {source}"));
        let found = tracer.output.wait(net::current_netns(), |records| {
            let mut of_pod = records.iter().filter(|record| {
                let to = &record.value["dst"];
                to["ip"] == ip.to_string() && to["port"] == 8080
            });
            let first = of_pod.clone().next()?.received_at;
            let nameless = of_pod.clone().take_while(|record| record.value["dst"]["pod"].is_null());
            let nameless = nameless.count();
            Some((first, nameless, of_pod.nth(nameless)?.clone()))
        });
        let (first, nameless, named) = found.unwrap_or_else(|error| panic!("no name of {what}: {error}"));
        assert!(
            named.value["dst"]["pod"].as_str().unwrap().starts_with("web"),
            "{}",
            named.value
        );
        let after = |time: SystemTime| time.duration_since(began).unwrap_or_default().as_millis();
        println!(
            "{what}: first record {} ms after the start, first name {} ms, {nameless} without before it",
            after(first),
            after(named.received_at)
        );
        tracer.signal(Signal::SIGINT);
        tracer.wait_within(stage::PATIENCE).check();
    }
    over.store(true, Ordering::Relaxed);
    client.join().unwrap();
}
