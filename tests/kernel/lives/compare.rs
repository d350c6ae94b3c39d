//! Compares the records of a life with the predicted records.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use super::FinishedLife;
use super::failures::Failures;
use super::model::ExpectedRecord;
use super::tracer::FilteredTracer;
use super::world::Side;
use crate::support::expect::{CLOCK_ERROR, parse_time};
use crate::support::output::ReceivedRecord;

/// The fields that a record can lack because the kernel skipped a program's run.
const CAN_BE_LOST: [&str; 7] = [
    "outcome",
    "errno",
    "closed_by",
    "start",
    "preexisting",
    "connect_ns",
    "duration_ns",
];

/// A field that differs.
struct Difference {
    /// The field, with both values if they are names.
    kind: String,
    /// The field with both values.
    text: String,
}

/// Compares a life's records with the prediction, and adds the differences to `failures`.
pub fn compare(
    tracer: &FilteredTracer,
    life: &FinishedLife,
    records: &[(Side, ReceivedRecord)],
    failures: &mut Failures,
) {
    let all_values: Vec<&Value> = records.iter().map(|(_, record)| &record.value).collect();
    let is_close = |record: &&(Side, ReceivedRecord)| record.1.value["event"] == "close";
    let mut unmatched: Vec<&(Side, ReceivedRecord)> = records.iter().filter(is_close).collect();
    // Whether the attempt with this id was established.
    let mut attempts = HashMap::new();
    let mut fail = |kind: String, failure: &str| {
        let filter = match tracer.name {
            "" => String::new(),
            name => format!(" [{name}]"),
        };
        failures.add(format!("{}{filter}: {kind}", life.beginning), life.number, || {
            (failure.to_owned(), life.describe(&all_values))
        });
    };
    let all = life.prediction.records.iter();
    let mut expected_records: Vec<&ExpectedRecord> = all.filter(|expected| (tracer.is_selected)(expected)).collect();
    expected_records.sort_by_key(|expected| expected.earliest_end);
    for expected in expected_records.iter().copied() {
        let Some(at) = best_match(expected, &expected_records, &unmatched, tracer.scans) else {
            let text = format!("{expected:?}");
            // If the kernel skipped the program, only the count of lost events shows the end of a reused socket's
            // connection.
            if expected.is_reused {
                tracer.missing.borrow_mut().push(life.describe_record(&text));
            } else {
                let kind = format!("no record, {} {}", expected.direction, expected.ending.outcome);
                fail(kind, &format!("no record of {text}"));
            }
            continue;
        };
        let value = &unmatched.remove(at).1;
        let (record, value) = (value, &value.value);
        attempts.insert(value["id"].to_string(), expected.established);
        // If the kernel skipped a program's run, the record lacks the start of the attempt, or the error, which goes
        // with the socket.
        let lacks_connect = expected.connect_time.is_some() && value["connect_ns"].is_null();
        let is_incomplete = value["outcome"] == "unknown" || value["preexisting"] == true || lacks_connect;
        if is_incomplete {
            let text = life.describe_record(&value.to_string());
            tracer.incomplete.borrow_mut().push(text);
        }
        for Difference { kind, text } in differences(expected, record, tracer.scans) {
            if !(is_incomplete && CAN_BE_LOST.iter().any(|field| kind.starts_with(field))) {
                let kind = format!("{kind}, {} {}", expected.direction, expected.ending.outcome);
                fail(kind, &text);
            }
        }
    }
    for (_, record) in unmatched {
        let value = &record.value;
        let kind = format!("unexpected record, {} {}", value["direction"], value["outcome"]);
        fail(kind, &format!("unexpected record: {value}"));
    }
    for (_, record) in records.iter().filter(|record| !is_close(record)) {
        let value = &record.value;
        match attempts.get(&value["id"].to_string()) {
            None => fail(format!("{} without an attempt", value["event"]), &value.to_string()),
            Some(false) if value["event"] == "open" => fail("open of a failed attempt".to_owned(), &value.to_string()),
            Some(_) => {}
        }
    }
}

/// Returns the index of the record that matches an expected record best.
fn best_match(
    expected: &ExpectedRecord,
    all_expected: &[&ExpectedRecord],
    records: &[&(Side, ReceivedRecord)],
    scans: bool,
) -> Option<usize> {
    let has_addresses = |record: &Value| {
        let addresses = (address(&record["src"]), address(&record["dst"]));
        addresses == (Some(expected.src), Some(expected.dst)) || addresses == (Some(expected.dst), Some(expected.src))
    };
    let count = |expected: &ExpectedRecord, record: &ReceivedRecord| differences(expected, record, scans).len();
    let (at, (_, record)) = records
        .iter()
        .enumerate()
        .filter(|(_, (side, record))| *side == expected.side && has_addresses(&record.value))
        .min_by_key(|(_, (_, record))| count(expected, record))?;
    // A reused socket may have no record. Then its later attempt between the same addresses matches the record better.
    let matches_later_attempt = all_expected.iter().any(|other| {
        (other.src, other.dst, other.side) == (expected.src, expected.dst, expected.side)
            && other.earliest_end > expected.earliest_end
            && count(other, record) < count(expected, record)
    });
    (!(expected.is_reused && matches_later_attempt)).then_some(at)
}

