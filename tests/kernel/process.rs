//! Whose connection it was.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use crate::Table;
use crate::support::actor::Actor;
use crate::support::expect::{Proc, Scene, Want};
use crate::support::small;
use crate::support::sock::{
    Span, Truth, V, dissolve, drain, error_of, exchange, flushed, give, listen, pair, reset, take, timed,
};
use crate::support::store::Rec;
use crate::support::tracer::Tracer;
use nix::errno::Errno;
use socket2::Socket;

/// The trials.
pub fn table() -> Table {
    Table::new("process")
        .both("two_processes", &[], two_processes)
        .both("exit_without_close", &[], exit_without_close)
        .both("killed_client", &[], killed_client)
        .both("killed_server", &[], killed_server)
        .both("killed_with_unread", &[], killed_with_unread)
        .both("killed_server_with_unread", &[], killed_server_with_unread)
        .both("reset_names_the_listener", &[], reset_names_the_listener)
        .both("inherited_client", &[], inherited_client)
        .both("inherited_server", &[], inherited_server)
        .both("passed_client", &[], passed_client)
        .both("passed_server", &[], passed_server)
        .both("any_name_may_close", &[], any_name_may_close)
        .own("lookers_close_nothing", &[], lookers_close_nothing)
        .both("listener_of_an_earlier_life", &[], listener_of_an_earlier_life)
        .own("handed_on_listener", &[], handed_on_listener)
        .both("passed_listener", &[], passed_listener)
        .both("passed_server_reset", &[], passed_server_reset)
        .both("connector_gone", &[], connector_gone)
        .both("shared_by_two", &[], shared_by_two)
        .shared("thread_name", &[], thread_name)
        .shared("hostile_names", &[], hostile_names)
}

fn named(name: &str) -> Actor {
    let actor = Actor::start();
    rename(&actor, name.as_bytes());
    actor
}

fn rename(actor: &Actor, name: &[u8]) {
    let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    actor.ask(&format!("name {hex}"));
    assert_eq!(actor.comm(), name, "the actor's own name");
}

fn is(actor: &Actor, by: &'static [&'static str]) -> Proc {
    Proc::Is(actor.pid(), String::from_utf8_lossy(&actor.comm()).into_owned(), by)
}

/// `client` connects to `server`, which accepts, both under the name `s`.
fn meet(client: &Actor, server: &Actor, v: V) -> Truth {
    let dst = server.listen("l", v.at(0));
    let before = SystemTime::now();
    let src = client.connect("s", dst);
    let connect = Span {
        before,
        after: SystemTime::now(),
    };
    assert_eq!(server.ask("accept l s"), src.to_string());
    Truth {
        src,
        dst,
        connect,
        open: Span {
            before,
            after: SystemTime::now(),
        },
    }
}

/// 1000 bytes up, 300 down, all read.
fn talk(client: &Actor, server: &Actor) {
    client.ask("write s 1000");
    server.ask("read s 1000");
    server.ask("write s 300");
    client.ask("read s 300");
}

fn ends(truth: &Truth) -> (Want, Want) {
    (truth.outbound().bytes(1000, 300), truth.inbound().bytes(300, 1000))
}

fn two_processes(scene: &Scene, v: V) {
    let (client, server) = (named("the client"), named("the server"));
    let truth = meet(&client, &server, v);
    talk(&client, &server);
    client.ask("close s");
    assert_eq!(server.ask("eof s"), "0");
    server.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.ok("local").process(is(&client, &["connect"])),
        inn.ok("peer").process(is(&server, &["close"])),
    ]);
}

/// The kernel closes what a process leaves open.
fn exit_without_close(scene: &Scene, v: V) {
    let (client, server) = (named("the client"), named("the server"));
    let truth = meet(&client, &server, v);
    talk(&client, &server);
    let (by_client, by_server) = (is(&client, &["connect"]), is(&server, &["close"]));
    server.exit();
    assert_eq!(client.ask("eof s"), "0");
    client.exit();
    let (out, inn) = ends(&truth);
    scene.expect(&[out.ok("peer").process(by_client), inn.ok("local").process(by_server)]);
}

fn killed_client(scene: &Scene, v: V) {
    let (client, server) = (named("the client"), named("the server"));
    let truth = meet(&client, &server, v);
    talk(&client, &server);
    let by_client = is(&client, &["connect"]);
    client.kill();
    assert_eq!(server.ask("eof s"), "0");
    server.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.ok("local").process(by_client),
        inn.ok("peer").process(is(&server, &["close"])),
    ]);
}

