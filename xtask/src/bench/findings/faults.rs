//! The faults that are planted into captures, one for each rule.

use kmesh_trace::record::{
    ClosedBy, Event, Outcome, PacketDirection, PacketDrops, Record, Subject, TcpState, WallTime,
};

use super::shop::{LENGTH, PODS, ROUTES, SECOND, START, Shop, address, late, listener, pod, reset, turns};

/// A fault that can be planted on a route.
pub struct Fault {
    /// The rule that must find it.
    pub rule: &'static str,
    pub plant: fn(&mut Shop, usize),
}

pub const FAULTS: &[Fault] = &[
    Fault {
        rule: "refused",
        plant: refused,
    },
    Fault {
        rule: "no_answer",
        plant: no_answer,
    },
    Fault {
        rule: "resets",
        plant: resets,
    },
    Fault {
        rule: "accept_queue",
        plant: accept_queue,
    },
    Fault {
        rule: "slow_connect",
        plant: slow_connect,
    },
    Fault {
        rule: "loss",
        plant: loss,
    },
    Fault {
        rule: "slow_answers",
        plant: slow_answers,
    },
    Fault {
        rule: "held_back",
        plant: held_back,
    },
    Fault {
        rule: "not_closed",
        plant: not_closed,
    },
    Fault {
        rule: "churn",
        plant: churn,
    },
    Fault {
        rule: "one_of_many",
        plant: one_of_many,
    },
];

/// Returns the indexes of the closed connections of a route since a random time of the first 40 s.
fn affected(shop: &mut Shop, route: usize) -> Vec<usize> {
    let since = START + (shop.random.between(0.0, 40.0) * SECOND as f64) as i64;
    let port = ROUTES[route].port;
    let client = address(ROUTES[route].client, 0);
    let is_affected = |record: &Record| {
        // The third octet of an address is its workload's.
        let is_client = record.src.to_string().rsplitn(2, '.').last() == client.to_string().rsplitn(2, '.').last();
        record.event == Event::Close && record.dst.port() == port && is_client && record.time.0 >= since
    };
    let records = shop.records.iter().enumerate();
    records
        .filter(|(_, record)| is_affected(record))
        .map(|(at, _)| at)
        .collect()
}

/// Fails a share of the connections of a route.
fn fail(shop: &mut Shop, route: usize, share: (f64, f64), change: impl Fn(&mut Shop, &mut Record)) {
    let probability = shop.random.between(share.0, share.1);
    for (number, at) in affected(shop, route).into_iter().enumerate() {
        // The first ones are affected for certain, so that a fault is more than a single failure.
        if number < 4 || shop.random.chance(probability) {
            let mut record = shop.records[at].clone();
            change(shop, &mut record);
            shop.records[at] = record;
        }
    }
}

fn not_established(record: &mut Record, outcome: Outcome, duration: u64) {
    record.established = false;
    record.outcome = Some(outcome);
    record.connect_ns = None;
    (record.sent_bytes, record.received_bytes) = (0, 0);
    record.tcp.data_segs_out = 0;
    record.tcp.total_retrans = 0;
    (record.tcp.rtt_min_us, record.tcp.srtt_us) = (None, None);
    record.duration_ns = Some(duration);
    record.start = Some(WallTime(record.time.0 - duration as i64));
}

fn refused(shop: &mut Shop, route: usize) {
    let one_pod = shop.random.chance(0.5).then(|| shop.random.pick(PODS));
    let server = one_pod.map(|pod| address(ROUTES[route].server, pod));
    fail(shop, route, (0.3, 1.0), |shop, record| {
        if server.is_some_and(|server| record.dst.ip() != server) {
            return;
        }
        not_established(record, Outcome::Refused, 200_000);
        record.errno = Some(111);
        record.closed_by = Some(ClosedBy::Peer);
        let mut reject = Record::report(Subject::Reject(1), record.time, record.dst);
        reject.src.set_ip(record.src.ip());
        reject.names.dst = record.names.dst.clone();
        reject.reset_reason = Some("NO_SOCKET".into());
        shop.records.push(reject);
    });
}

fn no_answer(shop: &mut Shop, route: usize) {
    let drops = shop.random.chance(0.5);
    fail(shop, route, (0.2, 1.0), |_, record| {
        not_established(record, Outcome::ConnectAborted, 5_000_000_000);
        record.closed_by = Some(ClosedBy::Local);
        record.tcp.total_retrans = 2;
        let drop = PacketDrops {
            direction: PacketDirection::Sent,
            reason: "NETFILTER_DROP".into(),
            packets: 3,
        };
        record.drops = Some(if drops { vec![drop] } else { Vec::new() });
    });
}

fn resets(shop: &mut Shop, route: usize) {
    let by_proxy = shop.random.chance(0.5);
    fail(shop, route, (0.15, 0.9), |shop, record| {
        reset(record, Outcome::ResetByPeer);
        if by_proxy {
            record.duration_ns = Some(shop.random.time(10e9, 0.005));
        }
        if shop.random.chance(0.5) {
            record.undelivered_bytes = 512;
        }
    });
}

