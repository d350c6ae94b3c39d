//! The Services that sources report: by the address that a client dials, and by the pods behind them.
//!
//! Only what the cluster assigns outranks everything: a ClusterIP and port. An external address counts only where it is nobody
//! else's. Among Services of equal rank, those of several namespaces void each other; of one namespace, the alphabetically
//! first is named.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use slab::Slab;

use super::cached_match::CachedMatch;
use super::pods::{PodRef, Pods};
use super::reports::{Reports, SourceSet};
use super::shared::Shared;
use super::timeline::{OPEN, Span, Timeline};
use crate::names::update::{EndpointsObject, ServiceObject, SourceId, TargetPort};
use crate::record::{Pod, Service, ServiceBy, ServiceMatch, WallTime};

/// How long what a Service had is remembered, ns.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// The number of ended spans that are remembered.
const MAX_REMEMBERED: usize = 50_000;
/// The number of spans that one namespace may have at one address: a pod behind 5 Services with 100 ports each.
const MAX_SPANS: usize = 512;
/// The number of Services of a namespace that are tried for one pod's labels.
const MAX_CANDIDATES: usize = 1_024;
/// The estimated size of a Service or a slice without its texts and addresses, bytes.
const OBJECT_BYTES: usize = 500;

/// The key and the value of a label.
type Label = (Arc<str>, Arc<str>);

/// A port of a Service at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    service: u32,
    port: u16,
}

#[derive(Debug)]
struct Entry {
    service: Arc<Service>,
    reports: Reports,
    /// The sources that ever reported the Service or its slices.
    sources: SourceSet,
    spec: Option<Box<Spec>>,
    /// The label of the selector by which the Service is found.
    found_by: Option<u16>,
    /// The number of slices; while there are any, the selector does not count.
    slices: u32,
    /// The number of spans, past ones included.
    spans: u32,
    bytes: usize,
}

/// What naming needs of a Service's spec.
#[derive(Debug, PartialEq, Eq)]
struct Spec {
    headless: bool,
    cluster_ips: Box<[IpAddr]>,
    external_ips: Box<[IpAddr]>,
    ports: Box<[u16]>,
    node_ports: Box<[u16]>,
    targets: Box<[TargetPort]>,
    selector: Box<[Label]>,
}

#[derive(Debug)]
struct Slice {
    reports: Reports,
    service: u32,
    addresses: Box<[(IpAddr, u16)]>,
    bytes: usize,
}

/// The Services of one namespace whose selectors count.
#[derive(Debug, Default)]
struct Selectors {
    /// By a label of the selector: name and slot, in the order of names.
    by_label: HashMap<Label, Vec<(Arc<str>, u32)>>,
    /// The number and the time of the last change.
    changed: (u32, i64),
}

/// A key under which a span was, for forgetting it.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Cluster(IpAddr),
    External(IpAddr),
    NodePort(u16),
    Endpoint(IpAddr),
}

/// All Services and their endpoints.
#[derive(Debug, Default)]
pub struct Services {
    entries: Slab<Entry>,
    by_name: HashMap<(Arc<str>, Arc<str>), u32>,
    slices: HashMap<(Arc<str>, Arc<str>), Slice>,
    selectors: HashMap<Arc<str>, Selectors>,
    cluster_ips: Timeline<IpAddr, At>,
    external_ips: Timeline<IpAddr, At>,
    node_ports: Timeline<u16, At>,
    endpoints: Timeline<IpAddr, At>,
    /// The number of changes of selectors so far.
    selector_changes: u32,
    #[cfg(test)]
    lookups: std::cell::Cell<usize>,
    ended: VecDeque<(i64, Ended)>,
}

