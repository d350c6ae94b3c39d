use bytemuck::{Zeroable, bytes_of};
use kmesh_trace_common::{FLAG_ACTIVE, KIND_CLOSE, SK_DONE, Snapshot, state};

use std::io::Write;
use std::num::NonZeroU64;

use super::*;
use crate::config::Events;
use crate::engine::Selection;
use crate::filter::Filter;
use crate::output::Sink;
use crate::output::testing::Shared;
use crate::own_connections;
use crate::record::{self, LossReason, Lost, Summary};
use crate::track::delta::Delta;

const ALL: Events = Events {
    close: true,
    open: true,
    update: true,
    reject: false,
    listener: false,
};
const CLOSES: Events = Events {
    close: true,
    open: false,
    update: false,
    reject: false,
    listener: false,
};

/// A sink that writes one short word per call, for example `c1` for the close of the connection with cookie 1.
struct Letters(Shared);

impl Sink for Letters {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        let letter = match record.event {
            record::Event::Close => "c",
            _ => "u",
        };
        write!(self.0, "{letter}{} ", record.id.cookie)
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        match record.subject {
            Subject::Reject(count) => write!(self.0, "rejected{count} "),
            _ => Ok(()),
        }
    }

    fn lost(&mut self, lost: &Lost) -> io::Result<()> {
        write!(self.0, "lost{} ", lost.lost_records)
    }

    fn summary(&mut self, _: &Summary) -> io::Result<()> {
        write!(self.0, "end ")
    }
}

fn selection(events: Events) -> Selection {
    Selection {
        events,
        filter: Filter::default(),
        count: None,
    }
}

struct Run {
    pipeline: Pipeline,
    out: Shared,
}

impl Run {
    fn new(selection: Selection, until_ns: Option<u64>) -> Self {
        let out = Shared::default();
        let engine = Engine::new(selection, vec![Box::new(Letters(out.clone()))]);
        let tracker = Tracker::new(0, "node".into());
        Self {
            pipeline: Pipeline::new(tracker, 0, until_ns, Clock::new(0), engine),
            out,
        }
    }

    fn close(&mut self, cookies: impl IntoIterator<Item = u64>) {
        for cookie in cookies {
            self.pipeline.hold(&record(KIND_CLOSE, cookie));
        }
    }

    /// Ends the run, and returns its summary.
    fn end(&mut self, counts: &Counts) -> Summary {
        self.pipeline.finish(counts).unwrap();
        let Pipeline { account, engine, .. } = &self.pipeline;
        account.summary(counts, engine.tally(), self.pipeline.time(counts))
    }
}

fn record(kind: u32, cookie: u64) -> Vec<u8> {
    let snapshot = Snapshot {
        kind,
        cookie,
        time_ns: cookie,
        attempt: 1,
        flags: FLAG_ACTIVE,
        old_state: state::FIN_WAIT2,
        sk_flags: SK_DONE,
        ..Snapshot::zeroed()
    };
    let bytes = bytes_of(&snapshot);
    [&(bytes.len() as u64).to_ne_bytes(), bytes].concat()
}

#[test]
fn summary_accounts_for_every_close() {
    let selection = Selection {
        count: NonZeroU64::new(3),
        ..selection(CLOSES)
    };
    let mut run = Run::new(selection, None);
    run.close(1..=5);
    run.pipeline.hold(&record(77, 9));
    assert!(!run.pipeline.engine.is_full());
    let counts = Counts {
        closes: 10,
        filtered: 1,
        ring_full: 2,
        skipped_at_most: 4,
        ..Counts::default()
    };
    let summary = run.end(&counts);
    assert!(run.pipeline.engine.is_full());
    assert_eq!(
        (summary.closes, summary.delivered, summary.after_limit, summary.filtered),
        (14, 3, 2, 1)
    );
    assert_eq!((summary.lost_records, summary.lost_at_most), (7, 4));
    let reasons = [
        LossReason::RingFull,
        LossReason::ProgramSkipped,
        LossReason::Undecodable,
    ];
    assert_eq!(summary.reasons, reasons);
    assert_eq!(run.out.text(), "c1 c2 c3 lost3 end ");
    run.pipeline.lost(&counts).unwrap();
    assert_eq!(run.out.text(), "c1 c2 c3 lost3 end ", "nothing new is lost");
}

#[test]
fn requested_summary_follows_last_counted_close() {
    let mut run = Run::new(selection(CLOSES), None);
    run.close(1..=3);
    run.pipeline
        .request_summary(Counts {
            closes: 4,
            submitted: 2,
            filtered: 2,
            ..Counts::default()
        })
        .unwrap();
    assert_eq!(run.out.text(), "");
    run.end(&Counts::default());
    assert_eq!(run.out.text(), "c1 c2 end c3 end ");
}

#[test]
fn closes_after_duration_are_not_delivered() {
    let mut run = Run::new(selection(CLOSES), Some(2));
    run.close(1..=4);
    assert_eq!(run.end(&Counts::default()).after_limit, 2);
    assert_eq!(run.out.text(), "c1 c2 end ");
}

