//! What records must say, and the comparison.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::net;
use super::sock::{Span, Truth, V};
use super::store::{Rec, Store};

/// The largest error of the tool's wall-clock times. The kernel stamps an event by the monotonic clock, and the tool adds the
/// difference between the two clocks, which it measures to within microseconds. How busy the machine is adds nothing: an event
/// lies between two readings of the test's clock, before and after it.
pub const CLOCK_ERROR: Duration = Duration::from_millis(1);

/// Which process a record must name.
#[derive(Clone, Debug)]
pub enum Proc {
    /// This one; known in one of these ways.
    Is(u32, String, &'static [&'static str]),
    /// None.
    Nobody,
    /// None, or one of these processes, however known.
    NobodyOr(u32),
    /// Compared by the test itself.
    Unchecked,
}

impl Proc {
    /// The test's own process.
    pub fn me(by: &'static [&'static str]) -> Self {
        Self::Is(std::process::id(), own_comm(), by)
    }
}

/// The name of this process: its thread-group leader's.
pub fn own_comm() -> String {
    let mut comm = std::fs::read_to_string(format!("/proc/{}/comm", std::process::id())).expect("own comm");
    comm.pop();
    comm
}

/// One record that must come.
#[derive(Clone, Debug)]
pub struct Want {
    /// `outbound` or `inbound`.
    pub direction: &'static str,
    /// A port of zero stands for any: the kernel's choice, of which the test has no way to know.
    pub src: SocketAddr,
    /// The server.
    pub dst: SocketAddr,
    /// Exact.
    pub sent: u64,
    /// Exact.
    pub received: u64,
    /// Exact, where the range has one number. A range only where the kernel decides and does not tell.
    pub undelivered: RangeInclusive<u64>,
    /// The outcome.
    pub outcome: &'static str,
    /// Any of these.
    pub errno: &'static [Option<&'static str>],
    /// Who closed, which counts only where a test can know it: not for MPTCP.
    pub any_closer: bool,
    /// Who closed.
    pub closed_by: Option<&'static str>,
    /// Whether its handshake ended counts only where a test can know it.
    pub any_handshake: bool,
    /// Whether it ever connected.
    pub established: bool,
    /// The owner.
    pub process: Proc,
    /// Whether it was there before the tracer.
    pub preexisting: bool,
    /// Any of these; empty: not looked at.
    pub old_state: &'static [&'static str],
    /// Between which moments it began; not looked at when preexisting.
    pub start: Span,
    /// It ended after this moment.
    pub end: SystemTime,
    /// Whether `connect_ns` is a number, where that does not follow from the rest.
    pub connect: Option<bool>,
}

impl Truth {
    /// The client's record: connected by this process, and all of zero until said otherwise.
    pub fn outbound(&self) -> Want {
        Want {
            direction: "outbound",
            src: self.src,
            dst: self.dst,
            sent: 0,
            received: 0,
            undelivered: 0..=0,
            outcome: "ok",
            errno: &[None],
            any_closer: false,
            any_handshake: false,
            closed_by: None,
            established: true,
            process: Proc::me(&["connect"]),
            preexisting: false,
            old_state: &[],
            start: self.connect,
            end: self.connect.after,
            connect: None,
        }
    }

    /// The server's record: closed by this process.
    pub fn inbound(&self) -> Want {
        Want {
            direction: "inbound",
            process: Proc::me(&["close"]),
            start: self.open,
            end: self.open.before,
            ..self.outbound()
        }
    }
}

impl Want {
    /// Payload each way, as this end sees it.
    pub fn bytes(self, sent: u64, received: u64) -> Self {
        Self { sent, received, ..self }
    }

    /// Payload that never arrived.
    pub fn undelivered(self, count: u64) -> Self {
        Self {
            undelivered: count..=count,
            ..self
        }
    }

    /// Ended cleanly, this end or the peer first.
    pub fn ok(self, closed_by: &'static str) -> Self {
        let old_state: &[_] = if closed_by == "local" {
            &["FIN_WAIT2", "CLOSING"]
        } else {
            &["LAST_ACK"]
        };
        Self {
            outcome: "ok",
            closed_by: Some(closed_by),
            old_state,
            ..self
        }
    }

