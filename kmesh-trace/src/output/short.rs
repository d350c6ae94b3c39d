//! `-o short`: one line per connection, for people at a terminal.
//!
//! ```text
//! 07:22:29.310  shop/checkout (checkout/4711) → shop/payments 10.244.0.30:8443  ok  4.1ms  sent 113 B  received 13 B
//! ```
//!
//! The line has the time of day, the client and the server, and what happened. The process stands beside the end
//! whose socket was traced. A server has its address, too; the ephemeral port of the client is in the other outputs.

use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;

use super::outcome_text::end_outcomes_text;
use super::sanitize::{Lossy, one_line};
use super::table::units;
use super::time_text::LineTimes;
use super::{Sink, Stdout};
use crate::config::{Events, TimeFormat};
use crate::record::errno::Errno;
use crate::record::{
    AcceptQueue, Direction, End, Event, Outcome, PacketDirection, PacketDrops, Process, Record, Subject,
};
use crate::track::delta::Delta;

const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";
/// The errors that the texts of outcomes already imply: ECONNRESET, ETIMEDOUT, ECONNREFUSED.
const IMPLIED_ERRORS: [u32; 3] = [104, 110, 111];

/// The sink that writes short lines. People read them, so it may allocate for each record.
pub struct Short {
    events: Events,
    color: bool,
    times: LineTimes,
    out: Stdout,
}

impl Short {
    /// Returns a sink that prints `events`. With `color`, the outcome of a failed connection is red. `times` is the
    /// format of the time at the start of a line.
    pub fn new(events: Events, color: bool, times: TimeFormat, out: Stdout) -> Self {
        Self {
            events,
            color,
            times: LineTimes::new(times),
            out,
        }
    }

    fn print(&mut self, record: &Record) -> io::Result<()> {
        let time = self.times.time_of_day(record.time);
        let color = self.color;
        writeln!(self.out.text(), "{time}{}", Line { record, color })?;
        self.out.appended()
    }
}

impl Sink for Short {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        if !self.events.has(record.event) {
            return Ok(());
        }
        self.print(record)
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        if !self.events.has_subject(record.subject) {
            return Ok(());
        }
        self.print(record)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A record that displays as a short line after its time.
struct Line<'a> {
    record: &'a Record,
    color: bool,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.record.subject {
            Subject::Connection => self.connection(f),
            Subject::Reject(count) => self.reject(f, count),
            Subject::Listener(queue) => self.listener(f, queue),
        }
    }
}

