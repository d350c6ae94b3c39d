//! The cgroups whose owner is known, within fixed bounds. Pure.
//!
//! Each pod, and each container outside of pods, has its own share: the cgroups of one never push out those of
//! another. For each kubelet, the table evicts the oldest ended pods first.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::names::local::cgroup::{CgroupOwner, PodCgroup};
use crate::record::ContainerId;

/// The number of containers of one pod, the pod's own directory included. With more, the oldest ones are looked up
/// again.
const MAX_DIRECT: usize = 64;
/// The number of nested cgroups of all pods. Each pod gets an equal share, between the two bounds below.
const MAX_NESTED: usize = 131_072;
const MIN_NESTED_SHARE: usize = 8;
const MAX_NESTED_SHARE: usize = 1024;
const MAX_UNOWNED: usize = 4096;
/// The number of pods of one kubelet that are gone.
const MAX_GONE: usize = 1024;
/// The number of pods, and containers outside of pods.
const MAX_GROUPS: usize = 65_536;

/// A map from cgroup ids to owners.
#[derive(Debug, Default)]
pub struct CgroupTable {
    owners: HashMap<u64, Option<Arc<CgroupOwner>>>,
    groups: HashMap<Group, Members>,
    /// The groups that are gone, the oldest first, for each kubelet root; containers outside of pods are under `None`.
    gone: HashMap<Option<Arc<str>>, VecDeque<Group>>,
    unowned: VecDeque<u64>,
}

/// What has its own share of the table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    Pod(PodCgroup),
    /// A container outside of pods.
    Container(ContainerId),
}

/// The cgroup ids of a group, the oldest first.
#[derive(Debug, Default)]
struct Members {
    direct: VecDeque<u64>,
    nested: VecDeque<u64>,
    is_present: bool,
}

impl Group {
    fn of(owner: &CgroupOwner) -> Option<Self> {
        match (&owner.pod, owner.container) {
            (Some(pod), _) => Some(Self::Pod(pod.clone())),
            (None, Some(container)) => Some(Self::Container(container)),
            (None, None) => None,
        }
    }

    fn root(&self) -> Option<Arc<str>> {
        match self {
            Self::Pod(pod) => Some(Arc::clone(&pod.root)),
            Self::Container(_) => None,
        }
    }
}

impl CgroupTable {
    /// Returns the owner of a cgroup, or `None` if the cgroup is unknown. `Some(None)` is a cgroup without owner.
    pub fn get(&self, id: u64) -> Option<Option<Arc<CgroupOwner>>> {
        self.owners.get(&id).cloned()
    }

    pub fn add_present(&mut self, id: u64, owner: CgroupOwner) {
        let Some(group) = Group::of(&owner) else { return };
        if !self.has_room_for(&group) {
            return;
        }
        let groups = self.groups.len();
        let members = self.groups.entry(group.clone()).or_default();
        let was_present = std::mem::replace(&mut members.is_present, true);
        if !was_present && let Some(gone) = self.gone.get_mut(&group.root()) {
            gone.retain(|one| *one != group);
        }
        if !matches!(self.owners.get(&id), Some(Some(_))) {
            let owner = shared(&self.owners, members, owner);
            remove_oldest(&mut self.owners, &mut members.direct, MAX_DIRECT - 1);
            members.direct.push_back(id);
            self.owners.insert(id, Some(owner));
        }
        if self.groups.len() > groups {
            self.trim_nested();
        }
    }

    pub fn add_resolved(&mut self, id: u64, owner: Option<CgroupOwner>) {
        if self.owners.contains_key(&id) {
            return;
        }
        let Some((group, owner)) = owner.and_then(|owner| Some((Group::of(&owner)?, owner))) else {
            remove_oldest(&mut self.owners, &mut self.unowned, MAX_UNOWNED - 1);
            self.unowned.push_back(id);
            self.owners.insert(id, None);
            return;
        };
        if !self.has_room_for(&group) {
            return;
        }
        let is_new = !self.groups.contains_key(&group);
        if is_new {
            self.groups.insert(group.clone(), Members::default());
            self.trim_nested();
        }
        let share = self.nested_share();
        if let Some(members) = self.groups.get_mut(&group) {
            let owner = shared(&self.owners, members, owner);
            remove_oldest(&mut self.owners, &mut members.nested, share - 1);
            members.nested.push_back(id);
            self.owners.insert(id, Some(owner));
        }
        if is_new {
            self.push_gone(group);
        }
    }

    /// Marks a pod, or a container outside of pods, as removed. Its cgroups stay known for a while.
    pub fn remove(&mut self, group: Group) {
        if let Some(members) = self.groups.get_mut(&group)
            && std::mem::replace(&mut members.is_present, false)
        {
            self.push_gone(group);
        }
    }

    /// Returns the UIDs of the pods that exist under a kubelet's root.
    pub fn pods_under(&self, root: &str) -> Vec<Arc<str>> {
        let present = self.groups.iter().filter(|(_, members)| members.is_present);
        let uids = present.filter_map(|(group, _)| match group {
            Group::Pod(pod) if *pod.root == *root => Some(Arc::clone(&pod.uid)),
            _ => None,
        });
        uids.collect()
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.owners.len()
    }

    fn has_room_for(&self, group: &Group) -> bool {
        self.groups.len() < MAX_GROUPS || self.groups.contains_key(group)
    }

    fn push_gone(&mut self, group: Group) {
        let root = group.root();
        let gone = self.gone.entry(root.clone()).or_default();
        gone.push_back(group);
        let oldest = if gone.len() > MAX_GONE { gone.pop_front() } else { None };
        if let Some(members) = oldest.and_then(|group| self.groups.remove(&group)) {
            for id in members.direct.into_iter().chain(members.nested) {
                self.owners.remove(&id);
            }
        }
    }

