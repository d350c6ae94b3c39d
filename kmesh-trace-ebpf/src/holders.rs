//! The processes that hold sockets, for kernels that give no typed pointer to the socket behind a descriptor.
//!
//! Such a kernel refuses helpers that need the socket, so one program only stores who holds it ([`find`]). The program
//! that then visits the sockets of a network namespace has typed pointers, and takes the holder ([`of`]).

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
/// may pass. Reports each network namespace with a connection once, and one whose listener has another holder.
#[inline(always)]
pub fn find(visit: TaskFile, task: Task) {
    let Some(holder) = Holder::of(task) else { return };
    let Some((sock, address)) = visit.untyped_sock() else {
        return;
    };
    let state = sock.skc_state();
    let is_listener = state == state::LISTEN;
    if !sock.is_tcp() || state == state::CLOSE || !is_listener && rejects_both_ways(sock) {
        return;
    }
    let (netns, ports, scan) = (sock.netns(), ports(sock), scan_number());
    let mut listening_pid = 0;
    let mut is_same_holder = false;
    if let Some(found) = KMESH_HOLDERS.get_ptr(address) {
        // SAFETY: a value of a map, which only this scan changes.
        let found = unsafe { *found };
        if found.ports == ports && found.netns == netns {
            listening_pid = found.listening_pid;
            is_same_holder = found.pid == holder.pid;
            // Of several processes, the one that listens counts, else the first one found. Process 1 listens for
            // others.
            let is_known = found.scan == scan && found.pid != 1;
            if is_known && holder.pid != listening_pid {
                return;
            }
        }
    }
    let is_visited = !is_listener || reports_listeners() || !is_same_holder;
    if is_visited && !report_namespace(visit, netns, holder.pid, scan) {
        return;
    }
    let found = FoundHolder {
        pid: holder.pid,
        scan,
        netns,
        ports,
        listening_pid,
        pad: 0,
        comm: holder.comm,
    };
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

/// Returns the process that this scan found to hold the socket. `listening_pid`: the process that called listen(), for
/// a listener, whose entry stays for the next scan.
#[inline(always)]
pub fn of(sock: Sock, listening_pid: Option<u32>) -> Option<Holder> {
    let socket = sock.sk_socket();
    if socket == 0 {
        return None;
    }
    // The address of `sock` as a number, which may be the key of a map.
    let address: u64 = read_kernel(socket + u64::from(offset!(socket_sk)));
    let found = KMESH_HOLDERS.get_ptr_mut(address)?;
    // SAFETY: a value of a map, which only this scan changes.
    let holder = unsafe {
        if let Some(pid) = listening_pid {
            (*found).listening_pid = pid;
        }
        *found
    };
    if listening_pid.is_none() {
        _ = KMESH_HOLDERS.remove(address);
    }
    // Another socket may have got the address meanwhile.
    let is_same = holder.ports == ports(sock) && holder.netns == sock.netns();
    if is_same && holder.scan == scan_number() {
        Some(Holder {
            pid: holder.pid,
            comm: holder.comm,
        })
    } else {
        None
    }
}

#[inline(always)]
fn ports(sock: Sock) -> u32 {
    u32::from(sock.skc_num()) << 16 | u32::from(sock.skc_dport())
}
