//! The merged view of all sources: pods, Services, nodes, owners. Pure: time and the facts of this node come in as
//! values.

mod budget;
mod doubts;
mod interner;
mod nodes;
mod owners;
mod pod_entry;
mod pods;
mod reports;
mod service_lookup;
mod services;
mod shared;
#[cfg(test)]
mod tests;
mod timeline;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::names::local::cgroup::{CgroupOwner, PodCgroup};
use crate::names::update::{Change, Key, Kind, Object, Scope, SourceUpdate};
use crate::record::{Direction, End, Pod, Record, Service, ServiceMatch, WallTime};

use budget::MAX_BYTES;
use doubts::Doubts;
use nodes::Nodes;
use owners::Owners;
use pods::{NamedPod, Pods};
use reports::{AsOf, ReportedBy, SourceSet};
use services::Services;
use shared::SharedValues;

/// The number of kubelets' cgroup roots that are remembered. Only root makes them.
const MAX_ROOTS: usize = 1_024;

/// What this node's kernel vouches for about a record's socket.
#[derive(Clone, Debug, Default)]
pub struct LocalContext {
    /// The pod and container of its cgroup.
    pub owner: Option<Arc<CgroupOwner>>,
    /// Whether its network namespace is the node's own.
    pub is_in_node_netns: bool,
    /// The pod whose network namespace it is in. Looked up only where the cgroup names no pod.
    pub netns_pod: Option<PodCgroup>,
    /// Whether root made its network namespace, so that its owner cannot choose its addresses at will.
    pub is_netns_of_root: bool,
    /// The backend to which the node's network namespace translated the client's address, port and dialled address.
    /// It counts only for a socket whose packets pass there.
    pub backend: Option<SocketAddr>,
}

impl LocalContext {
    fn cgroup_pod(&self) -> Option<&PodCgroup> {
        self.owner.as_ref()?.pod.as_ref()
    }

    /// Returns the pod by the cgroup, else by the network namespace.
    fn pod(&self) -> Option<&PodCgroup> {
        self.cgroup_pod().or(self.netns_pod.as_ref())
    }

    /// Returns whether only root may have chosen the addresses of the socket's network namespace.
    fn is_address_of_root(&self) -> bool {
        let is_in_container = self.owner.as_ref().is_some_and(|owner| owner.container.is_some());
        self.is_in_node_netns || self.is_netns_of_root && !is_in_container
    }
}

/// All objects that sources report.
#[derive(Debug, Default)]
pub struct Store {
    shared: SharedValues,
    pods: Pods,
    services: Services,
    nodes: Nodes,
    owners: Owners,
    doubts: Doubts,
    /// The sources that list a pod below each kubelet's cgroup root.
    roots: HashMap<Arc<str>, SourceSet>,
    /// The nodes of those pods: this machine, by the names that clusters have for it.
    local_nodes: HashSet<Arc<str>>,
    /// The number of objects that exceeded the memory budget.
    left_out: u64,
    has_warned: bool,
}

impl Store {
    pub fn apply(&mut self, update: &SourceUpdate) {
        let (report, shared) = (reported_by(update), &mut self.shared);
        match &update.change {
            Change::ListStart(_) => {}
            Change::Upsert(object) => {
                let has_room = match object {
                    Object::Pod(pod) => self.pods.upsert(report, pod, shared),
                    Object::Service(service) => self.services.upsert(report, service, shared),
                    Object::Endpoints(endpoints) => self.services.upsert_endpoints(report, endpoints, shared),
                    Object::Controller(controller) => self.owners.upsert(report, controller, shared),
                    Object::Node(node) => {
                        self.nodes.upsert(report, node);
                        true
                    }
                };
                if !has_room {
                    // What the source reported before is no longer true, so it does not stay.
                    self.left_out += 1;
                    self.delete(update, &object.key());
                }
            }
            Change::Delete(key) => self.delete(update, key),
            Change::ListEnd(scope) => match scope {
                Scope::All(Kind::Pods) | Scope::PodsOfNode(_) => {
                    self.pods.end_list(report, scope, shared);
                    // A list of a node that is not this one answers nothing.
                    if scope.covers_pods_of(&self.local_nodes) {
                        self.doubts.answered(report);
                    }
                }
                Scope::All(Kind::Services) => self.services.end_list(report, shared),
                Scope::All(Kind::Endpoints) => self.services.end_endpoints_list(report, shared),
                Scope::All(kind @ (Kind::ReplicaSets | Kind::Jobs)) => self.owners.end_list(report, *kind, shared),
                Scope::All(Kind::Nodes) => self.nodes.end_list(report),
            },
        }
    }

