//! The kernel filter: its rules, which user space writes to maps.

use bytemuck::{Pod, Zeroable};

/// `ProgramConfig::filter_checks`: check the family.
pub const CHECK_FAMILY: u32 = 1 << 0;
/// `ProgramConfig::filter_checks`: check the direction.
pub const CHECK_DIRECTION: u32 = 1 << 1;
/// `ProgramConfig::filter_checks`: check the server's port.
pub const CHECK_SERVER_PORT: u32 = 1 << 2;
/// `ProgramConfig::filter_checks`: check the client's port.
pub const CHECK_CLIENT_PORT: u32 = 1 << 3;
/// `ProgramConfig::filter_checks`: check the addresses.
pub const CHECK_ADDRESS: u32 = 1 << 4;

/// `FilterRules::families`: IPv4, IPv4-mapped sockets included.
pub const FAMILY_IPV4: u32 = 1 << 0;
/// `FilterRules::families`: IPv6 without IPv4-mapped sockets.
pub const FAMILY_IPV6: u32 = 1 << 1;
/// `FilterRules::directions`: sockets that a listener accepted.
pub const DIRECTION_INBOUND: u32 = 1 << 0;
/// `FilterRules::directions`: sockets that called connect().
pub const DIRECTION_OUTBOUND: u32 = 1 << 1;

/// The filter terms that contain a network, as bits: the value of a [`Prefix`] in the trie. The trie returns only the
/// longest prefix of an address, so each value also has the bits of all networks around its own.
pub mod term {
    /// Set if a value of the flag for either end contains the network.
    pub const EITHER: u32 = 1 << 0;
    /// Set if a value of the flag for the client's address contains the network.
    pub const CLIENT: u32 = 1 << 1;
    /// Set if a value of the flag for the server's address contains the network.
    pub const SERVER: u32 = 1 << 2;
    /// The left shift of these bits for negated values.
    pub const NEGATED: u32 = 3;
}

/// A network: a key of a longest-prefix trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct Prefix {
    /// The length of the prefix in bits: 0 to 128.
    pub bits: u32,
    /// The address as IPv6, IPv4-mapped for IPv4; network order.
    pub address: [u8; 16],
}

/// The connections that the kernel filter passes. It drops a connection only if the filter in user space is certain to
/// drop it. The programs ignore the fields that
/// [`ProgramConfig::filter_checks`](crate::ProgramConfig::filter_checks) does not enable.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct FilterRules {
    /// The families that pass, as bits `FAMILY_*`.
    pub families: u32,
    /// The directions that pass, as bits `DIRECTION_*`.
    pub directions: u32,
    /// The address flags with values that are not negated, as bits of [`term`]. Each of these flags must have a value
    /// that matches.
    pub must_match: u32,
    /// Padding that is always 0.
    pub pad: u32,
    /// The server ports that pass: bit `port % 64` of word `port / 64`.
    pub server_ports: [u64; 1024],
    /// The client ports that pass: bit `port % 64` of word `port / 64`.
    pub client_ports: [u64; 1024],
}
