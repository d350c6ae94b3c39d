//! The names of a record's ends.

use super::*;
use crate::names::local::cgroup::PodCgroup;
use crate::names::update::{ServiceObject, ServicePort, TargetPort};
use crate::output::testing::example;

const ROOT: &str = "/kubepods";
const OTHER_ROOT: &str = "/docker/2b/kubelet/kubepods";

fn labelled(name: &str, address: &str, host_network: bool) -> Object {
    Object::Pod(PodObject {
        node: Some("worker-1".to_owned()),
        labels: Some(pairs(&format!("app={name}"))),
        host_network: Some(host_network),
        containers: vec![ContainerObject {
            name: "main".to_owned(),
            id: Some(container_id()),
            ports: Vec::new(),
        }],
        ..pod(name, &[address], 10)
    })
}

/// Pods `web` and `db`, `agent` on the node's own address, and a Service of `db`.
fn store() -> Store {
    let database = ServiceObject {
        namespace: "shop".to_owned(),
        name: "database".to_owned(),
        cluster_ips: vec![ip("10.96.0.1")],
        selector: pairs("app=db"),
        ports: vec![ServicePort {
            name: String::new(),
            port: 5432,
            target: TargetPort::Number(15432),
            node_port: Some(30543),
        }],
        ..ServiceObject::default()
    };
    let node = NodeObject {
        name: "worker-1".to_owned(),
        ips: vec![ip("192.168.0.1")],
    };
    let mut store = Store::default();
    for object in [
        labelled("web", "10.1.0.5", false),
        labelled("db", "10.1.0.6", false),
        labelled("agent", "192.168.0.1", true),
        Object::Service(database),
        Object::Node(node),
    ] {
        report(&mut store, API, 20, object);
    }
    store.add_pod_under(&ROOT.into(), "web");
    store
}

fn record(direction: Direction, src: &str, dst: &str) -> Record {
    Record {
        direction,
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        start: Some(at(30)),
        time: at(40),
        observed_ns: 10 * SECOND as u64,
        ..example()
    }
}

fn under(root: &str, uid: &str) -> LocalContext {
    let pod = Some(PodCgroup {
        root: root.into(),
        uid: uid.into(),
    });
    let container = Some(container_id());
    LocalContext {
        owner: Some(Arc::new(CgroupOwner { pod, container })),
        is_netns_of_root: true,
        ..LocalContext::default()
    }
}

fn in_pod(uid: &str) -> LocalContext {
    under(ROOT, uid)
}

/// A process in no container, in a network namespace that root made.
fn in_namespace() -> LocalContext {
    LocalContext {
        is_netns_of_root: true,
        ..LocalContext::default()
    }
}

fn in_container() -> LocalContext {
    let (pod, container) = (None, Some(container_id()));
    LocalContext {
        owner: Some(Arc::new(CgroupOwner { pod, container })),
        ..in_namespace()
    }
}

fn on_node(local: LocalContext) -> LocalContext {
    LocalContext {
        is_in_node_netns: true,
        ..local
    }
}

fn in_netns_of(uid: &str) -> LocalContext {
    LocalContext {
        netns_pod: Some(PodCgroup {
            root: ROOT.into(),
            uid: uid.into(),
        }),
        ..in_namespace()
    }
}

fn translated(local: LocalContext, backend: &str) -> LocalContext {
    LocalContext {
        backend: Some(backend.parse().unwrap()),
        ..local
    }
}

fn end(end: &End) -> String {
    match (&end.pod, &end.node) {
        (Some(pod), _) => pod.name.to_string(),
        (None, Some(node)) => format!("node {node}"),
        (None, None) => "-".to_owned(),
    }
}

/// `src dst service`, the container if it has a name, and `?` if the local pod is unresolved.
fn text(record: &Record) -> String {
    let names = &record.names;
    let service = names.service.as_ref();
    let service = service.map(|found| format!("{}/{}", found.service.name, found.by.name()));
    let service = service.as_deref().unwrap_or("-");
    let container = names.container.as_deref().map(|name| format!(" {name}"));
    let container = container.unwrap_or_default();
    let mark = if names.unresolved { " ?" } else { "" };
    format!("{} {} {service}{container}{mark}", end(&names.src), end(&names.dst))
}

fn annotated(store: &mut Store, mut record: Record, local: &LocalContext, now: i64) -> String {
    store.annotate(&mut record, local, at(now));
    text(&record)
}

