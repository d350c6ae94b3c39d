//! The pods that sources report: by UID, and by the address that a pod had at a time.
//!
//! The reports of several sources are merged by UID. A pod has its addresses from its start on, until a source reports that it
//! is gone, terminal or elsewhere. An address names a pod only if no other listed pod may have had it at that time.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;

use super::cached_match::CachedMatch;
use super::interner::Interner;
use super::owners::{Owner, Owners};
use super::reports::{Reports, SourceSet};
use super::shared::{Controller, Shared};
use super::timeline::{OPEN, Span, Timeline};
use crate::names::update::{self, Kind, PodObject, Scope, SourceId};
use crate::record::{ContainerId, Labels, Pod, WallTime};

/// How long a pod that is gone is remembered, ns: longer than the kernel takes to give up a connection.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// The number of gone pods that are remembered. Beyond it, the namespace with the most of them forgets its oldest.
pub const MAX_REMEMBERED: usize = 20_000;
/// The time between two sweeps of what is remembered, ns.
const SWEEP_NS: i64 = 60 * 1_000_000_000;
/// The tolerance for the clock that dates the start of a pod, ns. It only ever prevents a name.
const SLACK_NS: i64 = 2_000_000_000;
/// The estimated size of a pod without its texts, bytes.
const POD_BYTES: usize = 500;
/// The number of ports of a pod for which the Service is remembered.
const MAX_CACHED_PORTS: usize = 16;

/// The number of addresses that a pod may have had. Kubernetes gives it one of each family.
const MAX_ADDRESSES: usize = 16;

const UNKNOWN: i64 = i64::MAX;

/// A pod of the store. Valid until the next update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRef(u32);

#[derive(Debug)]
struct Entry {
    pod: Arc<Pod>,
    /// The version of the owners from which the pod's workload was derived; 0 if it was not.
    owners_version: u32,
    owner: Owner,
    started: i64,
    /// The names of the containers, and their ids in the same order.
    containers: Arc<[Arc<str>]>,
    container_ids: Box<[Option<ContainerId>]>,
    /// The named TCP ports of all containers.
    ports: Arc<[(Arc<str>, u16)]>,
    ips: Box<[IpAddr]>,
    is_terminal: bool,
    reports: Reports,
    /// The sources that ever reported the pod.
    sources: SourceSet,
    /// The sources that report the pod's addresses.
    address_sources: SourceSet,
    /// The time of the newest report, that the pod is gone among them.
    updated_at: i64,
    bytes: u32,
    #[expect(clippy::box_collection, reason = "most pods have none, and a pointer is smaller")]
    services: Option<Box<Vec<CachedMatch>>>,
}

