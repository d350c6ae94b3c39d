//! What is written comes back, whatever it is; and whatever is read, all that is sound in it comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::testing::{Shared, capture, header};
use super::*;
use crate::record::{
    Called, ClosedBy, Comm, ConnId, ContainerId, Direction, Event, Family, Labels, Names, Outcome, Pod, Process,
    ProcessBy, Record, Service, ServiceBy, Tcp, TcpState, WallTime, Workload,
};
use crate::render::testing;

fn of(records: &[Record]) -> Vec<u8> {
    capture(|keep| records.iter().for_each(|record| keep.record(record).unwrap()))
}

/// All that a capture tells.
#[derive(Debug, Default, PartialEq)]
struct Told {
    records: Vec<Record>,
    others: Vec<String>,
    damage: Vec<Damage>,
}

fn read(bytes: &[u8]) -> Told {
    let mut reader = Reader::new(bytes).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reader.header, header());
    let mut told = Told::default();
    while let Some(item) = reader.next_item().unwrap() {
        match item {
            Item::Record(record) => told.records.push(record.clone()),
            Item::Damage(damage) => told.damage.push(damage),
            other => told.others.push(format!("{other:?}")),
        }
    }
    told
}

/// Where each block of a capture begins, and where the last one ends.
fn blocks(bytes: &[u8]) -> Vec<usize> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 16 + usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
    let mut starts = vec![at];
    while at < bytes.len() {
        at += 24 + word(at + 12);
        starts.push(at);
    }
    starts
}

/// Records at random: any number, any name.
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

    /// Small ones, large ones, and the edges.
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

    fn record(&mut self) -> Record {
        Record {
            id: ConnId {
                cookie: self.number(),
                association: self.narrow(),
            },
            event: self.one_of(Event::ALL),
            time: WallTime(self.number() as i64),
            start: self.maybe(|chance| WallTime(chance.number() as i64)),
            duration_ns: self.maybe(Self::number),
            connect_ns: self.maybe(Self::number),
            preexisting: self.flag(),
            observed_ns: self.number(),
            direction: self.one_of(Direction::ALL),
            family: self.one_of(Family::ALL),
            src: self.address(),
            dst: self.address(),
            names: Names {
                src: self.end(),
                dst: self.end(),
                service: self.maybe(|chance| Called {
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
            },
        }
    }
}

const ENDED: &str = "End { goes_on: false }";

#[test]
fn records_come_back_as_they_were() {
    let records = testing::all();
    let told = read(&of(&records));
    assert_eq!(told.records, records);
    assert_eq!((&told.others[..], &told.damage[..]), (&[ENDED.to_owned()][..], &[][..]));
    for seed in 0..20 {
        let mut chance = Chance::new(seed);
        let records: Vec<_> = (0..2000).map(|_| chance.record()).collect();
        let bytes = of(&records);
        assert!(blocks(&bytes).len() > 3, "several blocks");
        let told = read(&bytes);
        assert_eq!(told.damage, []);
        assert!(told.records == records, "seed {seed}");
    }
}

#[test]
fn names_are_shared_by_what_is_read() {
    let named = testing::in_pods();
    let told = read(&of(&[named.clone(), testing::example(), named]));
    let pod = |index: usize| told.records[index].names.src.pod.clone().unwrap();
    assert!(Arc::ptr_eq(&pod(0), &pod(2)));
    assert_eq!(told.records[1].names, Names::default());
}

#[test]
fn all_else_comes_in_its_order() {
    let (lost, summary) = (testing::lost(), testing::summary());
    let bytes = capture(|keep| {
        keep.complete(WallTime(1)).unwrap();
        keep.complete(WallTime(2)).unwrap();
        keep.lost(&lost).unwrap();
        keep.complete(WallTime(3)).unwrap();
        keep.summary(&summary).unwrap();
    });
    let told = read(&bytes);
    let expected = [
        "Complete(WallTime(2))".to_owned(),
        format!("Lost({lost:?})"),
        "Complete(WallTime(3))".to_owned(),
        format!("Summary({summary:?})"),
        ENDED.to_owned(),
    ];
    assert_eq!(told.others, expected);
}

/// Five blocks of a record each, all of the same pods.
fn five() -> (Vec<Record>, Vec<u8>) {
    let records: Vec<_> = (0..5)
        .map(|index| Record {
            time: WallTime(testing::TIME.0 + index),
            ..testing::example()
        })
        .collect();
    let bytes = capture(|keep| {
        for record in &records {
            keep.record(record).unwrap();
            keep.flush_now();
        }
    });
    (records, bytes)
}

#[test]
fn a_flipped_bit_costs_one_block_at_the_most() {
    let (records, bytes) = five();
    let starts = blocks(&bytes);
    for at in starts[0]..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        let hit = starts.iter().rposition(|&start| start <= at).unwrap();
        let told = read(&damaged);
        let left: Vec<_> = records
            .iter()
            .enumerate()
            // The first one has what the others call their process.
            .filter(|(index, _)| *index != hit && hit != 0)
            .map(|(_, record)| record.clone())
            .collect();
        assert_eq!(told.records, left, "byte {at}, block {hit}");
        assert!(
            matches!(told.damage[0], Damage::Bytes { at, .. } | Damage::CutOff { at } if at == starts[hit] as u64),
            "byte {at}: {:?}",
            told.damage
        );
    }
}

