//! Generates captures of a small shop: pods of five workloads that call each other for a minute, with the noise that a
//! healthy cluster has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use kmesh_trace::record::Comm;
use kmesh_trace::record::{
    AcceptQueue, ClosedBy, ConnId, Direction, End, Event, Outcome, Pod, Process, ProcessBy, Record, Service, ServiceBy,
    ServiceMatch, Subject, TcpState, Turns, WallTime, Workload,
};

/// The start of every capture: 2026-01-02T03:04:05Z.
pub const START: i64 = 1_767_323_045_000_000_000;
pub const SECOND: i64 = 1_000_000_000;
/// The length of a capture.
pub const LENGTH: i64 = 60 * SECOND;

/// A random number generator (SplitMix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 to 1, without 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number of `range`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    pub fn pick(&mut self, count: usize) -> usize {
        (self.next() % count.max(1) as u64) as usize
    }

    /// Returns a time around `median`, with the long tail of response times.
    pub fn time(&mut self, median: f64, spread: f64) -> u64 {
        let (one, two) = (self.unit().max(1e-12), self.unit());
        let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
        (median * (spread * normal).exp()) as u64
    }
}

/// A pair of workloads that talk: client, server, port.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub client: &'static str,
    pub server: &'static str,
    pub port: u16,
}

pub const ROUTES: [Route; 6] = [
    Route {
        client: "frontend",
        server: "checkout",
        port: 8080,
    },
    Route {
        client: "frontend",
        server: "stock",
        port: 9000,
    },
    Route {
        client: "checkout",
        server: "payments",
        port: 8443,
    },
    Route {
        client: "checkout",
        server: "stock",
        port: 9000,
    },
    Route {
        client: "stock",
        server: "database",
        port: 5432,
    },
    Route {
        client: "payments",
        server: "database",
        port: 5432,
    },
];

/// The number of pods of each workload.
pub const PODS: usize = 3;

/// A capture in the making.
pub struct Shop {
    pub random: Random,
    pub records: Vec<Record>,
    /// The connections a second of each route.
    pub rates: [f64; ROUTES.len()],
    /// The median duration of each route, in ns.
    medians: [f64; ROUTES.len()],
    next_id: u64,
}

impl Shop {
    /// Generates a minute of a healthy shop.
    pub fn healthy(seed: u64) -> Self {
        let mut random = Random(seed);
        let rates = std::array::from_fn(|_| random.between(1.0, 12.0));
        let medians = std::array::from_fn(|_| random.between(2e6, 80e6));
        let mut shop = Self {
            random,
            records: Vec::new(),
            rates,
            medians,
            next_id: 1,
        };
        for at in 0..ROUTES.len() {
            shop.traffic(at);
            shop.pool(at);
        }
        shop.listeners();
        shop
    }

    fn id(&mut self) -> ConnId {
        self.next_id += 1;
        ConnId {
            node: 0,
            cookie: self.next_id,
            attempt: 1,
        }
    }

    fn traffic(&mut self, at: usize) {
        let count = (self.rates[at] * 60.0) as usize;
        for _ in 0..count {
            let mut record = self.connection(at);
            if self.random.chance(0.004) {
                reset(&mut record, Outcome::ResetByPeer);
            } else if self.random.chance(0.002) {
                // A retransmitted SYN.
                late(&mut record, 1_020_000_000);
            }
            let losses = (0..record.tcp.data_segs_out)
                .filter(|_| self.random.chance(0.001))
                .count();
            record.tcp.total_retrans += losses as u32;
            self.records.push(record);
        }
        // A pod that restarts refuses one or two attempts.
        if self.random.chance(0.2) {
            let refused = self.refused(at);
            self.records.push(refused);
        }
    }

    /// Returns a connection of a route that ended well, at a random time.
    pub fn connection(&mut self, at: usize) -> Record {
        let (client, server) = (self.random.pick(PODS), self.random.pick(PODS));
        self.connection_between(at, client, server)
    }

