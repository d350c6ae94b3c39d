//! What is kept of each connection while it lives, and where.
//!
//! Most stands in the socket's own storage: it dies with the socket, so it can neither leak nor be another's, and the kernel
//! copies a listener's to its children. But a storage costs the kernel a microsecond to make. So what is kept of a socket
//! that connects stands in a slot of a table of our own, if the slot that is its own by its cookie is free. A cookie is
//! never given twice: what a slot holds is of no other socket, and where the kernel skips the program that would free it,
//! it only is of no more use.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type};
use aya_ebpf::btf_maps::Array;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::{Owner, counter, owner};

use crate::maps::{count, scan_number};
use crate::record::put_halves;
use crate::sock::{Sock, Task};

/// How far a socket's association is. All zero in a socket that has none yet.
pub mod phase {
    /// Listening; also what a child starts with, since it begins with a copy of its listener's storage.
    pub const LISTENER: u8 = 1;
    /// Connecting, connected or closing.
    pub const LIVE: u8 = 2;
    /// Ended, and told.
    pub const ENDED: u8 = 3;
    /// Connecting or connected, and certain to be filtered out. Stored only of a socket that has listened and connects, since it
    /// looks like an inbound one, and of a Fast Open child that was made before its addresses were known.
    pub const FILTERED: u8 = 4;
}

/// [`Connection::flags`], beside the `FLAG_*` of a record: a walk made this storage.
pub const SEEDED: u8 = 1 << 7;

/// [`Connection::flags`], beside the `FLAG_*` of a record: the filter has not judged this child by its addresses yet, so the child is
/// not counted as open.
pub const UNJUDGED: u8 = 1 << 6;

/// What is stored of a socket's connection attempt, and of its owner.
///
/// The programs at changes of state own all of it but `found` and `found_check`: only the socket scan writes those two. It runs
/// beside the others, on any CPU and without the socket's lock.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    pub start_ns: u64,
    pub established_ns: u64,
    /// The newest buffer on the error queue when the association began: what is there from before is not about it.
    pub stale_error: u64,
    /// The owner by connect(), close() or listen().
    owner: Owner,
    pub association: u32,
    pub phase: u8,
    pub flags: u8,
    /// The last state noted; not each is.
    pub last_state: u8,
    /// The state of the last change that a program was run for, of those that matter.
    pub seen: u8,
    /// The last scan that visited it.
    pub walk: u32,
    /// `tcp_sock.segs_out` when the association began: what is more than that, it sent itself.
    pub segs_before: u32,
    /// The number of the last scan that began before listen(): what that or an earlier one found is of a life before.
    listened_scan: u32,
    /// The scan that found the owner in `found`.
    found_scan: u32,
    /// Equals [`check_of`] the owner in `found`, unless that is being written.
    found_check: u32,
    /// Padding; always 0.
    pad: u32,
    /// The owner that the scan found.
    found: Owner,
}

const NO_OWNER: Owner = Owner {
    pid: 0,
    by: 0,
    pad: [0; 3],
    comm: [0; 16],
};

impl Connection {
    pub const NEW: Self = Self {
        start_ns: 0,
        established_ns: 0,
        stale_error: 0,
        owner: NO_OWNER,
        association: 0,
        phase: 0,
        flags: 0,
        last_state: 0,
        seen: 0,
        walk: 0,
        segs_before: 0,
        listened_scan: 0,
        found_scan: 0,
        found_check: 0,
        pad: 0,
        found: NO_OWNER,
    };

    /// Forgets the owner by connect(), close() or listen().
    #[inline(always)]
    pub fn clear_owner(&mut self) {
        self.owner.by = owner::NONE;
        self.owner.pid = 0;
    }

    /// Sets the owner, unless a better one is known. The kernel's own threads own nothing.
    #[inline(always)]
    pub fn set_owner(&mut self, task: Task, by: u8) {
        if self.owner.by >= by || task.is_kernel_thread() {
            return;
        }
        let pid = task.task_tgid();
        // A tool that lists the descriptors of other processes holds each file for a moment. If the owner closes the file at that
        // moment, the tool drops the last reference to it.
        if by == owner::CLOSE && pid != self.owner.pid && pid != Scanned::new(self).found().0 && !task.can_close() {
            return;
        }
        self.owner.pid = pid;
        self.owner.by = by;
        // SAFETY: the name is at a multiple of 8.
        unsafe { put_halves(&raw mut self.owner.comm, task.leader_comm()) };
    }

