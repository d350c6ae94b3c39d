//! Counts of dropped packets → the drops of one connection. Pure: the counts come in as a value.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use kmesh_trace_common::{DropKind, Drops, Tuple};

use crate::record::{Direction, PacketDirection, PacketDrops, ReasonNames, Record};

/// Returns the key under which the kernel counts the dropped packets of a connection, and whether the traced end is the
/// lesser one.
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
/// `drops` are the counts of its addresses and ports. They may include packets of another connection: an earlier one
/// has another first sequence number, and one of another network namespace is found by a packet that its own socket
/// sent.
pub fn of_connection(record: &Record, is_local_lesser: bool, drops: &Drops, reasons: &ReasonNames) -> Vec<PacketDrops> {
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
        match all
            .iter_mut()
            .find(|known| known.direction == direction && known.reason == reason)
        {
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

/// Returns the server's address to which a network namespace translated dropped packets of a connection, and the
/// namespace.
pub fn backend(drops: &Drops) -> Option<(SocketAddr, u32)> {
    let address: [u8; 16] = bytemuck::cast(drops.backend);
    let ip = Ipv6Addr::from(address).to_canonical();
    (drops.backend_netns != 0).then(|| (SocketAddr::new(ip, drops.backend_port), drops.backend_netns))
}

/// Returns the client's first sequence number. The kernel's counters include the SYN that this end sent, and not the
/// peer's.
fn client_isn(record: &Record) -> u32 {
    let tcp = &record.tcp;
    match record.direction {
        Direction::Outbound => tcp.snd_una.wrapping_sub(tcp.bytes_acked as u32),
        Direction::Inbound => tcp.rcv_nxt.wrapping_sub(tcp.bytes_received as u32).wrapping_sub(1),
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use kmesh_trace_common::DropSlot;

    use super::*;
    use crate::output::testing;

    const NETNS: u32 = 7;
    const OTHER_NETNS: u32 = 8;
    const ISN: u32 = u32::MAX - 2;
    /// The first sequence number of an earlier connection with the same addresses and ports.
    const EARLIER: u32 = 1_000;
    const NETFILTER: u16 = 11;
    const NO_SOCKET: u16 = 3;

    fn reasons() -> ReasonNames {
        let names = [(3, "NO_SOCKET"), (11, "NETFILTER_DROP")];
        ReasonNames::new(names.map(|(number, name)| (number, name.to_owned())), "")
    }

    /// Returns a connection whose client has the lesser address. Its sequence numbers wrap.
    fn outbound() -> Record {
        let mut record = Record {
            direction: Direction::Outbound,
            src: "10.0.0.1:40000".parse().unwrap(),
            dst: "10.0.0.2:80".parse().unwrap(),
            netns: NETNS,
            ..testing::example()
        };
        (record.tcp.bytes_acked, record.tcp.snd_una) = (101, ISN.wrapping_add(101));
        record
    }

    fn inbound() -> Record {
        let mut record = Record {
            direction: Direction::Inbound,
            ..outbound()
        };
        (record.tcp.bytes_received, record.tcp.rcv_nxt) = (100, ISN.wrapping_add(101));
        record
    }

    fn kind(reason: u16, is_from_lesser: bool) -> DropKind {
        DropKind {
            netns: NETNS,
            reason,
            is_from_lesser,
            has_sender: false,
        }
    }

    fn slot(kind: DropKind, isn: u32, packets: u64) -> DropSlot {
        DropSlot {
            kind: kind.to_word(),
            packets,
            isn,
            ..DropSlot::zeroed()
        }
    }

    /// Returns the drops as `sent NETFILTER_DROP:6`, separated by commas.
    fn drops(record: &Record, slots: &[DropSlot]) -> String {
        let mut drops = Drops::zeroed();
        drops.slots[..slots.len()].copy_from_slice(slots);
        let (_, is_local_lesser) = tuple(record);
        let found = of_connection(record, is_local_lesser, &drops, &reasons());
        let texts = found
            .iter()
            .map(|drop| format!("{} {}:{}", drop.direction.name(), drop.reason, drop.packets));
        texts.collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn both_ends_have_the_same_tuple() {
        let (client, is_client_lesser) = tuple(&outbound());
        let (server, is_server_lesser) = tuple(&inbound());
        assert_eq!(client, server);
        assert!(is_client_lesser && !is_server_lesser);
        let mut dialled = outbound();
        dialled.names.original_dst = Some("10.96.0.9:443".parse().unwrap());
        assert_eq!(tuple(&dialled).0.ports, [40_000, 443], "the addresses on the socket");
    }

    #[test]
    fn drops_are_summed_by_direction_and_reason_sent_ones_first() {
        let other = DropKind {
            netns: OTHER_NETNS,
            ..kind(NETFILTER, true)
        };
        let slots = [
            slot(kind(NO_SOCKET, false), ISN, 1),
            slot(kind(NO_SOCKET, true), ISN, 2),
            slot(kind(NETFILTER, true), ISN, 6),
            slot(other, ISN, 4),
            // The kernel gives this reason no name.
            slot(kind(4, true), ISN, 9),
            // A slot that is being claimed.
            slot(kind(NETFILTER, false), ISN, 0),
        ];
        let expected = "sent NETFILTER_DROP:10, sent NO_SOCKET:2, received NO_SOCKET:1";
        assert_eq!(drops(&outbound(), &slots), expected);
        let expected = "sent NO_SOCKET:1, received NETFILTER_DROP:10, received NO_SOCKET:2";
        assert_eq!(drops(&inbound(), &slots), expected);
        assert_eq!(drops(&outbound(), &[]), "");
    }

    #[test]
    fn first_sequence_number_of_the_client_decides_whose_packets_they_are() {
        let slots = [
            slot(kind(NETFILTER, true), ISN, 2),
            slot(kind(NETFILTER, true), EARLIER, 40),
            slot(kind(NO_SOCKET, false), 0, 1),
        ];
        for (record, expected) in [
            (outbound(), "sent NETFILTER_DROP:2, received NO_SOCKET:1"),
            (inbound(), "sent NO_SOCKET:1, received NETFILTER_DROP:2"),
        ] {
            assert_eq!(drops(&record, &slots), expected);
        }
        // Every packet of an attempt shows the number, so one without it belongs to an earlier connection.
        let attempt = Record {
            established: false,
            ..outbound()
        };
        assert_eq!(drops(&attempt, &slots), "sent NETFILTER_DROP:2");
    }

    #[test]
    fn only_the_own_namespace_counts_if_the_tuple_is_not_unique() {
        let elsewhere = DropKind {
            netns: OTHER_NETNS,
            ..kind(NETFILTER, true)
        };
        let by_other_socket = DropKind {
            has_sender: true,
            ..elsewhere
        };
        let own = slot(kind(NO_SOCKET, true), ISN, 1);
        // On the way of this connection.
        assert_eq!(
            drops(&outbound(), &[own, slot(elsewhere, ISN, 3)]),
            "sent NETFILTER_DROP:3, sent NO_SOCKET:1"
        );
        // A socket of another namespace sent packets with the same addresses and ports.
        assert_eq!(
            drops(&outbound(), &[own, slot(by_other_socket, ISN, 3)]),
            "sent NO_SOCKET:1"
        );
        // The same packet is the peer's own.
        assert_eq!(
            drops(&inbound(), &[own, slot(by_other_socket, ISN, 3)]),
            "received NETFILTER_DROP:3, received NO_SOCKET:1"
        );
        // Every namespace has its own loopback addresses.
        let mut loopback = outbound();
        loopback.src.set_ip("127.0.0.1".parse().unwrap());
        assert_eq!(drops(&loopback, &[own, slot(elsewhere, ISN, 3)]), "sent NO_SOCKET:1");
    }
}
