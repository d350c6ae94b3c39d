//! Tests that a replayed capture has the written records, and a damaged capture its intact records.

use std::sync::Arc;

use kmesh_trace_common::TURN_BUCKETS;

use super::lines::{Damage, Lines, Step};
use super::parse::{Line, Parser};
use super::testing::{capture, header};
use super::{Compression, Target};
use crate::config::{CapturePath, Events};
use crate::output::json::contract::{ConnLine, ListenerLine, PairLine, RejectLine};
use crate::output::{Sink, append_line, testing};
use crate::record::{
    AcceptQueue, ClosedBy, Comm, Congestion, ConnId, ContainerId, Direction, Event, Family, Joined, Labels, Names,
    Outcome, PacketDirection, PacketDrops, Pod, Process, ProcessBy, Record, Service, ServiceBy, ServiceMatch, Subject,
    Tcp, TcpState, Turns, WallTime, Workload,
};
use crate::track::delta::Delta;

const ALL: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn of(compression: Compression, records: &[Record]) -> Vec<u8> {
    capture(compression, |capture| {
        for record in records {
            match record.subject {
                Subject::Connection => capture.record(record, &Delta::default()).unwrap(),
                _ => capture.report(record).unwrap(),
            }
        }
    })
}

fn json(record: &Record) -> String {
    let mut line = Vec::new();
    let appended = match record.subject {
        Subject::Connection if record.joined.is_some() => append_line(&mut line, &PairLine::new(record)),
        Subject::Connection => append_line(&mut line, &ConnLine::new(record)),
        Subject::Reject(count) => append_line(&mut line, &RejectLine::new(record, count)),
        Subject::Listener(queue) => append_line(&mut line, &ListenerLine::new(record, queue)),
    };
    appended.unwrap();
    String::from_utf8(line).unwrap()
}

/// Returns the lines of a capture, and the problems of the skipped parts.
fn read(bytes: &[u8]) -> (Vec<Line>, Vec<String>) {
    let (mut lines, mut parser) = (Lines::new(bytes).unwrap(), Parser::default());
    let (mut all, mut skipped) = (Vec::new(), Vec::new());
    loop {
        match lines.next_line().unwrap() {
            Step::Line(line) => match parser.parse(line) {
                Ok(line) => all.push(line),
                Err(problem) => skipped.push(problem),
            },
            Step::Damage(damage) => skipped.push(damage.to_string()),
            Step::End => return (all, skipped),
        }
    }
}

fn records(lines: &[Line]) -> Vec<String> {
    let record = |line: &Line| match line {
        Line::Record(record) => Some(json(record)),
        _ => None,
    };
    lines.iter().filter_map(record).collect()
}

/// Generates random records with any numbers and any names.
struct Chance {
    next: Box<dyn FnMut() -> u64>,
    pods: Vec<Arc<Pod>>,
    services: Vec<Arc<Service>>,
}

