//! All that sources have told, and what it makes of a record. Pure: what this node itself shows comes in as a value.

#[cfg(test)]
mod size;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::local::cgroup::CgroupOwner;
use super::nodes::Nodes;
use super::pods::{PodRef, Pods};
use super::service::Services;
use super::update::{Change, Key, Kind, Object, Scope, SourceUpdate};
use crate::record::{Direction, End, Pod, Record, WallTime};

/// What this node shows of a record's socket.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// Whose its cgroup is.
    pub place: Option<Arc<CgroupOwner>>,
    /// Its network namespace is the node's own.
    pub in_nodes_netns: bool,
    /// The UID of the pod that its network namespace is.
    pub netns_pod: Option<Arc<str>>,
    /// Where what the client dialled was translated to.
    pub backend: Option<SocketAddr>,
}

/// All that sources have told.
#[derive(Debug, Default)]
pub struct Index {
    pods: Pods,
    services: Services,
    nodes: Nodes,
}

/// A pod, and where it stands in the index.
struct Found {
    reference: PodRef,
    pod: Arc<Pod>,
}

impl Index {
    /// Takes news.
    pub fn learn(&mut self, told: &SourceUpdate) {
        let SourceUpdate { source, at, change } = told;
        let (source, at) = (*source, *at);
        match change {
            Change::Upsert(Object::Pod(facts)) => self.pods.is(source, at, facts),
            Change::Upsert(Object::Service(facts)) => self.services.is(source, at, facts),
            Change::Upsert(Object::Endpoints(facts)) => self.services.endpoints_are(source, at, facts),
            Change::Upsert(Object::Controller(facts)) => self.pods.controller_is(source, facts),
            Change::Upsert(Object::Node(facts)) => self.nodes.is(source, facts),
            Change::Delete(Key::Pod(uid)) => self.pods.gone(source, at, uid),
            Change::Delete(Key::Service(namespace, name)) => self.services.gone(source, at, namespace, name),
            Change::Delete(Key::Endpoints(namespace, name)) => {
                self.services.endpoints_gone(source, at, namespace, name)
            }
            Change::Delete(Key::Controller(uid)) => self.pods.owners_mut().gone(source, uid),
            Change::Delete(Key::Node(name)) => self.nodes.gone(source, name),
            Change::ListStart(Scope::All(Kind::Pods)) => self.pods.list_begins(source),
            Change::ListStart(Scope::All(Kind::Services)) => self.services.list_begins(source),
            Change::ListStart(Scope::All(Kind::Endpoints)) => self.services.endpoints_list_begins(source),
            Change::ListStart(Scope::All(Kind::ReplicaSets | Kind::Jobs)) => self.pods.owners_mut().list_begins(source),
            Change::ListStart(Scope::All(Kind::Nodes)) => self.nodes.list_begins(source),
            Change::ListEnd(Scope::All(Kind::Pods)) => self.pods.list_ends(source, at),
            Change::ListEnd(Scope::All(Kind::Services)) => self.services.list_ends(source, at),
            Change::ListEnd(Scope::All(Kind::Endpoints)) => self.services.endpoints_list_ends(source, at),
            Change::ListEnd(Scope::All(Kind::ReplicaSets | Kind::Jobs)) => self.pods.owners_mut().list_ends(source),
            Change::ListEnd(Scope::All(Kind::Nodes)) => self.nodes.list_ends(source),
            Change::ListStart(Scope::PodsOfNode(_)) | Change::ListEnd(Scope::PodsOfNode(_)) => {}
        }
    }

    /// Whether a source has told of this pod.
    pub fn knows(&self, uid: &str) -> bool {
        self.pods.find(uid).is_some_and(|found| self.pods.is_named(found))
    }

    /// How many pods sources tell of.
    pub fn pods(&self) -> usize {
        self.pods.told()
    }

    /// Whether a pod had this address when `record`'s connection began: then nothing translates it.
    pub fn is_a_pods(&self, ip: IpAddr, record: &Record) -> bool {
        self.pods.holder(ip, began(record)).is_some()
    }