impl Services {
    /// Adds or changes a Service. Returns `false` if there is no room for it.
    pub fn upsert(&mut self, source: SourceId, at: WallTime, object: &ServiceObject, shared: &mut Shared) -> bool {
        let spec = Spec::of(object, shared);
        let bytes = OBJECT_BYTES + 2 * object.name.len() + 200 * object.selector.len() + spec.spans() * 120;
        let slot = self.slot(&object.namespace, &object.name, shared);
        let entry = &mut self.entries[slot as usize];
        if !shared.budget.replace(&entry.service.namespace, entry.bytes, bytes) {
            self.remove_if_empty(slot, shared);
            return false;
        }
        entry.bytes = bytes;
        entry.reports.add(source, at);
        entry.sources.insert(source);
        if entry.spec.as_deref() != Some(&spec) {
            self.close_spec(slot, at);
            self.open_spec(slot, &spec, at);
            self.entries[slot as usize].spec = Some(Box::new(spec));
            self.index_selector(slot, at);
        }
        self.forget(at, shared);
        true
    }

    fn open_spec(&mut self, slot: u32, spec: &Spec, at: WallTime) {
        let mut spans = 0;
        for &port in &spec.ports {
            let value = At { service: slot, port };
            for &ip in &spec.cluster_ips {
                spans += open(&mut self.cluster_ips, &self.entries, ip, value, at);
            }
            for &ip in &spec.external_ips {
                spans += open(&mut self.external_ips, &self.entries, ip, value, at);
            }
        }
        for &port in &spec.node_ports {
            spans += open(
                &mut self.node_ports,
                &self.entries,
                port,
                At { service: slot, port },
                at,
            );
        }
        self.entries[slot as usize].spans += spans;
    }

    fn close_spec(&mut self, slot: u32, at: WallTime) {
        self.unindex_selector(slot, at);
        let Some(spec) = self.entries[slot as usize].spec.take() else {
            return;
        };
        for &port in &spec.ports {
            let value = At { service: slot, port };
            for &ip in &spec.cluster_ips {
                close(
                    &mut self.cluster_ips,
                    ip,
                    value,
                    at,
                    Ended::Cluster(ip),
                    &mut self.ended,
                );
            }
            for &ip in &spec.external_ips {
                close(
                    &mut self.external_ips,
                    ip,
                    value,
                    at,
                    Ended::External(ip),
                    &mut self.ended,
                );
            }
        }
        for &port in &spec.node_ports {
            let value = At { service: slot, port };
            close(
                &mut self.node_ports,
                port,
                value,
                at,
                Ended::NodePort(port),
                &mut self.ended,
            );
        }
    }

    /// Finds the Service by a label of its selector from now on, unless it has slices.
    fn index_selector(&mut self, slot: u32, at: WallTime) {
        self.unindex_selector(slot, at);
        let entry = &mut self.entries[slot as usize];
        let selector = entry.spec.as_ref().map_or(&[][..], |spec| &spec.selector);
        if selector.is_empty() || entry.slices > 0 {
            return;
        }
        let namespace = Arc::clone(&entry.service.namespace);
        let selectors = self.selectors.entry(namespace).or_default();
        // The label by which fewest Services of the namespace are found.
        let count = |at: &usize| selectors.by_label.get(&selector[*at]).map_or(0, Vec::len);
        let Some(at) = (0..selector.len()).min_by_key(count) else {
            return;
        };
        let services = selectors.by_label.entry(selector[at].clone()).or_default();
        let found = (Arc::clone(&entry.service.name), slot);
        if let Err(place) = services.binary_search(&found) {
            services.insert(place, found);
        }
        entry.found_by = Some(at as u16);
    }

    fn unindex_selector(&mut self, slot: u32, at: WallTime) {
        let entry = &mut self.entries[slot as usize];
        let namespace = Arc::clone(&entry.service.namespace);
        let selectors = self.selectors.entry(namespace).or_default();
        self.selector_changes = self.selector_changes.wrapping_add(1);
        selectors.changed = (self.selector_changes, at.0);
        if let (Some(at), Some(spec)) = (entry.found_by.take(), &entry.spec)
            && let Some(label) = spec.selector.get(usize::from(at))
            && let Some(services) = selectors.by_label.get_mut(label)
        {
            services.retain(|&(_, one)| one != slot);
            if services.is_empty() {
                selectors.by_label.remove(label);
            }
        }
    }

