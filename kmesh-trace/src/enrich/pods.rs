//! Which pod: by its UID, and by who had an address when. Pure.
//!
//! What several sources tell of one pod is brought together under its UID, field by field. A pod holds its addresses for a
//! time, its tenure: surely from when it was first told to have them, possibly from when it was started, until it is told to
//! be gone, to be over or to have another address. An address is resolved for a point in time, and by at most one pod: where
//! two may have had it then, there is no answer, since no name beats a wrong one.

mod owners;
#[cfg(test)]
mod tests;
mod uid;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::facts::{self, ControllerFacts, PodFacts, SourceId};
use super::shared::{Few, Shared, Sources, ToldBy};
use crate::record::{ContainerId, Labels, Pod, WallTime};

use owners::{Controller, Owner, Owners};
use uid::Uid;

/// How long what is gone is remembered, ns: longer than the kernel takes to give up a connection whose peer is gone.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// How much of it at most; the oldest goes first.
const MOST_REMEMBERED: usize = 20_000;
/// How far the clock that says when a pod started may be off, ns. It counts only against naming.
const SLACK_NS: i64 = 2_000_000_000;

const NEVER: i64 = i64::MAX;

/// A pod in [`Pods`], for as long as nothing is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRef(u32);

/// What a pod has in common with its siblings, kept once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Template {
    namespace: Arc<str>,
    owner: Owner,
    service_account: Option<Arc<str>>,
    host_network: Option<bool>,
    labels: Option<Labels>,
    /// Each with its named ports, in the order of [`Tenure::containers`].
    containers: Box<[ContainerShape]>,
}

/// A container's name, and its ports by name.
type ContainerShape = (Arc<str>, Box<[(Arc<str>, u16)]>);

/// A pod and the time for which it holds its addresses. One that changes its address begins another tenure.
#[derive(Clone, Debug)]
struct Tenure {
    /// As the API server has it.
    uid: Uid,
    /// As the kubelet and the cgroup have it, where that is another: of a static pod.
    node_uid: Option<Box<Uid>>,
    /// None while only the kernel has shown that there is such a pod.
    name: Option<Arc<str>>,
    template: Arc<Template>,
    node: Option<Arc<str>>,
    started: Option<WallTime>,
    /// The first digits of each container's id; 0 for one that never ran.
    containers: Box<[u64]>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    /// Possibly from then on.
    since: i64,
    /// Surely from then on; [`NEVER`] when it was over before it was told.
    seen: i64,
    until: i64,
    is_over: bool,
    /// The time of the newest facts.
    at: i64,
    told_by: ToldBy,
    /// Who told of its addresses.
    placed_by: Sources,
    /// Since when nobody tells of it; [`NEVER`] while somebody does.
    left: i64,
    /// Made when it is first asked for, and of which version of the owners.
    made: Option<(Arc<Pod>, u32)>,
}

/// All pods.
#[derive(Debug, Default)]
pub struct Pods {
    strings: Shared<str>,
    templates: Shared<Template>,
    owners: Owners,
    tenures: Vec<Option<Tenure>>,
    free: Vec<u32>,
    by_uid: HashMap<Uid, u32>,
    by_ip: HashMap<IpAddr, Few<u32>>,
    /// Nobody tells of these any more, since when.
    left: VecDeque<(i64, u32)>,
}

