//! The kernel filter against the rule that defines it: two tracers see the same connections, one without a filter and
//! one with thousands of random filters.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::str::FromStr;

use kmesh_trace::filter::{Ends, Filter, KernelFilter, Network, PortRange, Term, Terms};
use kmesh_trace::kernel::loader::{KernelTypes, Options, Programs, start};
use kmesh_trace::record::{ConnId, Direction, Event, Family, Record};
use kmesh_trace::track::Tracker;
use kmesh_trace::track::clock::Clock;
use kmesh_trace::track::decode::decode;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, Counters, Prefix,
};
use nix::libc;
use nix::sys::socket::{Backlog, listen as start_listening};
use socket2::SockAddr;

use crate::support::random::Random;
use crate::support::sock::{
    bound_socket, disconnect, local_address, recv, reset, send, set_tcp_option, wait_closed, wait_until,
};
use crate::support::{is_small_vm, net};

/// The connections of a round: the client's address and port, the server's address and port, and whether a server
/// listens. A letter is one of [`Addresses`], and IPv4-mapped after a colon.
const CONNECTIONS: [(&str, u16, &str, u16, bool); 9] = [
    ("a", 2000, "b", 80, true),
    ("a", 0, "a", 443, true),
    ("d", 0, "d", 80, true),
    ("x", 2001, "x", 80, true),
    ("y", 0, "x", 443, true),
    (":a", 0, ":c", 80, true),
    ("a", 0, "a", 81, false),
    ("y", 2002, "y", 81, false),
    (":d", 0, ":a", 81, false),
];
/// The SYN carries data, and neither end needs a cookie.
const FAST_OPEN: &str = "519";
/// The client requests a cookie, and gets none.
const FAST_OPEN_OFF: &str = "1";
/// The ports that listen, for both IP versions.
const LISTENERS: [u16; 2] = [80, 443];
const PORTS: [&str; 10] = [
    "80",
    "81",
    "443",
    "2000",
    "2001-2002",
    "1-1023",
    "80-443",
    "1024-65535",
    "32768-60999",
    "0-65535",
];

/// The addresses of the connections, which no other program of this machine has.
struct Addresses {
    a: Ipv4Addr,
    b: Ipv4Addr,
    c: Ipv4Addr,
    /// In the upper half of the network.
    d: Ipv4Addr,
    x: Ipv6Addr,
    /// In another network than `x`.
    y: Ipv6Addr,
    /// The two networks that contain exactly these addresses.
    whole: [String; 2],
    /// Networks that contain some of these addresses and no others.
    own: Vec<String>,
    /// The networks of `own`, and networks that contain other addresses, too.
    all: Vec<String>,
}

impl Addresses {
    /// Configures the addresses in the calling thread's namespace.
    fn new() -> Self {
        let [x, y] = [1, 9].map(net::scenario_v6);
        [x, y].into_iter().for_each(net::add_to_loopback);
        let [a, b, c, d] = [1, 2, 3, 9].map(net::loopback_v4);
        let [lower, upper] = [0, 8].map(net::loopback_v4);
        let own = [
            a.to_string(),
            b.to_string(),
            format!("{b}/31"),
            d.to_string(),
            format!("{lower}/29"),
            format!("{upper}/29"),
            x.to_string(),
            y.to_string(),
            format!("{}/125", net::scenario_v6(0)),
        ];
        let own: Vec<String> = own.into_iter().chain(net::scenario_networks()).collect();
        let others = [
            "127.0.0.0/8",
            "126.0.0.0/7",
            "0.0.0.0/0",
            "0.0.0.0/1",
            "192.0.2.1",
            "::/0",
            "::/1",
            "fd00::/8",
            "2001:db8::/32",
        ];
        let others = others.map(str::to_owned).into_iter().chain([format!("::ffff:{a}")]);
        Self {
            whole: net::scenario_networks(),
            all: own.iter().cloned().chain(others).collect(),
            own,
            a,
            b,
            c,
            d,
            x,
            y,
        }
    }

