//! Connections between pods, and the names that their records must have.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::node::{Node, Pod, SERVICE_PORT};
use crate::support::expect::parse_time;
use crate::support::output::ReceivedRecord;
use crate::support::panic_message;
use crate::support::tracer::Tracer;

/// The longest time that the tool may hold a record while it waits for names.
const MAX_HOLD: Duration = Duration::from_millis(200);
/// The time that a busy machine may add until the record arrives. A record does not say how long it was held, so the
/// test compares its `time` with its arrival.
const BUSY_MACHINE_DELAY: Duration = Duration::from_secs(10);

/// A connection from one pod to another.
pub struct PodConnection<'a> {
    pub client: &'a Pod,
    pub server: &'a Pod,
    /// The client's address and port.
    pub from: String,
    /// The time just before connect().
    pub opened: Instant,
    opened_at: SystemTime,
    /// The Service that the records must name, and `service.by`.
    service: Option<(&'static str, &'static str)>,
}

/// The addresses of a connection that may be in doubt, so that they may have no name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Doubt {
    pub client: bool,
    pub server: bool,
    /// The client's pod is so new that a source may not list it yet.
    pub client_is_new: bool,
}

pub const NO_DOUBT: Doubt = Doubt {
    client: false,
    server: false,
    client_is_new: false,
};

pub const CLIENT_DOUBT: Doubt = Doubt {
    client: true,
    ..NO_DOUBT
};

impl<'a> PodConnection<'a> {
    /// Opens a connection to the server's own address.
    pub fn open(client: &'a Pod, server: &'a Pod) -> Self {
        Self::open_to(client, server, &server.server())
    }

    /// Opens a connection to the cluster IP of the victim's Service, which is redirected to `server`.
    pub fn open_service(node: &Node, client: &'a Pod, server: &'a Pod) -> Self {
        let cluster_ip = format!("{}:{SERVICE_PORT}", node.cluster_ip());
        Self::open_to(client, server, &cluster_ip).expect_service("database", "vip")
    }

    /// Opens a connection to a destination that is redirected to `server`.
    pub fn open_to(client: &'a Pod, server: &'a Pod, destination: &str) -> Self {
        let (opened, opened_at) = (Instant::now(), SystemTime::now());
        let from = format!("{}:{}", client.ip, next_port());
        client.actor.run(&format!("connect_from c {from} {destination}"));
        server.actor.run("accept l s");
        Self {
            client,
            server,
            from,
            opened,
            opened_at,
            service: None,
        }
    }

    /// Opens a connection to the server's own address, and closes it.
    pub fn make(client: &'a Pod, server: &'a Pod) -> Self {
        let connection = Self::open(client, server);
        connection.close();
        connection
    }

    /// Sets the Service that the records must name, and `service.by` of the client's record.
    pub fn expect_service(self, name: &'static str, by: &'static str) -> Self {
        Self {
            service: Some((name, by)),
            ..self
        }
    }

    /// Returns the same connection, with records that must name no Service of another namespace.
    pub fn without_service(&self) -> Self {
        Self {
            from: self.from.clone(),
            service: None,
            ..*self
        }
    }

    /// Sends a few bytes, and closes both ends, the client's first.
    pub fn close(&self) {
        self.client.actor.run("write c 3");
        self.server.actor.run("read s 3");
        self.client.actor.run("close c");
        self.server.actor.run("eof s");
        self.server.actor.run("close s");
    }

    /// Waits for the client's record.
    pub fn outbound(&self, tracer: &Tracer) -> Value {
        record_since(tracer, self.client.netns, "outbound", &self.from, self.opened_at)
    }

    /// Waits for the server's record.
    pub fn inbound(&self, tracer: &Tracer) -> Value {
        record_since(tracer, self.server.netns, "inbound", &self.from, self.opened_at)
    }

    /// Waits for both records, and checks their names.
    pub fn check(&self, tracer: &Tracer, doubt: Doubt) {
        self.check_outbound(&self.outbound(tracer), doubt);
        self.check_inbound(&self.inbound(tracer), doubt);
    }

