//! Dropped packets, by place, direction and reason.

use std::net::{IpAddr, SocketAddr, TcpListener};

use nix::errno::Errno;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use super::{close_of, drops, kernel_count, start_tracer};
use crate::Topic;
use crate::support::actor::Actor;
use crate::support::expect::is_address;
use crate::support::probe::Need;
use crate::support::sock::{
    ClosedPort, IpVersion, bound_socket, connect_blocking, connect_nonblocking, listen, pair_with, recv, reset, send,
    take_error, wait_acknowledged, wait_pending_error, wait_until,
};
use crate::support::tracer::Tracer;
use crate::support::{net, node};

pub fn add(topic: Topic) -> Topic {
    topic
        .standalone_both_versions("drops_equal_the_counter_of_output", &[Need::Nft], |version| {
            drops_equal_the_counter("output", version);
        })
        .standalone_both_versions("drops_equal_the_counter_of_input", &[Need::Nft], |version| {
            drops_equal_the_counter("input", version);
        })
        .standalone_both_versions(
            "drops_equal_the_counter_of_forward",
            &[Need::Nft, Need::Veth],
            drops_equal_the_counter_of_forward,
        )
        .standalone("reverse_path_filter", &[Need::Veth], reverse_path_filter)
        .standalone("wrong_checksum", &[], wrong_checksum)
        .standalone_both_versions("rejected_by_packet_filter", &[Need::Nft], rejected_by_packet_filter)
        .standalone_both_versions("dropped_data_counts_at_both_ends", &[Need::Nft], dropped_data)
        .standalone(
            "drops_of_an_earlier_user_of_the_ports_do_not_count",
            &[Need::Nft],
            earlier_user,
        )
        .standalone(
            "same_tuple_in_two_namespaces",
            &[Need::Nft],
            same_tuple_in_two_namespaces,
        )
        .standalone("connections_without_drops_have_none", &[], connections_without_drops)
        .standalone(
            "drops_of_a_flood_are_evicted_and_reported",
            &[Need::Nft, Need::FullSize, Need::Exclusive],
            flood,
        )
}

/// Waits until the packet filter has dropped this many packets.
fn wait_dropped(hook: &str, count: u64) {
    wait_until("the packet filter drops", || net::packet_filter_count(hook) >= count);
}

fn drop_to(port: u16) -> String {
    format!("tcp dport {port} counter drop")
}

fn drops_equal_the_counter(hook: &str, version: IpVersion) {
    let tracer = start_tracer(&[]);
    let port = ClosedPort::new();
    net::set_packet_filter_at(hook, &[&drop_to(port.number())]);
    let attempt = connect_nonblocking(version.at(0), port.at(version));
    wait_dropped(hook, 1);
    drop(attempt.socket);
    let record = close_of(&tracer, "outbound", attempt.truth.src);
    assert_eq!(record["outcome"], "connect_aborted");
    assert_eq!(
        record["drops"],
        drops("sent", "NETFILTER_DROP", net::packet_filter_count(hook))
    );
    assert_eq!(record["reset_reason"], Value::Null);
    tracer.interrupt().check_lossless();
}

/// The node drops packets on their way from one network namespace to another. The record of the client has them.
fn drops_equal_the_counter_of_forward(version: IpVersion) {
    let [client, server] = two_hosts(version);
    net::set_packet_filter_at("forward", &["tcp dport 9 counter drop"]);
    let tracer = Tracer::json(&["--drops", "--interval", "200ms", &format!("--ip={}", client.ip)]);
    let record = attempt(&tracer, &client, server.ip, || net::packet_filter_count("forward"));
    assert_eq!(
        record["drops"],
        drops("sent", "NETFILTER_DROP", net::packet_filter_count("forward"))
    );
    tracer.interrupt().check_lossless();
}

