//! Two network namespaces with a wire between them, and the firewall of each.
//!
//! Each end of the wire stops packets by a code point in their header (DSCP), which a socket sets for what it sends. So a life
//! changes what the network does to it at any moment, without a rule of its own, and a captured packet shows what became of it.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::capture::Capture;
use crate::support::net;

/// What the receiver's firewall does with packets of a code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// Lets them pass.
    Pass = 0,
    /// Drops them.
    Drop = 1,
    /// Answers with a RST.
    Reset = 2,
    /// Answers: port unreachable.
    PortUnreachable = 3,
    /// Answers: host unreachable.
    HostUnreachable = 4,
    /// Answers: network unreachable.
    NetUnreachable = 5,
    /// Answers: prohibited.
    Prohibited = 6,
}

/// The rules behind [`Verdict`], for IPv4 and for IPv6.
const RULES: [(Verdict, &str, &str); 6] = [
    (Verdict::Drop, "drop", "drop"),
    (
        Verdict::Reset,
        "meta l4proto tcp reject with tcp reset",
        "meta l4proto tcp reject with tcp reset",
    ),
    (
        Verdict::PortUnreachable,
        "reject with icmp type port-unreachable",
        "reject with icmpv6 type port-unreachable",
    ),
    (
        Verdict::HostUnreachable,
        "reject with icmp type host-unreachable",
        "reject with icmpv6 type addr-unreachable",
    ),
    (
        Verdict::NetUnreachable,
        "reject with icmp type net-unreachable",
        "reject with icmpv6 type no-route",
    ),
    (
        Verdict::Prohibited,
        "reject with icmp type admin-prohibited",
        "reject with icmpv6 type admin-prohibited",
    ),
];

/// Nobody listens on this port of the far namespace.
const CLOSED_PORT: u16 = 9;

/// One of the two namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The scenario's own namespace, where packets are captured.
    Near,
    /// The other one.
    Far,
}

/// Both namespaces.
pub struct World {
    spaces: [File; 2],
    inodes: [u64; 2],
    addresses: [[IpAddr; 2]; 2],
    /// The packets of the wire and of the near loopback.
    pub capture: Capture,
    _far: mpsc::Sender<()>,
}

/// The scenario's IPv4 address of this number, of no loopback network.
fn of_ipv4(number: u8) -> Ipv4Addr {
    let [_, a, b, c] = net::loopback_v4(number).octets();
    Ipv4Addr::new(10, a, b, c)
}

/// The address of a side, by the calling thread's scenario.
fn claimed(side: Side, of_ipv6: bool) -> IpAddr {
    let number = if side == Side::Near { 1 } else { 2 };
    if of_ipv6 {
        net::scenario_v6(number).into()
    } else {
        of_ipv4(number as u8).into()
    }
}

/// The networks of all lives and of the scenario's markers, for `--ip`.
pub fn networks() -> String {
    format!("{}/28,{}", of_ipv4(0), net::scenario_networks().join(","))
}

fn shape() {
    let mut rules = Vec::new();
    for (verdict, four, six) in RULES {
        rules.push(format!("ip dscp {} {four}", verdict as u8));
        rules.push(format!("ip6 dscp {} {six}", verdict as u8));
    }
    net::set_packet_filter(&rules.iter().map(String::as_str).collect::<Vec<_>>());
    // Fast Open for clients and servers, without cookies.
    net::set_sysctl("net.ipv4.tcp_fastopen", "519");
    // A life has ports of its own below these.
    net::set_sysctl("net.ipv4.ip_local_port_range", "40000 65000");
    // An end that dies in SYN_RECV does so within seconds.
    net::set_sysctl("net.ipv4.tcp_synack_retries", "1");
    // No limit on ICMP errors, neither for one peer nor for all.
    net::set_sysctl("net.ipv4.icmp_ratelimit", "0");
    net::set_sysctl("net.ipv4.icmp_ratemask", "0");
    net::set_sysctl("net.ipv6.icmp.ratelimit", "0");
    net::set_sysctl("net.ipv6.icmp.ratemask", "255");
}

impl World {
    /// Makes the calling thread's namespace the near one.
    pub fn new() -> Self {
        let space = || File::open("/proc/thread-self/ns/net").expect("the namespace");
        let (near, near_inode) = (space(), net::current_netns());
        shape();
        let (made, far) = mpsc::channel();
        let (life, over) = mpsc::channel::<()>();
        let [address, address_v6] = [claimed(Side::Far, false), claimed(Side::Far, true)];
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            net::run("ip", &["link", "set", "lo", "up"]);
            net::run("ip", &["link", "add", "far", "type", "veth", "peer", "name", "near"]);
            net::run("ip", &["addr", "add", &format!("{address}/28"), "dev", "far"]);
            net::run(
                "ip",
                &["addr", "add", &format!("{address_v6}/64"), "dev", "far", "nodad"],
            );
            shape();
            made.send((space(), net::current_netns())).expect("the scenario waits");
            _ = over.recv();
        });
        let (far, far_inode) = far.recv().expect("the far namespace");
        let world = Self {
            spaces: [near, far],
            inodes: [near_inode, far_inode],
            addresses: [Side::Near, Side::Far].map(|side| [claimed(side, false), claimed(side, true)]),
            capture: Capture::open(),
            _far: life,
        };
        // Of this thread: it has a table of descriptors of its own.
        let (process, thread) = (std::process::id(), nix::unistd::gettid());
        let near = format!("/proc/{process}/task/{thread}/fd/{}", world.spaces[0].as_raw_fd());
        world.within(Side::Far, || {
            net::run("ip", &["link", "set", "near", "netns", &near]);
            net::run("ip", &["link", "set", "far", "up"]);
        });
        let [address, address_v6] = [claimed(Side::Near, false), claimed(Side::Near, true)];
        net::run("ip", &["addr", "add", &format!("{address}/28"), "dev", "near"]);
        net::run(
            "ip",
            &["addr", "add", &format!("{address_v6}/64"), "dev", "near", "nodad"],
        );
        net::run("ip", &["link", "set", "near", "up"]);
        // The first packet to a neighbor waits for the neighbor's hardware address, so it would be captured late.
        for of_ipv6 in [false, true] {
            let closed = SocketAddr::new(world.ip(Side::Far, of_ipv6), CLOSED_PORT);
            TcpStream::connect(closed).expect_err("nobody listens there");
        }
        world
    }

    /// The address of a side.
    pub fn ip(&self, side: Side, of_ipv6: bool) -> IpAddr {
        self.addresses[side as usize][usize::from(of_ipv6)]
    }

    /// The namespace's number.
    pub fn inode(&self, side: Side) -> u64 {
        self.inodes[side as usize]
    }

    /// Runs `body` with the calling thread in that namespace. The thread is in the near one before and after.
    pub fn within<T>(&self, side: Side, body: impl FnOnce() -> T) -> T {
        if side == Side::Near {
            return body();
        }
        setns(&self.spaces[1], CloneFlags::CLONE_NEWNET).expect("setns");
        let value = body();
        setns(&self.spaces[0], CloneFlags::CLONE_NEWNET).expect("setns");
        value
    }
}