#[test]
fn both_ends_have_the_names_that_are_certain() {
    use Direction::{Inbound as In, Outbound as Out};
    const WEB: &str = "10.1.0.5:40000";
    const DB: &str = "10.1.0.6:15432";
    const NODE: &str = "192.168.0.1:40000";
    const OTHER: &str = "10.9.9.9:1";
    const VIP: &str = "10.96.0.1:5432";
    const OUTSIDE: &str = "203.0.113.7:443";
    const LOCAL: [&str; 2] = ["127.0.0.1:1", "127.0.0.1:2"];
    const LOCAL6: [&str; 2] = ["[::1]:1", "[::1]:2"];
    let nowhere = LocalContext::default;
    let to_db = |local| translated(local, DB);
    let cases = [
        // The cgroup names the local end, the address the other.
        (Out, [WEB, DB], in_pod("web"), "web db database/target_port main"),
        (In, [WEB, DB], in_pod("db"), "web db database/target_port main"),
        (In, [WEB, "10.1.0.6:1"], in_pod("db"), "web db - main"),
        // Whatever address it has.
        (Out, [WEB, DB], in_pod("db"), "db db database/target_port main"),
        // A pod that no source knows is not another pod.
        (Out, [WEB, DB], in_pod("unknown"), "- db database/target_port ?"),
        // Without a pod's cgroup: the network namespace of the pod, else the address.
        (Out, [OTHER, DB], in_netns_of("web"), "web db database/target_port"),
        (Out, [WEB, DB], in_netns_of("unknown"), "- db database/target_port"),
        (Out, [WEB, DB], in_namespace(), "web db database/target_port"),
        // Only root chooses the addresses of a namespace that it made. A container outside of pods is no pod.
        (Out, [WEB, DB], nowhere(), "- db database/target_port"),
        (Out, [WEB, DB], in_container(), "- db database/target_port"),
        (Out, [NODE, DB], in_namespace(), "node worker-1 db database/target_port"),
        (Out, [NODE, DB], nowhere(), "- db database/target_port"),
        (Out, [NODE, DB], in_container(), "- db database/target_port"),
        (Out, [NODE, DB], in_pod("unknown"), "- db database/target_port ?"),
        // In the node's own namespace no address is a pod's.
        (Out, [WEB, DB], on_node(in_namespace()), "- db database/target_port"),
        // A pod on the node's address is known by its cgroup alone.
        (
            Out,
            [NODE, DB],
            on_node(in_pod("agent")),
            "agent db database/target_port main",
        ),
        (
            Out,
            [NODE, DB],
            on_node(nowhere()),
            "node worker-1 db database/target_port",
        ),
        (
            In,
            [NODE, DB],
            in_pod("db"),
            "node worker-1 db database/target_port main",
        ),
        (Out, [WEB, "192.168.0.1:22"], in_pod("web"), "web node worker-1 - main"),
        // What a pod reaches in its own namespace is the pod; in the node's namespace it may be any process.
        (Out, LOCAL, in_pod("web"), "web web - main"),
        (Out, LOCAL6, in_pod("web"), "web web - main"),
        (Out, LOCAL, on_node(in_pod("agent")), "agent - - main"),
        (Out, LOCAL, in_namespace(), "- - -"),
        // The address that the client dialled.
        (Out, [WEB, VIP], in_pod("web"), "web - database/vip main"),
        (Out, [WEB, VIP], to_db(in_pod("web")), "web db database/vip main"),
        (
            Out,
            [WEB, "192.168.0.1:30543"],
            in_pod("web"),
            "web node worker-1 database/vip main",
        ),
        (
            Out,
            [WEB, "192.168.0.9:30543"],
            to_db(in_pod("web")),
            "web db database/vip main",
        ),
        (
            Out,
            [WEB, OUTSIDE],
            to_db(in_pod("web")),
            "web db database/target_port main",
        ),
        // A listener did not dial its own address.
        (In, [WEB, VIP], in_pod("db"), "web db - main"),
        (Out, [WEB, OUTSIDE], in_pod("web"), "web - - main"),
    ];
    for (direction, [src, dst], local, expected) in cases {
        let mut record = record(direction, src, dst);
        store().annotate(&mut record, &local, at(41));
        assert_eq!(text(&record), expected, "{direction:?} {src} {dst} {local:?}");
        let (dialled, backend) = (dst.parse().unwrap(), local.backend);
        assert_eq!(record.socket_dst(), dialled);
        assert_eq!(record.dst, backend.unwrap_or(dialled));
        assert_eq!(record.names.original_dst, backend.map(|_| dialled));
    }
}

