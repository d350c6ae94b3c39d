//! Captures packets with an AF_PACKET socket, and parses their headers.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, LinkAddr, MsgFlags, SockaddrLike as _, recvmsg, setsockopt, sockopt::RcvBufForce,
    sockopt::ReceiveTimestampns,
};

use crate::support::expect::format_time;

// The flags of the TCP header.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The number of bytes to read of each packet: enough for its headers.
const SNAPLEN: usize = 192;
/// Holds all packets that the lives of a batch send between two reads.
const RECEIVE_BUFFER: usize = 128 << 20;

/// One TCP segment, or an ICMP error about one.
#[derive(Clone)]
pub struct Packet {
    /// When the kernel passed the packet to the device, or received it from the device.
    pub time: SystemTime,
    /// The sender of the segment. For an ICMP error: the sender of the segment that caused the error.
    pub from: SocketAddr,
    /// The destination of that segment.
    pub to: SocketAddr,
    /// The code point, which decides what the receiver's packet filter does with the packet.
    pub dscp: u8,
    pub kind: PacketKind,
}

#[derive(Clone, Copy)]
pub enum PacketKind {
    Tcp {
        seq: u32,
        /// Valid if the ACK flag is set.
        ack: u32,
        flags: u8,
        /// The length of the payload.
        len: u32,
    },
    /// An ICMP error: its type and its code.
    Icmp(u8, u8),
}

impl Packet {
    /// Returns the flags of a TCP segment, or 0 for an ICMP error.
    pub fn tcp_flags(&self) -> u8 {
        match self.kind {
            PacketKind::Tcp { flags, .. } => flags,
            PacketKind::Icmp(..) => 0,
        }
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} > {}", format_time(self.time), self.from, self.to)?;
        match self.kind {
            PacketKind::Tcp { seq, ack, flags, len } => {
                let letter = |bit: u8, letter: &'static str| if flags & bit != 0 { letter } else { "" };
                let flags = [letter(SYN, "S"), letter(FIN, "F"), letter(RST, "R"), letter(ACK, ".")].concat();
                write!(out, " [{flags}] seq {seq} ack {ack} len {len}")?;
            }
            PacketKind::Icmp(kind, code) => write!(out, " answered by ICMP type {kind} code {code}")?,
        }
        if self.dscp == 0 {
            Ok(())
        } else {
            write!(out, " stopped by packet filter rule {}", self.dscp)
        }
    }
}

/// The packets on all devices of a namespace.
pub struct Capture {
    socket: OwnedFd,
    loopback_index: usize,
    packets: Mutex<Vec<Packet>>,
}

impl Capture {
    /// Starts to capture in the calling thread's namespace.
    pub fn open() -> Self {
        let all_protocols = i32::from((libc::ETH_P_ALL as u16).to_be());
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed.
        let raw = unsafe { libc::socket(libc::AF_PACKET, flags, all_protocols) };
        assert!(raw >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just opened this descriptor, and no other code owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER).expect("SO_RCVBUFFORCE");
        setsockopt(&socket, ReceiveTimestampns, &true).expect("SO_TIMESTAMPNS");
        let loopback_index = nix::net::if_::if_nametoindex("lo").expect("the index of the loopback device") as usize;
        Self {
            socket,
            loopback_index,
            packets: Mutex::default(),
        }
    }