    /// Removes a source's report of a Service.
    pub fn delete(&mut self, source: SourceId, at: WallTime, namespace: &str, name: &str, shared: &mut Shared) {
        if let Some(&slot) = self.by_name.get(&(namespace.into(), name.into())) {
            self.remove_report(slot, source, at, shared);
        }
        self.forget(at, shared);
    }

    /// Removes the source's report of the Services that a complete list lacks.
    pub fn end_list(&mut self, source: SourceId, at: WallTime, shared: &mut Shared) {
        let missing = self.entries.iter();
        let missing = missing.filter(|(_, entry)| entry.reports.is_missing(source, at));
        for slot in missing.map(|(slot, _)| slot as u32).collect::<Vec<_>>() {
            self.remove_report(slot, source, at, shared);
        }
        self.forget(at, shared);
    }

    fn remove_report(&mut self, slot: u32, source: SourceId, at: WallTime, shared: &mut Shared) {
        let entry = &mut self.entries[slot as usize];
        entry.reports.remove(source);
        if !entry.reports.any() {
            self.close_spec(slot, at);
            self.remove_if_empty(slot, shared);
        }
    }

    /// Adds or changes endpoints. Returns `false` if there is no room for them.
    pub fn upsert_endpoints(
        &mut self,
        source: SourceId,
        at: WallTime,
        object: &EndpointsObject,
        shared: &mut Shared,
    ) -> bool {
        if object.service.is_empty() {
            // A slice of no Service, whatever it was before.
            self.delete_endpoints(source, at, &object.namespace, &object.name, shared);
            return true;
        }
        let mut addresses: Vec<_> = object
            .addresses
            .iter()
            .map(|one| (one.ip().to_canonical(), one.port()))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let key = (shared.strings.intern(&*object.namespace), Arc::from(&*object.name));
        let before = self.slices.remove(&key);
        let bytes = OBJECT_BYTES + addresses.len() * 150;
        if !shared
            .budget
            .replace(&key.0, before.as_ref().map_or(0, |slice| slice.bytes), bytes)
        {
            if let Some(before) = before {
                self.slices.insert(key, before);
            }
            return false;
        }
        let slot = self.slot(&object.namespace, &object.service, shared);
        self.entries[slot as usize].sources.insert(source);
        self.entries[slot as usize].slices += 1;
        // The new addresses first, so that the spans of those that stay do not end.
        let mut spans = 0;
        for &(ip, port) in &addresses {
            spans += self.open_endpoint(ip, At { service: slot, port }, at);
        }
        self.entries[slot as usize].spans += spans;
        let mut reports = Reports::default();
        if let Some(before) = before {
            reports = before.reports.clone();
            self.close_endpoints(&before, at, shared);
        }
        reports.add(source, at);
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

    fn open_endpoint(&mut self, ip: IpAddr, value: At, at: WallTime) -> u32 {
        open(&mut self.endpoints, &self.entries, ip, value, at)
    }

    /// Ends the endpoints of a slice.
    fn close_endpoints(&mut self, slice: &Slice, at: WallTime, shared: &mut Shared) {
        for &(ip, port) in &slice.addresses {
            let service = slice.service;
            let value = At { service, port };
            close(&mut self.endpoints, ip, value, at, Ended::Endpoint(ip), &mut self.ended);
        }
        self.entries[slice.service as usize].slices -= 1;
        self.index_selector(slice.service, at);
        self.remove_if_empty(slice.service, shared);
    }

    /// Removes a source's report of endpoints.
    pub fn delete_endpoints(
        &mut self,
        source: SourceId,
        at: WallTime,
        namespace: &str,
        name: &str,
        shared: &mut Shared,
    ) {
        self.remove_slice_report(&(namespace.into(), name.into()), source, at, shared);
        self.forget(at, shared);
    }

    /// Removes the source's report of the endpoints that a complete list lacks.
    pub fn end_endpoints_list(&mut self, source: SourceId, at: WallTime, shared: &mut Shared) {
        let missing = self.slices.iter();
        let missing = missing.filter(|(_, slice)| slice.reports.is_missing(source, at));
        for key in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove_slice_report(&key, source, at, shared);
        }
        self.forget(at, shared);
    }

