//! Connections to which no descriptor of a process leads. They are open, and have updates like all others. The test
//! counts them in the kernel's own table.

use std::io::{IoSlice, IoSliceMut, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde_json::Value;

use crate::Topic;
use crate::privileges::NEEDED;
use crate::support::actor::Actor;
use crate::support::net;
use crate::support::probe::{Need, io_uring_setup, set_io_uring_file};
use crate::support::sock::{
    IpVersion, Pair, connection_states, drain, free_port, listen, pair_with, send, wait_acknowledged, wait_until,
};
use crate::support::tracer::{BinaryCopy, Tracer, TracerCommand, binary};

pub fn topic() -> Topic {
    Topic::new("without_process")
        .standalone_both_versions("never_accepted", &[], never_accepted)
        .standalone("preexisting", &[], preexisting)
        .standalone("in_another_namespace", &[], in_another_namespace)
        .standalone(
            "other_namespaces_need_sys_admin",
            &[Need::Setpriv, Need::DescriptorScan],
            || other_namespaces_need_sys_admin(CLIENTS),
        )
        .standalone(
            "all_of_other_namespaces_needs_sys_admin",
            &[Need::Setpriv, Need::NamespaceScan],
            || other_namespaces_need_sys_admin(0),
        )
        .standalone("orphan", &[], orphan)
        .standalone("descriptor_in_unix_socket", &[], descriptor_in_unix_socket)
        .standalone(
            "io_uring_direct_descriptor",
            &[Need::IoUring],
            io_uring_direct_descriptor,
        )
}

/// Clients of a server that never accepts.
const CLIENTS: u64 = 10;
/// The number in `/proc/net/tcp`.
const ESTABLISHED: u8 = 1;
/// The number in `/proc/net/tcp`.
const FIN_WAIT1: u8 = 4;

/// Starts a tracer for connections to this port. The kernel filters out all others before they count as open.
fn start_tracer(to: SocketAddr) -> Tracer {
    tracer_command(Command::new(binary()), to).start()
}

fn tracer_command(command: Command, to: SocketAddr) -> TracerCommand {
    let port = to.port().to_string();
    let args = ["-o", "json", "--events", "open,update,close", "--interval", "200ms"];
    TracerCommand::wrapped_by(command, &[&args[..], &["--to-port", &port]].concat())
}

/// Whether a record is an update of this direction with this server port.
fn is_update(value: &Value, direction: &str, port: u16) -> bool {
    value["event"] == "update" && value["direction"] == direction && value["dst"]["port"] == port
}

/// Returns the updates of this direction and server port so far.
fn updates(tracer: &Tracer, netns: u64, direction: &str, port: u16) -> Vec<Value> {
    let records = tracer.output.records(netns).into_iter();
    let values = records.map(|record| record.value);
    values.filter(|value| is_update(value, direction, port)).collect()
}

/// Waits until a scan that began after this call has ended. `client`: the client's end of a connection that scans find;
/// each scan makes one update of it in this direction. The first new update may be of a scan that began before.
fn wait_for_scan(tracer: &Tracer, netns: u64, direction: &str, client: SocketAddr, port: u16) {
    let is_update = |value: &Value| {
        is_update(value, direction, port)
            && value["src"]["port"] == client.port()
            && value["src"]["ip"] == client.ip().to_string()
    };
    let records = tracer.output.records(netns);
    let before = records.iter().filter(|record| is_update(&record.value)).count();
    tracer.output.wait_matching(netns, before + 3, is_update);
}

/// Requests a summary, and returns the numbers of open connections and of those that are not scanned.
fn request_open(tracer: &Tracer) -> (u64, u64) {
    open_and_not_scanned(&tracer.request_summary())
}

/// Returns `open` and `not_scanned` of a summary.
pub fn open_and_not_scanned(summary: &Value) -> (u64, u64) {
    let number = |member: &str| {
        summary[member]
            .as_u64()
            .unwrap_or_else(|| panic!("no {member} in {summary}"))
    };
    (number("open"), number("not_scanned"))
}

/// Clients of a server that never accepts. Each has sent one byte more than the client before.
struct WaitingClients {
    server: SocketAddr,
    clients: Vec<TcpStream>,
}

impl WaitingClients {
    fn connect(server: SocketAddr) -> Self {
        let clients = (1..=CLIENTS).map(|bytes| {
            let client = TcpStream::connect(server).unwrap();
            send(&client, usize::try_from(bytes).unwrap());
            wait_acknowledged(&client);
            client
        });
        let clients = clients.collect();
        // Both ends of each.
        let states = connection_states(server);
        assert_eq!(states, vec![ESTABLISHED; 2 * CLIENTS as usize]);
        Self { server, clients }
    }

    /// Waits until a scan that began after this call has ended.
    fn wait_for_scan(&self, tracer: &Tracer, netns: u64) {
        let client = self.clients[0].local_addr().unwrap();
        wait_for_scan(tracer, netns, "outbound", client, self.server.port());
    }

    /// Waits until each server's end has an update with the bytes that it has received. Returns all updates.
    fn wait_updates(&self, tracer: &Tracer, netns: u64) -> Vec<Value> {
        let port = self.server.port();
        for (client, bytes) in self.clients.iter().zip(1..=CLIENTS) {
            let src = client.local_addr().unwrap();
            tracer.output.wait_matching(netns, 1, |value| {
                let is_end = value["src"]["port"] == src.port() && value["src"]["ip"] == src.ip().to_string();
                is_update(value, "inbound", port) && is_end && value["received_bytes"] == bytes
            });
        }
        updates(tracer, netns, "inbound", port)
    }
}

fn never_accepted(version: IpVersion) {
    let listener = listen(version);
    let server = listener.local_addr().unwrap();
    let tracer = start_tracer(server);
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let clients = WaitingClients::connect(server);
    for update in clients.wait_updates(&tracer, netns) {
        assert_eq!(update["established"], true, "{update}");
        assert_eq!(update["tcp"]["state"], "ESTABLISHED", "{update}");
        let process = &update["process"];
        let is_own = process["pid"] == std::process::id() && process["by"] == "listener";
        assert!(is_own, "{update}");
    }
    clients.wait_for_scan(&tracer, netns);
    assert_eq!(request_open(&tracer), (2 * CLIENTS, 0));
    drop((clients, listener));
    tracer.interrupt().check_lossless();
}

/// Connections that are older than the tracer also count as open.
fn preexisting() {
    let listener = listen(IpVersion::V4);
    let clients = WaitingClients::connect(listener.local_addr().unwrap());
    let tracer = start_tracer(clients.server);
    let netns = net::current_netns();
    tracer.output.watch(netns);
    for update in clients.wait_updates(&tracer, netns) {
        assert_eq!(update["preexisting"], true, "{update}");
        assert_eq!(update["process"], Value::Null, "{update}");
    }
    clients.wait_for_scan(&tracer, netns);
    assert_eq!(request_open(&tracer), (2 * CLIENTS, 0));
    drop((clients, listener));
    tracer.interrupt().check_lossless();
}

/// The kernel lists the sockets of one network namespace at a time. The tool finds the other namespace through a
/// process in it.
fn in_another_namespace() {
    let at = IpVersion::V4.at(free_port(IpVersion::V4));
    let tracer = start_tracer(at);
    with_clients_in_another_namespace(at, |server, clients, netns| {
        tracer.output.watch(netns);
        clients.wait_updates(&tracer, netns);
        clients.wait_for_scan(&tracer, netns);
        assert_eq!(request_open(&tracer), (2 * CLIENTS, 0));
        server.run("close l");
    });
    tracer.interrupt().check_lossless();
}

/// Without CAP_SYS_ADMIN, the tool scans its own namespace alone, and what it finds by descriptors: `found` connections
/// of another namespace. It reports the number of connections that are not scanned.
fn other_namespaces_need_sys_admin(found: u64) {
    let binary = BinaryCopy::new();
    let listener = listen(IpVersion::V4);
    let at = listener.local_addr().unwrap();
    let tracer = tracer_command(binary.with_capabilities(&NEEDED), at).start();
    let own = net::current_netns();
    tracer.output.watch(own);
    let clients = WaitingClients::connect(at);
    clients.wait_updates(&tracer, own);
    with_clients_in_another_namespace(at, |server, others, netns| {
        tracer.output.watch(netns);
        if found > 0 {
            others.wait_for_scan(&tracer, netns);
        } else {
            clients.wait_for_scan(&tracer, own);
        }
        assert_eq!(request_open(&tracer), (4 * CLIENTS, 2 * CLIENTS - found));
        let updates = |direction| updates(&tracer, netns, direction, at.port());
        assert_eq!(updates("inbound"), [] as [Value; 0]);
        assert_eq!(updates("outbound").is_empty(), found == 0);
        server.run("close l");
    });
    drop((clients, listener));
    tracer.interrupt().check_lossless();
}

/// Runs `body` in another network namespace, with the process whose server never accepts, its clients, and the
/// namespace's number.
fn with_clients_in_another_namespace(at: SocketAddr, body: impl FnOnce(Actor, WaitingClients, u64) + Send) {
    let result = net::in_namespace("elsewhere", move || {
        let server = Actor::start();
        let clients = WaitingClients::connect(server.listen("l", at));
        body(server, clients, net::current_netns());
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// The client closes with more data in its send buffer than fits into the receive buffer of the server, which does not
/// read.
fn orphan() {
    let listener = listen(IpVersion::V4);
    let tracer = start_tracer(listener.local_addr().unwrap());
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let Pair {
        mut client,
        server,
        truth,
    } = pair_with(&listener);
    client.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = client.write(&[0x5a; 65536]) {
        written += count as u64;
    }
    drop(client);
    let port = truth.dst.port();
    let is_orphan = |value: &Value| is_update(value, "outbound", port) && value["tcp"]["state"] == "FIN_WAIT1";
    let updates = tracer.output.wait_matching(netns, 3, is_orphan);
    let states = connection_states(truth.dst);
    assert!(states.contains(&FIN_WAIT1), "{states:?}");
    for update in updates {
        let bytes = |member: &str| update[member].as_u64().unwrap();
        assert_eq!(
            bytes("sent_bytes") + bytes("undelivered_bytes"),
            written,
            "all written bytes, without the FIN: {update}"
        );
        assert_eq!(update["process"]["pid"], std::process::id(), "{update}");
    }
    assert_eq!(request_open(&tracer), (2, 0));
    assert_eq!(drain(&server) as u64, written);
    drop(server);
    tracer.interrupt().check_lossless();
}

/// The descriptor is in a message that no process has received yet.
fn descriptor_in_unix_socket() {
    let (from, to) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    check_without_descriptor(
        |server| {
            let fds = [server.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            let data = [IoSlice::new(b"x")];
            sendmsg::<()>(from.as_raw_fd(), &data, &rights, MsgFlags::empty(), None).unwrap();
        },
        || {
            let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; 1]));
            let mut data = [IoSliceMut::new(&mut byte)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(to.as_raw_fd(), &mut data, Some(&mut space), flags).unwrap();
            for control in message.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // SAFETY: the kernel has just added this descriptor to the table, and nothing else knows its
                    // number.
                    drop(unsafe { OwnedFd::from_raw_fd(fds[0]) });
                }
            }
        },
    );
}

/// Only an io_uring instance has the file.
fn io_uring_direct_descriptor() {
    let ring = io_uring_setup().unwrap();
    check_without_descriptor(
        |server| set_io_uring_file(&ring, Some(server.as_raw_fd())).unwrap(),
        || set_io_uring_file(&ring, None).unwrap(),
    );
}

/// `store` moves the server's end to where no descriptor leads to it, and `close` closes it there. Meanwhile it has
/// updates.
fn check_without_descriptor(store: impl FnOnce(&TcpStream), close: impl FnOnce()) {
    let listener = listen(IpVersion::V4);
    let tracer = start_tracer(listener.local_addr().unwrap());
    let netns = net::current_netns();
    tracer.output.watch(netns);
    let Pair { client, server, truth } = pair_with(&listener);
    let port = truth.dst.port();
    store(&server);
    drop(server);
    wait_for_scan(&tracer, netns, "inbound", truth.src, port);
    send(&client, 77);
    let has_bytes = |value: &Value| is_update(value, "inbound", port) && value["received_bytes"] == 77;
    tracer.output.wait_matching(netns, 1, has_bytes);
    assert_eq!(request_open(&tracer), (2, 0));
    close();
    // The kernel resets, since data was not read.
    wait_until("the connection has ended", || connection_states(truth.dst).is_empty());
    drop(client);
    tracer.interrupt().check_lossless();
}
