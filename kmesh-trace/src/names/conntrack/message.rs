//! The messages of linux/netfilter/nfnetlink_conntrack.h: the request for an entry, and its answer. Pure.
//!
//! Attributes are a length and a type of two bytes each, then the value, padded to four bytes. Netfilter's values are
//! in network order, netlink's in the machine's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const REQUEST: u16 = 1;
const ERROR: u16 = 2;
/// Subsystem 1, messages 0 and 1.
const CT_NEW: u16 = 1 << 8;
const CT_GET: u16 = 1 << 8 | 1;

const NESTED: u16 = 1 << 15;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const PROTOINFO_TCP: u16 = 1;
const PROTOINFO_TCP_STATE: u16 = 1;

const TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The length of nlmsghdr. The header of netfilter, nfgenmsg, has 4 bytes more.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackEntry {
    /// The address that answers the client.
    pub backend: SocketAddr,
    /// The state of the TCP connection (`enum tcp_conntrack`).
    pub state: Option<u8>,
    /// The time until the kernel forgets the entry, unless another packet comes.
    pub expires_in: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelAnswer {
    Found(ConntrackEntry),
    /// The kernel's error number.
    Refused(i32),
    /// A message that does not answer the request.
    Other,
}

pub fn request(sequence: u32, client: SocketAddr, dialled: SocketAddr) -> Vec<u8> {
    let octets = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (family, src, dst) = match client.is_ipv4() {
        true => (AF_INET, IP_V4_SRC, IP_V4_DST),
        false => (AF_INET6, IP_V6_SRC, IP_V6_DST),
    };
    let ip = [attribute(src, &octets(client)), attribute(dst, &octets(dialled))].concat();
    let protocol = [
        attribute(PROTO_NUM, &[TCP]),
        attribute(PROTO_SRC_PORT, &client.port().to_be_bytes()),
        attribute(PROTO_DST_PORT, &dialled.port().to_be_bytes()),
    ];
    let tuple = [
        attribute(TUPLE_IP | NESTED, &ip),
        attribute(TUPLE_PROTO | NESTED, &protocol.concat()),
    ];
    let tuple = attribute(TUPLE_ORIG | NESTED, &tuple.concat());
    let length = (HEADERS + tuple.len()) as u32;
    [
        &length.to_ne_bytes()[..],
        &CT_GET.to_ne_bytes(),
        &REQUEST.to_ne_bytes(),
        &sequence.to_ne_bytes(),
        &[0; 4],
        &[family, 0, 0, 0],
        &tuple,
    ]
    .concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len() as u16;
    let padding = vec![0; value.len().next_multiple_of(4) - value.len()];
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value, &padding].concat()
}

/// Returns the kernel's answer to the request of this number.
pub fn answer(datagram: &[u8], sequence: u32) -> KernelAnswer {
    read(datagram, sequence).unwrap_or(KernelAnswer::Other)
}

fn read(datagram: &[u8], sequence: u32) -> Option<KernelAnswer> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let message = datagram.get(..length)?;
    if message.get(8..12)? != sequence.to_ne_bytes() {
        return None;
    }
    match u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?) {
        ERROR => {
            let errno = i32::from_ne_bytes(message.get(HEADER..HEADER + 4)?.try_into().ok()?);
            Some(KernelAnswer::Refused(errno.checked_neg()?))
        }
        CT_NEW => entry(message.get(HEADERS..)?).map(KernelAnswer::Found),
        _ => None,
    }
}

fn entry(attributes: &[u8]) -> Option<ConntrackEntry> {
    let reply = find(attributes, &[TUPLE_REPLY])?;
    let ip: IpAddr = match (find(reply, &[TUPLE_IP, IP_V4_SRC]), find(reply, &[TUPLE_IP, IP_V6_SRC])) {
        (Some(octets), _) => <[u8; 4]>::try_from(octets).ok()?.into(),
        (None, octets) => <[u8; 16]>::try_from(octets?).ok()?.into(),
    };
    let port = find(reply, &[TUPLE_PROTO, PROTO_SRC_PORT])?.try_into().ok()?;
    let state = find(attributes, &[PROTOINFO, PROTOINFO_TCP, PROTOINFO_TCP_STATE]);
    let seconds = find(attributes, &[TIMEOUT]).and_then(|bytes| bytes.try_into().ok());
    Some(ConntrackEntry {
        backend: SocketAddr::new(ip, u16::from_be_bytes(port)),
        state: state.and_then(|bytes| bytes.first().copied()),
        expires_in: seconds.map(|bytes| Duration::from_secs(u32::from_be_bytes(bytes).into())),
    })
}