impl Entry {
    fn new(uid: &str, object: &PodObject, strings: &mut Interner<str>) -> Self {
        Self {
            pod: Arc::new(Pod {
                uid: uid.into(),
                namespace: strings.intern(&*object.namespace),
                name: object.name.as_str().into(),
                workload: None,
                service_account: None,
                node: None,
                host_network: None,
                labels: None,
            }),
            owners_version: 0,
            owner: Owner::Unknown,
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

    fn has_name_of(&self, object: &PodObject) -> bool {
        *self.pod.namespace == *object.namespace && *self.pod.name == *object.name
    }

    /// Takes the facts that `object` adds to those of other sources.
    fn merge(&mut self, object: &PodObject, is_newer: bool, shared: &mut Shared) {
        let strings = &mut shared.strings;
        let before = &*self.pod;
        let labels = match &object.labels {
            Some(labels) if is_newer || before.labels.is_none() => {
                let labels = labels
                    .iter()
                    .map(|(key, value)| (strings.intern(&**key), strings.intern(&**value)));
                Some(shared.labels.intern(labels.collect::<Labels>()))
            }
            _ => None,
        };
        let pod = Pod {
            uid: Arc::clone(&before.uid),
            namespace: Arc::clone(&before.namespace),
            name: Arc::clone(&before.name),
            workload: before.workload.clone(),
            service_account: match &object.service_account {
                Some(account) => Some(strings.intern(&**account)),
                None => before.service_account.clone(),
            },
            node: match &object.node {
                Some(node) => Some(strings.intern(&**node)),
                None => before.node.clone(),
            },
            host_network: object.host_network.or(before.host_network),
            labels: labels.map(|labels| (*labels).clone()).or_else(|| before.labels.clone()),
        };
        if pod != *self.pod {
            self.pod = Arc::new(pod);
        }
        match &object.owner {
            update::Owner::Unknown => {}
            update::Owner::Nobody => self.owner = Owner::Nobody,
            // The API server's copy of a static pod.
            update::Owner::By(node) if node.kind == "Node" => self.owner = Owner::Nobody,
            update::Owner::By(controller) => {
                let controller = Controller::new(controller, strings);
                self.owner = Owner::By(shared.controllers.intern(controller));
            }
        }
        self.owners_version = 0;
        self.started = self.started.min(object.started.map_or(UNKNOWN, |started| started.0));
        self.merge_containers(object, shared);
    }

    fn merge_containers(&mut self, object: &PodObject, shared: &mut Shared) {
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
        let ports: Arc<[_]> = ports
            .map(|(name, port)| (shared.strings.intern(&**name), *port))
            .collect();
        if !ports.is_empty() {
            self.ports = shared.ports.intern(ports);
        }
    }

    fn has_started_by(&self) -> Option<WallTime> {
        Some(self.started).filter(|&started| started != UNKNOWN).map(WallTime)
    }
}

/// All pods.
#[derive(Debug, Default)]
pub struct Pods {
    entries: Slab<Entry>,
    by_uid: HashMap<Arc<str>, u32>,
    /// The UIDs of static pods that pods have, or have besides their own.
    static_uids: HashMap<u32, Arc<str>>,
    /// The pods that have a static pod's UID besides their own.
    by_static_uid: HashMap<Arc<str>, Vec<u32>>,
    addresses: Timeline<IpAddr, u32>,
    /// The pods that are gone, by namespace, the oldest first, with the time at which they went.
    gone: HashMap<Arc<str>, VecDeque<(i64, u32)>>,
    gone_count: usize,
    swept_at: i64,
}

impl Pods {
    /// Adds or changes a pod. Returns `false` if there is no room for it.
    pub fn upsert(&mut self, source: SourceId, at: WallTime, object: &PodObject, shared: &mut Shared) -> bool {
        if object.uid.is_empty() || object.name.is_empty() {
            return true;
        }
        let mut known = self.by_uid.get(&*object.uid).copied();
        let is_outdated = |entry: &Entry| !entry.reports.any() && at.0 < entry.updated_at;
        if known.is_some_and(|slot| is_outdated(&self.entries[slot as usize])) {
            // A list is answered while a watch goes on: it may still have a pod whose end the watch has reported.
            return true;
        }
        if let Some(slot) = known
            && at.0 >= self.entries[slot as usize].updated_at
            && !self.entries[slot as usize].has_name_of(object)
        {
            // A pod's name never changes, so the former report was wrong.
            self.remember_no_more(slot);
            self.remove(slot, shared);
            known = None;
        }
        let bytes = estimate(object);
        let namespace = shared.strings.intern(&*object.namespace);
        let before = known.map_or(0, |slot| self.entries[slot as usize].bytes as usize);
        if !shared.budget.replace(&namespace, before, bytes.max(before)) {
            return false;
        }
        let slot = known.unwrap_or_else(|| {
            let entry = Entry::new(&object.uid, object, &mut shared.strings);
            let uid = Arc::clone(&entry.pod.uid);
            let slot = self.entries.insert(entry) as u32;
            self.by_uid.insert(uid, slot);
            slot
        });
        self.set_static_uid(slot, object.static_uid.as_deref());
        let entry = &mut self.entries[slot as usize];
        let is_newer = at.0 >= entry.updated_at;
        let was_gone = !entry.reports.any();
        entry.bytes = bytes.max(before) as u32;
        entry.merge(object, is_newer, shared);
        entry.reports.add(source, at);
        entry.sources.insert(source);
        if was_gone && known.is_some() {
            self.remember_no_more(slot);
        }
        if is_newer {
            self.place(slot, source, at.0, object);
        }
        self.sweep(at.0, shared);
        true
    }

    /// Takes note of the pod's addresses.
    fn place(&mut self, slot: u32, source: SourceId, at: i64, object: &PodObject) {
        let entry = &mut self.entries[slot as usize];
        let before = std::mem::replace(&mut entry.updated_at, at);
        if entry.pod.host_network == Some(true) {
            // Its addresses are its node's. A source that did not know that was wrong all the time.
            self.close_all(slot, i64::MIN);
            return;
        }
        let ips = usable(&object.ips);
        let is_first = entry.ips.is_empty();
        let since = if is_first { entry.started.min(at) } else { before };
        if object.terminal {
            entry.is_terminal = true;
            if is_first {
                // It had them some time before, which speaks against whoever is said to have had them then.
                ips.iter().for_each(|&ip| self.open(slot, ip, since));
            }
            self.close_all(slot, at);
            return;
        }
        if ips.is_empty() || entry.is_terminal {
            return;
        }
        entry.address_sources.insert(source);
        let replaced = entry.ips.iter().filter(|old| {
            let mut same_family = ips.iter().filter(|new| new.is_ipv4() == old.is_ipv4()).peekable();
            same_family.peek().is_some() && same_family.all(|new| new != *old)
        });
        let replaced: Vec<_> = replaced.copied().collect();
        replaced.iter().for_each(|ip| self.close(slot, *ip, at));
        for ip in ips {
            self.open(slot, ip, since);
        }
    }

    /// The pod has an address. Where a list lacked the pod for a while, it had the address all the time.
    fn open(&mut self, slot: u32, ip: IpAddr, since: i64) {
        let entry = &mut self.entries[slot as usize];
        if let Some(span) = self.addresses.last_mut(&ip, slot) {
            span.until = OPEN;
        } else if entry.ips.len() < MAX_ADDRESSES {
            let (value, until, uses) = (slot, OPEN, 1);
            self.addresses.push(
                ip,
                Span {
                    value,
                    since,
                    until,
                    uses,
                },
            );
            entry.ips = entry.ips.iter().copied().chain([ip]).collect();
        }
    }

    fn close(&mut self, slot: u32, ip: IpAddr, at: i64) {
        if let Some(span) = self.addresses.last_mut(&ip, slot) {
            span.until = span.until.min(at);
        }
    }

    fn close_all(&mut self, slot: u32, at: i64) {
        for ip in self.entries[slot as usize].ips.clone() {
            self.close(slot, ip, at);
        }
    }

    fn set_static_uid(&mut self, slot: u32, static_uid: Option<&str>) {
        let Some(uid) = static_uid else { return };
        if self.static_uids.get(&slot).is_some_and(|known| **known == *uid) {
            return;
        }
        self.unlink_static_uid(slot);
        let uid: Arc<str> = uid.into();
        if self.entries[slot as usize].pod.uid != uid {
            self.by_static_uid.entry(Arc::clone(&uid)).or_default().push(slot);
        }
        self.static_uids.insert(slot, uid);
    }

    fn unlink_static_uid(&mut self, slot: u32) {
        if let Some(uid) = self.static_uids.remove(&slot)
            && let Some(slots) = self.by_static_uid.get_mut(&uid)
        {
            slots.retain(|&one| one != slot);
            if slots.is_empty() {
                self.by_static_uid.remove(&uid);
            }
        }
    }

    /// Removes a source's report of a pod.
    pub fn delete(&mut self, source: SourceId, at: WallTime, uid: &str, shared: &mut Shared) {
        if let Some(&slot) = self.by_uid.get(uid) {
            self.remove_report(slot, source, at.0, shared);
        }
        self.sweep(at.0, shared);
    }

    /// Removes the source's report of the pods that a complete list lacks.
    pub fn end_list(&mut self, source: SourceId, at: WallTime, scope: &Scope, shared: &mut Shared) {
        let is_in_scope = |entry: &Entry| match scope {
            Scope::All(kind) => *kind == Kind::Pods,
            Scope::PodsOfNode(node) => entry.pod.node.as_deref() == Some(node),
        };
        let missing = self.entries.iter();
        let missing = missing.filter(|(_, entry)| entry.reports.is_missing(source, at) && is_in_scope(entry));
        for slot in missing.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.remove_report(slot, source, at.0, shared);
        }
        self.sweep(at.0, shared);
    }

    fn remove_report(&mut self, slot: u32, source: SourceId, at: i64, shared: &mut Shared) {
        let entry = &mut self.entries[slot as usize];
        if !entry.reports.sources().contains(SourceSet::of(source)) {
            return;
        }
        entry.reports.remove(source);
        entry.updated_at = entry.updated_at.max(at);
        entry.address_sources.remove(source);
        let is_gone = !entry.reports.any();
        let namespace = Arc::clone(&entry.pod.namespace);
        if entry.address_sources.is_empty() {
            self.close_all(slot, at);
        }
        if is_gone {
            self.gone.entry(namespace).or_default().push_back((at, slot));
            self.gone_count += 1;
            if self.gone_count > MAX_REMEMBERED {
                self.forget_one(shared);
            }
        }
    }

    /// The pod is reported again.
    fn remember_no_more(&mut self, slot: u32) {
        if let Some(gone) = self.gone.get_mut(&self.entries[slot as usize].pod.namespace) {
            let before = gone.len();
            gone.retain(|&(_, one)| one != slot);
            self.gone_count -= before - gone.len();
        }
    }

    /// Forgets the oldest pod of the namespace of which most are remembered.
    fn forget_one(&mut self, shared: &mut Shared) {
        let most = self.gone.values_mut().max_by_key(|gone| gone.len());
        if let Some((_, slot)) = most.and_then(VecDeque::pop_front) {
            self.forget(slot, shared);
        }
    }

    /// Forgets the pods that have been gone for long, now and then.
    fn sweep(&mut self, now: i64, shared: &mut Shared) {
        if now.saturating_sub(self.swept_at) < SWEEP_NS {
            return;
        }
        self.swept_at = now;
        let mut old = Vec::new();
        self.gone.retain(|_, gone| {
            while let Some(&(at, slot)) = gone.front()
                && now.saturating_sub(at) > REMEMBERED_NS
            {
                gone.pop_front();
                old.push(slot);
            }
            !gone.is_empty()
        });
        old.into_iter().for_each(|slot| self.forget(slot, shared));
    }

    fn forget(&mut self, slot: u32, shared: &mut Shared) {
        self.gone_count -= 1;
        self.remove(slot, shared);
    }

    fn remove(&mut self, slot: u32, shared: &mut Shared) {
        let Some(entry) = self.entries.try_remove(slot as usize) else {
            return;
        };
        self.by_uid.remove(&entry.pod.uid);
        self.unlink_static_uid(slot);
        for ip in entry.ips {
            self.addresses.remove(&ip, slot);
        }
        shared.budget.replace(&entry.pod.namespace, entry.bytes as usize, 0);
    }

    /// Returns the pod with this UID, reported or remembered. The UID of a static pod is its own, or the one that the API
    /// server's copy of the pod has besides.
    pub fn find(&self, uid: &str) -> Option<PodRef> {
        let slot = match self.by_uid.get(uid) {
            Some(&slot) => self.canonical(slot),
            None => self.static_pod(uid, |_| true)?,
        };
        Some(PodRef(slot))
    }

    /// Returns the API server's copy of a kubelet's static pod, if there is one; else the pod itself.
    fn canonical(&self, slot: u32) -> u32 {
        let entry = &self.entries[slot as usize];
        match self.static_uids.get(&slot) {
            Some(uid) if *uid == entry.pod.uid => {
                let is_copy =
                    |one: &Entry| (&one.pod.namespace, &one.pod.name) == (&entry.pod.namespace, &entry.pod.name);
                self.static_pod(uid, is_copy).unwrap_or(slot)
            }
            _ => slot,
        }
    }

    /// Returns the only listed pod that claims a static pod's UID; with none, the last that did. Two claims void each other.
    fn static_pod(&self, uid: &str, is_copy: impl Fn(&Entry) -> bool) -> Option<u32> {
        let claims = self.by_static_uid.get(uid)?;
        let claims = claims
            .iter()
            .copied()
            .filter(|&slot| is_copy(&self.entries[slot as usize]));
        let mut listed = claims.clone().filter(|&slot| self.entries[slot as usize].reports.any());
        match (listed.next(), listed.next()) {
            (Some(slot), None) => Some(slot),
            (None, _) => claims.last(),
            _ => None,
        }
    }

    /// Returns the pod that had `ip` at `time`, if a source of `allowed` lists it and no other pod may have had the address.
    pub fn holder(&self, ip: IpAddr, time: WallTime, allowed: SourceSet) -> Option<PodRef> {
        let mut holder = None;
        let mut is_certain = false;
        for span in self.addresses.get(&ip) {
            let is_possible = time.0 >= span.since.saturating_sub(SLACK_NS) && time.0 < span.until;
            if !is_possible || !self.entries[span.value as usize].sources.intersects(allowed) {
                continue;
            }
            let slot = self.canonical(span.value);
            if holder.is_some_and(|other| other != slot) {
                return None;
            }
            holder = Some(slot);
            is_certain |= span.contains(time);
        }
        holder.filter(|_| is_certain).map(PodRef)
    }

    /// Returns whether `ip` was the address of this pod at `time`, or may have been: sources list neither an address of the
    /// pod nor another pod with this one.
    pub fn may_have_held(&self, pod: PodRef, ip: IpAddr, time: WallTime, allowed: SourceSet) -> bool {
        match self.holder(ip, time, allowed) {
            Some(holder) => holder == pod,
            None => self.entries[pod.0 as usize].ips.is_empty() && self.addresses.get(&ip).is_empty(),
        }
    }

    /// Returns whether a listed pod has, or a remembered pod had, this address.
    pub fn is_pod_address(&self, ip: IpAddr) -> bool {
        !self.addresses.get(&ip).is_empty()
    }

    /// Returns the pod in the form that records have.
    pub fn pod(&mut self, PodRef(slot): PodRef, owners: &Owners) -> Arc<Pod> {
        let entry = &mut self.entries[slot as usize];
        if entry.owners_version != owners.version() {
            entry.owners_version = owners.version();
            let pod = &entry.pod;
            let (labels, started) = (pod.labels.as_ref(), entry.has_started_by());
            let workload = owners.workload(&entry.owner, &pod.namespace, &pod.name, labels, started);
            if workload != pod.workload {
                entry.pod = Arc::new(Pod {
                    workload,
                    ..(**pod).clone()
                });
            }
        }
        Arc::clone(&entry.pod)
    }

    /// Returns the sources that report the pod, or did.
    pub fn sources(&self, PodRef(slot): PodRef) -> SourceSet {
        self.entries[slot as usize].sources
    }

    /// Returns the number of pods that sources report.
    pub fn len(&self) -> usize {
        self.entries.len() - self.gone_count
    }

    /// The number of gone pods that are remembered.
    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.gone_count
    }

