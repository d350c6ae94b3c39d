//! Fuzzes the decoder of the ring buffer's records, and the tracker.
#![no_main]

use kmesh_trace::track::Tracker;
use kmesh_trace::track::clock::Clock;
use kmesh_trace::track::decode::{KernelEvent, decode};
use kmesh_trace::track::listeners::Listeners;

// The input has a byte before each record: the record's length in 64-bit words.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut tracker = Tracker::new(0, "node".into());
    let mut listeners = Listeners::default();
    let clock = Clock::new(0);
    let mut rest = bytes;
    while let Some((&words, after)) = rest.split_first() {
        let (record, after) = after.split_at(after.len().min(8 * usize::from(words)));
        match decode(record) {
            Ok(KernelEvent::Listener(listener)) => {
                if let Some(queue) = listeners.take(&listener) {
                    tracker.listener(&listener, queue, &clock);
                }
            }
            Ok(event) => tracker.take(event),
            Err(_) => {}
        }
        rest = after;
    }
    while tracker.next(u64::MAX, &clock).is_some() {}
});