    pub fn connection_between(&mut self, at: usize, client: usize, server: usize) -> Record {
        let duration = self.random.time(self.medians[at], 0.6).max(300_000);
        let rtt_us = self.random.time(250.0, 0.3).clamp(80, 2_000);
        let end = START + (self.random.unit() * LENGTH as f64) as i64;
        let mut record = self.attempt(at, client, server, end, duration);
        record.established = true;
        record.connect_ns = Some(rtt_us * 1_000 + self.random.time(60_000.0, 0.5));
        record.outcome = Some(Outcome::Ok);
        record.closed_by = Some(if self.random.chance(0.7) {
            ClosedBy::Local
        } else {
            ClosedBy::Peer
        });
        (record.sent_bytes, record.received_bytes) = (self.random.time(900.0, 0.8), self.random.time(8_000.0, 1.0));
        record.tcp.data_segs_out = (record.sent_bytes / 1_448 + 1) as u32;
        record.tcp.rtt_min_us = Some(rtt_us as u32);
        record.tcp.srtt_us = Some(rtt_us as u32 * 2);
        let answers = 1 + self.random.pick(4) as u64;
        let think = (duration / (answers + 1)) as f64;
        let waits: Vec<_> = (0..answers).map(|_| self.random.time(think, 0.5)).collect();
        record.turns = Some(turns(&waits));
        self.limit(&mut record, rtt_us);
        record
    }

    /// Sets what limited a connection that sent little. A busy peer is the limit now and then.
    fn limit(&mut self, record: &mut Record, rtt_us: u64) {
        let busy_us = rtt_us * u64::from(record.tcp.data_segs_out);
        record.tcp.busy_us = Some(busy_us);
        record.tcp.rwnd_limited_us = Some(if self.random.chance(0.02) { busy_us / 3 } else { 0 });
        record.tcp.sndbuf_limited_us = Some(0);
    }

    /// Returns an attempt of a route that ends at `end` and has no outcome yet.
    pub fn attempt(&mut self, at: usize, client: usize, server: usize, end: i64, duration: u64) -> Record {
        let route = ROUTES[at];
        let (src, dst) = (address(route.client, client), address(route.server, server));
        let time = WallTime(end);
        let mut record = Record::report(Subject::Connection, time, SocketAddr::new(dst, route.port));
        record.id = self.id();
        record.event = Event::Close;
        record.direction = Direction::Outbound;
        record.src = SocketAddr::new(src, 32_768 + (self.next_id % 28_000) as u16);
        record.start = Some(WallTime(end - duration as i64));
        record.duration_ns = Some(duration);
        record.observed_ns = duration;
        record.node = "worker-1".into();
        record.names.src = pod(route.client, client);
        record.names.dst = pod(route.server, server);
        record.names.service = Some(service(route.server));
        record.process = Some(process(route.client, client));
        record.tcp.old_state = Some(TcpState::LastAck);
        record
    }

    /// Returns an attempt of a route that was refused.
    pub fn refused(&mut self, at: usize) -> Record {
        let (client, server) = (self.random.pick(PODS), self.random.pick(PODS));
        let end = START + (self.random.unit() * LENGTH as f64) as i64;
        let mut record = self.attempt(at, client, server, end, 200_000);
        record.outcome = Some(Outcome::Refused);
        record.errno = Some(111);
        record.closed_by = Some(ClosedBy::Peer);
        record
    }

    /// Adds updates of connections that stay open: a pool that a client uses now and then.
    fn pool(&mut self, at: usize) {
        for _ in 0..self.random.pick(6) {
            let (client, server) = (self.random.pick(PODS), self.random.pick(PODS));
            let id = self.id();
            let rtt = 250;
            let mut sent = 0;
            for tick in 1..12 {
                if self.random.chance(0.6) {
                    sent += 500;
                }
                let mut record = self.attempt(at, client, server, START + tick * 5 * SECOND, 1);
                record.id = id;
                record.event = Event::Update;
                record.preexisting = true;
                (record.start, record.duration_ns) = (None, None);
                record.established = true;
                record.sent_bytes = sent;
                record.tcp.state = TcpState::Established;
                record.tcp.data_segs_out = (sent / 500) as u32;
                record.tcp.rtt_min_us = Some(rtt);
                self.records.push(record);
            }
        }
    }