fn address(end: &Value) -> Option<SocketAddr> {
    let ip: IpAddr = end["ip"].as_str()?.parse().ok()?;
    Some(SocketAddr::new(ip, u16::try_from(end["port"].as_u64()?).ok()?))
}

/// Returns the fields in which a record differs from the expected one.
fn differences(expected: &ExpectedRecord, record: &ReceivedRecord, scans: bool) -> Vec<Difference> {
    let value = &record.value;
    let mut differences = Vec::new();
    let mut compare_field = |name: &str, right: Value| {
        if value[name] != right {
            let text = format!("{name} is {}, not {right}", value[name]);
            let kind = if right.is_number() {
                name.to_owned()
            } else {
                text.clone()
            };
            differences.push(Difference { kind, text });
        }
    };
    compare_field("event", "close".into());
    compare_field("direction", expected.direction.into());
    compare_field("sent_bytes", expected.sent.into());
    compare_field("received_bytes", expected.received.into());
    compare_field("undelivered_bytes", expected.undelivered.into());
    compare_field("established", expected.established.into());
    let other_outcome = expected.other_outcome.filter(|other| value["outcome"] == *other);
    compare_field("outcome", other_outcome.unwrap_or(expected.ending.outcome).into());
    compare_field("closed_by", expected.ending.closed_by.into());
    compare_field("preexisting", false.into());
    compare_field("family", if expected.src.is_ipv4() { "ipv4" } else { "ipv6" }.into());
    if (address(&value["src"]), address(&value["dst"])) != (Some(expected.src), Some(expected.dst)) {
        let text = format!(
            "src and dst are {} and {}, not {} and {}",
            value["src"], value["dst"], expected.src, expected.dst
        );
        differences.push(Difference {
            kind: "src and dst".to_owned(),
            text,
        });
    }
    let errno = value["errno"].as_str();
    if !expected.ending.errno.contains(&errno) {
        let text = format!("errno is {errno:?}, not {:?}", expected.ending.errno);
        differences.push(Difference {
            kind: text.clone(),
            text,
        });
    }
    differences.extend(process_difference(expected, value, scans));
    differences.extend(time_differences(expected, record));
    differences
}

fn process_difference(expected: &ExpectedRecord, value: &Value, scans: bool) -> Option<Difference> {
    let process = &value["process"];
    let pid = process["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let by = process["by"].as_str().unwrap_or("nothing");
    let right_pid = pid.is_some_and(|pid| expected.pids.contains(&pid));
    // The scan finds the process that holds the socket, which may not be the listener's owner.
    let is_found_by_scan =
        scans && by == "scan" && expected.process_by.contains(&"listener") && (right_pid || pid == expected.acceptor);
    if is_found_by_scan || right_pid && expected.process_by.contains(&by) {
        return None;
    }
    let pid = if right_pid { "right" } else { "wrong" };
    Some(Difference {
        kind: format!("process ({pid}) by {by}, not {:?}", expected.process_by),
        text: format!(
            "process is {process}, not {:?} by {:?}",
            expected.pids, expected.process_by
        ),
    })
}

fn time_differences(expected: &ExpectedRecord, record: &ReceivedRecord) -> Vec<Difference> {
    let value = &record.value;
    let mut differences = Vec::new();
    let mut fail = |field: &str, text: String| {
        differences.push(Difference {
            kind: field.to_owned(),
            text,
        });
    };
    let (start, time) = (parse_time(&value["start"]), parse_time(&value["time"]));
    if !start.is_some_and(|start| expected.can_start_at(start)) {
        let text = format!("start is {}, not within {:?}", value["start"], expected.start);
        fail("start", text);
    }
    let latest_time = record.received_at + CLOCK_ERROR;
    if !time.is_some_and(|time| expected.earliest_end <= time && time <= latest_time) {
        let (earliest, received) = (expected.earliest_end, record.received_at);
        let text = format!("time is {}, not from {earliest:?} to {received:?}", value["time"]);
        fail("time", text);
    }
    let lasted = start
        .zip(time)
        .and_then(|(start, time)| time.duration_since(start).ok());
    let duration = value["duration_ns"].as_u64().map(Duration::from_nanos);
    let agree = lasted
        .zip(duration)
        .is_some_and(|(lasted, duration)| lasted.abs_diff(duration) <= CLOCK_ERROR);
    if start.is_some() && !agree {
        let text = format!("duration_ns is {duration:?}, time less start is {lasted:?}");
        fail("duration_ns", text);
    }
    let connect_time = value["connect_ns"].as_u64().map(Duration::from_nanos);
    let is_right = match (connect_time, expected.connect_time) {
        (Some(connect_time), Some((shortest, longest))) => shortest <= connect_time && connect_time <= longest,
        (None, None) => true,
        _ => false,
    };
    if !is_right {
        let text = format!("connect_ns is {connect_time:?}, not within {:?}", expected.connect_time);
        fail("connect_ns", text);
    }
    differences
}