/// Returns the value of an attribute within attributes.
fn find<'a>(attributes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    let Some((wanted, rest)) = path.split_first() else {
        return Some(attributes);
    };
    let mut left = attributes;
    loop {
        let length = usize::from(u16::from_ne_bytes(left.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(left.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = left.get(4..length)?;
        if kind == *wanted {
            return find(value, rest);
        }
        left = left.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::testing::random;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().filter(char::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap())
            .collect()
    }

    /// As `conntrack -G -p tcp -s 10.1.0.5 -d 10.96.0.1 --sport 40000 --dport 80` sends it, on a little-endian machine.
    #[test]
    #[cfg(target_endian = "little")]
    fn request_is_that_of_other_tools() {
        let [client, dialled] = ["10.1.0.5:40000", "10.96.0.1:80"].map(|text| text.parse().unwrap());
        let expected = "48000000 0101 0100 07000000 00000000 02000000 \
             3400 0180 1400 0180 0800 0100 0a010005 0800 0200 0a600001 \
             1c00 0280 0500 0100 06000000 0600 0200 9c400000 0600 0300 00500000";
        assert_eq!(request(7, client, dialled), hex(expected));
    }

    #[test]
    fn request_may_be_for_ipv6() {
        let [client, dialled] = ["[fd00::1]:1", "[fd00::2]:2"].map(|text| text.parse().unwrap());
        let request = request(1, client, dialled);
        assert_eq!((request.len(), request[HEADER]), (20 + 52 + 28 - 4, AF_INET6));
    }

    fn answers(kind: u16, body: &str) -> Vec<u8> {
        let body = hex(body);
        let mut datagram = (16 + body.len() as u32).to_ne_bytes().to_vec();
        datagram.extend(kind.to_ne_bytes());
        datagram.extend([0, 0]);
        datagram.extend(7_u32.to_ne_bytes());
        datagram.extend([0; 4]);
        datagram.extend(body);
        datagram
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn answer_has_the_backend() {
        let entry = "02000000 \
             3400 0180 1400 0180 0800 0100 0a010005 0800 0200 0a600001 \
             1c00 0280 0500 0100 06000000 0600 0200 9c400000 0600 0300 00500000 \
             3400 0280 1400 0180 0800 0100 0a010007 0800 0200 0a010005 \
             1c00 0280 0500 0100 06000000 0600 0200 1f900000 0600 0300 9c400000";
        let expected = KernelAnswer::Found(ConntrackEntry {
            backend: "10.1.0.7:8080".parse().unwrap(),
            state: None,
            expires_in: None,
        });
        let found = answers(CT_NEW, entry);
        assert_eq!(answer(&found, 7), expected);
        // In TIME_WAIT, for 100 s more.
        let whole = answers(
            CT_NEW,
            &format!("{entry} 1000 0480 0c00 0180 0500 0100 07000000 0800 0700 00000064"),
        );
        let ended = KernelAnswer::Found(ConntrackEntry {
            backend: "10.1.0.7:8080".parse().unwrap(),
            state: Some(7),
            expires_in: Some(Duration::from_secs(100)),
        });
        assert_eq!(answer(&whole, 7), ended);
        assert_eq!(answer(&found, 8), KernelAnswer::Other, "to another request");
        let refusal = answers(ERROR, "feffffff");
        assert_eq!(answer(&refusal, 7), KernelAnswer::Refused(2));
        // A message that is cut anywhere, or has any byte changed, is another answer or none, and no panic.
        for end in 0..found.len() {
            assert_ne!(answer(&found[..end], 7), expected);
        }
        let mut next = random(5);
        for _ in 0..100_000 {
            let mut broken = found.clone();
            let at = next() as usize % broken.len();
            broken[at] = next() as u8;
            answer(&broken, 7);
        }
    }
}
