//! The processes that hold sockets, for kernels that give no typed pointer to the socket behind a descriptor.
//!
//! Such a kernel refuses helpers that need the socket, so one program only stores who holds it ([`find`]). The program
//! that then visits the sockets of a network namespace has typed pointers, and takes the holder ([`of`]).

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{FoundHolder, FoundNamespace, state};

use crate::conn_state::Holder;
use crate::iterator::TaskFile;
use crate::layout::{offset, read_kernel};
use crate::maps::scan_number;
use crate::sock::{IPPROTO_TCP, Sock};
use crate::task::Task;

/// The holders by the address of the socket. User space sets the size, and removes the entries of earlier scans.
#[btf_map]
static KMESH_HOLDERS: HashMap<u64, FoundHolder, 1, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The number of the last scan that reported this network namespace, by inode number.
#[btf_map]
static KMESH_NAMESPACES: LruHashMap<u32, u32, 4096> = LruHashMap::new();

/// Visits a descriptor of a process: stores the process as the holder if the descriptor is a TCP socket. Reports each
/// network namespace once.
#[inline(always)]
pub fn find(visit: TaskFile, task: Task) {
    let Some(holder) = Holder::of(task) else { return };
    let sock = visit.sock_address();
    let read = |offset: u32| sock + u64::from(offset);
    if sock == 0
        || read_kernel::<u16>(read(offset!(sk_protocol))) != IPPROTO_TCP
        || read_kernel::<u8>(read(offset!(skc_state))) == state::CLOSE
    {
        return;
    }
    let net: u64 = read_kernel(read(offset!(skc_net)));
    let netns: u32 = read_kernel(net + u64::from(offset!(net_inum)));
    let ports = ports(
        read_kernel(read(offset!(skc_num))),
        read_kernel(read(offset!(skc_dport))),
    );
    let scan = scan_number();
    if !report_namespace(visit, netns, holder.pid, scan) {
        return;
    }
    let mut listening_pid = 0;
    if let Some(found) = KMESH_HOLDERS.get_ptr(sock) {
        // SAFETY: a value of a map, which only this scan changes.
        let found = unsafe { *found };
        if found.ports == ports && found.netns == netns {
            listening_pid = found.listening_pid;
            // Of several processes, the one that listens counts, else the first one found. Process 1 listens for
            // others.
            let is_known = found.scan == scan && found.pid != 1;
            if is_known && holder.pid != listening_pid {
                return;
            }
        }
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
    _ = KMESH_HOLDERS.insert(sock, found, 0);
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
    let is_same = holder.ports == ports(sock.skc_num(), sock.skc_dport()) && holder.netns == sock.netns();
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
fn ports(local: u16, peer: u16) -> u32 {
    u32::from(local) << 16 | u32::from(peer)
}
