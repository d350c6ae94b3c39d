//! What a kubelet, an API server or a file tells, into the index of names.
#![no_main]

use kmesh_trace::enrich::facts::{News, SourceId, Told};
use kmesh_trace::enrich::index::Index;
use kmesh_trace::enrich::list;
use kmesh_trace::record::WallTime;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(document) = list::read(bytes) else { return };
    let mut index = Index::default();
    for (at, fact) in document.facts.into_iter().enumerate() {
        index.learn(&Told {
            source: SourceId(0),
            at: WallTime(at as i64),
            news: News::Is(fact),
        });
    }
});
