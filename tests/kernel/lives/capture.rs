//! Packets as the network carries them: what an AF_PACKET socket sees, parsed here.

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

/// A bit of the TCP header.
pub const FIN: u8 = 1;
/// A bit of the TCP header.
pub const SYN: u8 = 2;
/// A bit of the TCP header.
pub const RST: u8 = 4;
/// A bit of the TCP header.
pub const ACK: u8 = 16;

/// Headers alone are read.
const SNAP: usize = 192;
/// Enough for all that the lives of a batch send between two readings.
const BUFFER: usize = 128 << 20;

/// One TCP segment, or an ICMP error about one.
#[derive(Clone)]
pub struct Packet {
    /// When the kernel handed it to the device, or got it from there.
    pub time: SystemTime,
    /// Who sent the segment. For an ICMP error: who sent the segment that it is about.
    pub from: SocketAddr,
    /// Whom to.
    pub to: SocketAddr,
    /// What the firewall of the receiver does with it: the header's code point.
    pub dscp: u8,
    /// What it is.
    pub kind: Kind,
}

/// What a packet is.
#[derive(Clone, Copy)]
pub enum Kind {
    /// A TCP segment.
    Tcp {
        /// Its first byte.
        seq: u32,
        /// What it acknowledges, where ACK is set.
        ack: u32,
        /// The header's bits.
        flags: u8,
        /// Bytes of payload.
        len: u32,
    },
    /// An ICMP error: type and code.
    Icmp(u8, u8),
}

impl fmt::Display for Packet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} > {}", format_time(self.time), self.from, self.to)?;
        match self.kind {
            Kind::Tcp { seq, ack, flags, len } => {
                let name = |bit: u8, name: &'static str| if flags & bit != 0 { name } else { "" };
                let flags = [name(SYN, "S"), name(FIN, "F"), name(RST, "R"), name(ACK, ".")].concat();
                write!(out, " [{flags}] seq {seq} ack {ack} len {len}")?;
            }
            Kind::Icmp(kind, code) => write!(out, " answered by ICMP type {kind} code {code}")?,
        }
        if self.dscp == 0 {
            Ok(())
        } else {
            write!(out, " stopped by the firewall's rule {}", self.dscp)
        }
    }
}

/// All packets of the calling thread's namespace since it was opened, each once.
pub struct Capture {
    socket: OwnedFd,
    loopback: usize,
    packets: Mutex<Vec<Packet>>,
}

impl Capture {
    /// Opens it in the calling thread's namespace.
    pub fn open() -> Self {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed.
        let raw = unsafe { libc::socket(libc::AF_PACKET, flags, all) };
        assert!(raw >= 0, "AF_PACKET: {}", io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        setsockopt(&socket, RcvBufForce, &BUFFER).expect("SO_RCVBUFFORCE");
        setsockopt(&socket, ReceiveTimestampns, &true).expect("SO_TIMESTAMPNS");
        let loopback = nix::net::if_::if_nametoindex("lo").expect("the loopback's number") as usize;
        Self {
            socket,
            loopback,
            packets: Mutex::default(),
        }
    }

    /// Reads what has come so far.
    pub fn read(&self) {
        let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = [0; SNAP];
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
            // The loopback shows each packet twice: as it leaves and as it comes.
            // SAFETY: recvmsg() has filled in a whole `sockaddr_ll`, as its family says.
            let address = unsafe { &*from.as_ptr().cast::<libc::sockaddr_ll>() };
            let outgoing = address.sll_pkttype == libc::PACKET_OUTGOING;
            if from.ifindex() == self.loopback && !outgoing {
                continue;
            }
            if let Some(packet) = parse(&buffer[..length.min(SNAP)], time) {
                packets.push(packet);
            }
        }
    }

    /// What has come, and forgets it.
    pub fn take(&self) -> Vec<Packet> {
        self.read();
        let mut packets = std::mem::take(&mut *self.packets.lock().unwrap_or_else(PoisonError::into_inner));
        packets.sort_by_key(|packet| packet.time);
        packets
    }

    /// How many packets the kernel had no room for.
    pub fn lost(&self) -> u32 {
        let mut stats = [0_u32; 2];
        let mut size = libc::socklen_t::try_from(size_of_val(&stats)).expect("eight");
        // SAFETY: the kernel writes at most `size` bytes to `stats`.
        let done = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                stats.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        assert_eq!(done, 0, "PACKET_STATISTICS: {}", io::Error::last_os_error());
        stats[1]
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// An IP header: both addresses, the code point, the protocol, what follows it, and how much of that there was on the wire.
struct Header<'a> {
    from: IpAddr,
    to: IpAddr,
    dscp: u8,
    protocol: u8,
    rest: &'a [u8],
    length: u32,
}

fn header(bytes: &[u8]) -> Option<Header<'_>> {
    match bytes.first()? >> 4 {
        4 => {
            let own = usize::from(bytes[0] & 15) * 4;
            let of = |at: usize| Some(Ipv4Addr::from(u32_at(bytes, at)?).into());
            Some(Header {
                from: of(12)?,
                to: of(16)?,
                dscp: bytes.get(1)? >> 2,
                protocol: *bytes.get(9)?,
                rest: bytes.get(own..)?,
                length: u32::from(u16_at(bytes, 2)?).checked_sub(own as u32)?,
            })
        }
        6 => {
            let of = |at: usize| {
                let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            Some(Header {
                from: of(8)?,
                to: of(24)?,
                dscp: (u16_at(bytes, 0)? >> 6 & 0x3f) as u8,
                protocol: *bytes.get(6)?,
                rest: bytes.get(40..)?,
                length: u32::from(u16_at(bytes, 4)?),
            })
        }
        _ => None,
    }
}

/// Parses a TCP segment or an ICMP error about one. Returns `None` for anything else.
fn parse(bytes: &[u8], time: SystemTime) -> Option<Packet> {
    const TCP: u8 = 6;
    let ip = header(bytes)?;
    let ends = |ip: &Header<'_>| {
        let ports = (u16_at(ip.rest, 0)?, u16_at(ip.rest, 2)?);
        Some((SocketAddr::new(ip.from, ports.0), SocketAddr::new(ip.to, ports.1)))
    };
    match ip.protocol {
        TCP => {
            let (from, to) = ends(&ip)?;
            let own = u32::from(ip.rest.get(12)? >> 4) * 4;
            let kind = Kind::Tcp {
                seq: u32_at(ip.rest, 4)?,
                ack: u32_at(ip.rest, 8)?,
                flags: *ip.rest.get(13)?,
                len: ip.length.checked_sub(own)?,
            };
            Some(Packet {
                time,
                from,
                to,
                dscp: ip.dscp,
                kind,
            })
        }
        // ICMP and ICMPv6: type, code, sum, four more bytes, and the packet that it is about.
        1 | 58 => {
            let about = header(ip.rest.get(8..)?)?;
            let (from, to) = ends(&about).filter(|_| about.protocol == TCP)?;
            Some(Packet {
                time,
                from,
                to,
                dscp: 0,
                kind: Kind::Icmp(ip.rest[0], ip.rest[1]),
            })
        }
        _ => None,
    }
}
