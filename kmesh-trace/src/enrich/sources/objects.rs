//! Objects of Kubernetes as JSON, of which nothing is read but what naming needs, and the facts that they are.
//!
//! Any field may be absent or null: versions differ, and so do a kubelet, an API server and a file.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use chrono::DateTime;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::enrich::facts::{
    ContainerFacts, ControllerFacts, ControllerRef, EndpointsFacts, Fact, Key, Kind, NodeFacts, Owner, PodFacts,
    ServiceFacts, ServicePort, TargetPort,
};
use crate::record::{ContainerId, WallTime};

/// Addresses of one Endpoints object or slice that are taken. Kubernetes allows a thousand endpoints and a hundred ports.
const MOST_ADDRESSES: usize = 100_000;

/// An object of one kind.
pub trait Object: DeserializeOwned {
    /// `kind`.
    const KIND: &'static str;
    /// What it tells of.
    const TELLS: Kind;

    /// Its metadata.
    fn meta(&self) -> &Meta;
    /// What is named after it has gone.
    fn key(&self) -> Key;
    /// What it tells.
    fn fact(self) -> Fact;
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// `namespace`.
    pub namespace: Option<String>,
    /// `name`.
    pub name: Option<String>,
    uid: Option<String>,
    /// `resourceVersion`.
    pub resource_version: Option<String>,
    creation_timestamp: Option<String>,
    labels: Option<BTreeMap<String, Option<String>>>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.hash")]
    hash: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnerReference {
    kind: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    controller: Option<bool>,
}

impl Meta {
    fn names(&self) -> (String, String) {
        (text(&self.namespace), text(&self.name))
    }

    fn label(&self, key: &str) -> Option<String> {
        self.labels.as_ref()?.get(key)?.clone()
    }

    fn controller(&self) -> Option<ControllerRef> {
        let owners = self.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true))?;
        Some(ControllerRef {
            kind: text(&owner.kind),
            name: text(&owner.name),
            uid: text(&owner.uid),
        })
    }
}

fn text(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}

fn pairs(map: Option<BTreeMap<String, Option<String>>>) -> Vec<(String, String)> {
    map.into_iter()
        .flatten()
        .map(|(key, value)| (key, value.unwrap_or_default()))
        .collect()
}

/// IPv4-mapped IPv6 is IPv4. What is no address is none: `None`, an empty string, a host's name.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn time(text: &str) -> Option<WallTime> {
    DateTime::parse_from_rfc3339(text)
        .ok()?
        .timestamp_nanos_opt()
        .map(WallTime)
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}

/// `v1` `Pod`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    metadata: Option<Meta>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    service_account_name: Option<String>,
    init_containers: Option<Vec<Container>>,
    containers: Option<Vec<Container>>,
    ephemeral_containers: Option<Vec<Container>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: Option<String>,
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    container_port: Option<i64>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    start_time: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<Ip>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    ip: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// `containerd://3f9a…` without the scheme.
fn container_id(text: &str) -> Option<ContainerId> {
    ContainerId::new(text.rsplit_once("://").map_or(text, |(_, id)| id))
}

impl Container {
    fn fact(self, ids: &BTreeMap<&str, ContainerId>) -> ContainerFacts {
        let name = self.name.unwrap_or_default();
        let named = |container_port: ContainerPort| {
            let is_tcp = is_tcp(container_port.protocol.as_deref());
            let name = container_port.name.filter(|name| is_tcp && !name.is_empty())?;
            Some((name, port(container_port.container_port?)?))
        };
        ContainerFacts {
            id: ids.get(name.as_str()).copied(),
            ports: self.ports.into_iter().flatten().filter_map(named).collect(),
            name,
        }
    }
}

impl PodStatus {
    fn ips(&self) -> Vec<IpAddr> {
        let several = self.pod_ips.iter().flatten().filter_map(|one| one.ip.as_deref());
        let mut ips: Vec<_> = several.filter_map(ip).collect();
        if ips.is_empty() {
            ips.extend(self.pod_ip.as_deref().and_then(ip));
        }
        ips
    }