    /// Returns the address with this name in [`CONNECTIONS`].
    fn named(&self, name: &str) -> IpAddr {
        let (is_mapped, name) = name.strip_prefix(':').map_or((false, name), |name| (true, name));
        let v4 = match name {
            "a" => self.a,
            "b" => self.b,
            "c" => self.c,
            "d" => self.d,
            "x" => return self.x.into(),
            "y" => return self.y.into(),
            _ => unreachable!("{name}"),
        };
        if is_mapped {
            v4.to_ipv6_mapped().into()
        } else {
            v4.into()
        }
    }
}

/// A tracer that runs in this process.
struct InProcessTracer {
    programs: Programs,
    tracker: Tracker,
    netns: u32,
}

impl InProcessTracer {
    fn start(types: &KernelTypes, filter: KernelFilter) -> Self {
        let KernelFilter {
            checks,
            rules,
            networks,
        } = filter;
        let options = Options {
            // Large enough for other programs' connections during a round.
            ring_bytes: 16 << 20,
            opens: false,
            checks,
            rules,
            networks,
            drops: false,
            turns: false,
            rejects: false,
            listeners: false,
        };
        let (programs, ..) = start(types, &options).expect("a tracer");
        let tracker = Tracker::new(programs.began_ns, "node".into());
        let netns = u32::try_from(net::current_netns()).expect("a small number");
        Self {
            programs,
            tracker,
            netns,
        }
    }

    /// Returns the closes of the calling thread's namespace since the last call.
    fn closes(&mut self) -> Vec<Record> {
        let Self {
            programs,
            tracker,
            netns,
        } = self;
        programs.drain(|bytes| {
            tracker.take(decode(bytes).expect("a record"));
            true
        });
        let clock = Clock::new(0);
        let mut records = Vec::new();
        while let Some((_, record)) = tracker.next(u64::MAX, &clock) {
            if record.event == Event::Close && record.netns == *netns {
                records.push(record);
            }
        }
        records
    }

    /// Returns the counters once they agree: a close is added to two of them, but not atomically.
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        wait_until("each close is counted in exactly one way", || {
            counters = self.programs.counters().expect("the counters");
            let Counters {
                closes,
                submitted,
                lost_ring,
                lost_storage,
                lost_skipped,
                filtered,
                ..
            } = counters;
            closes == submitted + lost_ring + lost_storage + lost_skipped + filtered
        });
        counters
    }

    /// Returns how many closes this tracer has counted less than `other`, which started before.
    fn closes_behind(&self, other: &Self) -> u64 {
        let mut behind = 0;
        // Other programs' connections may close at any time.
        wait_until("no connection ends while the counters are read", || {
            let before = other.counters().closes;
            behind = before - self.counters().closes;
            before == other.counters().closes
        });
        behind
    }
}

/// Returns the change of a tracer's counters: of submitted closes and of open connections. Other programs' connections
/// change neither, since the filter rejects their addresses.
fn counter_changes(before: &Counters, after: &Counters) -> (u64, i64) {
    (after.submitted - before.submitted, after.open - before.open)
}

/// Each round has another random filter, and makes connections of each kind that a RST ends. The kernel filter passes
/// exactly the connections that the rule passes, and counts the others.
pub fn kernel_filter_equals_the_rule() {
    let types = KernelTypes::read().expect("the kernel's types");
    let addresses = Addresses::new();
    let mut all = InProcessTracer::start(&types, KernelFilter::of(&Filter::default()));
    let mut filtering = InProcessTracer::start(&types, with_all_checks(&addresses.whole));
    let behind = filtering.closes_behind(&all);
    let mut random = Random::new(1);
    let (mut passed, mut rejected) = (0, 0);
    for round in 0..if is_small_vm() { 150 } else { 4000 } {
        let mut filter = random_filter(&mut random, &addresses);
        // The filter passes no other program's connections.
        filter.networks.bare.any = random_own_networks(&mut random, &addresses);
        let kernel_filter = KernelFilter::of(&filter);
        filtering
            .programs
            .set_filter(&kernel_filter.rules, &kernel_filter.networks)
            .expect("set the filter");
        drop(all.closes());
        drop(filtering.closes());
        let before = filtering.counters();
        connect_and_reset(&addresses, round % 2 == 0);
        let truth = all.closes();
        let reported: HashSet<ConnId> = filtering.closes().iter().map(|record| record.id).collect();
        let after = filtering.counters();
        assert_eq!(
            truth.len(),
            18,
            "seven connections with two ends, one with itself, three attempts: {truth:#?}"
        );
        for record in &truth {
            assert_eq!(
                reported.contains(&record.id),
                filter.passes(record),
                "round {round}: {filter:?}\nof {record:?}"
            );
        }
        let pass_count = truth.iter().filter(|record| filter.passes(record)).count();
        let reject_count = truth.len() - pass_count;
        assert!(
            after.filtered - before.filtered >= reject_count as u64,
            "round {round}: {filter:?}"
        );
        assert_eq!(
            counter_changes(&before, &after),
            (pass_count as u64, 0),
            "round {round}: {filter:?}"
        );
        passed += pass_count;
        rejected += reject_count;
    }
    println!("{passed} passed, {rejected} rejected");
    assert!(passed > 0 && rejected > 0, "the filters must differ");
    wait_until("both tracers have counted each close once", || {
        filtering.closes_behind(&all) == behind
    });
}

