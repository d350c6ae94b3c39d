//! kmesh-trace.

pub mod cli;
pub mod config;
pub mod errno;
pub mod exit;
pub mod record;
pub mod render;
pub mod rfc3339;
pub mod schema;
pub mod wire;
