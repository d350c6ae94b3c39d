//! All tenures, small, since there are a hundred thousand: by slot, by UID, by address.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hashbrown::HashTable;
use slab::Slab;

use crate::names::shared::{Slots, Sources, ToldBy};
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
    /// In the order of [`About::containers`].
    pub containers: Arc<[ContainerShape]>,
}

/// A container's name, and its ports by name.
pub type ContainerShape = (Arc<str>, Box<[(Arc<str>, u16)]>);

/// When a tenure is, ns.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Possibly from then on.
    pub since: i64,
    /// Surely from then on; [`NEVER`] when it was over before it was told.
    pub seen: i64,
    pub until: i64,
}

/// That a pod holds an address. All that a look-up reads is here, in one place: memory is slower than anything else.
#[derive(Debug)]
pub struct Held {
    ip: IpAddr,
    pub slot: u32,
    pub times: Times,
}

/// A pod while it holds the same addresses: one that changes its address begins another tenure. What naming reads, and the
/// rest elsewhere.
#[derive(Clone, Debug)]
pub struct Tenure {
    /// Unspecified: none.
    v4: Ipv4Addr,
    /// Of which version of the owners `made` is.
    made_of: u32,
    /// Made when it is first asked for.
    made: Option<Arc<Pod>>,
    pub about: Box<About>,
}

/// What is known of the pod, as of the last news.
#[derive(Clone, Debug)]
pub struct About {
    /// As the API server has it.
    uid: Uid,
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
            v4: Ipv4Addr::UNSPECIFIED,
            made_of: 0,
            made: None,
            about: Box::new(About {
                uid,
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

    fn ips(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (v4, v6) = self.addresses();
        v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
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

    /// Whether what it is called need not be put together.
    pub fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// It takes less room so, until somebody asks.
    pub fn unmake(&mut self) {
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
    /// The UIDs that the kubelet and the cgroup have, where they are others: of static pods.
    node_uids: HashMap<u32, Uid>,
    /// To the latest tenure of a pod.
    by_uid: Slots,
    held: HashTable<Held>,
    state: RandomState,
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
        self.by_uid.get(uid).find(|&slot| self.uids(slot).any(|one| one == uid))
    }

    fn uids(&self, slot: u32) -> impl Iterator<Item = &Uid> {
        let uid = self.get(slot).map(|tenure| &tenure.about.uid);
        uid.into_iter().chain(self.node_uids.get(&slot))
    }

    /// Who holds, or held, this address.
    pub fn at(&self, ip: IpAddr) -> impl Iterator<Item = &Held> {
        let likely = self.held.iter_hash(self.state.hash_one(ip));
        likely.filter(move |held| held.ip == ip)
    }

    /// When it is; none while it has no address.
    pub fn times(&self, slot: u32) -> Option<Times> {
        let ip = self.get(slot)?.ips().next()?;
        self.at(ip).find(|held| held.slot == slot).map(|held| held.times)
    }

    /// It is then, and has these addresses, where it had none of that family.
    pub fn hold(&mut self, slot: u32, (v4, v6): Addresses, times: Times) {
        let Some(tenure) = self.all.get_mut(slot as usize) else {
            return;
        };
        let hash = |ip: IpAddr| self.state.hash_one(ip);
        for ip in tenure.ips() {
            let is_it = |held: &Held| (held.slot, held.ip) == (slot, ip);
            if let Some(held) = self.held.find_mut(hash(ip), is_it) {
                held.times = times;
            }
        }
        let (own_v4, own_v6) = tenure.addresses();
        let v4 = v4.filter(|_| own_v4.is_none());
        let v6 = v6.filter(|_| own_v6.is_none());
        tenure.v4 = v4.unwrap_or(tenure.v4);
        if let Some(ip) = v6 {
            tenure.about.v6 = Some(Box::new(ip));
        }
        for ip in v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)) {
            let held = Held { ip, slot, times };
            self.held.insert_unique(hash(ip), held, |held| hash(held.ip));
        }
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
        let other = self.all.insert(another) as u32;
        if let Some(uid) = self.node_uids.get(&slot).cloned() {
            self.node_uids.insert(other, uid);
        }
        Some(other)
    }

    /// From now on the pod has these UIDs.
    pub fn call(&mut self, slot: u32, uid: Uid, node_uid: Uid) {
        self.lead_away(slot);
        if let Some(tenure) = self.get_mut(slot) {
            if tenure.about.uid != uid {
                tenure.made = None;
            }
            tenure.about.uid = uid;
        }
        self.node_uids.insert(slot, node_uid);
        self.lead_to(slot);
    }

    /// The pod's UIDs lead here from now on.
    pub fn lead_to(&mut self, slot: u32) {
        for uid in self.uids(slot).cloned().collect::<Vec<_>>() {
            if let Some(before) = self.of(&uid) {
                self.by_uid.remove(&uid, before);
            }
            self.by_uid.insert(&uid, slot);
        }
    }

    fn lead_away(&mut self, slot: u32) {
        for uid in self.uids(slot).cloned().collect::<Vec<_>>() {
            self.by_uid.remove(&uid, slot);
        }
    }

    pub fn remove(&mut self, slot: u32) {
        self.lead_away(slot);
        self.node_uids.remove(&slot);
        let Some(tenure) = self.all.try_remove(slot as usize) else {
            return;
        };
        for ip in tenure.ips() {
            let is_it = |held: &Held| (held.slot, held.ip) == (slot, ip);
            if let Ok(held) = self.held.find_entry(self.state.hash_one(ip), is_it) {
                held.remove();
            }
        }
    }

    /// How many there are, and how many UIDs and addresses.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 3] {
        [self.all.len(), self.by_uid.count(), self.held.len()]
    }
}