    fn container_ids(&self) -> BTreeMap<&str, ContainerId> {
        [
            &self.init_container_statuses,
            &self.container_statuses,
            &self.ephemeral_container_statuses,
        ]
        .into_iter()
        .flat_map(|statuses| statuses.iter().flatten())
        .filter_map(|status| Some((status.name.as_deref()?, container_id(status.container_id.as_deref()?)?)))
        .collect()
    }
}

impl Object for Pod {
    const KIND: &'static str = "Pod";
    const TELLS: Kind = Kind::Pods;

    fn meta(&self) -> &Meta {
        meta(&self.metadata)
    }

    fn key(&self) -> Key {
        Key::Pod(text(&self.meta().uid))
    }

    fn fact(self) -> Fact {
        let meta = self.metadata.unwrap_or_default();
        let spec = self.spec.unwrap_or_default();
        let status = self.status.unwrap_or_default();
        let (namespace, name) = meta.names();
        let ids = status.container_ids();
        let containers = [spec.init_containers, spec.containers, spec.ephemeral_containers];
        let annotations = meta.annotations.clone().unwrap_or_default();
        Fact::Pod(PodFacts {
            uid: text(&meta.uid),
            config_hash: annotations.mirror.or(annotations.hash),
            namespace,
            name,
            owner: match meta.controller() {
                // The mirror of a static pod, which nobody controls: its own list says so.
                Some(owner) if owner.kind == "Node" => Owner::Nobody,
                Some(owner) => Owner::By(owner),
                None => Owner::Nobody,
            },
            labels: Some(pairs(meta.labels)),
            node: spec.node_name.filter(|name| !name.is_empty()),
            host_network: Some(spec.host_network.unwrap_or(false)),
            service_account: spec.service_account_name.filter(|name| !name.is_empty()),
            ips: status.ips(),
            started: status
                .start_time
                .as_deref()
                .and_then(time)
                .or_else(|| meta.creation_timestamp.as_deref().and_then(time)),
            terminal: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            containers: containers
                .into_iter()
                .flatten()
                .flatten()
                .map(|container| container.fact(&ids))
                .collect(),
        })
    }
}

fn meta(metadata: &Option<Meta>) -> &Meta {
    static NONE: Meta = Meta {
        namespace: None,
        name: None,
        uid: None,
        resource_version: None,
        creation_timestamp: None,
        labels: None,
        annotations: None,
        owner_references: None,
    };
    metadata.as_ref().unwrap_or(&NONE)
}

/// `v1` `Service`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    metadata: Option<Meta>,
    spec: Option<ServiceSpec>,
    status: Option<ServiceStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    selector: Option<BTreeMap<String, Option<String>>>,
    ports: Option<Vec<Port>>,
}

/// A port of a Service, a slice or Endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    target_port: Option<NumberOrName>,
    node_port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum NumberOrName {
    Number(i64),
    Name(String),
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<LoadBalancer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Option<Vec<Ip>>,
}

impl Port {
    fn fact(self) -> Option<ServicePort> {
        let number = port(self.port.filter(|_| is_tcp(self.protocol.as_deref()))?)?;
        Some(ServicePort {
            name: self.name.unwrap_or_default(),
            port: number,
            target: match self.target_port {
                Some(NumberOrName::Name(name)) if !name.is_empty() => TargetPort::Name(name),
                Some(NumberOrName::Number(target)) => TargetPort::Number(port(target).unwrap_or(number)),
                _ => TargetPort::Number(number),
            },
            node_port: self.node_port.and_then(port),
        })
    }
}

impl Object for Service {
    const KIND: &'static str = "Service";
    const TELLS: Kind = Kind::Services;

    fn meta(&self) -> &Meta {
        meta(&self.metadata)
    }

    fn key(&self) -> Key {
        let (namespace, name) = self.meta().names();
        Key::Service(namespace, name)
    }

