//! Capabilities: those that are named suffice, each is needed, and none is kept that is not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::Table;
use crate::support::expect::Scene;
use crate::support::sock::{V, drain, exchange, pair, wait_until};
use crate::support::tracer::{End, Start, Tracer, binary};
use crate::support::{net, probe::Need, scrape};

/// The trials.
pub fn table() -> Table {
    Table::new("privileges")
        .own("the_named_ones_suffice", &[Need::Setpriv], the_named_ones_suffice)
        .own("each_is_needed", &[Need::Setpriv], each_is_needed)
        .own("the_rest_is_given_up", &[], the_rest_is_given_up)
        .own(
            "check_tells_what_each_is_for",
            &[Need::Setpriv],
            check_tells_what_each_is_for,
        )
}

/// As `check` and the DaemonSet name them.
pub const NEEDED: [&str; 2] = ["bpf", "perfmon"];

/// A copy that anybody may run.
pub struct Program(PathBuf);

impl Program {
    /// In the folder for temporary files, until it is dropped.
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("kmesh-trace-{}-{}", std::process::id(), net::inode()));
        fs::copy(binary(), &path).expect("copy the program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("let anybody run it");
        Self(path)
    }

    /// It, run by nobody with these capabilities alone.
    pub fn with(&self, capabilities: &[&str]) -> Command {
        let list = |capabilities: &[&str]| {
            let plus = capabilities.iter().map(|one| format!(",+{one}"));
            format!("-all{}", plus.collect::<String>())
        };
        let list = list(capabilities);
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--no-new-privs",
        ]);
        command.args(["--inh-caps", &list, "--ambient-caps", &list, "--bounding-set", &list]);
        command.arg(&self.0);
        command
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap_or_default();
    }
}

fn the_named_ones_suffice() {
    let program = Program::new();
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
    let tracer = Start::with(program.with(&NEEDED), &args).tracing();
    let scene = Scene::new(&tracer.store);
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    // Walks go on, and counters are read, after the rest has been given up.
    let two = |records: &[crate::support::store::Rec]| {
        let updates = records
            .iter()
            .filter(|record| record.value["event"] == "update")
            .count();
        (updates >= 6).then_some(())
    };
    tracer.store.wait(scene.netns(), two).unwrap();
    assert!(scrape::scrape(scrape::address(&tracer)).sum("kmesh_trace_open_connections", &[]) >= 2.0);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let closes = |records: &[crate::support::store::Rec]| {
        // The scrape was a connection, too.
        let ended = |record: &&crate::support::store::Rec| {
            record.value["event"] == "close" && record.value["dst"]["port"] == pair.truth.dst.port()
        };
        (records.iter().filter(ended).count() == 2).then_some(())
    };
    tracer.store.wait(scene.netns(), closes).unwrap();
    let said = tracer.said();
    assert!(!said.iter().any(|line| line.contains("warning")), "{said:?}");
    tracer.interrupt().check_whole();
}

fn each_is_needed() {
    let program = Program::new();
    for without in NEEDED {
        let left: Vec<_> = NEEDED.into_iter().filter(|one| *one != without).collect();
        let End { status, stderr, .. } = Start::with(program.with(&left), &[]).spawn().wait();
        assert_eq!(status.code(), Some(3), "without {without}: {stderr:?}");
        assert!(
            stderr.join("\n").contains("CAP_BPF and CAP_PERFMON"),
            "without {without}: {stderr:?}"
        );
    }
}

/// (its name, its capabilities, no-new-privileges) of each thread that can still run the program's code.
fn threads(tracer: &Tracer) -> Vec<(String, u64, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", tracer.pid)).unwrap();
    tasks
        .filter_map(|task| {
            let task = task.unwrap().path();
            let status = fs::read_to_string(task.join("status")).ok()?;
            // Last, so that it is known of the thread whose status was read.
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

/// By its `/proc/PID/task/TID/stat`, whether a thread has made its last system call and is only being taken down by the kernel.
/// That begins before whoever joins it is woken, and ends some time after.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u32 = 4;
    // Behind the name, which may contain anything: the state, then the flags in the seventh place.
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let flags: u32 = fields.split(' ').nth(6).unwrap().parse().unwrap();
    flags & PF_EXITING != 0
}

/// From the moment on when the tool says that it traces, for each thread that it has or starts.
fn the_rest_is_given_up() {
    const BPF: u64 = 1 << 39;
    const SYS_PTRACE: u64 = 1 << 19;
    const DAC_READ_SEARCH: u64 = 1 << 2;
    const DAC_OVERRIDE: u64 = 1 << 1;
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let folder = std::env::temp_dir().join(format!("kmesh-trace-{}-{}", std::process::id(), net::inode()));
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
            Some(&"--pods-file") => Start::resolving(&all),
            _ => Start::new(&all),
        }
        .tracing();
        wait_until("all threads", || {
            let threads = threads(&tracer);
            for (name, capabilities, no_new_privileges) in &threads {
                // Updates are wanted. One thread enters network namespaces, and parses nothing.
                let expected = match name.as_str() {
                    "kmesh-walk" => BPF | SYS_ADMIN | SYS_PTRACE,
                    _ => expected,
                };
                assert_eq!(*capabilities, expected, "{args:?}: {name}: {capabilities:x}");
                assert_eq!(no_new_privileges, "1");
            }
            threads.len() >= count
        });
        tracer.interrupt().check_whole();
    }
    fs::remove_dir_all(&folder).unwrap_or_default();
}

fn check_tells_what_each_is_for() {
    let program = Program::new();
    let check = |capabilities: &[&str]| {
        let output = program.with(capabilities).arg("check").output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (status, told) = check(&NEEDED);
    assert_eq!(status, Some(0), "{told}");
    assert!(
        told.contains("ok       CAP_BPF ") && told.contains("ok       CAP_PERFMON "),
        "{told}"
    );
    let (status, told) = check(&["perfmon"]);
    assert_eq!(status, Some(3), "{told}");
    assert!(told.contains("MISSING  CAP_BPF "), "{told}");
    assert!(told.contains("no       CAP_SYS_PTRACE "), "{told}");
    assert!(told.contains("ok       CAP_PERFMON "), "{told}");
}
