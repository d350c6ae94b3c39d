//! The TCP connections of this process: to kubelets and API servers, and from scrapers of its metrics.
//!
//! Unless `--include-self` is given, a live trace filters out both ends of these connections. The pid identifies the
//! end of this process. The addresses identify the other end, if it is on this node, too.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::record::Record;

/// The number of connections that are remembered. The tool has fewer open connections, and its records come soon after
/// a connection closes.
const MAX_CONNECTIONS: usize = 128;

/// The client's and the server's address of each connection, the oldest first.
static CONNECTIONS: Mutex<VecDeque<(SocketAddr, SocketAddr)>> = Mutex::new(VecDeque::new());

fn connections() -> MutexGuard<'static, VecDeque<(SocketAddr, SocketAddr)>> {
    CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds an established connection of this process.
pub fn add(client: SocketAddr, server: SocketAddr) {
    let mut connections = connections();
    if connections.len() == MAX_CONNECTIONS {
        connections.pop_front();
    }
    connections.push_back((canonical(client), canonical(server)));
}

/// Returns the address without a scope, and an IPv4-mapped address as IPv4, as records have it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Decides which records are about connections of this process.
#[derive(Clone, Copy, Debug)]
pub struct OwnConnections {
    /// The pid of this process in the initial pid namespace, if known.
    pub pid: Option<u32>,
    /// The inode number of this process's network namespace, if known.
    pub netns: Option<u32>,
}

impl OwnConnections {
    /// Returns whether one end of the connection is a socket of this process.
    pub fn contain(&self, record: &Record) -> bool {
        let pid = record.process.map(|process| process.pid);
        if pid.is_some() && pid == self.pid {
            return true;
        }
        // Every network namespace has its own loopback addresses.
        if record.src.ip().is_loopback() && Some(record.netns) != self.netns {
            return false;
        }
        let matches = |&(client, server): &(SocketAddr, SocketAddr)| {
            client.port() == record.src.port()
                && client == record.src
                && (server == record.dst || server == record.socket_dst())
        };
        connections().iter().any(matches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::example;

    #[test]
    fn both_ends_of_an_own_connection_are_found() {
        let own = OwnConnections {
            pid: Some(4711),
            netns: Some(1),
        };
        let record = |src: &str, dst: &str, pid, netns| Record {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            netns,
            process: example()
                .process
                .map(|process| crate::record::Process { pid, ..process }),
            ..example()
        };
        add(
            "[::ffff:127.0.0.1]:40001".parse().unwrap(),
            "[::ffff:127.0.0.1]:10250".parse().unwrap(),
        );
        add("10.99.0.1:40002".parse().unwrap(), "10.99.0.2:6443".parse().unwrap());
        let cases = [
            (
                "own pid, such as a failed attempt",
                "127.0.0.1:5",
                "127.0.0.1:6",
                4711,
                1,
                true,
            ),
            ("the kubelet's end", "127.0.0.1:40001", "127.0.0.1:10250", 1, 1, true),
            ("another port", "127.0.0.1:40003", "127.0.0.1:10250", 1, 1, false),
            ("another server", "127.0.0.1:40001", "127.0.0.1:10251", 1, 1, false),
            (
                "loopback of another namespace",
                "127.0.0.1:40001",
                "127.0.0.1:10250",
                1,
                2,
                false,
            ),
            ("the API server's end", "10.99.0.1:40002", "10.99.0.2:6443", 1, 2, true),
        ];
        for (name, src, dst, pid, netns, expected) in cases {
            assert_eq!(own.contain(&record(src, dst, pid, netns)), expected, "{name}");
        }
        let unknown = OwnConnections { pid: None, netns: None };
        let mut no_process = record("127.0.0.1:5", "127.0.0.1:6", 4711, 1);
        no_process.process = None;
        assert!(!unknown.contain(&no_process));
    }
}