    fn fact(self) -> Fact {
        let (namespace, name) = self.meta().names();
        let spec = self.spec.unwrap_or_default();
        let ingress = self.status.and_then(|status| status.load_balancer?.ingress);
        let mut cluster_ips: Vec<_> = spec.cluster_ips.iter().flatten().filter_map(|text| ip(text)).collect();
        if cluster_ips.is_empty() {
            cluster_ips.extend(spec.cluster_ip.as_deref().and_then(ip));
        }
        Fact::Service(ServiceFacts {
            namespace,
            name,
            cluster_ips,
            external_ips: (spec.external_ips.iter().flatten().map(String::as_str))
                .chain(ingress.iter().flatten().filter_map(|one| one.ip.as_deref()))
                .filter_map(ip)
                .collect(),
            headless: spec.cluster_ip.as_deref() == Some("None"),
            selector: pairs(spec.selector),
            ports: spec.ports.into_iter().flatten().filter_map(Port::fact).collect(),
        })
    }
}

/// `discovery.k8s.io/v1` `EndpointSlice`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointSlice {
    metadata: Option<Meta>,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    addresses: Option<Vec<String>>,
}

/// Each address with each TCP port. Ready or not: what is not may still be talking.
fn addresses<'a>(
    ips: impl Iterator<Item = &'a str> + Clone,
    ports: &[Port],
) -> impl Iterator<Item = (SocketAddr, String)> {
    ports.iter().flat_map(move |one| {
        let number = one.port.filter(|_| is_tcp(one.protocol.as_deref())).and_then(port);
        let addresses = number.map(|number| {
            let ips = ips.clone().filter_map(ip);
            ips.map(move |ip| (SocketAddr::new(ip, number), text(&one.name)))
        });
        addresses.into_iter().flatten()
    })
}

impl Object for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";
    const TELLS: Kind = Kind::Endpoints;

    fn meta(&self) -> &Meta {
        meta(&self.metadata)
    }

    fn key(&self) -> Key {
        let (namespace, name) = self.meta().names();
        Key::Endpoints(namespace, name)
    }

    fn fact(self) -> Fact {
        let (namespace, name) = self.meta().names();
        let ips = self.endpoints.iter().flatten();
        let ips = ips.flat_map(|endpoint| endpoint.addresses.iter().flatten().map(String::as_str));
        Fact::Endpoints(EndpointsFacts {
            namespace,
            name,
            service: self.meta().label("kubernetes.io/service-name").unwrap_or_default(),
            addresses: addresses(ips, self.ports.as_deref().unwrap_or_default())
                .take(MOST_ADDRESSES)
                .collect(),
        })
    }
}

/// `v1` `Endpoints`: what older API servers have in place of slices of version 1.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    metadata: Option<Meta>,
    subsets: Option<Vec<Subset>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subset {
    addresses: Option<Vec<Ip>>,
    not_ready_addresses: Option<Vec<Ip>>,
    ports: Option<Vec<Port>>,
}

impl Object for Endpoints {
    const KIND: &'static str = "Endpoints";
    const TELLS: Kind = Kind::Endpoints;

    fn meta(&self) -> &Meta {
        meta(&self.metadata)
    }

    fn key(&self) -> Key {
        let (namespace, name) = self.meta().names();
        Key::Endpoints(namespace, name)
    }

    fn fact(self) -> Fact {
        let (namespace, name) = self.meta().names();
        let subsets = self.subsets.unwrap_or_default();
        let all = subsets.iter().flat_map(|subset| {
            let ips = [&subset.addresses, &subset.not_ready_addresses];
            let ips = ips.into_iter().flat_map(|ips| ips.iter().flatten());
            let ips = ips.filter_map(|one| one.ip.as_deref());
            addresses(ips, subset.ports.as_deref().unwrap_or_default())
        });
        Fact::Endpoints(EndpointsFacts {
            service: name.clone(),
            namespace,
            name,
            addresses: all.take(MOST_ADDRESSES).collect(),
        })
    }
}

/// A controller that itself may have one.
macro_rules! controller {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(default)]
        pub struct $name {
            metadata: Option<Meta>,
        }

        impl Object for $name {
            const KIND: &'static str = stringify!($name);
            const TELLS: Kind = Kind::Controllers;

            fn meta(&self) -> &Meta {
                meta(&self.metadata)
            }

            fn key(&self) -> Key {
                Key::Controller(text(&self.meta().uid))
            }

            fn fact(self) -> Fact {
                Fact::Controller(ControllerFacts {
                    uid: text(&self.meta().uid),
                    owner: self.meta().controller(),
                })
            }
        }
    };
}

