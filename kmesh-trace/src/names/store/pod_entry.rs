//! One pod of the store: what its sources report, merged.

use std::net::IpAddr;
use std::sync::Arc;

use super::owners::{Owners, PodOwner};
use super::reports::{Reports, SourceSet};
use super::shared::{Controller, SharedValues, excess_bytes};
use crate::names::update::{self, PodObject};
use crate::record::{ContainerId, Labels, Pod, ServiceMatch, WallTime};

/// The number of ports of a pod for which the Service is remembered.
const MAX_CACHED_PORTS: usize = 16;
/// The estimated size of a pod without its texts, bytes.
const POD_BYTES: usize = 500;
/// The start of a pod whose start is unknown.
const UNKNOWN: i64 = i64::MAX;

/// A pod, reported or remembered.
#[derive(Debug)]
pub struct PodEntry {
    pub pod: Arc<Pod>,
    /// The version of the owners from which the pod's workload was derived; 0 if it was not.
    owners_version: u32,
    owner: PodOwner,
    /// The earliest start that a source reports.
    pub started: i64,
    /// The names of the containers, and their ids in the same order.
    containers: Arc<[Arc<str>]>,
    container_ids: Box<[Option<ContainerId>]>,
    /// The named TCP ports of all containers.
    ports: Arc<[(Arc<str>, u16)]>,
    /// All addresses that the pod has had.
    pub ips: Box<[IpAddr]>,
    pub is_terminal: bool,
    pub reports: Reports,
    /// The sources that ever reported the pod.
    pub sources: SourceSet,
    /// The sources that report the pod's addresses.
    pub address_sources: SourceSet,
    /// The time of the newest report, reports that the pod is gone included.
    pub updated_at: i64,
    /// The share of the budget that the pod takes, bytes.
    pub bytes: u32,
    #[expect(clippy::box_collection, reason = "most pods have none, and a pointer is smaller")]
    services: Option<Box<Vec<CachedMatch>>>,
}

/// The Service of a port of a pod. It is valid until a Service of the pod's namespace changes, or an endpoint at the
/// pod's address.
#[derive(Clone, Debug)]
pub struct CachedMatch {
    pub port: u16,
    pub ip: IpAddr,
    pub allowed: SourceSet,
    /// The last change of the endpoints at the address, and of the namespace's selectors: number and time.
    pub changed: [(u32, i64); 2],
    pub found: Option<ServiceMatch>,
}

impl PodEntry {
    /// Returns the pod with its identity alone.
    pub fn new(object: &PodObject, shared: &mut SharedValues) -> Self {
        Self {
            pod: Arc::new(Pod {
                uid: object.uid.as_str().into(),
                namespace: shared.strings.intern(&*object.namespace),
                name: object.name.as_str().into(),
                workload: None,
                service_account: None,
                node: None,
                host_network: None,
                labels: None,
            }),
            owners_version: 0,
            owner: PodOwner::Unknown,
            started: UNKNOWN,
            containers: Arc::default(),
            container_ids: Box::default(),
            ports: Arc::default(),
            ips: Box::default(),
            is_terminal: false,
            reports: Reports::default(),
            sources: SourceSet::default(),
            address_sources: SourceSet::default(),
            updated_at: i64::MIN,
            bytes: 0,
            services: None,
        }
    }

    pub fn has_name_of(&self, object: &PodObject) -> bool {
        *self.pod.namespace == *object.namespace && *self.pod.name == *object.name
    }

    /// Takes the facts that `object` adds to those of other sources.
    pub fn merge(&mut self, object: &PodObject, is_newer: bool, shared: &mut SharedValues) {
        let strings = &mut shared.strings;
        let mut pod = (*self.pod).clone();
        if let Some(account) = &object.service_account {
            pod.service_account = Some(strings.intern(&**account));
        }
        if let Some(node) = &object.node {
            pod.node = Some(strings.intern(&**node));
        }
        pod.host_network = object.host_network.or(pod.host_network);
        if let Some(labels) = &object.labels
            && (is_newer || pod.labels.is_none())
        {
            let labels = labels.iter();
            let labels = labels.map(|(key, value)| (strings.intern(&**key), strings.intern(&**value)));
            pod.labels = Some((*shared.labels.intern(labels.collect::<Labels>())).clone());
        }
        if pod != *self.pod {
            self.pod = Arc::new(pod);
        }
        match &object.owner {
            update::Owner::Unknown => {}
            update::Owner::Nobody => self.owner = PodOwner::Nobody,
            // The API server's copy of a static pod.
            update::Owner::By(node) if node.kind == "Node" => self.owner = PodOwner::Nobody,
            update::Owner::By(controller) => {
                let controller = Controller::new(controller, strings);
                self.owner = PodOwner::By(shared.controllers.intern(controller));
            }
        }
        self.owners_version = 0;
        self.started = self.started.min(object.started.map_or(UNKNOWN, |started| started.0));
        self.merge_containers(object, shared);
    }

