//! Proves that renderers allocate nothing once they are warm.

use super::{renderer, testing};
use crate::capture::{Item, Reader, testing::capture};
use crate::config::Output;
use crate::note::NamesFrom;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

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

#[test]
fn a_warm_renderer_allocates_nothing() {
    let mut records = testing::all();
    records.extend(testing::hostile_names().take(1000).map(|name| testing::named(&name)));
    for output in [Output::Log, Output::Json, Output::None] {
        for color in [false, true] {
            let mut renderer = renderer(output, None, color, &testing::info(), &NamesFrom::default());
            let mut render_all = || {
                allocations_of(|| {
                    records
                        .iter()
                        .for_each(|record| renderer.record(record, &mut std::io::sink()).unwrap());
                })
            };
            let cold = render_all();
            assert_eq!(cold > 0, output != Output::None, "{output:?}: the count counts");
            assert_eq!(render_all(), 0, "{output:?}");
        }
    }
}

#[test]
fn a_warm_replay_allocates_nothing() {
    let records = testing::all();
    let bytes = capture(|keep| (0..5000).for_each(|index| keep.record(&records[index % records.len()]).unwrap()));
    let mut reader = Reader::new(&bytes[..]).unwrap_or_else(|why| panic!("{why}"));
    let mut renderers = [Output::Log, Output::Json]
        .map(|output| renderer(output, None, false, &testing::info(), &NamesFrom::default()));
    let mut before = 0;
    let mut count = 0;
    while let Some(item) = reader.next_item().unwrap() {
        if let Item::Record(record) = item {
            for renderer in &mut renderers {
                renderer.record(record, &mut std::io::sink()).unwrap();
            }
            count += 1;
            if count == 2500 {
                before = ALLOCATIONS.get();
            }
        }
    }
    assert_eq!((count, ALLOCATIONS.get() - before), (5000, 0));
    assert!(before > 0, "the count counts");
}
