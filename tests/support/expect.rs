//! The record that a test expects of a connection's end, and its comparison with the record that the tracer printed.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::output::ReceivedRecord;
use super::sock::{Span, Truth};

/// The maximum error of the tool's wall-clock times. The kernel timestamps an event with the monotonic clock, and the
/// tool adds the difference of the two clocks, which it measures to within microseconds. A busy machine adds no error:
/// the test reads the clock before and after an event.
pub const CLOCK_ERROR: Duration = Duration::from_millis(1);

/// The process that a record must name.
#[derive(Clone, Debug)]
pub enum Owner {
    /// A process by its pid and name, found in one of these ways (`process.by`).
    Process(u32, String, &'static [&'static str]),
    Unknown,
    /// No process, or the one with this pid.
    UnknownOr(u32),
}

impl Owner {
    /// The test's own process, found in one of these ways.
    pub fn this_process(by: &'static [&'static str]) -> Self {
        Self::Process(std::process::id(), own_comm(), by)
    }
}

/// Returns the name of the test's process, which is the name of its main thread.
pub fn own_comm() -> String {
    let mut comm = std::fs::read_to_string(format!("/proc/{}/comm", std::process::id())).expect("own comm");
    comm.pop();
    comm
}

/// An expected `close` record. [`Truth::outbound`] and [`Truth::inbound`] make one, the other methods change it.
#[derive(Clone, Debug)]
pub struct Expected {
    pub direction: &'static str,
    /// Its port is zero where the kernel chose the port and the test cannot know it.
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub outcome: &'static str,
    sent: u64,
    received: u64,
    undelivered: u64,
    /// Each of these is right.
    errnos: Vec<Option<&'static str>>,
    /// `None` where a test cannot know `closed_by`.
    closed_by: Option<Option<&'static str>>,
    /// `None` where a test cannot know `established`.
    established: Option<bool>,
    process: Owner,
    preexisting: bool,
    /// Each of these is right for `tcp.old_state`; if empty, any is.
    old_states: &'static [&'static str],
    /// When the connection started. Not compared if it is preexisting.
    start: Span,
    /// The connection ended after this time.
    earliest_end: SystemTime,
}

impl Truth {
    /// The client's record: no bytes, and this process as its owner.
    pub fn outbound(&self) -> Expected {
        Expected {
            direction: "outbound",
            src: self.src,
            dst: self.dst,
            outcome: "ok",
            sent: 0,
            received: 0,
            undelivered: 0,
            errnos: vec![None],
            closed_by: Some(None),
            established: Some(true),
            process: Owner::this_process(&["connect"]),
            preexisting: false,
            old_states: &[],
            start: self.connect,
            earliest_end: self.connect.after,
        }
    }

    /// The server's record: no bytes, closed by this process.
    pub fn inbound(&self) -> Expected {
        Expected {
            direction: "inbound",
            process: Owner::this_process(&["close"]),
            start: self.open,
            earliest_end: self.open.before,
            ..self.outbound()
        }
    }
}

impl Expected {
    /// Sets the payload that this end sent and received.
    pub fn bytes(self, sent: u64, received: u64) -> Self {
        Self { sent, received, ..self }
    }

    /// Sets the payload that was written and never acknowledged.
    pub fn undelivered(self, undelivered: u64) -> Self {
        Self { undelivered, ..self }
    }

    /// The connection ends cleanly. `closed_by` is the end that closes first.
    pub fn ok(self, closed_by: &'static str) -> Self {
        let old_states: &[_] = if closed_by == "local" {
            &["FIN_WAIT2", "CLOSING"]
        } else {
            &["LAST_ACK"]
        };
        self.ended("ok", None, Some(closed_by)).old_states(old_states)
    }

    /// The connection ends in any other way.
    pub fn ended(self, outcome: &'static str, errno: Option<&'static str>, closed_by: Option<&'static str>) -> Self {
        Self {
            outcome,
            errnos: vec![errno],
            closed_by: Some(closed_by),
            ..self
        }
    }

    /// A RST from the peer ends the connection, with ECONNRESET.
    pub fn reset_by_peer(self) -> Self {
        self.ended("reset_by_peer", Some("ECONNRESET"), Some("peer"))
    }

    /// This end sends a RST. Its record has no errno.
    pub fn reset_by_local(self) -> Self {
        self.ended("reset_by_local", None, Some("local"))
    }

