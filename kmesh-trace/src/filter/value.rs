//! What a filter's flags take, and what each value matches.

use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::record::ContainerId;

/// The kernel gives out pids below 2^22 (`PID_MAX_LIMIT`).
const PID_LIMIT: u32 = 1 << 22;

/// Bytes of a name that the kernel keeps (`TASK_COMM_LEN`, and its NUL).
const COMM_BYTES: usize = 15;

/// One value of a flag; a leading `!` negates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term<T> {
    /// What it matches does not pass.
    pub negated: bool,
    /// What it matches.
    pub value: T,
}

impl<T: FromStr<Err = String>> FromStr for Term<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (negated, value) = match text.strip_prefix('!') {
            Some(value) => (true, value),
            None => (false, text),
        };
        if value.is_empty() {
            return Err("a value is missing".to_owned());
        }
        Ok(Self {
            negated,
            value: value.parse()?,
        })
    }
}

/// A port, or a range of them with both its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The least.
    pub first: u16,
    /// The greatest.
    pub last: u16,
}

impl PortRange {
    /// Whether it has `port`.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("a range goes from its least to its greatest: {last}-{first}"));
        }
        Ok(Self { first, last })
    }
}

fn port(text: &str) -> Result<u16, String> {
    if !is_number(text) {
        return Err("write a port or a range of ports: 443, 8000-8999".to_owned());
    }
    text.parse().map_err(|_| format!("the greatest port is {}", u16::MAX))
}

/// More than `str::parse` wants to know: it would take a sign.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A network, or a single address. IPv4-mapped IPv6 is IPv4, as in records; bits beyond the prefix do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl Network {
    /// Whether `address` is in it; never one of the other family.
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        if address.contains('%') {
            return Err("records have no zones: leave out % and what follows".to_owned());
        }
        let address: IpAddr = address
            .parse()
            .map_err(|_| "write an address or a network: 10.0.0.1, 10.0.0.0/8, fd00::/8".to_owned())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => longest,
            Some(prefix) => Some(prefix)
                .filter(|prefix| is_number(prefix))
                .and_then(|prefix| prefix.parse().ok())
                .filter(|&prefix: &u8| prefix <= longest)
                .ok_or_else(|| format!("the prefix of such an address has a length from 0 to {longest}"))?,
        };
        let (address, prefix) = match address.to_canonical() {
            // A shorter one covers more than what is mapped, so it is a network of IPv6.
            mapped @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => (mapped, prefix - 96),
            _ => (address, prefix),
        };
        let network = IpNet::new(address, prefix).map_err(|error| error.to_string())?;
        Ok(Self(network.trunc()))
    }
}

/// The number of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(pub u32);

impl FromStr for Pid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_number(text) {
            return Err("a pid is a whole number; names go to --comm".to_owned());
        }
        match text.parse() {
            Ok(0) => Err("no process has it: the first is 1".to_owned()),
            Ok(pid) if pid < PID_LIMIT => Ok(Self(pid)),
            _ => Err(format!("no process can have it: the last is {}", PID_LIMIT - 1)),
        }
    }
}

/// What a process may be called: exact bytes, in which `*` stands for any run of bytes, none included.
///
/// Bytes and not characters, because that is what the kernel keeps: it cuts names in the middle of a character, and
/// compares nothing. Names that are not UTF-8, or have a `,` or `*` in them, are found by a `*` in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Glob);

impl NamePattern {
    /// Whether `name` is one.
    pub fn matches(&self, name: &[u8]) -> bool {
        self.0.matches(name)
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let literal = text.bytes().filter(|&byte| byte != b'*').count();
        if literal > COMM_BYTES {
            return Err(format!(
                "the kernel keeps the first {COMM_BYTES} bytes of a name, so none is that long"
            ));
        }
        Ok(Self(Glob::new(text)))
    }
}

/// A text in which `*` stands for any run of bytes, none included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob(String);

impl Glob {
    /// This one.
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether `name` is such a text.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        matches(self.0.as_bytes(), name)
    }
}

/// `*` matches as little as it can; when the rest then fails, the last one takes a byte more. Never more than
/// `pattern.len() * name.len()` steps.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut in_name) = (0, 0);
    // Behind the last `*`, and where in the name its run ends.
    let mut star: Option<(usize, usize)> = None;
    while in_name < name.len() {
        match (pattern.get(at), star) {
            (Some(b'*'), _) => {
                at += 1;
                star = Some((at, in_name));
            }
            (Some(byte), _) if *byte == name[in_name] => {
                at += 1;
                in_name += 1;
            }
            (_, Some((behind, end))) => {
                at = behind;
                in_name = end + 1;
                star = Some((behind, in_name));
            }
            (_, None) => return false,
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// How the id of a container begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdPrefix(String);

impl IdPrefix {
    /// Whether `id` begins so.
    pub fn matches(&self, id: &ContainerId) -> bool {
        id.as_str().starts_with(&self.0)
    }
}

impl FromStr for IdPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // As kubectl prints it: containerd://3f9a…
        let id = text.split_once("://").map_or(text, |(_, id)| id);
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("an id is hexadecimal, and its first digits will do: 3f9a02".to_owned());
        }
        if id.len() > ContainerId::DIGITS {
            return Err(format!("an id has {} digits", ContainerId::DIGITS));
        }
        Ok(Self(id.to_ascii_lowercase()))
    }
}