    fn remove_slice_report(&mut self, key: &(Arc<str>, Arc<str>), source: SourceId, at: WallTime, shared: &mut Shared) {
        let Some(slice) = self.slices.get_mut(key) else {
            return;
        };
        slice.reports.remove(source);
        if !slice.reports.any()
            && let Some(slice) = self.slices.remove(key)
        {
            shared.budget.replace(&key.0, slice.bytes, 0);
            self.close_endpoints(&slice, at, shared);
        }
    }

    /// Returns the Service that a client dialled at `time`. `at_node`: the address is a node's. `is_others`: whether the
    /// address is a pod's or a node's.
    pub fn dialled(
        &self,
        address: SocketAddr,
        at_node: bool,
        is_others: bool,
        time: WallTime,
        allowed: SourceSet,
    ) -> Option<ServiceMatch> {
        let (ip, port) = (address.ip(), address.port());
        let at = |spans: &[Span<At>]| self.pick(spans, time, allowed, ServiceBy::Vip, |at| at.port == port);
        let cluster = self.cluster_ips.get(&ip);
        if let Some(found) = at(cluster) {
            return Some(found);
        }
        if !is_others
            && cluster.is_empty()
            && let Some(found) = at(self.external_ips.get(&ip))
        {
            return Some(found);
        }
        at_node.then(|| at(self.node_ports.get(&port))).flatten()
    }

    /// Returns the Service of a port of a pod at `time`, remembered or looked up.
    pub fn behind(
        &self,
        address: SocketAddr,
        pod: &Pod,
        reference: PodRef,
        pods: &mut Pods,
        time: WallTime,
        allowed: SourceSet,
    ) -> Option<ServiceMatch> {
        let (ip, port) = (address.ip(), address.port());
        let selectors = self.selectors.get(&pod.namespace);
        let selectors = selectors.map_or((0, i64::MIN), |selectors| selectors.changed);
        let changed = [self.endpoints.last_change(&ip), selectors];
        // Connections that started before the last change are looked up anew.
        let is_current = changed.iter().all(|&(_, at)| time.0 >= at);
        if is_current
            && let Some(cached) = pods.cached_service(reference, port)
            && (cached.changed, cached.ip, cached.allowed) == (changed, ip, allowed)
        {
            return cached.found.clone();
        }
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        let found = self.look_up(address, pod, reference, pods, time, allowed);
        if is_current {
            let found = found.clone();
            pods.cache_service(
                reference,
                CachedMatch {
                    port,
                    ip,
                    allowed,
                    changed,
                    found,
                },
            );
        }
        found
    }

    fn look_up(
        &self,
        address: SocketAddr,
        pod: &Pod,
        reference: PodRef,
        pods: &Pods,
        time: WallTime,
        allowed: SourceSet,
    ) -> Option<ServiceMatch> {
        let endpoints = self.endpoints.get(&address.ip());
        let is_near = |at: &At| self.entries[at.service as usize].service.namespace == pod.namespace;
        let is_headless = |slot: u32| {
            let spec = &self.entries[slot as usize].spec;
            spec.as_ref().is_some_and(|spec| spec.headless)
        };
        let is_target = |slot: u32| {
            let spec = &self.entries[slot as usize].spec;
            spec.iter().flat_map(|spec| &spec.targets).any(|target| match target {
                TargetPort::Number(port) => *port == address.port(),
                TargetPort::Name(name) => pods.has_port(reference, name, address.port()),
            })
        };
        let at_port = |at: &At| at.port == address.port();
        let headless = |at: &At| is_headless(at.service);
        let (port, peer) = (ServiceBy::TargetPort, ServiceBy::Headless);
        self.pick(endpoints, time, allowed, port, |at| is_near(at) && at_port(at))
            .or_else(|| self.pick_selecting(pod, allowed, port, is_target))
            .or_else(|| self.pick(endpoints, time, allowed, port, |at| !is_near(at) && at_port(at)))
            .or_else(|| self.pick(endpoints, time, allowed, peer, |at| is_near(at) && headless(at)))
            .or_else(|| self.pick_selecting(pod, allowed, peer, is_headless))
            .or_else(|| self.pick(endpoints, time, allowed, peer, |at| !is_near(at) && headless(at)))
    }

