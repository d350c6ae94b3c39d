//! The kernel filter, an optimization. It drops a connection before the programs store anything, but only if the filter
//! in user space is certain to drop the record. The filter in user space defines what the flags mean.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND,
    DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, FilterRules, term,
};

use crate::maps::{KMESH_FILTER, filter_checks};
use crate::sock::{Address, Sock};

/// The networks of the kernel filter, each with the terms that contain it. User space sets the size, and writes the
/// networks before it attaches the programs.
#[btf_map]
static KMESH_NETWORKS: LpmTrie<[u8; 16], u32, 1> = LpmTrie::new();

/// A key of `KMESH_NETWORKS` behind padding, so that its address is aligned and can be written as two words.
#[repr(C)]
struct AlignedKey {
    pad: u32,
    bits: u32,
    address: [u64; 2],
}

/// Returns the terms of the filter that contain `address`, as bits of [`kmesh_trace_common::term`].
#[inline(always)]
fn terms_of(address: Address) -> u32 {
    let key = AlignedKey {
        pad: 0,
        bits: 128,
        address: address.0,
    };
    let map = (&raw const KMESH_NETWORKS).cast_mut().cast::<c_void>();
    // SAFETY: the keys of the map are 20 bytes, which `bits` and `address` are, and its values are `u32`. The kernel
    // returns null or a value, which stays readable while the program runs.
    unsafe {
        let terms = bpf_map_lookup_elem(map, (&raw const key.bits).cast()).cast::<u32>();
        if terms.is_null() { 0 } else { ptr::read_volatile(terms) }
    }
}

/// Returns whether the filter is certain to drop a connection. `outbound`: this socket called connect(). An unknown
/// port or address, which connect() has still to choose, passes.
#[inline(always)]
pub fn rejects(sock: Sock, outbound: bool) -> bool {
    // The verifier knows this number, and removes the call if it is 0.
    filter_checks() != 0 && is_rejected(sock, sock.local_port(), outbound)
}

/// Returns whether the filter is certain to drop a connection, whichever end this socket is. The pointer to the socket
/// need not be one that helpers take.
#[inline(always)]
pub fn rejects_both_ways(sock: Sock) -> bool {
    filter_checks() != 0 && is_rejected(sock, sock.skc_num(), false) && is_rejected(sock, sock.skc_num(), true)
}

/// Returns whether the filter is certain to drop a connection by its ports alone, whichever end this socket is. Ports
/// do not change once both are known, so at most [`crate::conn_state::phase::FILTERED`] is stored for such a
/// connection.
#[inline(always)]
pub fn rejects_either_way(sock: Sock) -> bool {
    if filter_checks() & CHECK_SERVER_PORT == 0 {
        return false;
    }
    let Some(filter) = KMESH_FILTER.get_ptr(0) else {
        return false;
    };
    // SAFETY: user space writes the rules before it attaches the programs.
    let ports = unsafe { &(*filter).server_ports };
    let peer = sock.peer_port();
    if peer == 0 || contains(ports, peer) {
        return false;
    }
    let local = sock.local_port();
    local != 0 && !contains(ports, local)
}

// Not inlined, because it is long and has many callers.
#[inline(never)]
fn is_rejected(sock: Sock, local_port: u16, outbound: bool) -> bool {
    let checks = filter_checks();
    let Some(filter) = KMESH_FILTER.get_ptr(0) else {
        return false;
    };
    // SAFETY: user space writes the rules before it attaches the programs.
    let filter: &FilterRules = unsafe { &*filter };
    let direction = if outbound {
        DIRECTION_OUTBOUND
    } else {
        DIRECTION_INBOUND
    };
    if checks & CHECK_DIRECTION != 0 && filter.directions & direction == 0 {
        return true;
    }
    if checks & CHECK_SERVER_PORT != 0 {
        let port = if outbound { sock.peer_port() } else { local_port };
        if port != 0 && !contains(&filter.server_ports, port) {
            return true;
        }
    }
    if checks & CHECK_CLIENT_PORT != 0 {
        let port = if outbound { local_port } else { sock.peer_port() };
        if port != 0 && !contains(&filter.client_ports, port) {
            return true;
        }
    }
    if checks & (CHECK_FAMILY | CHECK_ADDRESS) != 0 {
        let peer = sock.peer_address();
        if checks & CHECK_FAMILY != 0 {
            let bit = if peer.is_ipv4() { FAMILY_IPV4 } else { FAMILY_IPV6 };
            if filter.families & bit == 0 {
                return true;
            }
        }
        if checks & CHECK_ADDRESS != 0 && rejects_addresses(filter, sock.local_address(), peer, outbound) {
            return true;
        }
    }
    false
}

/// Returns whether the filter is certain to drop all children of a listener, so that it needs no storage for them to
/// copy.
#[inline(always)]
pub fn rejects_children(listener: Sock) -> bool {
    let checks = filter_checks();
    if checks & (CHECK_DIRECTION | CHECK_SERVER_PORT) == 0 {
        return false;
    }
    let Some(filter) = KMESH_FILTER.get_ptr(0) else {
        return false;
    };
    // SAFETY: user space writes the rules before it attaches the programs.
    let filter: &FilterRules = unsafe { &*filter };
    let port = listener.local_port();
    checks & CHECK_DIRECTION != 0 && filter.directions & DIRECTION_INBOUND == 0
        || checks & CHECK_SERVER_PORT != 0
            && port != 0
            && !contains(&filter.server_ports, port)
            && !listener.is_transparent()
}

/// Returns whether [`rejects_children`] of the listener has decided for this new child. A child gets its peer's address
/// and port later, and with IP_TRANSPARENT its own too.
#[inline(always)]
pub fn is_decided_by_listener(child: Sock) -> bool {
    let checks = filter_checks();
    checks & !(CHECK_DIRECTION | CHECK_SERVER_PORT) == 0 && (checks & CHECK_SERVER_PORT == 0 || !child.is_transparent())
}

#[inline(always)]
fn contains(ports: &[u64; 1024], port: u16) -> bool {
    // SAFETY: a 16-bit number divided by 64 is below 1024. Volatile, so that the compiler adds no bounds check.
    let word = unsafe { ptr::read_volatile(ports.as_ptr().add(usize::from(port >> 6))) };
    word >> (port & 63) & 1 != 0
}

#[inline(always)]
fn rejects_addresses(filter: &FilterRules, local: Address, peer: Address, outbound: bool) -> bool {
    let (client, server) = if outbound { (local, peer) } else { (peer, local) };
    let (client, server) = (terms(client), terms(server));
    // A flag for one end counts for that end only. The flag for either end counts if one of the ends matches.
    let matched = (client | server) & terms_for(term::EITHER)
        | client & terms_for(term::CLIENT)
        | server & terms_for(term::SERVER);
    matched >> term::NEGATED != 0 || filter.must_match & !matched != 0
}

/// Returns the bits of a flag for plain and for negated values.
const fn terms_for(flag: u32) -> u32 {
    flag | flag << term::NEGATED
}

/// Returns the terms that contain `address`. An unknown address matches every term, and no negated one, so it passes.
#[inline(always)]
fn terms(address: Address) -> u32 {
    if address.is_unspecified() {
        term::EITHER | term::CLIENT | term::SERVER
    } else {
        terms_of(address)
    }
}
