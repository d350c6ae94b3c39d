//! `--write` while tracing: what is left of it when the tracer is killed, and when there is no room.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::Table;
use crate::support::sock::{V, pair, wait_until};
use crate::support::tracer::{Start, binary};
use crate::support::{net, scratch};

/// The trials.
pub fn table() -> Table {
    Table::new("captures")
        .own("all_events_and_summaries_on_demand", &[], all_events)
        .own("killed", &[], killed)
        .own("no_room", &[], no_room)
}

fn place(name: &str) -> PathBuf {
    let path = scratch().join(format!("{name}.kmt"));
    // Of an earlier run.
    _ = fs::remove_file(&path);
    path
}

/// What a replay prints as JSON, what it says, and how it ends.
fn replay(path: &Path, args: &[&str]) -> (Vec<u8>, String, Option<i32>) {
    let output = Command::new(binary())
        .arg("--read")
        .arg(path)
        .args(["-o", "json"])
        .args(args)
        .output()
        .expect("replay");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.stdout, said, output.status.code())
}

/// Live and replayed are the same bytes.
fn all_events() {
    let path = place("all-events");
    let lines = path.with_extension("jsonl");
    let events = ["--events", "open,update,close", "--interval", "200ms"];
    let tracer = Start::new(&[&["-o", "json", "-w", path.to_str().unwrap()], &events[..]].concat())
        .copy(fs::File::create(&lines).unwrap())
        .tracing();
    let (first, second) = (pair(V::Four), pair(V::Six));
    drop(first);
    tracer.store.wait_conns(2).unwrap();
    tracer.signal(Signal::SIGUSR1);
    tracer.store.wait_summaries(1).unwrap();
    drop(second);
    tracer.store.wait_conns(4).unwrap();
    let end = tracer.interrupt();
    assert!(end.status.success());
    let (told, said, status) = replay(&path, &events);
    assert_eq!((said.as_str(), status), ("", Some(0)));
    assert!(told == fs::read(&lines).unwrap(), "the replay differs");
}

/// A capture is written through all along: killed, it has all but its last second, and says that it has no end.
fn killed() {
    let path = place("killed");
    let tracer = Start::new(&["-o", "none", "-w", path.to_str().unwrap()]).tracing();
    let truth = pair(V::Four).truth;
    let port = truth.src.port();
    let is_there = |told: &[u8]| {
        let lines = String::from_utf8_lossy(told);
        lines
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["src"]["port"] == port && line["local"]["netns"] == net::inode())
            .count()
            == 2
    };
    // Only a tracer that does not write it at all fails to.
    wait_until("both closes are in the file", || is_there(&replay(&path, &[]).0));
    tracer.signal(Signal::SIGKILL);
    tracer.wait();
    let (told, said, status) = replay(&path, &[]);
    assert!(is_there(&told));
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("it has no end"), "{said}");
}

/// The disk is full: that ends it with status 1, and what is there can be read.
fn no_room() {
    let folder = place("no-room").with_extension("mount");
    fs::create_dir_all(&folder).unwrap();
    let at = folder.to_str().unwrap();
    net::run("mount", &["-t", "tmpfs", "-o", "size=256k", "none", at]);
    let path = folder.join("full.kmt");
    let tracer = Start::new(&["-o", "none", "-w", path.to_str().unwrap()]).spawn();
    tracer.wait_said("kmesh-trace: tracing");
    let until = std::time::Instant::now() + crate::support::patience();
    while !tracer.ended_within(std::time::Duration::ZERO) {
        assert!(std::time::Instant::now() < until, "it goes on without room");
        drop(pair(V::Four));
    }
    let end = tracer.wait();
    let (told, said, status) = replay(&path, &[]);
    net::run("umount", &[at]);
    assert_eq!(end.status.code(), Some(1), "{:?}", end.stderr);
    let why = end.stderr.join("\n");
    assert!(why.contains("full.kmt") && why.contains("No space left"), "{why}");
    assert!(said.contains("it has no end") && status == Some(1), "{said}");
    assert!(told.len() > 10_000, "{} bytes of JSON", told.len());
}