    /// Returns the name of the pod's container with this id.
    pub fn container(&self, PodRef(slot): PodRef, id: &ContainerId) -> Option<Arc<str>> {
        let entry = &self.entries[slot as usize];
        let at = entry.container_ids.iter().position(|one| one.as_ref() == Some(id))?;
        entry.containers.get(at).map(Arc::clone)
    }

    /// Returns whether a container of the pod has a port of this name and number.
    pub fn has_port(&self, PodRef(slot): PodRef, name: &str, port: u16) -> bool {
        let mut ports = self.entries[slot as usize].ports.iter();
        ports.any(|(one, number)| **one == *name && *number == port)
    }

    /// Returns the remembered Service of a port of the pod.
    pub fn cached_service(&self, PodRef(slot): PodRef, port: u16) -> Option<&CachedMatch> {
        self.entries[slot as usize]
            .services
            .iter()
            .flat_map(|services| services.iter())
            .find(|cached| cached.port == port)
    }

    /// Remembers the Service of a port of the pod.
    pub fn cache_service(&mut self, PodRef(slot): PodRef, new: CachedMatch) {
        let services = self.entries[slot as usize].services.get_or_insert_default();
        match services.iter_mut().find(|cached| cached.port == new.port) {
            Some(cached) => *cached = new,
            None => {
                if services.len() >= MAX_CACHED_PORTS {
                    services.remove(0);
                }
                services.push(new);
            }
        }
    }
}

/// Returns the memory that a pod takes at most, about: what it shares with other pods counts in full.
fn estimate(object: &PodObject) -> usize {
    let labels = object.labels.iter().flatten();
    let labels: usize = labels.map(|(key, value)| key.len() + value.len() + 64).sum();
    let containers = object
        .containers
        .iter()
        .map(|container| 100 + 40 * container.ports.len());
    POD_BYTES + object.name.len() + labels + containers.sum::<usize>() + 100 * object.ips.len()
}

/// Returns the addresses that a packet from elsewhere can have; an IPv4-mapped IPv6 address is IPv4.
fn usable(ips: &[IpAddr]) -> Vec<IpAddr> {
    let mut usable: Vec<IpAddr> = Vec::new();
    for ip in ips.iter().map(IpAddr::to_canonical) {
        if !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast() && !usable.contains(&ip) {
            usable.push(ip);
        }
    }
    usable
}