    /// Returns the Service among those spans: the alphabetically first of one namespace, none if there are several namespaces.
    fn pick(
        &self,
        spans: &[Span<At>],
        time: WallTime,
        allowed: SourceSet,
        by: ServiceBy,
        is_wanted: impl Fn(&At) -> bool,
    ) -> Option<ServiceMatch> {
        let mut first: Option<&Entry> = None;
        let mut ambiguous = false;
        for span in spans
            .iter()
            .filter(|span| span.contains(time) && is_wanted(&span.value))
        {
            let entry = &self.entries[span.value.service as usize];
            if !entry.sources.intersects(allowed) {
                continue;
            }
            let Some(one) = first else {
                first = Some(entry);
                continue;
            };
            if one.service.namespace != entry.service.namespace {
                return None;
            }
            ambiguous |= one.service.name != entry.service.name;
            if entry.service.name < one.service.name {
                first = Some(entry);
            }
        }
        first.map(|entry| entry.called(by, ambiguous))
    }

    /// Returns the Service without slices whose selector selects the pod: the alphabetically first of its namespace.
    fn pick_selecting(
        &self,
        pod: &Pod,
        allowed: SourceSet,
        by: ServiceBy,
        is_wanted: impl Fn(u32) -> bool,
    ) -> Option<ServiceMatch> {
        let selectors = self.selectors.get(&pod.namespace)?;
        let labels = pod.labels.as_ref()?;
        let has = |(key, value): &(Arc<str>, Arc<str>)| labels.get(key) == Some(value);
        let selects = |slot: u32| {
            let entry = &self.entries[slot as usize];
            let selector = entry.spec.as_ref().map_or(&[][..], |spec| &spec.selector);
            entry.sources.intersects(allowed) && selector.iter().all(has) && is_wanted(slot)
        };
        let mut found: Vec<&(Arc<str>, u32)> = Vec::new();
        for services in labels.shared().filter_map(|label| selectors.by_label.get(label)) {
            // In the order of their names: two are enough to know the first, and that it is not the only one.
            let services = services.iter().take(MAX_CANDIDATES);
            found.extend(services.filter(|(_, slot)| selects(*slot)).take(2));
        }
        found.sort_unstable();
        let (_, first) = found.first()?;
        Some(self.entries[*first as usize].called(by, found.len() > 1))
    }

    /// The number of look-ups that no remembered match answered.
    #[cfg(test)]
    pub fn lookups(&self) -> usize {
        self.lookups.get()
    }

    /// The number of Services, remembered ones included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the slot of the Service of this name, which may be new.
    fn slot(&mut self, namespace: &str, name: &str, shared: &mut Shared) -> u32 {
        let key = (shared.strings.intern(namespace), Arc::from(name));
        if let Some(&slot) = self.by_name.get(&key) {
            return slot;
        }
        let service = Arc::new(Service {
            namespace: Arc::clone(&key.0),
            name: Arc::clone(&key.1),
            host: format!("{name}.{namespace}.svc.cluster.local").into(),
        });
        let entry = Entry {
            service,
            reports: Reports::default(),
            sources: SourceSet::default(),
            spec: None,
            found_by: None,
            slices: 0,
            spans: 0,
            bytes: 0,
        };
        let slot = self.entries.insert(entry) as u32;
        self.by_name.insert(key, slot);
        slot
    }

    /// Forgets the spans that ended long ago, and the Services of which nothing is left.
    fn forget(&mut self, now: WallTime, shared: &mut Shared) {
        while let Some(&(until, key)) = self.ended.front()
            && (self.ended.len() > MAX_REMEMBERED || now.0.saturating_sub(until) > REMEMBERED_NS)
        {
            self.ended.pop_front();
            let forgotten = match key {
                Ended::Cluster(ip) => self.cluster_ips.forget(&ip, until),
                Ended::External(ip) => self.external_ips.forget(&ip, until),
                Ended::NodePort(port) => self.node_ports.forget(&port, until),
                Ended::Endpoint(ip) => self.endpoints.forget(&ip, until),
            };
            for At { service, .. } in forgotten {
                self.entries[service as usize].spans -= 1;
                self.remove_if_empty(service, shared);
            }
        }
    }

