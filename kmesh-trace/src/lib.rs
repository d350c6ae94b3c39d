//! kmesh-trace.

pub mod clock;
pub mod decode;
pub mod outcome;
pub mod record;
pub mod source;
pub mod track;