impl Pods {
    /// A pod is so.
    pub fn is(&mut self, source: SourceId, at: WallTime, facts: &PodFacts) {
        if facts.uid.is_empty() || facts.name.is_empty() {
            return;
        }
        let uid = Uid::from(&*facts.uid);
        let node_uid = facts.config_hash.as_deref().map(Uid::from).filter(|hash| *hash != uid);
        let known = node_uid
            .as_ref()
            .and_then(|hash| self.by_uid.get(hash))
            .or_else(|| self.by_uid.get(&uid))
            .copied();
        let slot = known.unwrap_or_else(|| self.add(Tenure::new(uid.clone())));
        self.by_uid.insert(uid.clone(), slot);
        if let Some(hash) = node_uid {
            self.by_uid.insert(hash.clone(), slot);
            if let Some(tenure) = self.tenure_mut(slot) {
                if tenure.uid != uid {
                    tenure.made = None;
                }
                let before = std::mem::replace(&mut tenure.uid, uid);
                tenure.node_uid = Some(Box::new(hash));
                if !self.tenure(slot).is_some_and(|tenure| tenure.is_called(&before)) {
                    self.by_uid.remove(&before);
                }
            }
        }
        self.describe(slot, source, at.0, facts);
        self.place(slot, source, at.0, facts);
        self.forget(at.0);
    }

    /// Brings together what is known.
    fn describe(&mut self, slot: u32, source: SourceId, at: i64, facts: &PodFacts) {
        let Some(old) = self.tenures[slot as usize].take() else {
            return;
        };
        let is_newer = at >= old.at;
        let strings = &mut self.strings;
        let (shapes, containers) = containers(&old, &facts.containers, strings);
        let template = Template {
            namespace: strings.one(&*facts.namespace),
            owner: match &facts.owner {
                facts::Owner::Unknown => old.template.owner.clone(),
                facts::Owner::Nobody => Owner::Nobody,
                // A static pod's, in the API server.
                facts::Owner::By(node) if node.kind == "Node" => Owner::Nobody,
                facts::Owner::By(controller) => Owner::By(Controller::new(controller, strings)),
            },
            service_account: match &facts.service_account {
                Some(account) => Some(strings.one(&**account)),
                None => old.template.service_account.clone(),
            },
            host_network: facts.host_network.or(old.template.host_network),
            labels: match (&facts.labels, &old.template.labels) {
                (Some(told), known) if is_newer || known.is_none() => Some(
                    told.iter()
                        .map(|(key, value)| (strings.one(&**key), strings.one(&**value)))
                        .collect(),
                ),
                (_, known) => known.clone(),
            },
            containers: shapes,
        };
        let template = self.templates.one(template);
        let name = Some(match &old.name {
            Some(name) if **name == *facts.name => Arc::clone(name),
            _ => facts.name.as_str().into(),
        });
        let node = facts.node.as_deref().map(|node| strings.one(node)).or(old.node.clone());
        let started = match (old.started, facts.started) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let is_same =
            Arc::ptr_eq(&template, &old.template) && (&name, &node, started) == (&old.name, &old.node, old.started);
        let mut tenure = Tenure {
            name,
            template,
            node,
            started,
            containers,
            made: old.made.filter(|_| is_same),
            left: NEVER,
            ..old
        };
        tenure.told_by.told(source);
        self.tenures[slot as usize] = Some(tenure);
    }

    /// Takes note of where it is.
    fn place(&mut self, slot: u32, source: SourceId, at: i64, facts: &PodFacts) {
        let Some(tenure) = self.tenures[slot as usize].as_mut() else {
            return;
        };
        if at < tenure.at {
            return;
        }
        let before = std::mem::replace(&mut tenure.at, at);
        if tenure.template.host_network == Some(true) {
            // Its addresses are its node's. One told by a source that did not know was never its own.
            tenure.until = i64::MIN;
            return;
        }
        let (v4, v6) = addresses(&facts.ips);
        if facts.terminal {
            if !tenure.has_address() {
                // It had them some time before, which speaks against whoever is said to have had them then.
                (tenure.v4, tenure.v6) = (v4, v6);
                (tenure.since, tenure.seen) = (tenure.started.map_or(at, |started| started.0), NEVER);
                self.index(slot, v4, v6);
            }
            self.end(slot, at);
            if let Some(tenure) = self.tenure_mut(slot) {
                tenure.is_over = true;
            }
            return;
        }
        if (v4, v6) == (None, None) || tenure.is_over {
            return;
        }
        if tenure.has_address() && tenure.is_elsewhere(v4, v6) {
            let moved = Tenure {
                v4,
                v6,
                since: before,
                seen: at,
                until: NEVER,
                ..tenure.clone()
            };
            self.end(slot, at);
            let new = self.add(moved);
            self.index(new, v4, v6);
            self.rename(slot, new);
            self.leave(slot, at);
            self.placed(new, source);
            return;
        }
        let (old_v4, old_v6) = (tenure.v4, tenure.v6);
        if !tenure.has_address() {
            (tenure.since, tenure.seen) = (at, at);
        }
        if let Some(started) = tenure.started
            && tenure.since == tenure.seen
        {
            tenure.since = tenure.since.min(started.0);
        }
        // It was not to be found for a while, as when its kubelet had just started.
        tenure.until = NEVER;
        (tenure.v4, tenure.v6) = (old_v4.or(v4), old_v6.or(v6));
        self.index(slot, v4.filter(|_| old_v4.is_none()), v6.filter(|_| old_v6.is_none()));
        self.placed(slot, source);
    }

