//! Records of the kernel's ring, through decoding and tracking.
#![no_main]

use kmesh_trace::track::clock::Clock;
use kmesh_trace::track::decode::decode;
use kmesh_trace::track::Tracker;

// Each record stands behind a byte: how many words long it is.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut tracker = Tracker::new(0, "node".into());
    let mut rest = bytes;
    while let Some((&words, behind)) = rest.split_first() {
        let (record, behind) = behind.split_at(behind.len().min(8 * usize::from(words)));
        if let Ok(event) = decode(record) {
            tracker.take(event);
        }
        rest = behind;
    }
    let clock = Clock::new(0);
    while tracker.next(u64::MAX, &clock).is_some() {}
});
