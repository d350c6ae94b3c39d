//! Two network namespaces, the link between them, and the packet filter of each.
//!
//! A receiver's packet filter drops or rejects packets by the code point (DSCP) in their IP header, which a socket sets
//! for the packets that it sends. So a life can change at any moment what happens to its packets without a packet
//! filter rule of its own, and each captured packet shows what happened to it.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use super::capture::Capture;
use crate::support::net;

/// What the receiver's packet filter does with the packets of a code point. The value is the code point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    Pass = 0,
    Drop = 1,
    /// Answers with a RST.
    Reset = 2,
    /// Answers with an ICMP error, like the other variants below.
    PortUnreachable = 3,
    HostUnreachable = 4,
    NetUnreachable = 5,
    Prohibited = 6,
}

/// The nftables statements of each [`Verdict`], for IPv4 and for IPv6.
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

/// A port of the far namespace without a listener.
const CLOSED_PORT: u16 = 9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The scenario's own namespace, where packets are captured.
    Near,
    /// The other namespace, at the end of the link.
    Far,
}

/// Both namespaces, and the capture.
pub struct World {
    namespaces: [File; 2],
    netns_inodes: [u64; 2],
    addresses: [[IpAddr; 2]; 2],
    /// The packets on the link and on the loopback device of the near namespace.
    pub capture: Capture,
    /// Ends the far namespace's thread when it is dropped.
    _far_thread: mpsc::Sender<()>,
}

/// Returns the scenario's IPv4 address number `number` outside of the loopback network.
fn ipv4_address(number: u8) -> Ipv4Addr {
    let [_, a, b, c] = net::loopback_v4(number).octets();
    Ipv4Addr::new(10, a, b, c)
}

/// Returns the address that a side has in the calling thread's scenario.
fn address_of(side: Side, is_ipv6: bool) -> IpAddr {
    let number = if side == Side::Near { 1 } else { 2 };
    if is_ipv6 {
        net::scenario_v6(number).into()
    } else {
        ipv4_address(number as u8).into()
    }
}

/// Returns the networks of all lives and of the scenario's markers, as `--ip` takes them.
pub fn life_networks() -> String {
    format!("{}/28,{}", ipv4_address(0), net::scenario_networks().join(","))
}

/// Sets the packet filter and the sysctls of the calling thread's namespace.
fn configure_namespace() {
    let mut rules = Vec::new();
    for (verdict, ipv4, ipv6) in RULES {
        rules.push(format!("ip dscp {} {ipv4}", verdict as u8));
        rules.push(format!("ip6 dscp {} {ipv6}", verdict as u8));
    }
    net::set_packet_filter(&rules.iter().map(String::as_str).collect::<Vec<_>>());
    // Fast Open for clients and servers, without cookies.
    net::set_sysctl("net.ipv4.tcp_fastopen", "519");
    // The lives use fixed ports below these.
    net::set_sysctl("net.ipv4.ip_local_port_range", "40000 65000");
    // An end in SYN_RECV times out within seconds.
    net::set_sysctl("net.ipv4.tcp_synack_retries", "1");
    // No rate limit on ICMP errors, neither for each peer nor for all.
    net::set_sysctl("net.ipv4.icmp_ratelimit", "0");
    net::set_sysctl("net.ipv4.icmp_ratemask", "0");
    net::set_sysctl("net.ipv6.icmp.ratelimit", "0");
    net::set_sysctl("net.ipv6.icmp.ratemask", "255");
}

/// Sets an IPv4 and an IPv6 address of a network device, and sets the device up.
fn configure_link(device: &str, [ipv4, ipv6]: [IpAddr; 2]) {
    net::run("ip", &["addr", "add", &format!("{ipv4}/28"), "dev", device]);
    net::run("ip", &["addr", "add", &format!("{ipv6}/64"), "dev", device, "nodad"]);
    net::run("ip", &["link", "set", device, "up"]);
}

impl World {
    /// Creates the far namespace. The calling thread's namespace is the near one.
    pub fn new() -> Self {
        let netns_file = || File::open("/proc/thread-self/ns/net").expect("the namespace");
        let (near, near_inode) = (netns_file(), net::current_netns());
        configure_namespace();
        let addresses = [Side::Near, Side::Far].map(|side| [false, true].map(|is_ipv6| address_of(side, is_ipv6)));
        let [near_addresses, far_addresses] = addresses;
        let (ready, far) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            net::run("ip", &["link", "set", "lo", "up"]);
            net::run("ip", &["link", "add", "far", "type", "veth", "peer", "name", "near"]);
            configure_link("far", far_addresses);
            configure_namespace();
            ready
                .send((netns_file(), net::current_netns()))
                .expect("the scenario waits");
            _ = stopped.recv();
        });
        let (far, far_inode) = far.recv().expect("the far namespace");
        let world = Self {
            namespaces: [near, far],
            netns_inodes: [near_inode, far_inode],
            addresses,
            capture: Capture::open(),
            _far_thread: stop,
        };
        // The path names this thread, because it does not share the process's descriptor table.
        let (process, thread) = (std::process::id(), nix::unistd::gettid());
        let near = format!("/proc/{process}/task/{thread}/fd/{}", world.namespaces[0].as_raw_fd());
        world.run_in(Side::Far, || net::run("ip", &["link", "set", "near", "netns", &near]));
        configure_link("near", near_addresses);
        // The kernel holds the first packet to a neighbor until it knows the neighbor's hardware address, so the packet
        // would be captured late.
        for is_ipv6 in [false, true] {
            let closed = SocketAddr::new(world.ip(Side::Far, is_ipv6), CLOSED_PORT);
            TcpStream::connect(closed).expect_err("the port is closed");
        }
        world
    }

    /// Returns the address of a side.
    pub fn ip(&self, side: Side, is_ipv6: bool) -> IpAddr {
        self.addresses[side as usize][usize::from(is_ipv6)]
    }

    /// Returns the inode of a side's namespace.
    pub fn netns(&self, side: Side) -> u64 {
        self.netns_inodes[side as usize]
    }

    /// Runs `body` with the calling thread in a side's namespace. Before and after, the thread is in the near
    /// namespace.
    pub fn run_in<T>(&self, side: Side, body: impl FnOnce() -> T) -> T {
        if side == Side::Near {
            return body();
        }
        setns(&self.namespaces[1], CloneFlags::CLONE_NEWNET).expect("setns");
        let value = body();
        setns(&self.namespaces[0], CloneFlags::CLONE_NEWNET).expect("setns");
        value
    }
}