/// A socket that has listened looks like an accepted one when it connects, and its local port is zero at that time. A
/// port filter must decide the same at the start and at the close of its connection.
pub fn listener_that_connects_is_filtered_by_peer_port() {
    let types = KernelTypes::read().expect("the kernel's types");
    let server_address = net::loopback_v4(0);
    let to = SocketAddr::from((server_address, 80));
    for (port, expected) in [("81", 0), ("80", 6)] {
        let mut filter = Filter::default();
        filter.networks.to.any = vec![server_address.to_string().parse().expect("an address")];
        filter.ports.bare.any = vec![port.parse().expect("a port")];
        let mut tracer = InProcessTracer::start(&types, KernelFilter::of(&filter));
        let server = listener(to);
        let before = tracer.counters();
        let socket = bound_socket(SocketAddr::from((server_address, 0)));
        start_listening(&socket, Backlog::new(16).unwrap()).expect("listen");
        // The second connect() follows a connection, the third one another listen().
        for listens_again in [false, false, true] {
            disconnect(&socket);
            if listens_again {
                start_listening(&socket, Backlog::new(16).unwrap()).expect("listen");
                disconnect(&socket);
            }
            socket.connect(&SockAddr::from(to)).expect("connect");
            let (accepted, _) = server.accept().expect("accept");
            reset(accepted);
            let mut byte = [std::mem::MaybeUninit::uninit()];
            assert!(socket.recv(&mut byte).is_err(), "reset");
        }
        let after = tracer.counters();
        let closes = tracer.closes();
        assert_eq!(closes.len(), expected, "--port {port}: {closes:#?}");
        assert_eq!(counter_changes(&before, &after), (expected as u64, 0), "--port {port}");
        assert!(after.filtered - before.filtered >= 6 - expected as u64, "--port {port}");
        drop(socket);
        let closed = tracer.counters();
        assert_eq!(counter_changes(&after, &closed), (0, 0), "--port {port}: reported once");
    }
}

/// Returns a kernel filter with all checks, which passes only these networks, and has capacity for the networks of
/// later filters.
fn with_all_checks(networks: &[String]) -> KernelFilter {
    /// More than any filter of the test has.
    const MAX_NETWORKS: u32 = 64;
    let mut filter = Filter::default();
    filter.networks.bare.any = networks.iter().map(|network| network.parse().unwrap()).collect();
    let mut kernel_filter = KernelFilter::of(&filter);
    kernel_filter.checks = CHECK_FAMILY | CHECK_DIRECTION | CHECK_SERVER_PORT | CHECK_CLIENT_PORT | CHECK_ADDRESS;
    kernel_filter.networks.extend((0..MAX_NETWORKS).map(|number| {
        let mut address = [0xff; 16];
        address[12..].copy_from_slice(&number.to_be_bytes());
        (Prefix { bits: 128, address }, 0)
    }));
    kernel_filter
}

