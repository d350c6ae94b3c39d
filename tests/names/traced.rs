//! The tool itself, with sources at work.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Row;
use crate::listener::listen;
use crate::node::{by_certificate, running};
use crate::stage::{self, kubelet};

/// In the order in which they disturb each other least.
pub const TRIALS: &[Row] = &[
    ("traced::a_source_that_answers", a_source_that_answers),
    ("traced::a_source_that_does_not_answer", a_source_that_does_not_answer),
    (
        "traced::a_source_that_had_no_time_to_answer",
        a_source_that_had_no_time_to_answer,
    ),
    ("traced::files_that_are_no_good", files_that_are_no_good),
    ("traced::what_check_tells", what_check_tells),
    ("traced::first_names", first_names),
];

fn tool(arguments: &str) -> Command {
    let binary = std::env::var_os("KMESH_TRACE_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_kmesh-trace").into());
    let mut tool = Command::new(binary);
    tool.args(arguments.split_whitespace()).stdin(Stdio::null());
    tool
}

fn run(arguments: &str) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = tool(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Runs it while connections are made, each of which is a record.
fn trace(arguments: &str) -> (Option<i32>, String, String) {
    let child = tool(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let traffic = std::thread::spawn(move || {
        for _ in 0..20 {
            drop((TcpStream::connect(address).unwrap(), listener.accept().unwrap()));
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    traffic.join().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    assert!(
        stdout.contains(&format!("\"port\":{}", address.port())),
        "it traced meanwhile: {stderr}"
    );
    (status.code(), stdout, stderr)
}

fn a_source_that_answers() {
    stage::node();
    let socket = kubelet().join("containerd.sock");
    let (status, _, said) = trace(&format!("-o json --duration 3s --cri={}", socket.display()));
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains("names come from the container runtime"), "{said}");
}

fn a_source_that_does_not_answer() {
    let (status, _, said) = trace("-o json -q --duration 11s --kubelet=https://127.0.0.1:1");
    assert_eq!(status, Some(1), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 1, "quiet, but for the error: {said}");
    assert!(
        lines[0].contains("error: no names from the kubelet at https://127.0.0.1:1/pods in the first 10 s"),
        "{said}"
    );
    assert!(lines[0].contains("Connection refused"), "{said}");
}

fn a_source_that_had_no_time_to_answer() {
    let (status, _, said) = trace("-o json --duration 3s --kubelet=https://127.0.0.1:1");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("warning: no names yet from"), "{said}");
    let (status, _, said) = trace("-o json --duration 3s --no-resolve");
    assert_eq!((status, said.contains("names")), (Some(0), false), "{said}");
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

/// Somebody connects to a pod all the time, and each of those records names it: told is how soon after the tool was started the
/// first of them came, from each source.
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
        let began = Instant::now();
        let mut child = tool(&format!("-o json -q {source}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut first, mut nameless) = (None, 0);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let named = loop {
            let record: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            if record["dst"]["ip"] != ip.to_string() || record["dst"]["port"] != 8080 {
                continue;
            }
            first.get_or_insert(began.elapsed());
            if record["dst"]["pod"].is_string() {
                break (began.elapsed(), record);
            }
            nameless += 1;
            assert!(began.elapsed() < Duration::from_secs(10), "no name of {what}: {record}");
        };
        assert!(
            named.1["dst"]["pod"].as_str().unwrap().starts_with("web"),
            "{}",
            named.1
        );
        println!(
            "{what}: first record {} ms after exec, first name {} ms, {nameless} without before it",
            first.unwrap_or_default().as_millis(),
            named.0.as_millis()
        );
        child.kill().unwrap();
        child.wait().unwrap();
    }
    over.store(true, Ordering::Relaxed);
    client.join().unwrap();
}
