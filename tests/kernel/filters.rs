//! The kernel half of the filters against the rule that defines them: the same connections, seen by a tracer that sorts
//! nothing out and by one that does, for thousands of random filters.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener, TcpStream};

use kmesh_trace::clock::Clock;
use kmesh_trace::decode::decode;
use kmesh_trace::filter::{Ends, Filter, Network, PortRange, Term, Terms};
use kmesh_trace::prefilter::KernelHalf;
use kmesh_trace::record::{ConnId, Direction, Event, Family, Record};
use kmesh_trace::source::kernel::{Kernel, Options, Types, start};
use kmesh_trace::track::Tracker;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, Counters, Prefix,
};
use nix::sys::socket::{Backlog, listen as start_listening};
use socket2::{SockAddr, Socket};

use crate::Table;
use crate::support::probe::Need;
use crate::support::sock::{bound, dissolve, give, reset, take};
use crate::support::{net, small};

/// The trials.
pub fn table() -> Table {
    Table::new("filters")
        .own("kernel_half_as_the_rule", &[Need::Alone], kernel_half_as_the_rule)
        .own("a_listener_that_connects", &[Need::Alone], a_listener_that_connects)
}

/// More than any filter here has.
const NETWORKS: u32 = 64;

/// A connection of each round: where it comes from, where it goes, and whether somebody listens there.
const CONNECTIONS: [(&str, &str, bool); 9] = [
    ("127.0.0.1:2000", "127.0.0.2:80", true),
    ("127.0.0.1:0", "127.0.0.1:443", true),
    ("10.9.0.1:0", "10.9.0.1:80", true),
    ("[::1]:2001", "[::1]:80", true),
    ("[fd09::1]:0", "[::1]:443", true),
    ("[::ffff:127.0.0.1]:0", "[::ffff:127.0.0.3]:80", true),
    ("127.0.0.1:0", "127.0.0.1:81", false),
    ("[fd09::1]:2002", "[fd09::1]:81", false),
    ("[::ffff:10.9.0.1]:0", "[::ffff:127.0.0.1]:81", false),
];
/// Each takes both families.
const LISTENERS: [&str; 2] = ["[::]:80", "[::]:443"];
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
const ADDRESSES: [&str; 18] = [
    "127.0.0.1",
    "127.0.0.2",
    "127.0.0.2/31",
    "127.0.0.0/8",
    "10.9.0.1",
    "10.0.0.0/8",
    "10.8.0.0/15",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "192.0.2.1",
    "::1",
    "::/0",
    "::/1",
    "fd09::1",
    "fd00::/8",
    "fd09::/64",
    "::ffff:127.0.0.1",
    "2001:db8::/32",
];

/// What one tracer saw.
struct Seen {
    kernel: Kernel,
    tracker: Tracker,
}

impl Seen {
    fn start(types: &Types, half: KernelHalf) -> Self {
        let KernelHalf {
            checks,
            prefilter,
            networks,
        } = half;
        let options = Options {
            ring_bytes: 1 << 20,
            opens: false,
            checks,
            prefilter,
            networks,
        };
        let (kernel, _walker) = start(types, &options).expect("a tracer");
        let tracker = Tracker::new(kernel.began_ns);
        Self { kernel, tracker }
    }

    /// The ends that it has told of since the last time.
    fn closes(&mut self) -> Vec<Record> {
        let Self { kernel, tracker } = self;
        kernel.drain(|bytes| {
            tracker.take(decode(bytes).expect("a record"));
            true
        });
        let clock = Clock::new(0);
        let mut records = Vec::new();
        while let Some((_, record)) = tracker.next(u64::MAX, &clock) {
            if record.event == Event::Close {
                records.push(record);
            }
        }
        records
    }

    fn counters(&self) -> Counters {
        self.kernel.counters().expect("the counters")
    }
}

/// Each round another filter, then connections of each kind, all ended by a RST, so that all is over when it was sent. What
/// the filter passes must be told, and nothing else; the rest must be counted.
fn kernel_half_as_the_rule() {
    net::run("ip", &["addr", "add", "10.9.0.1/32", "dev", "lo"]);
    net::run("ip", &["addr", "add", "fd09::1/128", "dev", "lo", "nodad"]);
    let types = Types::read().expect("the kernel's types");
    let mut all = Seen::start(&types, KernelHalf::of(&Filter::default()));
    let mut some = Seen::start(&types, everything_checked());
    let netns = u32::try_from(net::inode()).expect("a small number");
    let mut random = Random(1);
    let (mut passed, mut sorted_out, mut counted) = (0, 0, 0);
    for round in 0..if small() { 150 } else { 4000 } {
        let filter = random.filter();
        let half = KernelHalf::of(&filter);
        some.kernel
            .set_filter(&half.prefilter, &half.networks)
            .expect("set the filter");
        // What has happened elsewhere until now is of no interest.
        drop(all.closes());
        drop(some.closes());
        let before = some.counters();
        connect_and_reset(round % 2 == 0);
        let mut truth = all.closes();
        let told: HashSet<ConnId> = some.closes().iter().map(|record| record.id).collect();
        let after = some.counters();
        let elsewhere = truth.iter().chain(&all.closes()).any(|record| record.netns != netns);
        truth.retain(|record| record.netns == netns);
        assert_eq!(
            truth.len(),
            15,
            "six connections with two ends, three attempts: {truth:#?}"
        );
        for record in &truth {
            assert_eq!(
                told.contains(&record.id),
                filter.passes(record),
                "round {round}: {filter:?}\nof {record:?}"
            );
        }
        let out = truth.iter().filter(|record| !filter.passes(record)).count();
        if !elsewhere {
            let filtered = usize::try_from(after.filtered - before.filtered).expect("a few");
            let closes = usize::try_from(after.closes - before.closes).expect("a few");
            assert_eq!((filtered, closes), (out, truth.len()), "round {round}: {filter:?}");
            assert_eq!(after.open, before.open, "round {round}: {filter:?}");
            counted += 1;
        }
        passed += truth.len() - out;
        sorted_out += out;
    }
    println!("{passed} passed, {sorted_out} sorted out; {counted} rounds counted");
    assert!(passed > 0 && sorted_out > 0 && counted > 0, "the filters must differ");
}