impl Line<'_> {
    fn connection(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.client(f)?;
        let is_outbound = self.record.direction == Direction::Outbound;
        let process = self.record.process.as_ref();
        if is_outbound {
            write!(f, " ({})", Owner(process))?;
        }
        f.write_str(" → ")?;
        write!(f, "{}", Server(self.record))?;
        if !is_outbound {
            write!(f, " ({})", Owner(process))?;
        }
        self.state(f)?;
        if self.record.established {
            let Record {
                sent_bytes,
                received_bytes,
                ..
            } = self.record;
            write!(f, "  sent {}  received {}", size(*sent_bytes), size(*received_bytes))?;
        }
        self.explanation(f)
    }

    fn reject(&self, f: &mut fmt::Formatter<'_>, count: u64) -> fmt::Result {
        self.client(f)?;
        f.write_str(" → ")?;
        write!(f, "{}", Server(self.record))?;
        write!(f, "  rejected {count} time{}", plural(count))?;
        match &self.record.reset_reason {
            Some(reason) => write!(f, ": {}", one_line(reason)),
            None => Ok(()),
        }
    }

    fn listener(&self, f: &mut fmt::Formatter<'_>, queue: AcceptQueue) -> fmt::Result {
        f.write_str("  listening on ")?;
        write!(f, "{}", Server(self.record))?;
        write!(f, " ({})", Owner(self.record.process.as_ref()))?;
        let AcceptQueue {
            backlog,
            max_backlog,
            half_open,
            dropped,
            dropped_total,
        } = queue;
        write!(
            f,
            "  backlog {backlog} of {max_backlog}  {half_open} half-open  {dropped} dropped ({dropped_total} in all)"
        )
    }

    fn client(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match end_name(self.record.end_names().0) {
            Some(client) => write!(f, "  {client}"),
            None => write!(f, "  {}", self.record.src.ip()),
        }
    }

    /// Writes the outcome and the duration, or the state of a connection that has not ended.
    fn state(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record;
        let (Some(outcome), Some(outcomes)) = (record.outcome, record.end_outcomes()) else {
            return match (record.event, record.connect_ns) {
                (Event::Open, Some(connect_ns)) => write!(f, "  opened after {}", duration(connect_ns)),
                (Event::Open, None) => f.write_str("  opened"),
                _ if record.established => write!(f, "  open for {}", Lasted(record)),
                _ => write!(f, "  connecting for {}", Lasted(record)),
            };
        };
        let is_red = self.color && outcomes.is_failure();
        let (red, reset) = if is_red { (RED, RESET) } else { ("", "") };
        let separator = match outcome {
            Outcome::ConnectTimeout | Outcome::ConnectAborted | Outcome::Unreachable | Outcome::Timeout => " after ",
            _ => "  ",
        };
        let text = end_outcomes_text(outcomes);
        write!(f, "  {red}{text}{reset}{separator}{}", Lasted(record))
    }

    /// Writes the packets that this node dropped, by reason. Returns the number of dropped SYNs.
    fn drops(&self, f: &mut fmt::Formatter<'_>) -> Result<u64, fmt::Error> {
        let mut syns = 0_u64;
        for drops in self.record.drops.iter().flatten() {
            let PacketDrops {
                direction,
                reason,
                packets,
            } = drops;
            write!(f, "  {packets} ")?;
            if !self.record.established && *direction == PacketDirection::Sent {
                // An attempt to connect sends only SYNs.
                syns = syns.saturating_add(*packets);
                f.write_str("SYN")?;
            } else {
                write!(f, "{} packet", direction.name())?;
            }
            write!(f, "{} dropped: {}", plural(*packets), one_line(reason))?;
        }
        Ok(syns)
    }

    /// Writes what explains a failure or a delay.
    fn explanation(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record;
        let retransmits = record.tcp.total_retrans;
        let is_unanswered = match record.outcome {
            Some(outcome) => matches!(outcome, Outcome::ConnectTimeout | Outcome::ConnectAborted),
            None => record.event == Event::Update,
        };
        let dropped_syns = self.drops(f)?;
        if record.established {
            if retransmits > 0 {
                write!(f, "  {retransmits} retransmitted")?;
            }
        } else {
            let syns = u64::from(retransmits) + 1;
            if is_unanswered && dropped_syns < syns {
                write!(f, "  {syns} SYN{} unanswered", plural(syns))?;
            }
        }
        if let Some(reason) = &record.reset_reason {
            write!(f, "  {}", one_line(reason))?;
        }
        match record.undelivered() {
            None if record.undelivered_bytes > 0 => write!(f, "  undelivered {}", size(record.undelivered_bytes))?,
            None => {}
            Some(lost) => {
                for (bytes, ends) in [(lost.sent, "client → server"), (lost.received, "server → client")] {
                    if bytes > 0 {
                        write!(f, "  undelivered {ends} {}", size(bytes))?;
                    }
                }
            }
        }
        match record.errno {
            Some(errno) if !IMPLIED_ERRORS.contains(&errno) => write!(f, "  {}", Errno(errno)),
            _ => Ok(()),
        }
    }
}

/// Returns the ending of a plural.
fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// The duration of a connection. `>` marks one that began before tracing, whose duration is longer than shown.
struct Lasted<'a>(&'a Record);

impl fmt::Display for Lasted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.duration_ns {
            Some(ns) => f.write_str(&duration(ns)),
            None => write!(f, ">{}", duration(self.0.observed_ns)),
        }
    }
}

/// Returns the workload, pod or node of an end.
fn end_name(end: &End) -> Option<String> {
    match (end.pod.as_deref(), &end.node) {
        (Some(pod), _) => {
            let workload = pod.workload.as_ref().map(|workload| &workload.name);
            Some(qualified(&pod.namespace, workload.unwrap_or(&pod.name)))
        }
        (None, Some(node)) => Some(one_line(node).into_owned()),
        (None, None) => None,
    }
}

fn qualified(namespace: &str, name: &str) -> String {
    format!("{}/{}", one_line(namespace), one_line(name))
}

/// Displays the name and the address of the server.
pub(super) struct Server<'a>(pub &'a Record);

impl fmt::Display for Server<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { dst, .. } = self.0;
        let service = self.0.service().map(|called| &called.service);
        let service = service.map(|service| qualified(&service.namespace, &service.name));
        if let Some(server) = service.or_else(|| end_name(self.0.end_names().1)) {
            write!(f, "{server} ")?;
        }
        // `SocketAddr` itself would add the interface to some IPv6 addresses.
        match dst.ip() {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", dst.port()),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", dst.port()),
        }
    }
}

