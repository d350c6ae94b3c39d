//! Facts that only some records have: the kernel's chronograph, the times of the last segments, and turns.

use crate::record::Record;
use crate::rollup::Quantiles;

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

/// Returns the limits of a connection. `None`: its record does not have them.
pub(super) fn limits(_: &Record) -> Option<Limits> {
    None
}

/// Returns how long a connection was idle before it ended. `None`: its record does not have it.
pub(super) fn idle_ns(_: &Record) -> Option<u64> {
    None
}

/// Adds the waits for the answers of a connection.
pub(super) fn add_answers(_: &mut Quantiles, _: &Record) {}