    fn listeners(&mut self) {
        for route in [ROUTES[0], ROUTES[1], ROUTES[2], ROUTES[4]] {
            for server in 0..PODS {
                let backlog = self.random.pick(20) as u32;
                self.records.push(listener(route, server, 5, backlog, 0));
            }
        }
    }
}

/// Returns a line about the listener of a route's server.
pub fn listener(route: Route, server: usize, second: i64, backlog: u32, dropped: u32) -> Record {
    let queue = AcceptQueue {
        backlog,
        max_backlog: 128,
        half_open: 0,
        dropped,
        dropped_total: dropped,
    };
    let address = SocketAddr::new(address(route.server, server), route.port);
    let mut record = Record::report(Subject::Listener(queue), WallTime(START + second * SECOND), address);
    record.id = ConnId {
        node: 0,
        cookie: u64::from(route.port) << 32 | server as u64,
        attempt: 1,
    };
    record.names.dst = pod(route.server, server);
    record.process = Some(process(route.server, server));
    record
}

/// Returns turns with these waits, in ns.
pub fn turns(waits: &[u64]) -> Box<Turns> {
    let mut turns = Box::new(Turns {
        count: waits.len() as u64,
        wait_ns: waits.iter().sum(),
        max_wait_ns: waits.iter().copied().max().unwrap_or(0),
        histogram: Default::default(),
        overlapped: 0,
    });
    let last = turns.histogram.len() - 1;
    for wait in waits {
        let bucket = (u64::BITS - (wait / 1_000).leading_zeros()) as usize;
        turns.histogram[bucket.min(last)] += 1;
    }
    turns
}

/// Makes an established connection one that was reset.
pub fn reset(record: &mut Record, outcome: Outcome) {
    record.outcome = Some(outcome);
    record.errno = Some(104);
    record.closed_by = Some(match outcome {
        Outcome::ResetByPeer => ClosedBy::Peer,
        _ => ClosedBy::Local,
    });
    record.tcp.old_state = Some(TcpState::Established);
}

/// Makes the handshake of a connection last `connect_ns`.
pub fn late(record: &mut Record, connect_ns: u64) {
    record.connect_ns = Some(connect_ns);
    record.duration_ns = record.duration_ns.map(|duration| duration + connect_ns);
    record.tcp.total_retrans += u32::from(connect_ns >= 950_000_000);
}

fn number(workload: &str) -> u8 {
    match workload {
        "frontend" => 1,
        "checkout" => 2,
        "payments" => 3,
        "stock" => 4,
        _ => 5,
    }
}

pub fn address(workload: &str, pod: usize) -> IpAddr {
    Ipv4Addr::new(10, 244, number(workload), pod as u8 + 10).into()
}

pub fn pod_name(workload: &str, pod: usize) -> String {
    format!("{workload}-5c6d7f8b9d-{}", ["4hj9t", "7xk2p", "m8qzd"][pod])
}

pub fn pod(workload: &str, pod: usize) -> End {
    let name = pod_name(workload, pod);
    let pod = Pod {
        uid: format!("uid-{name}").into(),
        namespace: "shop".into(),
        name: name.into(),
        workload: Some(Workload {
            kind: "Deployment".into(),
            name: workload.into(),
        }),
        service_account: None,
        node: Some("worker-1".into()),
        host_network: Some(false),
        labels: None,
    };
    End {
        pod: Some(Arc::new(pod)),
        node: None,
    }
}

fn service(workload: &str) -> ServiceMatch {
    ServiceMatch {
        service: Arc::new(Service {
            namespace: "shop".into(),
            name: workload.into(),
            host: format!("{workload}.shop.svc.cluster.local").into(),
        }),
        by: ServiceBy::Headless,
        ambiguous: false,
    }
}

fn process(workload: &str, pod: usize) -> Process {
    Process {
        pid: 1_000 + u32::from(number(workload)) * 10 + pod as u32,
        comm: Comm::from_text(workload),
        by: ProcessBy::Connect,
    }
}