#[test]
fn a_file_that_is_cut_off_tells_what_is_whole() {
    let (records, bytes) = five();
    let starts = blocks(&bytes);
    for length in starts[0]..bytes.len() {
        let whole = starts.iter().filter(|&&start| start <= length).count() - 1;
        let told = read(&bytes[..length]);
        assert_eq!(told.records, records[..whole.min(5)], "{length} bytes");
        let expected = (starts[whole] != length).then_some(Damage::CutOff {
            at: starts[whole] as u64,
        });
        assert_eq!(told.damage, Vec::from_iter(expected), "{length} bytes");
        assert_eq!(told.others, [""; 0], "the end is not there");
    }
}

#[test]
fn headers_that_are_none() {
    let (_, bytes) = five();
    let first = blocks(&bytes)[0];
    let why = |bytes: &[u8]| match Reader::new(bytes) {
        Ok(_) => String::new(),
        Err(why) => why.to_string(),
    };
    assert_eq!(why(&[]), "it is empty");
    for length in 1..first {
        assert!(why(&bytes[..length]).contains("header is damaged"), "{length} bytes");
    }
    for at in 0..first {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        let why = why(&damaged);
        let expected = match at {
            0..8 => "no capture",
            8..10 => "of format",
            _ => "header is damaged",
        };
        assert!(why.contains(expected), "byte {at}: {why}");
    }
    assert!(why(b"{\"type\":\"conn\"}").contains("JSON"));
    assert!(why(b"\x1f\x8b\x08").contains("gzip"));
}

#[test]
fn blocks_that_are_missing_foreign_or_told_twice_are_told_of() {
    let (records, bytes) = five();
    let starts = blocks(&bytes);
    let piece = |index: usize| &bytes[starts[index]..starts[index + 1]];
    let head = &bytes[..starts[0]];
    let without = [head, piece(0), piece(1), piece(4), piece(5)].concat();
    let told = read(&without);
    assert_eq!(told.records, [&records[..2], &records[4..]].concat());
    let at = starts[2] as u64;
    assert_eq!(told.damage, [Damage::Missing { at, blocks: 2 }]);

    let twice = [head, piece(0), piece(0), piece(1)].concat();
    let told = read(&twice);
    assert_eq!(told.records, records[..2]);
    let at = starts[1] as u64;
    assert_eq!(told.damage, [Damage::Senseless { at }]);
}

#[test]
fn two_captures_in_one_file_are_not_mixed_up() {
    let (records, bytes) = five();
    let out = Shared::default();
    let mut other = header();
    other.info.node = "another".to_owned();
    let mut keep = Keep::to(out.clone(), other).unwrap();
    keep.record(&testing::refused()).unwrap();
    keep.end().unwrap();
    let both = [&bytes[..], &out.bytes()[..]].concat();
    let told = read(&both);
    assert_eq!(told.records, records);
    assert_eq!(told.damage, [Damage::CutOff { at: bytes.len() as u64 }]);
}

