//! The process that a record names: the one that connected, closed or listened.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use serde_json::Value;
use socket2::Socket;

use crate::Topic;
use crate::support::actor::Actor;
use crate::support::expect::{Expected, Owner};
use crate::support::is_small_vm;
use crate::support::output::ReceivedRecord;
use crate::support::probe::Need;
use crate::support::record_view::RecordView;
use crate::support::sock::{
    IpVersion, Pair, Truth, disconnect, drain, exchanged_pair, listen, pair, recv, reset, send, take_error, timed,
    wait_acknowledged,
};
use crate::support::tracer::Tracer;

pub fn topic() -> Topic {
    Topic::new("process")
        .both_versions("each_end_names_its_process", &[], each_end_names_its_process)
        .both_versions("exit_without_close", &[], exit_without_close)
        .both_versions("killed_client", &[], killed_client)
        .both_versions("killed_server", &[], killed_server)
        .both_versions("killed_client_with_unread_data", &[], killed_client_with_unread_data)
        .both_versions("killed_server_with_unread_data", &[], killed_server_with_unread_data)
        .both_versions("reset_server_names_the_listener", &[], reset_server_names_the_listener)
        .both_versions("client_inherited_by_child", &[], client_inherited_by_child)
        .both_versions("server_inherited_by_child", &[], server_inherited_by_child)
        .both_versions("client_passed_over_unix_socket", &[], client_passed_over_unix_socket)
        .both_versions("server_passed_over_unix_socket", &[], server_passed_over_unix_socket)
        .both_versions("closer_named_like_the_scanner", &[], closer_named_like_the_scanner)
        .standalone("reading_proc_fd_closes_nothing", &[], reading_proc_fd_closes_nothing)
        .both_versions(
            "reused_socket_listens_elsewhere",
            &[Need::RoleChange],
            reused_socket_listens_elsewhere,
        )
        .standalone("listener_handed_over", &[], listener_handed_over)
        .both_versions(
            "worker_accepts_from_passed_listener",
            &[],
            worker_accepts_from_passed_listener,
        )
        .both_versions("passed_server_is_reset", &[], passed_server_is_reset)
        .both_versions("connecting_process_is_gone", &[], connecting_process_is_gone)
        .both_versions("last_of_two_closes_counts", &[], last_of_two_closes_counts)
        .shared("thread_name_is_not_used", &[], thread_name_is_not_used)
        .shared("hostile_process_names", &[], hostile_process_names)
}

/// Starts a helper process with this name.
fn start_named(name: &str) -> Actor {
    let actor = Actor::start();
    actor.set_comm(name.as_bytes());
    actor
}

fn start_both() -> (Actor, Actor) {
    (start_named("the client"), start_named("the server"))
}

fn owner(actor: &Actor, by: &'static [&'static str]) -> Owner {
    Owner::Process(actor.pid(), String::from_utf8_lossy(&actor.comm()).into_owned(), by)
}

/// Connects two processes. Each names its end `s`.
fn connect_both(client: &Actor, server: &Actor, version: IpVersion) -> Truth {
    let dst = server.listen("l", version.at(0));
    let (src, connect) = timed(|| client.connect("s", dst));
    assert_eq!(server.run("accept l s"), src.to_string());
    Truth::accepted_now(src, dst, connect)
}

/// Sends 1000 bytes up and 300 down, all of which are read.
fn exchange_both(client: &Actor, server: &Actor) {
    client.run("write s 1000");
    server.run("read s 1000");
    server.run("write s 300");
    client.run("read s 300");
}

/// Closes the client, then the server.
fn close_both(client: &Actor, server: &Actor) {
    client.run("close s");
    assert_eq!(server.run("eof s"), "0");
    server.run("close s");
}

/// The expected records of a connection with 1000 bytes up and 300 down.
fn ends(truth: &Truth) -> (Expected, Expected) {
    (truth.outbound().bytes(1000, 300), truth.inbound().bytes(300, 1000))
}

/// Connects two processes, exchanges data, closes the client first, and compares both records.
fn check_both(view: &RecordView, client: &Actor, server: &Actor, version: IpVersion) {
    let truth = connect_both(client, server, version);
    exchange_both(client, server);
    close_both(client, server);
    expect_both(view, &truth, client, server);
}

/// Expects that `client` connected and closed first, and that `server` closed.
fn expect_both(view: &RecordView, truth: &Truth, client: &Actor, server: &Actor) {
    let (outbound, inbound) = ends(truth);
    view.expect(&[
        outbound.ok("local").process(owner(client, &["connect"])),
        inbound.ok("peer").process(owner(server, &["close"])),
    ]);
}

