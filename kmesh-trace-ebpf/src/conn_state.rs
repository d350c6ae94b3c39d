//! The state that the programs store of a connection while it lives. [`crate::storage`] holds it.

use core::ptr;

use kmesh_trace_common::{Owner, counter, owner};

use crate::layout::put_words;
use crate::maps::{count, scan_number};
use crate::task::Task;

/// The phases of a socket's current connection attempt; 0 before the first attempt.
pub mod phase {
    /// The socket listens. A child starts in this phase too, with a copy of its listener's storage.
    pub const LISTENER: u8 = 1;
    /// Connecting, connected or closing.
    pub const LIVE: u8 = 2;
    /// Ended, and reported or counted.
    pub const ENDED: u8 = 3;
    /// Connecting or connected, and filtered out. Stored only for sockets that the filter would judge wrongly later: a
    /// socket that listened and then connects looks like an inbound one, and a Fast Open child is created before its
    /// addresses are known.
    pub const FILTERED: u8 = 4;
}

/// [`ConnState::flags`], beside the `FLAG_*` of a record: a socket scan created this storage.
pub const CREATED_BY_SCAN: u8 = 1 << 7;

/// [`ConnState::flags`], beside the `FLAG_*` of a record: the filter has not checked the addresses of this child yet,
/// so the child does not count as open.
pub const FILTER_PENDING: u8 = 1 << 6;

/// The state of a socket's connection attempt, and its owner.
///
/// A socket scan writes only `found_owner`, `found_owner_check`, `found_owner_scan` and `visited_scan`. It runs at the
/// same time as other programs, on any CPU and without the socket's lock. Only the other programs write the rest.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConnState {
    pub start_ns: u64,
    pub established_ns: u64,
    /// The newest buffer on the error queue when the attempt began. It is not about this attempt.
    pub stale_error: u64,
    /// The owner found by connect(), close() or listen().
    owner: Owner,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    pub phase: u8,
    pub flags: u8,
    /// The last state that a program stored for the record of the close; the programs skip irrelevant states.
    pub last_state: u8,
    /// The new state at the last change that a program handled. By it the backup program knows which changes are
    /// handled.
    pub last_seen_state: u8,
    /// The number of the last scan that visited this connection.
    pub visited_scan: u32,
    /// `tcp_sock.segs_out` when the attempt began.
    pub segs_out_before: u32,
    /// The number of the last scan that began before listen(). An owner found by that scan, or by an earlier one, is
    /// out of date.
    listen_scan: u32,
    /// The number of the scan that found `found_owner`.
    found_owner_scan: u32,
    /// Equals [`owner_check`] of `found_owner`, unless a scan is writing it.
    found_owner_check: u32,
    /// The reason of the last RST that this end sent; 0 if none, or unknown.
    pub reset_reason: u8,
    /// Padding that is always 0.
    pad: [u8; 3],
    /// The owner found by a scan.
    found_owner: Owner,
}

const NO_OWNER: Owner = Owner {
    pid: 0,
    by: 0,
    pad: [0; 3],
    comm: [0; 16],
};

impl ConnState {
    /// The state of a socket without a connection attempt: all bytes are zero.
    pub const NEW: Self = Self {
        start_ns: 0,
        established_ns: 0,
        stale_error: 0,
        owner: NO_OWNER,
        attempt: 0,
        phase: 0,
        flags: 0,
        last_state: 0,
        last_seen_state: 0,
        visited_scan: 0,
        segs_out_before: 0,
        listen_scan: 0,
        found_owner_scan: 0,
        found_owner_check: 0,
        reset_reason: 0,
        pad: [0; 3],
        found_owner: NO_OWNER,
    };

    /// Returns whether a live connection is part of the counter of open connections.
    #[inline(always)]
    pub fn is_counted(&self) -> bool {
        self.flags & FILTER_PENDING == 0
    }

    /// Removes the owner found by connect(), close() or listen().
    #[inline(always)]
    pub fn clear_owner(&mut self) {
        self.owner.by = owner::NONE;
        self.owner.pid = 0;
    }

