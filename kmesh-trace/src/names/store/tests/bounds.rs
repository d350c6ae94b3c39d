//! The memory and the time that a cluster may take, whatever its objects are.

use super::*;
use crate::names::fixture::{self, PODS, pod_ip};
use crate::names::update::{ServiceObject, ServicePort, TargetPort};
use crate::output::allocations::{allocations, live_bytes};
use crate::output::testing::example;

#[test]
fn large_cluster_fits_in_memory() {
    let before = live_bytes();
    let store = fixture::store(fixture::objects());
    let taken = live_bytes() - before;
    assert!(taken <= 128 << 20, "{taken} bytes");
    assert_eq!((store.pods(), store.left_out), (PODS as usize, 0));
}

#[test]
fn annotating_allocates_nothing_once_a_pod_is_known() {
    let mut store = fixture::store(fixture::objects().filter(|object| !matches!(object, Object::Node(_))));
    let mut records: Vec<_> = (0..1_000)
        .map(|number| Record {
            direction: Direction::Outbound,
            src: SocketAddr::new(pod_ip(number), 40_000),
            dst: SocketAddr::new(pod_ip(PODS - 1 - number), 8080),
            start: Some(WallTime(2_000_000)),
            ..example()
        })
        .collect();
    let local = LocalContext {
        is_netns_of_root: true,
        ..LocalContext::default()
    };
    let mut annotate_all = || {
        let before = allocations();
        for record in &mut records {
            store.annotate(record, &local, WallTime(2_000_000));
            assert!(record.names.src.pod.is_some() && record.names.dst.pod.is_some() && record.names.service.is_some());
        }
        allocations() - before
    };
    assert!(annotate_all() > 0, "the count counts");
    assert_eq!(annotate_all(), 0);
}

/// A tenant's objects fill the budget: its own are left out, those of others are not.
#[test]
fn one_namespace_cannot_use_up_the_memory_of_others() {
    let mut store = Store::default();
    let huge = |number: usize| PodObject {
        namespace: "greedy".to_owned(),
        labels: Some(
            (0..500)
                .map(|label| (format!("{number}-{label}"), "x".repeat(100)))
                .collect(),
        ),
        ..pod(&format!("greedy-{number}"), &[], 1)
    };
    let before = live_bytes();
    for number in 0..10_000 {
        report(&mut store, API, 1, Object::Pod(huge(number)));
    }
    let taken = live_bytes() - before;
    assert!(
        store.left_out > 0 && taken < 216 << 20,
        "{} left out, {taken} bytes",
        store.left_out
    );
    assert!(store.warning().is_some() && store.warning().is_none());
    report(&mut store, API, 2, Object::Pod(pod("modest", &["10.1.0.5"], 1)));
    assert_eq!(holder(&mut store, "10.1.0.5", at(3)).as_deref(), Some("modest"));
}

/// When a known pod grows beyond the budget, its stored state is no longer true.
#[test]
fn update_without_room_removes_the_pod() {
    let mut store = Store::default();
    store.shared.budget = budget::MemoryBudget::new(10_000);
    report(&mut store, API, 1, Object::Pod(pod("a", &["10.1.0.5"], 1)));
    let grown = PodObject {
        labels: Some((0..500).map(|label| (format!("{label}"), "x".repeat(100))).collect()),
        ..pod("a", &["10.1.0.6"], 1)
    };
    report(&mut store, API, 10, Object::Pod(grown));
    assert_eq!(holder(&mut store, "10.1.0.5", at(11)), None);
    assert_eq!((store.left_out, store.pods()), (1, 0));
}

#[test]
fn gone_pods_are_remembered_for_half_an_hour_and_bounded() {
    let mut store = Store::default();
    let delete =
        |store: &mut Store, time, name: &str| apply(store, API, time, Change::Delete(Key::Pod(name.to_owned())));
    report(&mut store, API, 10, Object::Pod(pod("a", &["10.1.0.5"], 1)));
    delete(&mut store, 20, "a");
    assert!(found(&mut store, "a").is_some());
    delete(&mut store, 20 + 31 * 60, "nothing");
    assert!(found(&mut store, "a").is_none());
    // A tenant's pods do not push out those of another namespace.
    let quiet = PodObject {
        namespace: "quiet".to_owned(),
        ..pod("quiet", &["10.2.0.5"], 9_000)
    };
    report(&mut store, API, 10_000, Object::Pod(quiet));
    delete(&mut store, 10_000, "quiet");
    for number in 0..pods::MAX_REMEMBERED + 5_000 {
        let name = format!("pod-{number}");
        let address = format!("10.1.{}.{}", number % 199, number % 211);
        report(&mut store, API, 10_000, Object::Pod(pod(&name, &[&address], 9_000)));
        delete(&mut store, 10_001, &name);
    }
    assert_eq!(store.pods.remembered(), pods::MAX_REMEMBERED);
    assert_eq!(holder(&mut store, "10.2.0.5", at(9_500)).as_deref(), Some("quiet"));
}