fn killed_server(scene: &Scene, v: V) {
    let (client, server) = (named("the client"), named("the server"));
    let truth = meet(&client, &server, v);
    talk(&client, &server);
    let by_server = is(&server, &["close"]);
    server.kill();
    assert_eq!(client.ask("eof s"), "0");
    client.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.ok("peer").process(is(&client, &["connect"])),
        inn.ok("local").process(by_server),
    ]);
}

/// What it had not read makes the kernel reset.
fn killed_with_unread(scene: &Scene, v: V) {
    let server = listen(v);
    let client = named("the client");
    let before = SystemTime::now();
    let src = client.connect("s", server.local_addr().unwrap());
    let connect = Span {
        before,
        after: SystemTime::now(),
    };
    let (socket, _) = server.accept().unwrap();
    let open = Span {
        before,
        after: SystemTime::now(),
    };
    let truth = Truth {
        src,
        dst: server.local_addr().unwrap(),
        connect,
        open,
    };
    client.ask("write s 1000");
    take(&socket, 1000);
    give(&socket, 300);
    flushed(&socket);
    let by_client = is(&client, &["connect"]);
    client.kill();
    assert_eq!(error_of(&socket), Errno::ECONNRESET);
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.reset_by_local().process(by_client),
        inn.reset_by_peer().by(&["listener"]),
    ]);
}

fn killed_server_with_unread(scene: &Scene, v: V) {
    let server = named("the server");
    let dst = server.listen("l", v.at(0));
    let (client, connect) = timed(|| TcpStream::connect(dst).unwrap());
    server.ask("accept l s");
    let open = Span {
        before: connect.before,
        after: SystemTime::now(),
    };
    let truth = Truth {
        src: client.local_addr().unwrap(),
        dst,
        connect,
        open,
    };
    give(&client, 1000);
    flushed(&client);
    let by_server = is(&server, &["close"]);
    server.kill();
    assert_eq!(error_of(&client), Errno::ECONNRESET);
    scene.expect(&[
        truth.outbound().bytes(1000, 0).reset_by_peer(),
        truth.inbound().bytes(0, 1000).reset_by_local().process(by_server),
    ]);
}

/// Nobody of the server's side did anything at the end.
fn reset_names_the_listener(scene: &Scene, v: V) {
    let (client, server) = (named("the client"), named("the server"));
    let truth = meet(&client, &server, v);
    talk(&client, &server);
    client.ask("linger0 s");
    client.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.reset_by_local().process(is(&client, &["connect"])),
        inn.reset_by_peer().process(is(&server, &["listener"])),
    ]);
}

/// Through fork and exec, as a shell gives a socket to a program. It stays the connection of who connected.
fn inherited_client(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    let child = Actor::inheriting(pair.client.into());
    child.ask("inherited s");
    child.ask("close s");
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let (out, inn) = ends(&pair.truth);
    scene.expect(&[out.ok("local"), inn.ok("peer")]);
}

/// As inetd does it: one accepts, another serves.
fn inherited_server(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    let child = Actor::inheriting(pair.server.into());
    rename(&child, b"the child");
    child.ask("inherited s");
    child.ask("close s");
    assert_eq!(drain(&pair.client), 0);
    drop(pair.client);
    let (out, inn) = ends(&pair.truth);
    scene.expect(&[out.ok("peer"), inn.ok("local").process(is(&child, &["close"]))]);
}

/// Over a Unix socket.
fn passed_client(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    let other = named("another");
    other.hand("take s", &OwnedFd::from(pair.client));
    other.ask("close s");
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let (out, inn) = ends(&pair.truth);
    scene.expect(&[out.ok("local"), inn.ok("peer")]);
}

fn passed_server(scene: &Scene, v: V) {
    let (other, truth) = closed_by_another(v, "another");
    let (out, inn) = ends(&truth);
    scene.expect(&[out.ok("peer"), inn.ok("local").process(is(&other, &["close"]))]);
}

/// The server's end of a connection of this process is handed to one of that name, which closes it.
fn closed_by_another(v: V, name: &str) -> (Actor, Truth) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    let other = named(name);
    other.hand("take s", &OwnedFd::from(pair.server));
    other.ask("close s");
    assert_eq!(drain(&pair.client), 0);
    drop(pair.client);
    (other, pair.truth)
}

