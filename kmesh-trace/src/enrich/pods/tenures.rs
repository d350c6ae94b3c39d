//! All tenures, small, since there are a hundred thousand: by slot, by UID, by address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use slab::Slab;

use crate::enrich::shared::{Slots, Sources, ToldBy};
use crate::record::{Labels, Pod, WallTime};

use super::NEVER;
use super::owners::{Owner, Owners};
use super::uid::Uid;

/// What a pod has in common with its siblings, kept once.
#[derive(Debug, Default, PartialEq, Eq, Hash)]
pub struct Template {
    pub namespace: Arc<str>,
    pub owner: Owner,
    pub service_account: Option<Arc<str>>,
    pub host_network: Option<bool>,
    pub labels: Option<Labels>,
    /// In the order of [`Tenure::containers`].
    pub containers: Arc<[ContainerShape]>,
}

/// A container's name, and its ports by name.
pub type ContainerShape = (Arc<str>, Box<[(Arc<str>, u16)]>);

/// A pod and the time for which it holds its addresses. One that changes its address begins another tenure.
///
/// What a look-up by address reads is here, side by side: it is much less to search in.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// Possibly from then on.
    pub since: i64,
    /// Surely from then on; [`NEVER`] when it was over before it was told.
    pub seen: i64,
    pub until: i64,
    /// Unspecified: none.
    v4: Ipv4Addr,
    /// Of which version of the owners `made` is.
    made_of: u32,
    /// Made when it is first asked for.
    made: Option<Arc<Pod>>,
    pub about: Box<About>,
}

/// The rest of a tenure.
#[derive(Clone, Debug)]
pub struct About {
    /// As the API server has it.
    uid: Uid,
    /// As the kubelet and the cgroup have it, where that is another: of a static pod.
    node_uid: Option<Box<Uid>>,
    v6: Option<Box<Ipv6Addr>>,
    /// None while only the kernel has shown that there is such a pod.
    name: Option<Box<str>>,
    /// The name lacks its controller's, with which nearly all begin.
    is_after_owner: bool,
    pub template: Arc<Template>,
    pub node: Option<Arc<str>>,
    /// [`NEVER`] while nobody has told.
    pub started: i64,
    /// The first digits of each container's id; 0 for one that never ran.
    pub containers: Box<[u32]>,
    pub is_over: bool,
    /// The time of the newest facts.
    pub at: i64,
    pub told_by: ToldBy,
    /// Who told of its addresses.
    pub placed_by: Sources,
    /// Since when nobody tells of it; [`NEVER`] while somebody does.
    pub left: i64,
}

impl Tenure {
    fn new(uid: Uid) -> Self {
        Self {
            since: NEVER,
            seen: NEVER,
            until: NEVER,
            v4: Ipv4Addr::UNSPECIFIED,
            made_of: 0,
            made: None,
            about: Box::new(About {
                uid,
                node_uid: None,
                v6: None,
                name: None,
                is_after_owner: false,
                template: Arc::default(),
                node: None,
                started: NEVER,
                containers: Box::default(),
                is_over: false,
                at: i64::MIN,
                told_by: ToldBy::default(),
                placed_by: Sources::default(),
                left: NEVER,
            }),
        }
    }

    pub fn has_address(&self) -> bool {
        self.addresses() != (None, None)
    }

    fn addresses(&self) -> Addresses {
        let v4 = Some(self.v4).filter(|ip| !ip.is_unspecified());
        (v4, self.about.v6.as_deref().copied())
    }

    /// Whether these addresses are others than it has.
    pub fn is_elsewhere(&self, (v4, v6): Addresses) -> bool {
        let (own_v4, own_v6) = self.addresses();
        matches!((own_v4, v4), (Some(one), Some(other)) if one != other)
            || matches!((own_v6, v6), (Some(one), Some(other)) if one != other)
    }

    fn has(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.v4 == ip,
            IpAddr::V6(ip) => self.about.v6.as_deref() == Some(&ip),
        }
    }

    /// It is so.
    pub fn describe(&mut self, name: &str, template: Arc<Template>, node: Option<Arc<str>>, started: i64) {
        let about = &mut *self.about;
        let rest = name.strip_prefix(template.owner.name());
        let (is_after_owner, rest) = (rest.is_some(), rest.unwrap_or(name));
        let as_before = (about.is_after_owner, about.name.as_deref(), &about.node, about.started);
        if Arc::ptr_eq(&about.template, &template) && as_before == (is_after_owner, Some(rest), &node, started) {
            return;
        }
        (about.is_after_owner, about.name) = (is_after_owner, Some(rest.into()));
        (about.template, about.node, about.started) = (template, node, started);
        self.made = None;
    }

    /// What it is called. None while only the kernel knows it.
    pub fn pod(&mut self, owners: &Owners) -> Option<Arc<Pod>> {
        if let Some(pod) = &self.made
            && self.made_of == owners.version()
        {
            return Some(Arc::clone(pod));
        }
        let pod = self.about.pod(owners)?;
        let pod = match self.made.take() {
            Some(made) if *made == pod => made,
            _ => Arc::new(pod),
        };
        (self.made, self.made_of) = (Some(Arc::clone(&pod)), owners.version());
        Some(pod)
    }
}

