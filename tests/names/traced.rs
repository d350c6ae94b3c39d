//! The tool itself, with sources at work.

use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use crate::Row;
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
        (format!("--pods-file {no_list}"), "neither pods nor Services"),
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
