//! kmesh-trace.

pub mod record;
