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

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use slab::Slab;

use super::pods::{PodRef, Pods};
use super::shared::{Shared, Slots, ToldBy};
use super::update::{EndpointsObject, ServiceObject, SourceId, TargetPort};
use crate::record::{Called, Labels, Pod, Service, ServiceBy, WallTime};

use timed::Timed;

/// A label's key and value.
type Label = (Arc<str>, Arc<str>);

/// A Service, or the name of one that only endpoints speak of.
#[derive(Debug)]
struct Entry {
    namespace: Arc<str>,
    name: Arc<str>,
    /// Made when it is first called.
    service: OnceCell<Arc<Service>>,
    told_by: ToldBy,
    facts: Option<Trimmed>,
    is_headless: bool,
    /// EndpointSlices of it; while there are any, its selector does not count.
    slices: u32,
    /// What it has, or had and is remembered for.
    spans: u32,
}

impl Entry {
    fn service(&self) -> Arc<Service> {
        let made = self.service.get_or_init(|| {
            let (namespace, name) = (&self.namespace, &self.name);
            Arc::new(Service {
                namespace: Arc::clone(namespace),
                name: Arc::clone(name),
                host: format!("{name}.{namespace}.svc.cluster.local").into(),
            })
        });
        Arc::clone(made)
    }

    fn selector(&self) -> &[Label] {
        self.facts.as_ref().map_or(&[], |facts| &facts.selector)
    }
}

/// What is told of a Service.
#[derive(Debug, PartialEq, Eq)]
struct Trimmed {
    /// Its own addresses and ports.
    vips: Box<[(IpAddr, u16)]>,
    node_ports: Box<[u16]>,
    selector: Box<[Label]>,
    targets: Box<[Target]>,
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Number(u16),
    Name(Arc<str>),
}

/// A slice, and what it has. It is in its Service's namespace.
#[derive(Debug)]
struct Slice {
    name: Box<str>,
    told_by: ToldBy,
    service: u32,
    addresses: Box<[(IpAddr, u16)]>,
}

/// All Services and what is behind them.
#[derive(Debug, Default)]
pub struct Services {
    strings: Shared<str>,
    entries: Slab<Box<Entry>>,
    /// By namespace and name.
    by_name: Slots,
    /// Those without slices, by namespace and the first label of the selector.
    by_selector: Slots,
    slices: Slab<Slice>,
    /// By namespace and name of the slice.
    slices_by_name: Slots,
    vips: Timed<IpAddr>,
    node_ports: Timed<u16>,
    endpoints: Timed<IpAddr>,
}

impl Services {
    /// A Service is so.
    pub fn is(&mut self, source: SourceId, at: WallTime, facts: &ServiceObject) {
        let slot = self.slot(&facts.namespace, &facts.name);
        let trimmed = trim(facts, &mut self.strings);
        let Some(entry) = self.entry_mut(slot) else { return };
        entry.told_by.told(source);
        if entry.facts.as_ref() == Some(&trimmed) && entry.is_headless == facts.headless {
            return;
        }
        self.close(slot, at);
        let mut spans = 0;
        for &(ip, port) in &trimmed.vips {
            spans += u32::from(self.vips.open(ip, port, slot, at));
        }
        for &port in &trimmed.node_ports {
            spans += u32::from(self.node_ports.open(port, port, slot, at));
        }
        if let Some(entry) = self.entry_mut(slot) {
            entry.facts = Some(trimmed);
            entry.is_headless = facts.headless;
            entry.spans += spans;
        }
        self.select(slot);
    }

    /// Its selector counts while it has no slices.
    fn select(&mut self, slot: u32) {
        let Some(entry) = self.entries.get(slot as usize) else {
            return;
        };
        if let Some((key, value)) = entry.selector().first() {
            let key = (&*entry.namespace, &**key, &**value);
            self.by_selector.remove(&key, slot);
            if entry.slices == 0 {
                self.by_selector.insert(&key, slot);
            }
        }
    }

    /// It has gone.
    pub fn gone(&mut self, source: SourceId, at: WallTime, namespace: &str, name: &str) {
        if let Some(slot) = self.named(namespace, name) {
            self.missing(slot, source, at);
        }
        self.forget(at);
    }

    /// A list of Services begins.
    pub fn list_begins(&mut self, source: SourceId) {
        for (_, entry) in &mut self.entries {
            entry.told_by.list_begins(source);
        }
    }

    /// It is whole.
    pub fn list_ends(&mut self, source: SourceId, at: WallTime) {
        let all = self.entries.iter();
        let missing = all.filter(|(_, entry)| entry.told_by.is_missing(source));
        for slot in missing.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.missing(slot, source, at);
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
        let Some(entry) = self.entries.get(slot as usize) else {
            return;
        };
        let Some(facts) = &entry.facts else { return };
        for &(ip, port) in &facts.vips {
            self.vips.close(ip, port, slot, at);
        }
        for &port in &facts.node_ports {
            self.node_ports.close(port, port, slot, at);
        }
        if let Some((key, value)) = facts.selector.first() {
            self.by_selector.remove(&(&*entry.namespace, &**key, &**value), slot);
        }
    }

