//! Groups captured packets into connection attempts.

use std::net::SocketAddr;
use std::time::SystemTime;

use super::capture::{ACK, FIN, Packet, PacketKind, RST, SYN};
use super::state::State;

/// The packets of one connection attempt: those since a SYN with a new sequence number.
pub struct Flow<'a> {
    pub client: SocketAddr,
    pub server: SocketAddr,
    /// At least one packet; the first is the SYN.
    pub packets: Vec<&'a Packet>,
}

/// A socket that a listener created for a flow.
pub struct ChildSocket {
    pub created: SystemTime,
    /// The state in which it was created.
    pub state: State,
    pub syn_ack_sent: SystemTime,
}

/// Returns the difference of two sequence numbers: positive if `to` follows `from`.
pub fn sequence_distance(from: u32, to: u32) -> i64 {
    i64::from(to.wrapping_sub(from) as i32)
}

/// Returns the sequence number of a SYN. Returns `None` for a SYN-ACK and any other packet.
fn syn_sequence(packet: &Packet) -> Option<u32> {
    match packet.kind {
        PacketKind::Tcp { flags, seq, .. } if flags & (SYN | ACK) == SYN => Some(seq),
        _ => None,
    }
}

impl<'a> Flow<'a> {
    /// Groups packets, which are in the order of their times.
    pub fn group(packets: &'a [Packet]) -> Vec<Self> {
        let mut flows: Vec<Self> = Vec::new();
        for packet in packets {
            let has_addresses = |flow: &&mut Self| {
                (flow.client, flow.server) == (packet.from, packet.to)
                    || (flow.server, flow.client) == (packet.from, packet.to)
            };
            let latest = flows.iter_mut().rev().find(has_addresses);
            match (latest, syn_sequence(packet)) {
                (Some(flow), None) => flow.packets.push(packet),
                (Some(flow), Some(sequence)) => {
                    if flow.has_syn(packet.from, sequence) || flow.is_crossed_by_syn(packet.from) {
                        flow.packets.push(packet);
                    } else {
                        flows.push(Self::new(packet));
                    }
                }
                (None, Some(_)) => flows.push(Self::new(packet)),
                // The packet belongs to an earlier life with the same ports.
                (None, None) => {}
            }
        }
        flows
    }

    fn new(syn: &'a Packet) -> Self {
        Self {
            client: syn.from,
            server: syn.to,
            packets: vec![syn],
        }
    }

    /// Returns the time of the first SYN.
    pub fn start(&self) -> SystemTime {
        self.packets[0].time
    }

    /// Returns the first SYN that an end has sent.
    pub fn syn_from(&self, from: SocketAddr) -> Option<&'a Packet> {
        let mut packets = self.packets.iter().copied();
        packets.find(|packet| packet.from == from && syn_sequence(packet).is_some())
    }

    /// Whether the last SYN of this end has this sequence number, so that another one is its retransmission.
    fn has_syn(&self, from: SocketAddr, sequence: u32) -> bool {
        let mut of_end = self.packets.iter().rev().filter(|packet| packet.from == from);
        of_end.find_map(|packet| syn_sequence(packet)) == Some(sequence)
    }

    /// Whether a SYN of this end makes a simultaneous open: only the other end has sent SYNs, and nothing else was
    /// sent.
    fn is_crossed_by_syn(&self, from: SocketAddr) -> bool {
        let is_other_syn = |packet: &&Packet| packet.from != from && syn_sequence(packet).is_some();
        self.packets.iter().all(is_other_syn)
    }

    /// Returns the socket that the listener created for this flow, if it did: with the data of a Fast Open, or when the
    /// handshake was completed. If accept is `deferred`, only with data.
    pub fn child_socket(&self, deferred: bool) -> Option<ChildSocket> {
        let PacketKind::Tcp {
            seq: irs, len: early, ..
        } = self.packets[0].kind
        else {
            return None;
        };
        let mut syn_ack: Option<(u32, SystemTime)> = None;
        for (at, packet) in self.packets.iter().enumerate() {
            let PacketKind::Tcp { seq, ack, flags, len } = packet.kind else {
                continue;
            };
            if packet.from == self.server {
                if flags & (SYN | ACK) == SYN | ACK && syn_ack.is_none() {
                    syn_ack = Some((seq, packet.time));
                    let acknowledges_data = early > 0 && sequence_distance(irs, ack) == i64::from(early) + 1;
                    if acknowledges_data {
                        return Some(ChildSocket {
                            created: self.start(),
                            state: State::SynRecv,
                            syn_ack_sent: packet.time,
                        });
                    }
                }
            } else if let Some((iss, syn_ack_sent)) = syn_ack
                && packet.dscp == 0
                && flags & (SYN | RST | ACK) == ACK
                && sequence_distance(iss, ack) == 1
            {
                // A connection's RST has an ACK. A RST without one comes from no socket: the listener was closed.
                let answer = self.packets[at + 1..].iter().find(|packet| packet.from == self.server);
                if answer.is_some_and(|answer| answer.tcp_flags() & (RST | ACK) == RST) {
                    return None;
                }
                let is_bare_ack = len == 0 && flags & FIN == 0;
                if !(is_bare_ack && deferred) {
                    return Some(ChildSocket {
                        created: packet.time,
                        state: State::Established,
                        syn_ack_sent,
                    });
                }
            }
        }
        None
    }
}
