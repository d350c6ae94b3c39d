//! The kernel's side of live tracing.
//!
//! [`loader`] loads, attaches and drains the programs, and is the only file that names aya. [`reader`] drains the ring in a
//! thread of its own, so that nothing blocks between the ring and the queue behind it. [`scanner`] scans the open sockets.

mod btf;
pub mod loader;
mod netns;
mod offsets;
pub mod preflight;
pub mod reader;
pub mod scanner;
mod system_calls;
mod time;

pub use time::{measure_difference, monotonic_ns, monotonic_of_boot_time};
