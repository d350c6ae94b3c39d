//! What a source of names reports: Kubernetes objects, reduced to what naming needs.
//!
//! A source lists its objects and then reports changes, or lists them again. The store merges the reports of several
//! sources by the UID of the pod. Fields have the names and the meaning of Kubernetes' own; docs say where they
//! differ.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::record::{ContainerId, WallTime};

/// A source of this run: its position in the list of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u8);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceUpdate {
    pub source: SourceId,
    /// The time at which the change was true: for a list the time of the request, for a watch event the time of its
    /// arrival.
    pub at: WallTime,
    pub change: Change,
}

/// A change of one object, or a bracket around a complete list.
#[expect(clippy::large_enum_variant, reason = "nearly all changes are of the large kind")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A complete list of this scope follows as [`Change::Upsert`]s.
    ListStart(Scope),
    /// The object exists and looks like this.
    Upsert(Object),
    /// The list is complete. Objects of this scope that the source reported before, and that the list lacks, are
    /// gone, unless the source reported them after the time of the request.
    ListEnd(Scope),
    Delete(Key),
}

/// The objects that a list covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All objects of a kind that the source may see.
    All(Kind),
    /// The pods of the node with this name.
    PodsOfNode(String),
}

impl Scope {
    /// Returns whether the list covers the pods of one of these nodes.
    pub fn covers_pods_of(&self, nodes: &HashSet<Arc<str>>) -> bool {
        match self {
            Self::All(kind) => *kind == Kind::Pods,
            Self::PodsOfNode(node) => nodes.contains(&**node),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Pods,
    Services,
    /// EndpointSlices, or the Endpoints of older API servers.
    Endpoints,
    ReplicaSets,
    Jobs,
    Nodes,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Pods,
        Self::Services,
        Self::Endpoints,
        Self::ReplicaSets,
        Self::Jobs,
        Self::Nodes,
    ];
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Pod(PodObject),
    Service(ServiceObject),
    Endpoints(EndpointsObject),
    Controller(ControllerObject),
    Node(NodeObject),
}

/// The identity of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A pod, by its UID.
    Pod(String),
    /// A Service, by namespace and name.
    Service(String, String),
    /// An EndpointSlice or Endpoints object, by namespace and name.
    Endpoints(String, String),
    /// A controller, by its UID.
    Controller(String),
    /// A node, by its name.
    Node(String),
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Pod(pod) => Key::Pod(pod.uid.clone()),
            Self::Service(service) => Key::Service(service.namespace.clone(), service.name.clone()),
            Self::Endpoints(endpoints) => Key::Endpoints(endpoints.namespace.clone(), endpoints.name.clone()),
            Self::Controller(controller) => Key::Controller(controller.uid.clone()),
            Self::Node(node) => Key::Node(node.name.clone()),
        }
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Pod(_) => Kind::Pods,
            Self::Service(_) => Kind::Services,
            Self::Endpoints(_) => Kind::Endpoints,
            Self::Controller(controller) => controller.kind,
            Self::Node(_) => Kind::Nodes,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodObject {
    /// The UID as the source has it. The kubelet and the API server have different UIDs for a static pod.
    pub uid: String,
    /// The second UID of a static pod: the one in the path of its cgroup, where `uid` is the API server's. Only a
    /// kubelet's static pod and the API server's copy of it have one, whatever the annotations of other pods are.
    pub static_uid: Option<String>,
    pub namespace: String,
    pub name: String,
    /// `None` when the source does not know the labels, or when they exceed the limit.
    pub labels: Option<Vec<(String, String)>>,
    pub node: Option<String>,
    /// `None` when the source does not know it.
    pub host_network: Option<bool>,
    pub service_account: Option<String>,
    pub owner: Owner,
    /// The addresses in `status.podIPs`, else in `status.podIP`.
    pub ips: Vec<IpAddr>,
    /// The time in `status.startTime`, else in `metadata.creationTimestamp`.
    pub started: Option<WallTime>,
    /// Whether `status.phase` is `Succeeded` or `Failed`: the pod has no address any more.
    pub terminal: bool,
    /// All containers, init and ephemeral ones included.
    pub containers: Vec<ContainerObject>,
}

/// The controller of a pod, as far as a source knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The source has no owner references.
    #[default]
    Unknown,
    /// The pod has no controller.
    Nobody,
    By(ControllerRef),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerRef {
    pub kind: String,
    pub name: String,
    pub uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerObject {
    pub name: String,
    /// `containerID` without its scheme; `None` for a container that never ran.
    pub id: Option<ContainerId>,
    pub ports: Vec<(String, u16)>,
}

/// A Service with its TCP ports. A Service of type ExternalName has only its name here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceObject {
    pub namespace: String,
    pub name: String,
    /// `spec.clusterIPs`, else `spec.clusterIP`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// The addresses in `spec.externalIPs` and `status.loadBalancer.ingress[].ip`.
    pub external_ips: Vec<IpAddr>,
    /// Whether `spec.clusterIP` is `None`.
    pub headless: bool,
    pub selector: Vec<(String, String)>,
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    /// The value of `targetPort`, else of `port`.
    pub target: TargetPort,
    pub node_port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// An EndpointSlice, or an Endpoints object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsObject {
    pub namespace: String,
    pub name: String,
    /// The name of the Service: label `kubernetes.io/service-name` of a slice, the own name of an Endpoints object.
    pub service: String,
    /// The address of each endpoint with each TCP port.
    pub addresses: Vec<SocketAddr>,
}

/// A ReplicaSet or a Job: a controller that may itself have a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerObject {
    pub kind: Kind,
    pub uid: String,
    pub namespace: String,
    pub owner: Option<ControllerRef>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    pub name: String,
    /// The entries of `status.addresses` that are IP addresses.
    pub ips: Vec<IpAddr>,
}
