//! `--write` while tracing: the replay of a capture, and what is left of it after a kill or on a full disk.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::Topic;
use crate::support::sock::{IpVersion, exchange, pair, wait_until};
use crate::support::tracer::{TracerCommand, binary};
use crate::support::traffic::make_traffic;
use crate::support::{net, schema, scratch_dir};

pub fn topic() -> Topic {
    Topic::new("captures")
        .standalone("replay_equals_live_output", &[], replay_equals_live_output)
        .standalone(
            "replayed_rollups_equal_live_rollups",
            &[],
            replayed_rollups_equal_live_rollups,
        )
        .standalone("sigkill_keeps_written_records", &[], sigkill_keeps_written_records)
        .standalone("full_disk_keeps_written_records", &[], full_disk_keeps_written_records)
        .standalone(
            "capture_is_complete_when_standard_output_fails",
            &[],
            capture_is_complete_when_standard_output_fails,
        )
        .standalone(
            "replay_adds_and_filters_by_names",
            &[],
            replay_adds_and_filters_by_names,
        )
}

/// Returns the path of a capture that does not exist yet.
fn capture_path(name: &str) -> PathBuf {
    let path = scratch_dir().join(format!("{name}.jsonl.zst"));
    // An earlier run may have left it.
    _ = fs::remove_file(&path);
    path
}

/// The output of a replay as JSON.
struct Replay {
    stdout: Vec<u8>,
    stderr: String,
    status: Option<i32>,
}

impl Replay {
    fn run(path: &Path, args: &[&str]) -> Self {
        let output = Command::new(binary())
            .arg("--read")
            .arg(path)
            .args(["-o", "json"])
            .args(args)
            .output()
            .expect("replay");
        Self {
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            status: output.status.code(),
        }
    }

    /// Checks that the replay succeeded, and printed the same bytes as the live trace.
    fn check_equals(&self, live: &Path) {
        assert_eq!((self.stderr.as_str(), self.status), ("", Some(0)));
        assert!(self.stdout == fs::read(live).unwrap(), "the replay differs");
    }
}

/// All events, and a summary on demand.
fn replay_equals_live_output() {
    let path = capture_path("all-events");
    let live = path.with_extension("lines");
    let events = ["--events", "open,update,close", "--interval", "200ms"];
    let tracer = TracerCommand::new(&[&["-o", "json", "-w", path.to_str().unwrap()], &events[..]].concat())
        .copy_to(fs::File::create(&live).unwrap())
        .start();
    tracer.output.watch(net::current_netns());
    let wait_closes = |count: usize| {
        let is_close = |value: &Value| value["event"] == "close";
        tracer.output.wait_matching(net::current_netns(), count, is_close);
    };
    let (first, second) = (pair(IpVersion::V4), pair(IpVersion::V6));
    drop(first);
    wait_closes(2);
    tracer.request_summary();
    drop(second);
    wait_closes(4);
    assert!(tracer.interrupt().status.success());
    Replay::run(&path, &events).check_equals(&live);
}

