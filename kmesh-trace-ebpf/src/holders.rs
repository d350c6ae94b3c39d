//! The processes that hold sockets, for kernels that give no typed pointer to the socket behind a descriptor.
//!
//! Such a kernel refuses to pass the socket to a helper. So one program only stores who holds each socket ([`find`]).
//! The program that visits the sockets of a namespace by typed pointers looks the holder up ([`of`]).

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{FoundHolder, FoundNamespace, state};

use crate::conn_state::Holder;
use crate::filter::rejects_both_ways;
use crate::iterator::TaskFile;
use crate::layout::{offset, read_kernel};
use crate::maps::{reports_listeners, scan_number};
use crate::sock::Sock;
use crate::task::Task;

/// The holders by the address of the socket. User space sets the size, and removes the entries of earlier scans.
#[btf_map]
static KMESH_HOLDERS: HashMap<u64, FoundHolder, 1, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The number of the last scan that reported this network namespace, by inode number.
#[btf_map]
static KMESH_NAMESPACES: LruHashMap<u32, u32, 4096> = LruHashMap::new();

/// Visits a descriptor of a process: stores the process as the holder if the descriptor is a TCP socket that the filter
/// may pass. Reports, once a scan, each namespace with such a connection, and each with a listener whose holder has
/// changed.
#[inline(always)]
pub fn find(visit: TaskFile, task: Task) {
    let holder = Holder::of(task);
    let Some((sock, address)) = visit.untyped_sock() else {
        return;
    };
    if !holder.is_process() {
        return;
    }
    let state = sock.skc_state();
    let is_listener = state == state::LISTEN;
    if !sock.is_tcp_over_ip() || state == state::CLOSE || !is_listener && rejects_both_ways(sock) {
        return;
    }
    let mut found = FoundHolder {
        pid: holder.pid,
        scan: scan_number(),
        netns: sock.netns(),
        ports: ports(sock),
        listening_pid: 0,
        visited_pid: 0,
        comm: holder.comm,
    };
    let mut is_visited = !is_listener || reports_listeners();
    // SAFETY: a value of a map, which only this scan changes.
    let known = KMESH_HOLDERS.get_ptr(address).map(|known| unsafe { *known });
    match known {
        Some(known) if known.ports == found.ports && known.netns == found.netns => {
            found.listening_pid = known.listening_pid;
            found.visited_pid = known.visited_pid;
            if known.scan == found.scan {
                // If several processes hold a listener, its holder is the one that called listen(), else the first one
                // found. Any other process replaces process 1, which listens for others.
                if known.pid != 1 && found.pid != found.listening_pid {
                    return;
                }
            } else {
                // The last scan found another holder than the last visit did.
                is_visited |= known.pid != known.visited_pid;
            }
        }
        // The first scan finds the listeners that are older than the tracer. The owner of a later one called listen().
        _ if found.scan == 1 => is_visited = true,
        _ => found.visited_pid = found.pid,
    }
    if is_visited && !report_namespace(visit, found.netns, found.pid, found.scan) {
        return;
    }
    // If the map is full, the socket has no holder.
    _ = KMESH_HOLDERS.insert(address, found, 0);
}

/// Reports a network namespace that this scan has not reported. Returns false if the output is full: the kernel visits
/// the descriptor again.
#[inline(always)]
fn report_namespace(visit: TaskFile, netns: u32, pid: u32, scan: u32) -> bool {
    // SAFETY: a value of a map, which only this scan changes.
    if KMESH_NAMESPACES
        .get_ptr(netns)
        .is_some_and(|last| unsafe { *last } == scan)
    {
        return true;
    }
    let found = FoundNamespace {
        length: (size_of::<FoundNamespace>() - size_of::<u64>()) as u64,
        netns,
        pid,
    };
    if !visit.output().write(&found) {
        return false;
    }
    _ = KMESH_NAMESPACES.insert(netns, scan, 0);
    true
}

/// Returns the process that this scan found to hold the socket. The entry of a connection is removed.
#[inline(always)]
pub fn of(sock: Sock) -> Holder {
    let address = address(sock);
    let Some(found) = KMESH_HOLDERS.get_ptr(address) else {
        return Holder::NONE;
    };
    // SAFETY: a value of a map, which only this scan changes.
    let holder = unsafe { current(sock, found) };
    _ = KMESH_HOLDERS.remove(address);
    holder
}

/// Returns the process that this scan found to hold a listener. `listening_pid`: the process that called listen(); 0 if
/// unknown. The entry stays for the next scan.
#[inline(always)]
pub fn of_listener(sock: Sock, listening_pid: u32) -> Holder {
    let Some(found) = KMESH_HOLDERS.get_ptr_mut(address(sock)) else {
        return Holder::NONE;
    };
    // SAFETY: a value of a map, which only this scan changes.
    unsafe {
        let holder = current(sock, found);
        let known_pid = (*found).listening_pid;
        (*found).listening_pid = listening_pid;
        if listening_pid != 0 && listening_pid != known_pid && listening_pid != holder.pid {
            // The process that called listen() may be another holder. The next scan prefers it.
            return Holder::NONE;
        }
        (*found).visited_pid = holder.pid;
        holder
    }
}

/// Returns the address of the socket as a number, which may be the key of a map; 0 if no process holds the socket.
#[inline(always)]
fn address(sock: Sock) -> u64 {
    match sock.sk_socket() {
        0 => 0,
        // The verifier does not accept the pointer itself as a key, so its value is read from memory.
        socket => read_kernel(socket + u64::from(offset!(socket_sk))),
    }
}

/// Returns the holder if this scan found it, and at this socket: another one may have got the address meanwhile.
///
/// # Safety
///
/// A value of [`KMESH_HOLDERS`].
#[inline(always)]
unsafe fn current(sock: Sock, found: *const FoundHolder) -> Holder {
    // SAFETY: the caller's promise.
    let found = unsafe { *found };
    let is_current = found.scan == scan_number() && found.ports == ports(sock) && found.netns == sock.netns();
    if is_current {
        Holder {
            pid: found.pid,
            comm: found.comm,
        }
    } else {
        Holder::NONE
    }
}

#[inline(always)]
fn ports(sock: Sock) -> u32 {
    u32::from(sock.skc_num()) << 16 | u32::from(sock.skc_dport())
}