    /// The attempt never connects. The answer that ends it may come long before connect() returns.
    pub fn connect_failed(
        self,
        outcome: &'static str,
        errno: Option<&'static str>,
        closed_by: Option<&'static str>,
    ) -> Self {
        let failed = self.ended(outcome, errno, closed_by).old_states(&["SYN_SENT"]);
        Self {
            established: Some(false),
            earliest_end: failed.start.before,
            ..failed
        }
    }

    /// Allows another errno, too.
    pub fn or_errno(mut self, errno: &'static str) -> Self {
        self.errnos.push(Some(errno));
        self
    }

    /// Allows each value of `closed_by`.
    pub fn any_closed_by(self) -> Self {
        Self {
            closed_by: None,
            ..self
        }
    }

    /// The handshake never ends.
    pub fn not_established(self) -> Self {
        Self {
            established: Some(false),
            ..self
        }
    }

    /// Allows each value of `established`.
    pub fn any_established(self) -> Self {
        Self {
            established: None,
            ..self
        }
    }

    /// Sets the process that owns the connection.
    pub fn process(self, process: Owner) -> Self {
        Self { process, ..self }
    }

    /// This process owns the connection, and the tool found it in one of these ways.
    pub fn found_by(self, by: &'static [&'static str]) -> Self {
        self.process(Owner::this_process(by))
    }

    /// Sets the states that the connection may have closed from.
    pub fn old_states(self, old_states: &'static [&'static str]) -> Self {
        Self { old_states, ..self }
    }

    /// The connection was open before the tracer started.
    pub fn preexisting(self) -> Self {
        Self {
            preexisting: true,
            ..self
        }
    }

    /// Whether a record is about this end of this connection.
    pub fn is_same_end(&self, record: &Value) -> bool {
        record["direction"] == self.direction
            && is_address(&record["dst"], self.dst)
            && is_address(&record["src"], self.src)
    }

    /// Compares a record. Returns a line for each member that is wrong.
    pub fn differences(&self, record: &ReceivedRecord) -> Vec<String> {
        let value = &record.value;
        let mut differences = Differences(Vec::new());
        let mut exact = |name: &str, expected: Value| {
            let is_right = value[name] == expected;
            differences.check(name, &value[name], is_right, expected);
        };
        exact("event", json!("close"));
        exact("protocol", json!("tcp"));
        exact("family", json!(if self.dst.is_ipv4() { "ipv4" } else { "ipv6" }));
        exact("sent_bytes", json!(self.sent));
        exact("received_bytes", json!(self.received));
        exact("undelivered_bytes", json!(self.undelivered));
        exact("outcome", json!(self.outcome));
        exact("preexisting", json!(self.preexisting));
        if let Some(closed_by) = self.closed_by {
            exact("closed_by", json!(closed_by));
        }
        if let Some(established) = self.established {
            exact("established", json!(established));
        }
        let is_hbone = self.dst.port() == 15008;
        exact(
            "security_policy",
            json!(if is_hbone { "mutual_tls" } else { "unknown" }),
        );
        let is_right = self.errnos.iter().any(|errno| value["errno"] == json!(errno));
        differences.check("errno", &value["errno"], is_right, format!("{:?}", self.errnos));
        let (state, old_state) = (&value["tcp"]["state"], &value["tcp"]["old_state"]);
        differences.check("tcp.state", state, state == "CLOSE", "CLOSE");
        let is_right = self.old_states.is_empty() || self.old_states.iter().any(|expected| old_state == expected);
        differences.check("tcp.old_state", old_state, is_right, format!("{:?}", self.old_states));
        self.compare_process(&value["process"], &mut differences);
        self.compare_times(record, &mut differences);
        differences.0
    }

    fn compare_process(&self, process: &Value, differences: &mut Differences) {
        let (is_right, expected) = match &self.process {
            Owner::Process(pid, comm, by) => {
                let is_found = by.iter().any(|by| can_be_found_by(&process["by"], by));
                let is_right = process["pid"] == *pid && process["comm"] == *comm && is_found;
                (is_right, format!("{pid} {comm:?} by {by:?}"))
            }
            Owner::Unknown => (process.is_null(), "null".to_owned()),
            Owner::UnknownOr(pid) => (process.is_null() || process["pid"] == *pid, format!("null or {pid}")),
        };
        differences.check("process", process, is_right, expected);
    }

    fn compare_times(&self, record: &ReceivedRecord, differences: &mut Differences) {
        let value = &record.value;
        let within = |time: Option<SystemTime>, earliest: SystemTime, latest: SystemTime| {
            time.is_some_and(|time| time >= earliest - CLOCK_ERROR && time <= latest + CLOCK_ERROR)
        };
        let between = |earliest, latest| format!("between {} and {}", format_time(earliest), format_time(latest));
        let time = parse_time(&value["time"]);
        let is_right = within(time, self.earliest_end, record.received_at);
        let expected = between(self.earliest_end, record.received_at);
        differences.check("time", &value["time"], is_right, expected);
        let (observed, duration) = (&value["observed_ns"], &value["duration_ns"]);
        let (start, connect) = (&value["start"], &value["connect_ns"]);
        let has_connect = self.direction == "outbound" && self.established == Some(true) && !self.preexisting;
        let expected = if has_connect { "a number" } else { "null" };
        differences.check("connect_ns", connect, connect.is_u64() == has_connect, expected);
        if self.preexisting {
            differences.check("start", start, start.is_null(), "null");
            differences.check("duration_ns", duration, duration.is_null(), "null");
            differences.check("observed_ns", observed, observed.is_u64(), "a number");
            return;
        }
        let started = parse_time(start);
        let is_right = within(started, self.start.before, self.start.after);
        differences.check("start", start, is_right, between(self.start.before, self.start.after));
        differences.check(
            "observed_ns",
            observed,
            observed == duration,
            format!("duration_ns, {duration}"),
        );
        let elapsed = started
            .zip(time)
            .and_then(|(start, time)| time.duration_since(start).ok());
        let is_right = elapsed
            .zip(duration.as_u64())
            .is_some_and(|(elapsed, duration)| elapsed.abs_diff(Duration::from_nanos(duration)) <= CLOCK_ERROR);
        differences.check("duration_ns", duration, is_right, format!("time - start, {elapsed:?}"));
        for (name, member) in [
            ("tcp.last_send_ms", "last_send_ms"),
            ("tcp.last_receive_ms", "last_receive_ms"),
        ] {
            let age = &value["tcp"][member];
            let max = duration.as_u64().unwrap_or(0) / 1_000_000 + 1_000;
            let is_right = age.as_u64().is_none_or(|age| age <= max);
            differences.check(name, age, is_right, format!("at most {max}"));
        }
        if let (Some(connect_ns), Some(duration)) = (connect.as_u64(), duration.as_u64()) {
            let span = self.start.after.duration_since(self.start.before).unwrap_or_default();
            let max = Duration::from_nanos(duration).min(span + CLOCK_ERROR);
            let is_right = Duration::from_nanos(connect_ns) <= max;
            differences.check("connect_ns", connect, is_right, format!("at most {max:?}"));
        }
    }
}

