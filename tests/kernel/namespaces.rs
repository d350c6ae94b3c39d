//! The tool in namespaces of its own: what it shows must be right, and what it cannot see it must say.

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Table;
use crate::signals::traffic;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{V, listen, pair_with, states};
use crate::support::store::Rec;
use crate::support::tracer::{End, Start, Tracer, binary};
use crate::unheld::open_and_not_scanned;

/// The trials.
pub fn table() -> Table {
    Table::new("namespaces")
        .own("time_namespace", &[Need::TimeNamespace], time_namespace)
        .own("pid_namespace", &[Need::Unshare], pid_namespace)
        .own(
            "what_a_pid_namespace_hides",
            &[Need::Unshare],
            what_a_pid_namespace_hides,
        )
}

/// The tool, to be started by `unshare` with these arguments, as a child that ends with it.
fn unshare(args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(args).args(["--fork", "--kill-child"]).arg(binary());
    command
}

/// Interrupts the tool, which is the child of the command that was started.
fn interrupt(tracer: &Tracer) -> End {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.pid)).unwrap();
    let child = children.trim().parse().expect("one child");
    kill(Pid::from_raw(child), Signal::SIGINT).unwrap();
    tracer.wait()
}

/// The time by the wall clock, as records have it.
fn now() -> String {
    net::run("date", &["-u", "+%FT%T.%NZ"]).trim().to_owned()
}

/// The clocks of the tool are a day ahead, or behind: no time of a record follows from that.
fn time_namespace() {
    for seconds in ["86400", "-60"] {
        let offsets = [format!("--monotonic={seconds}"), format!("--boottime={seconds}")];
        let command = unshare(&["--time", &offsets[0], &offsets[1]]);
        let before = now();
        let tracer = Start::with(command, &["-o", "json", "--events", "open,close"]).tracing();
        tracer.store.keep(net::inode());
        traffic(5);
        let records = tracer
            .store
            .wait(net::inode(), |records| (records.len() == 20).then(|| records.to_vec()))
            .unwrap_or_else(|error| panic!("{seconds}: {error}"));
        let after = now();
        for record in records {
            for member in ["start", "time"] {
                let time = record.value[member].as_str().expect("a time").to_owned();
                assert!(
                    before < time && time < after,
                    "{seconds}: {before} {time} {after}: {}",
                    record.value
                );
            }
            assert_eq!(record.value["preexisting"], false, "{seconds}: {}", record.value);
        }
        interrupt(&tracer).check_whole();
    }
}

/// Processes outside are hidden, and the tool says so: when it starts, and when it is asked.
fn pid_namespace() {
    let args = ["--pid", "--mount-proc"];
    let tracer = Start::with(unshare(&args), &["-o", "json"]).tracing();
    let line = tracer.wait_said("kmesh-trace: warning: processes outside of this pid namespace are hidden");
    assert!(line.contains("no updates"), "{line}");
    tracer.wait_said_with("hostPID");
    tracer.store.keep(net::inode());
    traffic(1);
    let end = interrupt(&tracer);
    end.check_whole();
    // The kernel itself says whose new connections are.
    let own = u64::from(std::process::id());
    for record in end.store.records(net::inode()) {
        assert_eq!(record.value["process"]["pid"], own, "{}", record.value);
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

/// No process of the test is visible. The connections of the tool's own network namespace have updates all the same; those of
/// another one are open, and the summary counts them as not scanned.
fn what_a_pid_namespace_hides() {
    let listener = listen(V::Four);
    let at = listener.local_addr().unwrap();
    let port = at.port().to_string();
    let arguments = ["-o", "json", "--events", "update,close", "--interval", "200ms"];
    let older = pair_with(&listener);
    let command = unshare(&["--pid", "--mount-proc"]);
    // The kernel filters all other connections out before they count as open.
    let tracer = Start::with(command, &[&arguments[..], &["--to-port", &port]].concat()).tracing();
    let own = net::inode();
    tracer.store.keep(own);
    let (begun, begin) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let hidden = net::in_namespace("hidden", move || {
                let listener = TcpListener::bind(at).unwrap();
                let pairs: Vec<_> = (0..4).map(|_| pair_with(&listener)).collect();
                let states = states(at.port());
                assert_eq!(states.len(), 8, "both ends of four connections");
                begun.send(states.len() as u64).unwrap();
                // They stay open until the tool has ended.
                _ = gone_on.recv();
                drop(pairs);
            });
            hidden.expect("connections in another namespace");
        });
        let hidden = begin.recv().unwrap();
        // Made last, so the scan that reports it a second time has missed the others.
        let newer = pair_with(&listener);
        for pair in [&older, &newer] {
            for direction in ["outbound", "inbound"] {
                let updates = |records: &[Rec]| {
                    let of_end = records.iter().filter(|record| {
                        let value = &record.value;
                        value["direction"] == direction && value["src"]["port"] == pair.truth.src.port()
                    });
                    (of_end.count() >= 3).then_some(())
                };
                let found = tracer.store.wait(own, updates);
                found.unwrap_or_else(|error| panic!("{direction}: {error}"));
            }
        }
        let end = interrupt(&tracer);
        drop(go_on);
        end.check_whole();
        let summary = end.store.summaries().pop().expect("a summary");
        assert_eq!(open_and_not_scanned(&summary), (4 + hidden, hidden), "{summary}");
        drop((older, newer));
    });
}
