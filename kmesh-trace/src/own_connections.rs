//! The TCP connections of this process: to kubelets and API servers, and from scrapers of its metrics.
//!
//! Unless `--include-self` is given, a live trace filters out both ends of these connections. The pid identifies the
//! end of this process. The addresses identify the other end, if it is on this node, too. The end of a scraper in this
//! process's network namespace is also identified by the address that this process listens on: the scraper's open may be
//! reported before this process has accepted the connection.
//!
//! A live trace also filters out the RSTs that this node answered to attempts of this process. A report of RSTs has no
//! client port, so each attempt excuses one RST from the address that it dialled.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::record::{Record, Subject};

/// The number of connections that are remembered. The tool has fewer open connections, and its records come soon after
/// a connection closes.
const MAX_CONNECTIONS: usize = 128;

/// The time after which a dialled address excuses no RST. An attempt takes up to 10 s, and the report of its RST comes
/// up to 4 s later.
const MAX_DIAL_AGE: Duration = Duration::from_secs(20);

/// The client's and the server's address of each connection, the oldest first.
static CONNECTIONS: Mutex<VecDeque<(SocketAddr, SocketAddr)>> = Mutex::new(VecDeque::new());
/// The addresses that this process listens on.
static LISTENERS: Mutex<Vec<SocketAddr>> = Mutex::new(Vec::new());
/// The addresses that this process dialled and that have not answered, with the times, the oldest first.
static DIALS: Mutex<VecDeque<(SocketAddr, Instant)>> = Mutex::new(VecDeque::new());

fn connections() -> MutexGuard<'static, VecDeque<(SocketAddr, SocketAddr)>> {
    CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dials() -> MutexGuard<'static, VecDeque<(SocketAddr, Instant)>> {
    DIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds the address of a listening socket of this process.
pub fn listen(address: SocketAddr) {
    let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    listeners.push(canonical(address));
}

/// Returns whether a connection from `src` to `dst` within this process's network namespace leads to a listening socket
/// of this process. Another node can have the port, too, if the socket listens on all addresses. So the connection
/// counts only if both its addresses show that it does not leave this node.
fn leads_to_listener(src: SocketAddr, dst: SocketAddr) -> bool {
    let is_local = dst.ip().is_loopback() || src.ip() == dst.ip();
    let listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    listeners.iter().any(|listener| {
        listener.port() == dst.port() && (listener.ip() == dst.ip() || listener.ip().is_unspecified() && is_local)
    })
}

/// Adds an attempt of this process to connect to a server. Call this function before the attempt: its RST may be
/// reported before the attempt returns.
pub fn dial(server: SocketAddr) {
    let mut dials = dials();
    if dials.len() == MAX_CONNECTIONS {
        dials.pop_front();
    }
    dials.push_back((canonical(server), Instant::now()));
}

/// Adds an established connection of this process.
pub fn add(client: SocketAddr, server: SocketAddr) {
    let (client, server) = (canonical(client), canonical(server));
    let mut connections = connections();
    if connections.len() == MAX_CONNECTIONS {
        connections.pop_front();
    }
    connections.push_back((client, server));
    drop(connections);
    let mut dials = dials();
    if let Some(at) = dials.iter().position(|(dialled, _)| *dialled == server) {
        dials.remove(at);
    }
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
        let is_in_netns = Some(record.netns) == self.netns;
        if record.src.ip().is_loopback() && !is_in_netns {
            return false;
        }
        if is_in_netns && leads_to_listener(record.src, record.socket_dst()) {
            return true;
        }
        let matches = |&(client, server): &(SocketAddr, SocketAddr)| {
            client.port() == record.src.port()
                && client == record.src
                && (server == record.dst || server == record.socket_dst())
        };
        connections().iter().any(matches)
    }

    /// Returns how many of the RSTs that `record` reports answered attempts of this process. Each attempt counts once.
    pub fn take_rejected(&self, record: &Record) -> u64 {
        let Subject::Reject(rejected) = record.subject else {
            return 0;
        };
        let (client, server) = (record.src.ip(), record.dst);
        // Within one network namespace, a client uses the server's address, or a loopback address, as its own.
        let is_possible = match Some(record.netns) == self.netns {
            true => client == server.ip() || client.is_loopback(),
            false => !server.ip().is_loopback(),
        };
        if !is_possible {
            return 0;
        }
        let mut dials = dials();
        dials.retain(|(_, time)| time.elapsed() < MAX_DIAL_AGE);
        let mut own = 0;
        dials.retain(|(dialled, _)| {
            let is_own = own < rejected && *dialled == server;
            own += u64::from(is_own);
            !is_own
        });
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::example;

    #[test]
    fn each_own_attempt_excuses_one_reject() {
        let own = OwnConnections {
            pid: Some(4711),
            netns: Some(1),
        };
        let rejected = |src: &str, dst: &str, netns, count| Record {
            src: format!("{src}:0").parse().unwrap(),
            netns,
            ..Record::report(Subject::Reject(count), example().time, dst.parse().unwrap())
        };
        let taken = |src, dst, netns, count| own.take_rejected(&rejected(src, dst, netns, count));
        assert_eq!(taken("127.0.0.1", "127.0.0.1:10350", 1, 5), 0, "nothing was dialled");
        dial("127.0.0.1:10350".parse().unwrap());
        dial("[::ffff:127.0.0.1]:10350".parse().unwrap());
        assert_eq!(taken("127.0.0.1", "127.0.0.1:10351", 1, 5), 0, "another port");
        assert_eq!(taken("127.0.0.1", "127.0.0.1:10350", 2, 5), 0, "another namespace");
        assert_eq!(taken("127.0.0.1", "127.0.0.1:10350", 1, 1), 1);
        assert_eq!(taken("127.0.0.1", "127.0.0.1:10350", 1, 5), 1, "one dial is left");
        assert_eq!(taken("127.0.0.1", "127.0.0.1:10350", 1, 5), 0);
        dial("10.99.1.2:10350".parse().unwrap());
        assert_eq!(
            taken("10.99.1.3", "10.99.1.2:10350", 1, 1),
            0,
            "a client of another node"
        );
        assert_eq!(taken("10.99.1.1", "10.99.1.2:10350", 2, 3), 1, "a pod of this node");
        dial("10.99.1.2:10350".parse().unwrap());
        add("10.99.1.2:40009".parse().unwrap(), "10.99.1.2:10350".parse().unwrap());
        assert_eq!(taken("10.99.1.2", "10.99.1.2:10350", 1, 1), 0, "the server accepted");
    }

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
        listen("[::]:15020".parse().unwrap());
        listen("[::ffff:10.99.0.2]:15021".parse().unwrap());
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
            ("a scraper", "127.0.0.1:40004", "127.0.0.1:15020", 1, 1, true),
            (
                "a scraper by the node's address",
                "10.99.0.1:40004",
                "10.99.0.1:15020",
                1,
                1,
                true,
            ),
            (
                "a scraper of another node",
                "10.99.0.1:40004",
                "10.99.0.3:15020",
                1,
                1,
                false,
            ),
            (
                "the port in another namespace",
                "10.99.0.1:40004",
                "10.99.0.1:15020",
                1,
                2,
                false,
            ),
            (
                "a scraper by a listener's address",
                "10.99.0.1:40004",
                "10.99.0.2:15021",
                1,
                1,
                true,
            ),
            (
                "the port at another address",
                "10.99.0.1:40004",
                "10.99.0.1:15021",
                1,
                1,
                false,
            ),
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