fn each_end_names_its_process(view: &RecordView, version: IpVersion) {
    let (client, server) = start_both();
    check_both(view, &client, &server, version);
}

/// The kernel closes the sockets of a process that exits.
fn exit_without_close(view: &RecordView, version: IpVersion) {
    let (client, server) = start_both();
    let truth = connect_both(&client, &server, version);
    exchange_both(&client, &server);
    let (client_owner, server_owner) = (owner(&client, &["connect"]), owner(&server, &["close"]));
    server.exit();
    assert_eq!(client.run("eof s"), "0");
    client.exit();
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("peer").process(client_owner),
        inbound.ok("local").process(server_owner),
    ]);
}

fn killed_client(view: &RecordView, version: IpVersion) {
    let (client, server) = start_both();
    let truth = connect_both(&client, &server, version);
    exchange_both(&client, &server);
    let client_owner = owner(&client, &["connect"]);
    client.kill();
    assert_eq!(server.run("eof s"), "0");
    server.run("close s");
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("local").process(client_owner),
        inbound.ok("peer").process(owner(&server, &["close"])),
    ]);
}

fn killed_server(view: &RecordView, version: IpVersion) {
    let (client, server) = start_both();
    let truth = connect_both(&client, &server, version);
    exchange_both(&client, &server);
    let server_owner = owner(&server, &["close"]);
    server.kill();
    assert_eq!(client.run("eof s"), "0");
    client.run("close s");
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("peer").process(owner(&client, &["connect"])),
        inbound.ok("local").process(server_owner),
    ]);
}

/// The kernel resets the connection of a process that is killed with unread data.
fn killed_client_with_unread_data(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    let dst = listener.local_addr().unwrap();
    let client = start_named("the client");
    let (src, connect) = timed(|| client.connect("s", dst));
    let (server, _) = listener.accept().unwrap();
    let truth = Truth::accepted_now(src, dst, connect);
    client.run("write s 1000");
    recv(&server, 1000);
    send(&server, 300);
    wait_acknowledged(&server);
    let client_owner = owner(&client, &["connect"]);
    client.kill();
    assert_eq!(take_error(&server), Errno::ECONNRESET);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.reset_by_local().process(client_owner),
        inbound.reset_by_peer().found_by(&["listener"]),
    ]);
}

fn killed_server_with_unread_data(view: &RecordView, version: IpVersion) {
    let server = start_named("the server");
    let dst = server.listen("l", version.at(0));
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    server.run("accept l s");
    let truth = Truth::accepted_now(client.local_addr().unwrap(), dst, connect);
    send(&client, 1000);
    wait_acknowledged(&client);
    let server_owner = owner(&server, &["close"]);
    server.kill();
    assert_eq!(take_error(&client), Errno::ECONNRESET);
    view.expect(&[
        truth.outbound().bytes(1000, 0).reset_by_peer(),
        truth.inbound().bytes(0, 1000).reset_by_local().process(server_owner),
    ]);
}

/// No process of the server closes the connection, so its record names the process that listens.
fn reset_server_names_the_listener(view: &RecordView, version: IpVersion) {
    let (client, server) = start_both();
    let truth = connect_both(&client, &server, version);
    exchange_both(&client, &server);
    client.run("linger0 s");
    client.run("close s");
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.reset_by_local().process(owner(&client, &["connect"])),
        inbound.reset_by_peer().process(owner(&server, &["listener"])),
    ]);
}

/// A child inherits the socket through fork and exec, as from a shell. The record names the process that connected.
fn client_inherited_by_child(view: &RecordView, version: IpVersion) {
    let Pair { client, server, truth } = exchanged_pair(version);
    let child = Actor::inheriting(client.into());
    child.run("adopt_stdout s");
    child.run("close s");
    assert_eq!(drain(&server), 0);
    drop(server);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[outbound.ok("local"), inbound.ok("peer")]);
}

/// One process accepts and another serves, as with inetd.
fn server_inherited_by_child(view: &RecordView, version: IpVersion) {
    let Pair { client, server, truth } = exchanged_pair(version);
    let child = Actor::inheriting(server.into());
    child.set_comm(b"the child");
    child.run("adopt_stdout s");
    child.run("close s");
    assert_eq!(drain(&client), 0);
    drop(client);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("peer"),
        inbound.ok("local").process(owner(&child, &["close"])),
    ]);
}

