//! Fuzzes the parser of Kubernetes objects, as a list and as a watch, and applies the objects to the name store.
#![no_main]

use kmesh_trace::names::store::Store;
use kmesh_trace::names::objects::Writer;
use kmesh_trace::names::objects::object_list::{EventReader, ObjectReader};
use kmesh_trace::names::update::{Change, Kind, SourceId, SourceUpdate};
use kmesh_trace::record::WallTime;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut whole, mut objects) = (ObjectReader::new(Writer::ApiServer, None), Vec::new());
    let read = whole.feed(bytes, &mut |object| objects.push(object));
    // The objects do not depend on how the response is split into parts.
    let (mut split, mut same) = (ObjectReader::new(Writer::ApiServer, None), Vec::new());
    let read_split = bytes.chunks(7).try_for_each(|part| split.feed(part, &mut |object| same.push(object)));
    assert_eq!((read, &objects), (read_split, &same));
    _ = EventReader::new(Kind::Pods, "Pod").feed(bytes, &mut drop);
    let mut store = Store::default();
    for (at, object) in objects.into_iter().enumerate() {
        store.apply(&SourceUpdate {
            source: SourceId(0),
            at: WallTime(at as i64),
            change: Change::Upsert(object),
        });
    }
});
