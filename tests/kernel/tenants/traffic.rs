//! Connections between pods, and what their records may say.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::node::{Node, Pod, SERVICE_PORT};
use crate::support::expect::parse_time;
use crate::support::output::ReceivedRecord;
use crate::support::tracer::Tracer;

/// How long naming may hold a record.
const HOLD: Duration = Duration::from_millis(200);
/// From the close of a connection to its line in the test: what a busy machine adds to that. The tool reports no time of its
/// own, so the test compares the record's time with the arrival of its line.
const BUSY: Duration = Duration::from_secs(10);

/// A connection that was opened.
pub struct Call<'a> {
    /// The pod that connected.
    pub client: &'a Pod,
    /// The pod that accepted.
    pub server: &'a Pod,
    /// The client's address and port.
    pub from: String,
    /// Just before the client connected.
    pub opened: Instant,
    since: SystemTime,
    /// The name of the Service that it must be given, and how that was found.
    service: Option<(&'static str, &'static str)>,
}

/// Which addresses of a connection may be in doubt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Doubt {
    /// The client's.
    pub client: bool,
    /// The server's.
    pub server: bool,
    /// The client's pod is so new that a source may not have it yet.
    pub client_is_new: bool,
}

/// No address is in doubt.
pub const CERTAIN: Doubt = Doubt {
    client: false,
    server: false,
    client_is_new: false,
};

impl<'a> Call<'a> {
    /// Opens a connection to the server's own address.
    pub fn open(client: &'a Pod, server: &'a Pod) -> Self {
        Self::dial(client, server, &server.server())
    }

    /// Opens a connection to the cluster IP of the victim's Service, which leads to `server`.
    pub fn open_service(node: &Node, client: &'a Pod, server: &'a Pod) -> Self {
        let dialled = format!("{}:{SERVICE_PORT}", node.cluster_ip());
        Self {
            service: Some(("database", "vip")),
            ..Self::dial(client, server, &dialled)
        }
    }

    /// Opens a connection to an address that leads to `server`.
    pub fn dial(client: &'a Pod, server: &'a Pod, dialled: &str) -> Self {
        let (opened, since) = (Instant::now(), SystemTime::now());
        let from = format!("{}:{}", client.ip, next_port());
        client.actor.run(&format!("connect_from c {from} {dialled}"));
        server.actor.run("accept l s");
        Self {
            client,
            server,
            from,
            opened,
            since,
            service: None,
        }
    }

    /// The Service that its records must have.
    pub fn with_service(self, name: &'static str, by: &'static str) -> Self {
        Self {
            service: Some((name, by)),
            ..self
        }
    }

    /// Sends a few bytes and closes both ends, the client's first.
    pub fn close(&self) {
        self.client.actor.run("write c 3");
        self.server.actor.run("read s 3");
        self.client.actor.run("close c");
        self.server.actor.run("eof s");
        self.server.actor.run("close s");
    }

    /// Waits for the client's record.
    pub fn outbound(&self, tracer: &Tracer) -> Value {
        record_since(tracer, self.client.netns, "outbound", &self.from, self.since)
    }

    /// Waits for the server's record.
    pub fn inbound(&self, tracer: &Tracer) -> Value {
        record_since(tracer, self.server.netns, "inbound", &self.from, self.since)
    }

    /// Checks the names of both records, each of which must be there.
    pub fn check(&self, tracer: &Tracer, doubt: Doubt) {
        self.check_outbound(&self.outbound(tracer), doubt);
        self.check_inbound(&self.inbound(tracer), doubt);
    }

    /// Checks the client's record. Doubt about an address is no doubt about the local end, which its cgroup names.
    pub fn check_outbound(&self, record: &Value, doubt: Doubt) {
        check_end(record, "src", self.client, doubt.client_is_new);
        check_end(record, "dst", self.server, doubt.server);
        assert_eq!(record["dst"]["ip"], *self.server.ip, "the server's address in {record}");
        match self.service {
            Some((name, by)) => check_service(record, self.server, name, by, doubt.server && by != "vip"),
            None => check_no_other_service(record, self.server),
        }
    }

    /// Checks the server's record, which cannot know what the client dialled.
    pub fn check_inbound(&self, record: &Value, doubt: Doubt) {
        check_end(record, "src", self.client, doubt.client || doubt.client_is_new);
        check_end(record, "dst", self.server, false);
        match self.service {
            Some((name, _)) => check_service(record, self.server, name, "target_port", false),
            None => check_no_other_service(record, self.server),
        }
    }