/// The route back to the client leads elsewhere, so the node takes its packets for forged ones.
fn reverse_path_filter() {
    let [client, server] = two_hosts(IpVersion::V4);
    net::set_sysctl("net.ipv4.conf.all.rp_filter", "1");
    let ip = client.ip.to_string();
    // This attempt teaches the client the node's hardware address. After the route changes, the node would not answer
    // ARP.
    let refused = client.actor.try_connect(SocketAddr::new(server.ip, 9));
    assert_eq!(refused, Errno::ECONNREFUSED);
    net::run("ip", &["route", "replace", &ip, "dev", "lo"]);
    let tracer = Tracer::json(&["--drops", "--interval", "200ms", &format!("--ip={ip}")]);
    let dropped = || kernel_count("netstat", "TcpExt", "IPReversePathFilter");
    let record = attempt(&tracer, &client, server.ip, dropped);
    assert_eq!(record["drops"], drops("sent", "IP_RPFILTER", dropped()));
    tracer.interrupt().check_lossless();
}

/// A host behind a veth of the calling thread's namespace.
struct Host {
    actor: Actor,
    ip: IpAddr,
    netns: u64,
}

/// Creates two hosts, between which the calling thread's namespace forwards packets.
fn two_hosts(version: IpVersion) -> [Host; 2] {
    net::set_sysctl("net.ipv4.ip_forward", "1");
    net::set_sysctl("net.ipv6.conf.all.forwarding", "1");
    ["1", "2"].map(|name| {
        let actor = node::actor_with_veth(name, &format!("10.1.0.1{name}"));
        let netns = node::netns_of(&actor);
        let ip: IpAddr = match version {
            IpVersion::V4 => format!("10.1.0.1{name}").parse().unwrap(),
            IpVersion::V6 => {
                let (gateway, ip) = (format!("fd01:{name}::1"), format!("fd01:{name}::2"));
                let veth = format!("v-{name}");
                net::run("ip", &["addr", "add", &format!("{gateway}/64"), "dev", &veth, "nodad"]);
                net::wait_local_route(&gateway, &veth);
                node::run_ip(&actor, &format!("addr add {ip}/64 dev eth0 nodad"));
                node::run_ip(&actor, &format!("route add default via {gateway}"));
                ip.parse().unwrap()
            }
        };
        Host { actor, ip, netns }
    })
}

/// The client tries to connect until `dropped` counts a packet. Returns the record.
fn attempt(tracer: &Tracer, client: &Host, server: IpAddr, dropped: impl Fn() -> u64) -> Value {
    tracer.output.watch(client.netns);
    let (from, to) = (SocketAddr::new(client.ip, 0), SocketAddr::new(server, 9));
    let from = client.actor.run(&format!("connect_nonblocking t {from} {to}"));
    wait_until("a packet is dropped", || dropped() > 0);
    client.actor.run("close t");
    let from: SocketAddr = from.parse().unwrap();
    let is_it = |value: &Value| value["event"] == "close" && is_address(&value["src"], from);
    let record = tracer.output.wait_matching(client.netns, 1, is_it).remove(0);
    assert_eq!(record["outcome"], "connect_aborted", "{record}");
    record
}

/// Segments of a connection arrive with a wrong checksum. Both ends are on this node, and both records count them.
fn wrong_checksum() {
    const SEGMENTS: u64 = 3;
    let tracer = start_tracer(&[]);
    let pair = pair_with(&listen(IpVersion::V4));
    let (SocketAddr::V4(from), SocketAddr::V4(to)) = (pair.truth.src, pair.truth.dst) else {
        unreachable!("IPv4 addresses")
    };
    // An IPv4 header, whose length and checksum the kernel sets, and a TCP header without a checksum.
    let mut packet = [0; 40];
    (packet[0], packet[8], packet[9]) = (0x45, 64, 6);
    packet[12..16].copy_from_slice(&from.ip().octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[32] = 5 << 4;
    let wire = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).unwrap();
    for _ in 0..SEGMENTS {
        wire.send_to(&packet, &to.into()).unwrap();
    }
    let dropped = || kernel_count("snmp", "Tcp", "InCsumErrors");
    wait_until("the segments are dropped", || dropped() == SEGMENTS);
    let truth = pair.close_client_first();
    for (direction, of_record) in [("outbound", "sent"), ("inbound", "received")] {
        let record = close_of(&tracer, direction, truth.src);
        assert_eq!(record["drops"], drops(of_record, "TCP_CSUM", SEGMENTS), "{record}");
    }
    tracer.interrupt().check_lossless();
}

