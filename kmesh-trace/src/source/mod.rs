//! Where events come from: the kernel.
//!
//! [`kernel`] is the one file that knows aya: it loads, attaches, seeds and drains. [`reader`] runs it in a thread of its
//! own, so that nothing which waits (for a terminal, for a pipe) stands between the kernel's ring and the queue behind it.

mod btf;
pub mod kernel;
mod netns;
mod offsets;
pub mod preflight;
pub mod reader;
mod system_calls;
mod time;
pub mod walker;

pub use time::{measure_difference, monotonic_ns, monotonic_of_boot_time};
