//! Names for what a capture has left unnamed, out of what was saved of a cluster. What the capture has named stays so: it
//! was there.

use std::collections::HashMap;
use std::sync::Arc;

use super::index::{Index, Shown};
use super::local::cgroup::{CgroupOwner, PodCgroup};
use super::update::{Change, Object, SourceId, SourceUpdate};
use crate::record::{ContainerId, Direction, End, Record, WallTime};

/// After all records, and still a time.
const LATER: WallTime = WallTime(i64::MAX - 1);

/// All that was saved.
#[derive(Debug)]
pub struct OfflineNames {
    index: Index,
    places: HashMap<ContainerId, Arc<CgroupOwner>>,
}

impl OfflineNames {
    /// `facts` were true later than all that is to be named.
    pub fn new(facts: impl IntoIterator<Item = Object>) -> Self {
        let mut index = Index::default();
        let mut places = HashMap::new();
        for fact in facts {
            if let Object::Pod(pod) = &fact {
                let uid: Arc<str> = pod.static_uid.as_ref().unwrap_or(&pod.uid).as_str().into();
                for id in pod.containers.iter().filter_map(|container| container.id) {
                    let place = CgroupOwner {
                        pod: Some(PodCgroup {
                            root: "/".into(),
                            uid: Arc::clone(&uid),
                        }),
                        container: Some(id),
                    };
                    places.insert(id, Arc::new(place));
                }
            }
            index.learn(&SourceUpdate {
                source: SourceId(0),
                at: LATER,
                change: Change::Upsert(fact),
            });
        }
        Self { index, places }
    }

    /// `record`, with more names.
    pub fn named(&mut self, record: &Record) -> Record {
        let mut named = record.clone();
        let shown = Shown {
            // The network namespace and the cgroup are those of another time, and perhaps of another machine.
            place: record.container_id.and_then(|id| self.places.get(&id).cloned()),
            ..Shown::default()
        };
        self.index.name(&mut named, &shown);
        let (known, found) = (&record.names, &mut named.names);
        complete(&known.src, &mut found.src);
        complete(&known.dst, &mut found.dst);
        if known.service.is_some() {
            found.service.clone_from(&known.service);
        }
        if known.container.is_some() {
            found.container.clone_from(&known.container);
        }
        let local = match record.direction {
            Direction::Outbound => &found.src,
            Direction::Inbound => &found.dst,
        };
        found.unresolved = known.unresolved && local.pod.is_none();
        named.container_id = record.container_id;
        named
    }
}

/// What was known counts, but for a pod of which more is known now.
fn complete(known: &End, found: &mut End) {
    let more_is_known = match (&known.pod, &found.pod) {
        (Some(known), Some(found)) => known.uid == found.uid && known.workload.is_none(),
        (Some(_), None) => false,
        (None, _) => known.node.is_none(),
    };
    if !more_is_known {
        found.clone_from(known);
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::names::update::{ContainerObject, PodObject};
    use crate::record::{Names, Pod};
    use crate::render::testing::example;

    fn pod(name: &str, ip: &str, started: i64, container: char) -> Object {
        Object::Pod(PodObject {
            uid: format!("uid-of-{name}"),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            ips: vec![ip.parse().unwrap()],
            started: Some(WallTime(started)),
            containers: vec![ContainerObject {
                name: "main".to_owned(),
                id: ContainerId::new(&container.to_string().repeat(64)),
                ports: vec![],
            }],
            ..PodObject::default()
        })
    }

    fn unnamed(src: &str, dst: &str, start: i64) -> Record {
        let address = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 1);
        Record {
            direction: Direction::Outbound,
            src: address(src),
            dst: address(dst),
            start: Some(WallTime(start)),
            container_id: None,
            names: Names {
                unresolved: true,
                ..Names::default()
            },
            ..example()
        }
    }

    fn names(record: &Record) -> [Option<&str>; 2] {
        let name = |end: &End| end.pod.as_ref().map(|pod| pod.name.to_string());
        let leak = |name: Option<String>| name.map(|name| &*name.leak());
        [leak(name(&record.names.src)), leak(name(&record.names.dst))]
    }

    #[test]
    fn who_had_an_address_then_is_named_and_who_started_later_is_not() {
        let facts = [
            pod("early", "10.0.0.1", 100, 'a'),
            pod("late", "10.0.0.2", 5_000_000_000, 'b'),
        ];
        let mut offline = OfflineNames::new(facts);
        let named = offline.named(&unnamed("10.0.0.1", "10.0.0.2", 1_000));
        assert_eq!(names(&named), [Some("early"), None]);
        assert!(!named.names.unresolved);
    }

    #[test]
    fn a_container_tells_its_pod_whatever_the_address() {
        let mut offline = OfflineNames::new([pod("host", "10.0.0.1", 100, 'a')]);
        let record = Record {
            container_id: ContainerId::new(&"a".repeat(64)),
            ..unnamed("192.168.0.1", "192.168.0.2", 1_000)
        };
        let named = offline.named(&record);
        assert_eq!(names(&named), [Some("host"), None]);
        assert_eq!(named.names.container.as_deref(), Some("main"));
        assert_eq!(named.container_id, record.container_id);
    }

    #[test]
    fn what_the_capture_named_stays() {
        let captured = |uid: &str| {
            Some(Arc::new(Pod {
                uid: uid.into(),
                namespace: "shop".into(),
                name: "captured".into(),
                workload: None,
                service_account: None,
                node: None,
                host_network: None,
                labels: None,
            }))
        };
        let mut record = unnamed("10.0.0.1", "10.0.0.2", 1_000);
        record.names.src.pod = captured("another");
        record.names.dst.node = Some("worker-1".into());
        let facts = [pod("one", "10.0.0.1", 100, 'a'), pod("two", "10.0.0.2", 100, 'b')];
        let mut offline = OfflineNames::new(facts);
        let named = offline.named(&record);
        assert_eq!(names(&named), [Some("captured"), None]);
        // Of the same pod more is known now: what controls it.
        record.names.src.pod = captured("uid-of-one");
        assert_eq!(names(&offline.named(&record)), [Some("one"), None]);
    }
}
