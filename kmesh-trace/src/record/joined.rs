//! What `--join` adds to records and totals.

use super::Record;

/// What `--join` found about the other end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The record of the other end. `None` if no stream has it.
    pub other: Option<Record>,
}

/// The payload that one end of a connection sent and the other one did not receive, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undelivered {
    /// The part of the payload from the client to the server, in bytes.
    pub sent: u64,
    /// The part of the payload from the server to the client, in bytes.
    pub received: u64,
}

/// The numbers of connections that `--join` joined, and of closes that it left single or found ambiguous.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinCounts {
    /// The connections with both ends.
    pub pairs: u64,
    /// The closes whose other end no stream has.
    pub one_ended: u64,
    /// The closes that several other closes fit.
    pub ambiguous: u64,
    /// The closes among these that waited less for the other end, because too many closes were waiting.
    pub early: u64,
}