#[test]
fn update_of_the_scan_at_the_stop_is_within_the_duration() {
    let mut run = Run::new(selection(ALL), Some(2));
    run.pipeline.hold(&record(KIND_UPDATE, 3));
    run.end(&Counts::default());
    assert_eq!(run.out.text(), "u3 end ");
}

#[test]
fn close_after_the_duration_makes_no_update_of_the_scan_at_the_stop_late() {
    let mut run = Run::new(selection(ALL), Some(2));
    let progress = Progress {
        ring_empty_ns: Some(SETTLE_NS + 10),
        scan_began_ns: None,
    };
    let close = record(KIND_CLOSE, 4);
    run.pipeline.take(&close, progress, SETTLE_NS + 10).unwrap();
    run.pipeline.hold(&record(KIND_UPDATE, 5));
    run.end(&Counts::default());
    assert_eq!(run.out.text(), "u5 end ");
}

#[test]
fn updates_do_not_count_as_closes() {
    let mut run = Run::new(selection(ALL), None);
    run.pipeline.hold(&record(KIND_UPDATE, 1));
    run.close([2]);
    assert_eq!(run.end(&Counts::default()).delivered, 1);
    assert_eq!(run.out.text(), "u1 c2 end ");
}

#[test]
fn closes_count_as_filtered_if_events_exclude_close() {
    let mut run = Run::new(selection(Events { close: false, ..ALL }), None);
    run.close([1]);
    assert_eq!(run.end(&Counts::default()).filtered, 1);
}

#[test]
fn filtered_closes_do_not_count_towards_count_limit() {
    let selection = Selection {
        events: ALL,
        filter: Filter {
            // These records differ only in their time, and so in their duration.
            min_duration_ns: Some(3),
            ..Filter::default()
        },
        count: NonZeroU64::new(2),
    };
    let mut run = Run::new(selection, None);
    run.close(1..=5);
    // The filter rejects the update, and an update is not in the summary.
    run.pipeline.hold(&record(KIND_UPDATE, 1));
    let counts = Counts {
        closes: 12,
        filtered: 7,
        ..Counts::default()
    };
    let summary = run.end(&counts);
    assert_eq!(run.out.text(), "c3 c4 end ");
    assert_eq!(
        (summary.delivered, summary.filtered, summary.after_limit),
        (2, 7 + 2, 1),
        "including 7 closes that the kernel filtered out"
    );
    assert_eq!(
        summary.closes,
        summary.delivered + summary.filtered + summary.lost_records + summary.after_limit
    );
}

#[test]
fn closes_after_the_limit_are_not_filtered() {
    let selection = Selection {
        filter: Filter {
            failed: true,
            ..Filter::default()
        },
        ..selection(CLOSES)
    };
    let mut run = Run::new(selection, Some(2));
    run.close(1..=5);
    let summary = run.end(&Counts::default());
    assert_eq!((summary.delivered, summary.filtered, summary.after_limit), (0, 2, 3));
}

#[test]
fn records_later_than_running_scan_wait_for_its_updates() {
    let mut run = Run::new(selection(ALL), None);
    let far = SETTLE_NS + 100;
    let (first, last) = (record(KIND_CLOSE, 1), record(KIND_CLOSE, 60));
    let scanning = Progress {
        ring_empty_ns: Some(far),
        scan_began_ns: Some(SETTLE_NS + 50),
    };
    run.pipeline.take(&[first, last].concat(), scanning, far).unwrap();
    assert_eq!(run.out.text(), "c1 ");
    run.pipeline.hold(&record(KIND_UPDATE, 55));
    run.pipeline.hold(&record(KIND_UPDATE, far));
    run.pipeline.take(&[], scanning, far).unwrap();
    assert_eq!(run.out.text(), "c1 u55 c60 ");
    let scanned = Progress {
        ring_empty_ns: Some(far + SETTLE_NS),
        scan_began_ns: None,
    };
    run.pipeline.take(&[], scanned, far).unwrap();
    assert_eq!(run.out.text(), format!("c1 u55 c60 u{far} "));
}

#[test]
fn rejects_of_own_attempts_are_filtered_out() {
    let loopback = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
    let key = RejectKey {
        client: bytemuck::cast(loopback),
        dialled: bytemuck::cast(loopback),
        port: 10_450,
        reason: 0,
        netns: 1,
        report: 0,
        pad: 0,
    };
    let own = OwnConnections {
        pid: None,
        netns: Some(1),
    };
    for (own, expected) in [(Some(own), "rejected1 "), (None, "rejected1 rejected3 ")] {
        let mut run = Run::new(selection(ALL), None);
        run.pipeline.own = own;
        for _ in 0..3 {
            own_connections::dial("127.0.0.1:10450".parse().unwrap());
        }
        // Of four RSTs, three answered the tool.
        run.pipeline.take_rejects(&[(key, 1), (key, 3)], 1).unwrap();
        assert_eq!(run.out.text(), expected, "{own:?}");
    }
}