/// The name of this tool's own thread that looks at descriptors is nothing special.
fn any_name_may_close(scene: &Scene, v: V) {
    let (other, truth) = closed_by_another(v, "kmesh-walk");
    let (out, inn) = ends(&truth);
    scene.expect(&[out.ok("peer"), inn.ok("local").process(is(&other, &["close"]))]);
}

/// Two processes look at the descriptors of a server all the time, as `ls -l /proc/PID/fd` and `ss -p` do. Each look holds the file
/// for a moment, and may be the last to let go of it: that is no close.
fn lookers_close_nothing() {
    let rounds = if small() { 300 } else { 2000 };
    let tracer = Tracer::json(&[]);
    let scene = Scene::new(&tracer.store);
    let (server, lookers) = (named("the server"), [named("looker 1"), named("looker 2")]);
    let dst = server.listen("l", V::Four.at(0));
    for looker in &lookers {
        looker.begin(&format!("look {}", server.pid()));
    }
    for _ in 0..rounds {
        let client = TcpStream::connect(dst).unwrap();
        server.ask("accept l s");
        server.ask("close s");
        drain(&client);
    }
    // That ends the look.
    let (pid, comm) = (server.pid(), server.comm());
    let records = scene.wait_count(2 * rounds);
    server.exit();
    for looker in lookers {
        assert_ne!(looker.done(), "0", "a looker that saw nothing");
    }
    let comm = String::from_utf8(comm).unwrap();
    for Rec { value, .. } in records {
        if value["direction"] == "inbound" {
            let process = &value["process"];
            assert!(process["pid"] == pid && process["comm"] == *comm, "{value}");
        }
    }
}

/// A socket that connected after it had listened, and one that was accepted: each is dissolved and then listens, in another process.
/// Its children are of the one that listens.
fn listener_of_an_earlier_life(scene: &Scene, v: V) {
    let listener = listen(v);
    let connected = v.socket();
    connected.bind(&v.at(0).into()).unwrap();
    connected.listen(1).unwrap();
    dissolve(&connected);
    connected.connect(&listener.local_addr().unwrap().into()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    dissolve(&connected);
    dissolve(&accepted);
    for socket in [connected, accepted.into()] {
        check_listener(scene, v, socket);
    }
}

fn check_listener(scene: &Scene, v: V, socket: Socket) {
    let other = named("the listener");
    other.hand("take l", &OwnedFd::from(socket));
    let dst: SocketAddr = other.ask(&format!("listen_again l {}", v.at(0))).parse().unwrap();
    let before = SystemTime::now();
    let client = TcpStream::connect(dst).unwrap();
    let open = Span {
        before,
        after: SystemTime::now(),
    };
    let truth = Truth {
        src: client.local_addr().unwrap(),
        dst,
        connect: open,
        open,
    };
    other.ask("accept l s");
    reset(client);
    let inbound = truth.inbound().reset_by_peer().process(is(&other, &["listener"]));
    scene.expect_among_others(&[inbound]);
}

/// A listener that its process hands to another, as systemd and programs that restart do: after the next scan, its connections are of
/// the one that has it.
fn handed_on_listener() {
    let tracer = Tracer::json(&["--events", "open,update,close", "--interval", "200ms"]);
    let scene = Scene::new(&tracer.store);
    let (first, second) = (named("first"), named("second"));
    let dst = first.listen("l", V::Four.at(0));
    second.hand("take l", &first.fetch("give l"));
    let witness = pair(V::Four);
    let updates = |count: usize| {
        let enough = |records: &[Rec]| {
            let updates = records.iter().filter(|rec| rec.value["event"] == "update");
            (updates.count() >= count).then_some(())
        };
        tracer.store.wait(scene.netns(), enough).unwrap();
    };
    // While both have it, it is of the one that called listen().
    updates(6);
    let of_listener = |server: &Actor| {
        let client = TcpStream::connect(dst).unwrap();
        server.ask("accept l s");
        let src = client.local_addr().unwrap();
        reset(client);
        let process = is(server, &["listener"]);
        let closed = |records: &[Rec]| {
            let of_it = records.iter().find(|rec| {
                let value = &rec.value;
                value["event"] == "close" && value["direction"] == "inbound" && value["src"]["port"] == src.port()
            });
            of_it.map(|rec| rec.value["process"].clone())
        };
        (tracer.store.wait(scene.netns(), closed).unwrap(), process)
    };
    let check = |(found, wanted): (serde_json::Value, Proc)| {
        let Proc::Is(pid, ..) = wanted else { unreachable!() };
        assert_eq!(
            (&found["pid"], &found["by"]),
            (&pid.into(), &"listener".into()),
            "{found}"
        );
    };
    check(of_listener(&first));
    let before = tracer.store.records(scene.netns()).len();
    first.exit();
    // Two more scans: one may have been under way.
    updates(before + 6);
    check(of_listener(&second));
    drop(witness);
    drop(scene);
    assert!(tracer.interrupt().status.success());
}

/// A worker of a server that listens before it divides: the worker accepts and closes.
fn passed_listener(scene: &Scene, v: V) {
    let (client, worker) = (named("the client"), named("the worker"));
    let listener = listen(v);
    let dst = listener.local_addr().unwrap();
    worker.hand("take l", &OwnedFd::from(listener));
    let before = SystemTime::now();
    let src = client.connect("s", dst);
    let connect = Span {
        before,
        after: SystemTime::now(),
    };
    worker.ask("accept l s");
    let truth = Truth {
        src,
        dst,
        connect,
        open: Span {
            before,
            after: SystemTime::now(),
        },
    };
    talk(&client, &worker);
    client.ask("close s");
    assert_eq!(worker.ask("eof s"), "0");
    worker.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.ok("local").process(is(&client, &["connect"])),
        inn.ok("peer").process(is(&worker, &["close"])),
    ]);
}

