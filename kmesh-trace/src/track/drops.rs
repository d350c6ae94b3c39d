//! Counts of dropped packets → the drops of one connection. Pure: the counts come in as a value.

use std::net::{IpAddr, SocketAddr};

use kmesh_trace_common::{DropKind, Drops, Tuple};

use crate::record::{Direction, PacketDirection, PacketDrops, ReasonNames, Record};

/// Returns the key under which the kernel counts the dropped packets of a connection, and whether the traced end is the lesser one.
pub fn tuple(record: &Record) -> (Tuple, bool) {
    let (local, peer) = match record.direction {
        Direction::Outbound => (record.src, record.socket_dst()),
        Direction::Inbound => (record.socket_dst(), record.src),
    };
    Tuple::new(words(local), local.port(), words(peer), peer.port())
}

/// An address as IPv6, IPv4-mapped for IPv4, in two words in memory order.
fn words(address: SocketAddr) -> [u64; 2] {
    let bytes = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let word = |at: usize| {
        let bytes = bytes[at..at + 8].try_into().unwrap_or_default();
        u64::from_ne_bytes(bytes)
    };
    [word(0), word(8)]
}

/// Returns the dropped packets of a connection, by direction and reason, sent ones first.
///
/// `drops` are the counts of its addresses and ports. They may include packets of another connection: an earlier one has another
/// first sequence number, and one of another network namespace is found by a packet that its own socket sent.
pub fn of_connection(
    record: &Record,
    is_local_lesser: bool,
    drops: &Drops,
    reasons: &ReasonNames,
) -> Vec<PacketDrops> {
    let isn = client_isn(record);
    let own: Vec<_> = drops
        .slots
        .iter()
        .filter(|slot| slot.kind != 0 && slot.packets != 0)
        .filter(|slot| slot.isn == isn || slot.isn == 0 && record.established)
        .map(|slot| (DropKind::from_word(slot.kind), slot.packets))
        .collect();
    let is_sent = |kind: DropKind| kind.is_from_lesser == is_local_lesser;
    let is_shared = record.src.ip().is_loopback()
        || own
            .iter()
            .any(|&(kind, _)| kind.netns != record.netns && kind.has_sender && is_sent(kind));
    let mut all: Vec<PacketDrops> = Vec::new();
    for (kind, packets) in own {
        if is_shared && kind.netns != record.netns {
            continue;
        }
        let direction = match is_sent(kind) {
            true => PacketDirection::Sent,
            false => PacketDirection::Received,
        };
        let Some(reason) = reasons.name(kind.reason.into()) else {
            continue;
        };
        match all.iter_mut().find(|known| known.direction == direction && known.reason == reason) {
            Some(known) => known.packets += packets,
            None => all.push(PacketDrops {
                direction,
                reason,
                packets,
            }),
        }
    }
    all.sort_unstable_by(|one, other| (one.direction, &one.reason).cmp(&(other.direction, &other.reason)));
    all
}

/// Returns the client's first sequence number. The kernel's counters include the SYN that this end sent, and not the peer's.
fn client_isn(record: &Record) -> u32 {
    let tcp = &record.tcp;
    match record.direction {
        Direction::Outbound => tcp.snd_una.wrapping_sub(tcp.bytes_acked as u32),
        Direction::Inbound => tcp.rcv_nxt.wrapping_sub(tcp.bytes_received as u32).wrapping_sub(1),
    }
}
