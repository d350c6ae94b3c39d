//! Which Service a connection is to: by the address that the client dialled, or by the pod that answers.
//!
//! An assigned ClusterIP and port outrank everything. An external address counts only where no pod, node or ClusterIP
//! has it. A Service of another namespace counts only for a pod that no Service of its own namespace leads to. Among
//! Services of equal rank, those of several namespaces void each other; of one namespace, the alphabetically first is
//! named.

use std::net::SocketAddr;
use std::sync::Arc;

use super::pod_entry::{CachedMatch, PodEntry};
use super::pods::{NamedPod, Pods};
use super::reports::AsOf;
use super::services::{Address, PortAt, ServiceEntry, Services};
use super::timeline::Span;
use crate::names::update::TargetPort;
use crate::record::{Pod, ServiceBy, ServiceMatch};

/// The number of Services of a namespace whose selectors are tried for a pod.
const MAX_CANDIDATES: usize = 4_096;

impl Services {
    /// Returns the Service that a client dialled. `at_node`: the address is a node's. `is_others`: the
    /// address is a pod's or a node's.
    pub fn dialled(&self, address: SocketAddr, at_node: bool, is_others: bool, as_of: AsOf) -> Option<ServiceMatch> {
        let (ip, port) = (address.ip(), address.port());
        let pick = |address| self.pick(self.at(address), as_of, ServiceBy::Vip, |at| at.port == port);
        let is_external = !is_others && self.at(Address::ClusterIp(ip)).is_empty();
        pick(Address::ClusterIp(ip))
            .or_else(|| pick(Address::External(ip)).filter(|_| is_external))
            .or_else(|| pick(Address::NodePort(port)).filter(|_| at_node))
    }

    /// Returns the Service of a port of a pod, remembered or looked up.
    pub fn behind(&self, address: SocketAddr, server: &NamedPod, pods: &mut Pods, as_of: AsOf) -> Option<ServiceMatch> {
        let (ip, port) = (address.ip(), address.port());
        let selectors = self.selectors(&server.pod.namespace);
        let selectors = selectors.map_or((0, i64::MIN), |selectors| selectors.changed);
        let changed = [self.last_change(ip), selectors];
        // Connections that started before the last change are looked up anew.
        let is_current = changed.iter().all(|&(_, at)| as_of.time.0 >= at);
        let entry = pods.get_mut(server.reference);
        if is_current
            && let Some(cached) = entry.cached_service(port)
            && (cached.changed, cached.ip, cached.allowed) == (changed, ip, as_of.sources)
        {
            return cached.found.clone();
        }
        #[cfg(test)]
        self.lookups.set(self.lookups.get() + 1);
        let found = self.look_up(address, &server.pod, entry, as_of);
        if is_current {
            let found = found.clone();
            entry.cache_service(CachedMatch {
                port,
                ip,
                allowed: as_of.sources,
                changed,
                found,
            });
        }
        found
    }

    fn look_up(&self, address: SocketAddr, pod: &Pod, entry: &PodEntry, as_of: AsOf) -> Option<ServiceMatch> {
        use ServiceBy::{Headless, TargetPort};
        let endpoints = self.at(Address::Endpoint(address.ip()));
        let is_near = |at: &PortAt| self.get(at.service).service.namespace == pod.namespace;
        let at_port = |at: &PortAt| at.port == address.port();
        let headless = |at: &PortAt| self.get(at.service).is_headless();
        let is_target = |service: &ServiceEntry| service.has_target(entry, address.port());
        self.pick(endpoints, as_of, TargetPort, |at| is_near(at) && at_port(at))
            .or_else(|| self.pick_selecting(pod, as_of, TargetPort, is_target))
            .or_else(|| self.pick(endpoints, as_of, Headless, |at| is_near(at) && headless(at)))
            .or_else(|| self.pick_selecting(pod, as_of, Headless, ServiceEntry::is_headless))
            .or_else(|| {
                let has_near = self.pick(endpoints, as_of, TargetPort, is_near).is_some()
                    || self.pick_selecting(pod, as_of, TargetPort, |_| true).is_some();
                let far = if has_near { &[] } else { endpoints };
                self.pick(far, as_of, TargetPort, at_port)
                    .or_else(|| self.pick(far, as_of, Headless, headless))
            })
    }

    /// Returns the Service among those spans: the alphabetically first of one namespace, none if there are several
    /// namespaces.
    fn pick(
        &self,
        spans: &[Span<PortAt>],
        as_of: AsOf,
        by: ServiceBy,
        is_wanted: impl Fn(&PortAt) -> bool,
    ) -> Option<ServiceMatch> {
        let spans = spans
            .iter()
            .filter(|span| span.contains(as_of.time) && is_wanted(&span.value));
        let services = spans.map(|span| self.get(span.value.service));
        let services = services
            .filter(|entry| entry.sources.intersects(as_of.sources))
            .map(|entry| &entry.service);
        let first = services.clone().min_by(|one, other| one.name.cmp(&other.name))?;
        if services.clone().any(|service| service.namespace != first.namespace) {
            return None;
        }
        Some(ServiceMatch {
            service: Arc::clone(first),
            by,
            ambiguous: services.clone().any(|service| service.name != first.name),
        })
    }

    /// Returns the Service without slices whose selector selects the pod: the alphabetically first of its namespace.
    fn pick_selecting(
        &self,
        pod: &Pod,
        as_of: AsOf,
        by: ServiceBy,
        is_wanted: impl Fn(&ServiceEntry) -> bool,
    ) -> Option<ServiceMatch> {
        let services = self.selectors(&pod.namespace)?.services.values().take(MAX_CANDIDATES);
        let services = services.map(|&slot| self.get(slot));
        let mut found =
            services.filter(|entry| entry.selects(pod) && entry.sources.intersects(as_of.sources) && is_wanted(entry));
        let first = found.next()?;
        Some(ServiceMatch {
            service: Arc::clone(&first.service),
            by,
            ambiguous: found.next().is_some(),
        })
    }
}

impl ServiceEntry {
    fn is_headless(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.headless)
    }

    /// Returns whether a port of the Service leads to this port of a pod.
    fn has_target(&self, pod: &PodEntry, port: u16) -> bool {
        let mut targets = self.spec.iter().flat_map(|spec| &spec.targets);
        targets.any(|target| match target {
            TargetPort::Number(number) => *number == port,
            TargetPort::Name(name) => pod.has_port(name, port),
        })
    }

    fn selects(&self, pod: &Pod) -> bool {
        let (Some(spec), Some(labels)) = (&self.spec, &pod.labels) else {
            return false;
        };
        let mut selector = spec.selector.iter();
        selector.all(|(key, value)| labels.get(key) == Some(&**value))
    }
}
