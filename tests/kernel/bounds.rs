//! What others share with the tracer (its folder, its metrics port, the kernel's tables, the files that it parses), and what
//! they cannot do with it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{dup, mkfifo};
use socket2::SockAddr;

use crate::Table;
use crate::support::expect::Scene;
use crate::support::probe::Need;
use crate::support::scrape::{address, request};
use crate::support::sock::{Span, Truth, V, drain, flushed, give, pair_with, timed, wait_until};
use crate::support::tracer::{Start, Sums, Tracer, binary};
use crate::support::{net, peak_kib, scratch};

/// The trials.
pub fn table() -> Table {
    Table::new("bounds")
        .own(
            "directory_at_rotated_name_does_not_end_tracing",
            &[],
            directory_at_rotated_name_does_not_end_tracing,
        )
        .own(
            "file_of_another_user_in_sticky_folder_does_not_end_tracing",
            &[],
            file_of_another_user_in_sticky_folder_does_not_end_tracing,
        )
        .own(
            "removed_folder_does_not_end_tracing",
            &[],
            removed_folder_does_not_end_tracing,
        )
        .own(
            "slow_scrapers_share_two_texts",
            &[Need::Big],
            slow_scrapers_share_two_texts,
        )
        .own(
            "replay_parses_without_capabilities",
            &[],
            replay_parses_without_capabilities,
        )
        .own(
            "name_files_are_parsed_with_the_rest",
            &[],
            name_files_are_parsed_with_the_rest,
        )
        .own(
            "arguments_are_parsed_with_few_capabilities",
            &[],
            arguments_are_parsed_with_few_capabilities,
        )
        .own(
            "slow_socket_scan_lengthens_the_update_interval",
            &[Need::Big],
            slow_socket_scan_lengthens_the_update_interval,
        )
        .own(
            "sockets_without_storage_change_nothing_for_others",
            &[Need::Nft, Need::Big],
            sockets_without_storage_change_nothing_for_others,
        )
}

