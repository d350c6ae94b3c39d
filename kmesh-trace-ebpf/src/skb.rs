//! Packets: the TCP segment in a `struct sk_buff`, its network namespace and its conntrack entry.
//!
//! Few packets are read, so all of it goes through `bpf_probe_read_kernel`, which needs no work of the verifier.

use core::ffi::c_void;

use kmesh_trace_common::{ABSENT, Tuple};

use crate::layout::{offset, read_kernel};
use crate::sock::Address;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const IPPROTO_TCP: u8 = 6;
/// IPv6 extension headers that may stand before TCP.
const IPPROTO_HOPOPTS: u8 = 0;
const IPPROTO_ROUTING: u8 = 43;
const IPPROTO_FRAGMENT: u8 = 44;
const IPPROTO_AH: u8 = 51;
const IPPROTO_DSTOPTS: u8 = 60;
/// The most extension headers that are skipped.
const MAX_EXTENSIONS: u32 = 6;
/// `sk_buff._nfct`: the low bits, an `enum ip_conntrack_info`; the rest is the pointer to the entry.
const CONNTRACK_INFO: u64 = 7;
/// `IP_CT_IS_REPLY`: packets from this number on go from the server to the client.
const IS_REPLY: u64 = 3;

/// Flags of a TCP segment.
pub mod tcp_flag {
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// The addresses and ports of a segment.
#[derive(Clone, Copy)]
pub struct Flow {
    pub from: Address,
    pub to: Address,
    pub from_port: u16,
    pub to_port: u16,
}

impl Flow {
    /// Returns the flow in the other direction.
    #[inline(always)]
    fn reversed(self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            from_port: self.to_port,
            to_port: self.from_port,
        }
    }

    /// Returns the tuple, and whether the segment comes from its lesser end.
    #[inline(always)]
    pub fn tuple(self) -> (Tuple, bool) {
        Tuple::new(self.from.0, self.from_port, self.to.0, self.to_port)
    }
}

/// A TCP segment as it is in the packet.
pub struct Segment {
    pub flow: Flow,
    seq: u32,
    ack: u32,
    flags: u8,
}

impl Segment {
    /// Returns the client's first sequence number if the segment shows it: if it opens the connection, accepts it or
    /// refuses it. Returns 0 otherwise.
    #[inline(always)]
    pub fn client_isn(&self) -> u32 {
        let is_set = |flag: u8| self.flags & flag != 0;
        if is_set(tcp_flag::SYN) && !is_set(tcp_flag::ACK) {
            self.seq
        } else if is_set(tcp_flag::ACK) && (is_set(tcp_flag::SYN) || is_set(tcp_flag::RST) && self.seq == 0) {
            self.ack.wrapping_sub(1)
        } else {
            0
        }
    }
}

/// The translation of a packet's connection.
pub struct Translation {
    /// The packet as the client sees it.
    pub client: Flow,
    /// The packet as the server sees it.
    pub server: Flow,
    /// The server's address and port.
    pub backend: (Address, u16),
}

/// A `struct sk_buff`.
#[derive(Clone, Copy)]
pub struct Skb(u64);

impl Skb {
    /// Returns the packet that a hook's argument points to; none for null.
    #[inline(always)]
    pub fn from_argument(skb: *const c_void) -> Option<Self> {
        if skb.is_null() { None } else { Some(Self(skb as u64)) }
    }

    #[inline(always)]
    fn member<T: Copy + Default>(self, offset: u32) -> T {
        read_kernel(self.0 + u64::from(offset))
    }

    /// Returns the TCP segment; none for any other packet, and for a fragment that is not the first.
    #[inline(always)]
    pub fn segment(self) -> Option<Segment> {
        let network = self.member::<u16>(offset!(skb_network_header));
        if network == 0 {
            return None;
        }
        let at = self.member::<u64>(offset!(skb_head)) + u64::from(network);
        match u16::from_be(self.member(offset!(skb_protocol))) {
            ETH_P_IP => ipv4(at),
            ETH_P_IPV6 => ipv6(at),
            _ => None,
        }
    }

    /// Returns the socket that sent the packet, or that is to receive it; 0 if there is none, or none any more.
    #[inline(always)]
    pub fn sk(self) -> u64 {
        self.member(offset!(skb_sk))
    }

