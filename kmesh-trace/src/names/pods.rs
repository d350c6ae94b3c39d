//! Which pod: by its UID, and by who had an address when. Pure.
//!
//! What several sources tell of one pod is brought together under its UID, field by field. A pod holds its addresses for a
//! time, its tenure: surely from when it was first told to have them, possibly from when it was started, until it is told to
//! be gone, to be over or to have another address. An address is resolved for a point in time, and by at most one pod: where
//! two may have had it then, there is no answer, since no name beats a wrong one.

mod owners;
mod tenures;
#[cfg(test)]
mod tests;
mod uid;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::shared::{Shared, ToldBy};
use super::update::{self, ControllerObject, PodObject, SourceId};
use crate::record::{ContainerId, Pod, WallTime};

use owners::{Controller, Owner, Owners};
use tenures::{Addresses, ContainerShape, Held, Template, Tenure, Tenures, Times};
use uid::Uid;

/// How long what is gone is remembered, ns: longer than the kernel takes to give up a connection whose peer is gone.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// How much of it at most; the oldest goes first.
const MOST_REMEMBERED: usize = 20_000;
/// How far the clock that says when a pod started may be off, ns. It counts only against naming.
const SLACK_NS: i64 = 2_000_000_000;

const NEVER: i64 = i64::MAX;
/// Pods whose record form is kept. A third of a kilobyte each, and a microsecond to make.
const MOST_MADE: usize = 8_192;

/// A pod in [`Pods`], for as long as nothing is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRef(u32);

/// All pods.
#[derive(Debug, Default)]
pub struct Pods {
    strings: Shared<str>,
    shapes: Shared<[ContainerShape]>,
    templates: Shared<Template>,
    owners: Owners,
    tenures: Tenures,
    /// Nobody tells of these any more, since when.
    left: VecDeque<(i64, u32)>,
    /// Those that records were given, the newest last; some may be made no more.
    made: VecDeque<u32>,
}

impl Pods {
    /// A pod is so.
    pub fn is(&mut self, source: SourceId, at: WallTime, facts: &PodObject) {
        if facts.uid.is_empty() || facts.name.is_empty() {
            return;
        }
        let uid = Uid::from(&*facts.uid);
        let node_uid = facts.static_uid.as_deref().map(Uid::from).filter(|hash| *hash != uid);
        let known = node_uid.as_ref().and_then(|hash| self.tenures.of(hash));
        let known = known.or_else(|| self.tenures.of(&uid));
        let slot = known.unwrap_or_else(|| self.tenures.add(uid.clone()));
        if let Some(hash) = node_uid {
            self.tenures.call(slot, uid, hash);
        }
        self.describe(slot, source, at.0, facts);
        self.place(slot, source, at.0, facts);
        self.forget(at.0);
    }

    /// Brings together what is known.
    fn describe(&mut self, slot: u32, source: SourceId, at: i64, facts: &PodObject) {
        let Some(tenure) = self.tenures.get_mut(slot) else {
            return;
        };
        let is_newer = at >= tenure.about.at;
        let strings = &mut self.strings;
        let (shapes, containers) = containers(tenure, &facts.containers, strings);
        let template = Template {
            namespace: strings.one(&*facts.namespace),
            owner: match &facts.owner {
                update::Owner::Unknown => tenure.about.template.owner.clone(),
                update::Owner::Nobody => Owner::Nobody,
                // A static pod's, in the API server.
                update::Owner::By(node) if node.kind == "Node" => Owner::Nobody,
                update::Owner::By(controller) => Owner::By(Controller::new(controller, strings)),
            },
            service_account: match &facts.service_account {
                Some(account) => Some(strings.one(&**account)),
                None => tenure.about.template.service_account.clone(),
            },
            host_network: facts.host_network.or(tenure.about.template.host_network),
            labels: match (&facts.labels, &tenure.about.template.labels) {
                (Some(told), known) if is_newer || known.is_none() => Some(
                    told.iter()
                        .map(|(key, value)| (strings.one(&**key), strings.one(&**value)))
                        .collect(),
                ),
                (_, known) => known.clone(),
            },
            containers: self.shapes.one(shapes),
        };
        let template = self.templates.one(template);
        let node = facts.node.as_deref().map(|node| strings.one(node));
        let node = node.or_else(|| tenure.about.node.clone());
        let started = facts.started.map_or(NEVER, |started| started.0);
        let started = started.min(tenure.about.started);
        tenure.describe(&facts.name, template, node, started);
        tenure.about.containers = containers;
        tenure.about.left = NEVER;
        tenure.about.told_by.told(source);
    }