controller! {
    /// `apps/v1` `ReplicaSet`.
    ReplicaSet
}
controller! {
    /// `batch/v1` `Job`.
    Job
}

/// `v1` `Node`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    metadata: Option<Meta>,
    status: Option<NodeStatus>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<NodeAddress>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: Option<String>,
}

impl Object for Node {
    const KIND: &'static str = "Node";
    const TELLS: Kind = Kind::Nodes;

    fn meta(&self) -> &Meta {
        meta(&self.metadata)
    }

    fn key(&self) -> Key {
        Key::Node(text(&self.meta().name))
    }

    fn fact(self) -> Fact {
        let name = text(&self.meta().name);
        let addresses = self.status.and_then(|status| status.addresses);
        Fact::Node(NodeFacts {
            name,
            ips: addresses
                .iter()
                .flatten()
                .filter_map(|one| ip(one.address.as_deref()?))
                .collect(),
        })
    }
}

/// The fact that an object of this kind is; none of a kind that naming has no use for.
pub fn fact(kind: &str, json: &str) -> serde_json::Result<Option<Fact>> {
    fn as_fact<T: Object>(json: &str) -> serde_json::Result<Option<Fact>> {
        serde_json::from_str::<T>(json).map(|object| Some(object.fact()))
    }
    match kind {
        Pod::KIND => as_fact::<Pod>(json),
        Service::KIND => as_fact::<Service>(json),
        EndpointSlice::KIND => as_fact::<EndpointSlice>(json),
        Endpoints::KIND => as_fact::<Endpoints>(json),
        ReplicaSet::KIND => as_fact::<ReplicaSet>(json),
        Job::KIND => as_fact::<Job>(json),
        Node::KIND => as_fact::<Node>(json),
        _ => Ok(None),
    }
}