fn client_passed_over_unix_socket(view: &RecordView, version: IpVersion) {
    let Pair { client, server, truth } = exchanged_pair(version);
    let other = start_named("another");
    other.run_with_fd("receive_fd s", &OwnedFd::from(client));
    other.run("close s");
    assert_eq!(drain(&server), 0);
    drop(server);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[outbound.ok("local"), inbound.ok("peer")]);
}

fn server_passed_over_unix_socket(view: &RecordView, version: IpVersion) {
    check_closed_by(view, version, "another");
}

/// A process may have the name of the tool's scanner thread, and closes like any other.
fn closer_named_like_the_scanner(view: &RecordView, version: IpVersion) {
    check_closed_by(view, version, "kmesh-scan");
}

/// Passes the server's end to a process with this name, which closes it and is named by the record.
fn check_closed_by(view: &RecordView, version: IpVersion, name: &str) {
    let Pair { client, server, truth } = exchanged_pair(version);
    let other = start_named(name);
    other.run_with_fd("receive_fd s", &OwnedFd::from(server));
    other.run("close s");
    assert_eq!(drain(&client), 0);
    drop(client);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("peer"),
        inbound.ok("local").process(owner(&other, &["close"])),
    ]);
}

/// Two processes read `/proc/PID/fd` of a server all the time, as `ls -l /proc/PID/fd` and `ss -p` do. Each read holds
/// the file for a moment and may release it last. The record must not name the reader.
fn reading_proc_fd_closes_nothing() {
    let rounds = if is_small_vm() { 300 } else { 2000 };
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let (server, readers) = (
        start_named("the server"),
        [start_named("reader 1"), start_named("reader 2")],
    );
    let dst = server.listen("l", IpVersion::V4.at(0));
    for reader in &readers {
        reader.start_command(&format!("read_fds {}", server.pid()));
    }
    for _ in 0..rounds {
        let client = TcpStream::connect(dst).unwrap();
        server.run("accept l s");
        server.run("close s");
        drain(&client);
    }
    let (pid, comm) = (server.pid(), String::from_utf8(server.comm()).unwrap());
    let records = view.wait_count(2 * rounds);
    // The readers end with the server.
    server.exit();
    for reader in readers {
        assert_ne!(reader.wait_result(), "0", "a reader that read no descriptor");
    }
    for ReceivedRecord { value, .. } in records {
        if value["direction"] == "inbound" {
            let process = &value["process"];
            assert!(process["pid"] == pid && process["comm"] == *comm, "{value}");
        }
    }
}

/// A socket that has listened and connected, and one that was accepted, are disconnected. Each then listens in another
/// process. Its connections name the process that listens.
fn reused_socket_listens_elsewhere(view: &RecordView, version: IpVersion) {
    let listener = listen(version);
    let connected = version.socket();
    connected.bind(&version.at(0).into()).unwrap();
    connected.listen(1).unwrap();
    disconnect(&connected);
    connected.connect(&listener.local_addr().unwrap().into()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    disconnect(&connected);
    disconnect(&accepted);
    for socket in [connected, accepted.into()] {
        check_listener(view, version, socket);
    }
}

/// Passes the socket to another process, which listens and accepts a connection that is reset.
fn check_listener(view: &RecordView, version: IpVersion, socket: Socket) {
    let other = start_named("the listener");
    other.run_with_fd("receive_fd l", &OwnedFd::from(socket));
    let listening = other.run(&format!("bind_and_listen l {}", version.at(0)));
    let dst: SocketAddr = listening.parse().unwrap();
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    let truth = Truth::not_accepted(client.local_addr().unwrap(), dst, connect);
    other.run("accept l s");
    reset(client);
    let inbound = truth.inbound().reset_by_peer().process(owner(&other, &["listener"]));
    view.expect_among_others(&[inbound]);
}

/// A process hands its listener to another, as systemd and programs that restart do. After the next scan, connections
/// name the process that has the listener.
fn listener_handed_over() {
    let tracer = Tracer::json(&["--events", "open,update,close", "--interval", "200ms"]);
    let view = RecordView::new(&tracer.output);
    let (first, second) = (start_named("first"), start_named("second"));
    let dst = first.listen("l", IpVersion::V4.at(0));
    second.run_with_fd("receive_fd l", &first.run_for_fd("send_fd l"));
    // Its updates show that scans have ended.
    let scanned = pair(IpVersion::V4);
    let wait_updates = |count: usize| {
        let is_update = |value: &Value| value["event"] == "update";
        tracer.output.wait_matching(view.netns(), count, is_update);
    };
    let check_owner = |server: &Actor| {
        // Nobody accepts the connection, so a scan cannot find its process.
        let client = TcpStream::connect(dst).unwrap();
        let src = client.local_addr().unwrap();
        reset(client);
        let is_close = |value: &Value| {
            value["event"] == "close" && value["direction"] == "inbound" && value["src"]["port"] == src.port()
        };
        let close = tracer.output.wait_matching(view.netns(), 1, is_close).remove(0);
        let process = &close["process"];
        assert_eq!(
            (&process["pid"], &process["by"]),
            (&server.pid().into(), &"listener".into()),
            "{close}"
        );
    };
    // While both processes have it, the one that called listen() counts.
    wait_updates(6);
    check_owner(&first);
    let before = tracer.output.records(view.netns()).len();
    first.exit();
    // Two more scans: one may have begun before.
    wait_updates(before + 6);
    check_owner(&second);
    drop(scanned);
    drop(view);
    assert!(tracer.interrupt().status.success());
}

/// A worker accepts from a listener that another process opened, and closes.
fn worker_accepts_from_passed_listener(view: &RecordView, version: IpVersion) {
    let (client, worker) = (start_named("the client"), start_named("the worker"));
    let listener = listen(version);
    let dst = listener.local_addr().unwrap();
    worker.run_with_fd("receive_fd l", &OwnedFd::from(listener));
    let (src, connect) = timed(|| client.connect("s", dst));
    worker.run("accept l s");
    let truth = Truth::accepted_now(src, dst, connect);
    exchange_both(&client, &worker);
    close_both(&client, &worker);
    expect_both(view, &truth, &client, &worker);
}

/// The process that has the server's end does not close it, and no scan finds it: the record names the process that
/// listened.
fn passed_server_is_reset(view: &RecordView, version: IpVersion) {
    let Pair { client, server, truth } = exchanged_pair(version);
    let other = start_named("another");
    other.run_with_fd("receive_fd s", &OwnedFd::from(server));
    reset(client);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.reset_by_local(),
        inbound.reset_by_peer().found_by(&["listener"]),
    ]);
}

