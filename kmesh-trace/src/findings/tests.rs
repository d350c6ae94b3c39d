//! Each rule with a planted fault, and without one.

use std::sync::Arc;

use super::*;
use crate::output::testing;
use crate::record::{
    AcceptQueue, ClosedBy, ConnId, End, Event, Outcome, PacketDirection, Pod, Record, Subject, TcpState, Workload,
};

const SECOND: i64 = 1_000_000_000;
const START: i64 = testing::TIME.0;

fn pod(workload: &str, number: usize) -> End {
    let name = format!("{workload}-{number}");
    End {
        pod: Some(Arc::new(Pod {
            uid: name.as_str().into(),
            namespace: "shop".into(),
            name: name.as_str().into(),
            workload: Some(Workload {
                kind: "Deployment".into(),
                name: workload.into(),
            }),
            service_account: None,
            node: None,
            host_network: None,
            labels: None,
        })),
        node: None,
    }
}

/// Returns connection `number` from checkout to payments, which ended well, each a tenth of a second after the one
/// before.
fn connection(number: u64) -> Record {
    let (client, server) = ((number % 2) as u8, (number % 3) as u8);
    let mut record = testing::example();
    record.id = ConnId {
        node: 0,
        cookie: number,
        attempt: 1,
    };
    record.direction = Direction::Outbound;
    record.time = WallTime(START + number as i64 * SECOND / 10);
    record.src = format!("10.0.0.{}:{}", client + 1, 30_000 + number).parse().unwrap();
    record.dst = format!("10.0.1.{}:8443", server + 1).parse().unwrap();
    record.names.src = pod("checkout", client.into());
    record.names.dst = pod("payments", server.into());
    record.connect_ns = Some(200_000);
    record.tcp.total_retrans = 0;
    record
}

fn refused(mut record: Record) -> Record {
    record.outcome = Some(Outcome::Refused);
    record.established = false;
    record.connect_ns = None;
    record.closed_by = Some(ClosedBy::Peer);
    record.tcp.data_segs_out = 0;
    record
}

/// Returns the report of records in the order of their times.
fn report(records: &[Record]) -> Report {
    let mut watch = Watch::new(Abilities::default());
    for record in records {
        match record.subject {
            Subject::Connection => watch.record(record),
            _ => watch.report(record),
        }
    }
    watch.end();
    examine(&watch)
}

/// Returns the report of 100 connections, after `change` has changed some of them.
fn changed(change: impl Fn(u64, Record) -> Record) -> Report {
    let records: Vec<_> = (0..100).map(|number| change(number, connection(number))).collect();
    report(&records)
}

fn only(report: &Report) -> &Finding {
    let [finding] = &report.findings[..] else {
        panic!("{:#?}", report.findings);
    };
    finding
}

#[test]
fn quiet_watch_has_no_finding_and_says_what_it_looked_for() {
    let report = changed(|_, record| record);
    assert_eq!(report.findings, []);
    assert_eq!(report.connections, 100);
    assert!(
        report.absent.contains(&("frequent refusals", 100)),
        "{:?}",
        report.absent
    );
    let unknown = report.unknown.join("\n");
    for part in ["slow answers", "--drops", "accept queues"] {
        assert!(unknown.contains(part), "{unknown}");
    }
}

#[test]
fn refused_attempts_are_found_with_their_first_time_and_server() {
    let report = changed(|number, record| match number {
        // payments-0 stops listening.
        40.. if number % 3 == 0 => refused(record),
        _ => record,
    });
    let finding = only(&report);
    assert_eq!((finding.rule, finding.severity), ("refused", Severity::Critical));
    assert_eq!((finding.count, finding.of), (20, 58));
    assert_eq!(finding.first, WallTime(START + 42 * SECOND / 10));
    assert_eq!(
        finding.title,
        "shop/checkout → shop/payments:8443 is refused: 20 of 58 attempts since 08:19:30, none of the 42 before"
    );
    let evidence = finding.evidence.join(" ");
    assert!(
        evidence.contains("shop/payments-0 answered RST for port 8443"),
        "{evidence}"
    );
    assert!(
        evidence.contains("2 other pods of the server answered all the time"),
        "{evidence}"
    );
    assert_eq!(
        finding.flags.words().join(" "),
        "--from-namespace shop --from-workload checkout --to-namespace shop --to-workload payments --to-port 8443 \
         --outcome refused"
    );
}