    /// The process that listens. Who had the socket in an earlier life does not count any more.
    #[inline(always)]
    pub fn set_listener(&mut self, task: Task) {
        self.clear_owner();
        self.set_owner(task, owner::LISTENER);
        self.listened_scan = scan_number();
    }

    /// Makes the copy of a listener's storage the child's own. No process has the child yet, so no scan reaches it.
    #[inline(always)]
    pub fn be_accepted(&mut self) {
        self.walk = 0;
        self.segs_before = 0;
        self.stale_error = 0;
        // What the scan found of the listener itself, in a life as a connection.
        if self.found.by == owner::SCAN {
            self.found.pid = 0;
            self.found.by = owner::NONE;
        }
    }
}

/// What a socket scan may do with a [`Connection`]: a program at a change of state may have it mutable at the same time. So
/// each word is read by itself and may be out of date, and only the scan's own words are written.
#[derive(Clone, Copy)]
pub struct Scanned(*mut Connection);

/// Reads one field of what is stored, as it is now.
macro_rules! read_now {
    ($connection:expr, $field:ident) => {
        // SAFETY: a field of a value that lives as long as the socket, longer than this run of the program.
        unsafe { ptr::read_volatile(&raw const (*$connection).$field) }
    };
}

impl Scanned {
    /// The same for a value that nobody else has.
    #[inline(always)]
    pub fn new(connection: &mut Connection) -> Self {
        Self(connection)
    }

    #[inline(always)]
    pub fn as_ptr(self) -> *const Connection {
        self.0
    }

    #[inline(always)]
    pub fn phase(self) -> u8 {
        read_now!(self.0, phase)
    }

    #[inline(always)]
    pub fn flags(self) -> u8 {
        read_now!(self.0, flags)
    }

    #[inline(always)]
    pub fn association(self) -> u32 {
        read_now!(self.0, association)
    }

    #[inline(always)]
    pub fn established_ns(self) -> u64 {
        read_now!(self.0, established_ns)
    }

    /// The last scan that visited it.
    #[inline(always)]
    pub fn walk(self) -> u32 {
        read_now!(self.0, walk)
    }

    /// Marks it as visited by this scan, and counts the visit. The others only ever set the mark back.
    #[inline(always)]
    pub fn set_visited(self, scan: u32) {
        // SAFETY: as in `read_now!`.
        unsafe { ptr::write_volatile(&raw mut (*self.0).walk, scan) };
        count(counter::WALK, |counters| counters.visited += 1);
    }

    /// The owner that a scan found: its pid, and how it is known.
    #[inline(always)]
    pub fn found(self) -> (u32, u8) {
        // SAFETY: as in `read_now!`; the first word of an owner.
        let head = unsafe { ptr::read_volatile((&raw const (*self.0).found).cast::<u64>()) };
        (head as u32, (head >> 32) as u8)
    }

    /// The process that connected or listens; 0 when unknown.
    #[inline(always)]
    pub fn owner_pid(self) -> u32 {
        // SAFETY: as in `read_now!`; the first word of an owner.
        unsafe { ptr::read_volatile((&raw const (*self.0).owner).cast::<u32>()) }
    }

    /// The scan that found the owner.
    #[inline(always)]
    pub fn found_scan(self) -> u32 {
        read_now!(self.0, found_scan)
    }

    /// Returns [`Connection::segs_before`].
    #[inline(always)]
    pub fn segs_before(self) -> u32 {
        read_now!(self.0, segs_before)
    }

    /// Sets the owner that the scan found. What reads or copies it meanwhile finds the check wrong, in whichever direction it
    /// goes: while the name changes, neither the first word nor the check is that of any owner.
    #[inline(always)]
    pub fn set_found(self, task: Task, by: u8, scan: u32) {
        if task.is_kernel_thread() {
            return;
        }
        let pid = task.task_tgid();
        let comm = task.leader_comm();
        // SAFETY: words of a value that lives as long as the socket; each is at a multiple of its size.
        unsafe {
            let head = (&raw mut (*self.0).found).cast::<u64>();
            let check = &raw mut (*self.0).found_check;
            ptr::write_volatile(head, 0);
            ptr::write_volatile(check, u32::MAX);
            ptr::write_volatile(head.add(1), comm[0]);
            ptr::write_volatile(head.add(2), comm[1]);
            ptr::write_volatile(&raw mut (*self.0).found_scan, scan);
            ptr::write_volatile(check, check_of(pid, by));
            ptr::write_volatile(head, u64::from(pid) | u64::from(by) << 32);
        }
    }
}

