//! Counts allocations, and tests that sinks allocate nothing in the steady state.

use super::{Json, Log, Sink, Stdout, testing};
use crate::capture::lines::{Lines, Step};
use crate::capture::parse::{Line, Parser};
use crate::capture::testing::{capture, header};
use crate::capture::{Capture, Compression};
use crate::config::TimeFormat;
use crate::track::delta::Delta;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;

thread_local! {
    /// The allocations of this thread. Tests run in parallel threads.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Wrong if one thread frees memory that another one allocated.
    static LIVE_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Returns the number of allocations of this thread so far.
pub(crate) fn allocations() -> usize {
    ALLOCATIONS.get()
}

/// Returns the bytes that this thread has allocated and not freed. Each allocation counts as in common allocators: plus
/// a header of 8 bytes, rounded up to 16.
pub(crate) fn live_bytes() -> usize {
    LIVE_BYTES.get()
}

fn rounded(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16)
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is forwarded to the system allocator with its arguments. The counters are thread-locals without a
// destructor, so they do not allocate. The default `realloc` calls these functions.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE_BYTES.set(LIVE_BYTES.get().wrapping_add(rounded(layout)));
        // SAFETY: the caller guarantees what `System.alloc` requires of `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.set(LIVE_BYTES.get().wrapping_sub(rounded(layout)));
        // SAFETY: `memory` came from `alloc` above with this layout, so from the system allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Returns the number of allocations in `act`.
pub(crate) fn allocations_of(act: impl FnOnce()) -> usize {
    let before = allocations();
    act();
    allocations() - before
}

/// Returns the sinks that print records one by one.
fn sinks() -> [Box<dyn Sink>; 4] {
    let out = || Stdout::to(io::sink());
    [
        Box::new(Log::new(testing::ALL_EVENTS, false, TimeFormat::Utc, out())),
        Box::new(Log::new(testing::ALL_EVENTS, true, TimeFormat::Utc, out())),
        Box::new(Json::new(testing::ALL_EVENTS, &testing::info(), out())),
        Box::new(Capture::to(io::sink(), Compression::Zstd, header()).unwrap()),
    ]
}

#[test]
fn warm_sink_allocates_nothing() {
    let mut records = testing::all();
    records.extend(testing::hostile_names().take(1000).map(|name| testing::named(&name)));
    for (index, mut sink) in sinks().into_iter().enumerate() {
        let mut deliver = || {
            allocations_of(|| {
                for record in &records {
                    sink.record(record, &Delta::default()).unwrap();
                }
                sink.finish().unwrap();
            })
        };
        assert!(deliver() > 0, "the first pass must allocate, or the counter is broken");
        deliver();
        assert_eq!(deliver(), 0, "sink {index}");
    }
}

#[test]
fn warm_replay_allocates_a_record_at_most() {
    let mut records = testing::all();
    // A list of drops is an allocation of its own.
    records.retain(|record| record.drops.as_ref().is_none_or(Vec::is_empty));
    let bytes = capture(Compression::Zstd, |capture| {
        for index in 0..5000 {
            capture
                .record(&records[index % records.len()], &Delta::default())
                .unwrap();
        }
    });
    let (mut lines, mut parser) = (Lines::new(&bytes[..]).unwrap(), Parser::default());
    let mut sinks = sinks();
    let (mut before, mut count) = (0, 0);
    while let Step::Line(line) = lines.next_line().unwrap() {
        let Line::Record(record) = parser.parse(line).unwrap() else {
            continue;
        };
        for sink in &mut sinks {
            sink.record(&record, &Delta::default()).unwrap();
        }
        count += 1;
        if count == 2500 {
            before = allocations();
        }
    }
    // The parser boxes each record. Some buffers may still grow.
    let allocated = allocations() - before;
    assert_eq!(count, 5000);
    assert!((2500..2510).contains(&allocated), "{allocated}");
}
