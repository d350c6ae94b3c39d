//! Proves that renderers allocate nothing once they are warm.

use super::{Json, Log, Sink, Stdout, testing};
use crate::capture::lines::{Lines, Step};
use crate::capture::parse::{Line, Parser};
use crate::capture::testing::{capture, header};
use crate::capture::{Capture, Compression};
use crate::track::delta::Delta;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;

thread_local! {
    /// By this thread: tests run beside each other.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// What is given back by another thread than took it makes this wrong.
    static LIVE_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Allocations of this thread so far.
pub(crate) fn allocations() -> usize {
    ALLOCATIONS.get()
}

/// Bytes that this thread has taken and not given back, as an allocator rounds them: to sixteen, and eight for itself.
pub(crate) fn live_bytes() -> usize {
    LIVE_BYTES.get()
}

fn rounded(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16)
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes to the system's allocator with the arguments it came with; the count beside it is a plain
// thread-local without a destructor, which allocates nothing itself. `realloc` comes down to these by default.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE_BYTES.set(LIVE_BYTES.get().wrapping_add(rounded(layout)));
        // SAFETY: the caller's promise about `layout` is the one asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.set(LIVE_BYTES.get().wrapping_sub(rounded(layout)));
        // SAFETY: `memory` came from `alloc` above with this layout, so from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often `act` allocates.
pub(crate) fn allocations_of(act: impl FnOnce()) -> usize {
    let before = allocations();
    act();
    allocations() - before
}

/// Returns the outputs that print records one by one.
fn sinks() -> [Box<dyn Sink>; 4] {
    let out = || Stdout::to(io::sink());
    [
        Box::new(Log::new(testing::ALL_EVENTS, false, out())),
        Box::new(Log::new(testing::ALL_EVENTS, true, out())),
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
        assert!(deliver() > 0, "the count counts");
        deliver();
        assert_eq!(deliver(), 0, "sink {index}");
    }
}

#[test]
fn warm_replay_allocates_a_record_at_most() {
    let records = testing::all();
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
    // The record itself is in a box. Some memory may still have to grow.
    let allocated = allocations() - before;
    assert_eq!(count, 5000);
    assert!((2500..2510).contains(&allocated), "{allocated}");
}
