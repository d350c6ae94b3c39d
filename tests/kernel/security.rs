//! What other users and tenants can reach of the tracer (its folder, its metrics port, the kernel's tables, the files
//! that it parses), and what they cannot do there. SECURITY.md names these tests.

mod kernel_resources;
mod locked_socket;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::fcntl::AT_FDCWD;
use nix::libc;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::Topic;
use crate::support::probe::Need;
use crate::support::scrape::{address, request};
use crate::support::sock::{pair_with, wait_until};
use crate::support::tracer::{Tracer, TracerCommand, binary};
use crate::support::{net, peak_memory_kib, scratch_dir, write_scratch_file};

pub use kernel_resources::WITHOUT_STORAGE;

pub fn topic() -> Topic {
    Topic::new("security")
        .standalone(
            "directory_at_rotated_name_does_not_end_tracing",
            &[],
            directory_at_rotated_name_does_not_end_tracing,
        )
        .standalone(
            "locked_socket_delays_no_record",
            // The scans of all other tracers wait for the lock, too.
            &[Need::NamespaceScan, Need::Exclusive],
            locked_socket::locked_socket_delays_no_record,
        )
        .standalone(
            "locked_socket_does_not_prevent_the_start",
            &[Need::Exclusive],
            locked_socket::locked_socket_does_not_prevent_the_start,
        )
        .standalone(
            "file_of_another_user_in_sticky_folder_does_not_end_tracing",
            &[],
            file_of_another_user_in_sticky_folder_does_not_end_tracing,
        )
        .standalone(
            "removed_folder_does_not_end_tracing",
            &[],
            removed_folder_does_not_end_tracing,
        )
        .standalone(
            "slow_scrapers_share_two_responses",
            &[Need::FullSize],
            slow_scrapers_share_two_responses,
        )
        .standalone(
            "replay_parses_without_capabilities",
            &[],
            replay_parses_without_capabilities,
        )
        .standalone(
            "name_files_are_parsed_with_few_capabilities",
            &[],
            name_files_are_parsed_with_few_capabilities,
        )
        .standalone(
            "arguments_are_parsed_with_few_capabilities",
            &[],
            arguments_are_parsed_with_few_capabilities,
        )
        .standalone(
            "slow_socket_scan_lengthens_the_update_interval",
            &[Need::FullSize],
            kernel_resources::slow_socket_scan_lengthens_the_update_interval,
        )
        .standalone(
            "sockets_without_storage_do_not_affect_others",
            &[Need::Nft, Need::FullSize],
            kernel_resources::sockets_without_storage_do_not_affect_others,
        )
}