    /// Reads the packets that the kernel has captured so far.
    pub fn read(&self) {
        let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; SNAPLEN];
        let mut space = nix::cmsg_space!(libc::timespec);
        loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let message = match recvmsg::<LinkAddr>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(message) => message,
                Err(nix::errno::Errno::EAGAIN) => return,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => panic!("read a packet: {error}"),
            };
            let from = message.address.expect("a packet's link address");
            let time = message
                .cmsgs()
                .expect("control messages")
                .find_map(|control| match control {
                    ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
                    _ => None,
                });
            let (time, length) = (time.expect("a packet's time"), message.bytes);
            // The loopback device shows each packet twice: outgoing and incoming.
            // SAFETY: recvmsg() has filled in a whole `sockaddr_ll`, as its family says.
            let link_address = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
            let is_outgoing = link_address.sll_pkttype == libc::PACKET_OUTGOING;
            if from.ifindex() == self.loopback_index && !is_outgoing {
                continue;
            }
            if let Some(packet) = parse(&buffer[..length.min(SNAPLEN)], time) {
                packets.push(packet);
            }
        }
    }

    /// Removes and returns the packets that were captured so far, in the order of their times.
    pub fn take(&self) -> Vec<Packet> {
        self.read();
        let mut packets = std::mem::take(&mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner));
        packets.sort_by_key(|packet| packet.time);
        packets
    }

    /// Returns the number of packets that the kernel dropped because the buffer was full.
    pub fn dropped(&self) -> u32 {
        let mut stats = [0_u32; 2];
        let mut size = libc::socklen_t::try_from(size_of_val(&stats)).expect("8 bytes");
        // SAFETY: the kernel writes at most `size` bytes to `stats`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                stats.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        assert_eq!(result, 0, "PACKET_STATISTICS: {}", io::Error::last_os_error());
        stats[1]
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The fields of an IP header that the capture needs.
struct IpHeader<'a> {
    from: IpAddr,
    to: IpAddr,
    dscp: u8,
    protocol: u8,
    /// The captured bytes after the header.
    payload: &'a [u8],
    /// The payload's length on the wire.
    length: u32,
}

fn parse_ip_header(bytes: &[u8]) -> Option<IpHeader<'_>> {
    match bytes.first()? >> 4 {
        4 => {
            let header_length = usize::from(bytes[0] & 15) * 4;
            let address = |at: usize| Some(Ipv4Addr::from(u32_at(bytes, at)?).into());
            Some(IpHeader {
                from: address(12)?,
                to: address(16)?,
                dscp: bytes.get(1)? >> 2,
                protocol: *bytes.get(9)?,
                payload: bytes.get(header_length..)?,
                length: u32::from(u16_at(bytes, 2)?).checked_sub(header_length as u32)?,
            })
        }
        6 => {
            let address = |at: usize| {
                let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            Some(IpHeader {
                from: address(8)?,
                to: address(24)?,
                dscp: (u16_at(bytes, 0)? >> 6 & 0x3f) as u8,
                protocol: *bytes.get(6)?,
                payload: bytes.get(40..)?,
                length: u32::from(u16_at(bytes, 4)?),
            })
        }
        _ => None,
    }
}

/// Parses a TCP segment or an ICMP error about one. Returns `None` for anything else.
fn parse(bytes: &[u8], time: SystemTime) -> Option<Packet> {
    const TCP: u8 = 6;
    let ip = parse_ip_header(bytes)?;
    let endpoints = |ip: &IpHeader<'_>| {
        let ports = (u16_at(ip.payload, 0)?, u16_at(ip.payload, 2)?);
        Some((SocketAddr::new(ip.from, ports.0), SocketAddr::new(ip.to, ports.1)))
    };
    match ip.protocol {
        TCP => {
            let (from, to) = endpoints(&ip)?;
            let header_length = u32::from(ip.payload.get(12)? >> 4) * 4;
            let kind = PacketKind::Tcp {
                seq: u32_at(ip.payload, 4)?,
                ack: u32_at(ip.payload, 8)?,
                flags: *ip.payload.get(13)?,
                len: ip.length.checked_sub(header_length)?,
            };
            Some(Packet {
                time,
                from,
                to,
                dscp: ip.dscp,
                kind,
            })
        }
        // ICMP and ICMPv6: a header of 8 bytes, then the packet that caused the error.
        1 | 58 => {
            let cause = parse_ip_header(ip.payload.get(8..)?)?;
            let (from, to) = endpoints(&cause).filter(|_| cause.protocol == TCP)?;
            Some(Packet {
                time,
                from,
                to,
                dscp: 0,
                kind: PacketKind::Icmp(ip.payload[0], ip.payload[1]),
            })
        }
        _ => None,
    }
}
