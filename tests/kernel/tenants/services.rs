//! A Service has its own addresses, and the pods of its own namespace. A Service or an EndpointSlice of another tenant
//! does not change which Service a record names.

use std::time::Duration;

use serde_json::{Value, json};

use super::cluster::Cluster;
use super::connection::{NO_DOUBT, PodConnection, catch_failure};
use super::fixture::{Fixture, NameSource, start_tracer, watch};
use super::node::{ATTACKER_NAMESPACE, CgroupDriver, NODE_PORT, Node, PORT, Pod, SERVICE_PORT, VICTIM_NAMESPACE};

/// Returns the object of a Service.
pub fn service(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Returns an EndpointSlice of a Service, with one address.
pub fn endpoint_slice(namespace: &str, service: &str, ip: &str) -> Value {
    json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "metadata": {"name": format!("{service}-x"), "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service}},
        "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
        "ports": [{"name": "", "port": PORT, "protocol": "TCP"}]})
}

/// Returns Service ports that match all ports of the victim's Service.
pub fn all_ports() -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": PORT});
    json!([port("a", SERVICE_PORT), port("b", PORT), port("c", NODE_PORT)])
}

/// Checks that connections to the victim's server name the victim's Service, by the server's own address, the cluster
/// IP and the node port, while the cluster also has the objects that `claims` returns.
fn check_services_with(name: &str, claims: impl Fn(&Node, &Pod) -> Vec<Value>) {
    let fixture = Fixture::new(name);
    fixture.add_service();
    let (node, web, db) = (&fixture.node, &fixture.web, &fixture.db);
    claims(node, db)
        .into_iter()
        .for_each(|claim| fixture.cluster.put(claim));
    let mut failures = Vec::new();
    for endpoints in ["selector", "slices"] {
        if endpoints == "slices" {
            let slice = endpoint_slice(VICTIM_NAMESPACE, "database", &db.ip);
            fixture.cluster.put(slice);
        }
        let tracer = fixture.trace(NameSource::File, &[]);
        let node_port = format!("{}:{NODE_PORT}", node.ip());
        for destination in ["own address", "cluster IP", "node port"] {
            let connection = match destination {
                "own address" => PodConnection::open(web, db).expect_service("database", "target_port"),
                "cluster IP" => PodConnection::open_service(node, web, db),
                _ => PodConnection::open_to(web, db, &node_port).expect_service("database", "vip"),
            };
            connection.close();
            let check = || connection.check(&tracer, NO_DOUBT);
            let failure = catch_failure(check);
            failures.extend(failure.map(|error| format!("by its {destination}, endpoints by {endpoints}: {error}")));
        }
        tracer.stop();
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Without other Services: the behavior that the other scenarios must not change.
pub fn service_is_named_by_the_destination_address() {
    check_services_with("no-claims", |_, _| vec![]);
}

pub fn external_ip_does_not_take_another_services_address() {
    check_services_with("external", |node, db| {
        let spec = json!({"clusterIP": "10.96.255.1", "ports": all_ports(),
            "externalIPs": [node.cluster_ip(), db.ip, node.ip()]});
        vec![service(ATTACKER_NAMESPACE, "aaa", &spec)]
    });
}

pub fn load_balancer_address_does_not_take_another_services_address() {
    check_services_with("ingress", |node, db| {
        let spec = json!({"clusterIP": "10.96.255.1", "ports": all_ports()});
        let mut object = service(ATTACKER_NAMESPACE, "aaa", &spec);
        object["status"]["loadBalancer"]["ingress"] =
            json!([{"ip": node.cluster_ip()}, {"ip": db.ip}, {"ip": node.ip()}]);
        vec![object]
    });
}

pub fn endpoint_slice_of_another_namespace_does_not_take_a_pod() {
    check_services_with("slice", |_, db| {
        let spec = json!({"clusterIP": "10.96.255.1", "ports": all_ports()});
        let slice = endpoint_slice(ATTACKER_NAMESPACE, "aaa", &db.ip);
        vec![service(ATTACKER_NAMESPACE, "aaa", &spec), slice]
    });
}

pub fn external_name_service_has_no_endpoints_despite_its_selector() {
    check_services_with("external-name", |_, _| {
        let spec = json!({"type": "ExternalName", "externalName": "elsewhere.example", "selector": {"app": "db"},
            "ports": [{"port": PORT, "targetPort": PORT}]});
        vec![service(VICTIM_NAMESPACE, "aaa", &spec)]
    });
}

/// The pod's own namespace has no Service for it, and two other namespaces have one each.
pub fn tie_between_services_of_other_namespaces_names_no_service() {
    let fixture = Fixture::new("tie");
    let (web, db) = (&fixture.web, &fixture.db);
    let spec = json!({"clusterIP": "10.96.255.1", "ports": [{"port": PORT, "targetPort": PORT}]});
    for namespace in ["aaa", "bbb"] {
        fixture.cluster.put(service(namespace, "tied", &spec));
        fixture.cluster.put(endpoint_slice(namespace, "tied", &db.ip));
    }
    let tracer = start_tracer(&fixture.node, &fixture.cluster, NameSource::File, &[]);
    watch(&tracer, &[web, db]);
    let connection = PodConnection::make(web, db);
    connection.check(&tracer, NO_DOUBT);
    for record in [connection.outbound(&tracer), connection.inbound(&tracer)] {
        assert_eq!(record["service"], Value::Null, "{record}");
    }
    tracer.stop();
}

/// Returns the processor time for the two records of a connection, with this number of Services that select the
/// server's pod.
fn cost_with_services(count: u32) -> Duration {
    const CONNECTIONS: u32 = 500;
    let node = Node::new(&format!("cost-{count}"));
    let [client, server] = ["client", "server"].map(|name| node.pod(CgroupDriver::Cgroupfs, ATTACKER_NAMESPACE, name));
    server.listen();
    // The Services have another port, so that the search for the right one does not end early.
    let spec = json!({"clusterIP": "10.96.255.1", "selector": {"app": "server"},
        "ports": [{"port": PORT + 1, "targetPort": PORT + 1}]});
    let services = (0..count).map(|number| service(ATTACKER_NAMESPACE, &format!("s{number:05}"), &spec));
    let cluster = Cluster::with([client.object(), server.object()].into_iter().chain(services));
    let tracer = start_tracer(&node, &cluster, NameSource::File, &[]);
    watch(&tracer, &[&client, &server]);
    // The first connection pays for work that is done once for each pod.
    PodConnection::make(&client, &server).check(&tracer, NO_DOUBT);
    let before = tracer.cpu_time();
    for _ in 1..CONNECTIONS {
        PodConnection::make(&client, &server);
    }
    PodConnection::make(&client, &server).check(&tracer, NO_DOUBT);
    let cost = (tracer.cpu_time() - before) / CONNECTIONS;
    tracer.stop();
    cost
}

/// A tenant creates 20,000 Services that select one of its pods.
pub fn cost_of_a_record_does_not_grow_with_services() {
    const SERVICES: u32 = 20_000;
    let (with_one, with_many) = (cost_with_services(1), cost_with_services(SERVICES));
    println!("a connection: {with_one:?} with 1 Service, {with_many:?} with {SERVICES}");
    // The kernel measures processor time in ticks, and other load changes it a little.
    let margin = Duration::from_micros(500);
    assert!(with_many < with_one * 2 + margin, "{with_many:?} against {with_one:?}");
}