/// Displays the name and the ID of a process, `?` if it is unknown.
pub(super) struct Owner<'a>(pub Option<&'a Process>);

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(process) => {
                let comm = Lossy(process.comm.as_bytes()).to_string();
                write!(f, "{}/{}", one_line(&comm), process.pid)
            }
            None => f.write_str("?"),
        }
    }
}

/// Formats a duration as in `0.09ms`, `4.1ms` and `12s`.
fn duration(nanoseconds: u64) -> String {
    match nanoseconds {
        0..995_000 => format!("{:.2}ms", nanoseconds as f64 / 1e6),
        _ => units::time(nanoseconds.max(1_000_000)),
    }
}

fn size(bytes: u64) -> String {
    units::size(bytes as f64)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, comm};
    use super::*;
    use crate::record::ProcessBy;

    fn print(color: bool, record: &Record) -> String {
        let out = testing::Shared::default();
        let mut short = Short::new(testing::ALL_EVENTS, color, TimeFormat::Utc, Stdout::to(out.clone()));
        short.record(record, &Delta::default()).unwrap();
        short.flush().unwrap();
        out.text()
    }

    /// Returns the line without the time.
    fn line(record: &Record) -> String {
        let text = print(false, record);
        text.strip_prefix("08:19:26.552  ").unwrap().trim_end().to_owned()
    }

    fn attempt(outcome: Option<Outcome>) -> Record {
        let mut record = Record {
            src: "10.0.0.1:40000".parse().unwrap(),
            dst: "10.0.0.2:443".parse().unwrap(),
            process: Some(Process {
                pid: 7,
                comm: comm(b"curl"),
                by: ProcessBy::Connect,
            }),
            outcome,
            errno: None,
            duration_ns: Some(250_000_000),
            ..testing::refused()
        };
        record.tcp.total_retrans = 0;
        record
    }

    #[test]
    fn line_has_ends_outcome_duration_and_bytes() {
        let mut inbound = testing::example();
        inbound.tcp.total_retrans = 3;
        inbound.undelivered_bytes = 12 << 10;
        let mut killed = attempt(Some(Outcome::ConnectAborted));
        (killed.errno, killed.tcp.total_retrans) = (Some(103), 5);
        let mut unreachable = attempt(Some(Outcome::Unreachable));
        (unreachable.errno, unreachable.duration_ns) = (Some(113), Some(3_070_000_000));
        let mut open = testing::example();
        (open.event, open.outcome, open.connect_ns) = (Event::Open, None, Some(140_000));
        let mut update = testing::preexisting();
        (update.event, update.outcome) = (Event::Update, None);
        let mut connecting = attempt(None);
        connecting.event = Event::Update;
        let cases = [
            (
                testing::example(),
                "10.244.0.17 → 10.244.0.13:9080 (python3/4711)  ok  2.7ms  sent 5 B  received 292 B",
            ),
            (
                inbound,
                "10.244.0.17 → 10.244.0.13:9080 (python3/4711)  ok  2.7ms  sent 5 B  received 292 B  3 retransmitted  \
                 undelivered 12.0 KiB",
            ),
            (
                testing::refused(),
                "fd00::1 (?) → [2001:db8::2]:443  refused by peer  2.7ms",
            ),
            (
                attempt(Some(Outcome::ConnectTimeout)),
                "10.0.0.1 (curl/7) → 10.0.0.2:443  connect timeout after 250ms  1 SYN unanswered",
            ),
            (
                killed,
                "10.0.0.1 (curl/7) → 10.0.0.2:443  connect aborted after 250ms  6 SYNs unanswered  ECONNABORTED",
            ),
            (
                unreachable,
                "10.0.0.1 (curl/7) → 10.0.0.2:443  unreachable after 3.1s  EHOSTUNREACH",
            ),
            (
                open,
                "10.244.0.17 → 10.244.0.13:9080 (python3/4711)  opened after 0.14ms  sent 5 B  received 292 B",
            ),
            (
                update,
                "10.244.0.17 → 10.244.0.13:9080 (?)  open for >5.0s  sent 5 B  received 292 B",
            ),
            (
                connecting,
                "10.0.0.1 (curl/7) → 10.0.0.2:443  connecting for 250ms  1 SYN unanswered",
            ),
        ];
        for (record, expected) in cases {
            assert_eq!(line(&record), expected);
        }
    }

    #[test]
    fn joined_line_has_both_outcomes_and_lost_bytes() {
        let expected = [
            "reset by peer / ok  2.7ms  sent 292 B  received 5 B  undelivered client → server 7 B",
            "refused by peer  2.7ms",
            "ok  2.7ms  sent 5 B  received 292 B",
        ];
        for (record, end) in testing::joined().iter().zip(expected) {
            let line = line(record);
            assert!(line.ends_with(&format!("  {end}")), "{line}");
        }
    }

    #[test]
    fn drops_and_reset_reasons_explain_failures() {
        assert_eq!(
            line(&testing::dropped()),
            "fd00::1 (?) → [2001:db8::2]:443  connect aborted after 250ms  6 SYNs dropped: NETFILTER_DROP"
        );
        assert!(
            line(&testing::aborted())
                .ends_with("  reset by local  2.7ms  sent 5 B  received 292 B  TCP_ABORT_ON_CLOSE")
        );
        let mut both = testing::example();
        both.drops = Some(vec![
            testing::drops(PacketDirection::Sent, "NETFILTER_DROP", 1),
            testing::drops(PacketDirection::Received, "TCP_OFOMERGE", 2),
        ]);
        let expected = "  1 sent packet dropped: NETFILTER_DROP  2 received packets dropped: TCP_OFOMERGE";
        assert!(line(&both).ends_with(expected));
        let mut partly = testing::dropped();
        partly.drops = Some(vec![
            testing::drops(PacketDirection::Sent, "NETFILTER_DROP", 2),
            testing::drops(PacketDirection::Received, "IP_RPFILTER", 1),
        ]);
        let expected = "  2 SYNs dropped: NETFILTER_DROP  1 received packet dropped: IP_RPFILTER  6 SYNs unanswered";
        assert!(line(&partly).ends_with(expected));
    }

    #[test]
    fn rejects_and_listeners_have_lines() {
        let lines: Vec<_> = testing::reports()
            .iter()
            .map(|record| {
                let out = testing::Shared::default();
                let mut short = Short::new(testing::ALL_EVENTS, false, TimeFormat::Utc, Stdout::to(out.clone()));
                short.report(record).unwrap();
                short.flush().unwrap();
                out.text()[14..].trim_end().to_owned()
            })
            .collect();
        let expected = [
            "istio-system/prometheus-5fb7f6f8d8-h9cts → echo-1-27855/productpage-v1 10.244.0.13:9081  \
             rejected 12 times: NO_SOCKET",
            "listening on echo-1-27855/productpage-v1 0.0.0.0:9080 (python3/4711)  backlog 129 of 128  3 half-open  \
             5 dropped (40 in all)",
            "listening on [::]:22 (?)  backlog 0 of 4096  0 half-open  0 dropped (0 in all)",
            "fd00::1 → [fd00::2]:81  rejected 1 time",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn names_replace_the_address_of_the_client_and_stand_before_that_of_the_server() {
        assert_eq!(
            line(&testing::in_pods()),
            "istio-system/prometheus-5fb7f6f8d8-h9cts → echo-1-27855/productpage 10.244.0.13:9080 (python3/4711)  ok  \
             2.7ms  sent 5 B  received 292 B"
        );
        let mut without_service = testing::in_pods();
        without_service.names.service = None;
        assert!(line(&without_service).contains(" → echo-1-27855/productpage-v1 10.244.0.13:9080 "));
    }

    #[test]
    fn only_the_outcome_of_a_failure_is_red() {
        assert!(print(true, &testing::refused()).contains("  \x1b[31mrefused by peer\x1b[0m  2.7ms"));
        assert!(!print(true, &testing::example()).contains('\x1b'));
    }

    #[test]
    fn hostile_names_cannot_control_the_terminal() {
        for name in testing::hostile_names().take(500) {
            let text = print(false, &testing::named(&name));
            let line = text.strip_suffix('\n').unwrap();
            assert!(!line.contains(super::super::sanitize::is_harmful), "{line:?}");
        }
    }

    #[test]
    fn durations_are_in_ms_or_longer_units() {
        let cases = [
            (0, "0.00ms"),
            (90_400, "0.09ms"),
            (994_999, "0.99ms"),
            (995_000, "1.0ms"),
            (4_100_000, "4.1ms"),
            (250_000_000, "250ms"),
            (131_000_000_000, "2.2m"),
        ];
        for (nanoseconds, expected) in cases {
            assert_eq!(duration(nanoseconds), expected);
        }
    }
}
