//! What a kubelet, an API server or a file tells, into the index of names.
#![no_main]

use kmesh_trace::names::update::{Change, SourceId, SourceUpdate};
use kmesh_trace::names::index::Index;
use kmesh_trace::names::objects::list;
use kmesh_trace::record::WallTime;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = list::read(bytes) else { return };
    let mut index = Index::default();
    for (at, fact) in document.facts.into_iter().enumerate() {
        index.learn(&SourceUpdate {
            source: SourceId(0),
            at: WallTime(at as i64),
            change: Change::Upsert(fact),
        });
    }
});
