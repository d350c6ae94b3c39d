//! The maps that hold the [`ConnState`] of each socket.
//!
//! Most states are in the socket storage of the kernel. It dies with the socket, so no state leaks or passes to another
//! socket, and the kernel copies a listener's storage to its children. But the kernel needs a microsecond to create it.
//! So a socket that connects takes a slot of an array instead, if the slot that its cookie selects is free. The kernel
//! never assigns a cookie twice, so the state in a slot never passes to another socket. If the kernel skips the program
//! that frees a slot, the slot is only out of use.

use core::arch::asm;
use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type};
use aya_ebpf::btf_maps::{Array, LruHashMap};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use kmesh_trace_common::Turns;

use crate::conn_state::{ConnState, ScanView};
use crate::sock::Sock;

/// A map of type `BPF_MAP_TYPE_SK_STORAGE`. aya's type accepts neither `BPF_F_CLONE` nor a socket from a tracepoint.
#[repr(C)]
struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the pointers only describe the map to the loader; no code follows them.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    /// Returns the value of this socket. If there is none, creates it if `flags` say so: as a copy of `initial`, or all
    /// zero if that is null. Returns null if the kernel cannot allocate it (`net.core.optmem_max`).
    #[inline(always)]
    fn look_up(&self, sock: Sock, initial: *const T, flags: u64) -> *mut T {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the map is a socket storage, the socket a typed pointer, and `initial` null or a whole value. The
        // kernel returns null or a value that lives as long as the socket, longer than this run of the program.
        unsafe { bpf_sk_storage_get(map, sock.as_ptr(), initial.cast_mut().cast(), flags).cast::<T>() }
    }
}

#[btf_map]
static KMESH_SOCKETS: SocketStorage<ConnState, { (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize }> = SocketStorage::new();

/// The turns of each tracked connection, if the programs measure them.
#[btf_map]
static KMESH_TURNS: SocketStorage<Turns, { BPF_F_NO_PREALLOC as usize }> = SocketStorage::new();

/// Returns the turns of this socket. Two programs may have access at the same time: see [`Turns`].
#[inline(always)]
pub fn turns(sock: Sock) -> Option<*mut Turns> {
    non_null(KMESH_TURNS.look_up(sock, ptr::null(), 0))
}

/// Returns the turns of this socket; creates them with all bytes zero if there are none. `None` if the kernel cannot
/// allocate them.
#[inline(always)]
pub fn get_or_create_turns(sock: Sock) -> Option<*mut Turns> {
    non_null(KMESH_TURNS.look_up(sock, ptr::null(), BPF_SK_STORAGE_GET_F_CREATE.into()))
}

#[inline(always)]
fn non_null(turns: *mut Turns) -> Option<*mut Turns> {
    if turns.is_null() { None } else { Some(turns) }
}

/// The cookies of sockets whose connection has no storage, because the kernel could not allocate it. Without this map
/// such a socket would pass for one that is older than the tracer. A full map drops the oldest cookie; a process that
/// fills it hides only its own sockets.
#[btf_map]
static KMESH_STORAGE_FAILED: LruHashMap<u64, u32, 4096> = LruHashMap::new();

/// Marks the connection of this socket as one without storage.
#[inline(always)]
pub fn mark_storage_failed(sock: Sock) {
    // If this fails too, the close counts as that of a connection from before the tracer.
    _ = KMESH_STORAGE_FAILED.insert(sock.cookie(), 1, 0);
}

/// Returns whether the kernel could not allocate storage for the connection of this socket.
#[inline(always)]
pub fn has_storage_failed(sock: Sock) -> bool {
    // `mark_storage_failed` gives the socket a cookie.
    let cookie = sock.skc_cookie();
    cookie != 0 && KMESH_STORAGE_FAILED.get_ptr(cookie).is_some()
}

const SLOT_BITS: u32 = 13;

/// The slot of one client.
#[repr(C)]
struct Slot {
    /// The cookie of the last socket that took the slot.
    cookie: u64,
    /// The time when that socket freed the slot, jiffies.
    freed: u64,
    /// The number of sockets that hold the slot or try to take it.
    claims: u64,
    state: ConnState,
}

#[btf_map]
static KMESH_CLIENTS: Array<Slot, { 1 << SLOT_BITS }> = Array::new();

/// Returns the slot that a cookie selects, whichever socket holds it. Each CPU takes rows of 4,096 cookies from the
/// kernel. The cookies of a row select adjacent slots, which suits the caches. Rows begin at pseudorandom slots, so
/// that two CPUs do not keep taking the same slots.
#[inline(always)]
fn slot_for(cookie: u64) -> Option<*mut Slot> {
    let row = (cookie >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - SLOT_BITS);
    let index = (cookie + row) & ((1 << SLOT_BITS) - 1);
    KMESH_CLIENTS.get_ptr_mut(index as u32)
}

/// Returns the slot that this socket holds, or held last.
#[inline(always)]
fn slot_of(sock: Sock) -> Option<*mut Slot> {
    // Only `claim` takes a slot, and it gives the socket a cookie.
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

/// Takes the slot that the socket's cookie selects, if it is free.
#[inline(always)]
fn claim(sock: Sock) -> Option<&'static mut ConnState> {
    let cookie = sock.cookie();
    let slot = slot_for(cookie)?;
    // SAFETY: a slot of an array that lives as long as the program. If two sockets claim it at once, at most one of
    // them finds no other claim after its own. If neither does, neither takes the slot.
    unsafe {
        let claims = &raw mut (*slot).claims;
        // The kernel may send a RST for a socket that it has just destroyed, and the program then needs its state.
        if ptr::read_volatile(claims) != 0 || (*slot).freed == bpf_jiffies64() {
            return None;
        }
        atomic_add(claims, 1);
        if ptr::read_volatile(claims) != 1 {
            atomic_add(claims, -1);
            return None;
        }
        // Writes `ConnState::NEW` by words: the compiler would call a function that writes single bytes.
        let words = (&raw mut (*slot).state).cast::<u64>();
        for word in 0..size_of::<ConnState>() / 8 {
            ptr::write_volatile(words.add(word), 0);
        }
        ptr::write_volatile(&raw mut (*slot).cookie, cookie);
        Some(&mut (*slot).state)
    }
}

/// Adds to a number that other CPUs add to, by the instruction that kernels have on all architectures. It does not
/// return the old value.
///
/// # Safety
///
/// `to` points to an aligned number in a map.
#[inline(always)]
pub unsafe fn atomic_add(to: *mut u64, value: i64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({to} + 0) += {value}", to = in(reg) to, value = in(reg) value) };
}

/// Returns exclusive access to stored state, for all programs but a socket scan.
///
/// # Safety
///
/// The pointer is null or leads to the state of a socket that the program runs for.
#[inline(always)]
unsafe fn exclusive(state: *mut ConnState) -> Option<&'static mut ConnState> {
    // SAFETY: the socket's lock serializes its changes of state, its destruction and its resets, so only one program
    // has it. A scan that runs at the same time writes words that no program reaches through this reference: see
    // `ScanView`.
    unsafe { state.as_mut() }
}

