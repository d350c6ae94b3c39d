//! Adds names to the records of a capture, from the objects of a cluster that were saved later, and to the records of
//! other nodes, from what sources report. Names that a record has stay: they were right at the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use super::local::cgroup::{CgroupOwner, PodCgroup};
use super::store::{LocalContext, Store};
use super::update::{Change, Object, PodObject, SourceId, SourceUpdate};
use crate::record::{ContainerId, Direction, End, Record, WallTime};

/// A time after all records of a capture.
const LATER: WallTime = WallTime(i64::MAX - 1);
/// The number of containers that are added between two searches for containers whose pods are gone.
const SWEEP_AFTER: usize = 10_000;

/// Adds names to records from elsewhere: to those of a capture from saved objects, to those of other nodes from the
/// reports of sources.
#[derive(Debug, Default)]
pub struct OfflineNames {
    store: Store,
    owners: HashMap<ContainerId, Arc<CgroupOwner>>,
    /// The number of containers at which those of pods that are gone are removed.
    sweep_at: usize,
    /// What sources report, if there are any.
    updates: Option<Receiver<Vec<SourceUpdate>>>,
}

impl OfflineNames {
    /// Returns names from objects that were saved after all records.
    pub fn new(objects: impl IntoIterator<Item = Object>) -> Self {
        let mut names = Self::default();
        for object in objects {
            names.apply(&SourceUpdate {
                source: SourceId(0),
                at: LATER,
                change: Change::Upsert(object),
            });
        }
        names
    }

    /// Returns names from what sources report.
    pub fn from_sources(updates: Receiver<Vec<SourceUpdate>>) -> Self {
        let updates = Some(updates);
        Self {
            updates,
            ..Self::default()
        }
    }

    /// Returns whether sources report the names.
    pub fn has_sources(&self) -> bool {
        self.updates.is_some()
    }

    /// Applies what sources have reported until now.
    pub fn refresh(&mut self) {
        let Some(updates) = self.updates.take() else { return };
        for batch in updates.try_iter() {
            batch.iter().for_each(|update| self.apply(update));
        }
        self.updates = Some(updates);
    }

    /// Returns a warning, once, if objects exceeded the memory budget.
    pub fn memory_warning(&mut self) -> Option<String> {
        self.store.warning()
    }

    /// Returns whether sources may still report the container of the record's local end.
    pub fn awaits(&self, record: &Record) -> bool {
        let is_unknown = |id| !self.owners.contains_key(&id);
        self.updates.is_some() && record.container_id.is_some_and(is_unknown)
    }

    /// Applies what a source reports.
    fn apply(&mut self, update: &SourceUpdate) {
        self.store.apply(update);
        if let Change::Upsert(Object::Pod(pod)) = &update.change {
            self.add_containers(pod);
        }
    }

    fn add_containers(&mut self, pod: &PodObject) {
        for id in pod.containers.iter().filter_map(|container| container.id) {
            // The nodes' cgroups are unknown here: all pods count as pods of one kubelet.
            let is_known = |owner: &CgroupOwner| owner.pod.as_ref().is_some_and(|known| *known.uid == pod.uid);
            if self.owners.get(&id).is_some_and(|owner| is_known(owner)) {
                continue;
            }
            let owner = CgroupOwner {
                pod: Some(PodCgroup {
                    root: "".into(),
                    uid: pod.uid.as_str().into(),
                }),
                container: Some(id),
            };
            self.owners.insert(id, Arc::new(owner));
        }
        if self.owners.len() >= self.sweep_at.max(SWEEP_AFTER) {
            let store = &self.store;
            let is_known = |owner: &CgroupOwner| owner.pod.as_ref().is_some_and(|pod| store.knows(&pod.uid));
            self.owners.retain(|_, owner| is_known(owner));
            self.sweep_at = self.owners.len() + SWEEP_AFTER;
        }
    }

    /// Returns `record` with the names that it lacks.
    pub fn annotate(&mut self, record: &Record) -> Record {
        let mut named = record.clone();
        let local = LocalContext {
            owner: record.container_id.and_then(|id| self.owners.get(&id).cloned()),
            is_netns_of_root: record.container_id.is_none(),
            ..LocalContext::default()
        };
        self.store.annotate(&mut named, &local, LATER);
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

/// Restores the name in the capture, unless the objects have more about the same pod.
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
    use crate::output::testing::example;
    use crate::record::{Names, Pod};

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

    fn names(record: &Record) -> [Option<String>; 2] {
        let name = |end: &End| end.pod.as_ref().map(|pod| pod.name.to_string());
        [name(&record.names.src), name(&record.names.dst)]
    }

    fn expected(names: [Option<&str>; 2]) -> [Option<String>; 2] {
        names.map(|name| name.map(str::to_owned))
    }

    #[test]
    fn address_names_its_pod_of_that_time() {
        let objects = [
            pod("early", "10.0.0.1", 100, 'a'),
            pod("late", "10.0.0.2", 5_000_000_000, 'b'),
        ];
        let mut offline = OfflineNames::new(objects);
        let named = offline.annotate(&unnamed("10.0.0.1", "10.0.0.2", 1_000));
        assert_eq!(names(&named), expected([Some("early"), None]));
        assert!(!named.names.unresolved);
    }

    #[test]
    fn container_names_its_pod_whatever_the_address() {
        let mut offline = OfflineNames::new([pod("host", "10.0.0.1", 100, 'a'), pod("other", "192.168.0.1", 100, 'c')]);
        let record = Record {
            container_id: ContainerId::new(&"a".repeat(64)),
            ..unnamed("192.168.0.1", "192.168.0.2", 1_000)
        };
        let named = offline.annotate(&record);
        assert_eq!(names(&named), expected([Some("host"), None]));
        assert_eq!(named.names.container.as_deref(), Some("main"));
        assert_eq!(named.container_id, record.container_id);
        let unknown = Record {
            container_id: ContainerId::new(&"f".repeat(64)),
            ..record
        };
        assert_eq!(names(&offline.annotate(&unknown)), expected([None, None]));
    }

    #[test]
    fn names_in_the_capture_stay() {
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
        let objects = [pod("one", "10.0.0.1", 100, 'a'), pod("two", "10.0.0.2", 100, 'b')];
        let mut offline = OfflineNames::new(objects);
        assert_eq!(names(&offline.annotate(&record)), expected([Some("captured"), None]));
        // The objects have the controller of the same pod.
        record.names.src.pod = captured("uid-of-one");
        assert_eq!(names(&offline.annotate(&record)), expected([Some("one"), None]));
    }
}
