//! What tenants can take of the kernel's resources: the time of socket scans, slots for clients, and socket storage.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::dup;
use socket2::SockAddr;

use crate::support::net;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    IpVersion, accept, connect_errno, drain, pair_with, send, timed, wait_acknowledged, wait_until,
};
use crate::support::tracer::{Totals, Tracer, TracerCommand};

/// Gives the calling thread a new, empty table of descriptors.
fn unshare_descriptors() {
    // SAFETY: closes the copies in the new table. The calling thread owns no descriptor yet.
    let result = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_UNSHARE as i32) };
    assert_eq!(result, 0, "close_range: {}", std::io::Error::last_os_error());
}

/// A thread with its own table of descriptors, which holds what it has opened until it is closed.
struct DescriptorHolder {
    thread: thread::JoinHandle<()>,
    close: mpsc::Sender<()>,
}

impl DescriptorHolder {
    /// Starts the thread, and returns when `open` has returned.
    fn new<T>(open: impl FnOnce() -> T + Send + 'static) -> Self {
        let (opened, wait_opened) = mpsc::channel();
        let (close, wait_close) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            unshare_descriptors();
            let descriptors = open();
            opened.send(()).unwrap();
            // Returns when the test drops the other end.
            _ = wait_close.recv();
            drop(descriptors);
        });
        wait_opened.recv().unwrap();
        Self { thread, close }
    }

    fn close(self) {
        drop(self.close);
        self.thread.join().unwrap();
    }
}

/// A scan reads the descriptors of all threads. Threads with many descriptors that are not sockets make it slow.
pub fn slow_socket_scan_lengthens_the_update_interval() {
    const DESCRIPTORS: usize = 15_000;
    const MAX_THREADS: usize = 200;
    const PREFIX: &str = "kmesh-trace: socket scan took ";
    let server = TcpListener::bind((net::loopback_v4(0), 0)).unwrap();
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
    let tracer = TracerCommand::new(&arguments).start();
    tracer.output.watch(net::current_netns());
    let has_message = || tracer.stderr_lines().iter().any(|line| line.starts_with(PREFIX));
    let wait_records = |count: usize| {
        let records = tracer.output.wait_matching(net::current_netns(), count, |_| true);
        records.len()
    };
    let (mut threads, mut updates) = (Vec::new(), 0);
    while !has_message() {
        assert!(
            threads.len() < MAX_THREADS,
            "{} descriptors do not slow a scan down",
            MAX_THREADS * DESCRIPTORS
        );
        threads.push(DescriptorHolder::new(|| {
            let null = fs::File::open("/dev/null").unwrap();
            let copies = (0..DESCRIPTORS).map(|_| dup(null.as_fd()).unwrap());
            copies.collect::<Vec<_>>()
        }));
        // One more scan has read them.
        updates = wait_records(updates + 2);
    }
    // Later scans are as slow.
    wait_records(updates + 6);
    let stderr = tracer.stderr_lines();
    let lines: Vec<_> = stderr.iter().filter_map(|line| line.strip_prefix(PREFIX)).collect();
    let [line] = lines[..] else {
        panic!("one message: {stderr:?}")
    };
    assert!(
        line.contains(" of processor time: the update interval is now "),
        "{line}"
    );
    threads.into_iter().for_each(DescriptorHolder::close);
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

/// Fills the socket's option memory, so that the kernel cannot allocate storage for it.
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
    panic!("the option memory has no limit");
}

/// Makes connection attempts that get no answer.
fn make_unanswered_attempts(to: SocketAddr, count: usize) -> DescriptorHolder {
    DescriptorHolder::new(move || {
        let attempt = |_| {
            let socket = IpVersion::V4.socket();
            socket.set_nonblocking(true).unwrap();
            assert_eq!(connect_errno(&socket, to).0, Errno::EINPROGRESS);
            socket
        };
        (0..count).map(attempt).collect::<Vec<_>>()
    })
}

/// The number of connections for which the kernel may have had no storage, for any tracer of this machine.
pub static WITHOUT_STORAGE: AtomicU64 = AtomicU64::new(0);

/// A tenant fills the table of clients and the option memory of its own sockets. Its connections count as lost. The
/// connection of another tenant, which was in the accept queue when tracing began, has its records.
pub fn sockets_without_storage_do_not_affect_others() {
    let other = TcpListener::bind((net::loopback_v4(1), 0)).unwrap();
    let dst = other.local_addr().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    send(&client, 20);
    wait_acknowledged(&client);

    let server = TcpListener::bind((net::loopback_v4(2), 0)).unwrap();
    net::set_packet_filter(&[&format!("ip daddr {} tcp flags syn drop", net::loopback_v4(3))]);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    // More than the kernel side has slots for clients.
    let hanging: Vec<_> = (1..=4)
        .map(|port| make_unanswered_attempts(SocketAddr::from((net::loopback_v4(3), port)), 6000))
        .collect();
    let lost = || Totals::from_summary(&tracer.request_summary()).lost;
    let at = SockAddr::from(server.local_addr().unwrap());
    wait_until("a connection is lost", || {
        for _ in 0..10 {
            let socket = IpVersion::V4.socket();
            fill_option_memory(&socket);
            WITHOUT_STORAGE.fetch_add(1, Ordering::Relaxed);
            socket.connect(&at).unwrap();
            let (accepted, _) = server.accept().unwrap();
            drop(socket);
            assert_eq!(drain(&accepted), 0);
        }
        lost() > 0
    });

    let pair = accept(&other, client, connect);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 20);
    drop(pair.server);
    let truth = pair.truth;
    view.expect_among_others(&[
        truth
            .outbound()
            .bytes(20, 0)
            .ok("local")
            .preexisting()
            .found_by(&["scan", "close"]),
        truth.inbound().bytes(0, 20).ok("peer").preexisting(),
    ]);
    hanging.into_iter().for_each(DescriptorHolder::close);
    let totals = tracer.interrupt().check();
    assert!(totals.lost > 0, "{totals:?}");
}