/// A socket that has listened looks like one that was accepted when it connects, and has no port of its own while it begins to.
/// What a port filter makes of it must be the same at its beginning and its end.
fn a_listener_that_connects() {
    let types = Types::read().expect("the kernel's types");
    let filter = |port: &str| Filter {
        ports: Ends {
            bare: Terms {
                any: vec![port.parse().expect("a port")],
                none: Vec::new(),
            },
            ..Ends::default()
        },
        ..Filter::default()
    };
    for (port, told) in [("81", 0), ("80", 6)] {
        let mut seen = Seen::start(&types, KernelHalf::of(&filter(port)));
        let (_, server) = listener("127.0.0.1:80");
        let before = seen.counters();
        let turned = bound("127.0.0.1:0".parse().unwrap());
        start_listening(&turned, Backlog::new(16).unwrap()).expect("listen");
        // The second follows an association that had ended; the third one that had listened once more.
        for again in [false, false, true] {
            dissolve(&turned);
            if again {
                start_listening(&turned, Backlog::new(16).unwrap()).expect("listen");
                dissolve(&turned);
            }
            turned
                .connect(&SockAddr::from("127.0.0.1:80".parse::<SocketAddr>().unwrap()))
                .expect("connect");
            let (accepted, _) = server.accept().expect("accept");
            reset(accepted);
            let mut byte = [std::mem::MaybeUninit::uninit()];
            assert!(turned.recv(&mut byte).is_err(), "reset");
        }
        let after = seen.counters();
        let closes = seen.closes();
        assert_eq!(closes.len(), told, "--port {port}: {closes:#?}");
        assert_eq!(
            (after.closes - before.closes, after.filtered - before.filtered),
            (6, 6 - told as u64),
            "--port {port}"
        );
        assert_eq!(after.open, before.open, "--port {port}");
        drop(turned);
        assert_eq!(seen.counters().closes, after.closes, "--port {port}: told once");
    }
}

/// A kernel half with each check, and room for the networks of all that follow.
fn everything_checked() -> KernelHalf {
    let mut half = KernelHalf::of(&Filter::default());
    half.checks = CHECK_FAMILY | CHECK_DIRECTION | CHECK_SERVER_PORT | CHECK_CLIENT_PORT | CHECK_ADDRESS;
    half.networks = (0..NETWORKS)
        .map(|number| {
            let mut address = [0xff; 16];
            address[12..].copy_from_slice(&number.to_be_bytes());
            (Prefix { bits: 128, address }, 0)
        })
        .collect();
    half
}

fn connect_and_reset(client_first: bool) {
    // A listener is remembered, or not, by the filter that is set when it begins to listen.
    let listeners: Vec<(u16, TcpListener)> = LISTENERS.iter().map(|address| listener(address)).collect();
    for (from, to, listening) in CONNECTIONS {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let client = bound(from);
        let connected = client.connect(&SockAddr::from(to));
        assert_eq!(connected.is_ok(), listening, "{from} to {to}: {connected:?}");
        if !listening {
            continue;
        }
        let client = TcpStream::from(client);
        let (_, listener) = listeners.iter().find(|(port, _)| *port == to.port()).unwrap();
        let (server, _) = listener.accept().expect("accept");
        give(&client, 10);
        take(&server, 10);
        let (first, second) = if client_first {
            (client, server)
        } else {
            (server, client)
        };
        reset(first);
        drop(second);
    }
}

fn listener(address: &str) -> (u16, TcpListener) {
    let address: SocketAddr = address.parse().unwrap();
    let socket: Socket = bound(address);
    start_listening(&socket, Backlog::new(16).unwrap()).expect("listen");
    (address.port(), socket.into())
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
    fn terms<T: std::str::FromStr<Err = String>>(&mut self, of: &[&str]) -> Terms<T> {
        let count = self.below(5).saturating_sub(1);
        let terms: Vec<_> = (0..count)
            .map(|_| {
                let value = of[self.below(of.len())].parse().unwrap();
                self.term(value)
            })
            .collect();
        terms.into_iter().collect()
    }

    fn ends<T: std::str::FromStr<Err = String>>(&mut self, of: &[&str]) -> Ends<T> {
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

    fn filter(&mut self) -> Filter {
        let family = [Family::Ipv4, Family::Ipv6].get(self.below(6)).copied();
        let direction = [Direction::Inbound, Direction::Outbound].get(self.below(8)).copied();
        let (ports, networks) = match self.below(4) {
            0 => (self.ends::<PortRange>(&PORTS), Ends::default()),
            1 => (self.ends(&PORTS), self.ends::<Network>(&ADDRESSES)),
            _ => (Ends::default(), self.ends(&ADDRESSES)),
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
