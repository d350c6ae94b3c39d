//! A wall clock that somebody steps.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde_json::Value;

use crate::rollups::{Lines, number, rolling};
use crate::support::expect::{CLOCK_ERROR, moment};
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{Span, Truth, V, drain, exchange, pair, timed};
use crate::support::store::Rec;
use crate::support::tracer::Tracer;
use crate::{Table, shared};

/// Adds the trials.
pub fn add(table: Table) -> Table {
    table.own(
        "clock_stepped_back_and_on",
        &[Need::StepClock, Need::Alone],
        stepped_back_and_on,
    )
}

const HOUR: Duration = Duration::from_secs(3600);

fn time_of(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.unsigned_abs().try_into().unwrap(),
    )
}

/// The wall clock, put right when dropped.
struct WallClock {
    ahead_of_monotonic: Duration,
}

impl WallClock {
    fn new() -> Self {
        Self {
            ahead_of_monotonic: time_of(ClockId::Realtime) - time_of(ClockId::Monotonic),
        }
    }

    fn set_slow_by(&self, slow: Duration) {
        let now = time_of(ClockId::Monotonic) + self.ahead_of_monotonic - slow;
        let now = Timespec {
            tv_sec: now.as_secs().try_into().unwrap(),
            tv_nsec: now.subsec_nanos().into(),
        };
        clock_settime(ClockId::Realtime, now).expect("set the clock");
    }
}

impl Drop for WallClock {
    fn drop(&mut self) {
        self.set_slow_by(Duration::ZERO);
    }
}

/// Both ends of a connection. The kernel may give a listener's port away again: both ports are looked at.
fn ends(tracer: &Tracer, truth: &Truth) -> [Rec; 2] {
    let both = |records: &[Rec]| {
        let of_it = |direction: &str| {
            let is_it = |rec: &&Rec| {
                let [src, dst] = ["src", "dst"].map(|end| &rec.value[end]["port"]);
                *src == truth.src.port() && *dst == truth.dst.port() && rec.value["direction"] == direction
            };
            records.iter().find(is_it).cloned()
        };
        Some([of_it("outbound")?, of_it("inbound")?])
    };
    tracer.store.wait(net::inode(), both).unwrap()
}

/// A connection's truth, and when it was closed.
fn connection() -> (Truth, Span) {
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    let ((), closed) = timed(|| {
        drop(pair.client);
        assert_eq!(drain(&pair.server), 0);
        drop(pair.server);
    });
    (pair.truth, closed)
}

/// A connection of which all times are right by the clock as it is now.
fn right(tracer: &Tracer) -> (Truth, Span) {
    let (truth, closed) = connection();
    let wants = [
        truth.outbound().bytes(1000, 300).ok("local"),
        truth.inbound().bytes(300, 1000).ok("peer"),
    ];
    let records = ends(tracer, &truth);
    for (want, record) in wants.iter().zip(&records) {
        assert_eq!(want.differences(record), Vec::<String>::new(), "{}", record.value);
    }
    (truth, closed)
}

fn within(time: &Value, earliest: SystemTime, latest: SystemTime) -> bool {
    moment(time).is_some_and(|time| time >= earliest - CLOCK_ERROR && time <= latest + CLOCK_ERROR)
}

/// An hour back, and an hour on. What happened before a step has the times of before, what happened after it those of
/// after; a connection over a step has one of each, and lasted as long as it did.
fn stepped_back_and_on() {
    // There for its capture, which must tell all this again.
    shared();
    let clock = WallClock::new();
    let tracer = Tracer::json(&[]);
    tracer.store.keep(net::inode());
    let (rollup, lines) = rolling(&["--interval", "1s", "--by", "connection"]);
    let mut told = vec![right(&tracer)];
    for slow in [HOUR, Duration::ZERO] {
        let began = Instant::now();
        let older = pair(V::Four);
        let opened = Instant::now();
        if slow == HOUR {
            tracer.store.set_back();
            shared().store.set_back();
        }
        clock.set_slow_by(slow);
        noticed(&tracer, slow == HOUR);
        told.push(right(&tracer));
        let least = opened.elapsed();
        let ((), closed) = timed(|| {
            drop(older.client);
            assert_eq!(drain(&older.server), 0);
            drop(older.server);
        });
        for record in ends(&tracer, &older.truth) {
            let most = began.elapsed();
            let value = &record.value;
            assert!(
                within(&value["start"], older.truth.open.before, older.truth.open.after),
                "{value}"
            );
            assert!(
                within(&value["time"], closed.before, record.seen),
                "{closed:?}: {value}"
            );
            let lasted = Duration::from_nanos(value["duration_ns"].as_u64().unwrap());
            assert!(lasted >= least && lasted <= most, "{least:?} to {most:?}: {value}");
        }
        told.push(right(&tracer));
    }
    tracer.interrupt().check_whole();
    windows(&lines, &told);
    assert!(rollup.interrupt().status.success());
}

/// Until the tracer has been told of the step, which takes the kernel a moment, the clock of before counts: for the first
/// connection either may, and no other. Its record comes later than that moment.
fn noticed(tracer: &Tracer, back: bool) {
    let (truth, closed) = connection();
    let before = |time: SystemTime| if back { time + HOUR } else { time - HOUR };
    for record in ends(tracer, &truth) {
        let value = &record.value;
        for (time, span) in [(&value["start"], truth.open), (&value["time"], closed)] {
            let latest = span.after.max(record.seen);
            let right = within(time, span.before, latest) || within(time, before(span.before), before(latest));
            assert!(right, "{span:?}: {value}");
        }
    }
}

/// Each end counts once, in the window of its end; or, where it was told late by less than a window, in the one after.
fn windows(lines: &Lines, told: &[(Truth, Span)]) {
    const WINDOW: Duration = Duration::from_secs(1);
    for (truth, closed) in told {
        let its = |line: &&Value| {
            let [src, dst] = ["src", "dst"].map(|end| &line["group"][end]["port"]);
            *src == truth.src.port() && *dst == truth.dst.port() && number(line, "closed") > 0
        };
        let found = lines.wait(|lines| {
            let found: Vec<_> = lines.iter().filter(its).cloned().collect();
            (found.len() >= 2).then_some(found)
        });
        assert_eq!(found.len(), 2, "{found:#?}");
        for line in &found {
            assert_eq!(number(line, "closed"), 1, "{line}");
            assert!(
                within(&line["window_start"], closed.before - WINDOW, closed.after + WINDOW),
                "{closed:?}: {line}"
            );
        }
    }
}
