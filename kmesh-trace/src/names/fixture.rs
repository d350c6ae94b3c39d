//! The objects of a large cluster, for tests and benchmarks.

use std::net::{IpAddr, SocketAddr};

use super::store::Store;
use super::update::{
    Change, ContainerObject, ControllerObject, ControllerRef, EndpointsObject, Kind, NodeObject, Object, Owner,
    PodObject, ServiceObject, ServicePort, SourceId, SourceUpdate, TargetPort,
};
use crate::record::{ContainerId, WallTime};

pub const PODS: u32 = 100_000;
/// The number of Services. Each has five of the pods behind it.
pub const SERVICES: u32 = 20_000;
pub const NODES: u32 = 1_000;
/// The time at which a source reports the objects.
pub const REPORTED_AT: WallTime = WallTime(1_000_000);

fn ip(net: u32, number: u32) -> IpAddr {
    IpAddr::from((net + number).to_be_bytes())
}

fn uid(kind: u32, number: u32) -> String {
    format!("{kind:08x}-1111-4111-8111-{number:012x}")
}

fn pair(key: &str, value: impl Into<String>) -> (String, String) {
    (key.to_owned(), value.into())
}

fn namespace(app: u32) -> String {
    format!("team-{}", app % 200)
}

pub fn pod_ip(number: u32) -> IpAddr {
    ip(0x0a01_0000, number)
}

/// Returns the address of a Service, whose port is 80.
pub fn service_ip(number: u32) -> IpAddr {
    ip(0x0a60_0000, number)
}

/// Returns a pod. Five pods have the same controller: a ReplicaSet, but every tenth is a StatefulSet, whose pods each
/// have their own label.
pub fn pod(number: u32) -> PodObject {
    let app = number / 5;
    let (kind, owner) = match app % 10 {
        0 => ("StatefulSet", format!("application-{app}")),
        _ => ("ReplicaSet", format!("application-{app}-5fb7f6f8d8")),
    };
    let name = format!("{owner}-{number:05}");
    let of_controller = match app % 10 {
        0 => pair("statefulset.kubernetes.io/pod-name", &name),
        _ => pair("pod-template-hash", "5fb7f6f8d8"),
    };
    let container = |name: &str| ContainerObject {
        name: name.to_owned(),
        id: ContainerId::new(&format!("{number:064x}")),
        ports: vec![("http".to_owned(), 8080)],
    };
    PodObject {
        uid: uid(1, number),
        static_uid: None,
        namespace: namespace(app),
        name,
        labels: Some(vec![
            pair("app.kubernetes.io/name", format!("application-{app}")),
            pair("app.kubernetes.io/part-of", format!("product-{}", app % 50)),
            pair("app.kubernetes.io/version", "1.2.3"),
            pair("app.kubernetes.io/component", format!("tier-{}", app % 3)),
            of_controller,
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
        containers: ["main", "proxy"].map(container).into(),
    }
}

pub fn objects() -> impl Iterator<Item = Object> {
    let nodes = (0..NODES).map(|number| {
        Object::Node(NodeObject {
            name: format!("worker-{number}"),
            ips: vec![ip(0xc0a8_0000, number)],
        })
    });
    let controllers = (0..PODS / 5).map(|app| {
        Object::Controller(ControllerObject {
            kind: Kind::ReplicaSets,
            namespace: namespace(app),
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
            namespace: namespace(app),
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
            namespace: namespace(app),
            name: format!("application-{app}-x7k2p"),
            service: format!("application-{app}"),
            addresses: addresses.collect(),
        })
    });
    let pods = (0..PODS).map(|number| Object::Pod(pod(number)));
    nodes.chain(controllers).chain(services).chain(endpoints).chain(pods)
}

/// Returns a store with these objects, which a source reports at [`REPORTED_AT`].
pub fn store(objects: impl Iterator<Item = Object>) -> Store {
    let mut store = Store::default();
    for object in objects {
        store.apply(&SourceUpdate {
            source: SourceId(0),
            at: REPORTED_AT,
            change: Change::Upsert(object),
        });
    }
    store
}