/// Creates an empty folder.
fn new_folder(name: &str) -> PathBuf {
    let folder = scratch_dir().join(format!("security-{name}"));
    // An earlier run may have left it.
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

const CONNECTIONS: usize = 1000;
const ROTATION_WARNING: &str = "kmesh-trace: warning: cannot rotate the capture: ";

/// Makes connections until a tracer cannot rotate its capture because of `obstacle`, then some more. The tracer goes
/// on, and the capture has all connections unless its files were removed.
fn rotate_against(name: &str, files_remain: bool, obstacle: impl FnOnce(&Path)) {
    let folder = new_folder(name);
    let path = folder.join("x");
    let server = TcpListener::bind((net::loopback_v4(0), 0)).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let arguments = [
        "-o",
        "none",
        "--rotate",
        "64Ki,2",
        "--port",
        &port,
        "-w",
        path.to_str().unwrap(),
    ];
    let tracer = TracerCommand::new(&arguments).on_line(|_| ()).start();
    obstacle(&folder);
    // Enough for several rotations, and in total less than the ring buffer holds.
    let connect = || (0..CONNECTIONS).for_each(|_| drop(pair_with(&server)));
    let is_warning = |line: &&String| line.starts_with(ROTATION_WARNING);
    connect();
    wait_until("the first failed rotation", || {
        let has_ended = tracer.ended_within(Duration::ZERO);
        assert!(!has_ended, "the tracer has exited: {:?}", tracer.stderr_lines());
        tracer.stderr_lines().iter().any(|line| is_warning(&line))
    });
    connect();
    let exit = tracer.interrupt();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    assert_eq!(exit.stderr.iter().filter(is_warning).count(), 1, "{:?}", exit.stderr);
    if files_remain {
        let replay = Command::new(binary())
            .args(["-o", "json", "-r"])
            .arg(&path)
            .output()
            .unwrap();
        let printed = String::from_utf8(replay.stdout).unwrap();
        let closes = printed
            .lines()
            .filter(|line| line.contains(r#""event":"close""#))
            .count();
        assert_eq!(closes, 4 * CONNECTIONS, "{}", String::from_utf8_lossy(&replay.stderr));
    }
    _ = fs::remove_dir_all(&folder);
}

fn directory_at_rotated_name_does_not_end_tracing() {
    rotate_against("directory", true, |folder| fs::create_dir(folder.join("x.1")).unwrap());
}

/// In a folder like /tmp, only a process with CAP_FOWNER could replace the file.
fn file_of_another_user_in_sticky_folder_does_not_end_tracing() {
    rotate_against("sticky", true, |folder| {
        let nobody = Some(65534);
        fs::write(folder.join("x.1"), "precious").unwrap();
        chown(folder.join("x.1"), nobody, nobody).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o1777)).unwrap();
        chown(folder, nobody, nobody).unwrap();
    });
}

fn removed_folder_does_not_end_tracing() {
    rotate_against("removed", false, |folder| fs::remove_dir_all(folder).unwrap());
}

/// Scrapes the number of connection ends. Parses only these lines, since the response has megabytes.
fn count_ends(from: SocketAddr) -> f64 {
    let text = request(from, "GET", "/metrics").body;
    assert!(text.ends_with("# EOF\n"), "the response is cut off");
    let lines = text
        .lines()
        .filter(|line| line.starts_with("kmesh_trace_outcomes_total{"));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Each second another scraper sends a request and never reads the response. The tracer holds at most two responses.
fn slow_scrapers_share_two_responses() {
    const SCRAPERS: usize = 9;
    let server = TcpListener::bind((net::loopback_v4(0), 0)).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let metrics = [
        "--metrics",
        "0",
        "--metrics-level",
        "connection",
        "--metrics-max-series",
        "20000",
    ];
    let arguments = [&["-o", "none", "--port", &port][..], &metrics].concat();
    let tracer = TracerCommand::new(&arguments).on_line(|_| ()).start();
    let to = address(&tracer);
    // Four series for each end: a response that fits into no buffer of the kernel.
    (0..2000).for_each(|_| drop(pair_with(&server)));
    wait_until("all connections are counted", || count_ends(to) == 4000.0);
    let response_kib = request(to, "GET", "/metrics").body.len() as u64 / 1024;
    assert!(
        response_kib > 8192,
        "{response_kib} KiB are too little to show in the tracer's memory"
    );
    let before = peak_memory_kib(tracer.pid);
    let mut slow = Vec::new();
    for _ in 0..SCRAPERS {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // The response has begun.
        stream.read_exact(&mut [0]).unwrap();
        slow.push(stream);
        // Scrapers within a second share a response. The test is about this time.
        thread::sleep(Duration::from_millis(1050));
    }
    assert_eq!(count_ends(to), 4000.0);
    let more_kib = peak_memory_kib(tracer.pid) - before;
    assert!(
        more_kib < 3 * response_kib,
        "{SCRAPERS} scrapers took {more_kib} KiB; a response has {response_kib} KiB"
    );
    drop(slow);
    assert_eq!(tracer.interrupt().status.code(), Some(0));
}

const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// Returns the capabilities that any thread of a process has, and those in any bounding set. The thread that scans
/// sockets has more than the others, and parses nothing.
fn capabilities(pid: nix::unistd::Pid) -> (u64, u64) {
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    // A thread may end between the listing and the read.
    let statuses = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let statuses = statuses.filter(|status| !status.starts_with("Name:\tkmesh-scan\n"));
    statuses.fold((0, 0), |(held, bounding), status| {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let all = set("CapEff:") | set("CapPrm:") | set("CapInh:") | set("CapAmb:");
        (held | all, bounding | set("CapBnd:"))
    })
}

/// Starts the tool with a pipe as the value of `flag`, and waits until it has opened the pipe. The tool reads it until
/// the returned file is closed.
fn start_reading(name: &str, arguments: &[&str], flag: &str) -> (Tracer, fs::File) {
    let pipe = new_folder(name).join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let flag = format!("{flag}={}", pipe.display());
    let arguments = [arguments, &["-o", "none", &flag]].concat();
    let tracer = TracerCommand::with_names(&arguments).on_line(|_| ()).spawn();
    let mut file = None;
    wait_until("the tool opens the pipe", || {
        assert!(
            !tracer.ended_within(Duration::ZERO),
            "{flag}: {:?}",
            tracer.stderr_lines()
        );
        // Fails without a reader, instead of waiting for one.
        let mut options = fs::File::options();
        file = options.write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).ok();
        file.is_some()
    });
    (tracer, file.unwrap())
}

fn wait_for_capabilities(tracer: &Tracer, what: &str, expected: u64) {
    let mut last = (u64::MAX, u64::MAX);
    wait_until(what, || {
        assert!(
            !tracer.ended_within(Duration::ZERO),
            "{what}: {:?}",
            tracer.stderr_lines()
        );
        last = capabilities(tracer.pid);
        last.0 == expected
    });
    assert_eq!(last.1, DAC_READ_SEARCH, "{what}: the bounding set");
}

/// A replay parses a capture, which an attacker may have written, without capabilities. With `--rotate` it keeps
/// CAP_DAC_OVERRIDE, to create files in another user's folder.
fn replay_parses_without_capabilities() {
    let folder = new_folder("replay-output");
    let output = folder.join("x");
    let output = output.to_str().unwrap();
    let pods = folder.join("pods.json");
    fs::write(
        &pods,
        r#"{"kind":"PodList","apiVersion":"v1","items":[{"metadata":{"name":"a","uid":"u"}}]}"#,
    )
    .unwrap();
    let cases: [(&[&str], u64); 4] = [
        (&[], 0),
        (&["-w", output], 0),
        (&["--pods-file", pods.to_str().unwrap()], 0),
        (&["--rotate", "1M", "-w", output], DAC_OVERRIDE),
    ];
    for (arguments, expected) in cases {
        let (tracer, file) = start_reading("replay", arguments, "--read");
        wait_for_capabilities(&tracer, &format!("{arguments:?} reads a capture"), expected);
        drop(file);
        assert_eq!(tracer.wait().status.code(), Some(1), "an empty capture");
        assert!(
            !Path::new(output).exists(),
            "a capture that did not begin leaves no file"
        );
    }
    let incident = write_scratch_file("replay-pods.jsonl.zst", include_bytes!("../data/incident.jsonl.zst"));
    let (tracer, file) = start_reading("replay-pods", &["-r", incident.to_str().unwrap()], "--pods-file");
    wait_for_capabilities(&tracer, "a replay reads a pods file", DAC_READ_SEARCH);
    drop(file);
    tracer.wait();
}

/// The tool parses pods files and kubeconfigs after it has loaded the programs, with the capabilities that name sources
/// need.
fn name_files_are_parsed_with_few_capabilities() {
    for flag in ["--pods-file", "--kubeconfig"] {
        let (tracer, file) = start_reading("names", &[], flag);
        let what = format!("{flag} is read");
        wait_for_capabilities(&tracer, &what, BPF | SYS_PTRACE | DAC_READ_SEARCH | NET_ADMIN);
        assert_eq!(tracer.stderr_lines(), [""; 0], "the tool does not trace yet");
        drop(file);
        assert_eq!(tracer.wait().status.code(), Some(1), "an empty file");
    }
}

/// Before it opens a file, the tool drops the capabilities that no run needs.
fn arguments_are_parsed_with_few_capabilities() {
    let capture = new_folder("start").join("capture.jsonl");
    fs::write(&capture, "").unwrap();
    // The kernel opens the file only when this group permits it, or is closed.
    let permission = Fanotify::init(
        InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC,
        EventFFlags::O_RDONLY,
    )
    .unwrap();
    permission
        .mark(
            MarkFlags::FAN_MARK_ADD,
            MaskFlags::FAN_OPEN_PERM,
            AT_FDCWD,
            Some(&capture),
        )
        .unwrap();
    let tracer = TracerCommand::with_names(&["-o", "none", "-r", capture.to_str().unwrap()])
        .on_line(|_| ())
        .spawn();
    let all = BPF | PERFMON | SYS_PTRACE | NET_ADMIN | SYS_ADMIN | DAC_READ_SEARCH | DAC_OVERRIDE | NET_BIND_SERVICE;
    // The tool waits in open().
    wait_for_capabilities(&tracer, "a capture is opened", all);
    drop(permission);
    assert_eq!(tracer.wait().status.code(), Some(1), "an empty capture");
}