/// Nobody closed it and nobody looked who holds it: what is left is who listened.
fn passed_server_reset(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    flushed(&pair.server);
    let other = named("another");
    other.hand("take s", &OwnedFd::from(pair.server));
    reset(pair.client);
    let (out, inn) = ends(&pair.truth);
    scene.expect(&[out.reset_by_local(), inn.reset_by_peer().by(&["listener"])]);
}

/// Who connected has passed the socket on and is gone when it closes.
fn connector_gone(scene: &Scene, v: V) {
    let (client, server) = (named("the client"), named("the server"));
    let truth = meet(&client, &server, v);
    talk(&client, &server);
    let socket = client.fetch("give s");
    let by_client = is(&client, &["connect"]);
    client.exit();
    drop(socket);
    assert_eq!(server.ask("eof s"), "0");
    server.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.ok("local").process(by_client),
        inn.ok("peer").process(is(&server, &["close"])),
    ]);
}

/// Two processes hold the accepted socket. The first close() ends nothing; the last one does.
fn shared_by_two(scene: &Scene, v: V) {
    let pair = pair(v);
    exchange(&pair, 1000, 300);
    let (first, last) = (named("the first"), named("the last"));
    let server = OwnedFd::from(pair.server);
    first.hand("take s", &server);
    last.hand("take s", &server);
    drop(server);
    first.ask("close s");
    scene.expect_nothing();
    last.ask("close s");
    assert_eq!(drain(&pair.client), 0);
    drop(pair.client);
    let (out, inn) = ends(&pair.truth);
    scene.expect(&[out.ok("peer"), inn.ok("local").process(is(&last, &["close"]))]);
}

/// A thread has a name of its own; the record has the process's.
fn thread_name(scene: &Scene) {
    let (client, server) = (named("the leader"), named("the server"));
    let dst = server.listen("l", V::Four.at(0));
    let before = SystemTime::now();
    let src = client
        .ask(&format!("connect_in_thread s {dst} a_thread"))
        .parse()
        .unwrap();
    let connect = Span {
        before,
        after: SystemTime::now(),
    };
    server.ask("accept l s");
    let truth = Truth {
        src,
        dst,
        connect,
        open: Span {
            before,
            after: SystemTime::now(),
        },
    };
    talk(&client, &server);
    client.ask("close s");
    assert_eq!(server.ask("eof s"), "0");
    server.ask("close s");
    let (out, inn) = ends(&truth);
    scene.expect(&[
        out.ok("local").process(is(&client, &["connect"])),
        inn.ok("peer").process(is(&server, &["close"])),
    ]);
}

/// A process may call itself what it likes. The JSON is valid and says so; nothing of it reaches a terminal raw.
fn hostile_names(scene: &Scene) {
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
        rename(&client, name);
        rename(&server, name);
        let truth = meet(&client, &server, V::Four);
        talk(&client, &server);
        client.ask("close s");
        assert_eq!(server.ask("eof s"), "0");
        server.ask("close s");
        let (out, inn) = ends(&truth);
        scene.expect(&[
            out.ok("local").process(is(&client, &["connect"])),
            inn.ok("peer").process(is(&server, &["close"])),
        ]);
    }
}