    fn placed(&mut self, slot: u32, source: SourceId) {
        if let Some(tenure) = self.tenure_mut(slot) {
            tenure.placed_by.insert(source);
        }
    }

    /// A source says that it has gone.
    pub fn gone(&mut self, source: SourceId, at: WallTime, uid: &str) {
        let uid = Uid::from(uid);
        if let Some(&slot) = self.by_uid.get(&uid)
            // A mirror pod that was replaced by another one goes alone.
            && self.tenure(slot).is_some_and(|tenure| tenure.is_called(&uid))
        {
            self.missing(slot, source, at.0);
        }
        self.forget(at.0);
    }

    /// A list of a source begins.
    pub fn list_begins(&mut self, source: SourceId) {
        for tenure in self.tenures.iter_mut().flatten() {
            tenure.told_by.list_begins(source);
        }
    }

    /// It is whole. A pod that it lacks need not have gone: a kubelet that has just started lists but its static pods. For
    /// connections that begin from now on it does not count; told again, it was there all the time.
    pub fn list_ends(&mut self, source: SourceId, at: WallTime) {
        for slot in 0..self.tenures.len() as u32 {
            if self
                .tenure(slot)
                .is_some_and(|tenure| tenure.told_by.is_missing(source))
            {
                self.missing(slot, source, at.0);
            }
        }
        self.forget(at.0);
    }

    fn missing(&mut self, slot: u32, source: SourceId, at: i64) {
        let Some(tenure) = self.tenure_mut(slot) else { return };
        tenure.told_by.gone(source);
        tenure.placed_by.remove(source);
        let (is_placed, is_known) = (!tenure.placed_by.is_empty(), tenure.told_by.is_known());
        if !is_placed {
            self.end(slot, at);
        }
        if !is_known {
            self.leave(slot, at);
        }
    }

    /// It holds its addresses no more.
    fn end(&mut self, slot: u32, at: i64) {
        if let Some(tenure) = self.tenure_mut(slot) {
            tenure.until = tenure.until.min(at);
        }
    }

    /// Nobody tells of it any more.
    fn leave(&mut self, slot: u32, at: i64) {
        if let Some(tenure) = self.tenure_mut(slot)
            && tenure.left == NEVER
        {
            tenure.left = at;
            tenure.told_by = ToldBy::default();
            self.left.push_back((at, slot));
        }
    }

    /// Forgets what has been gone for long.
    fn forget(&mut self, now: i64) {
        while let Some(&(at, slot)) = self.left.front()
            && (self.left.len() > MOST_REMEMBERED || now.saturating_sub(at) > REMEMBERED_NS)
        {
            self.left.pop_front();
            if self.tenure(slot).is_some_and(|tenure| tenure.left == at) {
                self.remove(slot);
            }
        }
    }

