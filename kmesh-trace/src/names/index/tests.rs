use super::*;
use crate::names::local::cgroup::PodCgroup;
use crate::names::update::{ContainerObject, NodeObject, PodObject, ServiceObject, ServicePort, SourceId, TargetPort};
use crate::record::ContainerId;
use crate::render::testing::example;

const SECOND: i64 = 1_000_000_000;
const WEB: &str = "11111111-1111-1111-1111-111111111111";
const DB: &str = "22222222-2222-2222-2222-222222222222";
const AGENT: &str = "33333333-3333-3333-3333-333333333333";
const UNKNOWN: &str = "44444444-4444-4444-4444-444444444444";

fn at(seconds: i64) -> WallTime {
    WallTime(seconds * SECOND)
}

fn id() -> ContainerId {
    ContainerId::new(&"3f".repeat(32)).unwrap()
}

fn pod(uid: &str, name: &str, ip: &str, host_network: bool) -> Object {
    Object::Pod(PodObject {
        uid: uid.to_owned(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        labels: Some(vec![("app".to_owned(), name.to_owned())]),
        host_network: Some(host_network),
        ips: vec![ip.parse().unwrap()],
        started: Some(at(10)),
        containers: vec![ContainerObject {
            name: "main".to_owned(),
            id: Some(id()),
            ports: Vec::new(),
        }],
        ..PodObject::default()
    })
}

/// Pods `web` and `db`, `agent` on the node's own address, and a Service of `db`.
fn index() -> Index {
    let db = ServiceObject {
        namespace: "shop".to_owned(),
        name: "database".to_owned(),
        cluster_ips: vec!["10.96.0.1".parse().unwrap()],
        selector: vec![("app".to_owned(), "db".to_owned())],
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
        ips: vec!["192.168.0.1".parse().unwrap()],
    };
    let mut index = Index::default();
    for fact in [
        pod(WEB, "web", "10.1.0.5", false),
        pod(DB, "db", "10.1.0.6", false),
        pod(AGENT, "agent", "192.168.0.1", true),
        Object::Service(db),
        Object::Node(node),
    ] {
        index.learn(&SourceUpdate {
            source: SourceId(0),
            at: at(20),
            change: Change::Upsert(fact),
        });
    }
    index
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

fn in_pods(uids: &[&str]) -> Shown {
    Shown {
        place: Some(Arc::new(CgroupOwner {
            pod: uids.first().map(|uid| PodCgroup {
                root: "/kubepods".into(),
                uid: Arc::from(*uid),
            }),
            container: Some(id()),
        })),
        ..Shown::default()
    }
}

fn in_nodes(shown: Shown) -> Shown {
    Shown {
        in_nodes_netns: true,
        ..shown
    }
}

fn by_netns(uid: &str) -> Shown {
    Shown {
        netns_pod: Some(uid.into()),
        ..Shown::default()
    }
}

fn translated(shown: Shown, backend: &str) -> Shown {
    Shown {
        backend: Some(backend.parse().unwrap()),
        ..shown
    }
}

fn end(end: &End) -> String {
    match (&end.pod, &end.node) {
        (Some(pod), _) => pod.name.to_string(),
        (None, Some(node)) => format!("node {node}"),
        (None, None) => "-".to_owned(),
    }
}

/// `src dst service`, `container` behind it when there is one, and `?` when it is unresolved.
fn words(record: &Record) -> String {
    let names = &record.names;
    let service = names.service.as_ref();
    let service = service.map_or("-".to_owned(), |called| {
        format!("{}/{}", called.service.name, called.by.name())
    });
    let container = names
        .container
        .as_deref()
        .map_or(String::new(), |name| format!(" {name}"));
    let mark = if names.unresolved { " ?" } else { "" };
    format!("{} {} {service}{container}{mark}", end(&names.src), end(&names.dst))
}

#[test]
fn both_ends_by_what_is_certain() {
    use Direction::{Inbound, Outbound};
    const WEB_END: &str = "10.1.0.5:40000";
    const DB_END: &str = "10.1.0.6:15432";
    const NODE: &str = "192.168.0.1:40000";
    let cases = [
        // The cgroup names the local end, the address the other.
        (
            Outbound,
            WEB_END,
            DB_END,
            in_pods(&[WEB]),
            "web db database/target_port main",
        ),
        (
            Inbound,
            WEB_END,
            DB_END,
            in_pods(&[DB]),
            "web db database/target_port main",
        ),
        (Inbound, WEB_END, "10.1.0.6:1", in_pods(&[DB]), "web db - main"),
        // Whatever the address says.
        (
            Outbound,
            WEB_END,
            DB_END,
            in_pods(&[DB]),
            "db db database/target_port main",
        ),
        // A pod that nobody knows is not another one.
        (
            Outbound,
            WEB_END,
            DB_END,
            in_pods(&[UNKNOWN]),
            "- db database/target_port ?",
        ),
        // The network namespace, then the address.
        (
            Outbound,
            "10.9.9.9:1",
            DB_END,
            by_netns(WEB),
            "web db database/target_port",
        ),
        (
            Outbound,
            WEB_END,
            DB_END,
            by_netns(UNKNOWN),
            "- db database/target_port",
        ),
        (
            Outbound,
            WEB_END,
            DB_END,
            Shown::default(),
            "web db database/target_port",
        ),
        // In the node's own namespace no address is a pod's.
        (
            Outbound,
            WEB_END,
            DB_END,
            in_nodes(Shown::default()),
            "- db database/target_port",
        ),
        // Pods on the node's address are known by their cgroup alone.
        (
            Outbound,
            NODE,
            DB_END,
            in_nodes(in_pods(&[AGENT])),
            "agent db database/target_port main",
        ),
        (
            Outbound,
            NODE,
            DB_END,
            in_nodes(Shown::default()),
            "node worker-1 db database/target_port",
        ),
        (
            Inbound,
            NODE,
            DB_END,
            in_pods(&[DB]),
            "node worker-1 db database/target_port main",
        ),
        (
            Outbound,
            WEB_END,
            "192.168.0.1:22",
            in_pods(&[WEB]),
            "web node worker-1 - main",
        ),
        // What a pod calls within its own namespace is itself; on the node's it may be anybody.
        (
            Outbound,
            "127.0.0.1:1",
            "127.0.0.1:2",
            in_pods(&[WEB]),
            "web web - main",
        ),
        (Outbound, "[::1]:1", "[::1]:2", in_pods(&[WEB]), "web web - main"),
        (
            Outbound,
            "127.0.0.1:1",
            "127.0.0.1:2",
            in_nodes(in_pods(&[AGENT])),
            "agent - - main",
        ),
        (Outbound, "127.0.0.1:1", "127.0.0.1:2", Shown::default(), "- - -"),
        // What was dialled.
        (
            Outbound,
            WEB_END,
            "10.96.0.1:5432",
            in_pods(&[WEB]),
            "web - database/vip main",
        ),
        (
            Outbound,
            WEB_END,
            "10.96.0.1:5432",
            translated(in_pods(&[WEB]), DB_END),
            "web db database/vip main",
        ),
        (
            Outbound,
            WEB_END,
            "192.168.0.1:30543",
            in_pods(&[WEB]),
            "web node worker-1 database/vip main",
        ),
        (
            Outbound,
            WEB_END,
            "192.168.0.9:30543",
            translated(in_pods(&[WEB]), DB_END),
            "web db database/vip main",
        ),
        (
            Outbound,
            WEB_END,
            "203.0.113.7:80",
            translated(in_pods(&[WEB]), DB_END),
            "web db database/target_port main",
        ),
        // A listener's own address was not dialled by it.
        (Inbound, WEB_END, "10.96.0.1:5432", in_pods(&[DB]), "web db - main"),
        (Outbound, WEB_END, "203.0.113.7:443", in_pods(&[WEB]), "web - - main"),
    ];
    for (direction, src, dst, shown, expected) in cases {
        let mut record = record(direction, src, dst);
        index().name(&mut record, &shown);
        assert_eq!(words(&record), expected, "{direction:?} {src} {dst} {shown:?}");
        let (dialled, backend) = (dst.parse().unwrap(), shown.backend);
        assert_eq!(record.socket_dst(), dialled);
        assert_eq!(record.dst, backend.unwrap_or(dialled));
        assert_eq!(record.names.original_dst, backend.map(|_| dialled));
    }
}

#[test]
fn the_time_is_when_the_connection_began() {
    let shown = in_pods(&[WEB]);
    let name_at = |start: Option<i64>, observed: i64| {
        let mut one = Record {
            start: start.map(at),
            observed_ns: (observed * SECOND) as u64,
            preexisting: start.is_none(),
            ..record(Direction::Outbound, "10.1.0.5:40000", "10.1.0.6:1")
        };
        let mut index = index();
        index.learn(&SourceUpdate {
            source: SourceId(0),
            at: at(35),
            change: Change::Delete(Key::Pod(DB.to_owned())),
        });
        index.name(&mut one, &shown);
        end(&one.names.dst)
    };
    assert_eq!(name_at(Some(34), 6), "db");
    assert_eq!(name_at(Some(36), 4), "-");
    assert_eq!(name_at(Some(9), 31), "-", "before it was started");
    // One that was there before tracing: when tracing began.
    assert_eq!(name_at(None, 6), "db");
    assert_eq!(name_at(None, 4), "-");
    assert_eq!(name_at(None, 40), "-");
}

/// Two pods on one address within a second, both on this node, and no source quick enough: the kernel itself shows who is who.
#[test]
fn no_late_source_misleads() {
    let mut index = index();
    // `db` has gone, unheard; somebody else listens there now.
    let mut own = Record {
        start: Some(at(33)),
        ..record(Direction::Inbound, "10.1.0.5:1", "10.1.0.6:15432")
    };
    index.name(&mut own, &in_pods(&[UNKNOWN]));
    assert_eq!(words(&own), "web - - ?");
    let mut others = Record {
        start: Some(at(34)),
        ..record(Direction::Outbound, "10.1.0.5:1", "10.1.0.6:15432")
    };
    index.name(&mut others, &in_pods(&[WEB]));
    assert_eq!(words(&others), "web - - main");
}

#[test]
fn lists_of_every_kind_end() {
    let mut index = index();
    let tell = |index: &mut Index, news: Change| {
        index.learn(&SourceUpdate {
            source: SourceId(0),
            at: at(25),
            change: news,
        });
    };
    for kind in [
        Kind::Pods,
        Kind::Services,
        Kind::Endpoints,
        Kind::ReplicaSets,
        Kind::Nodes,
    ] {
        tell(&mut index, Change::ListStart(Scope::All(kind)));
        tell(&mut index, Change::ListEnd(Scope::All(kind)));
    }
    let mut one = record(Direction::Outbound, "192.168.0.1:1", "10.96.0.1:5432");
    index.name(&mut one, &Shown::default());
    assert_eq!(words(&one), "- - -");
    assert!(index.knows(WEB), "remembered, for its last connections");
}