    fn remove_if_empty(&mut self, slot: u32, shared: &mut Shared) {
        let entry = &self.entries[slot as usize];
        if entry.reports.any() || entry.slices > 0 || entry.spans > 0 {
            return;
        }
        let entry = self.entries.remove(slot as usize);
        let service = &entry.service;
        self.by_name
            .remove(&(Arc::clone(&service.namespace), Arc::clone(&service.name)));
        shared.budget.replace(&service.namespace, entry.bytes, 0);
        let selectors = self.selectors.get(&service.namespace);
        if selectors.is_some_and(|selectors| selectors.by_label.is_empty()) {
            self.selectors.remove(&service.namespace);
        }
    }
}

impl Entry {
    fn called(&self, by: ServiceBy, ambiguous: bool) -> ServiceMatch {
        ServiceMatch {
            service: Arc::clone(&self.service),
            by,
            ambiguous,
        }
    }
}

impl Spec {
    fn of(object: &ServiceObject, shared: &mut Shared) -> Self {
        let canonical = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_canonical).collect();
        let strings = &mut shared.strings;
        let selector = object.selector.iter();
        let mut selector: Vec<_> = selector
            .map(|(key, value)| (strings.intern(&**key), strings.intern(&**value)))
            .collect();
        selector.sort_unstable();
        Self {
            headless: object.headless,
            cluster_ips: canonical(&object.cluster_ips),
            external_ips: canonical(&object.external_ips),
            ports: object.ports.iter().map(|port| port.port).collect(),
            node_ports: object.ports.iter().filter_map(|port| port.node_port).collect(),
            targets: object.ports.iter().map(|port| port.target.clone()).collect(),
            selector: selector.into(),
        }
    }

    /// The number of spans that the spec opens.
    fn spans(&self) -> usize {
        self.ports.len() * (self.cluster_ips.len() + self.external_ips.len()) + self.node_ports.len()
    }
}

/// Opens a span, or adds a use to it. Returns the number of new spans; none where its namespace has too many at this key. A
/// port of which no Service was ever seen to go had the same Services before they were first listed.
fn open<K: Copy + Eq + std::hash::Hash>(
    timeline: &mut Timeline<K, At>,
    entries: &Slab<Entry>,
    key: K,
    value: At,
    at: WallTime,
) -> u32 {
    if let Some(span) = timeline.last_mut(&key, value)
        && span.until == OPEN
    {
        span.uses += 1;
        return 0;
    }
    let spans = timeline.get(&key);
    let namespace = &entries[value.service as usize].service.namespace;
    let is_near = |span: &&Span<At>| entries[span.value.service as usize].service.namespace == *namespace;
    if spans.len() >= MAX_SPANS && spans.iter().filter(is_near).count() >= MAX_SPANS {
        return 0;
    }
    let was_reused = spans
        .iter()
        .any(|span| span.value.port == value.port && span.until != OPEN);
    let since = if was_reused { at.0 } else { i64::MIN };
    timeline.push(
        key,
        Span {
            value,
            since,
            until: OPEN,
            uses: 1,
        },
    );
    1
}

/// Removes a use of a span, and ends the span with the last use.
fn close<K: Copy + Eq + std::hash::Hash>(
    timeline: &mut Timeline<K, At>,
    key: K,
    value: At,
    at: WallTime,
    ended: Ended,
    queue: &mut VecDeque<(i64, Ended)>,
) {
    if let Some(span) = timeline.last_mut(&key, value)
        && span.until == OPEN
    {
        span.uses -= 1;
        if span.uses == 0 {
            span.until = at.0.min(OPEN - 1);
            queue.push_back((span.until, ended));
        }
    }
}
