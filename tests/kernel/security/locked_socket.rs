//! A process that holds the lock of its socket: its send() waits for a page that another thread does not provide.

use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;
use std::thread::{self, JoinHandle};

use nix::libc;
use serde_json::Value;

use crate::support::expect::is_address;
use crate::support::net;
use crate::support::sock::{IpVersion, listen, pair_with, recv, wait_until};
use crate::support::tracer::Tracer;

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

/// On a kernel where a scan takes the lock of each socket, a process can stop the scans, but no record of a close.
pub fn locked_socket_delays_no_record() {
    let tracer = Tracer::json(&["--events", "close,update", "--interval", "200ms"]);
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let listener = listen(IpVersion::V4);
    let locked = pair_with(&listener);
    let mut page = MissingPage::new();
    let (address, socket) = (page.page as usize, locked.client.as_raw_fd());
    let sender: JoinHandle<isize> = thread::spawn(move || {
        // SAFETY: the kernel checks the address, which the page has until this call returns.
        unsafe { libc::send(socket, address as *const libc::c_void, PAGE, 0) }
    });
    wait_until("the scan waits for the lock", || {
        let threads = fs::read_dir(format!("/proc/{}/task", tracer.pid)).unwrap().flatten();
        threads.into_iter().any(|thread| {
            let waits_in = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
            waits_in.contains("lock_sock")
        })
    });
    let other = pair_with(&listener).close_client_first();
    let close_of = |value: &Value| value["event"] == "close" && is_address(&value["src"], other.src);
    assert_eq!(tracer.output.wait_matching(netns, 2, close_of).len(), 2);
    let update_of = |value: &Value| value["event"] == "update" && is_address(&value["src"], locked.truth.src);
    let before = tracer.output.wait_matching(netns, 0, update_of).len();
    page.provide();
    assert_eq!(sender.join().unwrap(), PAGE as isize);
    recv(&locked.server, PAGE);
    // The scans go on.
    tracer.output.wait_matching(netns, before + 2, update_of);
    locked.close_client_first();
    tracer.interrupt().check_lossless();
}