/// Makes all connections of a round, and resets them at the client or at the server.
fn connect_and_reset(addresses: &Addresses, client_resets: bool) {
    // Whether the kernel side stores a listener depends on the filter at the time of listen().
    let listeners = LISTENERS.map(|port| listener((Ipv6Addr::UNSPECIFIED, port).into()));
    let fast_open = if client_resets { FAST_OPEN } else { FAST_OPEN_OFF };
    net::set_sysctl("net.ipv4.tcp_fastopen", fast_open);
    connect_to_itself(addresses.b);
    for listener in &listeners {
        set_tcp_option(listener, libc::TCP_FASTOPEN, 16);
    }
    let fast = bound_socket((addresses.b, 0).into());
    let to = SockAddr::from(SocketAddr::from((addresses.a, LISTENERS[0])));
    assert_eq!(
        fast.send_to_with_flags(&[1; 10], &to, libc::MSG_FASTOPEN)
            .expect("connect"),
        10
    );
    let (server, _) = listeners[0].accept().expect("accept");
    recv(&server, 10);
    reset(fast.into());
    wait_closed(&server);
    for (from, from_port, to, to_port, is_listening) in CONNECTIONS {
        let client = bound_socket((addresses.named(from), from_port).into());
        let connected = client.connect(&SockAddr::from(SocketAddr::from((addresses.named(to), to_port))));
        assert_eq!(connected.is_ok(), is_listening, "{from} to {to}: {connected:?}");
        if !is_listening {
            continue;
        }
        let client = TcpStream::from(client);
        let listener = LISTENERS.iter().position(|port| *port == to_port).unwrap();
        let (server, _) = listeners[listener].accept().expect("accept");
        send(&client, 10);
        recv(&server, 10);
        let (first, second) = if client_resets {
            (client, server)
        } else {
            (server, client)
        };
        reset(first);
        wait_closed(&second);
    }
}

/// Connects a socket to its own address.
fn connect_to_itself(at: Ipv4Addr) {
    let socket = bound_socket((at, 0).into());
    socket
        .connect(&SockAddr::from(local_address(&socket)))
        .expect("connect");
    reset(socket.into());
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket = bound_socket(address);
    start_listening(&socket, Backlog::new(16).unwrap()).expect("listen");
    socket.into()
}

fn random_term<T>(random: &mut Random, value: T) -> Term<T> {
    Term {
        negated: random.one_in(3),
        value,
    }
}

/// Up to three random values, often none.
fn random_terms<T: FromStr<Err = String>>(random: &mut Random, values: &[impl AsRef<str>]) -> Terms<T> {
    let count = random.below(5).saturating_sub(1);
    let term = |_| {
        let value = random.pick(values).as_ref().parse().unwrap();
        random_term(random, value)
    };
    (0..count).map(term).collect()
}

/// Random values for few of the three flags: with all flags, a filter would pass little.
fn random_ends<T: FromStr<Err = String>>(random: &mut Random, values: &[impl AsRef<str>]) -> Ends<T> {
    let mut terms = |odds| {
        if random.one_in(odds) {
            random_terms(random, values)
        } else {
            Terms::default()
        }
    };
    Ends {
        bare: terms(2),
        from: terms(3),
        to: terms(3),
    }
}

/// Some networks of the test's own addresses, or the two that contain all of them.
fn random_own_networks(random: &mut Random, addresses: &Addresses) -> Vec<Network> {
    let some: Vec<&String> = (0..random.below(4)).map(|_| random.pick(&addresses.own)).collect();
    let chosen = if some.is_empty() {
        addresses.whole.iter().collect()
    } else {
        some
    };
    chosen.into_iter().map(|network| network.parse().unwrap()).collect()
}

fn random_filter(random: &mut Random, addresses: &Addresses) -> Filter {
    let family = *random.pick(&[Some(Family::Ipv4), Some(Family::Ipv6), None, None, None, None]);
    let (inbound, outbound) = (Some(Direction::Inbound), Some(Direction::Outbound));
    let direction = *random.pick(&[inbound, outbound, None, None, None, None, None, None]);
    let (ports, networks) = match random.below(4) {
        0 => (random_ends::<PortRange>(random, &PORTS), Ends::default()),
        1 => (
            random_ends(random, &PORTS),
            random_ends::<Network>(random, &addresses.all),
        ),
        _ => (Ends::default(), random_ends(random, &addresses.all)),
    };
    let direction = direction.map(|direction| random_term(random, direction));
    Filter {
        ports,
        networks,
        family,
        direction: direction.into_iter().collect(),
        ..Filter::default()
    }
}