    /// A controller in the middle is so.
    pub fn controller_is(&mut self, source: SourceId, facts: &ControllerFacts) {
        self.owners.is(source, facts, &mut self.strings);
    }

    /// The controllers in the middle.
    pub fn owners_mut(&mut self) -> &mut Owners {
        &mut self.owners
    }

    /// The pod with this UID, the API server's or the kubelet's, present or remembered.
    pub fn find(&self, uid: &str) -> Option<PodRef> {
        let uid = Uid::from(uid);
        let slot = *self.by_uid.get(&uid)?;
        self.tenure(slot)?.is_called(&uid).then_some(PodRef(slot))
    }

    /// The pod that held `ip` at that time, if that is certain.
    pub fn holder(&self, ip: IpAddr, time: WallTime) -> Option<PodRef> {
        let time = time.0;
        let slots = self.by_ip.get(&ip)?.as_slice();
        let (mut certain, mut possible) = (Candidate::None, Candidate::None);
        let mut seen = i64::MIN;
        for &slot in slots {
            let Some(tenure) = self.tenure(slot) else { continue };
            if time >= tenure.until {
                continue;
            }
            if tenure.seen <= time {
                // Whoever was seen to have it last has ended the tenure of those before.
                if tenure.seen > seen {
                    (seen, certain) = (tenure.seen, Candidate::None);
                }
                if tenure.seen == seen {
                    certain.add(slot, tenure);
                }
            } else if time >= tenure.since.saturating_sub(SLACK_NS) {
                possible.add(slot, tenure);
            }
        }
        match (certain, possible) {
            (Candidate::One(slot, _), Candidate::None) => Some(PodRef(slot)),
            (Candidate::One(slot, one), Candidate::One(_, other)) if one.uid == other.uid => Some(PodRef(slot)),
            (Candidate::None, Candidate::One(slot, tenure)) if tenure.since <= time && tenure.seen != NEVER => {
                Some(PodRef(slot))
            }
            _ => None,
        }
    }

    /// The kernel has shown a socket of this pod with this address at that time. Where sources say that somebody else holds
    /// it, they are late.
    pub fn observed(&mut self, ip: IpAddr, uid: &str, time: WallTime) {
        // An address that no source speaks of means something within the pod at most.
        if !self.by_ip.contains_key(&ip) {
            return;
        }
        let slot = match self.find(uid) {
            Some(PodRef(slot)) => slot,
            None => {
                let slot = self.add(Tenure::new(Uid::from(uid)));
                self.by_uid.insert(Uid::from(uid), slot);
                self.leave(slot, time.0);
                slot
            }
        };
        let holder = self.holder(ip, time).and_then(|PodRef(holder)| self.tenure(holder));
        let Some(tenure) = self.tenure(slot) else { return };
        if tenure.template.host_network == Some(true) || holder.is_some_and(|holder| holder.uid == tenure.uid) {
            return;
        }
        let uid = tenure.uid.clone();
        let own = self.by_ip.get(&ip).and_then(|slots| {
            let is_own = |slot: &&u32| self.tenure(**slot).is_some_and(|tenure| tenure.uid == uid);
            slots.as_slice().iter().find(is_own).copied()
        });
        let (v4, v6) = addresses(&[ip]);
        let slot = match own {
            Some(slot) => slot,
            None if self.tenure(slot).is_some_and(|tenure| !tenure.has_address()) => {
                self.index(slot, v4, v6);
                slot
            }
            None => {
                let Some(tenure) = self.tenure(slot) else { return };
                let other = Tenure {
                    v4: None,
                    v6: None,
                    left: NEVER,
                    ..tenure.clone()
                };
                let other = self.add(other);
                self.index(other, v4, v6);
                self.leave(other, time.0);
                other
            }
        };
        if let Some(tenure) = self.tenure_mut(slot) {
            if own.is_none() {
                tenure.v4 = v4.or(tenure.v4);
                tenure.v6 = v6.or(tenure.v6);
                (tenure.since, tenure.seen, tenure.until) = (time.0, time.0, NEVER);
            }
            tenure.since = tenure.since.min(time.0);
            tenure.seen = tenure.seen.min(time.0);
            tenure.until = tenure.until.max(time.0.saturating_add(1));
        }
    }

