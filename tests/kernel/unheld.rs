//! Connections that no descriptor of a process leads to: they are open, and have updates like all others. How many there are is
//! known from the kernel's own table.

use std::io::{IoSlice, IoSliceMut, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde_json::Value;

use crate::Table;
use crate::privileges::{NEEDED, Program};
use crate::support::actor::Actor;
use crate::support::net;
use crate::support::probe::{Need, io_uring_setup, set_io_uring_file};
use crate::support::sock::{Pair, V, drain, flushed, free_port, give, listen, pair_with, states, wait_until};
use crate::support::store::Rec;
use crate::support::tracer::{Start, Tracer, binary};

/// The trials.
pub fn table() -> Table {
    Table::new("unheld")
        .own("never_accepted_ipv4", &[], || never_accepted(V::Four))
        .own("never_accepted_ipv6", &[], || never_accepted(V::Six))
        .own("older_than_the_tracer", &[], older_than_the_tracer)
        .own("in_another_namespace", &[], in_another_namespace)
        .own(
            "other_namespaces_take_sys_admin",
            &[Need::Setpriv],
            other_namespaces_take_sys_admin,
        )
        .own("orphan", &[], orphan)
        .own("in_flight", &[], in_flight)
        .own("direct_descriptor", &[Need::IoUring], direct_descriptor)
}

const ALL: [&str; 6] = ["-o", "json", "--events", "open,update,close", "--interval", "200ms"];
/// The clients of a server that never accepts.
const CLIENTS: u64 = 10;
/// As `/proc/net/tcp` numbers them.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;

/// A tracer for connections to this port alone. The kernel filters all others out before they count as open.
fn tracing(to: SocketAddr) -> Tracer {
    start(Command::new(binary()), to).tracing()
}

fn start(command: Command, to: SocketAddr) -> Start {
    let port = to.port().to_string();
    Start::with(command, &[&ALL[..], &["--to-port", &port]].concat())
}

/// The updates of this direction with this port at the server's end, in the order in which they came.
fn updates(records: &[Rec], direction: &str, port: u16) -> Vec<Value> {
    let is_it = |rec: &&Rec| {
        let value = &rec.value;
        value["event"] == "update" && value["direction"] == direction && value["dst"]["port"] == port
    };
    records.iter().filter(is_it).map(|rec| rec.value.clone()).collect()
}

/// Waits until the updates of the namespace are enough.
fn wait_updates(
    tracer: &Tracer,
    netns: u64,
    direction: &str,
    port: u16,
    is_enough: impl Fn(&[Value]) -> bool,
) -> Vec<Value> {
    let found = tracer.store.wait(netns, |records| {
        let updates = updates(records, direction, port);
        is_enough(&updates).then_some(updates)
    });
    found.unwrap_or_else(|why| panic!("updates, {direction}: {why}"))
}

/// Waits for two more updates of a connection than there are: the scan that makes the last of them began after this call, and what
/// an earlier one had to say has been said.
fn wait_for_scan(tracer: &Tracer, netns: u64, direction: &str, port: u16) {
    let before = updates(&tracer.store.records(netns), direction, port).len();
    wait_updates(tracer, netns, direction, port, |updates| updates.len() > before + 2);
}

/// What the summary says at this moment: open, and not scanned.
fn summary(tracer: &Tracer) -> (u64, u64) {
    let count = tracer.store.summaries().len();
    tracer.signal(Signal::SIGUSR1);
    let summaries = tracer.store.wait_summaries(count + 1).expect("a summary");
    open_and_not_scanned(&summaries[count])
}

/// The two numbers of a `summary` line.
pub fn open_and_not_scanned(summary: &Value) -> (u64, u64) {
    let number = |field: &str| {
        summary[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {summary}"))
    };
    (number("open"), number("not_scanned"))
}

/// Clients of a listener that never accepts. Each has sent bytes, one more than the client before.
struct Hung {
    listener: SocketAddr,
    clients: Vec<TcpStream>,
}

impl Hung {
    fn new(listener: SocketAddr) -> Self {
        let clients = (1..=CLIENTS).map(|bytes| {
            let client = TcpStream::connect(listener).unwrap();
            give(&client, usize::try_from(bytes).unwrap());
            flushed(&client);
            client
        });
        let clients = clients.collect();
        // The kernel's own table, in the calling thread's namespace: both ends of each.
        let states = states(listener.port());
        assert_eq!(states, vec![ESTABLISHED; 2 * CLIENTS as usize]);
        Self { listener, clients }
    }

    /// That each server's end has an update with what it has received.
    fn check(&self, tracer: &Tracer, netns: u64) -> Vec<Value> {
        let each = |updates: &[Value]| {
            self.clients.iter().zip(1..=CLIENTS).all(|(client, bytes)| {
                let src = client.local_addr().unwrap();
                updates.iter().any(|update| {
                    let is_end = update["src"]["port"] == src.port() && update["src"]["ip"] == src.ip().to_string();
                    is_end && update["received_bytes"] == bytes
                })
            })
        };
        wait_updates(tracer, netns, "inbound", self.listener.port(), each)
    }
}

fn never_accepted(v: V) {
    let listener = listen(v);
    let tracer = tracing(listener.local_addr().unwrap());
    let netns = net::inode();
    tracer.store.keep(netns);
    let hung = Hung::new(listener.local_addr().unwrap());
    let own = u64::from(std::process::id());
    for update in hung.check(&tracer, netns) {
        assert_eq!(update["established"], true, "{update}");
        assert_eq!(update["tcp"]["state"], "ESTABLISHED", "{update}");
        let process = &update["process"];
        assert!(process["pid"] == own && process["by"] == "listener", "{update}");
    }
    wait_for_scan(&tracer, netns, "outbound", hung.listener.port());
    assert_eq!(summary(&tracer), (2 * CLIENTS, 0));
    drop((hung, listener));
    tracer.interrupt().check_whole();
}

/// They count as open although nobody saw them begin.
fn older_than_the_tracer() {
    let listener = listen(V::Four);
    let hung = Hung::new(listener.local_addr().unwrap());
    let tracer = tracing(hung.listener);
    let netns = net::inode();
    tracer.store.keep(netns);
    for update in hung.check(&tracer, netns) {
        assert_eq!(update["preexisting"], true, "{update}");
        assert_eq!(update["process"], Value::Null, "{update}");
    }
    wait_for_scan(&tracer, netns, "outbound", hung.listener.port());
    assert_eq!(summary(&tracer), (2 * CLIENTS, 0));
    drop((hung, listener));
    tracer.interrupt().check_whole();
}

/// The kernel lists the sockets of one network namespace at a time. A process leads to this one.
fn in_another_namespace() {
    let at = V::Four.at(free_port(V::Four));
    let tracer = tracing(at);
    elsewhere(at, |server, hung, netns| {
        tracer.store.keep(netns);
        hung.check(&tracer, netns);
        wait_for_scan(&tracer, netns, "outbound", hung.listener.port());
        assert_eq!(summary(&tracer), (2 * CLIENTS, 0));
        server.ask("close l");
    });
    tracer.interrupt().check_whole();
}

/// Without the capability, the tool scans its own namespace alone and says how many connections that leaves out.
fn other_namespaces_take_sys_admin() {
    let program = Program::new();
    let listener = listen(V::Four);
    let at = listener.local_addr().unwrap();
    let tracer = start(program.with(&NEEDED), at).tracing();
    let own = net::inode();
    tracer.store.keep(own);
    let here = Hung::new(at);
    here.check(&tracer, own);
    elsewhere(at, |server, there, netns| {
        tracer.store.keep(netns);
        wait_for_scan(&tracer, netns, "outbound", there.listener.port());
        assert_eq!(summary(&tracer), (4 * CLIENTS, CLIENTS));
        let updates = updates(&tracer.store.records(netns), "inbound", there.listener.port());
        assert!(updates.is_empty(), "{updates:?}");
        server.ask("close l");
    });
    drop((here, listener));
    tracer.interrupt().check_whole();
}

/// Runs `body` in another network namespace, in which the process that it gets has the listener of a server that never accepts.
fn elsewhere(at: SocketAddr, body: impl FnOnce(Actor, Hung, u64) + Send) {
    let result = net::in_namespace("elsewhere", move || {
        let server = Actor::start();
        let hung = Hung::new(server.listen("l", at));
        body(server, hung, net::inode());
    });
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Its program has closed it with more in the send buffer than the peer, which does not read, has room for.
fn orphan() {
    let listener = listen(V::Four);
    let tracer = tracing(listener.local_addr().unwrap());
    let netns = net::inode();
    tracer.store.keep(netns);
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
    let of_orphan = |update: &Value| update["tcp"]["state"] == "FIN_WAIT1";
    let updates = wait_updates(&tracer, netns, "outbound", port, |updates| {
        updates.iter().filter(|update| of_orphan(update)).count() >= 3
    });
    assert!(states(port).contains(&FIN_WAIT1), "{:?}", states(port));
    for update in updates.iter().filter(|update| of_orphan(update)) {
        let bytes = |field: &str| update[field].as_u64().unwrap();
        assert_eq!(
            bytes("sent_bytes") + bytes("undelivered_bytes"),
            written,
            "all that was written, and no FIN: {update}"
        );
        assert_eq!(update["process"]["pid"], std::process::id(), "{update}");
    }
    assert_eq!(summary(&tracer), (2, 0));
    assert_eq!(drain(&server) as u64, written);
    drop(server);
    tracer.interrupt().check_whole();
}

/// On its way to another process, and in the meantime in no table of descriptors.
fn in_flight() {
    let (from, to) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    without_descriptor(
        |server| {
            let fds = [server.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&fds)];
            sendmsg::<()>(
                from.as_raw_fd(),
                &[IoSlice::new(b"x")],
                &rights,
                MsgFlags::empty(),
                None,
            )
            .unwrap();
        },
        || {
            let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; 1]));
            let mut slices = [IoSliceMut::new(&mut byte)];
            let message = recvmsg::<()>(
                to.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )
            .unwrap();
            for control in message.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = control {
                    // SAFETY: the kernel has just put this descriptor into our table, and nobody else knows its number.
                    drop(unsafe { OwnedFd::from_raw_fd(fds[0]) });
                }
            }
        },
    );
}