    /// Endpoints are so.
    pub fn endpoints_are(&mut self, source: SourceId, at: WallTime, facts: &EndpointsObject) {
        let mut addresses: Vec<_> = facts
            .addresses
            .iter()
            .map(|address| (address.ip().to_canonical(), address.port()))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let service = self.slot(&facts.namespace, &facts.service);
        let mut spans = 0;
        for &(ip, port) in &addresses {
            spans += u32::from(self.endpoints.open(ip, port, service, at));
        }
        if let Some(entry) = self.entry_mut(service) {
            entry.slices += 1;
            entry.spans += spans;
        }
        self.select(service);
        // Only now, so that what stays does not end meanwhile.
        let before = self.slice_named(&facts.namespace, &facts.name);
        let mut told_by = before.map_or_else(ToldBy::default, |slot| self.slices[slot as usize].told_by);
        if let Some(before) = before {
            self.remove_slice(before, at);
        }
        told_by.told(source);
        let slot = self.slices.insert(Slice {
            name: facts.name.as_str().into(),
            told_by,
            service,
            addresses: addresses.into(),
        });
        self.slices_by_name
            .insert(&(&*facts.namespace, &*facts.name), slot as u32);
    }

    /// They have gone.
    pub fn endpoints_gone(&mut self, source: SourceId, at: WallTime, namespace: &str, name: &str) {
        if let Some(slot) = self.slice_named(namespace, name) {
            self.slice_missing(slot, source, at);
        }
        self.forget(at);
    }

    /// A list of endpoints begins.
    pub fn endpoints_list_begins(&mut self, source: SourceId) {
        for (_, slice) in &mut self.slices {
            slice.told_by.list_begins(source);
        }
    }

    /// It is whole.
    pub fn endpoints_list_ends(&mut self, source: SourceId, at: WallTime) {
        let all = self.slices.iter();
        let missing = all.filter(|(_, slice)| slice.told_by.is_missing(source));
        for slot in missing.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.slice_missing(slot, source, at);
        }
        self.forget(at);
    }

    fn slice_missing(&mut self, slot: u32, source: SourceId, at: WallTime) {
        let Some(slice) = self.slices.get_mut(slot as usize) else {
            return;
        };
        slice.told_by.gone(source);
        if !slice.told_by.is_known() {
            self.remove_slice(slot, at);
        }
    }

    fn remove_slice(&mut self, slot: u32, at: WallTime) {
        let Some(slice) = self.slices.try_remove(slot as usize) else {
            return;
        };
        for &(ip, port) in &slice.addresses {
            self.endpoints.close(ip, port, slice.service, at);
        }
        if let Some(entry) = self.entries.get_mut(slice.service as usize) {
            self.slices_by_name.remove(&(&*entry.namespace, &*slice.name), slot);
            entry.slices -= 1;
        }
        self.select(slice.service);
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
        let is_near = |slot: u32| self.entry(slot).is_some_and(|entry| entry.namespace == pod.namespace);
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
        let labels = pod.labels.iter().flat_map(Labels::shared);
        let of_label = |(key, value): &Label| self.by_selector.get(&(&*pod.namespace, &**key, &**value));
        labels.flat_map(of_label).filter(|&slot| {
            self.entry(slot).is_some_and(|entry| {
                let mut selector = entry.selector().iter();
                let has = |(key, value): &Label| pod.labels.as_ref().and_then(|labels| labels.get(key)) == Some(value);
                entry.namespace == pod.namespace && selector.all(has)
            })
        })
    }

    /// The first by name.
    fn first(&self, slots: impl Iterator<Item = u32>, by: ServiceBy) -> Option<Called> {
        let mut first: Option<(u32, &Entry)> = None;
        let mut ambiguous = false;
        for slot in slots {
            let Some(entry) = self.entry(slot) else { continue };
            match first {
                Some((one, _)) if one == slot => {}
                Some((_, one)) => {
                    ambiguous = true;
                    if (&entry.name, &entry.namespace) < (&one.name, &one.namespace) {
                        first = Some((slot, entry));
                    }
                }
                None => first = Some((slot, entry)),
            }
        }
        first.map(|(_, entry)| Called {
            service: entry.service(),
            by,
            ambiguous,
        })
    }

    fn facts(&self, slot: u32) -> Option<&Trimmed> {
        self.entry(slot)?.facts.as_ref()
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize).map(|entry| &**entry)
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.entries.get_mut(slot as usize).map(|entry| &mut **entry)
    }

    fn named(&self, namespace: &str, name: &str) -> Option<u32> {
        let is_it = |entry: &Entry| (&*entry.namespace, &*entry.name) == (namespace, name);
        let mut slots = self.by_name.get(&(namespace, name));
        slots.find(|&slot| self.entry(slot).is_some_and(is_it))
    }

    fn slice_named(&self, namespace: &str, name: &str) -> Option<u32> {
        let is_near = |slice: &Slice| {
            self.entry(slice.service)
                .is_some_and(|entry| *entry.namespace == *namespace)
        };
        let is_it = |slice: &Slice| *slice.name == *name && is_near(slice);
        let mut slots = self.slices_by_name.get(&(namespace, name));
        slots.find(|&slot| self.slices.get(slot as usize).is_some_and(is_it))
    }

    /// Of the Service of this name, which may be new.
    fn slot(&mut self, namespace: &str, name: &str) -> u32 {
        if let Some(slot) = self.named(namespace, name) {
            return slot;
        }
        let entry = Entry {
            namespace: self.strings.one(namespace),
            name: self.strings.one(name),
            service: OnceCell::new(),
            told_by: ToldBy::default(),
            facts: None,
            is_headless: false,
            slices: 0,
            spans: 0,
        };
        let slot = self.entries.insert(Box::new(entry)) as u32;
        self.by_name.insert(&(namespace, name), slot);
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
            && let Some(entry) = self.entries.try_remove(slot as usize)
        {
            self.by_name.remove(&(&*entry.namespace, &*entry.name), slot);
        }
    }
}

fn trim(facts: &ServiceObject, strings: &mut Shared<str>) -> Trimmed {
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
