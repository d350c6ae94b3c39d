//! A whole capture file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kmesh_trace_fuzz::read(bytes));