#[inline(always)]
fn find(sock: Sock) -> *mut ConnState {
    match slot_of(sock) {
        // SAFETY: a slot of an array, which this socket holds until it is destroyed.
        Some(slot) => unsafe { &raw mut (*slot).state },
        None => KMESH_SOCKETS.look_up(sock, ptr::null(), 0),
    }
}

/// Returns the state of this socket.
#[inline(always)]
pub fn get(sock: Sock) -> Option<&'static mut ConnState> {
    // SAFETY: the state of this socket, or null.
    unsafe { exclusive(find(sock)) }
}

/// Returns the state of this socket for a socket scan.
#[inline(always)]
pub fn get_for_scan(sock: Sock) -> Option<ScanView> {
    // SAFETY: the state of this socket, or null.
    unsafe { ScanView::from_pointer(find(sock)) }
}

/// Returns the state of this socket, which connects; creates [`ConnState::NEW`] if there is none. `None` if the kernel
/// cannot allocate it.
#[inline(always)]
pub fn get_or_create_client(sock: Sock) -> Option<&'static mut ConnState> {
    get(sock)
        .or_else(|| claim(sock))
        .or_else(|| get_or_create_inherited(sock))
}

/// Returns the state in the socket storage, which children inherit; creates [`ConnState::NEW`] if there is none. `None`
/// if the kernel cannot allocate it.
#[inline(always)]
pub fn get_or_create_inherited(sock: Sock) -> Option<&'static mut ConnState> {
    // SAFETY: the state of this socket, or null.
    unsafe { exclusive(KMESH_SOCKETS.look_up(sock, ptr::null(), BPF_SK_STORAGE_GET_F_CREATE.into())) }
}

/// Returns the state of this socket, which is older than the tracer; creates `initial` if there is none. `None` if the
/// kernel cannot allocate it.
#[inline(always)]
pub fn get_or_create(sock: Sock, initial: &ConnState) -> Option<&'static mut ConnState> {
    // SAFETY: the state of this socket, or null.
    unsafe { exclusive(KMESH_SOCKETS.look_up(sock, initial, BPF_SK_STORAGE_GET_F_CREATE.into())) }
}

/// Returns the state of this socket for a socket scan; creates `initial` if there is none. Other programs see either no
/// state or the whole of it. `None` if the kernel cannot allocate it.
#[inline(always)]
pub fn get_or_create_for_scan(sock: Sock, initial: &ConnState) -> Option<ScanView> {
    let state = KMESH_SOCKETS.look_up(sock, initial, BPF_SK_STORAGE_GET_F_CREATE.into());
    // SAFETY: the state of this socket, or null.
    unsafe { ScanView::from_pointer(state) }
}

/// Frees the slot of a socket that the kernel destroys. The kernel frees the socket storage itself.
#[inline(always)]
pub fn free(sock: Sock) {
    if let Some(slot) = slot_of(sock) {
        // SAFETY: a slot of an array that lives as long as the program. The kernel destroys a socket once.
        unsafe {
            (*slot).freed = bpf_jiffies64();
            atomic_add(&raw mut (*slot).claims, -1);
        }
    }
}