/// The node's namespace has an entry with the same four numbers.
#[test]
fn translation_counts_only_where_the_node_sees_the_packets() {
    const DB: &str = "10.1.0.6:15432";
    const WEB: &str = "10.1.0.5:40000";
    const NODE: &str = "192.168.0.1:40000";
    const OTHER: &str = "10.9.9.9:40000";
    let nowhere = LocalContext::default;
    let cases = [
        ("of the node", NODE, on_node(nowhere()), true),
        ("of a pod", WEB, in_pod("web"), true),
        ("by the pod's namespace", WEB, in_netns_of("web"), true),
        ("by the pod's address", WEB, in_namespace(), true),
        ("of an unknown namespace", OTHER, in_namespace(), false),
        ("of another user's namespace", WEB, nowhere(), false),
        ("of a container that is no pod's", WEB, in_container(), false),
        // A process of the pod can make a namespace in the pod's cgroup and give it any address.
        ("of another pod's address", WEB, in_pod("db"), false),
        ("of an address that is no pod's", OTHER, in_pod("web"), false),
        ("of a pod that no source knows", OTHER, in_pod("unknown"), false),
    ];
    for (what, src, local, expected) in cases {
        let mut record = record(Direction::Outbound, src, "10.96.0.1:5432");
        store().annotate(&mut record, &translated(local, DB), at(41));
        let is_translated = record.dst == DB.parse().unwrap();
        let is_reported = record.names.original_dst == Some("10.96.0.1:5432".parse().unwrap());
        assert_eq!((is_translated, is_reported), (expected, expected), "{what}");
    }
}

/// A source that lists no addresses, such as log folders, and a pod so young that it has none in the list yet.
#[test]
fn translation_counts_for_a_pod_whose_address_is_not_listed_yet() {
    let mut store = store();
    let young = Object::Pod(PodObject {
        uid: "young".to_owned(),
        name: "young".to_owned(),
        ..PodObject::default()
    });
    apply(&mut store, API, 30, Change::Upsert(young));
    for (src, expected) in [("10.1.0.77:40000", true), ("10.1.0.5:40000", false)] {
        let mut record = record(Direction::Outbound, src, "10.96.0.1:5432");
        store.annotate(&mut record, &translated(in_pod("young"), "10.1.0.6:15432"), at(41));
        assert_eq!(record.names.original_dst.is_some(), expected, "{src}");
    }
}

#[test]
fn address_names_its_pod_at_the_start_of_the_connection() {
    let name_at = |start: Option<i64>, observed: i64| {
        let mut one = Record {
            start: start.map(at),
            observed_ns: (observed * SECOND) as u64,
            preexisting: start.is_none(),
            ..record(Direction::Outbound, "10.1.0.5:40000", "10.1.0.6:1")
        };
        let mut store = store();
        apply(&mut store, API, 35, Change::Delete(Key::Pod("db".to_owned())));
        store.annotate(&mut one, &in_pod("web"), at(41));
        end(&one.names.dst)
    };
    assert_eq!(name_at(Some(34), 6), "db");
    assert_eq!(name_at(Some(36), 4), "-");
    assert_eq!(name_at(Some(9), 31), "-", "before the pod started");
    // A connection older than the tracer: its start counts as that of tracing.
    assert_eq!(name_at(None, 6), "db");
    assert_eq!(name_at(None, 4), "-");
    assert_eq!(name_at(None, 40), "-");
}