fn accept_queue(shop: &mut Shop, route: usize) {
    let server = shop.random.pick(PODS);
    for tick in 4..12 {
        shop.records.push(listener(ROUTES[route], server, tick * 5 + 1, 129, 7));
    }
    let full = address(ROUTES[route].server, server);
    fail(shop, route, (0.2, 0.6), |_, record| {
        if record.dst.ip() == full {
            late(record, 1_030_000_000);
        }
    });
}

fn slow_connect(shop: &mut Shop, route: usize) {
    let repeats = shop.random.chance(0.5);
    fail(shop, route, (0.3, 0.9), |shop, record| {
        let connect = if repeats {
            1_040_000_000
        } else {
            shop.random.time(180e6, 0.3)
        };
        late(record, connect);
    });
}

fn loss(shop: &mut Shop, route: usize) {
    let share = shop.random.between(0.04, 0.15);
    fail(shop, route, (1.0, 1.0), |shop, record| {
        // Loss is noticed where data flows.
        record.sent_bytes = 60_000;
        record.tcp.data_segs_out = 44;
        let lost = (0..44).filter(|_| shop.random.chance(share)).count() as u32;
        record.tcp.total_retrans += lost;
        record.tcp.lost += lost;
    });
}

fn slow_answers(shop: &mut Shop, route: usize) {
    let median = shop.random.between(0.8e9, 3e9);
    fail(shop, route, (0.3, 1.0), |shop, record| {
        if record.established {
            let answers = 1 + shop.random.pick(3);
            let waits: Vec<_> = (0..answers).map(|_| shop.random.time(median, 0.3)).collect();
            record.turns = Some(turns(&waits));
            record.duration_ns = record.duration_ns.map(|duration| duration + waits.iter().sum::<u64>());
        }
    });
}

/// Adds bulk transfers that a window or a buffer holds back for a large part of their time.
fn held_back(shop: &mut Shop, route: usize) {
    let is_window = shop.random.chance(0.5);
    let share = shop.random.between(0.4, 0.95);
    for _ in 0..8 + shop.random.pick(20) {
        let mut record = shop.connection(route);
        let duration = shop.random.time(2e9, 0.4);
        record.duration_ns = Some(duration);
        record.start = Some(WallTime(record.time.0 - duration as i64));
        (record.sent_bytes, record.tcp.data_segs_out) = (4_000_000, 2_763);
        let busy_us = duration / 1_100;
        let limited_us = (busy_us as f64 * share) as u64;
        let (window, buffer) = if is_window { (limited_us, 0) } else { (0, limited_us) };
        record.tcp.busy_us = Some(busy_us);
        (record.tcp.rwnd_limited_us, record.tcp.sndbuf_limited_us) = (Some(window), Some(buffer));
        shop.records.push(record);
    }
}

fn not_closed(shop: &mut Shop, route: usize) {
    let (client, server) = (shop.random.pick(PODS), shop.random.pick(PODS));
    let first = 2 + shop.random.pick(4) as i64;
    for number in 0..4 + shop.random.pick(30) {
        let mut record = shop.attempt(route, client, server, START, 1);
        record.event = Event::Update;
        record.id.cookie += (1 << 40) + number as u64;
        record.established = true;
        record.start = Some(WallTime(START + first * 5 * SECOND - SECOND));
        record.tcp.state = TcpState::CloseWait;
        for tick in first..12 {
            record.time = WallTime(START + tick * 5 * SECOND);
            shop.records.push(record.clone());
        }
    }
}

fn churn(shop: &mut Shop, route: usize) {
    let rate = shop.random.between(40.0, 250.0);
    let (client, server) = (shop.random.pick(PODS), shop.random.pick(PODS));
    for _ in 0..(rate * (LENGTH / SECOND) as f64) as usize {
        let mut record = shop.connection_between(route, client, server);
        record.duration_ns = Some(shop.random.time(1.5e6, 0.3));
        record.closed_by = Some(ClosedBy::Local);
        shop.records.push(record);
    }
}

fn one_of_many(shop: &mut Shop, route: usize) {
    let odd = shop.random.pick(PODS);
    let server = ROUTES[route].server;
    // Enough connections of each pod to compare.
    for pod in 0..PODS {
        for _ in 0..60 {
            let client = shop.random.pick(PODS);
            let record = shop.connection_between(route, client, pod);
            shop.records.push(record);
        }
    }
    let times = shop.random.between(8.0, 30.0);
    for record in &mut shop.records {
        if record.names.dst == pod(server, odd) && record.event == Event::Close && record.subject == Subject::Connection
        {
            let duration = record
                .duration_ns
                .map(|duration| (duration.max(20_000_000) as f64 * times) as u64);
            record.duration_ns = duration;
        }
    }
}
