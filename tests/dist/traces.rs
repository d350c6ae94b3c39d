//! The file in each of the roots: it runs there, and it traces.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;

use libtest_mimic::Trial;

use crate::roots::{SYSTEMS, enter, missing, only_the_file, told};
use crate::support::expect::Owner;
use crate::support::record_view::RecordView;
use crate::support::sock::{drain, exchange, pair_with};
use crate::support::tracer::TracerCommand;
use crate::{output, tool, trial};

/// The trials.
pub fn trials() -> Vec<Trial> {
    let mut trials = vec![trial("only_the_file::wants_sys_alone", missing, || {
        traces(&only_the_file("wants-sys"), &["sys"], &["/kmesh-trace"]);
    })];
    for system in &SYSTEMS {
        let root = || missing().and_then(|()| (system.root)());
        let mut add = |what: &str, run: fn(&Path, &'static [&'static str])| {
            let name = format!("{}::{what}", system.name);
            let missing = move || root().map(drop);
            trials.push(trial(&name, missing, move || run(&root().unwrap(), system.start)));
        };
        add("tells_its_version", version);
        add("replays", replays);
        add("checks", checks);
        add("traces", |root, start| traces(root, &["proc", "sys"], start));
    }
    trials
}

fn version(root: &Path, start: &[&str]) {
    let told = told(root, &[], &[start, &["--version"]].concat());
    assert_eq!(told, format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION")));
}

fn replays(root: &Path, start: &[&str]) {
    let incident = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.jsonl.zst");
    let arguments = ["--read", "-", "-o", "json"];
    let there = output(
        enter(root, &[])
            .args(start)
            .args(arguments)
            .stdin(File::open(incident).unwrap()),
    );
    assert!(there.lines().count() > 100, "{there}");
    // As on the system that built it.
    let here = output(
        std::process::Command::new(tool())
            .args(arguments)
            .stdin(File::open(incident).unwrap()),
    );
    assert!(there == here, "{there}");
}

fn checks(root: &Path, start: &[&str]) {
    let told = told(root, &["proc", "sys"], &[start, &["check"]].concat());
    assert!(
        told.lines().next().is_some_and(|line| line.starts_with("ok ")),
        "{told}"
    );
}

/// Traces one connection: both records come, and no other. The filter keeps out what else this machine does.
fn traces(root: &Path, mounted: &[&str], start: &[&str]) {
    const SERVER: &str = "127.77.99.1";
    let mut command = enter(root, mounted);
    command.args(start);
    let tracer = TracerCommand::wrapped_by(command, &["-o", "json", "--ip", SERVER]).start();
    let view = RecordView::new(&tracer.output);
    let pair = pair_with(&TcpListener::bind((SERVER, 0)).unwrap());
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let me = || Owner::this_process(&["connect", "close"]);
    view.expect_among_others(&[
        pair.truth.outbound().bytes(1000, 300).ok("local").process(me()),
        pair.truth.inbound().bytes(300, 1000).ok("peer").process(me()),
    ]);
    let end = tracer.interrupt();
    end.check_lossless();
    assert_eq!(end.output.records(view.netns()).len(), 2);
}