/// A pod is gone, and a new pod has its address, both on this node. The source is late with both.
#[test]
fn address_used_by_an_unknown_pod_names_no_pod_until_the_source_answers() {
    const DB: &str = "web db database/target_port main";
    let mut store = store();
    let web = || pod("web", &["10.1.0.5"], 10);
    for seconds in [20, 21] {
        list(&mut store, KUBELET, seconds, vec![web()]);
    }
    let to_db = |start: i64| Record {
        start: Some(at(start)),
        ..record(Direction::Outbound, "10.1.0.5:1", "10.1.0.6:15432")
    };
    assert_eq!(annotated(&mut store, to_db(33), &in_pod("web"), 40), DB);
    let of_new_pod = Record {
        direction: Direction::Inbound,
        ..to_db(33)
    };
    assert_eq!(annotated(&mut store, of_new_pod, &in_pod("new"), 40), "web - - ?");
    for start in [32, 33, 40] {
        let names = annotated(&mut store, to_db(start), &in_pod("web"), 40);
        assert_eq!(names, "web - - main", "{start}");
    }
    let names = annotated(&mut store, to_db(30), &in_pod("web"), 40);
    assert_eq!(names, DB, "a connection to the former pod");
    // The answers to an earlier request, and about another node, change nothing.
    let end_of = |node: &str| Change::ListEnd(Scope::PodsOfNode(node.to_owned()));
    for _ in 0..2 {
        apply(&mut store, API, 41, end_of("elsewhere"));
    }
    list(&mut store, KUBELET, 39, vec![web()]);
    assert_eq!(annotated(&mut store, to_db(40), &in_pod("web"), 41), "web - - main");
    apply(&mut store, API, 41, Change::Delete(Key::Pod("db".to_owned())));
    list(&mut store, KUBELET, 41, vec![web(), pod("new", &["10.1.0.6"], 32)]);
    for _ in 0..2 {
        let start = Change::ListStart(Scope::PodsOfNode("worker-1".to_owned()));
        apply(&mut store, API, 42, start);
        report(&mut store, API, 42, labelled("web", "10.1.0.5", false));
        apply(&mut store, API, 42, end_of("worker-1"));
    }
    assert_eq!(annotated(&mut store, to_db(42), &in_pod("web"), 42), "web new - main");
}

/// Attempts with the victim's address: from a pod that the source knows, and from a user's own network namespace.
#[test]
fn socket_takes_no_other_pods_address() {
    let victim = || Record {
        start: Some(at(35)),
        ..record(Direction::Outbound, "10.1.0.5:1", "10.1.0.6:15432")
    };
    let attempt = |src: &str| Record {
        start: Some(at(34)),
        ..record(Direction::Outbound, src, "10.1.0.5:9")
    };
    let of_a_user = LocalContext::default();
    for local in [in_pod("web"), of_a_user, on_node(in_pod("agent"))] {
        let mut store = store();
        annotated(&mut store, attempt("10.1.0.6:1"), &local, 36);
        let named = annotated(&mut store, victim(), &in_pod("web"), 37);
        assert_eq!(named, "web db database/target_port main", "{local:?}");
    }
}

/// Two kubelets on one machine, with the same addresses: kind, k3d, minikube.
#[test]
fn pod_of_another_cluster_gives_and_gets_no_names() {
    let mut store = store();
    let to_db = || record(Direction::Outbound, "10.1.0.5:1", "10.1.0.6:15432");
    assert_eq!(
        annotated(&mut store, to_db(), &under(OTHER_ROOT, "foreign"), 41),
        "- - -"
    );
    let names = annotated(&mut store, to_db(), &in_pod("web"), 41);
    assert_eq!(
        names, "web db database/target_port main",
        "the foreign socket raised no doubt"
    );
    // The same API server may have both kubelets.
    store.add_pod_under(&OTHER_ROOT.into(), "db");
    let names = annotated(&mut store, to_db(), &under(OTHER_ROOT, "db"), 41);
    assert_eq!(names, "db db database/target_port main");
}

#[test]
fn source_names_only_pods_of_its_own_clusters() {
    let mut store = store();
    report(&mut store, KUBELET, 20, Object::Pod(pod("foreign", &["10.2.0.5"], 10)));
    store.add_pod_under(&OTHER_ROOT.into(), "foreign");
    let to = |dst: &str| record(Direction::Outbound, "10.9.0.9:1", dst);
    for (local, dst, expected) in [
        (under(OTHER_ROOT, "foreign"), "10.1.0.6:15432", "foreign - -"),
        (in_pod("web"), "10.2.0.5:1", "web - - main"),
        (in_pod("web"), "10.96.0.1:5432", "web - database/vip main"),
        (under(OTHER_ROOT, "foreign"), "10.96.0.1:5432", "foreign - -"),
    ] {
        assert_eq!(annotated(&mut store, to(dst), &local, 41), expected, "{dst} {local:?}");
    }
}

#[test]
fn empty_list_of_each_kind_ends_its_objects() {
    let mut store = store();
    for kind in Kind::ALL {
        apply(&mut store, API, 25, Change::ListStart(Scope::All(kind)));
        apply(&mut store, API, 25, Change::ListEnd(Scope::All(kind)));
    }
    let one = record(Direction::Outbound, "192.168.0.1:1", "10.96.0.1:5432");
    assert_eq!(annotated(&mut store, one, &LocalContext::default(), 41), "- - -");
    assert!(store.knows("web"), "remembered, for its last connections");
}