    /// Returns the inode number of the network namespace that the packet is in; 0 when unknown.
    #[inline(always)]
    pub fn netns(self) -> u32 {
        let sk = self.sk();
        let net: u64 = if sk != 0 {
            read_kernel(sk + u64::from(offset!(skc_net)))
        } else {
            match self.member::<u64>(offset!(skb_dev)) {
                0 => 0,
                dev => read_kernel(dev + u64::from(offset!(net_device_net))),
            }
        };
        if net == 0 {
            0
        } else {
            read_kernel(net + u64::from(offset!(net_inum)))
        }
    }

    /// Returns how the packet's connection is translated, by its conntrack entry. `None` if it has no entry.
    #[inline(always)]
    pub fn translation(self) -> Option<Translation> {
        if offset!(skb_nfct) == ABSENT || offset!(conntrack_src) == ABSENT {
            return None;
        }
        let word = self.member::<u64>(offset!(skb_nfct));
        let (entry, info) = (word & !CONNTRACK_INFO, word & CONNTRACK_INFO);
        if entry == 0 {
            return None;
        }
        let original = conntrack_flow(entry)?;
        let reply = conntrack_flow(entry + u64::from(offset!(conntrack_reply)))?;
        let backend = (reply.from, reply.from_port);
        let (client, server) = if info < IS_REPLY {
            (original, reply.reversed())
        } else {
            (original.reversed(), reply)
        };
        Some(Translation {
            client,
            server,
            backend,
        })
    }
}

/// Reads one of the two tuples of a conntrack entry.
#[inline(always)]
fn conntrack_flow(at: u64) -> Option<Flow> {
    let family: u16 = read_kernel(at + u64::from(offset!(conntrack_family)));
    let address = |offset: u32| {
        let at = at + u64::from(offset);
        match family {
            2 => Some(Address::from_ipv4(read_kernel(at))),
            10 => Some(Address(read_kernel(at))),
            _ => None,
        }
    };
    let port = |offset: u32| u16::from_be(read_kernel(at + u64::from(offset)));
    Some(Flow {
        from: address(offset!(conntrack_src))?,
        to: address(offset!(conntrack_dst))?,
        from_port: port(offset!(conntrack_sport)),
        to_port: port(offset!(conntrack_dport)),
    })
}

#[inline(always)]
fn ipv4(at: u64) -> Option<Segment> {
    let header: [u8; 20] = read_kernel(at);
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    if header[0] >> 4 != 4 || header[9] != IPPROTO_TCP || fragment != 0 {
        return None;
    }
    let address = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    segment(
        at + u64::from(header[0] & 0xf) * 4,
        Address::from_ipv4(address(12)),
        Address::from_ipv4(address(16)),
    )
}

#[inline(always)]
fn ipv6(at: u64) -> Option<Segment> {
    let mut next: u8 = read_kernel(at + 6);
    let mut header = at + 40;
    for _ in 0..MAX_EXTENSIONS {
        if next == IPPROTO_TCP {
            break;
        }
        let extension: [u8; 4] = read_kernel(header);
        header += match next {
            IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => (u64::from(extension[1]) + 1) * 8,
            IPPROTO_AH => (u64::from(extension[1]) + 2) * 4,
            IPPROTO_FRAGMENT if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0 => 8,
            _ => return None,
        };
        next = extension[0];
    }
    if next != IPPROTO_TCP {
        return None;
    }
    segment(header, Address(read_kernel(at + 8)), Address(read_kernel(at + 24)))
}

#[inline(always)]
fn segment(at: u64, from: Address, to: Address) -> Option<Segment> {
    // Ports, sequence numbers and flags, in network order.
    let words: [u32; 4] = read_kernel(at);
    let ports = u32::from_be(words[0]);
    let flow = Flow {
        from,
        to,
        from_port: (ports >> 16) as u16,
        to_port: ports as u16,
    };
    Some(Segment {
        flow,
        seq: u32::from_be(words[1]),
        ack: u32::from_be(words[2]),
        flags: (u32::from_be(words[3]) >> 16) as u8,
    })
}