    fn delete(&mut self, update: &SourceUpdate, key: &Key) {
        let (report, shared) = (reported_by(update), &mut self.shared);
        match key {
            Key::Pod(uid) => self.pods.delete(report, uid, shared),
            Key::Service(namespace, name) => self.services.delete(report, namespace, name, shared),
            Key::Endpoints(namespace, name) => self.services.delete_endpoints(report, namespace, name, shared),
            Key::Controller(uid) => self.owners.delete(report.source, uid, shared),
            Key::Node(name) => self.nodes.delete(report.source, name),
        }
    }

    /// Returns whether a source reports this pod, or did.
    pub fn knows(&self, uid: &str) -> bool {
        self.pods.find(uid).is_some()
    }

    /// Returns the number of pods that sources report.
    pub fn pods(&self) -> usize {
        self.pods.len()
    }

    /// Calls `visit` with each pod that sources report or reported recently, in the form that records have.
    pub fn for_each_pod(&mut self, mut visit: impl FnMut(&Arc<Pod>)) {
        for pod in self.pods.all_named(&self.owners) {
            visit(&pod);
        }
    }

    /// Calls `visit` with each Service that sources report or reported recently.
    pub fn for_each_service(&self, visit: impl FnMut(&Arc<Service>)) {
        self.services.all().for_each(visit);
    }

    /// Returns a warning once objects have exceeded the memory budget. Later calls return none.
    pub fn warning(&mut self) -> Option<String> {
        if self.left_out == 0 || self.has_warned {
            return None;
        }
        self.has_warned = true;
        let limit = MAX_BYTES >> 20;
        Some(format!(
            "the pods and Services exceed the {limit} MiB that names may use: some have no names"
        ))
    }

    /// Returns whether a source lists a pod below this kubelet's cgroup root.
    pub fn owns_root(&self, root: &str) -> bool {
        self.roots.contains_key(root)
    }

    /// Takes note of a pod below a kubelet's cgroup root.
    pub fn add_pod_under(&mut self, root: &Arc<str>, uid: &str) {
        let Some(found) = self.pods.find(uid) else { return };
        let pod = self.pods.get(found);
        let known = self.roots.get(root).copied().unwrap_or_default();
        if known.contains(pod.sources) || self.roots.len() >= MAX_ROOTS {
            return;
        }
        self.roots.entry(Arc::clone(root)).or_default().extend(pod.sources);
        self.local_nodes.extend(pod.pod.node.clone());
    }

    /// Returns whether `ip` was a pod's when `record`'s connection started: then nothing translates it.
    pub fn is_pod_address(&self, ip: IpAddr, record: &Record) -> bool {
        self.pods.holder(ip, as_of(record, SourceSet::ALL)).is_some()
    }

    /// Adds names to `record`, at time `now`.
    pub fn annotate(&mut self, record: &mut Record, local: &LocalContext, now: WallTime) {
        let is_outbound = record.direction == Direction::Outbound;
        let local_ip = if is_outbound { record.src.ip() } else { record.dst.ip() };
        if let Some(pod) = local.pod() {
            self.add_pod_under(&pod.root, &pod.uid);
        }
        let allowed = match local.pod() {
            Some(pod) => self.roots.get(&pod.root).copied().unwrap_or_default(),
            None => SourceSet::ALL,
        };
        let as_of = as_of(record, allowed);
        let is_outside = allowed.is_empty();
        self.doubts.expire(now);
        if let Some(pod) = local.pod()
            && !is_outside
            && !local.is_in_node_netns
            && !self.knows(&pod.uid)
            && self.pods.is_pod_address(local_ip)
        {
            // A pod that no source knows yet uses an address that a source lists for another pod.
            self.doubts.raise(local_ip, &pod.uid, as_of.time, record.time);
        }
        let local_pod = self.local_pod(local_ip, local, as_of);
        if let Some(backend) = local.backend
            && self.is_through_node(local_ip, local, local_pod.as_ref(), as_of)
        {
            record.names.original_dst = Some(record.dst);
            record.dst = backend;
        }
        let remote_ip = if is_outbound { record.dst.ip() } else { record.src.ip() };
        let remote_pod = self.remote_pod(local_ip, remote_ip, local_pod.as_ref(), as_of);
        record.container_id = local.owner.as_ref().and_then(|owner| owner.container);
        record.names.unresolved = local_pod.is_none() && local.cgroup_pod().is_some() && !is_outside;
        record.names.container = match (&local_pod, &record.container_id) {
            (Some(found), Some(id)) => self.pods.get(found.reference).container(id),
            _ => None,
        };
        let server = if is_outbound { &remote_pod } else { &local_pod };
        let dialled = is_outbound.then(|| self.dialled(record, as_of));
        record.names.service = dialled.flatten().or_else(|| {
            let services = &self.services;
            services.behind(record.dst, server.as_ref()?, &mut self.pods, as_of)
        });
        let local_node = local
            .is_address_of_root()
            .then(|| self.node_at(local_ip, allowed))
            .flatten();
        let local_end = end(local_pod, local_node);
        let remote_end = end(remote_pod, self.node_at(remote_ip, allowed));
        (record.names.src, record.names.dst) = match record.direction {
            Direction::Outbound => (local_end, remote_end),
            Direction::Inbound => (remote_end, local_end),
        };
    }