/// The windows depend on the times of records alone, so a replay has the same ones, also for connections that stay
/// open.
fn replayed_rollups_equal_live_rollups() {
    let path = capture_path("rollups");
    let live = path.with_extension("lines");
    let args = ["--rollup", "--interval", "200ms", "--by", "process,port"];
    let tracer = TracerCommand::new(&[&["-o", "json", "-w", path.to_str().unwrap()], &args[..]].concat())
        .copy_to(fs::File::create(&live).unwrap())
        .start();
    let rollups = || {
        let lines = fs::read_to_string(&live).unwrap_or_default();
        let is_rollup = |line: &&str| line.contains(r#""type":"rollup""#);
        lines.lines().filter(is_rollup).count()
    };
    let stays_open = pair(IpVersion::V4);
    while rollups() < 20 {
        exchange(&stays_open, 1000, 300);
        drop(pair(IpVersion::V6));
        // Limits how often the file is read.
        thread::sleep(Duration::from_millis(20));
    }
    drop(stays_open);
    assert!(tracer.interrupt().status.success());
    Replay::run(&path, &args).check_equals(&live);
}

/// The tracer writes its capture at least once a second. After SIGKILL the file has the records so far, and the replay
/// reports that it is cut off.
fn sigkill_keeps_written_records() {
    let path = capture_path("killed");
    let tracer = TracerCommand::new(&["-o", "none", "-w", path.to_str().unwrap()]).start();
    let port = pair(IpVersion::V4).truth.src.port();
    let netns = net::current_netns();
    let has_both_ends = |replay: &Replay| {
        let stdout = String::from_utf8_lossy(&replay.stdout);
        let records = stdout
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_end = |record: &Value| record["src"]["port"] == port && record["local"]["netns"] == netns;
        records.filter(is_end).count() == 2
    };
    wait_until("both closes are in the file", || {
        has_both_ends(&Replay::run(&path, &[]))
    });
    tracer.signal(Signal::SIGKILL);
    tracer.wait();
    let replay = Replay::run(&path, &[]);
    assert!(has_both_ends(&replay));
    assert_eq!(replay.status, Some(1), "{}", replay.stderr);
    assert!(replay.stderr.contains("cut off"), "{}", replay.stderr);
}

/// A full disk ends the tracer with status 1. The records before it can be replayed.
fn full_disk_keeps_written_records() {
    let folder = capture_path("full-disk").with_extension("mount");
    fs::create_dir_all(&folder).unwrap();
    let at = folder.to_str().unwrap();
    net::run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", at]);
    let path = folder.join("full.jsonl.zst");
    let tracer = TracerCommand::new(&["-o", "none", "-w", path.to_str().unwrap()]).start();
    wait_until("the full disk ends the tracer", || {
        make_traffic(200);
        tracer.ended_within(Duration::ZERO)
    });
    let exit = tracer.wait();
    let replay = Replay::run(&path, &[]);
    net::run("umount", &[at]);
    assert_eq!(exit.status.code(), Some(1), "{:?}", exit.stderr);
    let why = exit.stderr.join("\n");
    assert!(why.contains("full.jsonl.zst") && why.contains("No space left"), "{why}");
    assert!(
        replay.stderr.contains("cut off") && replay.status == Some(1),
        "{}",
        replay.stderr
    );
    assert!(replay.stdout.len() > 10_000, "{} bytes of JSON", replay.stdout.len());
}

/// The capture has the records up to the failure, and is not cut off.
fn capture_is_complete_when_standard_output_fails() {
    let path = capture_path("full-output");
    let full = File::options().write(true).open("/dev/full").unwrap();
    let tracer = TracerCommand::new(&["-o", "json", "-w", path.to_str().unwrap()])
        .stdout(full)
        .start();
    make_traffic(1);
    let exit = tracer.wait();
    assert_eq!(exit.status.code(), Some(1), "{:?}", exit.stderr);
    let replay = Replay::run(&path, &[]);
    let lines = String::from_utf8_lossy(&replay.stdout);
    assert!(lines.contains(r#""type":"conn""#), "{lines}");
    assert!(
        replay.stderr.contains("no summary") && !replay.stderr.contains("cut off"),
        "{}",
        replay.stderr
    );
}

/// A replay with a pods file adds names to records that were captured without names, and filters by them. A pod that
/// started after a connection does not name it.
fn replay_adds_and_filters_by_names() {
    // Loopback addresses have no names.
    let [web, database] = [1, 2].map(|number| {
        let [_, high, middle, low] = net::loopback_v4(number).octets();
        Ipv4Addr::new(10, high, middle, low).to_string()
    });
    for address in [&web, &database] {
        net::run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    let path = capture_path("pods");
    let only = format!("{web},{database}");
    let tracer = TracerCommand::new(&["-o", "none", "--ip", &only, "-w", path.to_str().unwrap()])
        .on_line(|_| ())
        .start();
    let listener = TcpListener::bind((&*database, 0)).unwrap();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: SocketAddr = format!("{web}:0").parse().unwrap();
    client.bind(&from.into()).unwrap();
    client.connect(&listener.local_addr().unwrap().into()).unwrap();
    drop((listener.accept().unwrap(), client));
    assert!(tracer.interrupt().status.success());

    // The pods at both ends of each record, if the database's pod started then.
    let pods_of_records = |database_started: &str, args: &[&str]| {
        let pods = path.with_extension("json");
        let list = [
            pod("web-0", &web, "2020-01-01T00:00:00Z"),
            pod("database-0", &database, database_started),
        ];
        let list = json!({"apiVersion": "v1", "kind": "PodList", "items": list});
        fs::write(&pods, list.to_string()).unwrap();
        let replay = Replay::run(&path, &[&["--pods-file", pods.to_str().unwrap()], args].concat());
        let stderr = &replay.stderr;
        assert!(stderr.contains("(pods: 2, Services: 0, other objects: 0)"), "{stderr}");
        assert_eq!((stderr.lines().count(), replay.status), (1, Some(0)), "{stderr}");
        let lines = String::from_utf8(replay.stdout).unwrap();
        let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        values
            .filter(|value| value["type"] == "conn")
            .inspect(|record| schema::check(record).unwrap())
            .map(|record| [&record["src"], &record["dst"]].map(|end| end["pod"].clone()))
            .collect::<Vec<_>>()
    };
    let both = [json!("web-0"), json!("database-0")];
    let only_web = [json!("web-0"), Value::Null];
    let (before, after) = ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z");
    assert_eq!(pods_of_records(before, &[]), [both.clone(), both.clone()]);
    assert_eq!(pods_of_records(after, &[]), [only_web.clone(), only_web]);
    assert_eq!(
        pods_of_records(before, &["--to-pod", "shop/database-*"]),
        [both.clone(), both]
    );
    assert!(pods_of_records(before, &["-n", "!shop"]).is_empty());
}

fn pod(name: &str, ip: &str, started: &str) -> Value {
    json!({
        "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-of-{name}")},
        "status": {"phase": "Running", "podIP": ip, "startTime": started},
    })
}
