//! A large cluster that is none, for tests and benchmarks: what sources tell of it.

use std::net::{IpAddr, SocketAddr};

use super::store::Store;
use super::update::{
    Change, ContainerObject, ControllerObject, ControllerRef, EndpointsObject, Kind, NodeObject, Object, Owner,
    PodObject, ServiceObject, ServicePort, SourceId, SourceUpdate, TargetPort,
};
use crate::record::{ContainerId, WallTime};

/// Pods.
pub const PODS: u32 = 100_000;
/// Services, each with five of the pods behind it.
pub const SERVICES: u32 = 20_000;
/// When it is told.
pub const TOLD: WallTime = WallTime(1_000_000);
/// Nodes.
pub const NODES: u32 = 1_000;

fn ip(net: u32, number: u32) -> IpAddr {
    IpAddr::from((net + number).to_be_bytes())
}

fn uid(kind: u32, number: u32) -> String {
    format!("{kind:08x}-1111-4111-8111-{number:012x}")
}

fn pair(key: &str, value: String) -> (String, String) {
    (key.to_owned(), value)
}

/// The address of a pod.
pub fn pod_ip(number: u32) -> IpAddr {
    ip(0x0a01_0000, number)
}

/// The address of a Service, whose port is 80.
pub fn service_ip(number: u32) -> IpAddr {
    ip(0x0a60_0000, number)
}

/// Five pods of one ReplicaSet each, but that every tenth is of a StatefulSet, whose pods each have a label of their own.
pub fn pod(number: u32) -> PodObject {
    let app = number / 5;
    let stateful = app.is_multiple_of(10);
    let (kind, owner) = match stateful {
        true => ("StatefulSet", format!("application-{app}")),
        false => ("ReplicaSet", format!("application-{app}-5fb7f6f8d8")),
    };
    let name = format!("{owner}-{number:05}");
    let own = match stateful {
        true => pair("statefulset.kubernetes.io/pod-name", name.clone()),
        false => pair("pod-template-hash", "5fb7f6f8d8".to_owned()),
    };
    PodObject {
        uid: uid(1, number),
        static_uid: None,
        namespace: format!("team-{}", app % 200),
        name,
        labels: Some(vec![
            pair("app.kubernetes.io/name", format!("application-{app}")),
            pair("app.kubernetes.io/part-of", format!("product-{}", app % 50)),
            pair("app.kubernetes.io/version", "1.2.3".to_owned()),
            pair("app.kubernetes.io/component", format!("tier-{}", app % 3)),
            own,
        ]),
        node: Some(format!("worker-{}", number % NODES)),
        host_network: Some(false),
        service_account: Some(format!("application-{app}")),
        owner: Owner::By(ControllerRef {
            kind: kind.to_owned(),
            name: owner,
            uid: uid(2, app),
        }),
        ips: vec![pod_ip(number)],
        started: Some(WallTime(i64::from(number))),
        terminal: false,
        containers: ["main", "proxy"]
            .map(|name| ContainerObject {
                name: name.to_owned(),
                id: ContainerId::new(&format!("{number:064x}")),
                ports: vec![("http".to_owned(), 8080)],
            })
            .into(),
    }
}

/// All of it.
pub fn facts() -> impl Iterator<Item = Object> {
    let nodes = (0..NODES).map(|number| {
        Object::Node(NodeObject {
            name: format!("worker-{number}"),
            ips: vec![ip(0xc0a8_0000, number)],
        })
    });
    let controllers = (0..PODS / 5).map(|app| {
        Object::Controller(ControllerObject {
            kind: Kind::ReplicaSets,
            namespace: format!("team-{}", app % 200),
            uid: uid(2, app),
            owner: (app % 10 != 0).then(|| ControllerRef {
                kind: "Deployment".to_owned(),
                name: format!("application-{app}"),
                uid: uid(3, app),
            }),
        })
    });
    let services = (0..SERVICES).map(|app| {
        Object::Service(ServiceObject {
            namespace: format!("team-{}", app % 200),
            name: format!("application-{app}"),
            cluster_ips: vec![service_ip(app)],
            selector: vec![pair("app.kubernetes.io/name", format!("application-{app}"))],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                port: 80,
                target: TargetPort::Name("http".to_owned()),
                node_port: None,
            }],
            ..ServiceObject::default()
        })
    });
    let endpoints = (0..SERVICES).map(|app| {
        let addresses = (app * 5..app * 5 + 5).map(|pod| SocketAddr::new(pod_ip(pod), 8080));
        Object::Endpoints(EndpointsObject {
            namespace: format!("team-{}", app % 200),
            name: format!("application-{app}-x7k2p"),
            service: format!("application-{app}"),
            addresses: addresses.collect(),
        })
    });
    let pods = (0..PODS).map(|number| Object::Pod(pod(number)));
    nodes.chain(controllers).chain(services).chain(endpoints).chain(pods)
}

/// What a source has told of these, at [`TOLD`].
pub fn told(facts: impl Iterator<Item = Object>) -> Store {
    let mut store = Store::default();
    for fact in facts {
        store.apply(&SourceUpdate {
            source: SourceId(0),
            at: TOLD,
            change: Change::Upsert(fact),
        });
    }
    store
}