/// The process that connected has passed the socket on, and has exited when the socket is closed.
fn connecting_process_is_gone(view: &RecordView, version: IpVersion) {
    let (client, server) = start_both();
    let truth = connect_both(&client, &server, version);
    exchange_both(&client, &server);
    let socket = client.run_for_fd("send_fd s");
    let client_owner = owner(&client, &["connect"]);
    client.exit();
    drop(socket);
    assert_eq!(server.run("eof s"), "0");
    server.run("close s");
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("local").process(client_owner),
        inbound.ok("peer").process(owner(&server, &["close"])),
    ]);
}

/// Two processes have the server's end. The first close() ends nothing, the last one ends the connection.
fn last_of_two_closes_counts(view: &RecordView, version: IpVersion) {
    let Pair { client, server, truth } = exchanged_pair(version);
    let (first, last) = (start_named("the first"), start_named("the last"));
    let server = OwnedFd::from(server);
    first.run_with_fd("receive_fd s", &server);
    last.run_with_fd("receive_fd s", &server);
    drop(server);
    first.run("close s");
    view.expect_nothing();
    last.run("close s");
    assert_eq!(drain(&client), 0);
    drop(client);
    let (outbound, inbound) = ends(&truth);
    view.expect(&[
        outbound.ok("peer"),
        inbound.ok("local").process(owner(&last, &["close"])),
    ]);
}

/// The thread that connects has another name than its process, which the record has.
fn thread_name_is_not_used(view: &RecordView) {
    let (client, server) = (start_named("the leader"), start_named("the server"));
    let dst = server.listen("l", IpVersion::V4.at(0));
    let (src, connect) = timed(|| client.run(&format!("connect_in_thread s {dst} a_thread")));
    server.run("accept l s");
    let truth = Truth::accepted_now(src.parse().unwrap(), dst, connect);
    exchange_both(&client, &server);
    close_both(&client, &server);
    expect_both(view, &truth, &client, &server);
}

/// A process may have any bytes as its name. The JSON is valid, and has the name.
fn hostile_process_names(view: &RecordView) {
    for name in [
        b"a\nb\tc\r".as_slice(),
        b"\"quote\\d\"",
        b"\x1b[2J\x1b]0;x\x07",
        b"not \xff\xfe UTF-8",
        b"cut short \xe2\x82",
        "\u{202e}gnirts\u{200f}".as_bytes(),
        b"\x7f\xc2\x9b31m",
        b", outcome=ok",
        b" ",
        b"fifteen bytes!!",
    ] {
        let (client, server) = (Actor::start(), Actor::start());
        client.set_comm(name);
        server.set_comm(name);
        check_both(view, &client, &server, IpVersion::V4);
    }
}