/// Each of the files that are kept is small, stands alone, and follows the one before.
#[test]
fn rotated_files_are_the_newest_part_of_all() {
    let folder = std::env::temp_dir().join(format!("kmesh-trace-rotation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("x.kmt");
    let rotation = Rotation {
        size: 64 << 10,
        files: 3,
    };
    let mut chance = Chance::new(3);
    let records: Vec<_> = (0..3000).map(|_| chance.record()).collect();
    let target = Target::create(&Place::File(path.clone()), Some(rotation)).unwrap();
    let mut keep = target.begin(header()).unwrap();
    records.iter().for_each(|record| keep.record(record).unwrap());
    keep.end().unwrap();
    let mut found = Vec::new();
    let mut parts = Vec::new();
    for name in ["x.kmt.2", "x.kmt.1", "x.kmt"] {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        assert!(bytes.len() <= 64 << 10, "{name}: {}", bytes.len());
        let mut reader = Reader::new(&bytes[..]).unwrap();
        let closes = |records: &[Record]| records.iter().filter(|record| record.event == Event::Close).count() as u64;
        let (before, first) = (reader.header.closes_before, found.len());
        parts.push(reader.header.part);
        while let Some(item) = reader.next_item().unwrap() {
            match item {
                Item::Record(record) => found.push(record.clone()),
                Item::End { goes_on } => assert_eq!(goes_on, name != "x.kmt"),
                other => panic!("{name}: {other:?}"),
            }
        }
        let start = records.iter().position(|record| *record == found[first]).unwrap();
        assert_eq!(before, closes(&records[..start]), "{name}");
    }
    assert!(!folder.join("x.kmt.3").exists());
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(
        parts[0] > 0 && parts == [parts[0], parts[0] + 1, parts[0] + 2],
        "{parts:?}"
    );
    assert!(records.ends_with(&found) && found.len() < records.len());
}

/// So many rounds; or as many as there is time for, in seconds, where `KMESH_TRACE_FUZZ_SECONDS` says so.
fn rounds(usual: usize) -> impl Iterator<Item = usize> {
    let seconds = std::env::var("KMESH_TRACE_FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    (0..).take_while(move |&round| until.map_or(round < usual, |until| Instant::now() < until))
}

/// Whatever stands there, reading ends, and does not panic.
#[test]
fn anything_at_all_is_read_to_its_end() {
    let mut chance = Chance::new(1);
    let records: Vec<_> = (0..300).map(|_| chance.record()).collect();
    let sound = of(&records);
    let first = blocks(&sound)[0];
    for _ in rounds(200) {
        let mut bytes = sound.clone();
        for _ in 0..1 + chance.below(20) {
            let at = first + chance.below(bytes.len() - first);
            match chance.below(4) {
                0 => bytes[at] = (chance.next)() as u8,
                1 => bytes.truncate(at.max(first)),
                2 => drop(bytes.drain(at..(at + chance.below(100)).min(bytes.len()))),
                _ => {
                    let piece = bytes[at..(at + chance.below(1000)).min(bytes.len())].to_vec();
                    bytes.extend(piece);
                }
            }
            if bytes.len() <= first {
                break;
            }
        }
        let told = read(&bytes);
        assert!(told.records.len() <= records.len());
        assert!(
            told.records.iter().all(|record| records.contains(record)),
            "a wrong record"
        );
    }
}

/// Blocks with right checksums that no writer made.
#[test]
fn a_block_that_makes_no_sense_is_skipped() {
    let mut chance = Chance::new(2);
    let (head, seed) = header().encode().unwrap();
    for _ in rounds(20_000) {
        let mut body = Vec::new();
        // A sound beginning, and then anything.
        [0, 0, 0, 0, 0]
            .iter()
            .for_each(|&number| varint::put(&mut body, number));
        for _ in 0..chance.below(60) {
            let value = if chance.flag() {
                chance.below(20) as u64
            } else {
                chance.number()
            };
            varint::put(&mut body, value);
        }
        let mut bytes = head.clone();
        frame::encode(&body, 0, seed, &mut bytes).unwrap();
        frame::encode(&[0, 0, 0, 0, 0, 9, 0], 1, seed, &mut bytes).unwrap();
        let told = read(&bytes);
        assert!(told.others.iter().any(|item| item == ENDED) || !told.damage.is_empty());
    }
}
