//! A wall clock that an administrator or a time service steps.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde_json::Value;

use crate::rollups::{RollupLines, number, start_rollup};
use crate::support::expect::{CLOCK_ERROR, parse_time};
use crate::support::net;
use crate::support::output::ReceivedRecord;
use crate::support::probe::Need;
use crate::support::sock::{IpVersion, Span, Truth, exchanged_pair, pair, timed};
use crate::support::tracer::Tracer;
use crate::{Topic, shared_tracer};

pub fn add(topic: Topic) -> Topic {
    topic.standalone(
        "clock_stepped_back_and_forward",
        &[Need::StepClock, Need::Exclusive],
        clock_stepped_back_and_forward,
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

/// The wall clock. Dropping it sets the clock right.
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

/// Waits for the records of both ends. Compares both ports, since the kernel may assign a listener's port again.
fn wait_records(tracer: &Tracer, truth: &Truth) -> [ReceivedRecord; 2] {
    let find_both = |records: &[ReceivedRecord]| {
        let find = |direction: &str| {
            let is_it = |record: &&ReceivedRecord| {
                let [src, dst] = ["src", "dst"].map(|end| &record.value[end]["port"]);
                *src == truth.src.port() && *dst == truth.dst.port() && record.value["direction"] == direction
            };
            records.iter().find(is_it).cloned()
        };
        Some([find("outbound")?, find("inbound")?])
    };
    tracer.output.wait(net::current_netns(), find_both).unwrap()
}

/// Makes a connection and closes it. Returns also when it closed.
fn connection() -> (Truth, Span) {
    let pair = exchanged_pair(IpVersion::V4);
    timed(|| pair.close_client_first())
}

/// Makes a connection whose records must have the right times by the present clock.
fn check_connection(tracer: &Tracer) -> (Truth, Span) {
    let (truth, closed) = connection();
    let expected = [
        truth.outbound().bytes(1000, 300).ok("local"),
        truth.inbound().bytes(300, 1000).ok("peer"),
    ];
    let records = wait_records(tracer, &truth);
    for (expected, record) in expected.iter().zip(&records) {
        assert_eq!(expected.differences(record), Vec::<String>::new(), "{}", record.value);
    }
    (truth, closed)
}

fn is_within(time: &Value, earliest: SystemTime, latest: SystemTime) -> bool {
    parse_time(time).is_some_and(|time| time >= earliest - CLOCK_ERROR && time <= latest + CLOCK_ERROR)
}

/// The clock is stepped an hour back, then an hour forward. Each event has the time of the clock at the event, and the
/// duration of a connection over a step is right.
fn clock_stepped_back_and_forward() {
    // Its capture is replayed at the end of the suite and must have the same records.
    shared_tracer();
    let clock = WallClock::new();
    let tracer = Tracer::json(&[]);
    tracer.output.watch(net::current_netns());
    let (rollup, lines) = start_rollup(&["--interval", "1s", "--by", "connection"]);
    let mut connections = vec![check_connection(&tracer)];
    for slow in [HOUR, Duration::ZERO] {
        let start = Instant::now();
        let over_step = pair(IpVersion::V4);
        let opened = Instant::now();
        if slow == HOUR {
            tracer.output.allow_clock_step_back();
            shared_tracer().output.allow_clock_step_back();
        }
        clock.set_slow_by(slow);
        check_first_after_step(&tracer, slow == HOUR);
        connections.push(check_connection(&tracer));
        let min = opened.elapsed();
        let (truth, closed) = timed(|| over_step.close_client_first());
        for record in wait_records(&tracer, &truth) {
            let max = start.elapsed();
            let value = &record.value;
            assert!(
                is_within(&value["start"], truth.open.before, truth.open.after),
                "{value}"
            );
            assert!(
                is_within(&value["time"], closed.before, record.received_at),
                "{closed:?}: {value}"
            );
            let duration = Duration::from_nanos(value["duration_ns"].as_u64().unwrap());
            assert!(duration >= min && duration <= max, "{min:?} to {max:?}: {value}");
        }
        connections.push(check_connection(&tracer));
    }
    tracer.interrupt().check_lossless();
    check_windows(&lines, &connections);
    assert!(rollup.interrupt().status.success());
}

/// The kernel reports a step to the tracer a moment later. Until then, the tracer uses the clock before the step: the
/// times of the first connection may be by either clock, and no others.
fn check_first_after_step(tracer: &Tracer, is_back: bool) {
    let (truth, closed) = connection();
    let by_old_clock = |time: SystemTime| if is_back { time + HOUR } else { time - HOUR };
    for record in wait_records(tracer, &truth) {
        let value = &record.value;
        for (time, span) in [(&value["start"], truth.open), (&value["time"], closed)] {
            let latest = span.after.max(record.received_at);
            let is_right = is_within(time, span.before, latest)
                || is_within(time, by_old_clock(span.before), by_old_clock(latest));
            assert!(is_right, "{span:?}: {value}");
        }
    }
}

/// Each end counts once, in the window of its close, or in the next one if the close was reported late.
fn check_windows(lines: &RollupLines, connections: &[(Truth, Span)]) {
    const WINDOW: Duration = Duration::from_secs(1);
    for (truth, closed) in connections {
        let is_close = |line: &&Value| {
            let [src, dst] = ["src", "dst"].map(|end| &line["group"][end]["port"]);
            *src == truth.src.port() && *dst == truth.dst.port() && number(line, "closed") > 0
        };
        let found = lines.wait(|lines| {
            let found: Vec<_> = lines.iter().filter(is_close).cloned().collect();
            (found.len() >= 2).then_some(found)
        });
        assert_eq!(found.len(), 2, "{found:#?}");
        for line in &found {
            assert_eq!(number(line, "closed"), 1, "{line}");
            assert!(
                is_within(&line["window_start"], closed.before - WINDOW, closed.after + WINDOW),
                "{closed:?}: {line}"
            );
        }
    }
}
