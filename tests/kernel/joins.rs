//! Both ends of connections between two network namespaces, joined by `--join`. The client dials a translated address
//! and has few ports, so that connections reuse them. Each connection carries a number of bytes that no other has.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getpid, gettid};
use serde_json::Value;
use socket2::SockRef;

use crate::Topic;
use crate::support::probe::Need;
use crate::support::tracer::{TracerCommand, binary};
use crate::support::{is_small_vm, net, scratch_dir, sock};

pub fn topic() -> Topic {
    let needs = &[Need::Nft, Need::Veth, Need::Unshare];
    Topic::new("joins").standalone("reused_ports_join_right", needs, reused_ports_join_right)
}

/// The number of connections, unless this variable sets another one.
const CONNECTIONS: usize = 2_000;
const CONNECTIONS_VARIABLE: &str = "KMESH_TRACE_JOIN_CONNECTIONS";
/// The number of connections that are open at the same time.
const OPEN: usize = 8;
/// The range of the client's ports.
const PORTS: &str = "32768 32831";
const CLIENT: &str = "10.78.0.1";
const SERVER: &str = "10.78.0.2";
const SERVICE: &str = "10.96.78.1";
/// The server's ports: behind the Service's address, and without translation.
const TRANSLATED: u16 = 8080;
const DIRECT: u16 = 8081;

/// The bytes that the calls on both ends of a connection transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct TransferredBytes {
    client_wrote: u64,
    client_read: u64,
    server_wrote: u64,
    server_read: u64,
}

/// Creates a namespace that a veth connects with the calling thread's. Returns listeners in it and its inode number.
fn server_namespace() -> ([TcpListener; 2], u64) {
    let near = format!("/proc/{}/task/{}/ns/net", getpid(), gettid());
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
        net::run("ip", &["link", "set", "lo", "up"]);
        net::run("ip", &["link", "add", "far", "type", "veth", "peer", "name", "near"]);
        net::run("ip", &["addr", "add", &format!("{SERVER}/24"), "dev", "far"]);
        net::run("ip", &["link", "set", "far", "up"]);
        net::run("ip", &["link", "set", "near", "netns", &near]);
        // A small window, so that a write soon finds no space.
        net::set_sysctl("net.ipv4.tcp_rmem", "4096 16384 32768");
        let ports = [TRANSLATED, DIRECT];
        let listeners = ports.map(|port| TcpListener::bind(format!("{SERVER}:{port}")).expect("listen"));
        send.send((listeners, net::current_netns()))
            .expect("the scenario waits");
    });
    receive.recv().expect("the server's namespace")
}

/// Configures the client's namespace: a Service's address as kube-proxy translates it, and few ports.
fn configure_client() {
    net::run("ip", &["addr", "add", &format!("{CLIENT}/24"), "dev", "near"]);
    net::run("ip", &["link", "set", "near", "up"]);
    net::run("ip", &["route", "add", &format!("{SERVICE}/32"), "via", SERVER]);
    net::run("nft", &["add table ip kube-proxy"]);
    net::run(
        "nft",
        &["add chain ip kube-proxy output { type nat hook output priority -100; }"],
    );
    let rule = format!("ip daddr {SERVICE} tcp dport 80 dnat to {SERVER}:{TRANSLATED}");
    net::run("nft", &[&format!("add rule ip kube-proxy output {rule}")]);
    net::set_sysctl("net.ipv4.ip_local_port_range", PORTS);
    net::set_sysctl("net.ipv4.tcp_rmem", "4096 16384 32768");
}

/// A connection, and the bytes that it has transferred so far.
struct Connection {
    client: TcpStream,
    server: TcpStream,
    transferred: TransferredBytes,
}

impl Connection {
    /// Opens connection `number`, and moves numbers of bytes that no other connection moves.
    fn open(number: usize, listeners: &[TcpListener; 2]) -> Self {
        let is_direct = number % 4 == 3;
        let to = if is_direct {
            format!("{SERVER}:{DIRECT}")
        } else {
            format!("{SERVICE}:80")
        };
        let client = TcpStream::connect(to.parse::<SocketAddr>().unwrap()).expect("connect");
        let (server, _) = listeners[usize::from(is_direct)].accept().expect("accept");
        let (up, down) = (1 + number % 1000, 1 + number / 1000);
        sock::send(&client, up);
        sock::recv(&server, up);
        sock::send(&server, down);
        sock::recv(&client, down);
        let transferred = TransferredBytes {
            client_wrote: up as u64,
            client_read: down as u64,
            server_wrote: down as u64,
            server_read: up as u64,
        };
        Self {
            client,
            server,
            transferred,
        }
    }

