use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::output::testing;
use crate::record::{Outcome, Subject, Undelivered};

const CLIENT: &str = "10.0.1.5:40000";
const SERVER: &str = "10.0.2.6:80";
const FIRST: i64 = 1_726_301_965 * SECOND;

/// Returns the time this many ms after the start of a test.
fn at(ms: i64) -> WallTime {
    WallTime(FIRST + ms * 1_000_000)
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Returns the close of an end that lived from `start` to `end`, ms. Its sequence numbers start at `sent` and
/// `received`, after 100 bytes in each direction.
fn close(direction: Direction, cookie: u64, (start, end): (i64, i64), sequence: (u32, u32)) -> Record {
    let mut record = Record {
        direction,
        time: at(end),
        start: Some(at(start)),
        src: address(CLIENT),
        dst: address(SERVER),
        node: match direction {
            Direction::Outbound => Arc::from("a"),
            Direction::Inbound => Arc::from("b"),
        },
        sent_bytes: 100,
        received_bytes: 100,
        ..testing::example()
    };
    record.id.cookie = cookie;
    record.tcp.snd_nxt = sequence.0.wrapping_add(100);
    record.tcp.snd_una = record.tcp.snd_nxt;
    record.tcp.rcv_nxt = sequence.1.wrapping_add(100);
    record
}

fn client(cookie: u64, life: (i64, i64), sequence: (u32, u32)) -> Record {
    close(Direction::Outbound, cookie, life, sequence)
}

/// Returns the server's end of a client with these sequence numbers.
fn server(cookie: u64, life: (i64, i64), (sent, received): (u32, u32)) -> Record {
    close(Direction::Inbound, cookie, life, (received, sent))
}

fn update(record: &Record, ms: i64) -> Record {
    Record {
        event: Event::Update,
        time: at(ms),
        outcome: None,
        ..record.clone()
    }
}

/// Returns the cookies of all ends that leave, the base first, in their order. `tag` is the index of the record.
fn joined(join: &mut Join) -> Vec<(Event, u64, Option<u64>)> {
    let mut all = Vec::new();
    while let Some(Tagged { record, .. }) = join.pop() {
        all.push((
            record.event,
            record.id.cookie,
            record.other().map(|other| other.id.cookie),
        ));
    }
    all
}

fn run(records: &[Record]) -> (Vec<(u64, Option<u64>)>, JoinCounts) {
    let mut join = Join::default();
    for (tag, record) in records.iter().enumerate() {
        join.take(record.clone(), tag as u32);
    }
    join.finish();
    let mut all: Vec<_> = joined(&mut join)
        .into_iter()
        .map(|(_, one, other)| (one, other))
        .collect();
    all.sort_unstable();
    assert!(join.waiting.is_empty() && join.deadlines.is_empty() && join.events.is_empty());
    (all, join.counts())
}

#[test]
fn both_ends_leave_as_one_record_whichever_comes_first() {
    let ends = [client(1, (0, 50), (7, 9)), server(1, (1, 60), (7, 9))];
    for order in [[0, 1], [1, 0]] {
        let mut join = Join::default();
        for at in order {
            join.take(ends[at].clone(), at as u32);
        }
        let Tagged { record, tags } = join.pop().unwrap();
        assert_eq!(record.direction, Direction::Outbound);
        assert_eq!(record.other(), Some(&ends[1]));
        assert_eq!(tags, [Some(0), Some(1)]);
        assert!(join.pop().is_none());
    }
}

#[test]
fn translated_client_joins_by_the_backend() {
    let mut translated = client(1, (0, 50), (7, 9));
    translated.names.original_dst = Some(address("10.96.0.1:443"));
    let (all, counts) = run(&[translated, server(2, (1, 60), (7, 9))]);
    assert_eq!(all, [(1, Some(2))]);
    assert_eq!((counts.pairs, counts.one_ended), (1, 0));
}

#[test]
fn reused_ports_never_join_the_wrong_ends() {
    // The server's closes of the first two connections come late, and the lives overlap within the skew of clocks.
    let (one, two, three) = ((1000, 5000), (1_000_000, 1_005_000), (u32::MAX - 50, u32::MAX - 10));
    let clients = [
        client(1, (0, 10), one),
        client(2, (11, 20), two),
        client(3, (21, 30), three),
    ];
    let servers = [
        server(11, (1, 40), one),
        server(12, (12, 35), two),
        server(13, (22, 31), three),
    ];
    let expected = [(1, Some(11)), (2, Some(12)), (3, Some(13))];
    let all = [clients, servers].concat();
    for order in [
        [0, 1, 2, 3, 4, 5],
        [5, 4, 3, 2, 1, 0],
        [0, 5, 1, 4, 2, 3],
        [3, 1, 4, 0, 2, 5],
    ] {
        let (joined, counts) = run(&order.map(|at| all[at].clone()));
        assert_eq!(joined, expected, "{order:?}");
        assert_eq!((counts.pairs, counts.ambiguous), (3, 0));
    }
    // The end of another connection with the same ports does not join.
    let (joined, counts) = run(&[clients_of(&all, 0), clients_of(&all, 4)]);
    assert_eq!(joined, [(1, None), (12, None)]);
    assert_eq!((counts.pairs, counts.one_ended), (0, 2));
}

fn clients_of(all: &[Record], at: usize) -> Record {
    all[at].clone()
}

#[test]
fn sequence_numbers_must_fit_in_both_directions() {
    let sequence = (7000, 9000);
    type Change = fn(&mut Record);
    let cases: [(&str, Change, bool); 6] = [
        (
            "an end that received less than was sent",
            |server| server.tcp.rcv_nxt -= 1,
            true,
        ),
        (
            "an end that received less than it acknowledged",
            |server| server.tcp.rcv_nxt -= 2,
            false,
        ),
        (
            "an end that received more than was sent",
            |server| server.tcp.rcv_nxt += 1,
            false,
        ),
        (
            "an answer that did not arrive",
            |server| server.tcp.snd_nxt += 500,
            true,
        ),
        (
            "an answer that was not sent",
            |server| {
                server.tcp.snd_nxt -= 1;
                server.tcp.snd_una -= 1;
            },
            false,
        ),
        ("an unknown number", |server| server.tcp.rcv_nxt = 0, true),
    ];
    for (name, change, fits) in cases {
        let mut other = server(2, (1, 60), sequence);
        change(&mut other);
        let (all, _) = run(&[client(1, (0, 50), sequence), other]);
        let expected = if fits {
            vec![(1, Some(2))]
        } else {
            vec![(1, None), (2, None)]
        };
        assert_eq!(all, expected, "{name}");
    }
}

#[test]
fn lifetimes_must_overlap() {
    let (all, _) = run(&[client(1, (0, 50), (7, 9)), server(2, (2_100, 2_200), (7, 9))]);
    assert_eq!(all, [(1, None), (2, None)]);
}

#[test]
fn attempt_without_an_answer_joins_by_its_own_sequence_number() {
    let mut attempt = client(1, (0, 50), (7000, 0));
    (attempt.established, attempt.tcp.rcv_nxt) = (false, 0);
    let (all, _) = run(&[attempt.clone(), server(2, (20, 60), (7000, 123))]);
    assert_eq!(all, [(1, Some(2))]);
    let (all, _) = run(&[attempt, server(2, (20, 60), (7002, 123))]);
    assert_eq!(all, [(1, None), (2, None)]);
}

#[test]
fn what_several_closes_fit_stays_alone_and_is_counted() {
    let sequence = (7, 9);
    let twice = [
        client(1, (0, 50), sequence),
        client(2, (0, 50), sequence),
        server(3, (1, 60), sequence),
    ];
    let (all, counts) = run(&twice);
    assert_eq!(all, [(1, None), (2, None), (3, None)]);
    assert_eq!((counts.pairs, counts.one_ended, counts.ambiguous), (0, 0, 3));
}

/// Without sequence numbers, only addresses and lifetimes are left. They decide if nothing else fits.
#[test]
fn without_sequence_numbers_only_unique_ends_join() {
    let without = |mut record: Record| {
        (record.tcp.snd_nxt, record.tcp.snd_una, record.tcp.rcv_nxt) = (0, 0, 0);
        record
    };
    let one = without(client(1, (0, 50), (0, 0)));
    let other = without(server(2, (1, 60), (0, 0)));
    let (all, counts) = run(&[one.clone(), other.clone()]);
    assert_eq!((all, counts.pairs), (vec![(1, Some(2))], 1));
    let again = without(client(3, (55, 70), (0, 0)));
    let (all, counts) = run(&[one, other, again]);
    assert_eq!(all, [(1, None), (2, None), (3, None)]);
    assert_eq!((counts.pairs, counts.ambiguous), (0, 3));
}

#[test]
fn loopback_joins_only_within_its_namespace() {
    let local = |mut record: Record, node: &str, netns| {
        (record.src, record.dst) = (address("127.0.0.1:40000"), address("127.0.0.1:80"));
        (record.node, record.netns) = (node.into(), netns);
        record
    };
    let (one, two) = (client(1, (0, 50), (7, 9)), server(2, (1, 60), (7, 9)));
    let joins = |node, netns| {
        run(&[local(one.clone(), "a", 1), local(two.clone(), node, netns)])
            .1
            .pairs
    };
    assert_eq!([joins("a", 1), joins("b", 1), joins("a", 2)], [1, 0, 0]);
}

#[test]
fn close_waits_longer_if_the_other_end_is_traced_or_open() {
    let one = client(1, (0, 50), (7, 9));
    let has_left = |join: &mut Join, seconds: i64| {
        join.advance(WallTime(one.time.0 + seconds * SECOND));
        let close = (Event::Close, one.id.cookie, None);
        joined(join).contains(&close)
    };
    let leaves_after = |before: &[Record]| {
        let mut join = Join::default();
        before.iter().for_each(|record| join.take(record.clone(), 0));
        join.take(one.clone(), 0);
        let waits = [10, 60, 3_600];
        waits
            .into_iter()
            .find(|&wait| !has_left(&mut join, wait - 1) && has_left(&mut join, wait))
    };
    assert_eq!(leaves_after(&[]), Some(10));
    let mut elsewhere = server(5, (0, 40), (1, 1));
    elsewhere.src.set_port(1);
    assert_eq!(leaves_after(&[elsewhere]), Some(60));
    let open = update(&server(2, (1, 60), (7, 9)), 30);
    assert_eq!(leaves_after(&[open]), Some(3_600));
}

#[test]
fn events_of_a_connection_come_from_one_end() {
    let (one, two) = (client(1, (0, 9_000), (7, 9)), server(2, (1, 9_001), (7, 9)));
    let mut join = Join::default();
    // The client's end is known within two seconds of the server's first event.
    join.take(update(&two, 10), 1);
    join.take(update(&one, 20), 0);
    join.take(update(&two, 5_000), 1);
    join.take(update(&one, 5_001), 0);
    join.take(one, 0);
    join.take(two, 1);
    let events = [
        (Event::Update, 1, None),
        (Event::Update, 1, None),
        (Event::Close, 1, Some(2)),
    ];
    assert_eq!(joined(&mut join), events);
    assert!(join.open.is_empty() && join.open_count == 0);
}

/// The deltas of a connection go on, so its close has the ID of the end that had updates.
#[test]
fn close_has_the_id_of_the_end_with_updates() {
    let (one, two) = (client(1, (0, 9_000), (7, 9)), server(2, (1, 9_001), (7, 9)));
    let mut join = Join::default();
    join.take(update(&two, 10), 1);
    join.advance(at(5_000));
    assert_eq!(joined(&mut join), [(Event::Update, 2, None)]);
    join.take(update(&one, 6_000), 0);
    join.take(update(&two, 7_000), 1);
    join.take(one, 0);
    join.take(two, 1);
    assert_eq!(
        joined(&mut join),
        [(Event::Update, 2, None), (Event::Close, 2, Some(1))]
    );
}

#[test]
fn memory_is_bounded() {
    let mut join = Join::default();
    for cookie in 0..MAX_WAITING as u64 + 5 {
        let mut record = client(cookie, (0, 50), (7, 9));
        record.src = SocketAddr::from(([10, 1, (cookie >> 8) as u8, cookie as u8], 1 + (cookie >> 16) as u16));
        join.take(record, 0);
    }
    assert_eq!((join.deadlines.len(), join.counts().early), (MAX_WAITING, 5));
    assert_eq!(joined(&mut join).len(), 5);
}

#[test]
fn undelivered_bytes_are_counted_in_each_direction() {
    let mut one = client(1, (0, 50), (7, 9));
    let mut two = server(2, (1, 60), (7, 9));
    // The client wrote 130 bytes, and 90 of the server's 100 reached the client.
    (one.sent_bytes, one.undelivered_bytes, one.received_bytes) = (100, 30, 90);
    (two.sent_bytes, two.undelivered_bytes, two.received_bytes) = (90, 10, 110);
    (one.outcome, two.outcome) = (Some(Outcome::Ok), Some(Outcome::ResetByPeer));
    let mut join = Join::default();
    join.take(one, 0);
    join.take(two, 1);
    let record = join.pop().unwrap().record;
    assert_eq!(record.undelivered(), Some(Undelivered { sent: 20, received: 10 }));
    assert_eq!(record.end_outcomes().unwrap().to_string(), "ok / reset_by_peer");
    assert_eq!((record.closes(), record.subject), (2, Subject::Connection));
}
