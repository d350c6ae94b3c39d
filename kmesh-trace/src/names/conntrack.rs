//! Where the kernel translated a dialled address to: connection tracking, asked over netlink.
//!
//! kube-proxy translates in the node's network namespace, even for a pod's connection, so one socket there serves all. A
//! question and its answer are one system call each; nothing waits.

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

use self::message::Entry;
use self::timeouts::Timeouts;
use super::local::node;

/// Between looks whether connections are tracked at all.
const LOOKS: Duration = Duration::from_secs(5);

/// A way to ask.
#[derive(Debug)]
pub struct Conntrack {
    socket: OwnedFd,
    timeouts: Timeouts,
    sequence: u32,
    /// Whether the kernel tracks connections, as of when.
    tracks: Option<(bool, Instant)>,
}

impl Conntrack {
    /// In the node's namespace. Errors: it cannot be
    /// entered (CAP_SYS_ADMIN), or not asked (CAP_NET_ADMIN).
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
            let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
            opened.ask(nobody, nobody)?;
        }
        Ok(opened)
    }

    /// A thread of its own goes there, so that no other one has to.
    fn open_in(namespace: File) -> io::Result<(OwnedFd, Timeouts)> {
        thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok((socket()?, Timeouts::read()))
        })
        .join()
        .map_err(|_| io::Error::other("the thread died"))?
    }

    /// Returns the address to which the node translated what `client` dialled; `None` when it did not, when nothing is known, or
    /// when the entry ended before this connection, which started `since_start` ago, had sent anything.
    pub fn backend(
        &mut self,
        client: SocketAddr,
        dialled: SocketAddr,
        since_start: Option<Duration>,
    ) -> Option<SocketAddr> {
        if !self.is_tracking() {
            return None;
        }
        let entry = self.ask(client, dialled).ok().flatten()?;
        let is_earlier = since_start.is_some_and(|since_start| self.timeouts.ended_before(&entry, since_start));
        (entry.backend != dialled && !is_earlier).then_some(entry.backend)
    }

    /// Asked without tracking, the kernel would load its modules.
    fn is_tracking(&mut self) -> bool {
        match self.tracks {
            Some((true, _)) => true,
            Some((false, at)) if at.elapsed() < LOOKS => false,
            _ => {
                let tracks = Path::new("/sys/module/nf_conntrack").exists();
                self.tracks = Some((tracks, Instant::now()));
                tracks
            }
        }
    }

    fn ask(&mut self, client: SocketAddr, dialled: SocketAddr) -> io::Result<Option<Entry>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut buffer = [0; message::LONGEST_QUESTION];
        let question = message::question(&mut buffer, self.sequence, client, dialled);
        send(&self.socket, question, SendFlags::empty())?;
        let mut answer = [0; 8192];
        loop {
            // The kernel has answered before the question's call returned.
            let (received, _) = match recv(&self.socket, &mut answer, RecvFlags::DONTWAIT) {
                Ok(received) => received,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match message::answer(&answer[..received], self.sequence) {
                message::Answer::Found(entry) => return Ok(Some(entry)),
                message::Answer::Refused(errno) if errno == Errno::NOENT.raw_os_error() => return Ok(None),
                message::Answer::Refused(errno) => return Err(io::Error::from_raw_os_error(errno)),
                message::Answer::Other => {}
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
