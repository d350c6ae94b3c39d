//! Capabilities: the documented ones are enough, each is needed, and the tool drops the others.

use std::fs;

use serde_json::Value;

use crate::Topic;
use crate::support::probe::{self, Need};
use crate::support::sock::{IpVersion, exchanged_pair, wait_until};
use crate::support::tracer::{BinaryCopy, Tracer, TracerCommand, TracerExit};
use crate::support::{net, scrape};

pub fn topic() -> Topic {
    Topic::new("privileges")
        .standalone(
            "documented_capabilities_are_enough",
            &[Need::Setpriv],
            documented_capabilities_are_enough,
        )
        .standalone(
            "each_documented_capability_is_needed",
            &[Need::Setpriv],
            each_documented_capability_is_needed,
        )
        .standalone(
            "unneeded_capabilities_are_dropped",
            &[],
            unneeded_capabilities_are_dropped,
        )
        .standalone(
            "check_reports_each_capability",
            &[Need::Setpriv],
            check_reports_each_capability,
        )
}

/// The capabilities that `check` and the DaemonSet name.
pub const NEEDED: [&str; 2] = ["bpf", "perfmon"];

/// Records, updates and metrics work.
fn documented_capabilities_are_enough() {
    let binary = BinaryCopy::new();
    let args = [
        "-o",
        "json",
        "--metrics",
        "0",
        "--events",
        "close,update",
        "--interval",
        "200ms",
    ];
    let tracer = TracerCommand::wrapped_by(binary.with_capabilities(&NEEDED), &args).start();
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let pair = exchanged_pair(IpVersion::V4);
    // Scans go on, and counters are read, after the tool has dropped capabilities.
    let is_update = |value: &Value| value["event"] == "update";
    tracer.output.wait_matching(netns, 6, is_update);
    assert!(scrape::scrape(scrape::address(&tracer)).sum("kmesh_trace_open_connections", &[]) >= 2.0);
    // The scrape is also a connection.
    let port = pair.close_client_first().dst.port();
    let is_close = |value: &Value| value["event"] == "close" && value["dst"]["port"] == port;
    tracer.output.wait_matching(netns, 2, is_close);
    let stderr = tracer.stderr_lines();
    let warnings = stderr.iter().filter(|line| line.contains("warning"));
    // On some kernels, the connections of other namespaces need more, and the tool says so.
    let is_expected = |line: &str| line.contains("the kernel refuses programs that find a socket by its descriptor");
    let expected = usize::from(probe::check(&[Need::NamespaceScan]).is_ok());
    assert_eq!(
        (
            warnings.clone().count(),
            warnings.filter(|line| is_expected(line)).count()
        ),
        (expected, expected),
        "{stderr:?}"
    );
    tracer.interrupt().check_lossless();
}

fn each_documented_capability_is_needed() {
    let binary = BinaryCopy::new();
    for without in NEEDED {
        let others: Vec<_> = NEEDED.into_iter().filter(|name| *name != without).collect();
        let command = binary.with_capabilities(&others);
        let TracerExit { status, stderr, .. } = TracerCommand::wrapped_by(command, &[]).spawn().wait();
        assert_eq!(status.code(), Some(3), "without {without}: {stderr:?}");
        assert!(
            stderr.join("\n").contains("CAP_BPF and CAP_PERFMON"),
            "without {without}: {stderr:?}"
        );
    }
}

/// Returns the name, the capabilities and no_new_privs of each thread that can still run code of the tool.
fn threads(tracer: &Tracer) -> Vec<(String, u64, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", tracer.pid)).unwrap();
    tasks
        .filter_map(|task| {
            let task = task.unwrap().path();
            let status = fs::read_to_string(task.join("status")).ok()?;
            // Last, so that it is true for the status that was read.
            if is_exiting(&fs::read_to_string(task.join("stat")).ok()?) {
                return None;
            }
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                line.trim().to_owned()
            };
            let set = |name| u64::from_str_radix(&field(name), 16).unwrap();
            let all = set("CapEff:") | set("CapPrm:") | set("CapInh:") | set("CapAmb:");
            Some((field("Name:"), all, field("NoNewPrivs:")))
        })
        .collect()
}

/// Whether a thread with this `/proc/PID/task/TID/stat` is exiting. It makes no system calls any more, but has an entry
/// in /proc until some time after the thread that joins it goes on.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u32 = 4;
    // After the name, which may contain any bytes: the state is the first field, the flags are the seventh.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let flags: u32 = fields.split(' ').nth(6).unwrap().parse().unwrap();
    flags & PF_EXITING != 0
}

/// From the time when the tool reports that it traces, for each of its threads.
fn unneeded_capabilities_are_dropped() {
    const BPF: u64 = 1 << 39;
    const SYS_PTRACE: u64 = 1 << 19;
    const DAC_READ_SEARCH: u64 = 1 << 2;
    const DAC_OVERRIDE: u64 = 1 << 1;
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let folder = std::env::temp_dir().join(format!("kmesh-trace-{}-{}", std::process::id(), net::current_netns()));
    fs::create_dir_all(&folder).unwrap();
    let [capture, rotated, pods] = ["x.jsonl.zst", "y.jsonl.zst", "pods.json"].map(|name| folder.join(name));
    fs::write(
        &pods,
        r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"a","uid":"u"}}]}"#,
    )
    .unwrap();
    let [capture, rotated, pods] = [&capture, &rotated, &pods].map(|path| path.to_str().unwrap());
    let cases = [
        (vec![], 5, BPF),
        (vec!["--write", capture], 5, BPF),
        (vec!["--write", rotated, "--rotate", "64Ki"], 5, BPF | DAC_OVERRIDE),
        (
            vec!["--pods-file", pods],
            6,
            BPF | SYS_PTRACE | DAC_READ_SEARCH | NET_ADMIN,
        ),
    ];
    for (args, count, expected) in cases {
        let all = [&args[..], &["-o", "json", "--metrics", "0"]].concat();
        let tracer = match args.first() {
            Some(&"--pods-file") => TracerCommand::with_names(&all),
            _ => TracerCommand::new(&all),
        }
        .start();
        wait_until("all threads exist", || {
            let threads = threads(&tracer);
            for (name, capabilities, no_new_privileges) in &threads {
                // The scanner thread enters network namespaces, and parses nothing.
                let expected = match name.as_str() {
                    "kmesh-scan" => BPF | SYS_ADMIN | SYS_PTRACE,
                    _ => expected,
                };
                assert_eq!(*capabilities, expected, "{args:?}: {name}: {capabilities:x}");
                assert_eq!(no_new_privileges, "1");
            }
            threads.len() >= count
        });
        tracer.interrupt().check_lossless();
    }
    fs::remove_dir_all(&folder).unwrap_or_default();
}

fn check_reports_each_capability() {
    let binary = BinaryCopy::new();
    let check = |capabilities: &[&str]| {
        let output = binary.with_capabilities(capabilities).arg("check").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, stdout) = check(&NEEDED);
    assert_eq!(status, Some(0), "{stdout}");
    assert!(
        stdout.contains("ok       CAP_BPF ") && stdout.contains("ok       CAP_PERFMON "),
        "{stdout}"
    );
    let (status, stdout) = check(&["perfmon"]);
    assert_eq!(status, Some(3), "{stdout}");
    assert!(stdout.contains("MISSING  CAP_BPF "), "{stdout}");
    assert!(stdout.contains("no       CAP_SYS_PTRACE "), "{stdout}");
    assert!(stdout.contains("ok       CAP_PERFMON "), "{stdout}");
}
