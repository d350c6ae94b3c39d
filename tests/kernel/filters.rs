//! The kernel half of the filters against the rule that defines them: the same connections, seen by a tracer that sorts
//! nothing out and by one that does, for thousands of random filters.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::SystemTime;

use kmesh_trace::filter::{Ends, Filter, KernelFilter, Network, PortRange, Term, Terms};
use kmesh_trace::kernel::loader::{Kernel, Options, Types, start};
use kmesh_trace::record::{ConnId, Direction, Event, Family, Record};
use kmesh_trace::track::Tracker;
use kmesh_trace::track::clock::Clock;
use kmesh_trace::track::decode::decode;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, Counters, Prefix,
};
use nix::libc;
use nix::sys::socket::{Backlog, listen as start_listening};
use serde_json::Value;
use socket2::{Protocol, SockAddr, Socket};

use crate::Table;
use crate::support::expect::Scene;
use crate::support::probe::Need;
use crate::support::sock::{
    Span, Truth, address, bound, dissolve, give, reset, set_tcp_option, stream_socket, take, timed, wait_closed,
    wait_until,
};
use crate::support::tracer::Tracer;
use crate::support::{net, small};

/// The trials.
pub fn table() -> Table {
    Table::new("filters")
        .own("kernel_half_as_the_rule", &[Need::Alone], || {
            apart("kernel_half_as_the_rule")
        })
        .own("a_listener_that_connects", &[Need::Alone], || {
            apart("a_listener_that_connects")
        })
        .own("both_ends_connect", &[Need::Nft], both_ends_connect)
        .own("transparent_listener", &[Need::Tproxy], transparent_listener)
}

/// What makes this program the one that runs the scenario of the next argument.
pub const ARGUMENT: &str = "__filters";

