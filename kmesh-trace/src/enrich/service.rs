//! Which Service: by what the client dialled, else by what is behind it. Pure.
//!
//! In this order: an address and port of a Service's own, or a NodePort of a node (`vip`); a Service that has the server's pod
//! among its endpoints, with the server's port as its target (`target_port`); a headless Service of that pod (`headless`).
//! Where several match, the first by name, then by namespace, and that is told.
//!
//! Addresses of Services and of endpoints are reused like those of pods, so each has a time: a connection is looked up by when
//! it began. What is there when it is first told was there before, unless that address had another Service then.

#[cfg(test)]
mod tests;
mod timed;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::facts::{EndpointsFacts, ServiceFacts, SourceId, TargetPort};
use super::pods::{PodRef, Pods};
use super::shared::{Few, Shared, ToldBy};
use crate::record::{Called, Pod, Service, ServiceBy, WallTime};

use timed::Timed;

type Name = (Arc<str>, Arc<str>);

/// A Service, or the name of one that only endpoints speak of.
#[derive(Debug)]
struct Entry {
    service: Arc<Service>,
    told_by: ToldBy,
    facts: Option<Box<Trimmed>>,
    /// EndpointSlices of it; while there are any, its selector does not count.
    slices: u32,
    /// What it has, or had and is remembered for.
    spans: usize,
    is_headless: bool,
}

/// What is told of a Service.
#[derive(Debug, PartialEq, Eq)]
struct Trimmed {
    /// Its own addresses and ports.
    vips: Box<[(IpAddr, u16)]>,
    node_ports: Box<[u16]>,
    selector: Box<[(Arc<str>, Arc<str>)]>,
    targets: Box<[Target]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Number(u16),
    Name(Arc<str>),
}

/// A slice, and what it had.
#[derive(Debug)]
struct Slice {
    told_by: ToldBy,
    service: u32,
    addresses: Box<[(IpAddr, u16)]>,
}

/// All Services and what is behind them.
#[derive(Debug, Default)]
pub struct Services {
    strings: Shared<str>,
    by_name: HashMap<Name, u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    slices: HashMap<Name, Slice>,
    vips: Timed<IpAddr>,
    node_ports: Timed<u16>,
    endpoints: Timed<IpAddr>,
    /// By namespace and the first label of the selector.
    by_selector: HashMap<Arc<str>, HashMap<(Arc<str>, Arc<str>), Few<u32>>>,
}

impl Services {
    /// A Service is so.
    pub fn is(&mut self, source: SourceId, at: WallTime, facts: &ServiceFacts) {
        let slot = self.slot(&facts.namespace, &facts.name);
        let trimmed = trim(facts, &mut self.strings);
        let Some(entry) = self.entry_mut(slot) else { return };
        entry.told_by.told(source);
        if entry.facts.as_deref() == Some(&trimmed) && entry.is_headless == facts.headless {
            return;
        }
        self.close(slot, at);
        let mut spans = 0;
        for &(ip, port) in &trimmed.vips {
            spans += usize::from(self.vips.open(ip, port, slot, at));
        }
        for &port in &trimmed.node_ports {
            spans += usize::from(self.node_ports.open(port, port, slot, at));
        }
        if let Some(first) = trimmed.selector.first() {
            let namespace = self.strings.one(&*facts.namespace);
            let of_namespace = self.by_selector.entry(namespace).or_default();
            of_namespace.entry(first.clone()).or_default().push(slot);
        }
        if let Some(entry) = self.entry_mut(slot) {
            entry.facts = Some(Box::new(trimmed));
            entry.is_headless = facts.headless;
            entry.spans += spans;
        }
    }

    /// It has gone.
    pub fn gone(&mut self, source: SourceId, at: WallTime, namespace: &str, name: &str) {
        let key = self.name(namespace, name);
        if let Some(&slot) = self.by_name.get(&key) {
            self.missing(slot, source, at);
        }
        self.forget(at);
    }

    /// A list of Services begins.
    pub fn list_begins(&mut self, source: SourceId) {
        for entry in self.entries.iter_mut().flatten() {
            entry.told_by.list_begins(source);
        }
    }

    /// It is whole.
    pub fn list_ends(&mut self, source: SourceId, at: WallTime) {
        for slot in 0..self.entries.len() as u32 {
            if self.entry(slot).is_some_and(|entry| entry.told_by.is_missing(source)) {
                self.missing(slot, source, at);
            }
        }
        self.forget(at);
    }

    fn missing(&mut self, slot: u32, source: SourceId, at: WallTime) {
        let Some(entry) = self.entry_mut(slot) else { return };
        entry.told_by.gone(source);
        if !entry.told_by.is_known() {
            self.close(slot, at);
            if let Some(entry) = self.entry_mut(slot) {
                entry.facts = None;
            }
            self.remove_if_empty(slot);
        }
    }

