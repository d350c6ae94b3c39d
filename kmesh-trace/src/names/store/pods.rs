//! The pods that sources report: by UID, and by the address that a pod had at a time.
//!
//! The reports of several sources are merged by UID. A pod has its addresses from its start on, until a source
//! reports that it is gone, terminal or elsewhere. An address names a pod only if no other listed pod may have had it
//! at that time.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use slab::Slab;

use super::owners::Owners;
use super::pod_entry::{PodEntry, estimate, usable};
use super::reports::{AsOf, ReportedBy, SourceSet};
use super::shared::SharedValues;
use super::timeline::{OPEN, Span, Timeline};
use crate::names::update::{Kind, PodObject, Scope, SourceId};
use crate::record::Pod;

/// How long a pod that is gone is remembered, ns: longer than the kernel takes to give up a connection.
const REMEMBERED_NS: i64 = 30 * 60 * 1_000_000_000;
/// The number of gone pods that are remembered. Beyond it, the namespace with the most of them forgets its oldest.
pub const MAX_REMEMBERED: usize = 20_000;
/// The time between two removals of old remembered pods, ns.
const SWEEP_NS: i64 = 60 * 1_000_000_000;
/// The tolerance for the clock that dates the start of a pod, ns. It only ever prevents a name.
const SLACK_NS: i64 = 2_000_000_000;
/// The number of addresses that a pod may have had. Kubernetes gives it one of each family.
const MAX_ADDRESSES: usize = 16;

/// A pod of the store. Valid until the next update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRef(usize);

/// A pod of the store, and the form of it that records have.
#[derive(Clone, Debug)]
pub struct NamedPod {
    pub reference: PodRef,
    pub pod: Arc<Pod>,
}

/// The pods that sources report, and those that are remembered.
#[derive(Debug, Default)]
pub struct Pods {
    entries: Slab<PodEntry>,
    by_uid: HashMap<Arc<str>, usize>,
    /// The static pod UID of each pod that has one, whether it is the pod's own UID or a second one.
    static_uids: HashMap<usize, Arc<str>>,
    /// The pods by a static pod UID that is their second UID.
    by_static_uid: HashMap<Arc<str>, Vec<usize>>,
    addresses: Timeline<IpAddr, usize>,
    /// The pods that are gone, by namespace, the oldest first, with the time at which they went.
    gone: HashMap<Arc<str>, VecDeque<(i64, usize)>>,
    gone_count: usize,
    swept_at: i64,
}

impl Pods {
    /// Adds or changes a pod. Returns `false` if the memory budget is used up.
    pub fn upsert(&mut self, report: ReportedBy, object: &PodObject, shared: &mut SharedValues) -> bool {
        let ReportedBy { source, at } = report;
        if object.uid.is_empty() || object.name.is_empty() {
            return true;
        }
        let mut known = self.by_uid.get(&*object.uid).copied();
        if let Some(slot) = known {
            let entry = &self.entries[slot];
            let is_newer = at.0 >= entry.updated_at;
            if !entry.reports.any() && !is_newer {
                // A list is answered while a watch goes on: it may still have a pod whose end the watch has reported.
                return true;
            }
            if is_newer && !entry.has_name_of(object) {
                // A pod's name never changes, so the former report was wrong.
                self.remember_no_more(slot);
                self.remove(slot, shared);
                known = None;
            }
        }
        let before = known.map_or(0, |slot| self.entries[slot].bytes);
        let bytes = before.max(estimate(object) as u32);
        let namespace = shared.strings.intern(&*object.namespace);
        if !shared.budget.replace(&namespace, before as usize, bytes as usize) {
            return false;
        }
        let slot = known.unwrap_or_else(|| {
            let entry = PodEntry::new(object, shared);
            let uid = Arc::clone(&entry.pod.uid);
            let slot = self.entries.insert(entry);
            self.by_uid.insert(uid, slot);
            slot
        });
        self.set_static_uid(slot, object.static_uid.as_deref());
        let entry = &mut self.entries[slot];
        let is_newer = at.0 >= entry.updated_at;
        let was_gone = known.is_some() && !entry.reports.any();
        entry.bytes = bytes;
        entry.merge(object, is_newer, shared);
        entry.reports.add(report);
        entry.sources.insert(source);
        if was_gone {
            self.remember_no_more(slot);
        }
        if is_newer {
            self.update_addresses(slot, source, at.0, object);
        }
        self.sweep(at.0, shared);
        true
    }