/// What a fact tells of.
pub fn kind_of(fact: &Fact) -> Kind {
    match fact {
        Fact::Pod(_) => Kind::Pods,
        Fact::Service(_) => Kind::Services,
        Fact::Endpoints(_) => Kind::Endpoints,
        Fact::Controller(_) => Kind::Controllers,
        Fact::Node(_) => Kind::Nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: &str, json: &str) -> Fact {
        fact(kind, json).unwrap().unwrap()
    }

    fn pod(json: &str) -> PodFacts {
        match told("Pod", json) {
            Fact::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_tells_all_that_naming_needs() {
        let id = "3f".repeat(32);
        let init = "aa".repeat(32);
        let json = format!(
            r#"{{"metadata":{{"name":"web-6d4b9-x2x","namespace":"shop","uid":"u1","creationTimestamp":null,
                "labels":{{"app":"web","empty":null}},
                "ownerReferences":[{{"kind":"Other","name":"o","uid":"o"}},
                    {{"kind":"ReplicaSet","name":"web-6d4b9","uid":"r1","controller":true}}]}},
              "spec":{{"nodeName":"n1","serviceAccountName":"default","containers":[
                {{"name":"main","ports":[{{"name":"http","containerPort":8080}},{{"containerPort":1}},
                    {{"name":"dns","containerPort":53,"protocol":"UDP"}},{{"name":"bad","containerPort":70000}}]}},
                {{"name":"waits"}}],"initContainers":[{{"name":"first"}}]}},
              "status":{{"phase":"Running","startTime":"2024-09-14T08:19:26Z","podIP":"10.0.0.1",
                "podIPs":[{{"ip":"10.0.0.1"}},{{"ip":"fd00::1"}}],
                "initContainerStatuses":[{{"name":"first","containerID":"containerd://{init}"}}],
                "containerStatuses":[{{"name":"main","containerID":"containerd://{id}"}},
                    {{"name":"waits","containerID":""}}]}}}}"#
        );
        let container = |name: &str, id: &str, ports: &[(&str, u16)]| ContainerFacts {
            name: name.to_owned(),
            id: ContainerId::new(id),
            ports: ports.iter().map(|&(name, port)| (name.to_owned(), port)).collect(),
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = PodFacts {
            uid: "u1".to_owned(),
            config_hash: None,
            namespace: "shop".to_owned(),
            name: "web-6d4b9-x2x".to_owned(),
            labels: Some(vec![pair("app", "web"), pair("empty", "")]),
            node: Some("n1".to_owned()),
            host_network: Some(false),
            service_account: Some("default".to_owned()),
            owner: Owner::By(ControllerRef {
                kind: "ReplicaSet".to_owned(),
                name: "web-6d4b9".to_owned(),
                uid: "r1".to_owned(),
            }),
            ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            started: Some(WallTime(1_726_301_966_000_000_000)),
            terminal: false,
            containers: vec![
                container("first", &init, &[]),
                container("main", &id, &[("http", 8080)]),
                container("waits", "", &[]),
            ],
        };
        assert_eq!(pod(&json), expected);
    }

    #[test]
    fn a_pod_may_lack_anything() {
        let nothing = pod("{}");
        assert_eq!((nothing.owner, nothing.host_network), (Owner::Nobody, Some(false)));
        let nulls = [
            r#"{"metadata":null,"spec":null,"status":null}"#,
            r#"{"metadata":{"labels":null,"annotations":null,"ownerReferences":null,"creationTimestamp":null},
                "spec":{"containers":null,"initContainers":null,"nodeName":""},
                "status":{"podIPs":null,"podIP":"","containerStatuses":null}}"#,
            r#"{"spec":{"containers":[{"name":null,"ports":null}]},"status":{"podIPs":[{}]}}"#,
        ];
        for json in nulls {
            let pod = pod(json);
            assert_eq!((pod.node, pod.ips, pod.started), (None, vec![], None), "{json}");
        }
    }

    #[test]
    fn static_pods_are_tied_to_their_mirrors() {
        let own = r#"{"metadata":{"uid":"4d3","annotations":{"kubernetes.io/config.hash":"4d3"}}}"#;
        let mirror = r#"{"metadata":{"uid":"9-9","annotations":
            {"kubernetes.io/config.hash":"4d3","kubernetes.io/config.mirror":"4d3"},
            "ownerReferences":[{"kind":"Node","name":"n1","uid":"n","controller":true}]}}"#;
        for json in [own, mirror] {
            let pod = pod(json);
            assert_eq!((pod.config_hash.as_deref(), pod.owner), (Some("4d3"), Owner::Nobody));
        }
    }

    #[test]
    fn addresses_are_those_that_are_addresses() {
        let cases: [(&str, &[&str]); 5] = [
            (r#"{"podIP":"10.0.0.1"}"#, &["10.0.0.1"]),
            (r#"{"podIP":"10.0.0.1","podIPs":[]}"#, &["10.0.0.1"]),
            (r#"{"podIPs":[{"ip":"::ffff:10.0.0.1"}]}"#, &["10.0.0.1"]),
            (r#"{"podIP":"nonsense"}"#, &[]),
            (
                r#"{"podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"::1"}]}"#,
                &["10.0.0.1", "::1"],
            ),
        ];
        for (status, expected) in cases {
            let ips: Vec<_> = pod(&format!(r#"{{"status":{status}}}"#))
                .ips
                .iter()
                .map(IpAddr::to_string)
                .collect();
            assert_eq!(ips, expected, "{status}");
        }
    }

    #[test]
    fn finished_pods_are_terminal() {
        for (phase, terminal) in [
            ("Succeeded", true),
            ("Failed", true),
            ("Running", false),
            ("Pending", false),
            ("Unknown", false),
        ] {
            let json = format!(r#"{{"status":{{"phase":"{phase}"}}}}"#);
            assert_eq!(pod(&json).terminal, terminal, "{phase}");
        }
    }

    fn service(json: &str) -> ServiceFacts {
        match told("Service", json) {
            Fact::Service(service) => service,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_tells_its_addresses_and_tcp_ports() {
        let told = service(
            r#"{"metadata":{"name":"web","namespace":"shop"},
              "spec":{"clusterIP":"10.96.0.7","clusterIPs":["10.96.0.7","fd00::7"],"externalIPs":["192.0.2.1"],
                "selector":{"app":"web"},"ports":[
                  {"name":"http","port":80,"targetPort":"http","nodePort":30080,"protocol":"TCP"},
                  {"port":443,"targetPort":8443},{"port":81},{"name":"dns","port":53,"protocol":"UDP"},
                  {"port":82,"targetPort":0},{"port":0},{}]},
              "status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.1"},{"hostname":"lb.example"}]}}}"#,
        );
        let port = |name: &str, port, target, node_port| ServicePort {
            name: name.to_owned(),
            port,
            target,
            node_port,
        };
        let expected = ServiceFacts {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            external_ips: vec!["192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap()],
            headless: false,
            selector: vec![("app".to_owned(), "web".to_owned())],
            ports: vec![
                port("http", 80, TargetPort::Name("http".to_owned()), Some(30080)),
                port("", 443, TargetPort::Number(8443), None),
                port("", 81, TargetPort::Number(81), None),
                port("", 82, TargetPort::Number(82), None),
            ],
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn headless_services_have_no_address() {
        let headless = service(r#"{"spec":{"clusterIP":"None","clusterIPs":["None"],"selector":null,"ports":null}}"#);
        assert_eq!((headless.headless, headless.cluster_ips), (true, vec![]));
        let external = service(r#"{"spec":{"type":"ExternalName","externalName":"db.example"}}"#);
        assert_eq!((external.headless, external.cluster_ips), (false, vec![]));
        assert_eq!(service("{}"), ServiceFacts::default());
    }

    #[test]
    fn slices_and_endpoints_tell_the_same() {
        let slice = told(
            "EndpointSlice",
            r#"{"metadata":{"namespace":"shop","name":"web-1","labels":{"kubernetes.io/service-name":"web"}},
              "addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"},{"port":null},
                {"name":"dns","port":53,"protocol":"UDP"}],
              "endpoints":[{"addresses":["10.0.0.1"]},{"addresses":["10.0.0.2"],"conditions":{"ready":false}},
                {"addresses":null},{"addresses":["web.example"]}]}"#,
        );
        let endpoints = told(
            "Endpoints",
            r#"{"metadata":{"namespace":"shop","name":"web"},"subsets":[
              {"addresses":[{"ip":"10.0.0.1"}],"notReadyAddresses":[{"ip":"10.0.0.2"}],
               "ports":[{"name":"http","port":8080,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}]},
              {"addresses":null,"ports":null}]}"#,
        );
        let named = |name: &str| {
            Fact::Endpoints(EndpointsFacts {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                service: "web".to_owned(),
                addresses: ["10.0.0.1:8080", "10.0.0.2:8080"]
                    .map(|address| (address.parse().unwrap(), "http".to_owned()))
                    .to_vec(),
            })
        };
        assert_eq!(slice, named("web-1"));
        assert_eq!(endpoints, named("web"));
    }

    #[test]
    fn endpoints_without_end_are_cut() {
        let many = vec![r#""10.0.0.1""#; 1000].join(",");
        let ports: Vec<_> = (1..=1000).map(|port| format!(r#"{{"port":{port}}}"#)).collect();
        let json = format!(
            r#"{{"ports":[{}],"endpoints":[{{"addresses":[{many}]}}]}}"#,
            ports.join(",")
        );
        match told("EndpointSlice", &json) {
            Fact::Endpoints(endpoints) => assert_eq!(endpoints.addresses.len(), MOST_ADDRESSES),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn controllers_and_nodes() {
        let owned = r#"{"metadata":{"uid":"r1","ownerReferences":
            [{"kind":"Deployment","name":"web","uid":"d1","controller":true}]}}"#;
        let owner = ControllerRef {
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            uid: "d1".to_owned(),
        };
        for kind in ["ReplicaSet", "Job"] {
            let expected = |owner| {
                Fact::Controller(ControllerFacts {
                    uid: "r1".to_owned(),
                    owner,
                })
            };
            assert_eq!(told(kind, owned), expected(Some(owner.clone())));
            assert_eq!(told(kind, r#"{"metadata":{"uid":"r1"}}"#), expected(None));
        }
        let node = r#"{"metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"},
            {"type":"Hostname","address":"n1"},{"address":null}]}}"#;
        let expected = Fact::Node(NodeFacts {
            name: "n1".to_owned(),
            ips: vec!["192.0.2.2".parse().unwrap()],
        });
        assert_eq!(told("Node", node), expected);
        assert_eq!(fact("Deployment", "{}").unwrap(), None);
    }
}
