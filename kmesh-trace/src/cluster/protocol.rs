//! What `nodes` and the tracer in a pod send each other besides records.

use std::time::Duration;

/// The byte that asks the tracer to end: EOT, which Ctrl-D sends. Every other byte is a heartbeat.
pub const END: u8 = 0x04;
/// The byte that shows that the command still runs.
pub const HEARTBEAT: u8 = b'\n';
/// The time between two heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// The line on standard error that says that tracing has begun.
pub const STARTED: &str = "tracing";
