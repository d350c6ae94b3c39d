//! What the ends of a connection are called: pods, workloads, services, nodes.
//!
//! All of it is shared (`Arc`): naming a record clones pointers and allocates nothing, and a name lives as long as a record
//! that has it, however soon its pod is gone.

use std::net::SocketAddr;
use std::sync::Arc;

/// A pod, as far as it is known. Two that are equal in `uid` are the same pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// The controller that people name; none while no source knows it.
    pub workload: Option<Workload>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<Arc<str>>,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`.
    pub host_network: Option<bool>,
    /// `metadata.labels`; none while no source knows them.
    pub labels: Option<Labels>,
}

/// A controller: a Deployment, a StatefulSet, a CronJob, whatever owns the pod in the end, or the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Its kind, as Kubernetes spells it: `Deployment`, `Pod`.
    pub kind: Arc<str>,
    /// Its name, in the pod's namespace.
    pub name: Arc<str>,
}

/// Labels in the order of their keys, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(one, _)| (**one).cmp(key)).ok()?;
        Some(&self.0[found].1)
    }

    /// All of them, as they are shared.
    pub fn shared(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> + Clone {
        self.0.iter()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl<S: Into<Arc<str>>> FromIterator<(S, S)> for Labels {
    /// Of a key that comes twice the last value counts.
    fn from_iter<I: IntoIterator<Item = (S, S)>>(labels: I) -> Self {
        let sorted: std::collections::BTreeMap<Arc<str>, Arc<str>> = labels
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        Self(sorted.into_iter().collect())
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Its DNS name: `name.namespace.svc.cluster.local`.
    pub host: Arc<str>,
}

/// How a connection's Service was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceBy {
    /// The client dialled its address: certain.
    Vip,
    /// The server's pod is behind it, with that target port: likely.
    TargetPort,
    /// It is headless and the server's pod is one of its.
    Headless,
}

spelling!(ServiceBy {
    Vip => "vip",
    TargetPort => "target_port",
    Headless => "headless",
});

/// The Service that was called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// Of several that match, the alphabetically first.
    pub service: Arc<Service>,
    /// How it was found.
    pub by: ServiceBy,
    /// Whether several match.
    pub ambiguous: bool,
}

/// What is known of one end besides its address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The pod at that end, when the connection began.
    pub pod: Option<Arc<Pod>>,
    /// The node whose own address this is; a pod's node is [`Pod::node`].
    pub node: Option<Arc<str>>,
}

/// All names of a connection. By default nothing is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The client's end.
    pub src: End,
    /// The server's end.
    pub dst: End,
    /// The Service that was called.
    pub service: Option<Called>,
    /// What the client dialled, where that was translated on the way: then [`super::Record::dst`] is the backend.
    pub original_dst: Option<SocketAddr>,
    /// The name of the local container.
    pub container: Option<Arc<str>>,
    /// An end belongs to a pod of this node and has no name.
    pub unresolved: bool,
}