impl Chance {
    fn new(seed: u64) -> Self {
        let mut chance = Self {
            next: Box::new(testing::random(seed)),
            pods: Vec::new(),
            services: Vec::new(),
        };
        chance.pods = (0..40).map(|_| Arc::new(chance.pod())).collect();
        chance.services = (0..10)
            .map(|_| {
                let [namespace, name, host] = [chance.text(), chance.text(), chance.text()];
                Arc::new(Service { namespace, name, host })
            })
            .collect();
        chance
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next)() as usize % limit
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| make(self))
    }

    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }

    /// Returns a number of a random magnitude, and often 0 or the maximum.
    fn number(&mut self) -> u64 {
        let width = self.below(65) as u32;
        match self.below(8) {
            0 => u64::MAX,
            1 => 0,
            _ => (self.next)() & 1_u64.checked_shl(width).map_or(u64::MAX, |power| power.wrapping_sub(1)),
        }
    }

    fn narrow(&mut self) -> u32 {
        self.number() as u32
    }

    fn text(&mut self) -> Arc<str> {
        let pieces = [
            "web",
            "\u{1b}[31m",
            "\u{202e}",
            "\"",
            "\n",
            "é",
            "",
            "\0",
            ", x=",
            "ﷺ",
            "kube-system",
        ];
        (0..self.below(6))
            .map(|_| self.one_of(&pieces))
            .collect::<String>()
            .into()
    }

    fn pod(&mut self) -> Pod {
        Pod {
            uid: self.text(),
            namespace: self.text(),
            name: self.text(),
            workload: self.maybe(|chance| Workload {
                kind: chance.text(),
                name: chance.text(),
            }),
            service_account: self.maybe(Self::text),
            node: self.maybe(Self::text),
            host_network: self.maybe(Self::flag),
            labels: self.maybe(|chance| {
                (0..chance.below(5))
                    .map(|_| (chance.text(), chance.text()))
                    .collect::<Labels>()
            }),
        }
    }

    fn address(&mut self) -> std::net::SocketAddr {
        let port = self.narrow() as u16;
        if self.flag() {
            (self.narrow().to_be_bytes(), port).into()
        } else {
            let bits = u128::from(self.number()) << 64 | u128::from(self.number());
            (bits.to_be_bytes(), port).into()
        }
    }

    fn end(&mut self) -> crate::record::End {
        crate::record::End {
            pod: self.maybe(|chance| chance.one_of(&chance.pods.clone())),
            node: self.maybe(Self::text),
        }
    }

    fn packet_drops(&mut self) -> PacketDrops {
        PacketDrops {
            direction: self.one_of(PacketDirection::ALL),
            reason: self.text(),
            packets: self.number(),
        }
    }

    /// Returns a record, which may have been joined.
    fn record(&mut self) -> Record {
        let record = self.end_of_connection();
        if record.subject != Subject::Connection || record.event != Event::Close || self.flag() {
            return record;
        }
        let other = self.maybe(|chance| Record {
            event: Event::Close,
            subject: Subject::Connection,
            direction: match record.direction {
                Direction::Inbound => Direction::Outbound,
                Direction::Outbound => Direction::Inbound,
            },
            ..chance.end_of_connection()
        });
        Record {
            joined: Some(Box::new(Joined { other })),
            ..record
        }
    }

    fn end_of_connection(&mut self) -> Record {
        Record {
            id: ConnId {
                cookie: self.number(),
                attempt: self.narrow(),
                node: 0,
            },
            event: self.one_of(Event::ALL),
            time: WallTime(self.number() as i64),
            start: self.maybe(|chance| WallTime(chance.number() as i64)),
            duration_ns: self.maybe(Self::number),
            connect_ns: self.maybe(Self::number),
            preexisting: self.flag(),
            observed_ns: self.number(),
            node: self.text(),
            direction: self.one_of(Direction::ALL),
            family: self.one_of(Family::ALL),
            src: self.address(),
            dst: self.address(),
            names: Names {
                src: self.end(),
                dst: self.end(),
                service: self.maybe(|chance| ServiceMatch {
                    service: chance.one_of(&chance.services.clone()),
                    by: chance.one_of(ServiceBy::ALL),
                    ambiguous: chance.flag(),
                }),
                original_dst: self.maybe(Self::address),
                container: self.maybe(Self::text),
                unresolved: self.flag(),
            },
            process: self.maybe(|chance| Process {
                pid: chance.narrow(),
                comm: Comm(u128::from(chance.number()).to_le_bytes()),
                by: chance.one_of(ProcessBy::ALL),
            }),
            netns: self.narrow(),
            is_netns_of_root: true,
            cgroup_id: self.maybe(Self::number),
            container_id: self.maybe(|chance| ContainerId::new(&format!("{:064x}", chance.number())).unwrap()),
            sent_bytes: self.number(),
            received_bytes: self.number(),
            undelivered_bytes: self.number(),
            established: self.flag(),
            outcome: self.maybe(|chance| chance.one_of(Outcome::ALL)),
            errno: self.maybe(Self::narrow),
            closed_by: self.maybe(|chance| chance.one_of(ClosedBy::ALL)),
            reset_reason: self.maybe(Self::text),
            drops: self.maybe(|chance| (0..chance.below(4)).map(|_| chance.packet_drops()).collect()),
            dropped_to: None,
            turns: self.maybe(|chance| {
                let length = chance.below(TURN_BUCKETS + 1);
                let mut histogram = [0; TURN_BUCKETS];
                histogram[..length].fill_with(|| chance.number());
                Box::new(Turns {
                    count: chance.number(),
                    wait_ns: chance.number(),
                    max_wait_ns: chance.number(),
                    histogram,
                    overlapped: chance.number(),
                })
            }),
            subject: match self.below(8) {
                0 => Subject::Reject(self.number()),
                1 => Subject::Listener(AcceptQueue {
                    backlog: self.narrow(),
                    max_backlog: self.narrow(),
                    half_open: self.narrow(),
                    dropped: self.narrow(),
                    dropped_total: self.narrow(),
                }),
                _ => Subject::Connection,
            },
            joined: None,
            tcp: Tcp {
                state: self.one_of(TcpState::ALL),
                old_state: self.maybe(|chance| chance.one_of(TcpState::ALL)),
                srtt_us: self.maybe(Self::narrow),
                rtt_min_us: self.maybe(Self::narrow),
                mss: self.narrow(),
                snd_cwnd: self.narrow(),
                snd_ssthresh: self.narrow(),
                rcv_nxt: self.narrow(),
                snd_nxt: self.narrow(),
                snd_una: self.narrow(),
                ecn_flags: self.narrow() as u8,
                rate_delivered: self.narrow(),
                rate_interval_us: self.narrow(),
                packets_out: self.narrow(),
                retrans_out: self.narrow(),
                total_retrans: self.narrow(),
                segs_in: self.narrow(),
                data_segs_in: self.narrow(),
                segs_out: self.narrow(),
                data_segs_out: self.narrow(),
                lost: self.narrow(),
                lost_out: self.narrow(),
                sacked_out: self.narrow(),
                bytes_received: self.number(),
                bytes_acked: self.number(),
                dsack_dups: self.narrow(),
                delivered: self.narrow(),
                delivered_ce: self.narrow(),
                icsk_retransmits: self.narrow() as u8,
                bytes_sent: self.number(),
                bytes_retrans: self.number(),
                rcv_ooopack: self.maybe(Self::narrow),
                reord_seen: self.maybe(Self::narrow),
                snd_wnd: self.narrow(),
                rcv_wnd: self.narrow(),
                rcv_rtt_us: self.maybe(Self::narrow),
                rttvar_us: self.narrow(),
                rto_us: self.maybe(Self::number),
                pmtu: self.maybe(Self::narrow),
                congestion: self.maybe(|chance| Congestion::new(chance.one_of(&["cubic", "bbr", "reno"]))),
                total_rto: self.maybe(|chance| chance.narrow() as u16),
                total_rto_ms: self.maybe(Self::narrow),
                busy_us: self.maybe(Self::number),
                rwnd_limited_us: self.maybe(Self::number),
                sndbuf_limited_us: self.maybe(Self::number),
                last_send_ms: self.maybe(Self::narrow),
                last_receive_ms: self.maybe(Self::narrow),
            },
        }
    }
}