#[test]
fn reject_line_says_that_nothing_listens() {
    let mut records: Vec<_> = (0..100).map(connection).map(refused).collect();
    let mut reject = Record::report(Subject::Reject(4), records[0].time, records[0].dst);
    reject.reset_reason = Some("NO_SOCKET".into());
    records.push(reject);
    let evidence = only(&report(&records)).evidence.join(" ");
    assert!(
        evidence.contains("Nothing listens on port 8443 of shop/payments-0"),
        "{evidence}"
    );
}

#[test]
fn few_refusals_are_the_rest_of_a_restart() {
    let few = |number, record| if number < 2 { refused(record) } else { record };
    assert_eq!(changed(few).findings, []);
    let rare = |number, record| if number % 40 == 0 { refused(record) } else { record };
    assert_eq!(changed(rare).findings, []);
}

#[test]
fn failures_below_the_thresholds_are_counted() {
    let report = changed(|number, mut record| match number {
        0 | 1 => refused(record),
        2 => {
            record.outcome = Some(Outcome::ResetByPeer);
            record
        }
        _ => record,
    });
    assert_eq!(report.findings, []);
    assert_eq!(report.further_failures, [("refused", 2), ("reset by peer", 1)]);
    let report = changed(|_, record| refused(record));
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.further_failures, [], "the finding includes all of them");
}

#[test]
fn empty_watch_checks_nothing() {
    let report = report(&[]);
    assert!(report.is_empty);
    assert_eq!((report.absent, report.unknown), (Vec::new(), Vec::new()));
}

#[test]
fn advice_about_scans_depends_on_what_was_recorded() {
    let reason = |records: &[Record], abilities| {
        let mut watch = Watch::new(abilities);
        records.iter().for_each(|record| watch.record(record));
        watch.end();
        let unknown = examine(&watch).unknown;
        unknown
            .into_iter()
            .find(|text| text.starts_with("connections that are not closed"))
            .unwrap()
    };
    let live = Abilities {
        listeners: Some(true),
        ..Abilities::default()
    };
    let closed = connection(1);
    let mut update = closed.clone();
    (update.event, update.outcome) = (Event::Update, None);
    let at_the_end = "connections that are not closed: no connection was open at the end";
    assert_eq!(reason(std::slice::from_ref(&closed), live), at_the_end);
    assert_eq!(reason(&[update, closed.clone()], Abilities::default()), at_the_end);
    let needs = reason(&[closed], Abilities::default());
    assert!(
        needs.ends_with("the trace lacked --write or was shorter than --interval"),
        "{needs}"
    );
}

#[test]
fn unanswered_attempts_are_found_with_the_place_of_the_drops() {
    let aborted = |drops: Option<Vec<_>>| {
        move |number, mut record: Record| {
            if number % 4 == 0 {
                record = refused(record);
                record.outcome = Some(Outcome::ConnectAborted);
                record.tcp.total_retrans = 2;
                record.drops.clone_from(&drops);
            }
            record
        }
    };
    let cases = [
        (
            Some(vec![testing::drops(PacketDirection::Sent, "NETFILTER_DROP", 3)]),
            "This node dropped 75 packets that the client sent: NETFILTER_DROP",
        ),
        (Some(Vec::new()), "This node dropped none of their packets"),
        (None, "It is unknown whether this node dropped"),
    ];
    for (drops, expected) in cases {
        let report = changed(aborted(drops));
        let finding = only(&report);
        assert_eq!((finding.rule, finding.count), ("no_answer", 25));
        assert!(finding.evidence.join(" ").contains(expected), "{:?}", finding.evidence);
    }
}

