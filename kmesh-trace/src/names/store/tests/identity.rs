//! Which pod a UID is, and what several sources know of one pod.

use super::*;
use crate::names::update::{ControllerObject, ControllerRef, Owner};

fn owner(kind: &str, name: &str, uid: &str) -> Owner {
    Owner::By(ControllerRef {
        kind: kind.to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    })
}

#[test]
fn sources_complete_each_other() {
    let mut store = Store::default();
    let from_logs = PodObject {
        uid: "u".to_owned(),
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        ..PodObject::default()
    };
    report(&mut store, LOGS, 1, Object::Pod(from_logs.clone()));
    let only_names = found(&mut store, "u").unwrap();
    assert_eq!((&only_names.workload, &only_names.labels), (&None, &None));
    let from_api = PodObject {
        labels: Some(pairs("app=web")),
        node: Some("worker-1".to_owned()),
        host_network: Some(false),
        service_account: Some("web".to_owned()),
        owner: owner("StatefulSet", "web", "s"),
        ips: vec![ip("10.1.0.5")],
        started: Some(at(0)),
        containers: vec![ContainerObject {
            name: "server".to_owned(),
            id: Some(container_id()),
            ports: vec![("http".to_owned(), 8080)],
        }],
        ..from_logs.clone()
    };
    report(&mut store, API, 2, Object::Pod(from_api));
    report(&mut store, LOGS, 3, Object::Pod(from_logs));
    let all = found(&mut store, "u").unwrap();
    assert_eq!(
        all.workload.as_ref().map(|workload| &*workload.kind),
        Some("StatefulSet")
    );
    assert_eq!(all.labels.as_ref().and_then(|labels| labels.get("app")), Some("web"));
    assert_eq!((all.node.as_deref(), all.host_network), (Some("worker-1"), Some(false)));
    let entry = store.pods.get(store.pods.find("u").unwrap());
    assert_eq!(entry.container(&container_id()).as_deref(), Some("server"));
    assert!(entry.has_port("http", 8080) && !entry.has_port("http", 80));
    assert!(
        Arc::ptr_eq(&all, &found(&mut store, "u").unwrap()),
        "one allocation for all records"
    );
    // The log folder stays for a while, the pod does not.
    apply(&mut store, API, 10, Change::Delete(Key::Pod("u".to_owned())));
    assert_eq!(holder(&mut store, "10.1.0.5", at(11)), None);
    assert_eq!(holder(&mut store, "10.1.0.5", at(9)).as_deref(), Some("web-1"));
}

#[test]
fn static_pod_is_known_by_both_uids() {
    let hash = "0b6f14a38b14b6c0b0d7ef7a2a9c8d11";
    let copy = |uid: &str| PodObject {
        uid: uid.to_owned(),
        static_uid: Some(hash.to_owned()),
        owner: owner("Node", "worker-1", "n"),
        ..pod("etcd-worker-1", &["10.0.0.1"], 1)
    };
    let own = || PodObject {
        uid: hash.to_owned(),
        static_uid: Some(hash.to_owned()),
        owner: Owner::Nobody,
        ..pod("etcd-worker-1", &["10.0.0.1"], 1)
    };
    for is_kubelet_first in [true, false] {
        let mut store = Store::default();
        let mut reports = vec![(KUBELET, own()), (API, copy("first"))];
        if !is_kubelet_first {
            reports.reverse();
        }
        for (source, pod) in reports {
            report(&mut store, source, 3, Object::Pod(pod));
        }
        let [by_hash, by_uid] = [hash, "first"].map(|uid| found(&mut store, uid).unwrap());
        assert!(Arc::ptr_eq(&by_hash, &by_uid));
        assert_eq!(&*by_uid.uid, "first", "as kubectl shows it");
        assert_eq!(by_uid.workload.as_ref().map(|workload| &*workload.kind), Some("Pod"));
        assert_eq!(holder(&mut store, "10.0.0.1", at(4)).as_deref(), Some("etcd-worker-1"));
        // The copy was deleted, and created again.
        report(&mut store, API, 5, Object::Pod(copy("second")));
        apply(&mut store, API, 6, Change::Delete(Key::Pod("first".to_owned())));
        assert_eq!(&*found(&mut store, hash).unwrap().uid, "second");
        assert_eq!(holder(&mut store, "10.0.0.1", at(7)).as_deref(), Some("etcd-worker-1"));
    }
}

/// A source vouches for a static pod's UID, but a tenant may make an object that looks like the API server's copy.
#[test]
fn claimed_static_uid_takes_no_other_pods_identity() {
    let claim = |name: &str, uid: &str| PodObject {
        namespace: "tenant".to_owned(),
        static_uid: Some(uid.to_owned()),
        ..pod(name, &[], 1)
    };
    let mut store = Store::default();
    report(&mut store, API, 1, Object::Pod(pod("victim", &["10.1.0.5"], 1)));
    report(&mut store, API, 2, Object::Pod(claim("thief", "victim")));
    assert_eq!(&*found(&mut store, "victim").unwrap().name, "victim");
    assert_eq!(&*found(&mut store, "thief").unwrap().name, "thief");
    // The kubelet's own static pod, and a claim of another name.
    let own = PodObject {
        static_uid: Some("hash".to_owned()),
        uid: "hash".to_owned(),
        ..pod("etcd", &["10.1.0.9"], 1)
    };
    report(&mut store, KUBELET, 1, Object::Pod(own));
    report(&mut store, API, 2, Object::Pod(claim("thief-2", "hash")));
    assert_eq!(&*found(&mut store, "hash").unwrap().name, "etcd");
    assert_eq!(holder(&mut store, "10.1.0.9", at(3)).as_deref(), Some("etcd"));
    // Two claims of a UID that no source lists.
    report(&mut store, API, 2, Object::Pod(claim("copy", "unlisted")));
    assert_eq!(&*found(&mut store, "unlisted").unwrap().name, "copy");
    report(&mut store, API, 3, Object::Pod(claim("thief-3", "unlisted")));
    assert_eq!(found(&mut store, "unlisted"), None, "no name beats a wrong one");
    for name in ["copy", "thief-3"] {
        apply(&mut store, API, 4, Change::Delete(Key::Pod(name.to_owned())));
    }
    assert_eq!(found(&mut store, "unlisted"), None, "both are gone");
}

#[test]
fn workload_changes_when_its_controller_is_reported() {
    let mut store = Store::default();
    let of_set = PodObject {
        owner: owner("ReplicaSet", "web-1", "set"),
        ..pod("a", &[], 1)
    };
    report(&mut store, API, 2, Object::Pod(of_set));
    let kind = |store: &mut Store| found(store, "a").and_then(|pod| Some(pod.workload.as_ref()?.kind.to_string()));
    assert_eq!(kind(&mut store).as_deref(), Some("ReplicaSet"));
    let mut set = ControllerObject {
        kind: Kind::ReplicaSets,
        uid: "set".to_owned(),
        namespace: "other".to_owned(),
        owner: match owner("Deployment", "web", "top") {
            Owner::By(owner) => Some(owner),
            _ => None,
        },
    };
    report(&mut store, API, 3, Object::Controller(set.clone()));
    assert_eq!(
        kind(&mut store).as_deref(),
        Some("ReplicaSet"),
        "a ReplicaSet of another namespace"
    );
    set.namespace = "shop".to_owned();
    set.uid = "set".to_owned();
    apply(&mut store, API, 4, Change::Delete(Key::Controller("set".to_owned())));
    report(&mut store, API, 4, Object::Controller(set));
    assert_eq!(kind(&mut store).as_deref(), Some("Deployment"));
}
