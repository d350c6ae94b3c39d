//! The part of live tracing that talks to the kernel.
//!
//! [`loader`] loads, attaches and drains the eBPF programs; only this module names aya. [`reader`] is the thread that
//! drains the ring into the queue of [`message`]s. [`scanner`] is the thread that scans the open sockets. [`preflight`]
//! checks whether this system can trace.

mod btf;
pub mod loader;
pub mod message;
mod netns;
mod offsets;
pub mod preflight;
pub mod reader;
pub mod reasons;
pub mod scanner;
mod system_calls;
