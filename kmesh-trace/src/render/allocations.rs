//! Proves that renderers allocate nothing once they are warm.

use super::{renderer, testing};
use crate::config::Output;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// By this thread: tests run beside each other.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes to the system's allocator with the arguments it came with; the count beside it is a plain
// thread-local without a destructor, which allocates nothing itself. `realloc` comes down to these by default.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is the one asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `alloc` above with this layout, so from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often `act` allocates.
pub(crate) fn allocations(act: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    act();
    ALLOCATIONS.get() - before
}

#[test]
fn a_warm_renderer_allocates_nothing() {
    let mut records = testing::all();
    records.extend(testing::hostile_names().take(1000).map(|name| testing::named(&name)));
    for output in [Output::Log, Output::Json, Output::None] {
        for color in [false, true] {
            let mut renderer = renderer(output, color, &testing::info());
            let mut render_all = || {
                allocations(|| {
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
