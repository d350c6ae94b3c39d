//! The maps: the ring that carries records, what is known of each socket, and the counters.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{Counters, MAX_CGROUPS, Owner, Prefilter, Settings, Snapshot, Walked, counter};

use crate::sock::{Address, Sock};

/// How far a socket's association is. All zero in a socket that has none yet.
pub mod phase {
    /// Listening; also what a child starts with, since it begins with a copy of its listener's storage.
    pub const LISTENER: u8 = 1;
    /// Connecting, connected or closing.
    pub const LIVE: u8 = 2;
    /// Ended, and told.
    pub const ENDED: u8 = 3;
}

/// [`Connection::flags`], beside the `FLAG_*` of a record: a walk made this storage.
pub const SEEDED: u8 = 1 << 7;

/// What is kept on a socket while it lives. It dies with the socket, so it can neither leak nor be another's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    pub start_ns: u64,
    pub established_ns: u64,
    /// The newest buffer on the error queue when the association began: what is there from before is not about it.
    pub stale_error: u64,
    pub owner: Owner,
    pub association: u32,
    pub phase: u8,
    pub flags: u8,
    /// The last state noted; not each is.
    pub last_state: u8,
    /// The state of the last change that a program was run for, of those that matter.
    pub seen: u8,
    /// The last walk that met it.
    pub walk: u32,
    pub pad2: u32,
}

impl Connection {
    pub const NEW: Self = Self {
        start_ns: 0,
        established_ns: 0,
        stale_error: 0,
        owner: Owner {
            pid: 0,
            by: 0,
            pad: [0; 3],
            comm: [0; 16],
        },
        association: 0,
        phase: 0,
        flags: 0,
        last_state: 0,
        seen: 0,
        walk: 0,
        pad2: 0,
    };
}

/// aya's own type cannot be given BPF_F_CLONE, nor a socket that comes from a tracepoint.
#[repr(C)]
pub struct SocketStorage {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const Connection,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the pointers only describe the map to the loader; nothing follows them.
unsafe impl Sync for SocketStorage {}

impl SocketStorage {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// What is kept on this socket.
    #[inline(always)]
    pub fn get(&self, sock: Sock) -> Option<&'static mut Connection> {
        self.look_up(sock, ptr::null(), 0)
    }

    /// What is kept on this socket; all zero ([`Connection::NEW`]) if nothing was, which the kernel sees to. None when it
    /// refuses.
    #[inline(always)]
    pub fn get_or_create_new(&self, sock: Sock) -> Option<&'static mut Connection> {
        self.look_up(sock, ptr::null(), BPF_SK_STORAGE_GET_F_CREATE.into())
    }

    /// What is kept on this socket, `initial` if nothing was. None when the kernel refuses (`net.core.optmem_max`).
    #[inline(always)]
    pub fn get_or_create(&self, sock: Sock, initial: &Connection) -> Option<&'static mut Connection> {
        self.look_up(sock, initial, BPF_SK_STORAGE_GET_F_CREATE.into())
    }

    #[inline(always)]
    fn look_up(&self, sock: Sock, initial: *const Connection, flags: u64) -> Option<&'static mut Connection> {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the map is a socket storage, the socket a typed pointer that the verifier vouches for, and `initial`
        // null or a whole value. The kernel returns null or the value, which lives as long as the socket: longer than
        // this run of the program. The state changes of one socket exclude each other by its lock.
        unsafe {
            bpf_sk_storage_get(map, sock.as_ptr(), initial.cast_mut().cast(), flags)
                .cast::<Connection>()
                .as_mut()
        }
    }
}

#[btf_map]
pub static KMESH_SOCKETS: SocketStorage = SocketStorage::new();

/// The records. User space sets the size.
#[btf_map]
pub static KMESH_EVENTS: RingBuf<Snapshot, 4096> = RingBuf::new();

/// Written by user space before attaching.
#[btf_map]
pub static KMESH_FILTER: Array<Prefilter, 1> = Array::new();

/// What the filter's networks say; written likewise. User space sets the size.
#[btf_map]
static KMESH_NETWORKS: LpmTrie<[u8; 16], u32, 1> = LpmTrie::new();