#[test]
fn odd_objects_do_no_harm() {
    let mut store = Store::default();
    report(&mut store, API, 1, Object::Pod(PodObject::default()));
    assert!(found(&mut store, "").is_none());
    let odd = PodObject {
        uid: "\"\n\u{202e}".to_owned(),
        static_uid: Some("\"\n\u{202e}".to_owned()),
        name: "a,b=c".to_owned(),
        ips: (0..=255).map(|last| IpAddr::from([10, 1, 0, last])).collect(),
        started: Some(WallTime(i64::MIN)),
        ..PodObject::default()
    };
    for time in [i64::MAX, i64::MIN] {
        store.apply(&SourceUpdate {
            source: SourceId(u8::MAX),
            at: WallTime(time),
            change: Change::Upsert(Object::Pod(odd.clone())),
        });
    }
    assert_eq!(&*found(&mut store, &odd.uid).unwrap().name, "a,b=c");
    store.apply(&SourceUpdate {
        source: SourceId(u8::MAX),
        at: WallTime(i64::MIN),
        change: Change::Delete(Key::Pod(odd.uid.clone())),
    });
    assert_eq!(store.pods(), 0);
}

/// 20,000 Services select one pod. Only a change in the pod's namespace costs a look-up.
#[test]
fn cost_of_a_record_does_not_grow_with_the_number_of_services() {
    let mut store = Store::default();
    let server = PodObject {
        labels: Some(pairs("app=web")),
        ..pod("server", &["10.1.0.5"], 1)
    };
    report(&mut store, API, 1, Object::Pod(server));
    let service = |number: usize| ServiceObject {
        namespace: "shop".to_owned(),
        name: format!("s{number:05}"),
        selector: pairs("app=web"),
        ports: vec![ServicePort {
            name: String::new(),
            port: 80,
            target: TargetPort::Number(8080),
            node_port: None,
        }],
        ..ServiceObject::default()
    };
    for number in 0..20_000 {
        report(&mut store, API, 2, Object::Service(service(number)));
    }
    let record = || Record {
        direction: Direction::Outbound,
        src: "10.9.0.1:40000".parse().unwrap(),
        dst: "10.1.0.5:8080".parse().unwrap(),
        start: Some(at(3)),
        ..example()
    };
    let mut first = record();
    store.annotate(&mut first, &LocalContext::default(), at(3));
    let called = first.names.service.unwrap();
    assert_eq!((&*called.service.name, called.ambiguous), ("s00000", true));
    // A remembered match needs no second look-up.
    let looked_up = store.services.lookups.get();
    for _ in 0..1_000 {
        store.annotate(&mut record(), &LocalContext::default(), at(3));
    }
    assert_eq!(store.services.lookups.get(), looked_up);
    report(
        &mut store,
        API,
        4,
        Object::Service(ServiceObject {
            namespace: "other".to_owned(),
            ..service(0)
        }),
    );
    store.annotate(&mut record(), &LocalContext::default(), at(5));
    assert_eq!(store.services.lookups.get(), looked_up, "a change in another namespace");
    report(
        &mut store,
        API,
        6,
        Object::Service(ServiceObject {
            name: "another".to_owned(),
            ..service(0)
        }),
    );
    let mut changed = Record {
        start: Some(at(7)),
        ..record()
    };
    store.annotate(&mut changed, &LocalContext::default(), at(7));
    assert_eq!(
        changed
            .names
            .service
            .map(|called| called.service.name.to_string())
            .as_deref(),
        Some("another")
    );
    assert_eq!(store.services.lookups.get(), looked_up + 1);
}

/// A user chooses the texts of owner references.
#[test]
fn long_owner_references_count() {
    use crate::names::update::{ControllerRef, Owner};
    let mut store = Store::default();
    store.shared.budget = budget::MemoryBudget::new(10_000);
    let owned = |uid: &str, length: usize| PodObject {
        owner: Owner::By(ControllerRef {
            kind: "ReplicaSet".to_owned(),
            name: "n".repeat(length),
            uid: "u".to_owned(),
        }),
        ..pod(uid, &[], 1)
    };
    report(&mut store, API, 1, Object::Pod(owned("a", 100)));
    report(&mut store, API, 1, Object::Pod(owned("b", 10_000)));
    assert_eq!((store.pods(), store.left_out), (1, 1));
}
