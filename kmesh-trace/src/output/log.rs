//! `-o log`: the access log. Kmesh's fields come first, with its names and order, then the tool's own. A parser of
//! Kmesh's log that stops after `duration` can read this log.

use super::sanitize::{Lossy, json_string};
use super::time_text::LineTimes;
use super::{Sink, Stdout};
use crate::config::{Events, TimeFormat};
use crate::record::errno::Errno;
use crate::record::rfc3339::Rfc3339;
use crate::record::{AcceptQueue, Direction, EndOutcomes, Event, Outcome, PacketDrops, Pod, Process, Record, Subject};
use crate::track::delta::Delta;
use std::fmt;
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
    times: LineTimes,
    out: Stdout,
}

impl Log {
    /// Returns a sink that prints `events`. `color` colors the outcome of a failed connection and does not change the
    /// text. `times` is the format of the time at the start of a line.
    pub fn new(events: Events, color: bool, times: TimeFormat, out: Stdout) -> Self {
        Self {
            events,
            color,
            times: LineTimes::new(times),
            out,
        }
    }
}

impl Sink for Log {
    fn record(&mut self, record: &Record, _: &Delta) -> io::Result<()> {
        if !self.events.has(record.event) {
            return Ok(());
        }
        let mut line = Line(self.out.text());
        line.start("accesslog: ", record, &mut self.times);
        line.kmesh_fields(record);
        line.own_fields(
            record,
            self.color && record.end_outcomes().is_some_and(EndOutcomes::is_failure),
        );
        line.text("\n");
        self.out.appended()
    }

    fn report(&mut self, record: &Record) -> io::Result<()> {
        if !self.events.has_subject(record.subject) {
            return Ok(());
        }
        let mut line = Line(self.out.text());
        match record.subject {
            Subject::Connection => return Ok(()),
            Subject::Reject(count) => {
                line.start("reject: ", record, &mut self.times);
                line.reject(record, count);
            }
            Subject::Listener(queue) => {
                line.start("listener: ", record, &mut self.times);
                line.listener(record, queue);
            }
        }
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
        self.text("src.addr=");
        self.address(record.src);
        let (src, dst) = record.end_names();
        self.pod(src.pod.as_deref(), ", src.workload=", ", src.namespace=");
        self.text(", dst.addr=");
        self.address(record.dst);
        self.text(", dst.service=");
        self.known(record.service(), |line, called| line.value(&called.service.host));
        self.pod(dst.pod.as_deref(), ", dst.workload=", ", dst.namespace=");
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
        self.text(", reset_reason=");
        self.known(record.reset_reason.as_deref(), Self::value);
        self.text(", drops=");
        self.known(record.drops.as_deref(), Self::drops);
        if record.joined.is_some() {
            self.text(", peer_outcome=");
            self.name(record.other().and_then(|other| other.outcome).map(Outcome::name));
        }
    }

    fn reject(&mut self, record: &Record, count: u64) {
        self.text("src.addr=");
        self.ip(record.src.ip());
        self.pod(record.names.src.pod.as_deref(), ", src.workload=", ", src.namespace=");
        self.text(", dst.addr=");
        self.address(record.dst);
        self.pod(record.names.dst.pod.as_deref(), ", dst.workload=", ", dst.namespace=");
        self.text(", reason=");
        self.known(record.reset_reason.as_deref(), Self::value);
        self.text(", count=");
        self.number(count);
        self.text(", netns=");
        self.number(record.netns.into());
    }

    fn listener(&mut self, record: &Record, queue: AcceptQueue) {
        self.text("dst.addr=");
        self.address(record.dst);
        self.pod(record.names.dst.pod.as_deref(), ", dst.workload=", ", dst.namespace=");
        self.text(", process=");
        self.known(record.process.as_ref(), Self::process);
        self.text(", local.netns=");
        self.number(record.netns.into());
        self.text(", local.cgroup_id=");
        self.known(record.cgroup_id, Self::number);
        self.text(", local.container_id=");
        self.known(record.container_id, |line, id| line.display(format_args!("{id}")));
        self.text(", local.container=");
        self.known(record.names.container.as_deref(), Self::value);
        self.text(", id=");
        self.display(format_args!("{}", record.id));
        for (key, number) in [
            (", backlog=", queue.backlog),
            (", max_backlog=", queue.max_backlog),
            (", half_open=", queue.half_open),
            (", dropped=", queue.dropped),
            (", dropped_total=", queue.dropped_total),
        ] {
            self.text(key);
            self.number(number.into());
        }
    }

    /// Writes the kind of line and the time.
    fn start(&mut self, kind: &str, record: &Record, times: &mut LineTimes) {
        self.text(kind);
        times.append_full(self.0, record.time);
        self.text(" ");
    }

    /// Writes `NETFILTER_DROP:6/NO_SOCKET:1`, the sum of both directions for each reason; `0` if no packet was dropped.
    fn drops(&mut self, drops: &[PacketDrops]) {
        if drops.is_empty() {
            return self.text("0");
        }
        let is_plain = drops.iter().all(|drop| drop.reason.bytes().all(is_plain));
        if is_plain {
            self.display(format_args!("{}", DropsByReason(drops)));
        } else {
            json_string(self.0, &DropsByReason(drops));
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
        self.ip(address.ip());
        self.text(":");
        self.number(address.port().into());
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => {
                for (index, octet) in ip.octets().into_iter().enumerate() {
                    self.text(if index == 0 { "" } else { "." });
                    self.number(octet.into());
                }
            }
            IpAddr::V6(ip) => self.display(format_args!("[{ip}]")),
        }
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

/// Displays the number of dropped packets for each reason, in the order of the first drop for the reason.
struct DropsByReason<'a>(&'a [PacketDrops]);

impl fmt::Display for DropsByReason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, PacketDrops { reason, .. }) in self.0.iter().enumerate() {
            let is_same = |other: &&PacketDrops| other.reason == *reason;
            if self.0[..index].iter().any(|other| is_same(&other)) {
                continue;
            }
            let packets = self.0[index..].iter().filter(is_same).map(|drop| drop.packets);
            let packets = packets.fold(0, u64::saturating_add);
            write!(f, "{}{reason}:{packets}", if index == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

/// Returns whether this byte may stand in a value without quotes.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:/[]@-".contains(&byte)
}

#[cfg(test)]
mod tests;