/// A new, empty folder of this scenario.
fn folder(name: &str) -> PathBuf {
    let folder = scratch().join(format!("bounds-{name}"));
    // An earlier run may have left it.
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

const CONNECTIONS: usize = 4000;
const ROTATION_WARNING: &str = "kmesh-trace: warning: cannot rotate the capture: ";

/// Makes connections until a tracer that writes `x` in `folder` would rotate it, with `obstacle` in the way; then some more.
/// All connections are in the capture, unless their files are removed.
fn rotate_against(name: &str, files_remain: bool, obstacle: impl FnOnce(&Path)) {
    let folder = folder(name);
    let path = folder.join("x");
    let server = TcpListener::bind((net::address(0), 0)).unwrap();
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
    let tracer = Start::new(&arguments).lines(|_| ()).tracing();
    obstacle(&folder);
    // Each time enough for several rotations; in all, less than the ring takes.
    let connect = || (0..CONNECTIONS).for_each(|_| drop(pair_with(&server)));
    let is_warning = |line: &&String| line.starts_with(ROTATION_WARNING);
    connect();
    wait_until("the first failed rotation", || {
        let has_ended = tracer.ended_within(Duration::ZERO);
        assert!(!has_ended, "the tracer ended: {:?}", tracer.said());
        tracer.said().iter().any(|line| is_warning(&line))
    });
    connect();
    let end = tracer.interrupt();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.stderr);
    assert_eq!(end.stderr.iter().filter(is_warning).count(), 1, "{:?}", end.stderr);
    if files_remain {
        let replay = Command::new(binary())
            .args(["-o", "json", "-r"])
            .arg(&path)
            .output()
            .unwrap();
        let printed = String::from_utf8(replay.stdout).unwrap();
        let ends = printed
            .lines()
            .filter(|line| line.contains(r#""event":"close""#))
            .count();
        assert_eq!(ends, 4 * CONNECTIONS, "{}", String::from_utf8_lossy(&replay.stderr));
    }
    _ = fs::remove_dir_all(&folder);
}

fn directory_at_rotated_name_does_not_end_tracing() {
    rotate_against("directory", true, |folder| fs::create_dir(folder.join("x.1")).unwrap());
}

/// In a folder like /tmp, only CAP_FOWNER could replace it.
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

/// The number of connection ends that are counted. Only these lines are parsed: the text has megabytes.
fn ended(from: SocketAddr) -> f64 {
    let text = request(from, "GET", "/metrics").body;
    assert!(text.ends_with("# EOF\n"), "cut off");
    let lines = text
        .lines()
        .filter(|line| line.starts_with("kmesh_trace_outcomes_total{"));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum()
}

/// Scrapers that ask, one a second, and never read. Each asks for a text of its own second; they share two.
fn slow_scrapers_share_two_texts() {
    const SCRAPERS: usize = 9;
    let server = TcpListener::bind((net::address(0), 0)).unwrap();
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
    let tracer = Start::new(&arguments).lines(|_| ()).tracing();
    let to = address(&tracer);
    // Four series for each end: a text that fits into no buffer of the kernel.
    (0..2000).for_each(|_| drop(pair_with(&server)));
    wait_until("all connections are counted", || ended(to) == 4000.0);
    let text = request(to, "GET", "/metrics").body.len() as u64 / 1024;
    assert!(
        text > 8192,
        "{text} KiB are too little to be seen in the memory of the tracer"
    );
    let before = peak_kib(tracer.pid);
    let mut slow = Vec::new();
    for _ in 0..SCRAPERS {
        let mut stream = TcpStream::connect(to).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        // It has its text.
        stream.read_exact(&mut [0]).unwrap();
        slow.push(stream);
        // A text is shared for a second: that is what is tested.
        thread::sleep(Duration::from_millis(1050));
    }
    assert_eq!(ended(to), 4000.0);
    let more = peak_kib(tracer.pid) - before;
    assert!(
        more < 3 * text,
        "{SCRAPERS} scrapers took {more} KiB; a text has {text} KiB"
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

/// The capabilities of all threads of a process: those that any has, and those that a program that it starts could have.
fn capabilities(pid: nix::unistd::Pid) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    // A thread may end between the listing and the read.
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok());
    statuses.fold((0, 0), |(own, of_children), status| {
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        let all = set("CapEff:") | set("CapPrm:") | set("CapInh:") | set("CapAmb:");
        (own | all, of_children | set("CapBnd:"))
    })
}

/// Starts the tool with a pipe as the value of `flag`, and returns when it has opened the pipe: it then reads, for as long as
/// the file that is returned is open.
fn reading(name: &str, arguments: &[&str], flag: &str) -> (Tracer, fs::File) {
    let pipe = folder(name).join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let flag = format!("{flag}={}", pipe.display());
    let arguments = [arguments, &["-o", "none", &flag]].concat();
    let tracer = Start::resolving(&arguments).lines(|_| ()).spawn();
    let mut file = None;
    wait_until("the tool opens the pipe", || {
        assert!(!tracer.ended_within(Duration::ZERO), "{flag}: {:?}", tracer.said());
        // Without a reader this fails; it must not wait for one that may be gone.
        let mut options = fs::File::options();
        file = options.write(true).custom_flags(libc::O_NONBLOCK).open(&pipe).ok();
        file.is_some()
    });
    (tracer, file.unwrap())
}

fn wait_for_capabilities(tracer: &Tracer, what: &str, expected: u64) {
    let mut last = (u64::MAX, u64::MAX);
    wait_until(what, || {
        assert!(!tracer.ended_within(Duration::ZERO), "{what}: {:?}", tracer.said());
        last = capabilities(tracer.pid);
        last.0 == expected
    });
    assert_eq!(last.1, DAC_READ_SEARCH, "{what}: the bounding set");
}

/// A capture of a stranger meets a process that has none, whatever else the replay was asked to do; only what rotates files
/// may have to create some in the folder of another.
fn replay_parses_without_capabilities() {
    let folder = folder("replay-output");
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
        let (tracer, file) = reading("replay", arguments, "--read");
        wait_for_capabilities(&tracer, &format!("{arguments:?} reads a capture"), expected);
        drop(file);
        assert_eq!(tracer.wait().status.code(), Some(1), "an empty capture");
        assert!(
            !Path::new(output).exists(),
            "nothing is left of a capture that did not begin"
        );
    }
    let incident = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.jsonl.zst");
    let (tracer, file) = reading("replay-pods", &["-r", incident], "--pods-file");
    wait_for_capabilities(&tracer, "a replay reads a pods file", DAC_READ_SEARCH);
    drop(file);
    tracer.wait();
}

/// What a stranger may have written is parsed once the programs are loaded, with what names take.
fn name_files_are_parsed_with_the_rest() {
    for flag in ["--pods-file", "--kubeconfig"] {
        let (tracer, file) = reading("names", &[], flag);
        let what = format!("{flag} is read");
        wait_for_capabilities(&tracer, &what, BPF | SYS_PTRACE | DAC_READ_SEARCH | NET_ADMIN);
        assert_eq!(tracer.said(), [""; 0], "nothing is traced yet");
        drop(file);
        assert_eq!(tracer.wait().status.code(), Some(1), "an empty file");
    }
}

/// Before the first file is open, the tool has given up what no run of it takes.
fn arguments_are_parsed_with_few_capabilities() {
    let folder = folder("start");
    let pipe = folder.join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let tracer = Start::resolving(&["-o", "none", "-r", pipe.to_str().unwrap()])
        .lines(|_| ())
        .spawn();
    let all = BPF | PERFMON | SYS_PTRACE | NET_ADMIN | SYS_ADMIN | DAC_READ_SEARCH | DAC_OVERRIDE | NET_BIND_SERVICE;
    // It waits in open().
    wait_for_capabilities(&tracer, "a capture is opened", all);
    drop(fs::File::options().write(true).open(&pipe).unwrap());
    tracer.wait();
}

/// Gives the calling thread an empty table of descriptors of its own: no file of another thread is open in it.
fn unshare_descriptors() {
    // SAFETY: it closes copies in a new table. The calling thread owns no descriptor yet.
    let result = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_UNSHARE as i32) };
    assert_eq!(result, 0, "close_range: {}", std::io::Error::last_os_error());
}