    /// Takes note of where it is.
    fn place(&mut self, slot: u32, source: SourceId, at: i64, facts: &PodObject) {
        let Some(tenure) = self.tenures.get_mut(slot) else {
            return;
        };
        if at < tenure.about.at {
            return;
        }
        let before = std::mem::replace(&mut tenure.about.at, at);
        if tenure.about.template.host_network == Some(true) {
            // Its addresses are its node's. One told by a source that did not know was never its own.
            self.end(slot, i64::MIN);
            return;
        }
        let addresses = addresses(&facts.ips);
        let started = tenure.about.started;
        if facts.terminal {
            tenure.about.is_over = true;
            match self.tenures.times(slot) {
                Some(_) => self.end(slot, at),
                None => {
                    // It had them some time before, which speaks against whoever is said to have had them then.
                    let since = if started == NEVER { at } else { started };
                    let (seen, until) = (NEVER, at);
                    self.tenures.hold(slot, addresses, Times { since, seen, until });
                }
            }
            return;
        }
        if addresses == (None, None) || tenure.about.is_over {
            return;
        }
        tenure.about.placed_by.insert(source);
        if tenure.is_elsewhere(addresses) {
            let Some(new) = self.tenures.add_another(slot) else {
                return;
            };
            let (since, seen, until) = (before, at, NEVER);
            self.tenures.hold(new, addresses, Times { since, seen, until });
            self.tenures.lead_to(new);
            self.end(slot, at);
            self.leave(slot, at);
            return;
        }
        let times = self.tenures.times(slot);
        let (since, seen) = times.map_or((at, at), |times| (times.since, times.seen));
        let since = if since == seen { since.min(started) } else { since };
        // Where it was not to be found for a while, as when its kubelet had just started, it was there all the time.
        let until = NEVER;
        self.tenures.hold(slot, addresses, Times { since, seen, until });
    }

    /// A source says that it has gone.
    pub fn gone(&mut self, source: SourceId, at: WallTime, uid: &str) {
        let uid = Uid::from(uid);
        if let Some(slot) = self.tenures.of(&uid) {
            self.missing(slot, source, at.0);
        }
        self.forget(at.0);
    }

    /// A list of a source begins.
    pub fn list_begins(&mut self, source: SourceId) {
        for tenure in self.tenures.iter_mut() {
            tenure.about.told_by.list_begins(source);
        }
    }

