//! The tool with name sources.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;

use crate::Row;
use crate::fixture::{self, kubelet};
use crate::listener::start_sources;
use crate::node::{kubelet_flags, wait_running};
use crate::support::net;
use crate::support::tracer::{Tracer, TracerCommand, TracerExit, binary};

/// The tests that need no kubelet.
pub const WITHOUT_KUBELET: &[Row] = &[
    ("traced::unreachable_source_is_an_error", unreachable_source_is_an_error),
    (
        "traced::early_interrupt_before_names_is_an_error",
        early_interrupt_before_names_is_an_error,
    ),
    ("traced::invalid_files_are_errors", invalid_files_are_errors),
];

/// The tests that need the kubelet. They run one after another.
pub const SEQUENTIAL: &[Row] = &[
    ("traced::names_come_from_the_runtime", names_come_from_the_runtime),
    ("traced::check_reports_name_sources", check_reports_name_sources),
    ("traced::time_to_first_name", time_to_first_name),
];

/// Runs the tool until it exits. Returns the status, standard output and standard error.
fn run(arguments: &str) -> (Option<i32>, String, String) {
    let mut tool = Command::new(binary());
    tool.args(arguments.split_whitespace()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = tool.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Starts the tool, and watches the records of this network namespace.
fn start(arguments: &str) -> Tracer {
    let tracer = TracerCommand::with_names(&arguments.split_whitespace().collect::<Vec<_>>()).spawn();
    tracer.output.watch(net::current_netns());
    tracer
}

/// Traces until a new connection has its record and standard error has a line that starts with `line`, then interrupts
/// the tool.
fn trace_until(arguments: &str, line: Option<&str>) -> TracerExit {
    let tracer = start(arguments);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    fixture::wait_until("a connection has its record", || {
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
    let exit = tracer.wait_within(fixture::TEST_TIMEOUT);
    assert_eq!(exit.output.stream_errors(), [""; 0]);
    exit
}

fn names_come_from_the_runtime() {
    fixture::start_node();
    let socket = kubelet().join("containerd.sock");
    let arguments = format!("-o json --cri={}", socket.display());
    let exit = trace_until(&arguments, Some("names come from the container runtime"));
    exit.check();
}

fn unreachable_source_is_an_error() {
    let error = "error: no names from the kubelet at https://127.0.0.1:1/pods in the first 10 s";
    let exit = trace_until("-o json -q --kubelet=https://127.0.0.1:1", Some(error));
    assert_eq!(exit.status.code(), Some(1), "{:?}", exit.stderr);
    assert_eq!(exit.stderr.len(), 1, "the error alone: {:?}", exit.stderr);
    assert!(exit.stderr[0].contains("Connection refused"), "{:?}", exit.stderr);
}

fn early_interrupt_before_names_is_an_error() {
    let warning = "warning: no names yet from";
    let exit = trace_until("-o json --kubelet=https://127.0.0.1:1", Some(warning));
    assert_eq!(exit.status.code(), Some(1), "{:?}", exit.stderr);
    let error = "error: no names from the kubelet at https://127.0.0.1:1/pods: Connection refused";
    assert!(exit.stderr.iter().any(|line| line.contains(error)), "{:?}", exit.stderr);
    let exit = trace_until("-o json --no-resolve", None);
    exit.check();
    let about_names = exit.stderr.iter().find(|line| line.contains("names"));
    assert_eq!(about_names, None);
}

fn invalid_files_are_errors() {
    let no_list = crate::node::write_file("no-list.json", r#"{"kind":"Status","status":"Failure"}"#);
    for (arguments, part) in [
        ("--pods-file /nonexistent".to_owned(), "No such file"),
        (format!("--pods-file {no_list}"), "none that names need"),
        ("--kubeconfig=/nonexistent".to_owned(), "No such file"),
    ] {
        let (status, stdout, stderr) = run(&arguments);
        assert_eq!(
            (status, stdout.as_str()),
            (Some(1), ""),
            "before tracing starts: {stderr}"
        );
        assert!(stderr.contains(part) && stderr.lines().count() <= 3, "{stderr}");
    }
}

fn check_reports_name_sources() {
    fixture::start_node();
    let (status, stdout, stderr) = run("check");
    assert_eq!(status, Some(0), "names are not required: {stdout}{stderr}");
    for part in [
        "the container runtime",
        "the kubelet at",
        "/var/log/pods: ",
        "--kubeconfig",
    ] {
        let line = stdout.lines().find(|line| line.contains(part));
        assert!(line.is_some_and(|line| line.contains("names")), "{part}: {stdout}");
    }
}

/// A client connects to a pod all the time. Prints the time from the start of the tool until the first record with the
/// pod's name, for each source.
fn time_to_first_name() {
    const PAUSE: Duration = Duration::from_millis(2);
    fixture::start_node();
    let socket = kubelet().join("containerd.sock");
    let cri = format!("--cri={}", socket.display());
    let ip: Ipv4Addr = wait_running(&start_sources(&cri), "web").ips[0]
        .to_string()
        .parse()
        .unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let client = std::thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            while !is_over.load(Ordering::Relaxed) {
                drop(TcpStream::connect((ip, 8080)));
                std::thread::sleep(PAUSE);
            }
        }
    });
    for (name, source) in [("the container runtime", cri), ("the kubelet", kubelet_flags())] {
        let start_time = SystemTime::now();
        let tracer = start(&format!("-o json -q {source}"));
        let found = tracer.output.wait(net::current_netns(), |records| {
            let mut of_pod = records.iter().filter(|record| {
                let to = &record.value["dst"];
                to["ip"] == ip.to_string() && to["port"] == 8080
            });
            let first = of_pod.clone().next()?.received_at;
            let unnamed = of_pod.clone().take_while(|record| record.value["dst"]["pod"].is_null());
            let unnamed = unnamed.count();
            Some((first, unnamed, of_pod.nth(unnamed)?.clone()))
        });
        let (first, unnamed, named) = found.unwrap_or_else(|error| panic!("no name from {name}: {error}"));
        assert!(
            named.value["dst"]["pod"].as_str().unwrap().starts_with("web"),
            "{}",
            named.value
        );
        let after = |time: SystemTime| time.duration_since(start_time).unwrap_or_default().as_millis();
        println!(
            "{name}: first record after {} ms, first name after {} ms, {unnamed} records without a name before",
            after(first),
            after(named.received_at)
        );
        tracer.signal(Signal::SIGINT);
        tracer.wait_within(fixture::TEST_TIMEOUT).check();
    }
    is_over.store(true, Ordering::Relaxed);
    client.join().unwrap();
}