#[test]
fn replayed_lines_are_the_same_bytes() {
    for seed in 0..5 {
        let mut chance = Chance::new(seed);
        let mut all = [testing::all(), testing::reports()].concat();
        all.extend((0..2000).map(|_| chance.record()));
        all.extend(testing::hostile_names().take(500).map(|name| testing::named(&name)));
        let expected: Vec<_> = all.iter().map(json).collect();
        for compression in ALL {
            let (lines, skipped) = read(&of(compression, &all));
            assert_eq!(skipped, [""; 0], "{compression:?}, seed {seed}");
            assert_eq!(lines[0], Line::Header(header()));
            for (line, expected) in records(&lines).iter().zip(&expected) {
                assert_eq!(line, expected, "seed {seed}");
            }
            assert_eq!(lines.len(), 1 + expected.len());
        }
    }
}

#[test]
fn capture_has_only_selected_reports() {
    let header = header();
    let folder = std::env::temp_dir().join(format!("kmesh-trace-reports-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("x.jsonl");
    let target = Target::create(&CapturePath::File(path.clone()), None).unwrap();
    let events = Events {
        reject: true,
        ..Events::NONE
    };
    let mut capture = target.start(header.clone(), events).unwrap();
    for record in testing::reports() {
        capture.report(&record).unwrap();
    }
    capture.record(&testing::example(), &Delta::default()).unwrap();
    capture.finish().unwrap();
    let (lines, _) = read(&std::fs::read(&path).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
    let [rejected, _, _, unnamed] = <[Record; 4]>::try_from(testing::reports()).unwrap();
    let expected = [rejected, unnamed, testing::example()];
    assert_eq!(records(&lines), expected.each_ref().map(json));
}

#[test]
fn losses_and_summaries_are_replayed() {
    let bytes = capture(Compression::Zstd, |capture| {
        capture.lost(&testing::lost()).unwrap();
        capture.record(&testing::example(), &Delta::default()).unwrap();
        capture.summary(&testing::summary()).unwrap();
    });
    let (lines, skipped) = read(&bytes);
    assert_eq!(skipped, [""; 0]);
    let expected = [
        Line::Header(header()),
        Line::Lost(testing::lost()),
        Line::Record(Box::new(testing::example())),
        Line::Summary(Box::new(testing::summary()), testing::info()),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn summary_of_capture_counts_closes_that_were_not_printed() {
    let bytes = capture(Compression::None, |capture| {
        for _ in 0..5 {
            capture.record(&testing::example(), &Delta::default()).unwrap();
        }
        let mut summary = testing::clean_summary();
        (summary.delivered, summary.filtered) = (2, 7);
        capture.summary(&summary).unwrap();
    });
    let Some(Line::Summary(summary, _)) = read(&bytes).0.pop() else {
        panic!("a summary")
    };
    assert_eq!((summary.delivered, summary.filtered), (5, 4));
}

#[test]
fn records_share_pods_and_services() {
    let mut parser = Parser::default();
    let line = json(&testing::in_pods());
    let mut parse = |line: &str| match parser.parse(line.as_bytes()) {
        Ok(Line::Record(record)) => record,
        other => panic!("{other:?}"),
    };
    let [first, second] = [parse(&line), parse(&line)];
    let pod = |record: &Record| record.names.dst.pod.clone().unwrap();
    assert!(Arc::ptr_eq(&pod(&first), &pod(&second)));
    let relabelled = parse(&line.replace(r#""version":"v1""#, r#""version":"v2""#));
    assert_eq!(pod(&relabelled).labels.as_ref().unwrap().get("version"), Some("v2"));
    assert_eq!(pod(&first).labels.as_ref().unwrap().get("version"), Some("v1"));
}

#[test]
fn foreign_lines_are_refused_with_the_reason() {
    let conn = json(&testing::example());
    let cases = [
        ("", "not a line of kmesh-trace"),
        ("null", "not a line of kmesh-trace"),
        ("{}", "not a line of kmesh-trace"),
        (
            r#"{"type":"rollup","v":1}"#,
            r#"a line of type "rollup" cannot be replayed"#,
        ),
        (r#"{"type":"conn","v":1}"#, "missing field `id`"),
        (r#"{"type":"reject","v":1}"#, "missing field `time`"),
        (r#"{"type":"listener","v":1}"#, "missing field `time`"),
        (&conn.replace(r#","port":9080"#, ""), "missing field `port`"),
        (&conn.replace(r#""v":1"#, r#""v":2"#), "version 2 is not supported"),
        (
            &conn.replace(r#""event":"close""#, r#""event":"opened""#),
            r#""opened""#,
        ),
        (&conn.replace("5f2c81-1", "5f2c81"), "is not the id"),
        (&conn.replace("10.244.0.17", "10.244.0.300"), "IP address"),
        (&conn[..conn.len() / 2], "EOF"),
    ];
    for (line, expected) in cases {
        let error = Parser::default().parse(line.as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{line}: {error}");
    }
    assert!(
        Parser::default()
            .parse(b"{\"type\":\"\xff\"}")
            .unwrap_err()
            .contains("UTF-8")
    );
}

#[test]
fn unknown_members_and_any_order_are_accepted() {
    let line = json(&testing::in_pods());
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    // Members in alphabetical order.
    let mut reordered: serde_json::Map<String, serde_json::Value> = value.as_object().unwrap().clone();
    reordered.insert("later".to_owned(), serde_json::json!({"than": ["this"]}));
    let text = serde_json::to_string(&reordered).unwrap();
    let Ok(Line::Record(record)) = Parser::default().parse(text.as_bytes()) else {
        panic!("a record")
    };
    assert_eq!(json(&record), line);
}

#[test]
fn damaged_compressed_capture_has_no_wrong_record() {
    let all: Vec<_> = (0..200)
        .map(|cookie| {
            let mut record = testing::example();
            record.id.cookie = cookie;
            record
        })
        .collect();
    let expected: Vec<_> = all.iter().map(json).collect();
    let mut random = testing::random(7);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let intact = of(compression, &all);
        for _ in 0..300 {
            let mut bytes = intact.clone();
            let at = random() as usize % bytes.len();
            bytes[at] ^= 1 << (random() % 8);
            let (lines, skipped) = read(&bytes);
            let is_whole = records(&lines) == expected;
            // A changed bit can make a frame look cut off, and then its checksum is never verified.
            if skipped.iter().any(|problem| problem.starts_with("cut off")) {
                continue;
            }
            // The header of a frame has unused bits.
            assert!(is_whole || !skipped.is_empty(), "{compression:?}, byte {at}");
            assert!(
                is_whole || records(&lines).is_empty(),
                "{compression:?}, byte {at}: {skipped:?}"
            );
        }
    }
}

#[test]
fn random_bytes_contain_no_line() {
    let mut random = testing::random(1);
    for magic in [&b""[..], b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"] {
        for length in 0..300 {
            let mut bytes = magic.to_vec();
            bytes.extend((0..length).map(|_| random() as u8));
            assert_eq!(read(&bytes).0, []);
        }
    }
    assert_eq!(
        Damage::CutOff.to_string(),
        "cut off at the end: the tracer was killed, or it still writes"
    );
}