fn rejected_by_packet_filter(version: IpVersion) {
    let tracer = start_tracer(&[]);
    let port = ClosedPort::new();
    net::set_packet_filter_at(
        "input",
        &[&format!("tcp dport {} counter reject with tcp reset", port.number())],
    );
    let (errno, truth) = connect_blocking(version.at(0), port.at(version), |_| ());
    assert_eq!(errno, Errno::ECONNREFUSED);
    let record = close_of(&tracer, "outbound", truth.src);
    assert_eq!(record["outcome"], "refused");
    assert_eq!(record["drops"], drops("sent", "NETFILTER_DROP", 1));
    tracer.interrupt().check_lossless();
}

/// The client's data is dropped for a while. Both ends are on this node, and both records count the packets.
fn dropped_data(version: IpVersion) {
    const SEGMENTS: u64 = 3;
    let tracer = start_tracer(&[]);
    let listener = listen(version);
    let pair = pair_with(&listener);
    send(&pair.client, 100);
    recv(&pair.server, 100);
    wait_acknowledged(&pair.client);
    net::set_packet_filter_at("output", &[&drop_to(pair.truth.dst.port())]);
    // A segment for each call.
    pair.client.set_nodelay(true).unwrap();
    (0..SEGMENTS).for_each(|_| send(&pair.client, 100));
    wait_dropped("output", SEGMENTS);
    let count = net::packet_filter_count("output");
    net::set_packet_filter_at("output", &[]);
    recv(&pair.server, 100 * SEGMENTS as usize);
    wait_acknowledged(&pair.client);
    let truth = pair.close_client_first();
    let [client, server] = ["outbound", "inbound"].map(|direction| close_of(&tracer, direction, truth.src));
    let counted = |record: &Value, direction: &str| {
        let drops = &record["drops"][0];
        assert_eq!(
            (&drops["direction"], &drops["reason"]),
            (&json!(direction), &json!("NETFILTER_DROP")),
            "{record}"
        );
        drops["packets"].as_u64().unwrap()
    };
    let (sent, received) = (counted(&client, "sent"), counted(&server, "received"));
    assert_eq!(sent, received);
    // A packet may have been dropped between the last read of the counter and the removal of the rule.
    assert!(
        (count..=count + 1).contains(&sent),
        "{count} dropped, {sent} in {client}"
    );
    tracer.interrupt().check_lossless();
}

/// One connection after another with the same addresses and ports.
fn earlier_user() {
    let tracer = start_tracer(&[]);
    let version = IpVersion::V4;
    let port = ClosedPort::new();
    let to = port.at(version);
    net::set_packet_filter_at("output", &[&drop_to(to.port())]);
    let first = connect_nonblocking(version.at(0), to);
    wait_dropped("output", 1);
    let client = first.truth.src;
    drop(first.socket);
    assert_eq!(
        close_of(&tracer, "outbound", client)["drops"],
        drops("sent", "NETFILTER_DROP", 1)
    );
    let closes = |count: usize| {
        let is_close = |value: &Value| value["event"] == "close" && is_address(&value["src"], client);
        tracer
            .output
            .wait_matching(net::current_netns(), count, is_close)
            .pop()
            .unwrap()
    };
    // Another attempt.
    net::set_packet_filter_at("output", &[&drop_to(to.port())]);
    let second = connect_nonblocking(client, to);
    wait_dropped("output", 1);
    drop(second.socket);
    assert_eq!(closes(2)["drops"], drops("sent", "NETFILTER_DROP", 1));
    // One that is answered.
    net::set_packet_filter_at("output", &[]);
    drop(port);
    let listener = TcpListener::bind(to).unwrap();
    let socket = bound_socket(client);
    socket.connect(&to.into()).unwrap();
    let (server, _) = listener.accept().unwrap();
    reset(socket.into());
    assert_eq!(take_error(&server), Errno::ECONNRESET);
    drop(server);
    let records = {
        let is_last = |value: &Value| {
            value["event"] == "close" && value["established"] == true && is_address(&value["src"], client)
        };
        tracer.output.wait_matching(net::current_netns(), 2, is_last)
    };
    for record in records {
        assert_eq!(record["drops"], json!([]), "{record}");
    }
    tracer.interrupt().check_lossless();
}

