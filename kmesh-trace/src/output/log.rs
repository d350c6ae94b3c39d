//! `-o log`: the access log. Kmesh's fields come first, with its names and order, then the tool's own. A parser of
//! Kmesh's log that stops after `duration` can read this log.

use super::sanitize::{Lossy, json_string};
use super::{Sink, Stdout};
use crate::config::Events;
use crate::record::errno::Errno;
use crate::record::rfc3339::Rfc3339;
use crate::record::{Direction, Event, Outcome, Pod, Process, Record};
use crate::track::delta::Delta;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

/// The text of an unknown value.
const UNKNOWN: &str = "-";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// The sink that writes access-log lines.
pub struct Log {
    events: Events,
    color: bool,
    out: Stdout,
}

impl Log {
    /// Returns a sink that prints `events`. `color` colors the outcome of a failed connection and does not change the
    /// text.
    pub fn new(events: Events, color: bool, out: Stdout) -> Self {
        Self { events, color, out }
    }
}

impl Sink for Log {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        if !self.events.has(record.event) {
            return Ok(());
        }
        let mut line = Line(self.out.text());
        line.kmesh_fields(record);
        line.own_fields(
            record,
            self.color && record.outcome.is_some_and(|outcome| outcome != Outcome::Ok),
        );
        line.text("\n");
        self.out.appended()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Appends one line to the buffer.
struct Line<'a>(&'a mut Vec<u8>);

impl Line<'_> {
    fn kmesh_fields(&mut self, record: &Record) {
        let time = Rfc3339::new(record.time);
        self.text("accesslog: ");
        self.text(time.date());
        self.text(" ");
        self.text(time.time_of_day());
        self.text(" +0000 UTC src.addr=");
        self.address(record.src);
        self.pod(record.names.src.pod.as_deref(), ", src.workload=", ", src.namespace=");
        self.text(", dst.addr=");
        self.address(record.dst);
        self.text(", dst.service=");
        let service = record.names.service.as_ref();
        self.known(service, |line, called| line.value(&called.service.host));
        self.pod(record.names.dst.pod.as_deref(), ", dst.workload=", ", dst.namespace=");
        self.text(", direction=");
        self.text(match record.direction {
            Direction::Inbound => "INBOUND",
            Direction::Outbound => "OUTBOUND",
        });
        self.text(", sent_bytes=");
        self.number(record.sent_bytes);
        self.text(", received_bytes=");
        self.number(record.received_bytes);
        self.text(", duration=");
        self.milliseconds(record.duration_ns.unwrap_or(record.observed_ns));
    }

    fn own_fields(&mut self, record: &Record, is_red: bool) {
        self.text(", start_time=");
        self.known(record.start, |line, start| line.text(Rfc3339::new(start).as_str()));
        self.text(", state=");
        self.name(record.tcp.old_state.map(|state| state.name()));
        self.text(", retransmissions=");
        self.number(record.tcp.total_retrans.into());
        self.text(", packet_loss=");
        self.number(record.tcp.lost.into());
        self.text(", srtt=");
        self.known(record.tcp.srtt_us, Self::microseconds);
        self.text(", min_rtt=");
        self.known(record.tcp.rtt_min_us, Self::microseconds);
        self.text(", outcome=");
        self.red_if(is_red, |line| line.name(record.outcome.map(Outcome::name)));
        self.text(", closed_by=");
        self.name(record.closed_by.map(|end| end.name()));
        self.text(", errno=");
        self.red_if(is_red && record.errno.is_some(), |line| {
            line.known(record.errno, Self::errno)
        });
        self.text(", established=");
        self.flag(record.established);
        self.text(", connect=");
        self.known(record.connect_ns, Self::milliseconds);
        self.text(", undelivered_bytes=");
        self.number(record.undelivered_bytes);
        self.text(", process=");
        self.known(record.process.as_ref(), Self::process);
        self.text(", preexisting=");
        self.flag(record.preexisting);
        if record.event != Event::Close {
            self.text(", event=");
            self.text(record.event.name());
        }
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn known<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => write(self, value),
            None => self.text(UNKNOWN),
        }
    }

    fn name(&mut self, name: Option<&str>) {
        self.text(name.unwrap_or(UNKNOWN));
    }

    fn red_if(&mut self, red: bool, write: impl FnOnce(&mut Self)) {
        self.text(if red { RED } else { "" });
        write(self);
        self.text(if red { RESET } else { "" });
    }

    fn number(&mut self, number: u64) {
        self.text(itoa::Buffer::new().format(number));
    }

    fn flag(&mut self, flag: bool) {
        self.text(if flag { "true" } else { "false" });
    }

    /// Writes `10.0.0.1:80` or `[::1]:80`. The `Display` of `SocketAddr` would add the interface of a link-local
    /// address.
    fn address(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => {
                for (index, octet) in ip.octets().into_iter().enumerate() {
                    self.text(if index == 0 { "" } else { "." });
                    self.number(octet.into());
                }
            }
            IpAddr::V6(ip) => self.display(format_args!("[{ip}]")),
        }
        self.text(":");
        self.number(address.port().into());
    }

    fn microseconds(&mut self, microseconds: u32) {
        self.number(microseconds.into());
        self.text("us");
    }

    /// Writes milliseconds with up to six decimals and no trailing zeros.
    fn milliseconds(&mut self, nanoseconds: u64) {
        const NS_IN_MS: u64 = 1_000_000;
        self.number(nanoseconds / NS_IN_MS);
        let fraction = nanoseconds % NS_IN_MS;
        if fraction != 0 {
            // The leading 1 keeps the zeros after it.
            let mut digits = itoa::Buffer::new();
            let decimals = digits.format(NS_IN_MS + fraction)[1..].trim_end_matches('0');
            self.text(".");
            self.text(decimals);
        }
        self.text("ms");
    }

    fn errno(&mut self, errno: u32) {
        self.display(format_args!("{}", Errno(errno)));
    }

    /// Writes `comm/pid`, quoted as a whole if the name is not plain.
    fn process(&mut self, process: &Process) {
        let comm = process.comm.as_bytes();
        if comm.iter().all(|&byte| is_plain(byte)) {
            self.0.extend_from_slice(comm);
            self.text("/");
            self.number(process.pid.into());
        } else {
            json_string(self.0, &format_args!("{}/{}", Lossy(comm), process.pid));
        }
    }

    fn pod(&mut self, pod: Option<&Pod>, name_key: &str, namespace_key: &str) {
        self.text(name_key);
        self.known(pod, |line, pod| line.value(&pod.name));
        self.text(namespace_key);
        self.known(pod, |line, pod| line.value(&pod.namespace));
    }

    /// Writes a name, quoted if it is not plain.
    fn value(&mut self, name: &str) {
        if !name.is_empty() && name != UNKNOWN && name.bytes().all(is_plain) {
            self.text(name);
        } else {
            json_string(self.0, &name);
        }
    }

    fn display(&mut self, text: std::fmt::Arguments<'_>) {
        let written = self.0.write_fmt(text);
        debug_assert!(written.is_ok(), "writing to a Vec cannot fail");
    }
}