    /// Sets the owner unless a better one is known. Kernel threads own no sockets.
    #[inline(always)]
    pub fn set_owner(&mut self, task: Task, by: u8) {
        if self.owner.by >= by || task.is_kernel_thread() {
            return;
        }
        let pid = task.task_tgid();
        // A tool that lists the descriptors of other processes holds each file for a moment. If the owner closes the
        // file at that moment, the tool drops its last reference.
        if by == owner::CLOSE
            && pid != self.owner.pid
            && pid != ScanView::new(self).found_owner().0
            && !task.can_close()
        {
            return;
        }
        self.owner.pid = pid;
        self.owner.by = by;
        // SAFETY: the name is at a multiple of 8.
        unsafe { put_words(&raw mut self.owner.comm, task.leader_comm()) };
    }

    /// Sets the process that listens as the owner, whoever owned the socket before.
    #[inline(always)]
    pub fn set_listener(&mut self, task: Task) {
        self.clear_owner();
        self.set_owner(task, owner::LISTENER);
        self.listen_scan = scan_number();
    }

    /// Clears what a child must not inherit in its copy of the listener's storage. No process holds the child yet, so
    /// no scan reaches it.
    #[inline(always)]
    pub fn clear_inherited(&mut self) {
        self.visited_scan = 0;
        self.segs_out_before = 0;
        self.stale_error = 0;
        // A scan found this owner when the listener was a connection.
        if self.found_owner.by == owner::SCAN {
            self.found_owner.pid = 0;
            self.found_owner.by = owner::NONE;
        }
    }
}

/// The access of a socket scan to a [`ConnState`], which another program may hold mutably at the same time. So each
/// read returns a single word that may be out of date, and only the scan's own words are written.
#[derive(Clone, Copy)]
pub struct ScanView(*mut ConnState);

/// Reads one field of a [`ConnState`] that another program may be writing.
macro_rules! read_field {
    ($state:expr, $field:ident) => {
        // SAFETY: a field of a value that lives as long as the socket, longer than this run of the program.
        unsafe { ptr::read_volatile(&raw const (*$state).$field) }
    };
}

impl ScanView {
    /// Creates the view of a value to which no other program has access.
    #[inline(always)]
    pub fn new(state: &mut ConnState) -> Self {
        Self(state)
    }

    /// Creates the view of stored state; `None` if the pointer is null.
    ///
    /// # Safety
    ///
    /// The pointer is null or leads to a value that lives as long as the socket.
    #[inline(always)]
    pub unsafe fn from_pointer(state: *mut ConnState) -> Option<Self> {
        if state.is_null() { None } else { Some(Self(state)) }
    }

    #[inline(always)]
    pub fn as_ptr(self) -> *const ConnState {
        self.0
    }

    #[inline(always)]
    pub fn phase(self) -> u8 {
        read_field!(self.0, phase)
    }

    #[inline(always)]
    pub fn flags(self) -> u8 {
        read_field!(self.0, flags)
    }

    #[inline(always)]
    pub fn attempt(self) -> u32 {
        read_field!(self.0, attempt)
    }

    #[inline(always)]
    pub fn established_ns(self) -> u64 {
        read_field!(self.0, established_ns)
    }

    #[inline(always)]
    pub fn visited_scan(self) -> u32 {
        read_field!(self.0, visited_scan)
    }

    #[inline(always)]
    pub fn segs_out_before(self) -> u32 {
        read_field!(self.0, segs_out_before)
    }

    /// Returns the number of the scan that found the owner.
    #[inline(always)]
    pub fn found_owner_scan(self) -> u32 {
        read_field!(self.0, found_owner_scan)
    }

    /// Marks the socket as visited by this scan. Other programs only clear the mark.
    #[inline(always)]
    pub fn mark_visited(self, scan: u32) {
        // SAFETY: as in `read_field!`.
        unsafe { ptr::write_volatile(&raw mut (*self.0).visited_scan, scan) };
    }