    /// Returns whether the node's network namespace sees packets of the socket with its address `ip`. Only the node's
    /// own sockets and those of its pods are certain: in any other namespace somebody else may use the same numbers.
    fn is_through_node(&self, ip: IpAddr, local: &LocalContext, local_pod: Option<&NamedPod>, as_of: AsOf) -> bool {
        let is_pods = |found: &NamedPod| self.pods.may_have_held(found.reference, ip, as_of);
        local.is_in_node_netns || local_pod.is_some_and(is_pods)
    }

    /// Returns the pod of the local end: by the cgroup, else by the network namespace, else by the address, where
    /// root chose the address.
    fn local_pod(&mut self, ip: IpAddr, local: &LocalContext, as_of: AsOf) -> Option<NamedPod> {
        if local.is_in_node_netns && local.cgroup_pod().is_none() {
            return None;
        }
        if let Some(pod) = local.pod() {
            let reference = self.pods.find(&pod.uid).filter(|_| !as_of.sources.is_empty())?;
            return Some(self.pods.named(reference, &self.owners));
        }
        local.is_address_of_root().then(|| self.at(ip, as_of)).flatten()
    }

    fn remote_pod(
        &mut self,
        local_ip: IpAddr,
        remote_ip: IpAddr,
        local_pod: Option<&NamedPod>,
        as_of: AsOf,
    ) -> Option<NamedPod> {
        // What a pod reaches within its own network namespace is the pod itself.
        let own = local_pod.filter(|found| {
            found.pod.host_network == Some(false) && (remote_ip.is_loopback() || remote_ip == local_ip)
        });
        own.cloned().or_else(|| self.at(remote_ip, as_of))
    }

    /// Returns the pod that had an address when a connection started.
    fn at(&mut self, ip: IpAddr, as_of: AsOf) -> Option<NamedPod> {
        if ip.is_loopback() || self.nodes.at(ip).is_some() || self.doubts.is_in_doubt(ip, as_of.time) {
            return None;
        }
        let reference = self.pods.holder(ip, as_of)?;
        Some(self.pods.named(reference, &self.owners))
    }

    fn dialled(&self, record: &Record, as_of: AsOf) -> Option<ServiceMatch> {
        let dialled = record.socket_dst();
        let is_node = self.nodes.at(dialled.ip()).is_some();
        // An address that was translated, whatever it is, may be a node's that no source lists.
        let at_node = is_node || record.names.original_dst.is_some();
        let is_others = is_node || self.pods.is_pod_address(dialled.ip());
        self.services.dialled(dialled, at_node, is_others, as_of)
    }

    fn node_at(&self, ip: IpAddr, allowed: SourceSet) -> Option<Arc<str>> {
        self.nodes.at(ip).filter(|_| !allowed.is_empty()).cloned()
    }
}

/// Returns an end with the name of its pod, else of its node.
fn end(pod: Option<NamedPod>, node: Option<Arc<str>>) -> End {
    End {
        node: node.filter(|_| pod.is_none()),
        pod: pod.map(|found| found.pod),
    }
}

fn reported_by(update: &SourceUpdate) -> ReportedBy {
    let (source, at) = (update.source, update.at);
    ReportedBy { source, at }
}

/// Returns the look-up for a record: at the start of the connection, or where that was before tracing, the start of
/// tracing.
fn as_of(record: &Record, sources: SourceSet) -> AsOf {
    let observed = i64::try_from(record.observed_ns).unwrap_or(i64::MAX);
    let time = record.start.unwrap_or(WallTime(record.time.0.saturating_sub(observed)));
    AsOf { time, sources }
}