    /// The same connection as a source sees it that knows no Services.
    pub fn without_service(&self) -> Self {
        Self {
            from: self.from.clone(),
            service: None,
            ..*self
        }
    }
}

/// Runs one check of several. Returns why it failed, if it did.
pub fn failure(check: impl FnOnce()) -> Option<String> {
    catch_unwind(AssertUnwindSafe(check))
        .err()
        .map(|panic| crate::support::panic_message(&*panic))
}

/// Opens a connection, closes it, and checks its records.
pub fn check_call(tracer: &Tracer, client: &Pod, server: &Pod) {
    let call = Call::open(client, server);
    call.close();
    call.check(tracer, CERTAIN);
}

/// A client's port, which no other connection has within a minute: a translated connection keeps it, and its records are found
/// by it.
fn next_port() -> u16 {
    /// Ports that the kernel gives to nobody by itself.
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    PORTS.start + (CALLS.fetch_add(1, Ordering::Relaxed) % PORTS.len()) as u16
}

/// Waits for the record of the end whose client has this address.
pub fn record(tracer: &Tracer, netns: u64, direction: &str, client: &str) -> Value {
    record_since(tracer, netns, direction, client, SystemTime::UNIX_EPOCH)
}

/// Waits for that record of a connection that was opened at this time, and checks that naming did not hold it for too long.
fn record_since(tracer: &Tracer, netns: u64, direction: &str, client: &str, since: SystemTime) -> Value {
    // The tool reads the clock in turns with the kernel's own.
    let since = since.checked_sub(Duration::from_millis(50)).unwrap_or(since);
    let is_it = |rec: &&ReceivedRecord| {
        if parse_time(&rec.value["time"]).is_none_or(|time| time < since) {
            return false;
        }
        let src = &rec.value["src"];
        let address = format!("{}:{}", src["ip"].as_str().unwrap_or_default(), src["port"]);
        rec.value["direction"] == direction && address == client
    };
    let found = tracer
        .output
        .wait(netns, |records| records.iter().rev().find(is_it).cloned());
    let rec = found.unwrap_or_else(|error| panic!("{direction} of {client} is lost: {error}"));
    let held = parse_time(&rec.value["time"]).and_then(|time| rec.received_at.duration_since(time).ok());
    assert!(
        held.is_none_or(|held| held < HOLD + BUSY),
        "held for {held:?}: {}",
        rec.value
    );
    rec.value
}

/// Checks that an end has exactly the names of this pod, or, where that is allowed, none.
#[track_caller]
pub fn check_end(record: &Value, end: &str, pod: &Pod, may_be_absent: bool) {
    let names = ["pod", "namespace", "pod_uid"].map(|name| &record[end][name]);
    if may_be_absent && names.iter().all(|name| name.is_null()) {
        return;
    }
    let expected = [&pod.name, &pod.namespace, &pod.uid];
    assert_eq!(
        names.map(|name| name.as_str().unwrap_or("-")),
        expected.map(String::as_str),
        "{end} of {record}"
    );
}

/// Checks that an end has no name of this pod.
#[track_caller]
pub fn check_is_not(record: &Value, end: &str, pod: &Pod) {
    let names = [&record[end]["pod_uid"], &record[end]["pod"]];
    let is_it = names[0] == &*pod.uid || (names[1] == &*pod.name && record[end]["namespace"] == *pod.namespace);
    assert!(!is_it, "{end} of {record} is named {}", pod.name);
}

#[track_caller]
fn check_service(record: &Value, server: &Pod, name: &str, by: &str, may_be_absent: bool) {
    let service = &record["service"];
    if may_be_absent && service.is_null() {
        return;
    }
    let found = [&service["name"], &service["namespace"], &service["by"]];
    assert_eq!(
        found.map(|value| value.as_str().unwrap_or("-")),
        [name, &server.namespace, by],
        "the Service of {record}"
    );
    assert_ne!(service["ambiguous"], true, "the Service of {record}");
}

/// Checks that a record has no Service of another namespace than the server's.
#[track_caller]
fn check_no_other_service(record: &Value, server: &Pod) {
    let namespace = &record["service"]["namespace"];
    assert!(
        namespace.is_null() || *namespace == *server.namespace,
        "the Service of {record}"
    );
}
