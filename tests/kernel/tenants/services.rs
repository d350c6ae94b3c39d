//! A Service has its own addresses and the pods of its own namespace. What another tenant writes into a Service or into an
//! EndpointSlice changes no name of it.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::identity::{Source, keep, traced, wait_for_names};
use super::node::{Driver, MALL, NODE_PORT, Node, PORT, Pod, SERVICE_PORT, SHOP};
use super::traffic::{CERTAIN, Call, failure};

/// A Service of the other tenant that comes first in the alphabet, with this specification.
pub fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// A slice of the endpoints of a Service.
pub fn slice(namespace: &str, service: &str, ip: &str) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-x"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "", "port": PORT, "protocol": "TCP"}]})
}

/// The ports that a claim must have to match what clients of the victim dial.
fn ports() -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": PORT});
    json!([port("a", SERVICE_PORT), port("b", PORT), port("c", NODE_PORT)])
}

/// Calls of the victim's server by its own address, by its Service, and by its node port all have the victim's Service, whatever
/// else these objects make of it.
fn check_beside(name: &str, claim: impl Fn(&Node, &Pod) -> Vec<Value>) {
    let node = Node::new(name);
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    db.listen();
    node.translate(&db);
    let known = [web.object(), db.object(), node.object(), node.service()];
    let mut wrong = Vec::new();
    // By the selector, and by slices.
    for slices in [vec![], vec![slice(SHOP, "database", &db.ip)]] {
        let by = if slices.is_empty() { "selector" } else { "slices" };
        let cluster = Cluster::of(known.iter().cloned().chain(slices).chain(claim(&node, &db)));
        let tracer = traced(&node, &cluster, Source::File, &[]);
        keep(&tracer, &[&web, &db]);
        wait_for_names(&tracer, &web, &db);
        let dialled = format!("{}:{NODE_PORT}", node.ip());
        for way in ["own address", "cluster IP", "node port"] {
            let call = match way {
                "own address" => Call::open(&web, &db).with_service("database", "target_port"),
                "cluster IP" => Call::open_service(&node, &web, &db),
                _ => Call::dial(&web, &db, &dialled).with_service("database", "vip"),
            };
            call.close();
            let check = || call.check(&tracer.tracer, CERTAIN);
            wrong.extend(failure(check).map(|why| format!("by its {way}, endpoints by {by}: {why}")));
        }
        tracer.stop();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Without any claim: what the other scenarios must not change.
pub fn services_are_named_by_what_was_dialled() {
    check_beside("nothing", |_, _| vec![]);
}

pub fn external_ip_does_not_take_another_services_address() {
    check_beside("external", |node, db| {
        let spec = json!({"clusterIP": "10.96.255.1", "ports": ports(),
            "externalIPs": [node.cluster_ip(), db.ip, node.ip()]});
        vec![service(MALL, "aaa", &spec)]
    });
}

pub fn load_balancer_address_does_not_take_another_services_address() {
    check_beside("ingress", |node, db| {
        let mut object = service(MALL, "aaa", &json!({"clusterIP": "10.96.255.1", "ports": ports()}));
        object["status"]["loadBalancer"]["ingress"] =
            json!([{"ip": node.cluster_ip()}, {"ip": db.ip}, {"ip": node.ip()}]);
        vec![object]
    });
}

pub fn endpoint_slice_of_another_namespace_does_not_take_a_pod() {
    check_beside("slice", |_, db| {
        let spec = json!({"clusterIP": "10.96.255.1", "ports": ports()});
        vec![service(MALL, "aaa", &spec), slice(MALL, "aaa", &db.ip)]
    });
}

pub fn external_name_has_no_endpoints_whatever_its_selector() {
    check_beside("external-name", |_, _| {
        let spec = json!({"type": "ExternalName", "externalName": "elsewhere.example", "selector": {"app": "db"},
            "ports": [{"port": PORT, "targetPort": PORT}]});
        vec![service(SHOP, "aaa", &spec)]
    });
}

/// Where the pod's own namespace has no Service of it, other namespaces have equal rights: none of them is named.
pub fn services_of_two_other_namespaces_name_nobody() {
    let node = Node::new("equals");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    db.listen();
    let spec = json!({"clusterIP": "10.96.255.1", "ports": [{"port": PORT, "targetPort": PORT}]});
    let claims = ["aaa", "bbb"].map(|namespace| [service(namespace, "it", &spec), slice(namespace, "it", &db.ip)]);
    let cluster = Cluster::of(
        [web.object(), db.object()]
            .into_iter()
            .chain(claims.into_iter().flatten()),
    );
    let tracer = traced(&node, &cluster, Source::File, &[]);
    keep(&tracer, &[&web, &db]);
    let call = Call::open(&web, &db);
    call.close();
    call.check(&tracer.tracer, CERTAIN);
    for record in [call.outbound(&tracer.tracer), call.inbound(&tracer.tracer)] {
        assert_eq!(record["service"], Value::Null, "{record}");
    }
    tracer.stop();
}

/// The processor time of a call, both records of it, with this many Services of the server's pod.
fn cost_with(services: u32) -> Duration {
    const CALLS: u32 = 500;
    let node = Node::new(&format!("cost-{services}"));
    let thief = node.pod(Driver::Cgroupfs, MALL, "thief");
    let server = node.pod(Driver::Cgroupfs, MALL, "server");
    server.listen();
    // Of another port, so that none is found soon.
    let spec = json!({"clusterIP": "10.96.255.1", "selector": {"app": "server"},
        "ports": [{"port": PORT + 1, "targetPort": PORT + 1}]});
    let services = (0..services).map(|number| service(MALL, &format!("s{number:05}"), &spec));
    let cluster = Cluster::of([thief.object(), server.object()].into_iter().chain(services));
    let tracer = traced(&node, &cluster, Source::File, &[]);
    keep(&tracer, &[&thief, &server]);
    let call = || {
        let call = Call::open(&thief, &server);
        call.close();
        call
    };
    // The first connection may cost what the Services of a pod cost once.
    call().check(&tracer.tracer, CERTAIN);
    let before = tracer.cpu_time();
    let mut last = call();
    for _ in 1..CALLS {
        last = call();
    }
    last.check(&tracer.tracer, CERTAIN);
    let cost = (tracer.cpu_time() - before) / CALLS;
    tracer.stop();
    cost
}

/// Twenty thousand Services select one pod of the tenant that made them.
pub fn cost_of_a_record_does_not_grow_with_services() {
    const SERVICES: u32 = 20_000;
    let (with_one, with_many) = (cost_with(1), cost_with(SERVICES));
    println!("a call: {with_one:?} with 1 Service, {with_many:?} with {SERVICES}");
    // Processor time comes in ticks, and depends a little on what else the processor does.
    let margin = Duration::from_micros(500);
    assert!(with_many < with_one * 2 + margin, "{with_many:?} against {with_one:?}");
}
