//! The JSON contract of `pair` lines.

use schemars::JsonSchema;
use serde::Serialize;

use super::{ConnLine, VERSION};
use crate::record::{self, Record, WallTime};

/// A connection that ended, with the close of each end: a line of --join.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "pair")]
pub struct PairLine<'a> {
    /// The type of the line.
    #[serde(rename = "type")]
    #[schemars(extend("const" = "pair"))]
    kind: &'static str,
    /// The version of the contract.
    #[schemars(extend("const" = VERSION))]
    v: u8,
    /// The time of the later close.
    time: WallTime,
    /// The outbound record; null if no stream has it.
    client: Option<ConnLine<'a>>,
    /// The inbound record; null if no stream has it.
    server: Option<ConnLine<'a>>,
    /// The payload that one end sent and the other one did not receive; null unless both ends are known.
    undelivered: Option<Undelivered>,
    /// The client's wait for answers minus the server's time to answer, ns; null unless both ends have as many turns.
    network_ns: Option<u64>,
}

impl<'a> PairLine<'a> {
    /// Returns the line of a joined record.
    pub fn new(record: &'a Record) -> Self {
        let (client, server) = record.both_ends();
        let other_time = record.other().map_or(record.time, |other| other.time);
        Self {
            kind: "pair",
            v: VERSION,
            time: record.time.max(other_time),
            client: client.map(ConnLine::new),
            server: server.map(ConnLine::new),
            undelivered: record.undelivered().map(Undelivered::from),
            network_ns: network_ns(client, server),
        }
    }
}

/// Returns the part of the client's wait that was not the server's time to answer, if both ends counted the same turns.
fn network_ns(client: Option<&Record>, server: Option<&Record>) -> Option<u64> {
    let client = client?.turns.as_deref()?;
    let server = server?.turns.as_deref()?;
    let is_same = (client.count, client.overlapped) == (server.count, server.overlapped);
    is_same.then(|| client.wait_ns.saturating_sub(server.wait_ns))
}

/// The payload that one end sent and the other one did not receive.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields, rename = "undelivered")]
struct Undelivered {
    /// The part from the client to the server, bytes.
    sent: u64,
    /// The part from the server to the client, bytes.
    received: u64,
}

impl From<record::Undelivered> for Undelivered {
    fn from(record::Undelivered { sent, received }: record::Undelivered) -> Self {
        Self { sent, received }
    }
}