/// Runs a scenario in a process of its own: to load the programs, a process takes all descriptors from itself for a moment. No other
/// scenario runs at the same time, since a socket that connects after it has listened counts as open for each tracer, whatever its
/// filter.
fn apart(scenario: &str) {
    let output = Command::new("/proc/self/exe")
        .args([ARGUMENT, scenario])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

/// The process of [`apart`].
pub fn main(scenario: &str) {
    net::claim_addresses(0);
    match scenario {
        "kernel_half_as_the_rule" => kernel_half_as_the_rule(),
        "a_listener_that_connects" => a_listener_that_connects(),
        _ => unreachable!("no scenario {scenario}"),
    }
}

/// More than any filter here has.
const NETWORKS: u32 = 64;

/// A connection of each round: where it comes from, where it goes, and whether somebody listens there. A letter is one of
/// [`Addresses`], and IPv4-mapped behind a colon.
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
/// Data goes with the SYN, and needs no cookie at either end.
const FAST_OPEN: &str = "519";
/// The client asks for a cookie, and gets none.
const FAST_OPEN_OFF: &str = "1";
/// Each takes both families.
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

/// The addresses of the rounds, which nobody else on this machine has.
struct Addresses {
    a: Ipv4Addr,
    b: Ipv4Addr,
    c: Ipv4Addr,
    /// In the upper half of the network.
    d: Ipv4Addr,
    x: Ipv6Addr,
    /// Of another network.
    y: Ipv6Addr,
    /// The two networks that hold all of them and nothing else.
    whole: [String; 2],
    /// Networks that hold some of them and nothing else.
    own: Vec<String>,
    /// These, and networks that hold others' addresses or nobody's.
    all: Vec<String>,
}

impl Addresses {
    /// Of the calling thread's namespace.
    fn new() -> Self {
        let [x, y] = [1, 9].map(net::address_v6);
        [x, y].into_iter().for_each(net::add_to_loopback);
        let [a, b, c, d] = [1, 2, 3, 9].map(net::address);
        let [lower, upper] = [0, 8].map(net::address);
        let own = [
            a.to_string(),
            b.to_string(),
            format!("{b}/31"),
            d.to_string(),
            format!("{lower}/29"),
            format!("{upper}/29"),
            x.to_string(),
            y.to_string(),
            format!("{}/125", net::address_v6(0)),
        ];
        let own: Vec<String> = own.into_iter().chain(net::networks()).collect();
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
            whole: net::networks(),
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

    /// By a name of [`CONNECTIONS`].
    fn named(&self, name: &str) -> IpAddr {
        let (mapped, name) = name.strip_prefix(':').map_or((false, name), |name| (true, name));
        let of_4 = match name {
            "a" => self.a,
            "b" => self.b,
            "c" => self.c,
            "d" => self.d,
            "x" => return self.x.into(),
            "y" => return self.y.into(),
            _ => unreachable!("{name}"),
        };
        if mapped {
            of_4.to_ipv6_mapped().into()
        } else {
            of_4.into()
        }
    }
}

/// What one tracer saw.
struct Seen {
    kernel: Kernel,
    tracker: Tracker,
    netns: u32,
}

impl Seen {
    fn start(types: &Types, half: KernelFilter) -> Self {
        let KernelFilter {
            checks,
            prefilter,
            networks,
        } = half;
        let options = Options {
            // Other programs' connections must not fill it within a round.
            ring_bytes: 16 << 20,
            opens: false,
            checks,
            prefilter,
            networks,
        };
        let (kernel, _walker) = start(types, &options).expect("a tracer");
        let tracker = Tracker::new(kernel.began_ns, "node".into());
        let netns = u32::try_from(net::inode()).expect("a small number");
        Self { kernel, tracker, netns }
    }

    /// The ends of the calling thread's namespace that it has told of since the last time.
    fn closes(&mut self) -> Vec<Record> {
        let Self { kernel, tracker, netns } = self;
        kernel.drain(|bytes| {
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

    /// The counters, of which each end adds to two, but not at one instant: once they agree.
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        wait_until("each end is counted in one way", || {
            counters = self.kernel.counters().expect("the counters");
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

    /// How many ends it has counted less than another tracer, of which some ended before it began.
    fn behind(&self, other: &Self) -> u64 {
        let mut behind = 0;
        // Other programs' connections end at any time.
        wait_until("no connection ends while the counters are read", || {
            let before = other.counters().closes;
            behind = before - self.counters().closes;
            before == other.counters().closes
        });
        behind
    }
}

/// What a tracer counted meanwhile of connections that its filter does not reject by their addresses: ends told, and ends less
/// beginnings. Other programs' connections, which it does reject, change neither.
fn own_counts(before: &Counters, after: &Counters) -> (u64, i64) {
    (after.submitted - before.submitted, after.open - before.open)
}

/// Each round another filter, then connections of each kind, all ended by a RST. What the filter passes must be told, and nothing
/// else; the rest must be counted.
fn kernel_half_as_the_rule() {
    let types = Types::read().expect("the kernel's types");
    let addresses = Addresses::new();
    let mut all = Seen::start(&types, KernelFilter::of(&Filter::default()));
    let mut some = Seen::start(&types, everything_checked(&addresses.whole));
    let behind = some.behind(&all);
    let mut random = Random(1);
    let (mut passed, mut sorted_out) = (0, 0);
    for round in 0..if small() { 150 } else { 4000 } {
        let mut filter = random.filter(&addresses);
        // So it passes no other program's connection.
        filter.networks.bare.any = random.own(&addresses);
        let half = KernelFilter::of(&filter);
        some.kernel
            .set_filter(&half.prefilter, &half.networks)
            .expect("set the filter");
        drop(all.closes());
        drop(some.closes());
        let before = some.counters();
        connect_and_reset(&addresses, round % 2 == 0);
        let truth = all.closes();
        let told: HashSet<ConnId> = some.closes().iter().map(|record| record.id).collect();
        let after = some.counters();
        assert_eq!(
            truth.len(),
            18,
            "seven connections with two ends, one with itself, three attempts: {truth:#?}"
        );
        for record in &truth {
            assert_eq!(
                told.contains(&record.id),
                filter.passes(record),
                "round {round}: {filter:?}\nof {record:?}"
            );
        }
        let pass = truth.iter().filter(|record| filter.passes(record)).count();
        let out = truth.len() - pass;
        assert!(
            after.filtered - before.filtered >= out as u64,
            "round {round}: {filter:?}"
        );
        assert_eq!(
            own_counts(&before, &after),
            (pass as u64, 0),
            "round {round}: {filter:?}"
        );
        passed += pass;
        sorted_out += out;
    }
    println!("{passed} passed, {sorted_out} sorted out");
    assert!(passed > 0 && sorted_out > 0, "the filters must differ");
    wait_until("both have counted each end, once", || some.behind(&all) == behind);
}

/// A filter that passes only connections to this address.
fn only_to(server: Ipv4Addr) -> Filter {
    let mut filter = Filter::default();
    filter.networks.to.any = vec![server.to_string().parse().expect("an address")];
    filter
}

/// A socket that has listened looks like one that was accepted when it connects, and has no port of its own while it begins to.
/// What a port filter makes of it must be the same at its beginning and its end.
fn a_listener_that_connects() {
    let types = Types::read().expect("the kernel's types");
    let server_address = net::address(0);
    let to = SocketAddr::from((server_address, 80));
    for (port, told) in [("81", 0), ("80", 6)] {
        let mut filter = only_to(server_address);
        filter.ports.bare.any = vec![port.parse().expect("a port")];
        let mut seen = Seen::start(&types, KernelFilter::of(&filter));
        let server = listener(to);
        let before = seen.counters();
        let turned = bound(SocketAddr::from((server_address, 0)));
        start_listening(&turned, Backlog::new(16).unwrap()).expect("listen");
        // The second follows an association that had ended; the third one that had listened once more.
        for again in [false, false, true] {
            dissolve(&turned);
            if again {
                start_listening(&turned, Backlog::new(16).unwrap()).expect("listen");
                dissolve(&turned);
            }
            turned.connect(&SockAddr::from(to)).expect("connect");
            let (accepted, _) = server.accept().expect("accept");
            reset(accepted);
            let mut byte = [std::mem::MaybeUninit::uninit()];
            assert!(turned.recv(&mut byte).is_err(), "reset");
        }
        let after = seen.counters();
        let closes = seen.closes();
        assert_eq!(closes.len(), told, "--port {port}: {closes:#?}");
        assert_eq!(own_counts(&before, &after), (told as u64, 0), "--port {port}");
        assert!(after.filtered - before.filtered >= 6 - told as u64, "--port {port}");
        drop(turned);
        let gone = seen.counters();
        assert_eq!(own_counts(&after, &gone), (0, 0), "--port {port}: told once");
    }
}

/// A kernel half with each check, which passes only these networks, and with room for the networks of all that follow.
fn everything_checked(networks: &[String]) -> KernelFilter {
    let mut filter = Filter::default();
    filter.networks.bare.any = networks.iter().map(|network| network.parse().unwrap()).collect();
    let mut half = KernelFilter::of(&filter);
    half.checks = CHECK_FAMILY | CHECK_DIRECTION | CHECK_SERVER_PORT | CHECK_CLIENT_PORT | CHECK_ADDRESS;
    half.networks.extend((0..NETWORKS).map(|number| {
        let mut address = [0xff; 16];
        address[12..].copy_from_slice(&number.to_be_bytes());
        (Prefix { bits: 128, address }, 0)
    }));
    half
}

fn connect_and_reset(addresses: &Addresses, client_first: bool) {
    // A listener is remembered, or not, by the filter that is set when it begins to listen.
    let listeners = LISTENERS.map(|port| listener((Ipv6Addr::UNSPECIFIED, port).into()));
    let fast_open = if client_first { FAST_OPEN } else { FAST_OPEN_OFF };
    net::sysctl("net.ipv4.tcp_fastopen", fast_open);
    connect_to_itself(addresses.b);
    for listener in &listeners {
        set_tcp_option(listener, libc::TCP_FASTOPEN, 16);
    }
    let fast = bound((addresses.b, 0).into());
    let to = SockAddr::from(SocketAddr::from((addresses.a, LISTENERS[0])));
    assert_eq!(
        fast.send_to_with_flags(&[1; 10], &to, libc::MSG_FASTOPEN)
            .expect("connect"),
        10
    );
    let (server, _) = listeners[0].accept().expect("accept");
    take(&server, 10);
    reset(fast.into());
    wait_closed(&server);
    for (from, from_port, to, to_port, listening) in CONNECTIONS {
        let client = bound((addresses.named(from), from_port).into());
        let connected = client.connect(&SockAddr::from(SocketAddr::from((addresses.named(to), to_port))));
        assert_eq!(connected.is_ok(), listening, "{from} to {to}: {connected:?}");
        if !listening {
            continue;
        }
        let client = TcpStream::from(client);
        let listener = LISTENERS.iter().position(|port| *port == to_port).unwrap();
        let (server, _) = listeners[listener].accept().expect("accept");
        give(&client, 10);
        take(&server, 10);
        let (first, second) = if client_first {
            (client, server)
        } else {
            (server, client)
        };
        reset(first);
        wait_closed(&second);
    }
}

/// One socket, which gets its own SYN.
fn connect_to_itself(at: Ipv4Addr) {
    let socket = bound((at, 0).into());
    socket.connect(&SockAddr::from(address(&socket))).expect("connect");
    reset(socket.into());
}

/// In a simultaneous open both ends are clients, so a port filter compares the peer's port, and a filter for inbound connections
/// passes neither record. The same rules hold for a socket that is connected to itself.
fn both_ends_connect() {
    // By the order in which they are bound.
    let [one, other] = [1, 2].map(|number| bound((net::address(number), 0).into()));
    let own = bound((net::address(3), 0).into());
    let ports = [&one, &other, &own].map(|socket| address(socket).port());
    let [to_other, to_one, to_own] = [ports[1], ports[0], ports[2]].map(|port| port.to_string());
    let tracers = [
        (vec!["--direction", "inbound"], 0),
        (vec!["--direction", "outbound"], 3),
        (vec!["--port", &to_other], 1),
        (vec!["--port", &to_one], 1),
        (vec!["--port", &to_own], 1),
        (vec!["--port", "1"], 0),
    ]
    .map(|(args, count)| (Tracer::json(&args), args.join(" "), count));
    tracers.iter().for_each(|(tracer, ..)| tracer.store.keep(net::inode()));
    let (first, second) = (address(&one), address(&other));
    // The second's SYN then meets the first's attempt.
    net::rules(&[&format!(
        "tcp sport {} tcp dport {} tcp flags & (syn | ack) == syn drop",
        first.port(),
        second.port()
    )]);
    one.set_nonblocking(true).expect("O_NONBLOCK");
    assert!(one.connect(&SockAddr::from(second)).is_err());
    other.connect(&SockAddr::from(first)).expect("connect");
    let (one, other) = (TcpStream::from(one), TcpStream::from(other));
    one.set_nonblocking(false).expect("O_NONBLOCK");
    give(&one, 10);
    take(&other, 10);
    reset(one);
    wait_closed(&other);
    drop(other);
    own.connect(&SockAddr::from(address(&own))).expect("connect");
    reset(own.into());
    for (tracer, args, count) in &tracers {
        let end = tracer.interrupt();
        assert!(end.status.success(), "{args}");
        let records: Vec<Value> = end
            .store
            .records(net::inode())
            .into_iter()
            .map(|rec| rec.value)
            .collect();
        assert_eq!(records.len(), *count, "{args}: {records:#?}");
        for value in records {
            let sent = if value["src"]["port"] == ports[0] { 10 } else { 0 };
            assert_eq!(
                (&value["direction"], &value["sent_bytes"]),
                (&"outbound".into(), &sent.into()),
                "{args}: {value}"
            );
        }
    }
}

/// A proxy's listener gets connections to a port that is not its own (TPROXY). They are its connections all the same.
fn transparent_listener() {
    const DIALLED: u16 = 80;
    let at = net::address(1);
    let tracer = Tracer::json(&["--port", &DIALLED.to_string(), "--pid", &std::process::id().to_string()]);
    let socket = stream_socket((at, 0).into(), Protocol::TCP);
    socket.set_ip_transparent_v4(true).expect("IP_TRANSPARENT");
    socket.bind(&SockAddr::from(SocketAddr::from((at, 0)))).expect("bind");
    socket.listen(16).expect("listen");
    let proxy = TcpListener::from(socket);
    let port = proxy.local_addr().expect("its address").port();
    net::transparent_proxy(DIALLED, SocketAddrV4::new(at, port)).expect("TPROXY");
    let scene = Scene::new(&tracer.store);
    let dst = SocketAddr::from((at, DIALLED));
    let (client, connect) = timed(|| TcpStream::connect(dst).expect("connect"));
    let (server, src) = proxy.accept().expect("accept");
    assert_eq!(server.local_addr().expect("its address"), dst);
    let truth = Truth {
        src,
        dst,
        connect,
        open: Span {
            before: connect.before,
            after: SystemTime::now(),
        },
    };
    give(&client, 10);
    take(&server, 10);
    reset(client);
    wait_closed(&server);
    drop(server);
    let inbound = truth.inbound().bytes(0, 10).reset_by_peer().by(&["listener"]);
    scene.expect_among_others(&[truth.outbound().bytes(10, 0).reset_by_local(), inbound]);
}

fn listener(address: SocketAddr) -> TcpListener {
    let socket: Socket = bound(address);
    start_listening(&socket, Backlog::new(16).unwrap()).expect("listen");
    socket.into()
}

/// Knuth's MMIX generator: any sequence will do, as long as it is the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn term<T>(&mut self, value: T) -> Term<T> {
        Term {
            negated: self.below(3) == 0,
            value,
        }
    }

    /// Often none.
    fn terms<T: std::str::FromStr<Err = String>>(&mut self, of: &[impl AsRef<str>]) -> Terms<T> {
        let count = self.below(5).saturating_sub(1);
        let terms: Vec<_> = (0..count)
            .map(|_| {
                let value = of[self.below(of.len())].as_ref().parse().unwrap();
                self.term(value)
            })
            .collect();
        terms.into_iter().collect()
    }

    fn ends<T: std::str::FromStr<Err = String>>(&mut self, of: &[impl AsRef<str>]) -> Ends<T> {
        // A flag of each kind in every filter would leave little to pass.
        let mut one = |odds: usize| {
            if self.below(odds) == 0 {
                self.terms(of)
            } else {
                Terms::default()
            }
        };
        Ends {
            bare: one(2),
            from: one(3),
            to: one(3),
        }
    }

    /// Networks of one's own; all of it, if none was chosen before.
    fn own(&mut self, addresses: &Addresses) -> Vec<Network> {
        let count = self.below(4);
        let some: Vec<_> = (0..count).map(|_| self.below(addresses.own.len())).collect();
        let chosen = some.iter().map(|&at| &addresses.own[at]);
        let all = addresses.whole.iter().filter(|_| count == 0);
        chosen.chain(all).map(|network| network.parse().unwrap()).collect()
    }

    fn filter(&mut self, addresses: &Addresses) -> Filter {
        let family = [Family::Ipv4, Family::Ipv6].get(self.below(6)).copied();
        let direction = [Direction::Inbound, Direction::Outbound].get(self.below(8)).copied();
        let (ports, networks) = match self.below(4) {
            0 => (self.ends::<PortRange>(&PORTS), Ends::default()),
            1 => (self.ends(&PORTS), self.ends::<Network>(&addresses.all)),
            _ => (Ends::default(), self.ends(&addresses.all)),
        };
        Filter {
            ports,
            networks,
            family,
            direction: direction.map(|direction| self.term(direction)).into_iter().collect(),
            ..Filter::default()
        }
    }
}