    /// Any other end of a connection.
    pub fn ended(self, outcome: &'static str, errno: Option<&'static str>, closed_by: Option<&'static str>) -> Self {
        let errno = match errno {
            None => &[None],
            Some("ECONNRESET") => &[Some("ECONNRESET")],
            Some("EPIPE") => &[Some("EPIPE")],
            Some("ECONNABORTED") => &[Some("ECONNABORTED")],
            Some("ECONNREFUSED") => &[Some("ECONNREFUSED")],
            Some("ETIMEDOUT") => &[Some("ETIMEDOUT")],
            Some("EHOSTUNREACH") => &[Some("EHOSTUNREACH")],
            Some("ENETUNREACH") => &[Some("ENETUNREACH")],
            Some("EACCES") => &[Some("EACCES")] as &[_],
            Some(other) => panic!("{other} is not in this list yet"),
        };
        Self {
            outcome,
            errno,
            closed_by,
            ..self
        }
    }

    /// RST from the peer, met in a state where the kernel says ECONNRESET.
    pub fn reset_by_peer(self) -> Self {
        self.ended("reset_by_peer", Some("ECONNRESET"), Some("peer"))
    }

    /// RST to the peer, with no error of this end's own.
    pub fn reset_by_local(self) -> Self {
        self.ended("reset_by_local", None, Some("local"))
    }

    /// An attempt that never connected. What refuses it may come within connect(), long before that returns.
    pub fn failed(self, outcome: &'static str, errno: Option<&'static str>, closed_by: Option<&'static str>) -> Self {
        Self {
            established: false,
            end: self.start.before,
            old_state: &["SYN_SENT"],
            ..self.ended(outcome, errno, closed_by)
        }
    }

    /// The owner.
    pub fn process(self, process: Proc) -> Self {
        Self { process, ..self }
    }

    /// The test's own process, known so.
    pub fn by(self, by: &'static [&'static str]) -> Self {
        self.process(Proc::me(by))
    }

    /// The state that it closed from.
    pub fn states(self, old_state: &'static [&'static str]) -> Self {
        Self { old_state, ..self }
    }

    /// It was there before the tracer.
    pub fn preexisting(self) -> Self {
        Self {
            preexisting: true,
            ..self
        }
    }

    fn is_for(&self, record: &Value) -> bool {
        record["direction"] == self.direction && same(&record["dst"], self.dst) && same(&record["src"], self.src)
    }

    /// What the record says otherwise. Empty when it is right.
    pub fn differences(&self, record: &Rec) -> Vec<String> {
        let mut wrong = Vec::new();
        let value = &record.value;
        let mut field = |name: &str, is: &Value, right: bool, wanted: String| {
            if !right {
                wrong.push(format!("{name} is {is}, not {wanted}"));
            }
        };
        let mut exact =
            |name: &str, wanted: Value| field(name, &value[name], value[name] == wanted, wanted.to_string());
        exact("event", json!("close"));
        exact("protocol", json!("tcp"));
        exact("family", json!(if self.dst.is_ipv4() { "ipv4" } else { "ipv6" }));
        exact("sent_bytes", json!(self.sent));
        exact("received_bytes", json!(self.received));
        exact("outcome", json!(self.outcome));
        if !self.any_closer {
            exact("closed_by", json!(self.closed_by));
        }
        if !self.any_handshake {
            exact("established", json!(self.established));
        }
        exact("preexisting", json!(self.preexisting));
        exact(
            "security_policy",
            json!(if self.dst.port() == 15008 {
                "mutual_tls"
            } else {
                "unknown"
            }),
        );
        let undelivered = &value["undelivered_bytes"];
        let right = undelivered
            .as_u64()
            .is_some_and(|count| self.undelivered.contains(&count));
        field(
            "undelivered_bytes",
            undelivered,
            right,
            format!("{:?}", self.undelivered),
        );
        let errno = &value["errno"];
        field(
            "errno",
            errno,
            self.errno.iter().any(|wanted| *errno == json!(wanted)),
            format!("{:?}", self.errno),
        );
        let tcp = &value["tcp"];
        field("tcp.state", &tcp["state"], tcp["state"] == "CLOSE", "CLOSE".to_owned());
        let state = &tcp["old_state"];
        let right = self.old_state.is_empty() || self.old_state.iter().any(|wanted| state == wanted);
        field("tcp.old_state", state, right, format!("{:?}", self.old_state));
        self.process_differences(&value["process"], &mut field);
        self.time_differences(record, &mut field);
        wrong
    }

    fn process_differences(&self, is: &Value, field: &mut impl FnMut(&str, &Value, bool, String)) {
        match &self.process {
            Proc::Is(pid, comm, by) => {
                // The shared tracer scans, and who a scan finds counts before the owner of the listener.
                let is_found = is["by"] == "scan" && by.contains(&"listener");
                let is_known = is_found || by.iter().any(|by| is["by"] == *by);
                let right = is["pid"] == *pid && is["comm"] == *comm && is_known;
                field("process", is, right, format!("{pid} {comm:?} by {by:?}"));
            }
            Proc::Nobody => field("process", is, is.is_null(), "null".to_owned()),
            Proc::NobodyOr(pid) => field(
                "process",
                is,
                is.is_null() || is["pid"] == *pid,
                format!("null or {pid}"),
            ),
            Proc::Unchecked => {}
        }
    }

    fn time_differences(&self, record: &Rec, field: &mut impl FnMut(&str, &Value, bool, String)) {
        let value = &record.value;
        let time = moment(&value["time"]);
        let right = time.is_some_and(|time| time >= self.end - CLOCK_ERROR && time <= record.seen + CLOCK_ERROR);
        field(
            "time",
            &value["time"],
            right,
            format!("from {} to {}", text(self.end), text(record.seen)),
        );
        let (observed, duration) = (&value["observed_ns"], &value["duration_ns"]);
        let (start, connect) = (&value["start"], &value["connect_ns"]);
        let known = self
            .connect
            .unwrap_or(self.direction == "outbound" && self.established && !self.preexisting);
        field(
            "connect_ns",
            connect,
            connect.is_u64() == known,
            if known { "a number" } else { "null" }.to_owned(),
        );
        if self.preexisting {
            field("start", start, start.is_null(), "null".to_owned());
            field("duration_ns", duration, duration.is_null(), "null".to_owned());
            field("observed_ns", observed, observed.is_u64(), "a number".to_owned());
            return;
        }
        let began = moment(start);
        let right = began
            .is_some_and(|began| began >= self.start.before - CLOCK_ERROR && began <= self.start.after + CLOCK_ERROR);
        field(
            "start",
            start,
            right,
            format!("from {} to {}", text(self.start.before), text(self.start.after)),
        );
        field(
            "observed_ns",
            observed,
            observed == duration,
            format!("duration_ns, {duration}"),
        );
        let lasted = began
            .zip(time)
            .and_then(|(began, time)| time.duration_since(began).ok());
        let right = lasted
            .zip(duration.as_u64())
            .is_some_and(|(lasted, duration)| lasted.abs_diff(Duration::from_nanos(duration)) <= CLOCK_ERROR);
        field("duration_ns", duration, right, format!("time - start, {lasted:?}"));
        if let (Some(connect), Some(duration)) = (connect.as_u64(), duration.as_u64()) {
            field(
                "connect_ns",
                &value["connect_ns"],
                connect <= duration,
                format!("at most {duration}"),
            );
            let most = self.start.after.duration_since(self.start.before).unwrap_or_default() + CLOCK_ERROR;
            let right = self.connect.is_some() || Duration::from_nanos(connect) <= most;
            field("connect_ns", &value["connect_ns"], right, format!("at most {most:?}"));
        }
    }
}