    fn update_addresses(&mut self, slot: usize, source: SourceId, at: i64, object: &PodObject) {
        let entry = &mut self.entries[slot];
        let before = std::mem::replace(&mut entry.updated_at, at);
        if entry.pod.host_network == Some(true) {
            // Its addresses are its node's. A source that reported otherwise was wrong from the start, so the spans
            // become empty.
            self.close_all(slot, i64::MIN);
            return;
        }
        let ips = usable(&object.ips);
        let is_first = entry.ips.is_empty();
        let since = if is_first { entry.started.min(at) } else { before };
        if object.terminal {
            entry.is_terminal = true;
            if is_first {
                // It had them at some time before, so that no other pod is certain to have had them then.
                ips.iter().for_each(|&ip| self.open(slot, ip, since));
            }
            self.close_all(slot, at);
            return;
        }
        if ips.is_empty() || entry.is_terminal {
            return;
        }
        entry.address_sources.insert(source);
        for old in entry.ips.clone() {
            let mut same_family = ips.iter().filter(|new| new.is_ipv4() == old.is_ipv4()).peekable();
            if same_family.peek().is_some() && same_family.all(|&new| new != old) {
                self.close(slot, old, at);
            }
        }
        ips.into_iter().for_each(|ip| self.open(slot, ip, since));
    }

    /// Records that the pod has an address. Where a list lacked the pod for a while, it had the address all the time.
    fn open(&mut self, slot: usize, ip: IpAddr, since: i64) {
        let entry = &mut self.entries[slot];
        if let Some(span) = self.addresses.last_mut(&ip, slot) {
            span.until = OPEN;
        } else if entry.ips.len() < MAX_ADDRESSES {
            self.addresses.push(ip, Span::new(slot, since));
            entry.ips = entry.ips.iter().copied().chain([ip]).collect();
        }
    }

    fn close(&mut self, slot: usize, ip: IpAddr, at: i64) {
        if let Some(span) = self.addresses.last_mut(&ip, slot) {
            span.until = span.until.min(at);
        }
    }

    fn close_all(&mut self, slot: usize, at: i64) {
        for ip in self.entries[slot].ips.clone() {
            self.close(slot, ip, at);
        }
    }

    fn set_static_uid(&mut self, slot: usize, static_uid: Option<&str>) {
        let Some(uid) = static_uid else { return };
        if self.static_uids.get(&slot).is_some_and(|known| **known == *uid) {
            return;
        }
        self.unlink_static_uid(slot);
        let uid: Arc<str> = uid.into();
        if self.entries[slot].pod.uid != uid {
            self.by_static_uid.entry(Arc::clone(&uid)).or_default().push(slot);
        }
        self.static_uids.insert(slot, uid);
    }

    fn unlink_static_uid(&mut self, slot: usize) {
        if let Some(uid) = self.static_uids.remove(&slot)
            && let Some(slots) = self.by_static_uid.get_mut(&uid)
        {
            slots.retain(|&one| one != slot);
            if slots.is_empty() {
                self.by_static_uid.remove(&uid);
            }
        }
    }

    pub fn delete(&mut self, report: ReportedBy, uid: &str, shared: &mut SharedValues) {
        if let Some(&slot) = self.by_uid.get(uid) {
            self.remove_report(slot, report, shared);
        }
        self.sweep(report.at.0, shared);
    }

    /// Removes the source's report of the pods that a complete list lacks.
    pub fn end_list(&mut self, list: ReportedBy, scope: &Scope, shared: &mut SharedValues) {
        let is_in_scope = |entry: &PodEntry| match scope {
            Scope::All(kind) => *kind == Kind::Pods,
            Scope::PodsOfNode(node) => entry.pod.node.as_deref() == Some(node),
        };
        let missing = self.entries.iter();
        let missing = missing.filter(|(_, entry)| entry.reports.is_missing(list) && is_in_scope(entry));
        for slot in missing.map(|(slot, _)| slot).collect::<Vec<_>>() {
            self.remove_report(slot, list, shared);
        }
        self.sweep(list.at.0, shared);
    }