/// Threads with open descriptors that are no sockets: each has a table of its own, which a scan goes through.
fn slow_socket_scan_lengthens_the_update_interval() {
    const DESCRIPTORS: usize = 15_000;
    const MAX_THREADS: usize = 200;
    const PREFIX: &str = "kmesh-trace: socket scan took ";
    let server = TcpListener::bind((net::address(0), 0)).unwrap();
    let pair = pair_with(&server);
    let port = server.local_addr().unwrap().port().to_string();
    let arguments = [
        "-o",
        "json",
        "--events",
        "update",
        "--interval",
        "100ms",
        "--port",
        &port,
    ];
    let tracer = Start::new(&arguments).tracing();
    tracer.store.keep(net::inode());
    let has_said = || tracer.said().iter().any(|line| line.starts_with(PREFIX));
    let (mut threads, mut updates) = (Vec::new(), 0);
    while !has_said() {
        assert!(
            threads.len() < MAX_THREADS,
            "{} descriptors are no burden",
            MAX_THREADS * DESCRIPTORS
        );
        let (opened, wait_opened) = mpsc::channel();
        let (close, wait_close) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            unshare_descriptors();
            let null = fs::File::open("/dev/null").unwrap();
            let copies: Vec<_> = (0..DESCRIPTORS).map(|_| dup(null.as_fd()).unwrap()).collect();
            opened.send(()).unwrap();
            // The other end goes when the test is over.
            _ = wait_close.recv();
            drop(copies);
        });
        wait_opened.recv().unwrap();
        threads.push((thread, close));
        // One more scan has met them.
        updates += 2;
        let records = |records: &[crate::support::store::Rec]| (records.len() >= updates).then_some(());
        tracer.store.wait(net::inode(), records).unwrap();
        updates = tracer.store.records(net::inode()).len();
    }
    // Later scans are as slow.
    let enough = |records: &[crate::support::store::Rec]| (records.len() >= updates + 6).then_some(());
    tracer.store.wait(net::inode(), enough).unwrap();
    let said = tracer.said();
    let lines: Vec<_> = said.iter().filter_map(|line| line.strip_prefix(PREFIX)).collect();
    let [line] = lines[..] else {
        panic!("said once: {said:?}")
    };
    assert!(
        line.contains(" of processor time: the update interval is now "),
        "{line}"
    );
    for (thread, close) in threads {
        drop(close);
        thread.join().unwrap();
    }
    drop(pair);
    assert!(tracer.interrupt().status.success());
}

