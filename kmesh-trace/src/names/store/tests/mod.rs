//! The rules of the store, each as a table of cases.

mod addresses;
mod bounds;
mod identity;
mod records;
mod services;

use std::net::IpAddr;

use super::*;
use crate::names::update::{ContainerObject, NodeObject, PodObject, SourceId};
use crate::record::{ContainerId, Pod};

const API: SourceId = SourceId(0);
const KUBELET: SourceId = SourceId(1);
const LOGS: SourceId = SourceId(2);
const SECOND: i64 = 1_000_000_000;

fn at(seconds: i64) -> WallTime {
    WallTime(seconds * SECOND)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A pod whose UID is its name.
fn pod(name: &str, ips: &[&str], started: i64) -> PodObject {
    PodObject {
        uid: name.to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        host_network: Some(false),
        ips: ips.iter().map(|one| ip(one)).collect(),
        started: Some(at(started)),
        ..PodObject::default()
    }
}

fn container_id() -> ContainerId {
    ContainerId::new(&"3f".repeat(32)).unwrap()
}

fn apply(store: &mut Store, source: SourceId, seconds: i64, change: Change) {
    store.apply(&SourceUpdate {
        source,
        at: at(seconds),
        change,
    });
}

fn report(store: &mut Store, source: SourceId, seconds: i64, object: Object) {
    apply(store, source, seconds, Change::Upsert(object));
}

/// A complete list of pods.
fn list(store: &mut Store, source: SourceId, seconds: i64, pods: Vec<PodObject>) {
    let scope = || Scope::All(Kind::Pods);
    apply(store, source, seconds, Change::ListStart(scope()));
    pods.into_iter()
        .for_each(|pod| report(store, source, seconds, Object::Pod(pod)));
    apply(store, source, seconds, Change::ListEnd(scope()));
}

fn find(store: &mut Store, uid: &str) -> Option<NamedPod> {
    let reference = store.pods.find(uid)?;
    Some(store.pods.named(reference, &store.owners))
}

fn found(store: &mut Store, uid: &str) -> Option<Arc<Pod>> {
    find(store, uid).map(|found| found.pod)
}

fn by_all(time: WallTime) -> AsOf {
    let sources = SourceSet::ALL;
    AsOf { time, sources }
}

/// Returns the name of the pod that had an address.
fn holder(store: &mut Store, address: &str, time: WallTime) -> Option<String> {
    let reference = store.pods.holder(ip(address), by_all(time))?;
    Some(store.pods.named(reference, &store.owners).pod.name.to_string())
}