#[test]
fn attempt_that_still_waits_counts() {
    let mut records: Vec<_> = (0..10).map(connection).collect();
    for number in 10..13 {
        let mut waiting = connection(number);
        (waiting.event, waiting.outcome, waiting.established) = (Event::Update, None, false);
        waiting.start = Some(records[0].time);
        waiting.time = WallTime(START + 5 * SECOND);
        records.push(waiting);
    }
    let report = report(&records);
    let finding = only(&report);
    assert_eq!((finding.rule, finding.count, finding.of), ("no_answer", 3, 13));
    assert!(finding.flags.words().contains(&"--connecting".to_owned()));
}

#[test]
fn resets_after_the_same_time_point_to_a_timeout() {
    let report = changed(|number, mut record| {
        if number % 5 == 0 {
            record.outcome = Some(Outcome::ResetByPeer);
            record.duration_ns = Some(60_000_000_000 + number * 1_000_000);
            record.undelivered_bytes = 100;
        }
        record
    });
    let finding = only(&report);
    assert_eq!((finding.rule, finding.severity), ("resets", Severity::Critical));
    let evidence = finding.evidence.join(" ");
    for part in ["after about 60.0 s", "idle timeouts", "20 connections lost 2.0 KiB"] {
        assert!(evidence.contains(part), "{evidence}");
    }
}

#[test]
fn few_resets_without_loss_are_a_notice() {
    let severity = |resets: u64, lost: u64| {
        let report = changed(|number, mut record| {
            if number >= 100 - resets * 4 && number % 4 == 0 {
                record.outcome = Some(Outcome::ResetByPeer);
                record.undelivered_bytes = lost;
            }
            record
        });
        only(&report).severity
    };
    assert_eq!(severity(3, 0), Severity::Notice);
    assert_eq!(severity(5, 0), Severity::Warning);
    assert_eq!(severity(3, 10), Severity::Critical);
}

#[test]
fn full_accept_queue_explains_slow_handshakes() {
    let mut records: Vec<_> = (0..100).map(connection).collect();
    for record in records.iter_mut().step_by(4) {
        record.connect_ns = Some(1_020_000_000);
        record.tcp.total_retrans = 1;
    }
    let queue = |backlog, dropped| AcceptQueue {
        backlog,
        max_backlog: 128,
        dropped,
        ..AcceptQueue::default()
    };
    let listener = |queue| {
        let mut record = Record::report(
            Subject::Listener(queue),
            WallTime(START),
            "10.0.1.1:8443".parse().unwrap(),
        );
        record.names.dst = pod("payments", 0);
        record
    };
    let slow = report(&records);
    assert_eq!(only(&slow).rule, "slow_connect");
    records.push(listener(queue(129, 40)));
    let full = report(&records);
    assert_eq!(only(&full).rule, "accept_queue");
    assert!(
        full.findings[0].title.contains("shop/payments-0:8443"),
        "{}",
        full.findings[0].title
    );
    assert_eq!(report(&[listener(queue(128, 2))]).findings, []);
}

#[test]
fn slow_handshake_is_compared_with_the_round_trip() {
    let slow = |rtt_us| {
        changed(move |_, mut record| {
            record.connect_ns = Some(200_000_000);
            record.tcp.rtt_min_us = Some(rtt_us);
            record
        })
    };
    assert_eq!(only(&slow(500)).rule, "slow_connect");
    // A server on another continent is no fault.
    assert_eq!(slow(180_000).findings, []);
}

#[test]
fn loss_is_found_by_path() {
    let lossy = |retransmits| {
        changed(move |_, mut record| {
            record.tcp.data_segs_out = 50;
            record.tcp.total_retrans = retransmits;
            record
        })
    };
    let report = lossy(1);
    let finding = only(&report);
    assert_eq!((finding.rule, finding.count, finding.of), ("loss", 100, 5_000));
    assert!(finding.title.contains("2.0 %"), "{}", finding.title);
    assert_eq!(lossy(0).findings, []);
}

