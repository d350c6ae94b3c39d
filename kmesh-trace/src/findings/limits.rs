//! What limited a connection while it had data to send.

use crate::record::Record;

/// The time with data to send, and the parts of it in which something else than the network was the limit, in us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub busy_us: u64,
    /// The peer's receive window was the limit: its process does not read fast enough.
    pub rwnd_us: u64,
    /// This socket's send buffer was the limit.
    pub sndbuf_us: u64,
}

impl Limits {
    /// Returns the limits of a connection so far; `None` if its record does not have them.
    pub(super) fn of(record: &Record) -> Option<Self> {
        Some(Self {
            busy_us: record.tcp.busy_us?,
            rwnd_us: record.tcp.rwnd_limited_us?,
            sndbuf_us: record.tcp.sndbuf_limited_us?,
        })
    }

    pub(super) fn add(&mut self, other: Self) {
        self.busy_us += other.busy_us;
        self.rwnd_us += other.rwnd_us;
        self.sndbuf_us += other.sndbuf_us;
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            busy_us: self.busy_us.saturating_sub(before.busy_us),
            rwnd_us: self.rwnd_us.saturating_sub(before.rwnd_us),
            sndbuf_us: self.sndbuf_us.saturating_sub(before.sndbuf_us),
        }
    }
}