    /// Names `record`.
    pub fn name(&mut self, record: &mut Record, shown: &Shown) {
        let start = began(record);
        if let Some(backend) = shown.backend {
            record.names.original_dst = Some(record.dst);
            record.dst = backend;
        }
        let (local, remote) = match record.direction {
            Direction::Outbound => (record.src.ip(), record.dst.ip()),
            Direction::Inbound => (record.dst.ip(), record.src.ip()),
        };
        self.observe(local, shown, start);
        let local_pod = self.local(local, shown, start);
        let remote_pod = self.remote(local, remote, local_pod.as_ref(), start);
        record.names.unresolved = local_pod.is_none() && shown.place.as_ref().is_some_and(|place| place.pod.is_some());
        record.container_id = shown.place.as_ref().and_then(|place| place.container);
        record.names.container = match (&local_pod, &record.container_id) {
            (Some(found), Some(id)) => self.pods.container(found.reference, id),
            _ => None,
        };
        let called = match record.direction {
            Direction::Outbound => {
                let dialled = record.socket_dst();
                // A port that was translated at whatever address is a NodePort, if any Service has it.
                let at_node = self.nodes.at(dialled.ip()).is_some() || record.names.original_dst.is_some();
                self.services.dialled(dialled, at_node, start)
            }
            Direction::Inbound => None,
        };
        let server = match record.direction {
            Direction::Outbound => remote_pod.as_ref(),
            Direction::Inbound => local_pod.as_ref(),
        };
        record.names.service = called.or_else(|| {
            let server = server?;
            self.services
                .behind(record.dst, &server.pod, server.reference, &self.pods, start)
        });
        let local_end = self.end(local, local_pod);
        let remote_end = self.end(remote, remote_pod);
        (record.names.src, record.names.dst) = match record.direction {
            Direction::Outbound => (local_end, remote_end),
            Direction::Inbound => (remote_end, local_end),
        };
    }

    /// A pod's own socket shows whose its address is. Within a pod that is a node itself, addresses are of another world.
    fn observe(&mut self, local: IpAddr, shown: &Shown, start: WallTime) {
        if let Some(place) = &shown.place
            && let Some(pod) = &place.pod
            && !shown.in_nodes_netns
            && !local.is_loopback()
        {
            self.pods.observed(local, &pod.uid, start);
        }
    }

    /// By the cgroup, else by the network namespace, else by the address.
    fn local(&mut self, ip: IpAddr, shown: &Shown, start: WallTime) -> Option<Found> {
        // A pod that nobody knows is no other pod.
        if let Some(pod) = shown.place.as_ref().and_then(|place| place.pod.as_ref()) {
            return self.find(&pod.uid);
        }
        // In the node's own namespace no address is a pod's.
        if shown.in_nodes_netns {
            return None;
        }
        match &shown.netns_pod {
            Some(uid) => self.find(uid),
            None => self.at(ip, start),
        }
    }

    fn remote(&mut self, local: IpAddr, remote: IpAddr, local_pod: Option<&Found>, start: WallTime) -> Option<Found> {
        // What a pod calls within its own network namespace is itself.
        if let Some(Found { reference, pod }) = local_pod
            && pod.host_network == Some(false)
            && (remote.is_loopback() || remote == local)
        {
            return Some(Found {
                reference: *reference,
                pod: Arc::clone(pod),
            });
        }
        self.at(remote, start)
    }

    fn find(&mut self, uid: &str) -> Option<Found> {
        let reference = self.pods.find(uid)?;
        let pod = self.pods.pod(reference)?;
        Some(Found { reference, pod })
    }

    fn at(&mut self, ip: IpAddr, start: WallTime) -> Option<Found> {
        if ip.is_loopback() || self.nodes.at(ip).is_some() {
            return None;
        }
        let reference = self.pods.holder(ip, start)?;
        let pod = self.pods.pod(reference)?;
        Some(Found { reference, pod })
    }

    fn end(&self, ip: IpAddr, found: Option<Found>) -> End {
        let node = match found {
            Some(_) => None,
            None => self.nodes.at(ip).cloned(),
        };
        End {
            pod: found.map(|found| found.pod),
            node,
        }
    }
}

/// When its connection began; where that was before tracing did, when tracing began.
fn began(record: &Record) -> WallTime {
    let observed = i64::try_from(record.observed_ns).unwrap_or(i64::MAX);
    record.start.unwrap_or(WallTime(record.time.0.saturating_sub(observed)))
}
