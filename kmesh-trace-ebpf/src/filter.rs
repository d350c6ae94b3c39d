//! The kernel half of the filters: an optimisation. What user space makes of a finished record is what a filter means;
//! here a connection is sorted out, before anything is kept of it, only when it is certain that user space would.

use core::ptr;

use kmesh_trace_common::{
    CHECK_ADDRESS, CHECK_CLIENT_PORT, CHECK_DIRECTION, CHECK_FAMILY, CHECK_SERVER_PORT, DIRECTION_INBOUND,
    DIRECTION_OUTBOUND, FAMILY_IPV4, FAMILY_IPV6, Prefilter, term,
};

use crate::maps::{KMESH_FILTER, checks, terms_of};
use crate::sock::{Address, Sock};

/// Whether a connection is certain to be sorted out. `outbound`: this socket connected. What is not known yet (a port or
/// an address that connect() has still to choose) is taken to pass.
#[inline(always)]
pub fn rejects(sock: Sock, outbound: bool) -> bool {
    // The verifier knows this number, and drops the call when it is 0.
    checks() != 0 && is_rejected(sock, outbound)
}

/// Whether a connection is certain to be sorted out whichever end this socket is, by ports alone: they stay what they are
/// from when both are known. So nothing is stored of it but, at most, [`crate::kept::phase::FILTERED`].
#[inline(always)]
pub fn rejects_either_way(sock: Sock) -> bool {
    if checks() & CHECK_SERVER_PORT == 0 {
        return false;
    }
    let Some(filter) = KMESH_FILTER.get_ptr(0) else {
        return false;
    };
    // SAFETY: user space writes it before attaching.
    let ports = unsafe { &(*filter).server_ports };
    let peer = sock.peer_port();
    if peer == 0 || has(ports, peer) {
        return false;
    }
    let local = sock.local_port();
    local != 0 && !has(ports, local)
}

/// Not inlined: it is long, and asked in many places.
#[inline(never)]
fn is_rejected(sock: Sock, outbound: bool) -> bool {
    let checks = checks();
    let Some(filter) = KMESH_FILTER.get_ptr(0) else {
        return false;
    };
    // SAFETY: user space writes it before attaching.
    let filter: &Prefilter = unsafe { &*filter };
    let direction = if outbound {
        DIRECTION_OUTBOUND
    } else {
        DIRECTION_INBOUND
    };
    if checks & CHECK_DIRECTION != 0 && filter.directions & direction == 0 {
        return true;
    }
    if checks & CHECK_SERVER_PORT != 0 {
        let port = if outbound { sock.peer_port() } else { sock.local_port() };
        if port != 0 && !has(&filter.server_ports, port) {
            return true;
        }
    }
    if checks & CHECK_CLIENT_PORT != 0 {
        let port = if outbound { sock.local_port() } else { sock.peer_port() };
        if port != 0 && !has(&filter.client_ports, port) {
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

/// Whether a listener's children are certain to be sorted out, so that it needs no storage for them to copy.
#[inline(always)]
pub fn rejects_children(listener: Sock) -> bool {
    let checks = checks();
    if checks & (CHECK_DIRECTION | CHECK_SERVER_PORT) == 0 {
        return false;
    }
    let Some(filter) = KMESH_FILTER.get_ptr(0) else {
        return false;
    };
    // SAFETY: as above.
    let filter: &Prefilter = unsafe { &*filter };
    let port = listener.local_port();
    checks & CHECK_DIRECTION != 0 && filter.directions & DIRECTION_INBOUND == 0
        || checks & CHECK_SERVER_PORT != 0
            && port != 0
            && !has(&filter.server_ports, port)
            && !listener.is_transparent()
}

/// Returns whether a listener's child has all that the filter checks from the moment when it is made: [`rejects_children`] has
/// judged it for good. Its peer's address and port come later, and with IP_TRANSPARENT its own too.
#[inline(always)]
pub fn is_known_of_children(child: Sock) -> bool {
    let checks = checks();
    checks & !(CHECK_DIRECTION | CHECK_SERVER_PORT) == 0 && (checks & CHECK_SERVER_PORT == 0 || !child.is_transparent())
}

#[inline(always)]
fn has(ports: &[u64; 1024], port: u16) -> bool {
    // SAFETY: a 16-bit number divided by 64 is below 1024. Volatile, so that the compiler adds no check of its own.
    let word = unsafe { ptr::read_volatile(ports.as_ptr().add(usize::from(port >> 6))) };
    word >> (port & 63) & 1 != 0
}

#[inline(always)]
fn rejects_addresses(filter: &Prefilter, local: Address, peer: Address, outbound: bool) -> bool {
    let (client, server) = if outbound { (local, peer) } else { (peer, local) };
    let (client, server) = (terms(client), terms(server));
    // The bits of each flag as its own end has them, the bits of the flag for either end as one of the two has them.
    let matched = (client | server) & terms_for(term::EITHER)
        | client & terms_for(term::CLIENT)
        | server & terms_for(term::SERVER);
    matched >> term::NEGATED != 0 || filter.must_match & !matched != 0
}

/// A flag's bits, negated values and others.
const fn terms_for(flag: u32) -> u32 {
    flag | flag << term::NEGATED
}

/// Which terms contain the address. What is not known yet may match, but is no reason to sort out.
#[inline(always)]
fn terms(address: Address) -> u32 {
    if address.is_unspecified() {
        term::EITHER | term::CLIENT | term::SERVER
    } else {
        terms_of(address)
    }
}
