//! What a kubelet, an API server or a file answers, into the store of names; the same bytes as a watch.
#![no_main]

use kmesh_trace::names::index::Index;
use kmesh_trace::names::objects::Writer;
use kmesh_trace::names::objects::object_list::{EventReader, ObjectReader};
use kmesh_trace::names::update::{Change, Kind, SourceId, SourceUpdate};
use kmesh_trace::record::WallTime;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (mut whole, mut objects) = (ObjectReader::new(Writer::ApiServer, None), Vec::new());
    let read = whole.feed(bytes, &mut |object| objects.push(object));
    // However the answer is cut into parts, it means the same.
    let (mut cut, mut same) = (ObjectReader::new(Writer::ApiServer, None), Vec::new());
    let read_cut = bytes.chunks(7).try_for_each(|part| cut.feed(part, &mut |object| same.push(object)));
    assert_eq!((read, &objects), (read_cut, &same));
    _ = EventReader::new(Kind::Pods, "Pod").feed(bytes, &mut drop);
    let mut index = Index::default();
    for (at, object) in objects.into_iter().enumerate() {
        index.learn(&SourceUpdate {
            source: SourceId(0),
            at: WallTime(at as i64),
            change: Change::Upsert(object),
        });
    }
});