/// Returns whether this byte may stand in a value without quotes.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:/[]@-".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    const EXAMPLE: &str = "accesslog: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=10.244.0.17:51842, \
        src.workload=-, src.namespace=-, dst.addr=10.244.0.13:9080, dst.service=-, dst.workload=-, dst.namespace=-, \
        direction=INBOUND, sent_bytes=5, received_bytes=292, duration=2.733902ms, \
        start_time=2024-09-14T08:19:26.549976030Z, state=LAST_ACK, retransmissions=0, packet_loss=0, srtt=120us, \
        min_rtt=98us, outcome=ok, closed_by=peer, errno=-, established=true, connect=-, undelivered_bytes=0, \
        process=python3/4711, preexisting=false\n";

    fn render(color: bool, record: &Record) -> String {
        let out = testing::Shared::default();
        let mut log = Log::new(testing::ALL_EVENTS, color, Stdout::to(out.clone()));
        log.record(record, &Delta::default()).unwrap();
        log.flush().unwrap();
        out.text()
    }

    /// Parses a line into fields, as a reader of the contract would: a value may be a JSON string.
    fn fields(line: &str) -> Vec<(String, String)> {
        let mut rest = line.strip_prefix("accesslog: ").unwrap();
        let mut fields = Vec::new();
        let time = rest.match_indices(' ').nth(3).unwrap().0;
        fields.push(("time".to_owned(), rest[..time].to_owned()));
        rest = rest[time + 1..].strip_suffix('\n').unwrap();
        loop {
            let (key, after) = rest.split_once('=').unwrap();
            let (value, after) = if after.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let value = values.next().unwrap().unwrap();
                (value, &after[values.byte_offset()..])
            } else {
                let end = after.find(", ").unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            };
            fields.push((key.to_owned(), value));
            match after.strip_prefix(", ") {
                Some(more) => rest = more,
                None => break assert_eq!(after, ""),
            }
        }
        fields
    }

    #[test]
    fn example_record_prints_the_documented_line() {
        assert_eq!(render(false, &testing::example()), EXAMPLE);
    }

    #[test]
    fn names_stand_in_kmesh_fields() {
        let line = render(false, &testing::in_pods());
        // A line that Kmesh printed.
        let expected = "accesslog: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=10.244.0.17:51842, \
             src.workload=prometheus-5fb7f6f8d8-h9cts, src.namespace=istio-system, dst.addr=10.244.0.13:9080, \
             dst.service=productpage.echo-1-27855.svc.cluster.local, dst.workload=productpage-v1-8499c849b9-bz9t9, \
             dst.namespace=echo-1-27855, direction=INBOUND, sent_bytes=5, received_bytes=292, duration=2.733902ms, ";
        assert!(line.starts_with(expected), "{line}");
    }

    #[test]
    fn hostile_pod_name_cannot_forge_a_field() {
        let mut record = testing::in_pods();
        for name in ["x, dst.service=forged", "-", "", "a\x1b[2J", "a\nb"] {
            let pod = record.names.src.pod.as_deref().cloned().unwrap();
            let pod = crate::record::Pod {
                name: name.into(),
                ..pod
            };
            record.names.src.pod = Some(std::sync::Arc::new(pod));
            let line = render(false, &record);
            assert!(line.contains("src.workload=\""), "{line}");
            let fields = fields(&line);
            let value = &fields.iter().find(|(key, _)| key == "src.workload").unwrap().1;
            assert_eq!(value, name);
        }
    }

    #[test]
    fn refused_attempt_prints_the_documented_line() {
        let expected = "accesslog: 2024-09-14 08:19:26.552709932 +0000 UTC src.addr=[fd00::1]:40000, src.workload=-, \
            src.namespace=-, dst.addr=[2001:db8::2]:443, dst.service=-, dst.workload=-, dst.namespace=-, \
            direction=OUTBOUND, sent_bytes=0, received_bytes=0, duration=2.733902ms, \
            start_time=2024-09-14T08:19:26.549976030Z, state=SYN_SENT, retransmissions=0, packet_loss=0, srtt=-, \
            min_rtt=-, outcome=refused, closed_by=peer, errno=ECONNREFUSED, established=false, connect=-, \
            undelivered_bytes=0, process=-, preexisting=false\n";
        assert_eq!(render(false, &testing::refused()), expected);
    }

    #[test]
    fn fields_have_their_values() {
        let mut lossy = testing::example();
        (lossy.tcp.lost, lossy.tcp.lost_out, lossy.tcp.total_retrans) = (7, 1, 9);
        (lossy.undelivered_bytes, lossy.connect_ns) = (1 << 40, Some(182_331));
        let mut scoped = testing::refused();
        scoped.src = std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 1, 0, 3).into();
        let cases = [
            ("cumulative loss", lossy.clone(), "packet_loss", "7"),
            ("retransmissions", lossy.clone(), "retransmissions", "9"),
            ("undelivered", lossy.clone(), "undelivered_bytes", "1099511627776"),
            ("connect in milliseconds", lossy, "connect", "0.182331ms"),
            ("no interface in addresses", scoped, "src.addr", "[fe80::1]:1"),
            ("observed duration", testing::preexisting(), "duration", "5000ms"),
            ("preexisting", testing::preexisting(), "preexisting", "true"),
            ("no start", testing::preexisting(), "start_time", "-"),
            ("no state", testing::preexisting(), "state", "-"),
            ("closed by neither", testing::preexisting(), "closed_by", "-"),
            (
                "the largest duration",
                testing::largest(),
                "duration",
                "18446744073709.551615ms",
            ),
            (
                "the largest address",
                testing::largest(),
                "src.addr",
                "255.255.255.255:65535",
            ),
            ("an errno without a name", testing::largest(), "errno", "E4294967295"),
            (
                "a name of 16 bytes",
                testing::largest(),
                "process",
                "zzzzzzzzzzzzzzzz/4294967295",
            ),
        ];
        for (name, record, key, expected) in cases {
            let line = render(false, &record);
            let value = fields(&line).into_iter().find(|field| field.0 == key).unwrap().1;
            assert_eq!(value, expected, "{name}");
        }
    }

    #[test]
    fn duration_is_milliseconds_without_trailing_zeros() {
        let cases = [
            (0, "0ms"),
            (1, "0.000001ms"),
            (1_000, "0.001ms"),
            (100_000, "0.1ms"),
            (120_300, "0.1203ms"),
            (999_999, "0.999999ms"),
            (1_000_000, "1ms"),
            (1_000_010, "1.00001ms"),
            (10_500_000, "10.5ms"),
            (2_733_902, "2.733902ms"),
            (86_400_000_000_000, "86400000ms"),
        ];
        for (nanoseconds, text) in cases {
            let mut line = Vec::new();
            Line(&mut line).milliseconds(nanoseconds);
            assert_eq!(String::from_utf8(line).unwrap(), text);
        }
    }

    #[test]
    fn process_name_is_quoted_unless_plain() {
        let cases: [(&str, &[u8], &str); 12] = [
            ("plain", b"python3", "process=python3/4711,"),
            ("all plain characters", b"A.z_0:/[]@-", "process=A.z_0:/[]@-/4711,"),
            ("empty", b"", "process=/4711,"),
            ("a space", b"tmux: server", r#"process="tmux: server/4711","#),
            ("a comma", b"a,b", r#"process="a,b/4711","#),
            ("a forged field", b"x, errno=EIO", r#"process="x, errno=EIO/4711","#),
            ("a quote", br#"a"b"#, r#"process="a\"b/4711","#),
            ("parentheses", b"(sd-pam)", r#"process="(sd-pam)/4711","#),
            ("a line feed", b"a\nb", r#"process="a\u000ab/4711","#),
            (
                "an escape sequence",
                b"\x1b[2J\x7f",
                r#"process="\u001b[2J\u007f/4711","#,
            ),
            ("a non-ASCII letter", "naïve".as_bytes(), r#"process="naïve/4711","#),
            ("invalid UTF-8", b"a\xff", "process=\"a\u{fffd}/4711\","),
        ];
        for (name, comm, expected) in cases {
            let line = render(false, &testing::named(comm));
            assert!(line.contains(&format!(", {expected}")), "{name}: {line}");
        }
    }

    #[test]
    fn hostile_process_name_cannot_forge_a_field() {
        let plain = fields(EXAMPLE);
        assert_eq!(plain.len(), 26);
        for name in testing::hostile_names() {
            let line = render(false, &testing::named(&name));
            assert!(testing::is_harmless(&line), "{line:?}");
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            for (field, expected) in fields(&line).iter().zip(&plain) {
                if field.0 == "process" {
                    assert_eq!(
                        field.1.rsplit_once('/').unwrap(),
                        (&*String::from_utf8_lossy(&name), "4711")
                    );
                } else {
                    assert_eq!(field, expected, "{line:?}");
                }
            }
            assert_eq!(fields(&line).len(), plain.len(), "{line:?}");
        }
    }

    #[test]
    fn hostile_kubernetes_name_cannot_forge_a_field() {
        let keys = |line: &str| fields(line).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        let plain = render(false, &testing::in_pods());
        for name in testing::hostile_texts() {
            let line = render(false, &testing::in_pods_called(&name));
            assert!(testing::is_harmless(&line), "{line:?}");
            assert_eq!(line.find('\n'), Some(line.len() - 1));
            assert_eq!(keys(&line), keys(&plain), "{line:?}");
        }
    }

    #[test]
    fn fields_up_to_duration_are_kmesh_fields() {
        let line = render(false, &testing::example());
        let kmesh = &line[..line.find(", start_time=").unwrap()];
        assert!(kmesh.ends_with("duration=2.733902ms"));
        let keys: Vec<_> = fields(&format!("{kmesh}\n")).into_iter().map(|field| field.0).collect();
        let expected = [
            "time",
            "src.addr",
            "src.workload",
            "src.namespace",
            "dst.addr",
            "dst.service",
            "dst.workload",
            "dst.namespace",
            "direction",
            "sent_bytes",
            "received_bytes",
            "duration",
        ];
        assert_eq!(keys, expected);
    }

    #[test]
    fn color_marks_failures_and_does_not_change_the_text() {
        assert_eq!(render(true, &testing::example()), EXAMPLE);
        let colored = render(true, &testing::refused());
        assert!(colored.contains("outcome=\x1b[31mrefused\x1b[0m, "), "{colored}");
        assert!(colored.contains("errno=\x1b[31mECONNREFUSED\x1b[0m, "), "{colored}");
        for record in testing::all() {
            let stripped = render(true, &record).replace(RED, "").replace(RESET, "");
            assert_eq!(stripped, render(false, &record));
        }
    }
}