    /// What it had, it has no more.
    fn close(&mut self, slot: u32, at: WallTime) {
        let Some(entry) = self.entries[slot as usize].as_ref() else {
            return;
        };
        let Some(facts) = &entry.facts else { return };
        for &(ip, port) in &facts.vips {
            self.vips.close(ip, port, slot, at);
        }
        for &port in &facts.node_ports {
            self.node_ports.close(port, port, slot, at);
        }
        if let Some(first) = facts.selector.first()
            && let Some(of_namespace) = self.by_selector.get_mut(&entry.service.namespace)
            && let Some(slots) = of_namespace.get_mut(first)
        {
            slots.retain(|&one| one != slot);
            if slots.is_empty() {
                of_namespace.remove(first);
            }
        }
    }

    /// Endpoints are so.
    pub fn endpoints_are(&mut self, source: SourceId, at: WallTime, facts: &EndpointsFacts) {
        let key = self.name(&facts.namespace, &facts.name);
        let mut addresses: Vec<_> = facts
            .addresses
            .iter()
            .map(|(address, _)| (address.ip().to_canonical(), address.port()))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let slot = self.slot(&facts.namespace, &facts.service);
        let before = self.slices.remove(&key);
        let mut told_by = before.as_ref().map_or_else(ToldBy::default, |slice| slice.told_by);
        told_by.told(source);
        let slice = Slice {
            told_by,
            service: slot,
            addresses: addresses.into(),
        };
        let mut spans = 0;
        for &(ip, port) in &slice.addresses {
            spans += usize::from(self.endpoints.open(ip, port, slot, at));
        }
        if let Some(entry) = self.entry_mut(slot) {
            entry.slices += 1;
            entry.spans += spans;
        }
        // Only now, so that what stays does not end meanwhile.
        if let Some(before) = before {
            self.close_slice(&before, at);
        }
        self.slices.insert(key, slice);
    }

    /// They have gone.
    pub fn endpoints_gone(&mut self, source: SourceId, at: WallTime, namespace: &str, name: &str) {
        let key = self.name(namespace, name);
        if let Some(slice) = self.slices.get_mut(&key) {
            slice.told_by.gone(source);
            if !slice.told_by.is_known()
                && let Some(slice) = self.slices.remove(&key)
            {
                self.close_slice(&slice, at);
            }
        }
        self.forget(at);
    }

    /// A list of endpoints begins.
    pub fn endpoints_list_begins(&mut self, source: SourceId) {
        self.slices
            .values_mut()
            .for_each(|slice| slice.told_by.list_begins(source));
    }

