//! What sources of names tell, whatever they are: trimmed on arrival to what naming needs.
//!
//! A source lists what there is and then tells changes, or lists again. [`crate::enrich`] merges what several tell of one pod
//! by its UID.

use std::net::{IpAddr, SocketAddr};

use crate::record::{ContainerId, WallTime};

/// Which source tells: its place among those of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceId(pub u8);

/// News from one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who tells.
    pub source: SourceId,
    /// When it was true: for a list the time of asking, for a change that of its arrival.
    pub at: WallTime,
    /// What.
    pub news: News,
}

/// One piece of news.
#[expect(clippy::large_enum_variant, reason = "nearly all news is of the large kind")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A whole list of one kind follows, as [`News::Is`].
    ListBegins(Kind),
    /// This is so: listed, new, or changed.
    Is(Fact),
    /// The list is whole: what this source told of that kind before, and not in this list, has gone.
    ListEnds(Kind),
    /// It has gone.
    Gone(Key),
}

/// What can be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`PodFacts`].
    Pods,
    /// [`ServiceFacts`].
    Services,
    /// [`EndpointsFacts`].
    Endpoints,
    /// [`ControllerFacts`].
    Controllers,
    /// [`NodeFacts`].
    Nodes,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// A pod.
    Pod(PodFacts),
    /// A Service.
    Service(ServiceFacts),
    /// An EndpointSlice, or an Endpoints object.
    Endpoints(EndpointsFacts),
    /// A controller that itself has one: a ReplicaSet, a Job.
    Controller(ControllerFacts),
    /// A node.
    Node(NodeFacts),
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// By UID.
    Pod(String),
    /// By namespace and name.
    Service(String, String),
    /// By namespace and name of the slice.
    Endpoints(String, String),
    /// By UID.
    Controller(String),
    /// By name.
    Node(String),
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.uid` as the source has it. Of a static pod the kubelet and the API server have different ones.
    pub uid: String,
    /// Annotation `kubernetes.io/config.hash` or `config.mirror` of a static pod: the UID that its cgroup and the kubelet have.
    pub config_hash: Option<String>,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`; none when the source does not know them.
    pub labels: Option<Vec<(String, String)>>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostNetwork`; none when the source does not know it.
    pub host_network: Option<bool>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<String>,
    /// The controlling owner reference.
    pub owner: Owner,
    /// `status.podIPs`, else `status.podIP`.
    pub ips: Vec<IpAddr>,
    /// `status.startTime`, else `metadata.creationTimestamp`.
    pub started: Option<WallTime>,
    /// `status.phase` is `Succeeded` or `Failed`: it claims no address any more.
    pub terminal: bool,
    /// Its containers, init and ephemeral ones included.
    pub containers: Vec<ContainerFacts>,
}

/// What is known of who controls a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The source has no owner references.
    #[default]
    Unknown,
    /// Nobody controls it.
    Nobody,
    /// This does.
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
pub struct ContainerFacts {
    /// `name`.
    pub name: String,
    /// `containerID` without its scheme; none when it never ran.
    pub id: Option<ContainerId>,
    /// Its named TCP ports.
    pub ports: Vec<(String, u16)>,
}

/// A Service: its TCP side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterIPs`, else `spec.clusterIP`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and `status.loadBalancer.ingress[].ip`.
    pub external_ips: Vec<IpAddr>,
    /// `spec.clusterIP` is `None`.
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

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// That port.
    Number(u16),
    /// The container port of that name.
    Name(String),
}

/// Where a Service's pods are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsFacts {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The Service's name: label `kubernetes.io/service-name` of a slice, the object's own name of Endpoints.
    pub service: String,
    /// Each endpoint's address with each TCP port, and the port's name (empty when it has none).
    pub addresses: Vec<(SocketAddr, String)>,
}

/// A controller in the middle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerFacts {
    /// `metadata.uid`.
    pub uid: String,
    /// Its own controlling owner reference.
    pub owner: Option<ControllerRef>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses` that are addresses.
    pub ips: Vec<IpAddr>,
}
