//! Loads of members of the kernel's structures.
//!
//! Field offsets differ from kernel to kernel. User space finds them in the running kernel's BTF and writes them into
//! [`OFFSETS`] before it loads the programs. The verifier then sees constants, and checks each load against the
//! kernel's types. So the kernel refuses a wrong offset at load time, or the load reads another field of the same
//! structure.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use kmesh_trace_common::Offsets;

/// The offsets, which user space writes before it loads the programs.
#[unsafe(no_mangle)]
pub static OFFSETS: Offsets = Offsets { ..ZERO };

// SAFETY: Offsets consists of plain numbers.
const ZERO: Offsets = unsafe { core::mem::zeroed() };

/// Reads the offset of a member.
macro_rules! offset {
    ($member:ident) => {
        crate::layout::read_offset(&crate::layout::OFFSETS.$member)
    };
}

/// Reads an offset. Volatile, because the compiler sees zeros instead of the values that user space writes.
#[inline(always)]
pub fn read_offset(offset: &'static u32) -> u32 {
    // SAFETY: a read through a reference.
    unsafe { ptr::read_volatile(offset) }
}

/// Defines getters that load one member each; 0 if the kernel has no such member.
macro_rules! members {
    ($($member:ident: $type:ty,)*) => {
        $(
            #[inline(always)]
            pub fn $member(self) -> $type {
                let offset = offset!($member);
                if offset == kmesh_trace_common::ABSENT {
                    return 0;
                }
                // SAFETY: a load within the structure, which the verifier checks.
                unsafe { load(self.0, offset) }
            }
        )*
    };
}

pub(crate) use {members, offset};

/// Loads a member.
///
/// # Safety
///
/// `base` points to a structure that has a `T` at `offset`.
#[inline(always)]
pub unsafe fn load<T: Copy>(base: *const c_void, offset: u32) -> T {
    // SAFETY: the caller's promise. Volatile, so that each load stays as wide as its member.
    unsafe { ptr::read_volatile(base.byte_add(offset as usize).cast::<T>()) }
}

/// Reads kernel memory to which no typed pointer leads; zero if the address cannot be read.
#[inline(always)]
pub fn read_kernel<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper writes at most the size of the value, and checks the address. On failure it writes zeros.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const c_void) };
    value
}

/// Writes 16 bytes as two words. The compiler would write single bytes.
///
/// # Safety
///
/// `bytes` points to a multiple of 8.
#[inline(always)]
pub unsafe fn put_words(bytes: *mut [u8; 16], words: [u64; 2]) {
    let to = bytes.cast::<u64>();
    // SAFETY: the caller's promise.
    unsafe {
        ptr::write_volatile(to, words[0]);
        ptr::write_volatile(to.add(1), words[1]);
    }
}