/// A pid has at most 22 bits.
#[inline(always)]
fn check_of(pid: u32, by: u8) -> u32 {
    pid | u32::from(by) << 24
}

/// Returns the best owner that is known, as three words of an [`Owner`].
#[inline(always)]
pub fn owner_words(connection: *const Connection) -> [u64; 3] {
    // SAFETY: words of a value that lives as long as the socket, at multiples of 8.
    let read = |owner: *const Owner| unsafe {
        let word = owner.cast::<u64>();
        [
            ptr::read_volatile(word),
            ptr::read_volatile(word.add(1)),
            ptr::read_volatile(word.add(2)),
        ]
    };
    // SAFETY: fields of the same value.
    let (own, found) = unsafe { (&raw const (*connection).owner, &raw const (*connection).found) };
    let own = read(own);
    let by = (own[0] >> 32) as u8;
    if by >= owner::CLOSE {
        return own;
    }
    let scanned = read(found);
    let check = read_now!(connection, found_check);
    // SAFETY: as above.
    let is_settled = unsafe { ptr::read_volatile(found.cast::<u64>()) } == scanned[0];
    let (found_pid, found_by) = (scanned[0] as u32, (scanned[0] >> 32) as u8);
    if !is_settled || check != check_of(found_pid, found_by) {
        return own;
    }
    // Of those that listened, or hold the listener, the latest known: it may have been handed on.
    let is_later = found_by == by && read_now!(connection, found_scan) > read_now!(connection, listened_scan);
    if found_by > by || is_later { scanned } else { own }
}

/// aya's own type cannot be given BPF_F_CLONE, nor a socket that comes from a tracepoint.
#[repr(C)]
struct SocketStorage {
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

    /// What is kept on this socket; where nothing is, `initial` is made if the flags say so (null: all zero, which the
    /// kernel sees to). Null when the kernel refuses (`net.core.optmem_max`).
    #[inline(always)]
    fn look_up(&self, sock: Sock, initial: *const Connection, flags: u64) -> *mut Connection {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the map is a socket storage, the socket a typed pointer that the verifier vouches for, and `initial`
        // null or a whole value. The kernel returns null or the value, which lives as long as the socket: longer than
        // this run of the program.
        unsafe { bpf_sk_storage_get(map, sock.as_ptr(), initial.cast_mut().cast(), flags).cast::<Connection>() }
    }
}

#[btf_map]
static KMESH_SOCKETS: SocketStorage = SocketStorage::new();

const SLOT_BITS: u32 = 13;

/// Place for one client.
#[repr(C)]
struct Slot {
    /// The last socket that had it.
    cookie: u64,
    /// When that one went, in the kernel's ticks.
    freed: u64,
    /// How many have it, or are trying to: who finds itself alone does.
    claims: u64,
    connection: Connection,
}

#[btf_map]
static KMESH_CLIENTS: Array<Slot, { 1 << SLOT_BITS }> = Array::new();

/// The slot that is this cookie's, whoever has it now. The kernel gives cookies out in rows of 4,096, one row at a time to each
/// CPU. Those of a row follow each other here too, which is what caches are made for; where a row begins is as good as random, so
/// that no two CPUs go over the same slots side by side.
#[inline(always)]
fn slot_for(cookie: u64) -> Option<*mut Slot> {
    let row = (cookie >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SLOT_BITS);
    let index = (cookie + row) & ((1 << SLOT_BITS) - 1);
    KMESH_CLIENTS.get_ptr_mut(index as u32)
}

/// The slot that this socket has, or had last.
#[inline(always)]
fn slot_of(sock: Sock) -> Option<*mut Slot> {
    // It has none, unless somebody asked for one.
    let cookie = sock.skc_cookie();
    if cookie == 0 {
        return None;
    }
    let slot = slot_for(cookie)?;
    // SAFETY: a slot of an array that lives as long as the program.
    if unsafe { ptr::read_volatile(&raw const (*slot).cookie) } == cookie {
        Some(slot)
    } else {
        None
    }
}

