//! `--write` while tracing: what is left of it when the tracer is killed, and when there is no room.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::Table;
use crate::signals::traffic;
use crate::support::sock::{V, exchange, pair, wait_until};
use crate::support::store::Rec;
use crate::support::tracer::{Start, binary};
use crate::support::{net, schema, scratch};

/// The trials.
pub fn table() -> Table {
    Table::new("captures")
        .own("all_events_and_summaries_on_demand", &[], all_events)
        .own("rollups", &[], rollups)
        .own("killed", &[], killed)
        .own("no_room", &[], no_room)
        .own("named_afterwards", &[], named_afterwards)
}

fn place(name: &str) -> PathBuf {
    let path = scratch().join(format!("{name}.jsonl.zst"));
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
    let lines = path.with_extension("lines");
    let events = ["--events", "open,update,close", "--interval", "200ms"];
    let tracer = Start::new(&[&["-o", "json", "-w", path.to_str().unwrap()], &events[..]].concat())
        .copy(fs::File::create(&lines).unwrap())
        .tracing();
    tracer.store.keep(net::inode());
    let closes = |count: usize| {
        let enough = |records: &[Rec]| {
            let is_close = |record: &&Rec| record.value["event"] == "close";
            (records.iter().filter(is_close).count() == count).then_some(())
        };
        tracer.store.wait(net::inode(), enough).unwrap();
    };
    let (first, second) = (pair(V::Four), pair(V::Six));
    drop(first);
    closes(2);
    tracer.signal(Signal::SIGUSR1);
    tracer.store.wait_summaries(1).unwrap();
    drop(second);
    closes(4);
    let end = tracer.interrupt();
    assert!(end.status.success());
    let (told, said, status) = replay(&path, &events);
    assert_eq!((said.as_str(), status), ("", Some(0)));
    assert!(told == fs::read(&lines).unwrap(), "the replay differs");
}

/// Windows go by the records' times, so a replay has the same ones, of connections that stay open, too.
fn rollups() {
    let path = place("rollups");
    let lines = path.with_extension("lines");
    let args = ["--rollup", "--interval", "200ms", "--by", "process,port"];
    let tracer = Start::new(&[&["-o", "json", "-w", path.to_str().unwrap()], &args[..]].concat())
        .copy(fs::File::create(&lines).unwrap())
        .tracing();
    let windows = || {
        let told = fs::read_to_string(&lines).unwrap_or_default();
        told.lines().filter(|line| line.contains(r#""type":"rollup""#)).count()
    };
    let stays = pair(V::Four);
    while windows() < 20 {
        exchange(&stays, 1000, 300);
        drop(pair(V::Six));
        // So that the file is not read all the time.
        thread::sleep(Duration::from_millis(20));
    }
    drop(stays);
    let end = tracer.interrupt();
    assert!(end.status.success());
    let (told, said, status) = replay(&path, &args);
    assert_eq!((said.as_str(), status), ("", Some(0)));
    assert!(told == fs::read(&lines).unwrap(), "the replay differs");
}

/// A capture is written through all along: killed, it has all but its last second, and the replay says that it is cut off.
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
    assert!(said.contains("cut off"), "{said}");
}

/// The disk is full: that ends it with status 1, and what is there can be read.
fn no_room() {
    let folder = place("no-room").with_extension("mount");
    fs::create_dir_all(&folder).unwrap();
    let at = folder.to_str().unwrap();
    net::run("mount", &["-t", "tmpfs", "-o", "size=64k", "none", at]);
    let path = folder.join("full.jsonl.zst");
    let tracer = Start::new(&["-o", "none", "-w", path.to_str().unwrap()]).spawn();
    tracer.wait_said("kmesh-trace: tracing");
    wait_until("the tracer ends for want of room", || {
        traffic(200);
        tracer.ended_within(Duration::ZERO)
    });
    let end = tracer.wait();
    let (told, said, status) = replay(&path, &[]);
    net::run("umount", &[at]);
    assert_eq!(end.status.code(), Some(1), "{:?}", end.stderr);
    let why = end.stderr.join("\n");
    assert!(why.contains("full.jsonl.zst") && why.contains("No space left"), "{why}");
    assert!(said.contains("cut off") && status == Some(1), "{said}");
    assert!(told.len() > 10_000, "{} bytes of JSON", told.len());
}

/// What was kept without names gets them from a file, from its filters too; who began later had no part in it.
fn named_afterwards() {
    // Those of the loopback have no names.
    let [web, database] = [1, 2].map(|number| {
        let [_, high, middle, low] = net::address(number).octets();
        Ipv4Addr::new(10, high, middle, low).to_string()
    });
    for address in [&web, &database] {
        net::run("ip", &["address", "add", &format!("{address}/32"), "dev", "lo"]);
    }
    let path = place("named-afterwards");
    let only = format!("{web},{database}");
    let tracer = Start::new(&["-o", "none", "--ip", &only, "-w", path.to_str().unwrap()])
        .lines(|_| ())
        .tracing();
    let listener = TcpListener::bind((&*database, 0)).unwrap();
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: SocketAddr = format!("{web}:0").parse().unwrap();
    client.bind(&from.into()).unwrap();
    client.connect(&listener.local_addr().unwrap().into()).unwrap();
    drop((listener.accept().unwrap(), client));
    assert!(tracer.interrupt().status.success());

    let pods = path.with_extension("json");
    let replayed = |began: &str, more: &[&str]| {
        let pod = |name: &str, ip: &str, began: &str| {
            json!({
                "kind": "Pod",
                "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-of-{name}")},
                "status": {"phase": "Running", "podIP": ip, "startTime": began},
            })
        };
        let list = [
            pod("web-0", &web, "2020-01-01T00:00:00Z"),
            pod("database-0", &database, began),
        ];
        let list = json!({"apiVersion": "v1", "kind": "PodList", "items": list});
        fs::write(&pods, list.to_string()).unwrap();
        let (told, said, status) = replay(&path, &[&["--pods-file", pods.to_str().unwrap()], more].concat());
        assert!(said.contains("(pods: 2, Services: 0, other objects: 0)"), "{said}");
        assert_eq!((said.lines().count(), status), (1, Some(0)), "{said}");
        let lines = String::from_utf8(told).unwrap();
        let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let conns = values.filter(|value| value["type"] == "conn");
        let named: Vec<_> = conns
            .inspect(|value| schema::check(value).unwrap())
            .map(|value| (value["src"]["pod"].clone(), value["dst"]["pod"].clone()))
            .collect();
        named
    };
    let (web, database) = (json!("web-0"), json!("database-0"));
    let both = (web.clone(), database);
    assert_eq!(replayed("2020-01-01T00:00:00Z", &[]), [both.clone(), both.clone()]);
    let alone = (web, Value::Null);
    assert_eq!(replayed("2099-01-01T00:00:00Z", &[]), [alone.clone(), alone]);
    assert_eq!(
        replayed("2020-01-01T00:00:00Z", &["--to-pod", "shop/database-*"]),
        [both.clone(), both]
    );
    assert_eq!(replayed("2020-01-01T00:00:00Z", &["-n", "!shop"]), []);
}
