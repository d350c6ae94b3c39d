//! The Kubernetes names of the ends of a connection: pods, workloads, Services, nodes.
//!
//! Names are shared by `Arc`. Annotating a record clones pointers and allocates nothing. A name lives as long as a
//! record uses it, even after its pod is gone.

use std::net::SocketAddr;
use std::sync::Arc;

/// What the name sources know about a pod. Two values with the same `uid` are the same pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The UID, from `metadata.uid`.
    pub uid: Arc<str>,
    /// The namespace, from `metadata.namespace`.
    pub namespace: Arc<str>,
    /// The name, from `metadata.name`.
    pub name: Arc<str>,
    /// The controller that users know, such as the Deployment. `None` while no source knows it.
    pub workload: Option<Workload>,
    /// The service account, from `spec.serviceAccountName`.
    pub service_account: Option<Arc<str>>,
    /// The node, from `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// Whether the pod uses its node's network, from `spec.hostNetwork`.
    pub host_network: Option<bool>,
    /// The labels, from `metadata.labels`. `None` while no source knows them.
    pub labels: Option<Labels>,
}

/// The topmost controller of a pod (a Deployment, a StatefulSet, a CronJob), or the pod itself if it has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// The kind, as Kubernetes spells it: `Deployment`, `Pod`.
    pub kind: Arc<str>,
    /// The name, in the pod's namespace.
    pub name: Arc<str>,
}

/// Labels, sorted by key. Each key occurs once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// Returns the value of the label `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.binary_search_by(|(one, _)| (**one).cmp(key)).ok()?;
        Some(&self.0[found].1)
    }

    /// Iterates over the shared keys and values.
    pub fn shared(&self) -> impl Iterator<Item = &(Arc<str>, Arc<str>)> + Clone {
        self.0.iter()
    }

    /// Iterates over the keys and values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl<S: Into<Arc<str>>> FromIterator<(S, S)> for Labels {
    /// Collects labels. If a key occurs twice, the last value wins.
    fn from_iter<I: IntoIterator<Item = (S, S)>>(labels: I) -> Self {
        let sorted: std::collections::BTreeMap<Arc<str>, Arc<str>> = labels
            .into_iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        Self(sorted.into_iter().collect())
    }
}

/// The identity of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// The namespace, from `metadata.namespace`.
    pub namespace: Arc<str>,
    /// The name, from `metadata.name`.
    pub name: Arc<str>,
    /// The DNS name: `name.namespace.svc.cluster.local`.
    pub host: Arc<str>,
}

/// How the Service of a connection was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceBy {
    /// The client dialled the Service's ClusterIP. This is certain.
    Vip,
    /// The server's pod is a backend of the Service, with this target port. This is likely.
    TargetPort,
    /// The Service is headless, and the server's pod is one of its backends.
    Headless,
}

spelling!(ServiceBy {
    Vip => "vip",
    TargetPort => "target_port",
    Headless => "headless",
});

/// The Service that a client called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceMatch {
    /// The Service. If several match, the alphabetically first.
    pub service: Arc<Service>,
    /// How the Service was found.
    pub by: ServiceBy,
    /// Whether several Services match.
    pub ambiguous: bool,
}

/// The names of one end of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// The pod that had the address when the connection began.
    pub pod: Option<Arc<Pod>>,
    /// The node that has the address. The node of a pod is [`Pod::node`].
    pub node: Option<Arc<str>>,
}

impl End {
    /// Returns `own` unless `seen` has more names.
    pub(super) fn better_known<'a>(own: Option<&'a Self>, seen: &'a Self) -> &'a Self {
        let names = |end: &Self| (end.pod.is_some(), end.node.is_some());
        own.filter(|own| names(own) >= names(seen)).unwrap_or(seen)
    }
}

/// All names of a connection. The default has no names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The names of the client.
    pub src: End,
    /// The names of the server.
    pub dst: End,
    /// The Service that the client called.
    pub service: Option<ServiceMatch>,
    /// The address that the client dialled, if it was translated. Then [`super::Record::dst`] is the backend.
    pub original_dst: Option<SocketAddr>,
    /// The name of the container that owns the socket.
    pub container: Option<Arc<str>>,
    /// Whether an end belongs to a pod of this node and has no name.
    pub unresolved: bool,
}
