//! A network that delays every packet: two TUN devices in two network namespaces, and a thread for each direction that
//! carries the packets from one device to the other. Many kernels lack `tc netem`.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::net;

/// The largest packet of a TUN device is its MTU.
const MTU: usize = 1_500;
const DEVICE: &str = "delay";

/// Two namespaces, the calling thread's and a server's, with a network between them. Dropping it stops the network.
pub struct DelayedNetwork {
    /// Listens in the server's namespace. A connect() of the calling thread reaches it over the network.
    pub listener: TcpListener,
    pub server_netns: u64,
    pub server_address: Ipv6Addr,
    server_namespace: File,
    /// Ends the threads when it is dropped.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl DelayedNetwork {
    /// Creates a network that holds each packet for `delay`, in each direction. Once for each scenario.
    pub fn new(delay: Duration) -> Self {
        let [client, server] = [1, 2].map(|number| net::scenario_v6(0x200 + number));
        let client_device = open_tun(client, server).unwrap_or_else(|error| panic!("{error}"));
        // The thread shares the table of descriptors, so the listener and the device outlive it, and their namespace.
        let in_server_namespace = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            net::run("ip", &["link", "set", "lo", "up"]);
            let device = open_tun(server, client).unwrap_or_else(|error| panic!("{error}"));
            let listener = TcpListener::bind(SocketAddr::from((server, 0))).expect("listen behind the network");
            let namespace = File::open("/proc/thread-self/ns/net").expect("the namespace");
            (device, listener, net::current_netns(), namespace)
        };
        let (server_device, listener, server_netns, server_namespace) = thread::spawn(in_server_namespace)
            .join()
            .expect("the server's namespace");
        let (stopped, stop) = pipe().expect("pipe()");
        let directions = [(&client_device, &server_device), (&server_device, &client_device)];
        let threads = directions.map(|(from, to)| {
            let clone = |file: &File| file.try_clone().expect("dup()");
            let (from, to) = (clone(from), clone(to));
            let stopped = stopped.try_clone().expect("dup()");
            thread::spawn(move || carry(from, to, &stopped, delay))
        });
        Self {
            listener,
            server_netns,
            server_address: server,
            server_namespace,
            stop: Some(stop),
            threads: threads.into(),
        }
    }

    /// Runs `body` on a thread in the server's namespace, in which the processes that it starts are, too.
    pub fn in_server_namespace<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let run = || {
            setns(&self.server_namespace, CloneFlags::CLONE_NEWNET).expect("setns");
            body()
        };
        thread::scope(|scope| scope.spawn(run).join()).expect("a thread in the server's namespace")
    }
}

impl Drop for DelayedNetwork {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let result = thread.join();
            // A second panic would abort the suite.
            assert!(
                result.is_ok() || thread::panicking(),
                "a thread of the network panicked"
            );
        }
    }
}

/// Creates a TUN device with this address in the calling thread's namespace. It exists until the file is closed.
pub fn open_tun(address: Ipv6Addr, peer: Ipv6Addr) -> Result<File, String> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let device = options
        .open("/dev/net/tun")
        .map_err(|error| format!("/dev/net/tun: {error}"))?;
    // SAFETY: all bytes zero are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result != 0 {
        return Err(format!("TUNSETIFF: {}", std::io::Error::last_os_error()));
    }
    let (address, peer) = (address.to_string(), peer.to_string());
    net::try_run("ip", &["addr", "add", &address, "dev", DEVICE, "nodad"])?;
    // The device drops packets that do not fit into its queue.
    net::try_run("ip", &["link", "set", DEVICE, "txqueuelen", "10000", "up"])?;
    net::try_run("ip", &["-6", "route", "add", &peer, "dev", DEVICE])?;
    net::wait_local_route(&address, DEVICE);
    Ok(device)
}

/// Carries packets until `stopped` ends, each `delay` after it has arrived.
fn carry(mut from: File, mut to: File, stopped: &PipeReader, delay: Duration) {
    // Packets leave in the order in which they came, since each waits equally long.
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut packet = [0; MTU];
    loop {
        let due = queue.front().map(|(due, _)| *due);
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
        let wait = wait.map(|wait| Timespec::try_from(wait).expect("a short time"));
        let mut files = [
            PollFd::new(&from, PollFlags::IN),
            PollFd::new(stopped, PollFlags::empty()),
        ];
        match poll(&mut files, wait.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            result => _ = result.expect("poll"),
        }
        if !files[1].revents().is_empty() {
            return;
        }
        loop {
            match from.read(&mut packet) {
                Ok(length) => queue.push_back((Instant::now() + delay, packet[..length].to_vec())),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("read a packet: {error}"),
            }
        }
        while queue.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, packet) = queue.pop_front().expect("the first packet");
            let length = to.write(&packet).expect("write a packet");
            assert_eq!(length, packet.len(), "a part of a packet");
        }
    }
}