/// The slot that is this socket's own by its cookie, if it is free.
#[inline(always)]
fn claim(sock: Sock) -> Option<&'static mut Connection> {
    let cookie = sock.cookie();
    let slot = slot_for(cookie)?;
    // SAFETY: a slot of an array that lives as long as the program. Where two want it at once, at most one of them finds
    // that after its own claim there is no other; where none does, both do without.
    unsafe {
        let claims = &raw mut (*slot).claims;
        // A RST may be sent for a socket that has just gone, and what was kept of it is asked for then.
        if ptr::read_volatile(claims) != 0 || (*slot).freed == bpf_jiffies64() {
            return None;
        }
        add(claims, 1);
        if ptr::read_volatile(claims) != 1 {
            add(claims, -1);
            return None;
        }
        // `Connection::NEW`, word by word: the compiler would call a function of its own that does so by bytes.
        let words = (&raw mut (*slot).connection).cast::<u64>();
        for word in 0..size_of::<Connection>() / 8 {
            ptr::write_volatile(words.add(word), 0);
        }
        ptr::write_volatile(&raw mut (*slot).cookie, cookie);
        Some(&mut (*slot).connection)
    }
}

/// Adds to a number that other CPUs add to. The instruction is the one that kernels have on all architectures; what was there
/// before, it does not tell.
///
/// # Safety
///
/// A whole number in a map.
#[inline(always)]
unsafe fn add(to: *mut u64, value: i64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) value) };
}

/// For the programs at changes of state.
///
/// # Safety
///
/// Null, or what is stored of a socket that the program runs for.
#[inline(always)]
unsafe fn exclusive(connection: *mut Connection) -> Option<&'static mut Connection> {
    // SAFETY: the changes of state of one socket, its destruction and its resets exclude each other by its lock, so only one
    // program has it. A scan beside them writes words that no program reaches through this reference, see `Scanned`.
    unsafe { connection.as_mut() }
}

#[inline(always)]
fn find(sock: Sock) -> *mut Connection {
    match slot_of(sock) {
        // SAFETY: a slot of an array, this socket's own until it goes.
        Some(slot) => unsafe { &raw mut (*slot).connection },
        None => KMESH_SOCKETS.look_up(sock, ptr::null(), 0),
    }
}

/// What is kept of this socket.
#[inline(always)]
pub fn get(sock: Sock) -> Option<&'static mut Connection> {
    // SAFETY: that is what it returns.
    unsafe { exclusive(find(sock)) }
}

/// What is stored of this socket, for the scan.
#[inline(always)]
pub fn scanned(sock: Sock) -> Option<Scanned> {
    let connection = find(sock);
    if connection.is_null() {
        None
    } else {
        Some(Scanned(connection))
    }
}

/// What is kept of this socket, which connects; [`Connection::NEW`] if nothing was. None when the kernel has no room.
#[inline(always)]
pub fn get_or_create_client(sock: Sock) -> Option<&'static mut Connection> {
    get(sock)
        .or_else(|| claim(sock))
        .or_else(|| get_or_create_inherited(sock))
}

/// What is kept of this socket where its children inherit it, or it has inherited it itself; [`Connection::NEW`] if nothing
/// was. None when the kernel has no room.
#[inline(always)]
pub fn get_or_create_inherited(sock: Sock) -> Option<&'static mut Connection> {
    // SAFETY: that is what it returns.
    unsafe { exclusive(KMESH_SOCKETS.look_up(sock, ptr::null(), BPF_SK_STORAGE_GET_F_CREATE.into())) }
}

/// What is kept of this socket, which was there before; `initial` if nothing was. None when the kernel has no room.
#[inline(always)]
pub fn get_or_create(sock: Sock, initial: &Connection) -> Option<&'static mut Connection> {
    // SAFETY: that is what it returns.
    unsafe { exclusive(KMESH_SOCKETS.look_up(sock, initial, BPF_SK_STORAGE_GET_F_CREATE.into())) }
}

/// What is stored of this socket, for the scan; `initial` if nothing was, whole at once for all who look. None when the kernel
/// has no room.
#[inline(always)]
pub fn scanned_or_create(sock: Sock, initial: &Connection) -> Option<Scanned> {
    let connection = KMESH_SOCKETS.look_up(sock, initial, BPF_SK_STORAGE_GET_F_CREATE.into());
    if connection.is_null() {
        None
    } else {
        Some(Scanned(connection))
    }
}

/// The socket goes. What the kernel keeps on it goes with it.
#[inline(always)]
pub fn free(sock: Sock) {
    if let Some(slot) = slot_of(sock) {
        // SAFETY: a slot of an array that lives as long as the program; a socket goes once.
        unsafe {
            (*slot).freed = bpf_jiffies64();
            add(&raw mut (*slot).claims, -1);
        }
    }
}