#[test]
fn process_that_does_not_close_is_named() {
    let held = |state, seconds: i64| {
        let updates = (0..4).flat_map(move |number| {
            [0, seconds].map(|second| {
                let mut record = connection(number);
                (record.event, record.outcome) = (Event::Update, None);
                record.tcp.state = state;
                record.time = WallTime(START + second * SECOND);
                record
            })
        });
        let mut records: Vec<_> = updates.collect();
        records.sort_by_key(|record| record.time);
        report(&records)
    };
    let report = held(TcpState::CloseWait, 10);
    let finding = only(&report);
    assert_eq!((finding.rule, finding.count, finding.of), ("not_closed", 4, 4));
    assert!(
        finding
            .title
            .starts_with("python3/4711 does not close 4 of 4 open connections"),
        "{}",
        finding.title
    );
    assert_eq!(held(TcpState::CloseWait, 5).findings, []);
    assert_eq!(held(TcpState::Established, 10).findings, []);
}

#[test]
fn churn_needs_a_rate_and_says_when_ports_run_out() {
    let churn = |per_second: i64, closed_by| {
        let records: Vec<_> = (0..1_000)
            .map(|number| {
                let mut record = connection(number);
                record.time = WallTime(START + number as i64 * SECOND / per_second);
                record.closed_by = Some(closed_by);
                record
            })
            .collect();
        report(&records)
    };
    let busy = churn(50, ClosedBy::Peer);
    assert_eq!((only(&busy).rule, only(&busy).severity), ("churn", Severity::Notice));
    let exhausting = churn(1_000, ClosedBy::Local);
    assert_eq!(only(&exhausting).severity, Severity::Warning);
    assert!(only(&exhausting).evidence.join(" ").contains("EADDRNOTAVAIL"));
    assert_eq!(churn(10, ClosedBy::Local).findings, []);
}

#[test]
fn odd_pod_is_found_among_its_siblings() {
    let slow = |times: u64| {
        let records: Vec<_> = (0..300)
            .map(|number| {
                let mut record = connection(number);
                record.duration_ns = Some(if number % 3 == 1 {
                    times * 10_000_000
                } else {
                    10_000_000
                });
                record
            })
            .collect();
        report(&records)
    };
    let report = slow(9);
    let finding = only(&report);
    assert_eq!(finding.rule, "one_of_many");
    assert!(
        finding.title.starts_with("shop/payments-1 differs from the other pods"),
        "{}",
        finding.title
    );
    assert_eq!(finding.flags.words(), ["--to-pod", "shop/payments-1"]);
    assert_eq!(slow(2).findings, []);
}

#[test]
fn same_reset_seen_from_both_ends_is_one_finding() {
    let mut records = Vec::new();
    for number in 0..100 {
        let mut client = connection(number);
        client.outcome = Some(Outcome::ResetByPeer);
        let mut server = client.clone();
        server.id.cookie += 1_000;
        server.direction = Direction::Inbound;
        server.outcome = Some(Outcome::ResetByLocal);
        server.reset_reason = Some("TCP_ABORT_ON_CLOSE".into());
        records.extend([client, server]);
    }
    let report = report(&records);
    let finding = only(&report);
    assert_eq!(finding.subject.direction, Some(Direction::Outbound));
    let evidence = finding.evidence.join(" ");
    assert!(
        evidence.contains("TCP_ABORT_ON_CLOSE (the process closed with unread data)"),
        "{evidence}"
    );
}

#[test]
fn many_pairs_are_bounded_and_reported() {
    let records: Vec<_> = (0..6_000_u32)
        .map(|number| {
            let mut record = connection(number.into());
            record.names = crate::record::Names::default();
            record.dst = std::net::SocketAddr::new(std::net::Ipv4Addr::from(0x0a00_0000 + number).into(), 80);
            record
        })
        .collect();
    let report = report(&records);
    assert!(
        report.unknown.iter().any(|unknown| unknown.contains("too many pairs")),
        "{:?}",
        report.unknown
    );
}

#[test]
fn pod_that_serves_another_client_more_is_not_odd() {
    // payments-1 gets most of the slow requests, which only frontend sends.
    let records: Vec<_> = (0..600)
        .map(|number| {
            let mut record = connection(number);
            record.duration_ns = Some(10_000_000);
            if number % 3 == 1 && number % 2 == 0 {
                record.names.src = pod("frontend", 0);
                record.duration_ns = Some(900_000_000);
            }
            record
        })
        .collect();
    assert_eq!(report(&records).findings, []);
}