    /// It is whole. A pod that it lacks need not have gone: a kubelet that has just started lists but its static pods. For
    /// connections that begin from now on it does not count; told again, it was there all the time.
    pub fn list_ends(&mut self, source: SourceId, at: WallTime) {
        let all = self.tenures.iter();
        let missing = all.filter(|(_, tenure)| tenure.about.told_by.is_missing(source));
        for slot in missing.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.missing(slot, source, at.0);
        }
        self.forget(at.0);
    }

    fn missing(&mut self, slot: u32, source: SourceId, at: i64) {
        let Some(tenure) = self.tenures.get_mut(slot) else {
            return;
        };
        tenure.about.told_by.gone(source);
        tenure.about.placed_by.remove(source);
        let (is_placed, is_known) = (!tenure.about.placed_by.is_empty(), tenure.about.told_by.is_known());
        if !is_placed {
            self.end(slot, at);
        }
        if !is_known {
            self.leave(slot, at);
        }
    }

    /// It holds its addresses no more.
    fn end(&mut self, slot: u32, at: i64) {
        if let Some(times) = self.tenures.times(slot) {
            let until = times.until.min(at);
            self.tenures.hold(slot, (None, None), Times { until, ..times });
        }
    }

    /// Nobody tells of it any more.
    fn leave(&mut self, slot: u32, at: i64) {
        if let Some(tenure) = self.tenures.get_mut(slot)
            && tenure.about.left == NEVER
        {
            tenure.about.left = at;
            tenure.about.told_by = ToldBy::default();
            self.left.push_back((at, slot));
        }
    }

    /// Forgets what has been gone for long.
    fn forget(&mut self, now: i64) {
        while let Some(&(at, slot)) = self.left.front()
            && (self.left.len() > MOST_REMEMBERED || now.saturating_sub(at) > REMEMBERED_NS)
        {
            self.left.pop_front();
            if self.tenures.get(slot).is_some_and(|tenure| tenure.about.left == at) {
                self.tenures.remove(slot);
            }
        }
    }

    /// A controller in the middle is so.
    pub fn controller_is(&mut self, source: SourceId, facts: &ControllerObject) {
        self.owners.is(source, facts, &mut self.strings);
    }

    /// The controllers in the middle.
    pub fn owners_mut(&mut self) -> &mut Owners {
        &mut self.owners
    }

    /// The pod with this UID, the API server's or the kubelet's, present or remembered.
    pub fn find(&self, uid: &str) -> Option<PodRef> {
        self.tenures.of(&Uid::from(uid)).map(PodRef)
    }

    /// The pod that held `ip` at that time, if that is certain.
    pub fn holder(&self, ip: IpAddr, time: WallTime) -> Option<PodRef> {
        let time = time.0;
        let (mut certain, mut possible) = (Candidate::None, Candidate::None);
        let is_same = |one: &Held, other: &Held| self.uid(one.slot) == self.uid(other.slot);
        let mut seen = i64::MIN;
        for held in self.tenures.at(ip) {
            let times = &held.times;
            if time >= times.until {
                continue;
            }
            if times.seen <= time {
                // Whoever was seen to have it last has ended the tenure of those before.
                if times.seen > seen {
                    (seen, certain) = (times.seen, Candidate::None);
                }
                if times.seen == seen {
                    certain.add(held, is_same);
                }
            } else if time >= times.since.saturating_sub(SLACK_NS) {
                possible.add(held, is_same);
            }
        }
        let is_certain = |held: &Held| held.times.since <= time && held.times.seen != NEVER;
        match (certain, possible) {
            (Candidate::One(held), Candidate::None) => Some(PodRef(held.slot)),
            (Candidate::One(one), Candidate::One(other)) if is_same(one, other) => Some(PodRef(one.slot)),
            (Candidate::None, Candidate::One(held)) if is_certain(held) => Some(PodRef(held.slot)),
            _ => None,
        }
    }

    fn uid(&self, slot: u32) -> Option<&Uid> {
        self.tenures.get(slot).map(|tenure| tenure.about.uid())
    }

    /// The kernel has shown a socket of this pod with this address at that time. Where sources say that somebody else holds
    /// it, they are late.
    pub fn observed(&mut self, ip: IpAddr, uid: &str, time: WallTime) {
        // An address that no source speaks of means something within the pod at most.
        if self.tenures.at(ip).next().is_none() {
            return;
        }
        let uid = Uid::from(uid);
        let slot = self.tenures.of(&uid).unwrap_or_else(|| {
            let slot = self.tenures.add(uid);
            self.leave(slot, time.0);
            slot
        });
        let is_own = |other: u32| self.uid(other) == self.uid(slot);
        let is_hosts = |tenure: &Tenure| tenure.about.template.host_network == Some(true);
        if self.tenures.get(slot).is_none_or(is_hosts) || self.holder(ip, time).is_some_and(|PodRef(it)| is_own(it)) {
            return;
        }
        let own = self.tenures.at(ip).find(|held| is_own(held.slot));
        let own = own.map(|held| (held.slot, held.times));
        let (since, seen, until) = (time.0, time.0, time.0.saturating_add(1));
        match own {
            Some((slot, times)) => {
                let times = Times {
                    since: times.since.min(since),
                    seen: times.seen.min(seen),
                    until: times.until.max(until),
                };
                self.tenures.hold(slot, (None, None), times);
            }
            None => _ = self.begin(slot, ip, time.0),
        }
    }

    /// The pod has an address that no source tells of.
    fn begin(&mut self, slot: u32, ip: IpAddr, at: i64) -> Option<()> {
        let slot = match self.tenures.get(slot)?.has_address() {
            false => slot,
            true => {
                let another = self.tenures.add_another(slot)?;
                self.tenures.get_mut(another)?.about.left = NEVER;
                self.leave(another, at);
                another
            }
        };
        let (since, seen, until) = (at, at, NEVER);
        self.tenures.hold(slot, addresses(&[ip]), Times { since, seen, until });
        Some(())
    }

    /// What it is called. None while only the kernel knows it.
    pub fn pod(&mut self, PodRef(slot): PodRef) -> Option<Arc<Pod>> {
        let tenure = self.tenures.get_mut(slot)?;
        let is_new = !tenure.is_made();
        let pod = tenure.pod(&self.owners)?;
        if is_new {
            self.made.push_back(slot);
            if self.made.len() > MOST_MADE
                && let Some(oldest) = self.made.pop_front()
                && let Some(tenure) = self.tenures.get_mut(oldest)
            {
                tenure.unmake();
            }
        }
        Some(pod)
    }

    /// Whether a source has told of it.
    pub fn is_named(&self, PodRef(slot): PodRef) -> bool {
        self.tenures.get(slot).is_some_and(|tenure| tenure.about.is_named())
    }

    /// How many sources tell of.
    pub fn told(&self) -> usize {
        let is_told = |tenure: &Tenure| tenure.about.is_named() && tenure.about.left == NEVER;
        self.tenures.iter().filter(|(_, tenure)| is_told(tenure)).count()
    }

    /// Its container with this id.
    pub fn container(&self, PodRef(slot): PodRef, id: &ContainerId) -> Option<Arc<str>> {
        let tenure = self.tenures.get(slot)?;
        let at = tenure
            .about
            .containers
            .iter()
            .position(|&digits| digits == first_digits(*id))?;
        tenure
            .about
            .template
            .containers
            .get(at)
            .map(|(name, _)| Arc::clone(name))
    }

    /// Whether one of its containers calls this port so.
    pub fn has_port(&self, PodRef(slot): PodRef, name: &str, port: u16) -> bool {
        self.tenures.get(slot).is_some_and(|tenure| {
            let mut ports = tenure.about.template.containers.iter().flat_map(|(_, ports)| ports);
            ports.any(|(one, number)| **one == *name && *number == port)
        })
    }
}

