//! Packets that the kernel dropped, counted by connection.

use bytemuck::{Pod, Zeroable};

/// A connection's addresses and ports, the same for both directions: `ends[0]` is the lesser end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Tuple {
    /// The address of each end as IPv6, IPv4-mapped for IPv4, network order; two words in memory order.
    pub addresses: [[u64; 2]; 2],
    /// The port of each end, in the CPU's byte order.
    pub ports: [u16; 2],
    /// Padding that is always 0.
    pub pad: u32,
}

impl Tuple {
    /// Returns the tuple of packets from one end to the other, and whether they come from the lesser end.
    #[inline(always)]
    pub fn new(from: [u64; 2], from_port: u16, to: [u64; 2], to_port: u16) -> (Self, bool) {
        let is_from_lesser = (from[0], from[1], from_port) <= (to[0], to[1], to_port);
        let (addresses, ports) = match is_from_lesser {
            true => ([from, to], [from_port, to_port]),
            false => ([to, from], [to_port, from_port]),
        };
        let tuple = Self {
            addresses,
            ports,
            pad: 0,
        };
        (tuple, is_from_lesser)
    }
}

/// The number of kinds of drops that are counted of one connection.
pub const DROP_SLOTS: usize = 6;

/// The packets of one connection that were dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Drops {
    /// One slot for each kind. The order means nothing.
    pub slots: [DropSlot; DROP_SLOTS],
    /// The server's address to which a network namespace translated the last packet, in the form of
    /// [`Tuple::addresses`].
    pub backend: [u64; 2],
    /// Inode number of that namespace; 0 if the packets were not translated.
    pub backend_netns: u32,
    /// The server's port after the translation.
    pub backend_port: u16,
    /// Padding that is always 0.
    pub pad: u16,
}

/// The packets of one connection that were dropped for one reason, in one direction and one network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct DropSlot {
    /// A [`DropKind`] in one word; 0 in a free slot.
    pub kind: u64,
    /// The number of packets.
    pub packets: u64,
    /// The number of CPUs that claim the slot: exactly one takes it.
    pub claims: u64,
    /// The client's first sequence number, by the last packet that shows it; 0 if unknown. The packets of an earlier
    /// connection with the same ports have another number.
    pub isn: u32,
    /// Padding that is always 0.
    pub pad: u32,
}

/// What the packets of a [`DropSlot`] have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropKind {
    /// Inode number of the network namespace that dropped them; 0 when unknown.
    pub netns: u32,
    /// A number of the running kernel's `enum skb_drop_reason`, above 0.
    pub reason: u16,
    /// Whether the lesser end of the [`Tuple`] sent them.
    pub is_from_lesser: bool,
    /// Whether they still belonged to the socket that sent them.
    pub has_sender: bool,
}

impl DropKind {
    /// Returns the kind in one word, which is not 0.
    #[inline(always)]
    pub fn to_word(self) -> u64 {
        (self.netns as u64) << 32
            | (self.reason as u64) << 8
            | (self.has_sender as u64) << 1
            | self.is_from_lesser as u64
    }

    /// Returns the kind that a word stands for.
    pub fn from_word(word: u64) -> Self {
        Self {
            netns: (word >> 32) as u32,
            reason: (word >> 8) as u16,
            has_sender: word & 2 != 0,
            is_from_lesser: word & 1 != 0,
        }
    }
}

/// The RSTs that this node sent without a socket, to one client for one address and port, for one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct RejectKey {
    /// The client's address as IPv6, IPv4-mapped for IPv4, network order; two words in memory order.
    pub client: [u64; 2],
    /// The address that the client dialled, in the same form.
    pub dialled: [u64; 2],
    /// The port that the client dialled.
    pub port: u16,
    /// A number of the running kernel's `enum sk_rst_reason`.
    pub reason: u16,
    /// Inode number of the network namespace that sent them.
    pub netns: u32,
    /// The number of the report that counts them. User space takes a count once its programs use a later number.
    pub report: u32,
    /// Padding that is always 0.
    pub pad: u32,
}

/// The number of drop reasons. Greater reasons belong to subsystems that drop no TCP packets, and do not count.
pub const MAX_DROP_REASONS: usize = 256;
/// The number of reset reasons that the totals distinguish. A greater reason counts as the last.
pub const MAX_RESET_REASONS: usize = 64;

const _: () = {
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<DropSlot>() == 32);
    assert!(size_of::<RejectKey>() == 48);
};