fn same(end: &Value, address: SocketAddr) -> bool {
    let ip = end["ip"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
    let port = end["port"].as_u64().unwrap_or(0);
    ip == Some(address.ip()) && port != 0 && (address.port() == 0 || port == u64::from(address.port()))
}

/// A time as the JSON spells it.
pub fn text(time: SystemTime) -> String {
    let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!(
        "{:?}",
        chrono::DateTime::from_timestamp_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    )
}

/// A time of the JSON.
pub fn moment(time: &Value) -> Option<SystemTime> {
    let time = chrono::DateTime::parse_from_rfc3339(time.as_str()?).ok()?;
    let nanos = u64::try_from(time.timestamp_nanos_opt()?).ok()?;
    Some(UNIX_EPOCH + Duration::from_nanos(nanos))
}

/// One scenario's view of a tracer: the records of its own namespace.
pub struct Scene<'a> {
    store: &'a Store,
    netns: u64,
    /// Records that an earlier look has dealt with.
    done: RefCell<HashSet<usize>>,
}

impl<'a> Scene<'a> {
    /// The calling thread's namespace as `store` sees it, from now on.
    pub fn new(store: &'a Store) -> Self {
        let netns = net::inode();
        store.keep(netns);
        Self {
            store,
            netns,
            done: RefCell::default(),
        }
    }

    /// The same for a namespace that has just been made. The kernel may have given it the number of one that is gone, whose
    /// last records are still on their way: they are none of this one's.
    pub fn of_new_namespace(store: &'a Store) -> Self {
        let scene = Self::new(store);
        {
            let mut done = scene.done.borrow_mut();
            let marker = scene.mark(&mut done);
            done.extend(0..=marker);
        }
        scene
    }