    /// Marks the connection as visited by this scan, and counts the visit.
    #[inline(always)]
    pub fn set_visited(self, scan: u32) {
        self.mark_visited(scan);
        count(counter::SCAN, |counters| counters.visited += 1);
    }

    /// Returns the pid of the owner that a scan found, and how the scan found it.
    #[inline(always)]
    pub fn found_owner(self) -> (u32, u8) {
        // SAFETY: as in `read_field!`; the first word of an owner.
        let head = unsafe { ptr::read_volatile((&raw const (*self.0).found_owner).cast::<u64>()) };
        (head as u32, (head >> 32) as u8)
    }

    /// Returns the pid of the process that connected or listens; 0 if unknown.
    #[inline(always)]
    pub fn owner_pid(self) -> u32 {
        // SAFETY: as in `read_field!`; the first word of an owner.
        unsafe { ptr::read_volatile((&raw const (*self.0).owner).cast::<u32>()) }
    }

    /// Sets the owner that the scan found. While the name changes, neither the first word nor the check is that of any
    /// owner. So a program that reads or copies the owner meanwhile finds a wrong check, in whichever order it reads.
    #[inline(always)]
    pub fn set_found_owner(self, Holder { pid, comm }: Holder, by: u8, scan: u32) {
        // SAFETY: words of a value that lives as long as the socket; each is at a multiple of its size.
        unsafe {
            let head = (&raw mut (*self.0).found_owner).cast::<u64>();
            let check = &raw mut (*self.0).found_owner_check;
            ptr::write_volatile(head, 0);
            ptr::write_volatile(check, u32::MAX);
            ptr::write_volatile(head.add(1), comm[0]);
            ptr::write_volatile(head.add(2), comm[1]);
            ptr::write_volatile(&raw mut (*self.0).found_owner_scan, scan);
            ptr::write_volatile(check, owner_check(pid, by));
            ptr::write_volatile(head, u64::from(pid) | u64::from(by) << 32);
        }
    }
}

/// A process that holds a socket. Not in an `Option`: before 6.3 the kernel refuses to copy the bytes that `None`
/// leaves unset.
#[derive(Clone, Copy)]
pub struct Holder {
    /// The process id (the kernel's tgid); 0 for no process.
    pub pid: u32,
    /// The name of the thread-group leader as two words in memory order.
    pub comm: [u64; 2],
}

impl Holder {
    pub const NONE: Self = Self { pid: 0, comm: [0; 2] };

    /// Returns the process of a task; [`Self::NONE`] for a kernel thread, which owns no sockets.
    #[inline(always)]
    pub fn of(task: Task) -> Self {
        if task.is_kernel_thread() {
            return Self::NONE;
        }
        Self {
            pid: task.task_tgid(),
            comm: task.leader_comm(),
        }
    }

    #[inline(always)]
    pub fn is_process(self) -> bool {
        self.pid != 0
    }
}

/// Returns the check of an owner. A pid has at most 22 bits.
#[inline(always)]
fn owner_check(pid: u32, by: u8) -> u32 {
    pid | u32::from(by) << 24
}

/// Returns the best known owner, as the three words of an [`Owner`].
#[inline(always)]
pub fn owner_words(state: *const ConnState) -> [u64; 3] {
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
    let (owner, found_owner) = unsafe { (&raw const (*state).owner, &raw const (*state).found_owner) };
    let owner = read(owner);
    let by = (owner[0] >> 32) as u8;
    if by >= owner::CLOSE {
        return owner;
    }
    let found = read(found_owner);
    let check = read_field!(state, found_owner_check);
    // SAFETY: the first word of the same field.
    let is_stable = unsafe { ptr::read_volatile(found_owner.cast::<u64>()) } == found[0];
    let (found_pid, found_by) = (found[0] as u32, (found[0] >> 32) as u8);
    if !is_stable || check != owner_check(found_pid, found_by) {
        return owner;
    }
    // A process may hand its listener to another process, so the later finding counts.
    let is_later = found_by == by && read_field!(state, found_owner_scan) > read_field!(state, listen_scan);
    if found_by > by || is_later { found } else { owner }
}