    /// Closes connection `number` in one of several ways. In some, an end dies before the other has read everything.
    fn close(self, number: usize) -> TransferredBytes {
        let Self {
            client,
            server,
            mut transferred,
        } = self;
        match number % 10 {
            0 => {
                transferred.client_wrote += fill(&client);
                sock::reset(client);
                transferred.server_read += read_rest(&server);
            }
            1 => {
                transferred.server_wrote += fill(&server);
                sock::reset(server);
                transferred.client_read += read_rest(&client);
            }
            2 => {
                sock::reset(client);
                read_rest(&server);
            }
            3 => {
                sock::reset(server);
                read_rest(&client);
            }
            4 => {
                // A half-closed connection on which the client still sends.
                server.shutdown(Shutdown::Write).unwrap();
                read_rest(&client);
                sock::send(&client, 7);
                transferred.client_wrote += 7;
                drop(client);
                transferred.server_read += read_rest(&server);
            }
            _ => {
                // The server closes first, so that the client's port is free at once.
                server.shutdown(Shutdown::Write).unwrap();
                read_rest(&client);
                drop(client);
                read_rest(&server);
            }
        }
        transferred
    }
}

/// Writes until there is no space. Returns the number of bytes.
fn fill(mut to: &TcpStream) -> u64 {
    to.set_nonblocking(true).unwrap();
    SockRef::from(to).set_send_buffer_size(32 << 10).unwrap();
    let mut written = 0;
    loop {
        match to.write(&[7; 4_001]) {
            Ok(count) => written += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break written,
            Err(error) => panic!("write: {error}"),
        }
    }
}

/// Reads until the end, or until the connection is reset. Returns the number of bytes.
fn read_rest(mut from: &TcpStream) -> u64 {
    from.set_nonblocking(false).unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut read = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break read,
            Ok(count) => read += count as u64,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break read,
            Err(error) => panic!("read: {error}"),
        }
    }
}

fn make_connections(count: usize, listeners: &[TcpListener; 2]) -> Vec<TransferredBytes> {
    let mut open: Vec<(usize, Connection)> = Vec::new();
    let mut all = Vec::new();
    for number in 0..count {
        open.push((number, Connection::open(number, listeners)));
        if open.len() == OPEN {
            // Not the oldest one, so that the lives of connections overlap in many ways.
            let (number, connection) = open.swap_remove(number * 7 % OPEN);
            all.push(connection.close(number));
        }
    }
    all.extend(open.into_iter().map(|(number, connection)| connection.close(number)));
    all
}

/// Writes the lines of each namespace to a separate file, as if it were a node.
fn split(capture: &Path, namespaces: [u64; 2]) -> [PathBuf; 2] {
    let output = Command::new(binary())
        .args(["-o", "json", "-r"])
        .arg(capture)
        .output()
        .expect("replay the capture");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut texts = [String::new(), String::new()];
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let of = |netns: &u64| value["local"]["netns"] == *netns;
        let Some(at) = namespaces.iter().position(of) else {
            continue;
        };
        value["node"] = ["a", "b"][at].into();
        // Sockets of two nodes may have the same cookies.
        texts[at] += &format!("{value}\n");
    }
    let paths = ["a", "b"].map(|node| capture.with_extension(format!("{node}.jsonl")));
    for (path, text) in paths.iter().zip(texts) {
        fs::write(path, text).unwrap();
    }
    paths
}