    /// The share changes only when the number of groups doubles or halves, so that trimming is rare.
    fn nested_share(&self) -> usize {
        let groups = self.groups.len().next_power_of_two();
        (MAX_NESTED / groups).clamp(MIN_NESTED_SHARE, MAX_NESTED_SHARE)
    }

    /// Trims every group to its share, after a group was added.
    fn trim_nested(&mut self) {
        if !(self.groups.len() - 1).is_power_of_two() {
            return;
        }
        let share = self.nested_share();
        for members in self.groups.values_mut() {
            remove_oldest(&mut self.owners, &mut members.nested, share);
        }
    }
}

/// Returns one copy for all cgroups of a container.
fn shared(owners: &HashMap<u64, Option<Arc<CgroupOwner>>>, members: &Members, owner: CgroupOwner) -> Arc<CgroupOwner> {
    let known = members.direct.iter().rev().chain(members.nested.back());
    let same = known
        .filter_map(|id| owners.get(id)?.as_ref())
        .find(|known| ***known == owner);
    same.map_or_else(|| Arc::new(owner), Arc::clone)
}

fn remove_oldest(owners: &mut HashMap<u64, Option<Arc<CgroupOwner>>>, ids: &mut VecDeque<u64>, max: usize) {
    while ids.len() > max
        && let Some(oldest) = ids.pop_front()
    {
        owners.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(root: &str, number: usize) -> PodCgroup {
        PodCgroup {
            root: root.into(),
            uid: number.to_string().into(),
        }
    }

    fn owner(pod: &PodCgroup, container: Option<char>) -> CgroupOwner {
        CgroupOwner {
            pod: Some(pod.clone()),
            container: container.and_then(|digit| ContainerId::new(&digit.to_string().repeat(64))),
        }
    }

    fn uid(table: &CgroupTable, id: u64) -> Option<Arc<str>> {
        Some(Arc::clone(&table.get(id)??.pod.as_ref()?.uid))
    }

    #[test]
    fn cgroups_of_one_pod_do_not_push_out_those_of_another() {
        let mut table = CgroupTable::default();
        let (victim, tenant) = (pod("/a", 1), pod("/a", 2));
        table.add_present(1, owner(&victim, Some('1')));
        table.add_resolved(2, Some(owner(&victim, Some('1'))));
        for id in 10..100_000 {
            table.add_resolved(id, Some(owner(&tenant, Some('2'))));
        }
        for id in 200_000..300_000 {
            table.add_present(id, owner(&tenant, None));
        }
        for id in 300_000..400_000 {
            table.add_resolved(id, None);
        }
        assert_eq!(uid(&table, 1).as_deref(), Some("1"));
        assert_eq!(uid(&table, 2).as_deref(), Some("1"));
        assert_eq!(table.len(), 2 + MAX_NESTED_SHARE + MAX_DIRECT + MAX_UNOWNED);
        assert_eq!(uid(&table, 99_999).as_deref(), Some("2"), "the newest stay");
        assert_eq!(table.get(399_999), Some(None));
        assert_eq!(table.get(300_000), None);
    }

    #[test]
    fn pods_that_are_gone_are_remembered_up_to_a_bound_for_each_kubelet() {
        let mut table = CgroupTable::default();
        let victim = pod("/a", 0);
        table.add_present(1, owner(&victim, Some('1')));
        table.remove(Group::Pod(victim.clone()));
        assert_eq!(uid(&table, 1).as_deref(), Some("0"));
        assert_eq!(table.pods_under("/a"), []);
        for number in 1..=10_000 {
            let pod = pod("/b", number);
            table.add_present(number as u64 + 1, owner(&pod, Some('2')));
            table.remove(Group::Pod(pod));
        }
        assert_eq!(uid(&table, 1).as_deref(), Some("0"), "another kubelet's");
        assert_eq!(table.len(), 1 + MAX_GONE);
        // It starts and ends again: that makes it the newest.
        table.add_present(3, owner(&victim, Some('3')));
        assert_eq!(table.pods_under("/a"), [Arc::from("0")]);
        assert_eq!(table.gone[&Some("/a".into())].len(), 0);
        table.remove(Group::Pod(victim.clone()));
        table.remove(Group::Pod(victim));
        assert_eq!(table.gone[&Some("/a".into())].len(), 1);
    }

    #[test]
    fn shares_shrink_as_pods_are_added() {
        let mut table = CgroupTable::default();
        for number in 0..1000 {
            let pod = pod("/a", number);
            table.add_present(number as u64, owner(&pod, None));
            for nested in 0..MAX_NESTED_SHARE {
                let id = 1_000_000 + (number * MAX_NESTED_SHARE + nested) as u64;
                table.add_resolved(id, Some(owner(&pod, Some('1'))));
            }
        }
        assert!(table.len() <= 1000 + 1000 * MAX_NESTED / 1024, "{}", table.len());
        assert_eq!(table.pods_under("/a").len(), 1000);
    }

    #[test]
    fn groups_have_a_bound() {
        let mut table = CgroupTable::default();
        for number in 0..MAX_GROUPS + 10 {
            table.add_present(number as u64, owner(&pod("/a", number), None));
        }
        assert_eq!(table.pods_under("/a").len(), MAX_GROUPS);
        table.remove(Group::Pod(pod("/a", 0)));
        table.add_resolved(1 << 40, Some(owner(&pod("/a", 1), None)));
        assert_eq!(uid(&table, 1 << 40).as_deref(), Some("1"));
    }
}