    /// It is whole.
    pub fn endpoints_list_ends(&mut self, source: SourceId, at: WallTime) {
        let missing = self.slices.iter().filter(|(_, slice)| slice.told_by.is_missing(source));
        for (namespace, name) in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.endpoints_gone(source, at, &namespace, &name);
        }
    }

    fn close_slice(&mut self, slice: &Slice, at: WallTime) {
        for &(ip, port) in &slice.addresses {
            self.endpoints.close(ip, port, slice.service, at);
        }
        if let Some(entry) = self.entry_mut(slice.service) {
            entry.slices -= 1;
        }
        self.remove_if_empty(slice.service);
    }

    /// The Service that has what the client dialled, at that time. `at_node`: the address is a node's.
    pub fn dialled(&self, address: SocketAddr, at_node: bool, time: WallTime) -> Option<Called> {
        let own = self
            .vips
            .at(address.ip(), time)
            .filter(|(port, _)| *port == address.port());
        if let Some(called) = self.first(own.map(|(_, slot)| slot), ServiceBy::Vip) {
            return Some(called);
        }
        let node_ports = self.node_ports.at(address.port(), time).filter(|_| at_node);
        self.first(node_ports.map(|(_, slot)| slot), ServiceBy::Vip)
    }

    /// The Service that the server's pod is behind, at that time.
    pub fn behind(
        &self,
        address: SocketAddr,
        pod: &Pod,
        reference: PodRef,
        pods: &Pods,
        time: WallTime,
    ) -> Option<Called> {
        // Endpoints of pods are in their pods' namespace.
        let is_near = |slot: u32| {
            self.entry(slot)
                .is_some_and(|entry| entry.service.namespace == pod.namespace)
        };
        let endpoints = self.endpoints.at(address.ip(), time).filter(|&(_, slot)| is_near(slot));
        let selecting = self.selecting(pod);
        let targeted = selecting.clone().filter(|&slot| {
            self.facts(slot).is_some_and(|facts| {
                facts.targets.iter().any(|target| match target {
                    Target::Number(port) => *port == address.port(),
                    Target::Name(name) => pods.has_port(reference, name, address.port()),
                })
            })
        });
        let at_port = endpoints.clone().filter(|(port, _)| *port == address.port());
        if let Some(called) = self.first(at_port.map(|(_, slot)| slot).chain(targeted), ServiceBy::TargetPort) {
            return Some(called);
        }
        let endpoints = endpoints.map(|(_, slot)| slot);
        let is_headless = |slot: &u32| self.entry(*slot).is_some_and(|entry| entry.is_headless);
        self.first(endpoints.chain(selecting).filter(is_headless), ServiceBy::Headless)
    }

    /// Services without endpoints of their own whose selector selects it.
    fn selecting<'a>(&'a self, pod: &'a Pod) -> impl Iterator<Item = u32> + Clone + 'a {
        let of_namespace = self.by_selector.get(&pod.namespace);
        let labels = pod.labels.as_ref().filter(|_| of_namespace.is_some());
        labels
            .into_iter()
            .flat_map(|labels| labels.shared())
            .filter_map(move |label| of_namespace?.get(label))
            .flat_map(|slots| slots.as_slice().iter().copied())
            .filter(|&slot| {
                let Some(entry) = self.entry(slot) else { return false };
                let selects = |facts: &Trimmed| {
                    facts
                        .selector
                        .iter()
                        .all(|(key, value)| pod.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value))
                };
                entry.slices == 0 && entry.facts.as_deref().is_some_and(selects)
            })
    }

    fn first(&self, slots: impl Iterator<Item = u32>, by: ServiceBy) -> Option<Called> {
        let mut first: Option<&Arc<Service>> = None;
        let mut ambiguous = false;
        for slot in slots {
            let Some(Entry { service, .. }) = self.entry(slot) else {
                continue;
            };
            match first {
                None => first = Some(service),
                Some(one) if Arc::ptr_eq(one, service) => {}
                Some(one) => {
                    ambiguous = true;
                    if (&service.name, &service.namespace) < (&one.name, &one.namespace) {
                        first = Some(service);
                    }
                }
            }
        }
        first.map(|service| Called {
            service: Arc::clone(service),
            by,
            ambiguous,
        })
    }

    fn facts(&self, slot: u32) -> Option<&Trimmed> {
        self.entry(slot)?.facts.as_deref()
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)?.as_ref()
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize)?.as_mut()
    }

    fn name(&mut self, namespace: &str, name: &str) -> Name {
        (self.strings.one(namespace), self.strings.one(name))
    }

    fn slot(&mut self, namespace: &str, name: &str) -> u32 {
        let key = self.name(namespace, name);
        if let Some(&slot) = self.by_name.get(&key) {
            return slot;
        }
        let entry = Entry {
            service: Arc::new(Service {
                namespace: Arc::clone(&key.0),
                name: Arc::clone(&key.1),
                host: format!("{name}.{namespace}.svc.cluster.local").into(),
            }),
            told_by: ToldBy::default(),
            facts: None,
            slices: 0,
            spans: 0,
            is_headless: false,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() as u32 - 1
            }
        };
        self.by_name.insert(key, slot);
        slot
    }

    fn forget(&mut self, now: WallTime) {
        let mut forgotten = self.vips.forget(now);
        forgotten.append(&mut self.node_ports.forget(now));
        forgotten.append(&mut self.endpoints.forget(now));
        for slot in forgotten {
            if let Some(entry) = self.entry_mut(slot) {
                entry.spans -= 1;
            }
            self.remove_if_empty(slot);
        }
    }

    /// Removes a Service of which nothing is left.
    fn remove_if_empty(&mut self, slot: u32) {
        let is_empty = |entry: &Entry| !entry.told_by.is_known() && entry.slices == 0 && entry.spans == 0;
        if self.entry(slot).is_some_and(is_empty)
            && let Some(entry) = self.entries[slot as usize].take()
        {
            let service = &entry.service;
            self.by_name
                .remove(&(Arc::clone(&service.namespace), Arc::clone(&service.name)));
            self.free.push(slot);
        }
    }
}

fn trim(facts: &ServiceFacts, strings: &mut Shared<str>) -> Trimmed {
    let ips = facts
        .cluster_ips
        .iter()
        .chain(&facts.external_ips)
        .map(IpAddr::to_canonical);
    let vips = ips.flat_map(|ip| facts.ports.iter().map(move |port| (ip, port.port)));
    let mut selector: Vec<_> = facts
        .selector
        .iter()
        .map(|(key, value)| (strings.one(&**key), strings.one(&**value)))
        .collect();
    selector.sort_unstable();
    Trimmed {
        vips: vips.collect(),
        node_ports: facts.ports.iter().filter_map(|port| port.node_port).collect(),
        targets: facts
            .ports
            .iter()
            .map(|port| match &port.target {
                TargetPort::Number(port) => Target::Number(*port),
                TargetPort::Name(name) => Target::Name(strings.one(&**name)),
            })
            .collect(),
        selector: selector.into(),
    }
}