/// A line for each member of a record that is wrong.
struct Differences(Vec<String>);

impl Differences {
    fn check(&mut self, name: &str, actual: &Value, is_right: bool, expected: impl std::fmt::Display) {
        if !is_right {
            self.0.push(format!("{name} is {actual}, not {expected}"));
        }
    }
}

/// Whether `src` or `dst` of a record is this address. A port of zero matches any port.
pub fn is_address(end: &Value, address: SocketAddr) -> bool {
    let ip = end["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
    let port = end["port"].as_u64().unwrap_or(0);
    ip == Some(address.ip()) && port != 0 && (address.port() == 0 || port == u64::from(address.port()))
}

/// Returns whether a record may have `found` as its `process.by` if its owner is expected to be found in the way `by`.
fn can_be_found_by(found: &Value, by: &str) -> bool {
    match by {
        // The shared tracer scans sockets, and the process that a scan finds takes precedence over the listener's owner.
        "listener" => found == "listener" || found == "scan",
        // A tracer that scans holds each descriptor of the machine for a moment. If the owner closes it at that moment,
        // the scan is the last to release the socket, and the record has what was known before close().
        "close" => found == "close" || found == "listener" || found == "scan",
        by => found == by,
    }
}

/// Formats a time as the JSON does.
pub fn format_time(time: SystemTime) -> String {
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!(
        "{:?}",
        chrono::DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    )
}

/// Parses a time of the JSON.
pub fn parse_time(time: &Value) -> Option<SystemTime> {
    let time = chrono::DateTime::parse_from_rfc3339(time.as_str()?).ok()?;
    let nanos = u64::try_from(time.timestamp_nanos_opt()?).ok()?;
    Some(UNIX_EPOCH + Duration::from_nanos(nanos))
}
