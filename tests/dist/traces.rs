//! The binary runs and traces in each root.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::roots::{SYSTEMS, check_requirements, empty_root, enter, run_in};
use crate::support::expect::Owner;
use crate::support::record_view::RecordView;
use crate::support::sock::{exchange, pair_with};
use crate::support::tracer::TracerCommand;
use crate::{output, tool, trial};

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![trial("empty_root::traces_with_sys_alone", check_requirements, || {
        check_traces(&empty_root("only-sys"), &["sys"], &["/kmesh-trace"]);
    })];
    for system in &SYSTEMS {
        let root = || check_requirements().and_then(|()| (system.root)());
        let mut add = |what: &str, run: fn(&Path, &'static [&'static str])| {
            let name = format!("{}::{what}", system.name);
            let has_root = move || root().map(drop);
            trials.push(trial(&name, has_root, move || run(&root().unwrap(), system.start)));
        };
        add("prints_its_version", check_version);
        add("replays", check_replay);
        add("passes_check", check_check);
        add("traces", |root, start| check_traces(root, &["proc", "sys"], start));
    }
    trials
}

fn check_version(root: &Path, start: &[&str]) {
    let output = run_in(root, &[], &[start, &["--version"]].concat());
    assert_eq!(output, format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION")));
}

fn check_replay(root: &Path, start: &[&str]) {
    let incident = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.jsonl.zst");
    let arguments = ["--read", "-", "-o", "json"];
    let in_root = output(
        enter(root, &[])
            .args(start)
            .args(arguments)
            .stdin(File::open(incident).unwrap()),
    );
    assert!(in_root.lines().count() > 100, "{in_root}");
    let outside = output(
        Command::new(tool())
            .args(arguments)
            .stdin(File::open(incident).unwrap()),
    );
    assert!(in_root == outside, "{in_root}");
}

fn check_check(root: &Path, start: &[&str]) {
    let output = run_in(root, &["proc", "sys"], &[start, &["check"]].concat());
    assert!(
        output.lines().next().is_some_and(|line| line.starts_with("ok ")),
        "{output}"
    );
}

fn check_traces(root: &Path, mounted: &[&str], start: &[&str]) {
    let mut command = enter(root, mounted);
    command.args(start);
    check_traces_by(command);
}

/// Traces one connection with the tool that this command starts: there are two records. The filter rejects other
/// programs' connections.
pub fn check_traces_by(command: Command) {
    const SERVER: &str = "127.77.99.1";
    let tracer = TracerCommand::wrapped_by(command, &["-o", "json", "--ip", SERVER]).start();
    let view = RecordView::new(&tracer.output);
    let pair = pair_with(&TcpListener::bind((SERVER, 0)).unwrap());
    exchange(&pair, 1000, 300);
    let truth = pair.close_client_first();
    let owner = || Owner::this_process(&["connect", "close"]);
    view.expect_among_others(&[
        truth.outbound().bytes(1000, 300).ok("local").process(owner()),
        truth.inbound().bytes(300, 1000).ok("peer").process(owner()),
    ]);
    let exit = tracer.interrupt();
    exit.check_lossless();
    assert_eq!(exit.output.records(view.netns()).len(), 2);
}
