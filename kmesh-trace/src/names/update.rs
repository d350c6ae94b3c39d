//! What a source of names reports: Kubernetes objects, reduced to what naming needs.
//!
//! A source lists its objects and then reports changes, or lists them again. The store merges the reports of several sources
//! by the UID of the pod.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::record::{ContainerId, WallTime};

/// A source of this run: its position in the list of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u8);

/// One change that a source reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceUpdate {
    /// The source that reports the change.
    pub source: SourceId,
    /// The time at which the change was true: for a list the time of the request, for a watch event the time of its arrival.
    pub at: WallTime,
    /// The change.
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
    /// The list is complete. Objects of this scope that the source reported before, and that the list lacks, are gone, unless
    /// the source reported them after the time of the request.
    ListEnd(Scope),
    /// The object is gone.
    Delete(Key),
}

/// The objects that a list covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All objects of a kind that the source may see.
    All(Kind),
    /// The pods of one node, by the name of the node.
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

/// The kind of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`PodObject`].
    Pods,
    /// [`ServiceObject`].
    Services,
    /// [`EndpointsObject`].
    Endpoints,
    /// [`ControllerObject`] of kind ReplicaSet.
    ReplicaSets,
    /// [`ControllerObject`] of kind Job.
    Jobs,
    /// [`NodeObject`].
    Nodes,
}

/// One Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A pod.
    Pod(PodObject),
    /// A Service.
    Service(ServiceObject),
    /// An EndpointSlice, or an Endpoints object.
    Endpoints(EndpointsObject),
    /// A controller that may itself have a controller: a ReplicaSet or a Job.
    Controller(ControllerObject),
    /// A node.
    Node(NodeObject),
}

/// The identity of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The UID of a pod.
    Pod(String),
    /// Namespace and name of a Service.
    Service(String, String),
    /// Namespace and name of an EndpointSlice or Endpoints object.
    Endpoints(String, String),
    /// The UID of a controller.
    Controller(String),
    /// The name of a node.
    Node(String),
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodObject {
    /// `metadata.uid` as the source has it. The kubelet and the API server have different UIDs for a static pod.
    pub uid: String,
    /// The second UID of a static pod: the one in the path of its cgroup, where `uid` is the API server's. The source sets it
    /// only where it vouches for it itself (see `spec/resolution.md`, "Who vouches for what"), never from an ordinary pod's
    /// annotations.
    pub static_uid: Option<String>,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`; `None` when the source does not know them, or when they exceed the limit.
    pub labels: Option<Vec<(String, String)>>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostNetwork`; `None` when the source does not know it.
    pub host_network: Option<bool>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<String>,
    /// The controlling owner reference.
    pub owner: Owner,
    /// `status.podIPs`, else `status.podIP`.
    pub ips: Vec<IpAddr>,
    /// `status.startTime`, else `metadata.creationTimestamp`.
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
    /// The pod's controller.
    By(ControllerRef),
}

/// An owner reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerRef {
    /// `kind`.
    pub kind: String,
    /// `name`.
    pub name: String,
    /// `uid`.
    pub uid: String,
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerObject {
    /// `name`.
    pub name: String,
    /// `containerID` without its scheme; `None` for a container that never ran.
    pub id: Option<ContainerId>,
    /// The named TCP ports.
    pub ports: Vec<(String, u16)>,
}

/// The TCP ports of a Service and its addresses. A Service of type ExternalName has only its name here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceObject {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterIPs`, else `spec.clusterIP`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and `status.loadBalancer.ingress[].ip`.
    pub external_ips: Vec<IpAddr>,
    /// Whether `spec.clusterIP` is `None`.
    pub headless: bool,
    /// `spec.selector`; empty when there is none.
    pub selector: Vec<(String, String)>,
    /// `spec.ports` of protocol TCP.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty when it has none.
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `targetPort`, else `port`.
    pub target: TargetPort,
    /// `nodePort`.
    pub node_port: Option<u16>,
}

/// The port of a Service's pods: `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container port.
    Name(String),
}

/// The endpoints of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsObject {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The name of the Service: label `kubernetes.io/service-name` of a slice, the own name of an Endpoints object.
    pub service: String,
    /// The address of each endpoint with each TCP port.
    pub addresses: Vec<SocketAddr>,
}

/// A controller between a pod and the controller that people name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerObject {
    /// Whether it is a ReplicaSet or a Job.
    pub kind: Kind,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// The controlling owner reference.
    pub owner: Option<ControllerRef>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses` that are IP addresses.
    pub ips: Vec<IpAddr>,
}