    /// What it is called. None while only the kernel knows it.
    pub fn pod(&mut self, PodRef(slot): PodRef) -> Option<Arc<Pod>> {
        let version = self.owners.version();
        let tenure = self.tenure(slot)?;
        if let Some((pod, of)) = &tenure.made
            && *of == version
        {
            return Some(Arc::clone(pod));
        }
        let pod = tenure.to_pod(&self.owners)?;
        let tenure = self.tenure_mut(slot)?;
        let pod = match tenure.made.take() {
            Some((made, _)) if *made == pod => made,
            _ => Arc::new(pod),
        };
        tenure.made = Some((Arc::clone(&pod), version));
        Some(pod)
    }

    /// Whether a source has told of it.
    pub fn is_named(&self, PodRef(slot): PodRef) -> bool {
        self.tenure(slot).is_some_and(|tenure| tenure.name.is_some())
    }

    /// How many sources tell of.
    pub fn told(&self) -> usize {
        let tenures = self.tenures.iter().flatten();
        tenures
            .filter(|tenure| tenure.name.is_some() && tenure.left == NEVER)
            .count()
    }

    /// Its container with this id.
    pub fn container(&self, PodRef(slot): PodRef, id: &ContainerId) -> Option<Arc<str>> {
        let tenure = self.tenure(slot)?;
        let at = tenure
            .containers
            .iter()
            .position(|&digits| digits == first_digits(*id))?;
        tenure.template.containers.get(at).map(|(name, _)| Arc::clone(name))
    }

    /// Whether one of its containers calls this port so.
    pub fn has_port(&self, PodRef(slot): PodRef, name: &str, port: u16) -> bool {
        self.tenure(slot).is_some_and(|tenure| {
            let mut ports = tenure.template.containers.iter().flat_map(|(_, ports)| ports);
            ports.any(|(one, number)| **one == *name && *number == port)
        })
    }

    fn tenure(&self, slot: u32) -> Option<&Tenure> {
        self.tenures.get(slot as usize)?.as_ref()
    }

    fn tenure_mut(&mut self, slot: u32) -> Option<&mut Tenure> {
        self.tenures.get_mut(slot as usize)?.as_mut()
    }

    fn add(&mut self, tenure: Tenure) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.tenures[slot as usize] = Some(tenure);
                slot
            }
            None => {
                self.tenures.push(Some(tenure));
                self.tenures.len() as u32 - 1
            }
        }
    }

    fn index(&mut self, slot: u32, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        for ip in v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)) {
            self.by_ip.entry(ip).or_default().push(slot);
        }
    }

    /// Its UIDs lead there from now on.
    fn rename(&mut self, from: u32, to: u32) {
        let Some(tenure) = self.tenure(to) else { return };
        for uid in [Some(tenure.uid.clone()), tenure.node_uid.as_deref().cloned()] {
            if let Some(uid) = uid
                && let Some(slot) = self.by_uid.get_mut(&uid)
                && *slot == from
            {
                *slot = to;
            }
        }
    }

    fn remove(&mut self, slot: u32) {
        let Some(tenure) = self.tenures[slot as usize].take() else {
            return;
        };
        self.free.push(slot);
        for uid in [Some(tenure.uid), tenure.node_uid.map(|uid| *uid)]
            .into_iter()
            .flatten()
        {
            if self.by_uid.get(&uid) == Some(&slot) {
                self.by_uid.remove(&uid);
            }
        }
        for ip in tenure.v4.map(IpAddr::V4).into_iter().chain(tenure.v6.map(IpAddr::V6)) {
            if let Some(slots) = self.by_ip.get_mut(&ip) {
                slots.retain(|&one| one != slot);
                if slots.is_empty() {
                    self.by_ip.remove(&ip);
                }
            }
        }
    }
}