/// The layout of `struct tcp_md5sig` (include/uapi/linux/tcp.h).
#[repr(C)]
struct Md5Key {
    address: [u8; 128],
    flags: u8,
    prefix: u8,
    length: u16,
    interface: i32,
    key: [u8; 80],
}

/// Fills the socket's option memory, so that the kernel has no storage for it.
fn fill_option_memory(socket: &socket2::Socket) {
    const TCP_MD5SIG: i32 = 14;
    for number in 0..1_u32 << 16 {
        let mut key = Md5Key {
            address: [0; 128],
            flags: 0,
            prefix: 0,
            length: 1,
            interface: 0,
            key: [1; 80],
        };
        key.address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        key.address[4..8].copy_from_slice(&(0x0a00_0000 + number).to_be_bytes());
        // SAFETY: the descriptor is open while `socket` is borrowed, and the key lives through the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                TCP_MD5SIG,
                (&raw const key).cast(),
                size_of::<Md5Key>() as u32,
            )
        };
        if result != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM), "{error}");
            return;
        }
    }
    panic!("option memory has no end");
}

/// Attempts that hang, until the other end of `close` goes; more than the kernel side has slots for clients.
fn hang(to: SocketAddr, count: usize) -> (thread::JoinHandle<()>, mpsc::Sender<()>) {
    let (opened, wait_opened) = mpsc::channel();
    let (close, wait_close) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        unshare_descriptors();
        let sockets: Vec<_> = (0..count)
            .map(|_| {
                let socket = V::Four.socket();
                socket.set_nonblocking(true).unwrap();
                let error = socket.connect(&SockAddr::from(to)).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
                socket
            })
            .collect();
        opened.send(()).unwrap();
        // The other end goes when the test is over.
        _ = wait_close.recv();
        drop(sockets);
    });
    wait_opened.recv().unwrap();
    (thread, close)
}

/// The number of connections for which no tracer of this machine may have had storage.
pub static WITHOUT_STORAGE: AtomicU64 = AtomicU64::new(0);

/// A tenant fills the table of clients and its own sockets' option memory. Its connections are lost, and counted; a connection
/// of another tenant that was waiting to be accepted when tracing began is recorded all the same.
fn sockets_without_storage_change_nothing_for_others() {
    let other = TcpListener::bind((net::address(1), 0)).unwrap();
    let dst = other.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    give(&client, 20);
    flushed(&client);

    let server = TcpListener::bind((net::address(2), 0)).unwrap();
    net::rules(&[&format!("ip daddr {} tcp flags syn drop", net::address(3))]);
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    let hanging: Vec<_> = (1..=4)
        .map(|port| hang(SocketAddr::from((net::address(3), port)), 6000))
        .collect();
    let mut asked = 0;
    let mut lost = || {
        asked += 1;
        tracer.signal(Signal::SIGUSR1);
        Sums::of(&tracer.store.wait_summaries(asked).unwrap()[asked - 1]).lost
    };
    let at = SockAddr::from(server.local_addr().unwrap());
    wait_until("a connection is lost", || {
        for _ in 0..10 {
            let socket = V::Four.socket();
            fill_option_memory(&socket);
            WITHOUT_STORAGE.fetch_add(1, Ordering::Relaxed);
            socket.connect(&at).unwrap();
            let (accepted, _) = server.accept().unwrap();
            drop(socket);
            assert_eq!(drain(&accepted), 0);
        }
        lost() > 0
    });

    let (accepted, src) = other.accept().unwrap();
    let open = Span {
        after: std::time::SystemTime::now(),
        ..connect
    };
    drop(client);
    assert_eq!(drain(&accepted), 20);
    drop(accepted);
    let truth = Truth {
        src,
        dst,
        connect,
        open,
    };
    scene.expect_among_others(&[
        truth
            .outbound()
            .bytes(20, 0)
            .ok("local")
            .preexisting()
            .by(&["scan", "close"]),
        truth.inbound().bytes(0, 20).ok("peer").preexisting(),
    ]);
    for (thread, close) in hanging {
        drop(close);
        thread.join().unwrap();
    }
    let sums = tracer.interrupt().check();
    assert!(sums.lost > 0, "{sums:?}");
}
