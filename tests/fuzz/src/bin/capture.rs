//! Fuzzes the parser of capture files.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kmesh_trace_fuzz::read_capture(bytes));
