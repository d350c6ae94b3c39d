//! Decides whether two records with the same addresses are the two ends of one connection.

use crate::record::{Direction, Record, Tcp};

/// The maximum difference between the clocks of two nodes, and the time of a packet on its way, ns.
const MAX_SKEW_NS: i64 = 2_000_000_000;

/// Why two records fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// They are not the ends of one connection.
    No,
    /// Their addresses and lifetimes fit, and sequence numbers are unknown.
    Addresses,
    /// Their sequence numbers fit, too.
    Sequence,
}

/// Compares two closes with the same addresses and ports.
pub fn fit(one: &Record, two: &Record) -> Fit {
    let (client, server) = match (one.direction, two.direction) {
        (Direction::Outbound, Direction::Inbound) => (one, two),
        (Direction::Inbound, Direction::Outbound) => (two, one),
        _ => return Fit::No,
    };
    // A loopback connection does not leave its network namespace.
    let is_local = client.src.ip().is_loopback() || client.dst.ip().is_loopback();
    let is_same_namespace = client.node == server.node && client.netns == server.netns;
    if (is_local && !is_same_namespace) || !overlap(client, server) {
        return Fit::No;
    }
    let directions = [sequence(&client.tcp, &server.tcp), sequence(&server.tcp, &client.tcp)];
    if directions.contains(&Some(false)) {
        Fit::No
    } else if directions.contains(&Some(true)) {
        Fit::Sequence
    } else {
        Fit::Addresses
    }
}

fn overlap(client: &Record, server: &Record) -> bool {
    let starts_before_end = |one: &Record, other: &Record| {
        one.start
            .is_none_or(|start| start.0.saturating_sub(MAX_SKEW_NS) <= other.time.0)
    };
    starts_before_end(client, server) && starts_before_end(server, client)
}

/// Returns whether `receiver` can have received what `sender` sent. `None` if a sequence number is unknown: an end
/// that was never answered knows none of the other end.
fn sequence(sender: &Tcp, receiver: &Tcp) -> Option<bool> {
    if sender.snd_nxt == 0 || receiver.rcv_nxt == 0 {
        return None;
    }
    // A time-wait socket may have acknowledged the FIN after the receiver's record.
    let first = sender.snd_una.wrapping_sub(1);
    let sent = sender.snd_nxt.wrapping_sub(first);
    let received = receiver.rcv_nxt.wrapping_sub(first);
    Some(received <= sent)
}