    /// Its namespace.
    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// Exactly these records come, in any order, and no other. Returns them in the order of `wants`.
    pub fn expect(&self, wants: &[Want]) -> Vec<Value> {
        let mut done = self.done.borrow_mut();
        let found = self.find(wants, &mut done);
        let marker = self.mark(&mut done);
        let records = self.store.records(self.netns);
        let mut report = compare(wants, &found, &records);
        for (at, record) in records.iter().enumerate().take(marker) {
            if !done.contains(&at) {
                let _ = writeln!(report, "a record too many: {}", record.value);
            }
        }
        done.extend(0..marker);
        assert!(report.is_empty(), "{report}");
        found.into_iter().map(|at| records[at].value.clone()).collect()
    }

    /// These records come, in any order, among others.
    pub fn expect_among_others(&self, wants: &[Want]) {
        let found = self.find(wants, &mut self.done.borrow_mut());
        let report = compare(wants, &found, &self.store.records(self.netns));
        assert!(report.is_empty(), "{report}");
    }

    /// Where they are.
    fn find(&self, wants: &[Want], done: &mut HashSet<usize>) -> Vec<usize> {
        let found = self.store.wait(self.netns, |records| assign(wants, records, done));
        let found = found.unwrap_or_else(|why| self.missing(&why, wants, done));
        done.extend(&found);
        found
    }

    /// Nothing comes.
    pub fn expect_nothing(&self) {
        self.expect(&[]);
    }

    /// All records that no earlier look has dealt with, once there are so many.
    pub fn wait_count(&self, count: usize) -> Vec<Rec> {
        let done = self.done.borrow();
        let enough = |records: &[Rec]| {
            let new = |at: &usize| !done.contains(at);
            let all: Vec<usize> = (0..records.len()).filter(new).collect();
            (all.len() >= count).then(|| all.into_iter().map(|at| records[at].clone()).collect())
        };
        self.store
            .wait(self.netns, enough)
            .unwrap_or_else(|why| panic!("{count} records: {why}"))
    }

    /// Makes a connection for no other purpose than its records. Output is in the order of time, so once they are here all
    /// that came before is here as well: how a test knows that nothing more comes, without waiting for nothing.
    fn mark(&self, done: &mut HashSet<usize>) -> usize {
        let listener = TcpListener::bind(V::Four.at(0)).expect("the marker's listener");
        let dst = listener.local_addr().expect("the marker's address");
        let client = TcpStream::connect(dst).expect("the marker's connection");
        drop((listener.accept().expect("accept the marker"), client));
        let both = self.store.wait(self.netns, |records| {
            let new = |at: &usize| !done.contains(at) && same(&records[*at].value["dst"], dst);
            let ends: Vec<usize> = (0..records.len()).filter(new).collect();
            (ends.len() == 2).then_some(ends)
        });
        let both = both.unwrap_or_else(|why| panic!("the marker's records did not come: {why}"));
        done.extend(&both);
        both[0].max(both[1])
    }

    fn missing(&self, why: &str, wants: &[Want], done: &HashSet<usize>) -> ! {
        let records = self.store.records(self.netns);
        let mut report = format!("records did not come: {why}. Wanted:\n");
        for want in wants {
            let _ = writeln!(
                report,
                "    {} {} → {} {}",
                want.direction, want.src, want.dst, want.outcome
            );
        }
        report.push_str("There were:\n");
        for (at, record) in records.iter().enumerate() {
            if !done.contains(&at) {
                let _ = writeln!(report, "    {}", record.value);
            }
        }
        panic!("{report}");
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        self.store.forget(self.netns);
    }
}

/// What is wrong with the records at `found`.
fn compare(wants: &[Want], found: &[usize], records: &[Rec]) -> String {
    let mut report = String::new();
    for (want, &at) in wants.iter().zip(found) {
        let wrong = want.differences(&records[at]);
        if !wrong.is_empty() {
            let _ = writeln!(report, "{} of {} → {}:", want.direction, want.src, want.dst);
            for line in wrong {
                let _ = writeln!(report, "    {line}");
            }
            let _ = writeln!(report, "    {}", records[at].value);
        }
    }
    report
}

/// A record for each want, in the order of time where several have the same addresses.
fn assign(wants: &[Want], records: &[Rec], done: &HashSet<usize>) -> Option<Vec<usize>> {
    let mut taken = done.clone();
    wants
        .iter()
        .map(|want| {
            let at = (0..records.len()).find(|at| !taken.contains(at) && want.is_for(&records[*at].value))?;
            taken.insert(at);
            Some(at)
        })
        .collect()
}
