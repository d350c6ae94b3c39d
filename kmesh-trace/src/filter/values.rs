//! Values of filters by ports, addresses, processes and containers.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use crate::record::ContainerId;

/// The kernel assigns pids below 2^22 (`PID_MAX_LIMIT`).
const PID_LIMIT: u32 = 1 << 22;

/// The kernel stores the first 15 bytes of a process name (`TASK_COMM_LEN` without the final NUL).
const COMM_BYTES: usize = 15;

/// One value of a filter flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term<T> {
    /// Whether a leading `!` negates the value: records that match do not pass.
    pub negated: bool,
    /// The value without the `!`.
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

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    /// Returns whether the range contains `port`.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (parse_port(first)?, parse_port(last)?);
        if first > last {
            return Err(format!(
                "the range is empty: write the lower port first: {last}-{first}"
            ));
        }
        Ok(Self { first, last })
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    if !is_number(text) {
        return Err("write a port or a range of ports: 443, 8000-8999".to_owned());
    }
    text.parse().map_err(|_| format!("the maximum port is {}", u16::MAX))
}

/// Returns whether `text` has only digits. `str::parse` would also accept a sign.
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A network, or a single address. As in records, an IPv4-mapped IPv6 address is an IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl Network {
    /// Returns whether the network contains `address`. It contains no address of the other family.
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
            return Err("records have no zones: remove the % and the text after it".to_owned());
        }
        let address: IpAddr = address
            .parse()
            .map_err(|_| "write an address or a network: 10.0.0.1, 10.0.0.0/8, fd00::/8".to_owned())?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => max,
            Some(prefix) => Some(prefix)
                .filter(|prefix| is_number(prefix))
                .and_then(|prefix| prefix.parse().ok())
                .filter(|&prefix: &u8| prefix <= max)
                .ok_or_else(|| format!("the prefix length of this address is from 0 to {max}"))?,
        };
        let (address, prefix) = match address.to_canonical() {
            // A shorter prefix also covers IPv6 addresses that are not mapped, so that network stays an IPv6 network.
            mapped @ IpAddr::V4(_) if address.is_ipv6() && prefix >= 96 => (mapped, prefix - 96),
            _ => (address, prefix),
        };
        let network = IpNet::new(address, prefix).map_err(|error| error.to_string())?;
        Ok(Self(network.trunc()))
    }
}

/// The id of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pid(pub u32);

impl FromStr for Pid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_number(text) {
            return Err("a pid is a whole number; --comm matches names".to_owned());
        }
        match text.parse() {
            Ok(0) => Err("the minimum pid is 1".to_owned()),
            Ok(pid) if pid < PID_LIMIT => Ok(Self(pid)),
            _ => Err(format!("the maximum pid is {}", PID_LIMIT - 1)),
        }
    }
}

/// A pattern of process names.
///
/// The pattern matches bytes, not characters, because the kernel cuts a name after 15 bytes, even within a character. A
/// `*` can replace bytes that are not UTF-8, and a `,` or `*` of the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommPattern(Glob);

impl CommPattern {
    /// Returns whether the pattern matches `comm`.
    pub fn matches(&self, comm: &[u8]) -> bool {
        self.0.matches(comm)
    }
}

impl FromStr for CommPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let literal = text.bytes().filter(|&byte| byte != b'*').count();
        if literal > COMM_BYTES {
            return Err(format!(
                "the kernel stores only the first {COMM_BYTES} bytes of a name, so no process has this name"
            ));
        }
        Ok(Self(Glob::new(text)))
    }
}