/// As which end, of `DIRECTION_*`, a socket of a cgroup cannot pass. User space tells of them as it learns whose they are.
#[btf_map]
static KMESH_CGROUPS: HashMap<u64, u32, MAX_CGROUPS, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// As which end a socket of this cgroup is certain to be sorted out: `DIRECTION_*`.
#[inline(always)]
pub fn cannot_pass_as(cgroup_id: u64) -> u32 {
    // SAFETY: user space replaces a value by a whole one.
    unsafe { KMESH_CGROUPS.get(&cgroup_id) }.copied().unwrap_or(0)
}

/// A key of the networks, its address where words can be written.
#[repr(C)]
struct Whole {
    pad: u32,
    bits: u32,
    address: [u64; 2],
}

/// Which terms of the filter contain an address: bits of [`kmesh_trace_common::term`].
#[inline(always)]
pub fn terms_of(address: Address) -> u32 {
    let key = Whole {
        pad: 0,
        bits: 128,
        address: address.0,
    };
    let map = (&raw const KMESH_NETWORKS).cast_mut().cast::<c_void>();
    // SAFETY: a map whose keys are 20 bytes, which `bits` and `address` are, and whose values are `u32`; the kernel returns
    // null or a value, which stays readable for as long as the program runs.
    unsafe {
        let terms = bpf_map_lookup_elem(map, (&raw const key.bits).cast()).cast::<u32>();
        if terms.is_null() { 0 } else { ptr::read_volatile(terms) }
    }
}

/// Where a walk puts together what it tells: too large for the stack.
#[btf_map]
static KMESH_SCRATCH: PerCpuArray<Walked, 1> = PerCpuArray::new();

/// Written by user space before loading.
#[unsafe(no_mangle)]
static SETTINGS: Settings = Settings { opens: 0, checks: 0 };

/// Which checks of the filter there are: `CHECK_*`.
#[inline(always)]
pub fn checks() -> u32 {
    // SAFETY: a read of a static. Volatile, because what the compiler sees there is not what user space wrote.
    unsafe { ptr::read_volatile(&raw const SETTINGS.checks) }
}

/// Whether to tell that associations were established.
#[inline(always)]
pub fn tells_opens() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const SETTINGS.opens) != 0 }
}

/// Where this CPU's walk puts together what it tells.
#[inline(always)]
pub fn scratch() -> Option<*mut Walked> {
    KMESH_SCRATCH.get_ptr_mut(0)
}

#[btf_map]
static KMESH_COUNTS: PerCpuArray<Counters, { counter::SLOTS }> = PerCpuArray::new();

/// Counts for one program; see [`counter`].
#[inline(always)]
pub fn count(slot: u32, add: impl FnOnce(&mut Counters)) {
    if let Some(counters) = KMESH_COUNTS.get_ptr_mut(slot) {
        // SAFETY: this CPU's slot of this program, which cannot run on top of itself.
        add(unsafe { &mut *counters });
    }
}

/// A number that all programs share.
pub type Note = Array<u32, 1>;

/// The number of the present walk, from 1; user space writes it between walks. The first only seeds; all others tell what
/// they meet.
#[btf_map]
pub static KMESH_WALK: Note = Note::new();

/// 1 once an association began for which no storage could be had: a socket without storage may be one that the tracer could
/// not keep track of.
#[btf_map]
pub static KMESH_MISSED: Note = Note::new();

/// 1 once a socket that had listened has connected, though the filter sorts it out. Such a socket looks like one that was
/// accepted and has no local port until it is kept track of: what the filter sorts out whichever end it is may be kept, too.
#[btf_map]
pub static KMESH_TURNED: Note = Note::new();

/// What was noted last; 0 before.
#[inline(always)]
pub fn noted(note: &Note) -> u32 {
    // SAFETY: a slot of an array that lives as long as the program, and a whole word.
    note.get_ptr(0).map_or(0, |slot| unsafe { ptr::read_volatile(slot) })
}

/// Notes it. Two CPUs may do so at once: each note has one value that is ever written.
#[inline(always)]
pub fn note(note: &Note, value: u32) {
    if let Some(slot) = note.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(slot, value) };
    }
}
