//! The Services that sources report, by their addresses, and by the addresses and labels of the pods behind them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;

use super::reports::{ReportedBy, Reports, SourceSet};
use super::shared::SharedValues;
use super::timeline::{OPEN, Span, Timeline};
use crate::names::update::{EndpointsObject, ServiceObject, TargetPort};
use crate::record::{Service, WallTime};

/// The time for which ended spans are remembered, ns.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// The number of ended spans that are remembered.
const MAX_REMEMBERED: usize = 50_000;
/// The number of spans that one namespace may have at one address: a pod behind 5 Services with 100 ports each.
const MAX_SPANS: usize = 512;
/// The estimated size of a Service or a slice without its texts and addresses, bytes.
const OBJECT_BYTES: usize = 500;
/// The estimated size of an address with a port, with its span, bytes.
const SPAN_BYTES: usize = 150;

/// The namespace and the name.
type Name = (Arc<str>, Arc<str>);
/// An address of a Service or of a pod behind one, with a port.
type AddressPort = (Address, u16);

/// An address by which a Service is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    ClusterIp(IpAddr),
    /// An external address, or one of a load balancer.
    External(IpAddr),
    /// A port of every node.
    NodePort(u16),
    /// A pod behind the Service.
    Endpoint(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortAt {
    pub service: usize,
    pub port: u16,
}

#[derive(Debug)]
pub struct ServiceEntry {
    pub service: Arc<Service>,
    reports: Reports,
    /// The sources that ever reported the Service or its slices.
    pub sources: SourceSet,
    pub spec: Option<Box<Spec>>,
    /// The number of slices; while there are any, the selector does not count.
    slices: u32,
    /// The number of spans, past ones included.
    spans: u32,
    bytes: usize,
}

/// What naming needs of a Service's spec.
#[derive(Debug, PartialEq, Eq)]
pub struct Spec {
    pub headless: bool,
    addresses: Box<[AddressPort]>,
    pub targets: Box<[TargetPort]>,
    pub selector: Box<[(Arc<str>, Arc<str>)]>,
}

/// An EndpointSlice, or an Endpoints object.
#[derive(Debug)]
struct Slice {
    reports: Reports,
    service: usize,
    addresses: Box<[AddressPort]>,
    bytes: usize,
}

/// The Services of one namespace whose selectors count, in the order of their names.
#[derive(Debug, Default)]
pub struct Selectors {
    pub services: BTreeMap<Arc<str>, usize>,
    /// The number and the time of the last change.
    pub changed: (u32, i64),
}

#[derive(Debug, Default)]
pub struct Services {
    entries: Slab<ServiceEntry>,
    by_name: HashMap<Name, usize>,
    slices: HashMap<Name, Slice>,
    selectors: HashMap<Arc<str>, Selectors>,
    selector_changes: u32,
    addresses: Timeline<Address, PortAt>,
    /// The timeline of [`Address::Endpoint`], which has most of the addresses.
    endpoints: Timeline<Address, PortAt>,
    ended: VecDeque<(i64, Address)>,
    /// The number of look-ups that no remembered match answered.
    #[cfg(test)]
    pub lookups: std::cell::Cell<usize>,
}

impl Services {
    /// Returns a Service, reported or remembered.
    pub fn get(&self, slot: usize) -> &ServiceEntry {
        &self.entries[slot]
    }

    /// Returns the Services that have or had an address.
    pub fn at(&self, address: Address) -> &[Span<PortAt>] {
        match address {
            Address::Endpoint(_) => self.endpoints.get(&address),
            _ => self.addresses.get(&address),
        }
    }

    fn timeline(&mut self, address: Address) -> &mut Timeline<Address, PortAt> {
        match address {
            Address::Endpoint(_) => &mut self.endpoints,
            _ => &mut self.addresses,
        }
    }

    /// Returns the last change of the endpoints at an address: its number, and its time.
    pub fn last_change(&self, ip: IpAddr) -> (u32, i64) {
        self.endpoints.last_change(&Address::Endpoint(ip))
    }

    /// Returns the Services of a namespace whose selectors count.
    pub fn selectors(&self, namespace: &str) -> Option<&Selectors> {
        self.selectors.get(namespace)
    }

    /// Adds or changes a Service. Returns `false` if the memory budget is used up.
    pub fn upsert(&mut self, report: ReportedBy, object: &ServiceObject, shared: &mut SharedValues) -> bool {
        let ReportedBy { source, at } = report;
        let spec = Spec::new(object, shared);
        let bytes =
            OBJECT_BYTES + 2 * object.name.len() + 200 * object.selector.len() + SPAN_BYTES * spec.addresses.len();
        let slot = self.slot(&object.namespace, &object.name, shared);
        let entry = &mut self.entries[slot];
        if !shared.budget.replace(&entry.service.namespace, entry.bytes, bytes) {
            self.remove_if_empty(slot, shared);
            return false;
        }
        entry.bytes = bytes;
        entry.reports.add(report);
        entry.sources.insert(source);
        if entry.spec.as_deref() != Some(&spec) {
            self.close_spec(slot, at);
            self.open(slot, &spec.addresses, at);
            self.entries[slot].spec = Some(Box::new(spec));
            self.index_selector(slot, at);
        }
        self.forget(at, shared);
        true
    }

    fn close_spec(&mut self, slot: usize, at: WallTime) {
        if let Some(spec) = self.entries[slot].spec.take() {
            self.close(slot, &spec.addresses, at);
        }
        self.index_selector(slot, at);
    }

    /// Finds the Service by its selector from now on, unless it has none, or has slices.
    fn index_selector(&mut self, slot: usize, at: WallTime) {
        let entry = &self.entries[slot];
        let selectors = self.selectors.entry(Arc::clone(&entry.service.namespace)).or_default();
        self.selector_changes = self.selector_changes.wrapping_add(1);
        selectors.changed = (self.selector_changes, at.0);
        let name = &entry.service.name;
        match &entry.spec {
            Some(spec) if !spec.selector.is_empty() && entry.slices == 0 => {
                selectors.services.insert(Arc::clone(name), slot);
            }
            _ => _ = selectors.services.remove(name),
        }
    }

    pub fn delete(&mut self, report: ReportedBy, namespace: &str, name: &str, shared: &mut SharedValues) {
        if let Some(&slot) = self.by_name.get(&(namespace.into(), name.into())) {
            self.remove_report(slot, report, shared);
        }
        self.forget(report.at, shared);
    }

    /// Removes the source's report of the Services that a complete list lacks.
    pub fn end_list(&mut self, list: ReportedBy, shared: &mut SharedValues) {
        let missing = self.entries.iter();
        let missing = missing.filter(|(_, entry)| entry.reports.is_missing(list));
        for slot in missing.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.remove_report(slot, list, shared);
        }
        self.forget(list.at, shared);
    }

    fn remove_report(&mut self, slot: usize, report: ReportedBy, shared: &mut SharedValues) {
        let entry = &mut self.entries[slot];
        entry.reports.remove(report.source);
        if !entry.reports.any() {
            self.close_spec(slot, report.at);
            self.remove_if_empty(slot, shared);
        }
    }

    /// Adds or changes endpoints. Returns `false` if the memory budget is used up.
    pub fn upsert_endpoints(
        &mut self,
        report: ReportedBy,
        object: &EndpointsObject,
        shared: &mut SharedValues,
    ) -> bool {
        let ReportedBy { source, at } = report;
        if object.service.is_empty() {
            // A slice of no Service, whatever it was before.
            self.delete_endpoints(report, &object.namespace, &object.name, shared);
            return true;
        }
        let addresses = object.addresses.iter();
        let addresses = addresses.map(|one| (Address::Endpoint(one.ip().to_canonical()), one.port()));
        let mut addresses: Vec<_> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        let key = (shared.strings.intern(&*object.namespace), Arc::from(&*object.name));
        let bytes = OBJECT_BYTES + SPAN_BYTES * addresses.len();
        let freed = self.slices.get(&key).map_or(0, |slice| slice.bytes);
        if !shared.budget.replace(&key.0, freed, bytes) {
            return false;
        }
        let slot = self.slot(&object.namespace, &object.service, shared);
        let entry = &mut self.entries[slot];
        entry.sources.insert(source);
        entry.slices += 1;
        // The new addresses first, so that the spans of those that stay do not end.
        self.open(slot, &addresses, at);
        let before = self.slices.remove(&key);
        let mut reports = before.as_ref().map(|before| before.reports.clone()).unwrap_or_default();
        reports.add(report);
        if let Some(before) = before {
            self.close_endpoints(&before, at, shared);
        }
        let slice = Slice {
            reports,
            service: slot,
            addresses: addresses.into(),
            bytes,
        };
        self.slices.insert(key, slice);
        self.index_selector(slot, at);
        self.forget(at, shared);
        true
    }

    fn close_endpoints(&mut self, slice: &Slice, at: WallTime, shared: &mut SharedValues) {
        self.close(slice.service, &slice.addresses, at);
        self.entries[slice.service].slices -= 1;
        self.index_selector(slice.service, at);
        self.remove_if_empty(slice.service, shared);
    }

    pub fn delete_endpoints(&mut self, report: ReportedBy, namespace: &str, name: &str, shared: &mut SharedValues) {
        self.remove_slice_report(&(namespace.into(), name.into()), report, shared);
        self.forget(report.at, shared);
    }

    /// Removes the source's report of the endpoints that a complete list lacks.
    pub fn end_endpoints_list(&mut self, list: ReportedBy, shared: &mut SharedValues) {
        let missing = self.slices.iter();
        let missing = missing.filter(|(_, slice)| slice.reports.is_missing(list));
        for key in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove_slice_report(&key, list, shared);
        }
        self.forget(list.at, shared);
    }

    fn remove_slice_report(&mut self, key: &Name, report: ReportedBy, shared: &mut SharedValues) {
        let Some(slice) = self.slices.get_mut(key) else { return };
        slice.reports.remove(report.source);
        if !slice.reports.any()
            && let Some(slice) = self.slices.remove(key)
        {
            shared.budget.replace(&key.0, slice.bytes, 0);
            self.close_endpoints(&slice, report.at, shared);
        }
    }

    /// Opens a span at each address and port, or adds a use to the open span. Opens none if the namespace already has
    /// [`MAX_SPANS`] spans at the address. If no span at this port has ended, the Service is assumed to have had the
    /// port before it was first listed: the span has no start (`i64::MIN`).
    fn open(&mut self, slot: usize, addresses: &[AddressPort], at: WallTime) {
        for &(address, port) in addresses {
            let value = PortAt { service: slot, port };
            if let Some(span) = self.timeline(address).last_mut(&address, value)
                && span.until == OPEN
            {
                span.uses += 1;
                continue;
            }
            let spans = self.at(address);
            let namespace = &self.entries[slot].service.namespace;
            let is_near = |span: &&Span<PortAt>| self.entries[span.value.service].service.namespace == *namespace;
            if spans.len() >= MAX_SPANS && spans.iter().filter(is_near).count() >= MAX_SPANS {
                continue;
            }
            let has_ended = |span: &Span<PortAt>| span.value.port == port && span.until != OPEN;
            let since = if spans.iter().any(has_ended) { at.0 } else { i64::MIN };
            self.timeline(address).push(address, Span::new(value, since));
            self.entries[slot].spans += 1;
        }
    }

    /// Removes a use of the span at each address, and ends the span with the last use.
    fn close(&mut self, slot: usize, addresses: &[AddressPort], at: WallTime) {
        let until = at.0.min(OPEN - 1);
        for &(address, port) in addresses {
            let value = PortAt { service: slot, port };
            if let Some(span) = self.timeline(address).last_mut(&address, value)
                && span.until == OPEN
            {
                span.uses -= 1;
                if span.uses == 0 {
                    span.until = until;
                    self.ended.push_back((until, address));
                }
            }
        }
    }

    /// Returns the slot of the Service of this name, which may be new.
    fn slot(&mut self, namespace: &str, name: &str, shared: &mut SharedValues) -> usize {
        let key = (shared.strings.intern(namespace), Arc::from(name));
        if let Some(&slot) = self.by_name.get(&key) {
            return slot;
        }
        let service = Arc::new(Service {
            namespace: Arc::clone(&key.0),
            name: Arc::clone(&key.1),
            host: format!("{name}.{namespace}.svc.cluster.local").into(),
        });
        let slot = self.entries.insert(ServiceEntry {
            service,
            reports: Reports::default(),
            sources: SourceSet::default(),
            spec: None,
            slices: 0,
            spans: 0,
            bytes: 0,
        });
        self.by_name.insert(key, slot);
        slot
    }

    /// Forgets the spans that ended long ago, and the Services without reports, slices and spans.
    fn forget(&mut self, now: WallTime, shared: &mut SharedValues) {
        while let Some(&(until, address)) = self.ended.front()
            && (self.ended.len() > MAX_REMEMBERED || now.0.saturating_sub(until) > REMEMBERED_NS)
        {
            self.ended.pop_front();
            for PortAt { service, .. } in self.timeline(address).forget(&address, until) {
                self.entries[service].spans -= 1;
                self.remove_if_empty(service, shared);
            }
        }
    }

    fn remove_if_empty(&mut self, slot: usize, shared: &mut SharedValues) {
        let entry = &self.entries[slot];
        if entry.reports.any() || entry.slices > 0 || entry.spans > 0 {
            return;
        }
        let ServiceEntry { service, bytes, .. } = self.entries.remove(slot);
        let name = (Arc::clone(&service.namespace), Arc::clone(&service.name));
        self.by_name.remove(&name);
        shared.budget.replace(&service.namespace, bytes, 0);
        let selectors = self.selectors.get(&service.namespace);
        if selectors.is_some_and(|selectors| selectors.services.is_empty()) {
            self.selectors.remove(&service.namespace);
        }
    }

    /// Returns all Services, remembered ones included.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.entries.iter().map(|(_, entry)| &entry.service)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Spec {
    fn new(object: &ServiceObject, shared: &mut SharedValues) -> Self {
        let mut addresses = Vec::new();
        let cluster_ips = object
            .cluster_ips
            .iter()
            .map(|ip| Address::ClusterIp(ip.to_canonical()));
        let external_ips = object
            .external_ips
            .iter()
            .map(|ip| Address::External(ip.to_canonical()));
        let ips: Vec<_> = cluster_ips.chain(external_ips).collect();
        for port in &object.ports {
            addresses.extend(ips.iter().map(|&ip| (ip, port.port)));
            addresses.extend(port.node_port.map(|port| (Address::NodePort(port), port)));
        }
        let selector = object.selector.iter();
        let selector = selector.map(|(key, value)| (shared.strings.intern(&**key), shared.strings.intern(&**value)));
        Self {
            headless: object.headless,
            addresses: addresses.into(),
            targets: object.ports.iter().map(|port| port.target.clone()).collect(),
            selector: selector.collect(),
        }
    }
}