impl About {
    pub fn uid(&self) -> &Uid {
        &self.uid
    }

    fn uids(&self) -> impl Iterator<Item = &Uid> {
        [Some(&self.uid), self.node_uid.as_deref()].into_iter().flatten()
    }

    pub fn is_named(&self) -> bool {
        self.name.is_some()
    }

    fn pod(&self, owners: &Owners) -> Option<Pod> {
        let template = &self.template;
        let rest = self.name.as_deref()?;
        let name = match self.is_after_owner {
            true => [template.owner.name(), rest].concat().into(),
            false => Arc::from(rest),
        };
        let started = Some(self.started).filter(|&at| at != NEVER).map(WallTime);
        Some(Pod {
            uid: self.uid.to_string().into(),
            namespace: Arc::clone(&template.namespace),
            workload: owners.workload(&template.owner, &name, template.labels.as_ref(), started),
            name,
            service_account: template.service_account.clone(),
            node: self.node.clone(),
            host_network: template.host_network,
            labels: template.labels.clone(),
        })
    }
}

/// One of each family; a pod has no more.
pub type Addresses = (Option<Ipv4Addr>, Option<Ipv6Addr>);

/// All tenures.
#[derive(Debug, Default)]
pub struct Tenures {
    all: Slab<Tenure>,
    /// To the latest tenure of a pod.
    by_uid: Slots,
    by_ip: Slots,
}

impl Tenures {
    pub fn get(&self, slot: u32) -> Option<&Tenure> {
        self.all.get(slot as usize)
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Tenure> {
        self.all.get_mut(slot as usize)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Tenure)> {
        self.all.iter().map(|(slot, tenure)| (slot as u32, tenure))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Tenure> {
        self.all.iter_mut().map(|(_, tenure)| tenure)
    }

    /// The latest tenure of the pod with this UID, the API server's or the kubelet's.
    pub fn of(&self, uid: &Uid) -> Option<u32> {
        let is_its = |slot: &u32| self.get(*slot).is_some_and(|tenure| tenure.about.uids().any(|one| one == uid));
        self.by_uid.get(uid).find(is_its)
    }

    /// Those who have, or had, this address.
    pub fn at(&self, ip: IpAddr) -> impl Iterator<Item = (u32, &Tenure)> {
        let slots = self.by_ip.get(&ip);
        let all = slots.filter_map(|slot| Some((slot, self.get(slot)?)));
        all.filter(move |(_, tenure)| tenure.has(ip))
    }

    /// Of a pod that is new.
    pub fn add(&mut self, uid: Uid) -> u32 {
        let slot = self.all.insert(Tenure::new(uid)) as u32;
        self.lead_to(slot);
        slot
    }

    /// Another of the same pod, without addresses. Its UIDs lead to the former one still.
    pub fn add_another(&mut self, slot: u32) -> Option<u32> {
        let mut another = self.get(slot)?.clone();
        (another.v4, another.about.v6) = (Ipv4Addr::UNSPECIFIED, None);
        Some(self.all.insert(another) as u32)
    }

    /// From now on the pod has these UIDs.
    pub fn call(&mut self, slot: u32, uid: Uid, node_uid: Uid) {
        self.lead_away(slot);
        if let Some(tenure) = self.get_mut(slot) {
            if tenure.about.uid != uid {
                tenure.made = None;
            }
            tenure.about.uid = uid;
            tenure.about.node_uid = Some(Box::new(node_uid));
        }
        self.lead_to(slot);
    }

    /// The pod's UIDs lead here from now on.
    pub fn lead_to(&mut self, slot: u32) {
        let Some(tenure) = self.all.get(slot as usize) else { return };
        for uid in tenure.about.uids() {
            if let Some(before) = self.of(uid) {
                self.by_uid.remove(uid, before);
            }
            self.by_uid.insert(uid, slot);
        }
    }

    fn lead_away(&mut self, slot: u32) {
        if let Some(tenure) = self.all.get(slot as usize) {
            tenure.about.uids().for_each(|uid| self.by_uid.remove(uid, slot));
        }
    }

    /// It has these addresses, where it had none of that family.
    pub fn place(&mut self, slot: u32, (v4, v6): Addresses) {
        let Some(tenure) = self.all.get_mut(slot as usize) else { return };
        let (own_v4, own_v6) = tenure.addresses();
        if let (None, Some(ip)) = (own_v4, v4) {
            tenure.v4 = ip;
            self.by_ip.insert(&IpAddr::V4(ip), slot);
        }
        if let (None, Some(ip)) = (own_v6, v6) {
            tenure.about.v6 = Some(Box::new(ip));
            self.by_ip.insert(&IpAddr::V6(ip), slot);
        }
    }

    pub fn remove(&mut self, slot: u32) {
        self.lead_away(slot);
        if let Some(tenure) = self.all.try_remove(slot as usize) {
            let (v4, v6) = tenure.addresses();
            for ip in v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)) {
                self.by_ip.remove(&ip, slot);
            }
        }
    }

    /// How many there are, and how many UIDs and addresses.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 3] {
        [self.all.len(), self.by_uid.len(), self.by_ip.len()]
    }
}
