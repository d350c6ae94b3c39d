//! Packets: the TCP segment in a `struct sk_buff`, its network namespace and its conntrack entry.
//!
//! Few packets are read, so all of it goes through `bpf_probe_read_kernel`, which needs no work of the verifier.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use kmesh_trace_common::{ABSENT, Tuple};

use crate::layout::{offset, read_kernel};
use crate::sock::Address;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
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
#[repr(C)]
pub struct Flow {
    pub from: Address,
    pub to: Address,
    pub from_port: u16,
    pub to_port: u16,
    pad: u32,
}

impl Flow {
    /// Returns the tuple, and whether the segment comes from its lesser end.
    #[inline(always)]
    pub fn tuple(&self) -> (Tuple, bool) {
        Tuple::new(self.from.0, self.from_port, self.to.0, self.to_port)
    }
}

/// A TCP segment as it is in the packet.
#[repr(C)]
pub struct Segment {
    pub flow: Flow,
    /// The ports, the sequence number, the acknowledgement and the flags, in network order.
    header: [u32; 4],
}

impl Segment {
    /// Returns the client's first sequence number if the segment shows it: if it opens the connection, accepts it or
    /// refuses it. Returns 0 otherwise.
    #[inline(always)]
    pub fn client_isn(&self) -> u32 {
        let (seq, ack) = (u32::from_be(self.header[1]), u32::from_be(self.header[2]));
        let flags = (u32::from_be(self.header[3]) >> 16) as u8;
        let is_set = |flag: u8| flags & flag != 0;
        if is_set(tcp_flag::SYN) && !is_set(tcp_flag::ACK) {
            seq
        } else if is_set(tcp_flag::ACK) && (is_set(tcp_flag::SYN) || is_set(tcp_flag::RST) && seq == 0) {
            ack.wrapping_sub(1)
        } else {
            0
        }
    }
}

/// The address of a `struct sk_buff`.
#[derive(Clone, Copy)]
pub struct Skb(u64);

impl Skb {
    /// Returns the packet that a hook's argument points to; `None` if the pointer is null.
    #[inline(always)]
    pub fn from_argument(skb: *const c_void) -> Option<Self> {
        if skb.is_null() { None } else { Some(Self(skb as u64)) }
    }

    #[inline(always)]
    fn member<T: Copy + Default>(self, offset: u32) -> T {
        read_kernel(self.0 + u64::from(offset))
    }

    /// Reads the TCP segment into `to`, which is memory of a map: the stack is too small. Returns false for any other
    /// packet, and for a fragment that is not the first.
    #[inline(always)]
    pub fn read_segment(self, to: &mut Segment) -> bool {
        let network = self.member::<u16>(offset!(skb_network_header));
        if network == 0 {
            return false;
        }
        let at = self.member::<u64>(offset!(skb_head)) + u64::from(network);
        let header = match u16::from_be(self.member(offset!(skb_protocol))) {
            ETH_P_IP => read_ipv4(at, &mut to.flow),
            ETH_P_IPV6 => read_ipv6(at, &mut to.flow),
            _ => 0,
        };
        if header == 0 {
            return false;
        }
        read_into(header, &mut to.header);
        let ports = u32::from_be(to.header[0]);
        to.flow.from_port = (ports >> 16) as u16;
        to.flow.to_port = ports as u16;
        true
    }

    /// Returns the socket that sent the packet, or that is to receive it; 0 if there is none, or none any more.
    #[inline(always)]
    pub fn sk(self) -> u64 {
        self.member(offset!(skb_sk))
    }

    /// Returns the inode number of the network namespace that the packet is in; 0 if unknown.
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

    /// Returns the conntrack entry of the packet, and whether the packet goes from the server to the client. `None` if
    /// it has no entry.
    #[inline(always)]
    pub fn conntrack(self) -> Option<(u64, bool)> {
        if offset!(skb_nfct) == ABSENT || offset!(conntrack_src) == ABSENT {
            return None;
        }
        let word = self.member::<u64>(offset!(skb_nfct));
        let (entry, info) = (word & !CONNTRACK_INFO, word & CONNTRACK_INFO);
        if entry == 0 {
            None
        } else {
            Some((entry, info >= IS_REPLY))
        }
    }
}

/// Reads the connection of a conntrack entry into `to`, as the client sees it: from the client to the address that it
/// dialled. Returns false for another protocol than IP.
#[inline(always)]
pub fn read_original(entry: u64, to: &mut Flow) -> bool {
    read_tuple(entry, to)
}

/// Reads the connection of a conntrack entry into `to`, as the server sees it: from the server to the client. Returns
/// false for another protocol than IP.
#[inline(always)]
pub fn read_reply(entry: u64, to: &mut Flow) -> bool {
    read_tuple(entry + u64::from(offset!(conntrack_reply)), to)
}

#[inline(always)]
fn read_tuple(at: u64, to: &mut Flow) -> bool {
    let (from, dst) = (
        at + u64::from(offset!(conntrack_src)),
        at + u64::from(offset!(conntrack_dst)),
    );
    match read_kernel::<u16>(at + u64::from(offset!(conntrack_family))) {
        AF_INET => {
            to.from = Address::from_ipv4(read_kernel(from));
            to.to = Address::from_ipv4(read_kernel(dst));
        }
        AF_INET6 => {
            read_into(from, &mut to.from.0);
            read_into(dst, &mut to.to.0);
        }
        _ => return false,
    }
    to.from_port = u16::from_be(read_kernel(at + u64::from(offset!(conntrack_sport))));
    to.to_port = u16::from_be(read_kernel(at + u64::from(offset!(conntrack_dport))));
    true
}

/// Reads the addresses of an IPv4 packet. Returns the address of its TCP header; 0 if it has none.
#[inline(always)]
fn read_ipv4(at: u64, to: &mut Flow) -> u64 {
    let length: u8 = read_kernel(at);
    let fragment = u16::from_be(read_kernel(at + 6)) & 0x1fff;
    if length >> 4 != 4 || read_kernel::<u8>(at + 9) != IPPROTO_TCP || fragment != 0 {
        return 0;
    }
    to.from = Address::from_ipv4(read_kernel(at + 12));
    to.to = Address::from_ipv4(read_kernel(at + 16));
    at + u64::from(length & 0xf) * 4
}

/// Reads the addresses of an IPv6 packet. Returns the address of its TCP header; 0 if it has none.
#[inline(always)]
fn read_ipv6(at: u64, to: &mut Flow) -> u64 {
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
            _ => return 0,
        };
        next = extension[0];
    }
    if next != IPPROTO_TCP {
        return 0;
    }
    read_into(at + 8, &mut to.from.0);
    read_into(at + 24, &mut to.to.0);
    header
}

/// Reads kernel memory into `to`; zero if the address cannot be read.
#[inline(always)]
fn read_into<T>(address: u64, to: &mut T) {
    // SAFETY: the helper writes at most the size of `to`, and checks the address. On failure it writes zeros.
    unsafe {
        bpf_probe_read_kernel(
            ptr::from_mut(to).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
}
