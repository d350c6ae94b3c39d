//! A process that holds the lock of its socket: its send() waits for a page that another thread does not provide.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::ptr;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::libc;
use serde_json::Value;

use crate::support::expect::is_address;
use crate::support::net;
use crate::support::sock::{IpVersion, Pair, listen, pair_with, recv, wait_until};
use crate::support::tracer::{Tracer, TracerCommand, binary};

const PAGE: usize = 4096;

nix::ioctl_readwrite!(uffdio_api, 0xaa, 0x3f, [u64; 3]);
nix::ioctl_readwrite!(uffdio_register, 0xaa, 0x00, [u64; 4]);

/// A page whose readers wait for [`Self::provide`].
struct MissingPage {
    userfault: Option<OwnedFd>,
    page: *mut libc::c_void,
}

impl MissingPage {
    fn new() -> Self {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a new mapping, which nothing else uses.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, protection, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        // SAFETY: the call has no pointer.
        let userfault = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        assert!(userfault >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
        // SAFETY: the kernel has just created this descriptor, and nothing else knows its number.
        let userfault = unsafe { OwnedFd::from_raw_fd(i32::try_from(userfault).unwrap()) };
        let mut api = [0xaa, 0, 0];
        let mut register = [page as u64, PAGE as u64, 1, 0];
        // SAFETY: the structures of these calls are three and four words.
        unsafe {
            uffdio_api(userfault.as_raw_fd(), &raw mut api).unwrap();
            uffdio_register(userfault.as_raw_fd(), &raw mut register).unwrap();
        }
        Self {
            userfault: Some(userfault),
            page,
        }
    }

    /// Wakes the readers, which find zeros.
    fn provide(&mut self) {
        self.userfault = None;
    }
}

impl Drop for MissingPage {
    fn drop(&mut self) {
        self.provide();
        // SAFETY: the mapping of this value, which no thread uses any more.
        _ = unsafe { libc::munmap(self.page, PAGE) };
    }
}

/// A connection whose client holds the lock of its socket, in a send().
struct LockedConnection {
    pair: Pair,
    page: MissingPage,
    sender: JoinHandle<isize>,
}

impl LockedConnection {
    fn to(listener: &TcpListener) -> Self {
        let pair = pair_with(listener);
        let page = MissingPage::new();
        let (address, socket) = (page.page as usize, pair.client.as_raw_fd());
        let sender = thread::spawn(move || {
            // SAFETY: the kernel checks the address, which the page has until this call returns.
            unsafe { libc::send(socket, address as *const libc::c_void, PAGE, 0) }
        });
        wait_for_thread_in("self", "userfault");
        Self { pair, page, sender }
    }

    /// Lets the send() end, which releases the lock.
    fn release(mut self) -> Pair {
        self.page.provide();
        assert_eq!(self.sender.join().unwrap(), PAGE as isize);
        recv(&self.pair.server, PAGE);
        self.pair
    }
}

/// Waits until a thread of a process waits in a kernel function whose name contains `function`.
fn wait_for_thread_in(process: &str, function: &str) {
    wait_until(&format!("a thread of {process} waits in {function}"), || {
        let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap().flatten();
        threads.into_iter().any(|thread| {
            let waits_in = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
            waits_in.contains(function)
        })
    });
}

/// On a kernel where a scan takes the lock of each socket, a process can stop the scans, but no record of a close.
pub fn locked_socket_delays_no_record() {
    let tracer = Tracer::json(&["--events", "close,update", "--interval", "200ms"]);
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let listener = listen(IpVersion::V4);
    let locked = LockedConnection::to(&listener);
    wait_for_thread_in(&tracer.pid.to_string(), "lock_sock");
    wait_for_closes(&tracer, &listener);
    let src = locked.pair.truth.src;
    let update_of = |value: &Value| value["event"] == "update" && is_address(&value["src"], src);
    let before = tracer.output.wait_matching(netns, 0, update_of).len();
    let pair = locked.release();
    // The scans go on.
    tracer.output.wait_matching(netns, before + 2, update_of);
    pair.close_client_first();
    tracer.interrupt().check_lossless();
}

/// The first scan, which visits the sockets of the tool's own network namespace on each kernel, waits for the lock. The
/// start does not, and neither does `check`.
pub fn locked_socket_does_not_prevent_the_start() {
    // Declared before the lock, so that a failure releases it before it waits for the end of these processes.
    let (tracer, check);
    let listener = listen(IpVersion::V4);
    let locked = LockedConnection::to(&listener);
    let (sender, lines) = mpsc::channel();
    check = TracerCommand::from_command(Command::new(binary()), &["check"])
        .on_line(move |line| _ = sender.send(String::from_utf8_lossy(line).into_owned()))
        .spawn();
    tracer = TracerCommand::new(&["-o", "json"]).spawn();
    tracer.wait_stderr("kmesh-trace: warning: the first socket scan has not ended after 10 s");
    tracer.wait_stderr("kmesh-trace: tracing");
    tracer.output.watch(net::current_netns());
    wait_for_closes(&tracer, &listener);
    wait_until("check reports the scan", || {
        let starts = "limited  open sockets  the first socket scan has not ended after 10 s";
        lines.try_iter().any(|line| line.starts_with(starts))
    });
    let pair = locked.release();
    assert_eq!(check.wait().status.code(), Some(0));
    pair.close_client_first();
    tracer.interrupt().check_lossless();
}

/// Makes a connection, and waits for the records of both ends.
fn wait_for_closes(tracer: &Tracer, listener: &TcpListener) {
    let truth = pair_with(listener).close_client_first();
    let close_of = |value: &Value| value["event"] == "close" && is_address(&value["src"], truth.src);
    let closes = tracer.output.wait_matching(net::current_netns(), 2, close_of);
    assert_eq!(closes.len(), 2);
}
