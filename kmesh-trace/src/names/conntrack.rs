//! The backend to which the kernel translated a dialled address, from connection tracking over netlink.
//!
//! kube-proxy translates in the node's network namespace, even for a pod's connection, so one socket there serves
//! all. A request and its answer are one system call each; nothing waits.

mod message;
mod timeouts;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::NETFILTER, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use self::message::ConntrackEntry;
use self::timeouts::Timeouts;
use crate::node;

/// The time between two checks whether the kernel tracks connections at all.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The maximum number of look-ups of an entry. When a connection begins that has the numbers of an ended one, the
/// kernel has no entry for some microseconds. And for a moment an entry has its next state with the timeout of the
/// state before, which looks like an earlier connection's.
const MAX_LOOKUPS: usize = 4;

/// The connection tracking of the node's network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: OwnedFd,
    timeouts: Timeouts,
    sequence: u32,
    /// Whether the kernel tracks connections, and when that was checked.
    tracks: Option<(bool, Instant)>,
}

impl Conntrack {
    /// Opens a socket in the node's namespace. It is an error if the namespace cannot be entered (CAP_SYS_ADMIN), or
    /// its connection tracking cannot be read (CAP_NET_ADMIN).
    pub fn open() -> io::Result<Self> {
        let (socket, timeouts) = match node::network_namespace() {
            Some(node) if !node.is_own => Self::open_in(File::open(node.path)?)?,
            _ => (socket()?, Timeouts::read()),
        };
        let mut opened = Self {
            socket,
            timeouts,
            sequence: 0,
            tracks: None,
        };
        if opened.is_tracking() {
            let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
            opened.find(unspecified, unspecified)?;
        }
        Ok(opened)
    }

    /// Opens the socket in a separate thread, which enters the namespace, so that no other thread has to.
    fn open_in(namespace: File) -> io::Result<(OwnedFd, Timeouts)> {
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok((socket()?, Timeouts::read()))
        })
        .join()
        .map_err(|_| io::Error::other("the thread died"))?
    }

    /// Returns the address to which the node translated `dialled` for `client`. `None` when the node did not
    /// translate it, when there is no entry, or when the entry ended before this connection, which started
    /// `since_start` ago.
    pub fn backend(
        &mut self,
        client: SocketAddr,
        dialled: SocketAddr,
        since_start: Option<Duration>,
    ) -> Option<SocketAddr> {
        if !self.is_tracking() {
            return None;
        }
        let backend = (0..MAX_LOOKUPS).find_map(|_| {
            let entry = self.find(client, dialled).ok().flatten()?;
            let is_earlier = since_start.is_some_and(|since_start| self.timeouts.ended_before(&entry, since_start));
            (!is_earlier).then_some(entry.backend)
        })?;
        (backend != dialled).then_some(backend)
    }

    /// Returns whether the kernel tracks connections. Without that, a request would make it load its modules.
    fn is_tracking(&mut self) -> bool {
        match self.tracks {
            Some((true, _)) => true,
            Some((false, at)) if at.elapsed() < CHECK_INTERVAL => false,
            _ => {
                let tracks = Path::new("/sys/module/nf_conntrack").exists();
                self.tracks = Some((tracks, Instant::now()));
                tracks
            }
        }
    }

    /// Returns the entry of a connection.
    fn find(&mut self, client: SocketAddr, dialled: SocketAddr) -> io::Result<Option<ConntrackEntry>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = message::request(self.sequence, client, dialled);
        send(&self.socket, &request, SendFlags::empty())?;
        let mut answer = [0; 8192];
        loop {
            // The kernel answers before send() returns.
            let (received, _) = match recv(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match message::answer(&answer[..received], self.sequence) {
                message::KernelAnswer::Found(entry) => return Ok(Some(entry)),
                message::KernelAnswer::Refused(errno) if errno == Errno::NOENT.raw_os_error() => return Ok(None),
                message::KernelAnswer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                message::KernelAnswer::Other => {}
            }
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        flags,
        Some(NETFILTER),
    )?)
}