impl Tenure {
    fn new(uid: Uid) -> Self {
        Self {
            uid,
            node_uid: None,
            name: None,
            template: Arc::default(),
            node: None,
            started: None,
            containers: Box::default(),
            v4: None,
            v6: None,
            since: NEVER,
            seen: NEVER,
            until: NEVER,
            is_over: false,
            at: i64::MIN,
            told_by: ToldBy::default(),
            placed_by: Sources::default(),
            left: NEVER,
            made: None,
        }
    }

    fn has_address(&self) -> bool {
        self.v4.is_some() || self.v6.is_some()
    }

    /// Whether these addresses are others than it has.
    fn is_elsewhere(&self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> bool {
        matches!((self.v4, v4), (Some(one), Some(other)) if one != other)
            || matches!((self.v6, v6), (Some(one), Some(other)) if one != other)
    }

    fn is_called(&self, uid: &Uid) -> bool {
        self.uid == *uid || self.node_uid.as_deref() == Some(uid)
    }

    fn to_pod(&self, owners: &Owners) -> Option<Pod> {
        let name = self.name.clone()?;
        let template = &self.template;
        Some(Pod {
            uid: self.uid.to_string().into(),
            namespace: Arc::clone(&template.namespace),
            workload: owners.workload(&template.owner, &name, template.labels.as_ref(), self.started),
            name,
            service_account: template.service_account.clone(),
            node: self.node.clone(),
            host_network: template.host_network,
            labels: template.labels.clone(),
        })
    }
}

/// Those who may have had an address.
enum Candidate<'a> {
    None,
    One(u32, &'a Tenure),
    Several,
}

impl<'a> Candidate<'a> {
    /// Another tenure of the same pod is no other candidate.
    fn add(&mut self, slot: u32, tenure: &'a Tenure) {
        match self {
            Self::None => *self = Self::One(slot, tenure),
            Self::One(_, one) if one.uid == tenure.uid => {}
            _ => *self = Self::Several,
        }
    }
}

/// Those that are told, and those that only another source knows; likewise their ports.
fn containers(
    known: &Tenure,
    told: &[facts::ContainerFacts],
    strings: &mut Shared<str>,
) -> (Box<[ContainerShape]>, Box<[u64]>) {
    let known = || known.template.containers.iter().zip(&known.containers);
    let as_told = told.iter().map(|one| {
        let before = known().find(|((name, _), _)| **name == *one.name);
        let ports = match before {
            Some(((_, ports), _)) if one.ports.is_empty() => ports.clone(),
            _ => one
                .ports
                .iter()
                .map(|(name, port)| (strings.one(&**name), *port))
                .collect(),
        };
        let id = one.id.map(first_digits).or(before.map(|(_, id)| *id));
        ((strings.one(&*one.name), ports), id.unwrap_or(0))
    });
    let mut all: Vec<_> = as_told.collect();
    let untold = known().filter(|((name, _), _)| !told.iter().any(|one| *one.name == **name));
    all.extend(untold.map(|(shape, id)| (shape.clone(), *id)));
    let (shapes, ids): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    (shapes.into(), ids.into())
}

/// Enough to tell a pod's containers apart: ids are random.
fn first_digits(id: ContainerId) -> u64 {
    u64::from_str_radix(&id.as_str()[..16], 16).unwrap_or(0)
}

/// One of each family; a pod has no more. IPv4-mapped IPv6 is IPv4. What no packet from elsewhere can have is nobody's.
fn addresses(ips: &[IpAddr]) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let ips = ips.iter().map(IpAddr::to_canonical);
    let usable = ips.filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
    usable.fold((None, None), |(v4, v6), ip| match ip {
        IpAddr::V4(ip) => (v4.or(Some(ip)), v6),
        IpAddr::V6(ip) => (v4, v6.or(Some(ip))),
    })
}