    /// Checks the names of the client's record. The local end must have its names even if its address is in doubt,
    /// because the tool identifies a local pod by its cgroup.
    pub fn check_outbound(&self, record: &Value, doubt: Doubt) {
        check_names(record, "src", self.client, doubt.client_is_new);
        check_names(record, "dst", self.server, doubt.server);
        assert_eq!(record["dst"]["ip"], *self.server.ip, "the server's address in {record}");
        match self.service {
            Some((name, by)) => check_service(record, self.server, name, by, doubt.server && by != "vip"),
            None => check_no_other_service(record, self.server),
        }
    }

    /// Checks the names of the server's record. The server's end does not know the address that the client connected
    /// to.
    pub fn check_inbound(&self, record: &Value, doubt: Doubt) {
        check_names(record, "src", self.client, doubt.client || doubt.client_is_new);
        check_names(record, "dst", self.server, false);
        match self.service {
            Some((name, _)) => check_service(record, self.server, name, "target_port", false),
            None => check_no_other_service(record, self.server),
        }
    }
}

/// Runs a check. Returns the message of its panic, if it panicked.
pub fn catch_failure(check: impl FnOnce()) -> Option<String> {
    let panic = catch_unwind(AssertUnwindSafe(check)).err()?;
    Some(panic_message(&*panic))
}

/// Makes a connection, and checks the names of its records.
pub fn check_connection(tracer: &Tracer, client: &Pod, server: &Pod) {
    PodConnection::make(client, server).check(tracer, NO_DOUBT);
}

/// Returns a client port that no other connection has within a minute. So the port identifies a connection's records,
/// also after DNAT.
fn next_port() -> u16 {
    /// Ports outside of the kernel's range of ephemeral ports.
    const PORTS: Range<u16> = 10_000..32_000;
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    PORTS.start + (CONNECTIONS.fetch_add(1, Ordering::Relaxed) % PORTS.len()) as u16
}

/// Whether a record has this direction, and its client this address and port.
pub fn has_client(record: &Value, direction: &str, client: &str) -> bool {
    let src = &record["src"];
    let address = format!("{}:{}", src["ip"].as_str().unwrap_or_default(), src["port"]);
    record["direction"] == direction && address == client
}

/// Waits for the record with this direction and this client.
pub fn record(tracer: &Tracer, netns: u64, direction: &str, client: &str) -> Value {
    record_since(tracer, netns, direction, client, SystemTime::UNIX_EPOCH)
}

/// Waits for the record of a connection that was opened at this time, and checks that the tool did not hold it too
/// long.
fn record_since(tracer: &Tracer, netns: u64, direction: &str, client: &str, opened_at: SystemTime) -> Value {
    // The tolerance for the tool's conversion of kernel times into wall-clock times.
    let opened_at = opened_at.checked_sub(Duration::from_millis(50)).unwrap_or(opened_at);
    let is_wanted = |record: &&ReceivedRecord| {
        parse_time(&record.value["time"]).is_some_and(|time| time >= opened_at)
            && has_client(&record.value, direction, client)
    };
    let found = tracer
        .output
        .wait(netns, |records| records.iter().rev().find(is_wanted).cloned());
    let ReceivedRecord { value, received_at } =
        found.unwrap_or_else(|error| panic!("no {direction} record of {client}: {error}"));
    let held = parse_time(&value["time"]).and_then(|time| received_at.duration_since(time).ok());
    assert!(
        held.is_none_or(|held| held < MAX_HOLD + BUSY_MACHINE_DELAY),
        "held for {held:?}: {value}"
    );
    value
}

/// Checks that an end has the names of this pod, or no names if that is allowed.
#[track_caller]
pub fn check_names(record: &Value, end: &str, pod: &Pod, may_be_absent: bool) {
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

/// Checks that an end does not have the names of this pod.
#[track_caller]
pub fn check_not_named(record: &Value, end: &str, pod: &Pod) {
    let names = &record[end];
    let has_uid = names["pod_uid"] == *pod.uid;
    let has_name = names["pod"] == *pod.name && names["namespace"] == *pod.namespace;
    assert!(!has_uid && !has_name, "{end} of {record} is named {}", pod.name);
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

/// Checks that a record names no Service outside of the server's namespace.
#[track_caller]
fn check_no_other_service(record: &Value, server: &Pod) {
    let namespace = &record["service"]["namespace"];
    assert!(
        namespace.is_null() || *namespace == *server.namespace,
        "the Service of {record}"
    );
}