/// A glob pattern; `*` matches any sequence of bytes, including the empty one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob(String);

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Glob {
    /// Creates the pattern from its text.
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns whether the pattern matches all of `name`, in at most `pattern.len() * name.len()` steps.
    ///
    /// Each `*` first matches as few bytes as possible. When the rest of the pattern fails, the last `*` takes one more
    /// byte.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let pattern = self.0.as_bytes();
        let (mut in_pattern, mut in_name) = (0, 0);
        // The position after the last `*`, and the end of what it matches in the name.
        let mut star: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match (pattern.get(in_pattern), star) {
                (Some(b'*'), _) => {
                    in_pattern += 1;
                    star = Some((in_pattern, in_name));
                }
                (Some(byte), _) if *byte == name[in_name] => {
                    in_pattern += 1;
                    in_name += 1;
                }
                (_, Some((after_star, end))) => {
                    in_pattern = after_star;
                    in_name = end + 1;
                    star = Some((after_star, in_name));
                }
                (_, None) => return false,
            }
        }
        pattern[in_pattern..].iter().all(|&byte| byte == b'*')
    }
}

/// The first digits of a container's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPrefix(String);

impl ContainerPrefix {
    /// Returns whether `id` starts with these digits.
    pub fn matches(&self, id: &ContainerId) -> bool {
        id.as_str().starts_with(&self.0)
    }
}

impl FromStr for ContainerPrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // kubectl prints the runtime before the id: containerd://3f9a…
        let id = text.split_once("://").map_or(text, |(_, id)| id);
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("write the hexadecimal id of a container, or its first digits: 3f9a02".to_owned());
        }
        if id.len() > ContainerId::DIGITS {
            return Err(format!("an id has {} digits", ContainerId::DIGITS));
        }
        Ok(Self(id.to_ascii_lowercase()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that each text is refused with an error that contains the expected part.
    fn assert_refused<T: FromStr<Err = String>>(cases: &[(&str, &str)]) {
        for (text, part) in cases {
            match text.parse::<Term<T>>() {
                Err(error) => assert!(error.contains(part), "{text:?}: {error}"),
                Ok(_) => panic!("{text:?}"),
            }
        }
    }

    #[test]
    fn ports_are_numbers_or_ascending_ranges() {
        assert_refused::<PortRange>(&[
            ("", "missing"),
            ("!", "missing"),
            ("!!80", "443"),
            ("65536", "65535"),
            ("99999999999999999999", "65535"),
            ("80-65536", "65535"),
            ("9-3", "3-9"),
            ("-3", "443"),
            ("3-", "443"),
            ("1-2-3", "443"),
            ("+80", "443"),
            (" 80", "443"),
            ("0x50", "443"),
            ("https", "443"),
        ]);
    }

    #[test]
    fn networks_are_addresses_with_optional_prefix_length() {
        assert_refused::<Network>(&[
            ("10.0.0", "10.0.0.0/8"),
            ("010.0.0.1", "10.0.0.0/8"),
            ("10.0.0.1:80", "10.0.0.0/8"),
            ("[::1]", "10.0.0.0/8"),
            ("/8", "10.0.0.0/8"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/+8", "0 to 32"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/256", "0 to 32"),
            ("10.0.0.0/8/8", "0 to 32"),
            ("10.0.0.0/255.0.0.0", "0 to 32"),
            ("::/129", "0 to 128"),
            ("fe80::1%eth0", "zones"),
            ("fe80::%1/10", "zones"),
        ]);
    }

    #[test]
    fn pids_and_process_names_have_kernel_limits() {
        assert_refused::<Pid>(&[
            ("0", "minimum pid is 1"),
            ("4194304", "4194303"),
            ("99999999999", "4194303"),
            ("-1", "whole number"),
            ("nginx", "--comm"),
        ]);
        assert_refused::<CommPattern>(&[
            ("a2345678901234567", "15 bytes"),
            ("*ééééééééé*", "15 bytes"),
            ("", "missing"),
        ]);
        assert!("a23456789012345*".parse::<Term<CommPattern>>().is_ok());
        assert!("4194303".parse::<Term<Pid>>().is_ok());
    }

    #[test]
    fn container_ids_are_hexadecimal_prefixes() {
        assert_refused::<ContainerPrefix>(&[
            ("web", "hexadecimal"),
            ("containerd://", "hexadecimal"),
            (&"a".repeat(65), "64 digits"),
        ]);
    }
}