/// Two namespaces have the same address, and a client in each has the same port. Each record has the packets of its
/// own.
fn same_tuple_in_two_namespaces() {
    const CLIENT: &str = "10.77.0.1:40000";
    const SERVER: &str = "10.77.0.1:9";
    let tracer = Tracer::json(&["--drops", "--interval", "200ms", "--ip", "10.77.0.1"]);
    let connect = || {
        net::run("ip", &["addr", "add", "10.77.0.1/32", "dev", "lo"]);
        tracer.output.watch(net::current_netns());
        net::set_packet_filter_at("output", &[&drop_to(9)]);
        let attempt = connect_nonblocking(CLIENT.parse().unwrap(), SERVER.parse().unwrap());
        wait_dropped("output", 1);
        (attempt, net::current_netns())
    };
    let (first, netns) = connect();
    let (count, other_count) = net::in_namespace("other", || {
        let (other, _) = connect();
        drop(other.socket);
        let record = close_of(&tracer, "outbound", other.truth.src);
        (
            record["drops"][0]["packets"].as_u64(),
            net::packet_filter_count("output"),
        )
    })
    .unwrap();
    assert_eq!(count, Some(other_count));
    drop(first.socket);
    let record = close_of(&tracer, "outbound", first.truth.src);
    assert_eq!(record["local"]["netns"], netns);
    assert_eq!(
        record["drops"],
        drops("sent", "NETFILTER_DROP", net::packet_filter_count("output"))
    );
    tracer.interrupt().check_lossless();
}

/// What ordinary connections discard is no drop.
fn connections_without_drops() {
    let tracer = start_tracer(&[]);
    let listener = listen(IpVersion::V4);
    for round in 0..60 {
        let pair = pair_with(&listener);
        send(&pair.client, 1000);
        recv(&pair.server, 1000);
        match round % 3 {
            0 => drop(pair.close_client_first()),
            1 => drop(pair.close_server_first()),
            // Closes with unread data.
            _ => {
                send(&pair.client, 1000);
                wait_acknowledged(&pair.client);
                drop(pair.server);
                wait_pending_error(&pair.client);
            }
        }
    }
    let is_close = |value: &Value| value["event"] == "close";
    for record in tracer.output.wait_matching(net::current_netns(), 120, is_close) {
        assert_eq!(record["drops"], json!([]), "{record}");
    }
    tracer.interrupt().check_lossless();
}

/// More connections with dropped packets than the kernel's map holds: the counts of the oldest go, and no record.
fn flood() {
    const ATTEMPTS: usize = 20_000;
    let tracer = start_tracer(&[]);
    let port = ClosedPort::new();
    net::set_packet_filter_at("output", &[&drop_to(port.number())]);
    // Each attempt has its own port, and so its own count.
    for client in (10_000..).take(ATTEMPTS).filter(|client| *client != port.number()) {
        drop(connect_nonblocking(IpVersion::V4.at(client), port.at(IpVersion::V4)));
    }
    let end = tracer.interrupt();
    let totals = end.check_lossless();
    assert!(totals.delivered >= ATTEMPTS as u64 - 1, "{totals:?}");
    let evicted = end.output.summaries().last().unwrap()["drops_evicted"]
        .as_u64()
        .unwrap();
    // The kernel's map has 16,384 counts.
    assert!(evicted >= totals.delivered - 16_384, "{evicted} evicted");
}
