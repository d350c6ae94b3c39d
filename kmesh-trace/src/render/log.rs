//! `-o log`: the access log. Kmesh's fields first, in its order and spelling, then ours; a reader of Kmesh's log that
//! stops after `duration` reads this one.

use super::Render;
use super::sanitize::{Lossy, json_string};
use crate::errno::Errno;
use crate::record::{Direction, Lost, Outcome, Process, Record, Summary};
use crate::rfc3339::Rfc3339;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

/// What stands for a value that is not known.
const UNKNOWN: &str = "-";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

/// Writes access-log lines.
#[derive(Debug)]
pub struct Log {
    color: bool,
    line: Line,
}

impl Log {
    /// With `color`, how a failed connection failed stands out; the words are the same.
    pub fn new(color: bool) -> Self {
        Self { color, line: Line::default() }
    }
}

impl Render for Log {
    fn record(&mut self, record: &Record, out: &mut dyn Write) -> io::Result<()> {
        let line = &mut self.line;
        line.0.clear();
        line.kmesh_fields(record);
        line.own_fields(record, self.color && record.outcome.is_some_and(|outcome| outcome != Outcome::Ok));
        line.text("\n");
        out.write_all(&line.0)
    }

    fn lost(&mut self, _: &Lost, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn summary(&mut self, _: &Summary, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// A line in the making; kept for its memory.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    fn kmesh_fields(&mut self, record: &Record) {
        let time = Rfc3339::new(record.time);
        self.text("accesslog: ");
        self.text(time.date());
        self.text(" ");
        self.text(time.time_of_day());
        self.text(" +0000 UTC src.addr=");
        self.address(record.src);
        self.text(", src.workload=-, src.namespace=-, dst.addr=");
        self.address(record.dst);
        self.text(", dst.service=-, dst.workload=-, dst.namespace=-, direction=");
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

    fn own_fields(&mut self, record: &Record, alarm: bool) {
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
        self.red_if(alarm, |line| line.name(record.outcome.map(Outcome::name)));
        self.text(", closed_by=");
        self.name(record.closed_by.map(|end| end.name()));
        self.text(", errno=");
        self.red_if(alarm && record.errno.is_some(), |line| line.known(record.errno, Self::errno));
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

    /// `10.0.0.1:80`, `[::1]:80`. Not `SocketAddr`'s own Display, which would add an interface to some addresses.
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

    /// Milliseconds with as many of six decimals as there are to tell.
    fn milliseconds(&mut self, nanoseconds: u64) {
        const NS_IN_MS: u64 = 1_000_000;
        self.number(nanoseconds / NS_IN_MS);
        let fraction = nanoseconds % NS_IN_MS;
        if fraction != 0 {
            // The leading 1 keeps the zeros that follow it in their places.
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

    /// `comm/pid`, quoted as a whole where the process chose a name that could pass for something else.
    fn process(&mut self, process: &Process) {
        let comm = process.comm.as_bytes();
        if comm.iter().all(|&byte| is_plain(byte)) {
            self.0.extend_from_slice(comm);
            self.text("/");
            self.number(process.pid.into());
        } else {
            json_string(&mut self.0, &format_args!("{}/{}", Lossy(comm), process.pid));
        }
    }

    fn display(&mut self, text: std::fmt::Arguments<'_>) {
        let written = self.0.write_fmt(text);
        debug_assert!(written.is_ok(), "memory takes all");
    }
}

/// Whether a value may hold this byte without quotes.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._:/[]@-".contains(&byte)
}