    fn merge_containers(&mut self, object: &PodObject, shared: &mut SharedValues) {
        let mut names = self.containers.to_vec();
        let mut ids = std::mem::take(&mut self.container_ids).into_vec();
        for container in &object.containers {
            match names.iter().position(|name| **name == *container.name) {
                Some(at) => ids[at] = container.id.or(ids[at]),
                None => {
                    names.push(shared.strings.intern(&*container.name));
                    ids.push(container.id);
                }
            }
        }
        self.containers = shared.containers.intern(Arc::from(names));
        self.container_ids = ids.into();
        let ports = object.containers.iter().flat_map(|container| &container.ports);
        let ports = ports.map(|(name, port)| (shared.strings.intern(&**name), *port));
        let ports: Arc<[_]> = ports.collect();
        if !ports.is_empty() {
            self.ports = shared.ports.intern(ports);
        }
    }

    pub fn named(&mut self, owners: &Owners) -> Arc<Pod> {
        if self.owners_version != owners.version() {
            self.owners_version = owners.version();
            let pod = &self.pod;
            let started = Some(self.started).filter(|&started| started != UNKNOWN).map(WallTime);
            let workload = owners.workload(&self.owner, &pod.namespace, &pod.name, pod.labels.as_ref(), started);
            if workload != pod.workload {
                self.pod = Arc::new(Pod {
                    workload,
                    ..(**pod).clone()
                });
            }
        }
        Arc::clone(&self.pod)
    }

    /// Returns the name of the container with this id.
    pub fn container(&self, id: &ContainerId) -> Option<Arc<str>> {
        let at = self.container_ids.iter().position(|one| one.as_ref() == Some(id))?;
        self.containers.get(at).map(Arc::clone)
    }

    /// Returns whether a container has a port of this name and number.
    pub fn has_port(&self, name: &str, port: u16) -> bool {
        let mut ports = self.ports.iter();
        ports.any(|(one, number)| **one == *name && *number == port)
    }

    /// Returns the remembered Service of a port.
    pub fn cached_service(&self, port: u16) -> Option<&CachedMatch> {
        let mut services = self.services.iter().flat_map(|services| services.iter());
        services.find(|cached| cached.port == port)
    }

    /// Remembers the Service of a port.
    pub fn cache_service(&mut self, new: CachedMatch) {
        let services = self.services.get_or_insert_default();
        services.retain(|cached| cached.port != new.port);
        if services.len() >= MAX_CACHED_PORTS {
            services.remove(0);
        }
        services.push(new);
    }
}

/// Returns the memory that a pod takes at most, about: what it shares with other pods counts in full.
pub fn estimate(object: &PodObject) -> usize {
    let labels = object.labels.iter().flatten();
    let labels: usize = labels.map(|(key, value)| key.len() + value.len() + 64).sum();
    let containers = object.containers.iter();
    let containers = containers.map(|container| 100 + 40 * container.ports.len());
    let owner = match &object.owner {
        update::Owner::By(owner) => excess_bytes(owner),
        update::Owner::Unknown | update::Owner::Nobody => 0,
    };
    POD_BYTES + object.name.len() + labels + containers.sum::<usize>() + owner + 100 * object.ips.len()
}

/// Returns the addresses that a packet from elsewhere can have; an IPv4-mapped IPv6 address is IPv4.
pub fn usable(ips: &[IpAddr]) -> Vec<IpAddr> {
    let mut usable: Vec<IpAddr> = Vec::new();
    for ip in ips.iter().map(IpAddr::to_canonical) {
        if !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !usable.contains(&ip) {
            usable.push(ip);
        }
    }
    usable
}
