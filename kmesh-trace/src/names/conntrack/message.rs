//! The question and its answer, as linux/netfilter/nfnetlink_conntrack.h has them. Pure.
//!
//! Attributes are a length and a type of two bytes each, then the value, padded to four bytes; what belongs to netfilter is
//! in network order, what belongs to netlink in the machine's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Room for any question: of IPv6, 112 bytes.
pub const LONGEST_QUESTION: usize = 128;

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

/// nlmsghdr, then nfgenmsg.
const HEADER: usize = 16;
const HEADERS: usize = HEADER + 4;

/// An entry of connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The address that answers the client.
    pub backend: SocketAddr,
    /// The state of the TCP connection (`enum tcp_conntrack`).
    pub state: Option<u8>,
    /// The time until the kernel forgets the entry, unless another packet comes.
    pub expires_in: Option<Duration>,
}

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The entry that was asked for.
    Found(Entry),
    /// The kernel says no: its error number.
    Refused(i32),
    /// Something else.
    Other,
}

/// Asks for the entry of what `client` dialled.
pub fn question(buffer: &mut [u8; LONGEST_QUESTION], sequence: u32, client: SocketAddr, dialled: SocketAddr) -> &[u8] {
    let mut out = Out {
        buffer,
        length: HEADERS,
    };
    let family = if client.is_ipv4() { AF_INET } else { AF_INET6 };
    let tuple = out.begin(TUPLE_ORIG);
    let ip = out.begin(TUPLE_IP);
    for (address, v4, v6) in [(client, IP_V4_SRC, IP_V6_SRC), (dialled, IP_V4_DST, IP_V6_DST)] {
        match address.ip() {
            IpAddr::V4(ip) => out.put(v4, &ip.octets()),
            IpAddr::V6(ip) => out.put(v6, &ip.octets()),
        }
    }
    out.end(ip);
    let protocol = out.begin(TUPLE_PROTO);
    out.put(PROTO_NUM, &[TCP]);
    out.put(PROTO_SRC_PORT, &client.port().to_be_bytes());
    out.put(PROTO_DST_PORT, &dialled.port().to_be_bytes());
    out.end(protocol);
    out.end(tuple);
    let Out { buffer, length } = out;
    buffer[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    buffer[4..6].copy_from_slice(&CT_GET.to_ne_bytes());
    buffer[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    buffer[8..12].copy_from_slice(&sequence.to_ne_bytes());
    buffer[HEADER] = family;
    &buffer[..length]
}

struct Out<'a> {
    buffer: &'a mut [u8; LONGEST_QUESTION],
    length: usize,
}

impl Out<'_> {
    fn put(&mut self, kind: u16, value: &[u8]) {
        let at = self.length;
        self.buffer[at..at + 2].copy_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        self.buffer[at + 2..at + 4].copy_from_slice(&kind.to_ne_bytes());
        self.buffer[at + 4..at + 4 + value.len()].copy_from_slice(value);
        self.length += 4 + value.len().next_multiple_of(4);
    }

    fn begin(&mut self, kind: u16) -> usize {
        let at = self.length;
        self.put(kind | NESTED, &[]);
        at
    }

    fn end(&mut self, at: usize) {
        let length = (self.length - at) as u16;
        self.buffer[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// What a datagram of the kernel's says to the question of this number.
pub fn answer(datagram: &[u8], sequence: u32) -> Answer {
    read(datagram, sequence).unwrap_or(Answer::Other)
}

fn read(datagram: &[u8], sequence: u32) -> Option<Answer> {
    let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
    let message = datagram.get(..length)?;
    if message.get(8..12)? != sequence.to_ne_bytes() {
        return None;
    }
    match u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?) {
        ERROR => {
            let errno = i32::from_ne_bytes(message.get(HEADER..HEADER + 4)?.try_into().ok()?);
            Some(Answer::Refused(errno.checked_neg()?))
        }
        CT_NEW => entry(message.get(HEADERS..)?).map(Answer::Found),
        _ => None,
    }
}

fn entry(attributes: &[u8]) -> Option<Entry> {
    let reply = find(attributes, &[TUPLE_REPLY])?;
    let ip: IpAddr = match (find(reply, &[TUPLE_IP, IP_V4_SRC]), find(reply, &[TUPLE_IP, IP_V6_SRC])) {
        (Some(octets), _) => <[u8; 4]>::try_from(octets).ok()?.into(),
        (None, octets) => <[u8; 16]>::try_from(octets?).ok()?.into(),
    };
    let port = find(reply, &[TUPLE_PROTO, PROTO_SRC_PORT])?.try_into().ok()?;
    let state = find(attributes, &[PROTOINFO, PROTOINFO_TCP, PROTOINFO_TCP_STATE]);
    let seconds = find(attributes, &[TIMEOUT]).and_then(|bytes| bytes.try_into().ok());
    Some(Entry {
        backend: SocketAddr::new(ip, u16::from_be_bytes(port)),
        state: state.and_then(|bytes| bytes.first().copied()),
        expires_in: seconds.map(|bytes| Duration::from_secs(u32::from_be_bytes(bytes).into())),
    })
}

/// The value of an attribute within attributes.
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
    fn a_question_is_what_other_tools_ask() {
        let mut buffer = [0; LONGEST_QUESTION];
        let question = question(
            &mut buffer,
            7,
            "10.1.0.5:40000".parse().unwrap(),
            "10.96.0.1:80".parse().unwrap(),
        );
        let expected = "48000000 0101 0100 07000000 00000000 02000000 \
             3400 0180 1400 0180 0800 0100 0a010005 0800 0200 0a600001 \
             1c00 0280 0500 0100 06000000 0600 0200 9c400000 0600 0300 00500000";
        assert_eq!(question, hex(expected));
    }

    #[test]
    fn of_ipv6_it_fits() {
        let mut buffer = [0; LONGEST_QUESTION];
        let [one, other] = ["[fd00::1]:1", "[fd00::2]:2"].map(|text| text.parse().unwrap());
        assert_eq!(question(&mut buffer, 1, one, other).len(), 20 + 52 + 28 - 4);
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
    fn an_answer_tells_who_answers() {
        let entry = "02000000 \
             3400 0180 1400 0180 0800 0100 0a010005 0800 0200 0a600001 \
             1c00 0280 0500 0100 06000000 0600 0200 9c400000 0600 0300 00500000 \
             3400 0280 1400 0180 0800 0100 0a010007 0800 0200 0a010005 \
             1c00 0280 0500 0100 06000000 0600 0200 1f900000 0600 0300 9c400000";
        let expected = Answer::Found(Entry {
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
        let ended = Answer::Found(Entry {
            backend: "10.1.0.7:8080".parse().unwrap(),
            state: Some(7),
            expires_in: Some(Duration::from_secs(100)),
        });
        assert_eq!(answer(&whole, 7), ended);
        assert_eq!(answer(&found, 8), Answer::Other, "to another question");
        let refusal = answers(ERROR, "feffffff");
        assert_eq!(answer(&refusal, 7), Answer::Refused(2));
        // Cut anywhere, or with any byte changed, it is another answer or none, and no panic.
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