fn joined(streams: &[PathBuf; 2], args: &[&str]) -> Vec<Value> {
    let mut command = Command::new(binary());
    for stream in streams {
        command.arg("--read").arg(stream);
    }
    let output = command.arg("--join").args(args).output().expect("join the streams");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn reused_ports_join_right() {
    let count = match std::env::var(CONNECTIONS_VARIABLE) {
        Ok(number) => number.parse().expect("a number"),
        Err(_) if is_small_vm() => CONNECTIONS / 10,
        Err(_) => CONNECTIONS,
    };
    let (listeners, server_netns) = server_namespace();
    configure_client();
    let unique = format!("joins-{}", std::process::id());
    let (capture, names) = (
        scratch_dir().join(format!("{unique}.jsonl.zst")),
        scratch_dir().join(format!("{unique}.names.json")),
    );
    let node = r#"{"kind": "Node", "metadata": {"name": "worker-1"}}"#;
    fs::write(
        &names,
        format!(r#"{{"kind": "List", "apiVersion": "v1", "items": [{node}]}}"#),
    )
    .unwrap();
    let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    let network = format!("--ip={CLIENT}/24");
    let buffer = if is_small_vm() { "8MiB" } else { "64MiB" };
    let tracer = TracerCommand::on_node(&[
        "-o",
        "none",
        "--buffer",
        buffer,
        &network,
        "--pods-file",
        &text(&names),
        "--write",
        &text(&capture),
    ])
    .stdout(std::process::Stdio::null())
    .start();
    let mut expected = make_connections(count, &listeners);
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.pid)).unwrap();
    let tool = children.trim().parse().expect("one child");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tool), nix::sys::signal::Signal::SIGINT).unwrap();
    tracer.wait();

    let streams = split(&capture, [net::current_netns(), server_netns]);
    let lines = joined(&streams, &["-o", "json"]);
    let pairs: Vec<_> = lines.iter().filter(|line| line["type"] == "pair").collect();
    let mut found: Vec<_> = pairs.iter().map(|pair| check_pair(pair)).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert!(
        found == expected,
        "{} of {} pairs, or wrong ones",
        found.len(),
        expected.len()
    );
    let reused = reused_ports(&pairs);
    assert!(reused > count / 2, "{reused} connections reuse a port");
    let summary = lines.last().expect("a summary");
    assert_eq!(summary["join"]["pairs"], count, "{summary}");
    for member in ["one_ended", "ambiguous", "early"] {
        assert_eq!(summary["join"][member], 0, "{summary}");
    }
    assert_eq!(summary["delivered"], 2 * count, "{summary}");
    check_rollup(
        &joined(
            &streams,
            &["-o", "json", "--rollup", "--interval", "all", "--by", "node"],
        ),
        count,
    );
    for path in [&capture, &names, &streams[0], &streams[1]] {
        _ = fs::remove_file(path);
    }
}

/// Checks the members of a pair. Returns the bytes that both ends transferred.
fn check_pair(pair: &Value) -> TransferredBytes {
    let number = |end: &str, member: &str| pair[end][member].as_u64().unwrap_or_else(|| panic!("{end}: {pair}"));
    let wrote = |end: &str| number(end, "sent_bytes") + number(end, "undelivered_bytes");
    let transferred = TransferredBytes {
        client_wrote: wrote("client"),
        client_read: number("client", "received_bytes"),
        server_wrote: wrote("server"),
        server_read: number("server", "received_bytes"),
    };
    assert_eq!(
        pair["undelivered"]["sent"],
        transferred.client_wrote - transferred.server_read,
        "{pair}"
    );
    assert_eq!(
        pair["undelivered"]["received"],
        transferred.server_wrote - transferred.client_read,
        "{pair}"
    );
    assert_eq!(
        (&pair["client"]["node"], &pair["server"]["node"]),
        (&"a".into(), &"b".into())
    );
    let is_translated = pair["client"]["dst"]["port"] == TRANSLATED;
    assert_eq!(pair["client"]["original_dst"]["ip"] == SERVICE, is_translated, "{pair}");
    transferred
}

/// Returns the number of connections whose ports an earlier one had.
fn reused_ports(pairs: &[&Value]) -> usize {
    let ports = |pair: &Value| {
        (
            pair["client"]["src"]["port"].as_u64(),
            pair["client"]["dst"]["port"].as_u64(),
        )
    };
    let different: std::collections::HashSet<_> = pairs.iter().map(|pair| ports(pair)).collect();
    pairs.len() - different.len()
}

/// A rollup counts each connection once, and both outcomes where they differ.
fn check_rollup(lines: &[Value], count: usize) {
    let groups: Vec<_> = lines.iter().filter(|line| line["type"] == "rollup").collect();
    let [group] = groups[..] else {
        panic!("one group: {groups:?}")
    };
    assert_eq!(
        (&group["group"]["src"]["node"], &group["group"]["dst"]["node"]),
        (&"a".into(), &"b".into())
    );
    assert_eq!(group["closed"], count, "{group}");
    let of_each_ten = |members: usize| (count / 10 * members) as u64;
    assert_eq!(
        group["outcomes"]["reset_by_local / reset_by_peer"],
        of_each_ten(2),
        "{group}"
    );
    assert_eq!(
        group["outcomes"]["reset_by_peer / reset_by_local"],
        of_each_ten(2),
        "{group}"
    );
    assert_eq!(group["outcomes"]["ok"], of_each_ten(6), "{group}");
}
