//! What a socket scan writes to its output, and what its parts pass on to each other.

use bytemuck::{Pod, Zeroable};

use crate::{Owner, TurnsSnapshot};

/// The update of one connection that a socket scan writes to its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ScanRecord {
    /// The size of the record behind it, bytes: a [`Snapshot`](crate::Snapshot) or a [`TurnsSnapshot`].
    pub length: u64,
    /// A snapshot of [`KIND_UPDATE`](crate::KIND_UPDATE). It is written without its turns if the programs do not
    /// measure them.
    pub record: TurnsSnapshot,
}

/// A listening socket, as a socket scan found it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Listener {
    /// The kind of record: [`KIND_LISTENER`](crate::KIND_LISTENER).
    pub kind: u32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// The time of the visit: CLOCK_MONOTONIC, ns.
    pub time_ns: u64,
    /// The socket's cookie, as `ss -e` shows it.
    pub cookie: u64,
    /// The id of the socket's cgroup (v2); 0 if unknown.
    pub cgroup_id: u64,
    /// The address as IPv6, IPv4-mapped for IPv4; network order.
    pub local_addr: [u8; 16],
    /// The process that owns the socket.
    pub owner: Owner,
    /// `sock.sk_ack_backlog`: the number of connections that no process has accepted yet.
    pub backlog: u32,
    /// `sock.sk_max_ack_backlog`: the limit of `backlog`.
    pub max_backlog: u32,
    /// `inet_connection_sock.icsk_accept_queue.qlen`: the number of connections in the middle of their handshake.
    pub half_open: u32,
    /// `sock.sk_drops`: the number of packets that the socket dropped.
    pub drops: u32,
    /// The port that the socket listens on.
    pub local_port: u16,
    /// The flags of the socket: [`FLAG_ROOT_NETNS`](crate::FLAG_ROOT_NETNS) or 0.
    pub flags: u8,
    /// Padding that is always 0.
    pub pad: [u8; 5],
}

/// The record of one listener that a socket scan writes to its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ListenerScanRecord {
    /// The size of `listener`, bytes.
    pub length: u64,
    /// A listener of [`KIND_LISTENER`](crate::KIND_LISTENER).
    pub listener: Listener,
}

/// A network namespace with TCP sockets, as a socket scan writes it to its output.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FoundNamespace {
    /// The size of the fields behind it, bytes.
    pub length: u64,
    /// The inode number of the namespace.
    pub netns: u32,
    /// A process that holds a socket of the namespace, in the initial pid namespace.
    pub pid: u32,
}

/// The process that a socket scan found to hold a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FoundHolder {
    /// The process id (the kernel's tgid) in the initial pid namespace.
    pub pid: u32,
    /// The number of the scan.
    pub scan: u32,
    /// The inode number of the socket's network namespace.
    pub netns: u32,
    /// The ports of the socket as the kernel stores them, by which it differs from an earlier socket at its address.
    pub ports: u32,
    /// The process that called listen(), as an earlier scan knew it; 0 if unknown.
    pub listening_pid: u32,
    /// The holder at the last visit of the socket, for a listener; 0 before.
    pub visited_pid: u32,
    /// The name of the thread-group leader, as two words in memory order.
    pub comm: [u64; 2],
}
