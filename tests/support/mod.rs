//! What the suites that make real sockets share: namespaces, actors, the tracer as a child process, and the comparison of
//! its records with what a test knows on its own.

pub mod actor;
pub mod bpf;
pub mod expect;
pub mod net;
pub mod node;
pub mod probe;
pub mod random;
pub mod schema;
pub mod scrape;
pub mod sock;
pub mod store;
pub mod tracer;

use std::path::PathBuf;
use std::time::Duration;

/// Where files of this run go: beside what was built, or where that is not (in a test machine), where all such files go.
pub fn scratch() -> PathBuf {
    let beside = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    if beside.is_dir() { beside } else { std::env::temp_dir() }
}

/// Whether an environment variable is 1.
pub fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// True in the small virtual machines (an emulated CPU, little memory): the same scenarios, the heavy ones smaller.
pub fn small() -> bool {
    is_set("KMESH_TRACE_TEST_SMALL")
}

/// The most memory that a process has had, KiB, without what it has of files: in a small machine those are in memory, and
/// the programs are large.
pub fn peak_kib(pid: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the status of a process");
    let kib = |field: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in {status}"))
    };
    kib("VmHWM:").saturating_sub(kib("RssFile:") + kib("RssShmem:"))
}

/// How long to wait for what must come, however busy the machine. Only a failing test ever waits this long.
pub fn patience() -> Duration {
    Duration::from_secs(if small() { 600 } else { 120 })
}