/// Those who may have had an address.
enum Candidate<'a> {
    None,
    One(&'a Held),
    Several,
}

impl<'a> Candidate<'a> {
    /// Another tenure of the same pod is no other candidate.
    fn add(&mut self, held: &'a Held, is_same: impl Fn(&Held, &Held) -> bool) {
        match self {
            Self::None => *self = Self::One(held),
            Self::One(one) if is_same(one, held) => {}
            _ => *self = Self::Several,
        }
    }
}

/// Those that are told, and those that only another source knows; likewise their ports.
fn containers(
    known: &Tenure,
    told: &[update::ContainerObject],
    strings: &mut Shared<str>,
) -> (Vec<ContainerShape>, Box<[u32]>) {
    let known = || known.about.template.containers.iter().zip(&known.about.containers);
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
    (shapes, ids.into())
}

/// Enough to tell a pod's containers apart: ids are random.
fn first_digits(id: ContainerId) -> u32 {
    u32::from_str_radix(&id.as_str()[..8], 16).unwrap_or(0)
}

/// IPv4-mapped IPv6 is IPv4. What no packet from elsewhere can have is nobody's.
fn addresses(ips: &[IpAddr]) -> Addresses {
    let ips = ips.iter().map(IpAddr::to_canonical);
    let usable = ips.filter(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast());
    usable.fold((None, None), |(v4, v6), ip| match ip {
        IpAddr::V4(ip) => (v4.or(Some(ip)), v6),
        IpAddr::V6(ip) => (v4, v6.or(Some(ip))),
    })
}
