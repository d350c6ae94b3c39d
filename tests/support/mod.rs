//! Shared by the suites that make real sockets: namespaces, helper processes, the tracer as a child process, and the
//! comparison of its records with what the test knows from its own system calls.

pub mod actor;
pub mod bpf;
pub mod delay;
pub mod expect;
pub mod memory_limit;
pub mod net;
pub mod node;
pub mod output;
pub mod probe;
pub mod random;
pub mod record_view;
pub mod schema;
pub mod scrape;
pub mod sock;
pub mod tcp_info;
pub mod terminal;
pub mod tracer;
pub mod traffic;

use std::any::Any;
use std::path::PathBuf;
use std::time::Duration;

/// Returns the directory for files of a run: Cargo's, or the system's where Cargo's does not exist (in a virtual
/// machine).
pub fn scratch_dir() -> PathBuf {
    let of_cargo = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    if of_cargo.is_dir() {
        of_cargo
    } else {
        std::env::temp_dir()
    }
}

/// Writes a file that the test program contains, and returns its path. A VM has the program but not the repository.
pub fn write_scratch_file(name: &str, content: &[u8]) -> PathBuf {
    let path = scratch_dir().join(name);
    std::fs::write(&path, content).expect("write a file");
    path
}

/// Whether an environment variable is 1.
pub fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value == "1")
}

/// Whether the suite runs in a small virtual machine (emulated CPU, little memory). The large scenarios are then
/// smaller.
pub fn is_small_vm() -> bool {
    is_set("KMESH_TRACE_TEST_SMALL")
}

/// Returns the size of a ring buffer in which all records wait while the test is slower than the tracer.
pub fn large_buffer() -> &'static str {
    if is_small_vm() { "64MiB" } else { "256MiB" }
}

/// Returns the peak memory of a process in KiB, without pages of files. In a small virtual machine the files are in
/// memory, and the programs are large.
pub fn peak_memory_kib(pid: nix::unistd::Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the status of a process");
    let kib = |field: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in {status}"))
    };
    kib("VmHWM:").saturating_sub(kib("RssFile:") + kib("RssShmem:"))
}

/// Returns the text of a panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without text").to_owned()
}

/// Returns how long to wait for an event that must come, on the busiest machine. Only a failing test waits this long.
pub fn test_timeout() -> Duration {
    Duration::from_secs(if is_small_vm() { 600 } else { 120 })
}