/// A file of a ring of io_uring alone.
fn direct_descriptor() {
    let ring = io_uring_setup().unwrap();
    without_descriptor(
        |server| set_io_uring_file(&ring, Some(server.as_raw_fd())).unwrap(),
        || set_io_uring_file(&ring, None).unwrap(),
    );
}

/// The server's end of a connection goes where no descriptor leads to it, and has updates there until it is taken out and closed.
fn without_descriptor(put: impl FnOnce(&TcpStream), close: impl FnOnce()) {
    let listener = listen(V::Four);
    let tracer = tracing(listener.local_addr().unwrap());
    let netns = net::inode();
    tracer.store.keep(netns);
    let Pair { client, server, truth } = pair_with(&listener);
    let port = truth.dst.port();
    put(&server);
    drop(server);
    wait_for_scan(&tracer, netns, "inbound", port);
    // Counted there as well as anywhere else.
    give(&client, 77);
    wait_updates(&tracer, netns, "inbound", port, |updates| {
        updates.iter().any(|update| update["received_bytes"] == 77)
    });
    assert_eq!(summary(&tracer), (2, 0));
    close();
    // What was not read makes the kernel reset.
    wait_until("the connection has ended", || states(port).is_empty());
    drop(client);
    tracer.interrupt().check_whole();
}
