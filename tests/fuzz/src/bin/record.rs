//! Fuzzes the decoder of the ring buffer's records, and the tracker.
#![no_main]

use kmesh_trace::track::clock::Clock;
use kmesh_trace::track::decode::decode;
use kmesh_trace::track::Tracker;

// The input has a byte before each record: the record's length in 64-bit words.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut tracker = Tracker::new(0, "node".into());
    let mut rest = bytes;
    while let Some((&words, after)) = rest.split_first() {
        let (record, after) = after.split_at(after.len().min(8 * usize::from(words)));
        if let Ok(event) = decode(record) {
            tracker.take(event);
        }
        rest = after;
    }
    let clock = Clock::new(0);
    while tracker.next(u64::MAX, &clock).is_some() {}
});