    fn remove_report(&mut self, slot: usize, report: ReportedBy, shared: &mut SharedValues) {
        let (source, at) = (report.source, report.at.0);
        let entry = &mut self.entries[slot];
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
                let longest = self.gone.values_mut().max_by_key(|gone| gone.len());
                if let Some((_, slot)) = longest.and_then(VecDeque::pop_front) {
                    self.forget(slot, shared);
                }
            }
        }
    }

    /// Takes a pod off the list of those that are gone, because it is reported again.
    fn remember_no_more(&mut self, slot: usize) {
        if let Some(gone) = self.gone.get_mut(&self.entries[slot].pod.namespace) {
            let before = gone.len();
            gone.retain(|&(_, one)| one != slot);
            self.gone_count -= before - gone.len();
        }
    }

    /// Forgets pods that ended long ago, at most once per [`SWEEP_NS`].
    fn sweep(&mut self, now: i64, shared: &mut SharedValues) {
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

    fn forget(&mut self, slot: usize, shared: &mut SharedValues) {
        self.gone_count -= 1;
        self.remove(slot, shared);
    }

    fn remove(&mut self, slot: usize, shared: &mut SharedValues) {
        let Some(entry) = self.entries.try_remove(slot) else {
            return;
        };
        self.by_uid.remove(&entry.pod.uid);
        self.unlink_static_uid(slot);
        for ip in entry.ips {
            self.addresses.remove(&ip, slot);
        }
        shared.budget.replace(&entry.pod.namespace, entry.bytes as usize, 0);
    }

    /// Returns the pod with this UID, reported or remembered. A static pod is also found by the second UID of the API
    /// server's copy: the UID that the kubelet gave the pod.
    pub fn find(&self, uid: &str) -> Option<PodRef> {
        let slot = match self.by_uid.get(uid) {
            Some(&slot) => self.canonical(slot),
            None => self.static_pod(uid, |_| true)?,
        };
        Some(PodRef(slot))
    }

    /// Returns the API server's copy of a kubelet's static pod, if there is one; else the pod itself.
    fn canonical(&self, slot: usize) -> usize {
        let pod = &self.entries[slot].pod;
        let is_copy = |one: &PodEntry| (&one.pod.namespace, &one.pod.name) == (&pod.namespace, &pod.name);
        match self.static_uids.get(&slot) {
            Some(uid) if *uid == pod.uid => self.static_pod(uid, is_copy).unwrap_or(slot),
            _ => slot,
        }
    }

    /// Returns the only listed pod that claims a static pod's UID; with none, the last that did. Claims of pods with
    /// different names void each other.
    fn static_pod(&self, uid: &str, is_copy: impl Fn(&PodEntry) -> bool) -> Option<usize> {
        let claims = self.by_static_uid.get(uid)?.iter().copied();
        let claims = claims.filter(|&slot| is_copy(&self.entries[slot]));
        let mut listed = claims.clone().filter(|&slot| self.entries[slot].reports.any());
        match (listed.next(), listed.next()) {
            (Some(slot), None) => Some(slot),
            (None, _) => {
                let name = |slot: usize| (&self.entries[slot].pod.namespace, &self.entries[slot].pod.name);
                let last = claims.clone().last()?;
                claims.clone().all(|slot| name(slot) == name(last)).then_some(last)
            }
            _ => None,
        }
    }

    /// Returns the pod that had `ip` at that time, if a source that counts lists it and no other pod may have had the
    /// address.
    pub fn holder(&self, ip: IpAddr, as_of: AsOf) -> Option<PodRef> {
        let mut holder = None;
        let mut is_certain = false;
        for span in self.addresses.get(&ip) {
            let is_possible = as_of.time.0 >= span.since.saturating_sub(SLACK_NS) && as_of.time.0 < span.until;
            if !is_possible || !self.entries[span.value].sources.intersects(as_of.sources) {
                continue;
            }
            let slot = self.canonical(span.value);
            if holder.is_some_and(|other| other != slot) {
                return None;
            }
            holder = Some(slot);
            is_certain |= span.contains(as_of.time);
        }
        holder.filter(|_| is_certain).map(PodRef)
    }

    /// Returns whether `ip` was the address of this pod at that time, or may have been: sources list neither an address
    /// of the pod nor another pod with this one.
    pub fn may_have_held(&self, pod: PodRef, ip: IpAddr, as_of: AsOf) -> bool {
        match self.holder(ip, as_of) {
            Some(holder) => holder == pod,
            None => self.get(pod).ips.is_empty() && !self.is_pod_address(ip),
        }
    }

    /// Returns whether a listed pod has, or a remembered pod had, this address.
    pub fn is_pod_address(&self, ip: IpAddr) -> bool {
        !self.addresses.get(&ip).is_empty()
    }

    pub fn named(&mut self, reference: PodRef, owners: &Owners) -> NamedPod {
        let pod = self.get_mut(reference).named(owners);
        NamedPod { reference, pod }
    }

    /// Returns all pods, remembered ones included, in the form that records have.
    pub fn all_named(&mut self, owners: &Owners) -> impl Iterator<Item = Arc<Pod>> {
        self.entries.iter_mut().map(|(_, entry)| entry.named(owners))
    }

    pub fn get(&self, PodRef(slot): PodRef) -> &PodEntry {
        &self.entries[slot]
    }

    pub fn get_mut(&mut self, PodRef(slot): PodRef) -> &mut PodEntry {
        &mut self.entries[slot]
    }

    /// Returns the number of pods that sources report.
    pub fn len(&self) -> usize {
        self.entries.len() - self.gone_count
    }

    #[cfg(test)]
    pub fn remembered(&self) -> usize {
        self.gone_count
    }
}
