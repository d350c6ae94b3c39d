//! The tool in separate namespaces: its records are right, and it reports what it cannot see.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::SystemTime;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Topic;
use crate::support::expect::parse_time;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{IpVersion, connection_states, listen, pair_with};
use crate::support::tracer::{Tracer, TracerCommand, TracerExit, binary};
use crate::support::traffic::make_traffic;
use crate::without_process::open_and_not_scanned;

pub fn topic() -> Topic {
    Topic::new("namespaces")
        .standalone(
            "time_namespace_does_not_shift_times",
            &[Need::TimeNamespace],
            time_namespace_does_not_shift_times,
        )
        .standalone("pid_namespace_is_reported", &[Need::Unshare], pid_namespace_is_reported)
        .standalone(
            "hidden_connections_are_not_scanned",
            &[Need::Unshare],
            hidden_connections_are_not_scanned,
        )
}

/// Returns a command that runs the tool as a child of `unshare` with these arguments.
fn unshare(args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(args).args(["--fork", "--kill-child"]).arg(binary());
    command
}

/// Interrupts the tool, which is a child of the started command.
fn interrupt(tracer: &Tracer) -> TracerExit {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.pid)).unwrap();
    let child = children.trim().parse().expect("one child");
    kill(Pid::from_raw(child), Signal::SIGINT).unwrap();
    tracer.wait()
}

/// Returns the time of the wall clock as records have it.
/// The monotonic and boot clocks of the tool are a day ahead, or at most a minute behind. The times of records are right.
fn time_namespace_does_not_shift_times() {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let (uptime, _) = uptime.split_once('.').unwrap();
    // Clocks cannot be negative, and a virtual machine may have booted a moment ago.
    let back = (uptime.parse::<i64>().unwrap() / 2).min(60);
    for seconds in [86_400, -back] {
        let offsets = [format!("--monotonic={seconds}"), format!("--boottime={seconds}")];
        let command = unshare(&["--time", &offsets[0], &offsets[1]]);
        let before = SystemTime::now();
        let tracer = TracerCommand::wrapped_by(command, &["-o", "json", "--events", "open,close"]).start();
        tracer.output.watch(net::current_netns());
        make_traffic(5);
        let records = tracer.output.wait_matching(net::current_netns(), 20, |_| true);
        let after = SystemTime::now();
        for record in records {
            for member in ["start", "time"] {
                let time = parse_time(&record[member]).expect("a time");
                assert!(
                    before < time && time < after,
                    "{seconds}: {before:?} {time:?} {after:?}: {record}"
                );
            }
            assert_eq!(record["preexisting"], false, "{seconds}: {record}");
        }
        interrupt(&tracer).check_lossless();
    }
}

/// The tool cannot see processes outside of its pid namespace. It warns at its start, and `check` reports it.
fn pid_namespace_is_reported() {
    let args = ["--pid", "--mount-proc"];
    let tracer = TracerCommand::wrapped_by(unshare(&args), &["-o", "json"]).start();
    let line = tracer.wait_stderr("kmesh-trace: warning: processes outside of this pid namespace are hidden");
    assert!(line.contains("no updates"), "{line}");
    tracer.wait_stderr_containing("hostPID");
    tracer.output.watch(net::current_netns());
    make_traffic(1);
    let exit = interrupt(&tracer);
    exit.check_lossless();
    // The programs see the owners of new connections.
    let own_pid = u64::from(std::process::id());
    for record in exit.output.records(net::current_netns()) {
        assert_eq!(record.value["process"]["pid"], own_pid, "{}", record.value);
    }

    let check = |mut command: Command| {
        let output = command.arg("check").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let line = |text: &str| {
        let found = text.lines().find(|line| line.contains("  open sockets"));
        found.expect("a line about open sockets").to_owned()
    };
    let inside = line(&check(unshare(&args)));
    assert!(inside.starts_with("limited") && inside.contains("hostPID"), "{inside}");
    let outside = line(&check(Command::new(binary())));
    assert!(outside.starts_with("ok"), "{outside}");
}

/// The tool sees no process of the test. The connections of its own network namespace have updates. Those of another
/// one are open, and the summary counts them as not scanned.
fn hidden_connections_are_not_scanned() {
    let listener = listen(IpVersion::V4);
    let at = listener.local_addr().unwrap();
    let port = at.port().to_string();
    let arguments = ["-o", "json", "--events", "update,close", "--interval", "200ms"];
    let older = pair_with(&listener);
    let command = unshare(&["--pid", "--mount-proc"]);
    // The kernel filters out all other connections before they count as open.
    let tracer = TracerCommand::wrapped_by(command, &[&arguments[..], &["--to-port", &port]].concat()).start();
    let own = net::current_netns();
    tracer.output.watch(own);
    let (opened, wait_opened) = mpsc::channel();
    let (close, wait_close) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let hidden = net::in_namespace("hidden", move || {
                let listener = TcpListener::bind(at).unwrap();
                let pairs: Vec<_> = (0..4).map(|_| pair_with(&listener)).collect();
                let states = connection_states(at);
                assert_eq!(states.len(), 8, "both ends of four connections");
                opened.send(states.len() as u64).unwrap();
                // The connections stay open until the tool has exited.
                _ = wait_close.recv();
                drop(pairs);
            });
            hidden.expect("connections in another namespace");
        });
        let hidden = wait_opened.recv().unwrap();
        // The newest connection: the scan that reports it a second time has not found the hidden ones.
        let newer = pair_with(&listener);
        for pair in [&older, &newer] {
            for direction in ["outbound", "inbound"] {
                let src = pair.truth.src.port();
                let is_end = |value: &Value| value["direction"] == direction && value["src"]["port"] == src;
                tracer.output.wait_matching(own, 3, is_end);
            }
        }
        let exit = interrupt(&tracer);
        drop(close);
        exit.check_lossless();
        let summary = exit.output.summaries().pop().expect("a summary");
        assert_eq!(open_and_not_scanned(&summary), (4 + hidden, hidden), "{summary}");
        drop((older, newer));
    });
}
