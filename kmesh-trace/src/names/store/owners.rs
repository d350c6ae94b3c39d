//! The workload of a pod: the controller that people name.
//!
//! A ReplicaSet or a Job controls the pod, and may itself have a controller: a Deployment or a CronJob. Where no
//! source reports the ReplicaSet or Job, its name implies the controller, as far as that is certain.

use std::collections::HashMap;
use std::sync::Arc;

use super::reports::{ReportedBy, Reports};
use super::shared::{Controller, SharedValues, excess_bytes};
use crate::names::update::{ControllerObject, Kind, SourceId};
use crate::record::{Labels, WallTime, Workload};

/// The longest chain of controllers that is followed. Real chains have one link; a hostile chain may be a circle.
const MAX_STEPS: usize = 8;
/// The longest time between the schedule of a CronJob and the start of its pod, ns: the pod may be a retry.
const MAX_LATE_NS: i64 = 24 * 60 * 60 * 1_000_000_000;
/// The longest time by which a pod may start before its schedule, ns: clocks differ.
const MAX_EARLY_NS: i64 = 60 * 1_000_000_000;

/// The estimated size of a controller, bytes.
const CONTROLLER_BYTES: usize = 400;

/// The controller of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodOwner {
    /// No source has owner references of the pod.
    #[default]
    Unknown,
    /// The pod has no controller, or its node is the controller: a static pod.
    Nobody,
    /// The pod's controller, which its siblings share.
    By(Arc<Controller>),
}

#[derive(Debug)]
struct ControllerEntry {
    kind: Kind,
    namespace: Arc<str>,
    reports: Reports,
    owner: Option<Controller>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub struct Owners {
    entries: HashMap<Arc<str>, ControllerEntry>,
    /// The number of changes of owners so far.
    changes: u32,
}

impl Owners {
    /// Returns a number above 0 that changes whenever the workload of a pod may change.
    pub fn version(&self) -> u32 {
        self.changes % u32::MAX + 1
    }

    /// Adds or changes a controller. Returns `false` if the memory budget is used up.
    pub fn upsert(&mut self, report: ReportedBy, object: &ControllerObject, shared: &mut SharedValues) -> bool {
        let owner = object.owner.as_ref();
        let bytes = CONTROLLER_BYTES + owner.map_or(0, excess_bytes);
        let (namespace, freed) = match self.entries.get(&*object.uid) {
            Some(entry) => (Arc::clone(&entry.namespace), entry.bytes),
            None => (shared.strings.intern(&*object.namespace), 0),
        };
        if !shared.budget.replace(&namespace, freed, bytes) {
            return false;
        }
        let owner = owner.map(|owner| Controller::new(owner, &mut shared.strings));
        let is_new = freed == 0;
        let entry = self
            .entries
            .entry(shared.strings.intern(&*object.uid))
            .or_insert(ControllerEntry {
                kind: object.kind,
                namespace,
                reports: Reports::default(),
                owner: None,
                bytes,
            });
        entry.bytes = bytes;
        entry.reports.add(report);
        if is_new || entry.owner != owner {
            entry.owner = owner;
            self.changes = self.changes.wrapping_add(1);
        }
        true
    }

    pub fn delete(&mut self, source: SourceId, uid: &str, shared: &mut SharedValues) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        entry.reports.remove(source);
        if !entry.reports.any()
            && let Some(entry) = self.entries.remove(uid)
        {
            shared.budget.replace(&entry.namespace, entry.bytes, 0);
            self.changes = self.changes.wrapping_add(1);
        }
    }

    /// Removes the controllers of a kind that a complete list of the source lacks.
    pub fn end_list(&mut self, list: ReportedBy, kind: Kind, shared: &mut SharedValues) {
        let missing = self.entries.iter();
        let missing = missing.filter(|(_, entry)| entry.kind == kind && entry.reports.is_missing(list));
        for uid in missing.map(|(uid, _)| Arc::clone(uid)).collect::<Vec<_>>() {
            self.delete(list.source, &uid, shared);
        }
    }

    /// Returns the workload of the pod `name`. A controller in another namespace is no pod's controller.
    pub fn workload(
        &self,
        owner: &PodOwner,
        namespace: &str,
        name: &Arc<str>,
        labels: Option<&Labels>,
        started: Option<WallTime>,
    ) -> Option<Workload> {
        let mut controller = match owner {
            PodOwner::Unknown => return None,
            PodOwner::Nobody => {
                return Some(Workload {
                    kind: "Pod".into(),
                    name: Arc::clone(name),
                });
            }
            PodOwner::By(controller) => &**controller,
        };
        for _ in 0..MAX_STEPS {
            let entry = self.entries.get(&controller.uid);
            match entry.filter(|entry| *entry.namespace == *namespace) {
                Some(ControllerEntry { owner: Some(above), .. }) => controller = above,
                Some(ControllerEntry { owner: None, .. }) => break,
                None => return Some(workload_by_name(controller, labels, started)),
            }
        }
        Some(controller.workload())
    }
}

/// Returns the workload that the name of a ReplicaSet or Job implies.
fn workload_by_name(controller: &Controller, labels: Option<&Labels>, started: Option<WallTime>) -> Workload {
    let above = match &*controller.kind {
        "ReplicaSet" => labels
            .and_then(|labels| labels.get("pod-template-hash"))
            .and_then(|hash| controller.name.strip_suffix(hash)?.strip_suffix('-'))
            .map(|name| ("Deployment", name)),
        "Job" => cron_job(&controller.name, started).map(|name| ("CronJob", name)),
        _ => None,
    };
    match above {
        Some((kind, name)) if !name.is_empty() => Workload {
            kind: kind.into(),
            name: name.into(),
        },
        _ => controller.workload(),
    }
}

/// Returns the CronJob of a Job. A CronJob names its Jobs after itself and the scheduled minute since 1970; before
/// Kubernetes 1.21 it was the second. A Job of another origin may end in any number, but hardly in the time at which
/// its pod started.
fn cron_job(job: &str, started: Option<WallTime>) -> Option<&str> {
    let (name, suffix) = job.rsplit_once('-')?;
    let unit_ns = match suffix.len() {
        8 => 60_000_000_000,
        10 => 1_000_000_000,
        _ => return None,
    };
    if !suffix.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let scheduled = suffix.parse::<i64>().ok()?.checked_mul(unit_ns)?;
    let late = started?.0.checked_sub(scheduled)?;
    (-MAX_EARLY_NS..=MAX_LATE_NS).contains(&late).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::interner::Interner;
    use super::*;
    use crate::names::update::ControllerRef;

    fn by(at: i64) -> ReportedBy {
        let (source, at) = (SourceId(0), WallTime(at));
        ReportedBy { source, at }
    }

    /// 2024-02-20 12:00:10 UTC: 28,473,840 minutes and ten seconds after 1970.
    const STARTED: WallTime = WallTime(1_708_430_410_000_000_000);
    const HASH: &str = "5fb7f6f8d8";

    fn reference(kind: &str, name: &str, uid: &str) -> ControllerRef {
        ControllerRef {
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn controlled(kind: &str, name: &str) -> PodOwner {
        PodOwner::By(Arc::new(Controller::new(
            &reference(kind, name, "set"),
            &mut Interner::default(),
        )))
    }

    fn workload(owners: &Owners, owner: &PodOwner, hash: Option<&str>, started: Option<WallTime>) -> String {
        let labels: Labels = hash.map(|hash| ("pod-template-hash", hash)).into_iter().collect();
        owners
            .workload(owner, "shop", &"the-pod".into(), Some(&labels), started)
            .map_or_else(|| "-".to_owned(), |found| format!("{}/{}", found.kind, found.name))
    }

    #[test]
    fn name_of_an_unknown_controller_implies_its_workload() {
        let set = |name| controlled("ReplicaSet", name);
        let job = |name| controlled("Job", name);
        let cases = [
            (PodOwner::Unknown, None, "-"),
            (PodOwner::Nobody, None, "Pod/the-pod"),
            (controlled("StatefulSet", "db"), None, "StatefulSet/db"),
            (controlled("Rollout", "web"), None, "Rollout/web"),
            (set("web-5fb7f6f8d8"), Some(HASH), "Deployment/web"),
            (set("a-b-5fb7f6f8d8"), Some(HASH), "Deployment/a-b"),
            (set("web-5fb7f6f8d8"), Some("7f6f8d8"), "ReplicaSet/web-5fb7f6f8d8"),
            (set("web-5fb7f6f8d8"), None, "ReplicaSet/web-5fb7f6f8d8"),
            (set("5fb7f6f8d8"), Some(HASH), "ReplicaSet/5fb7f6f8d8"),
            (set("-5fb7f6f8d8"), Some(HASH), "ReplicaSet/-5fb7f6f8d8"),
            (set("web"), Some(""), "ReplicaSet/web"),
            (job("backup-28473840"), None, "CronJob/backup"),
            (job("backup-1708430400"), None, "CronJob/backup"),
            (job("backup-28473839"), None, "CronJob/backup"),
            (job("backup-28473842"), None, "Job/backup-28473842"),
            (job("backup-20240220"), None, "Job/backup-20240220"),
            (job("backup-1"), None, "Job/backup-1"),
            (job("backup"), None, "Job/backup"),
            (job("backup-+8473840"), None, "Job/backup-+8473840"),
            (job("backup-9999999999"), None, "Job/backup-9999999999"),
        ];
        for (owner, hash, expected) in cases {
            let found = workload(&Owners::default(), &owner, hash, Some(STARTED));
            assert_eq!(found, expected, "{owner:?}");
        }
        let found = workload(&Owners::default(), &job("backup-28473840"), None, None);
        assert_eq!(found, "Job/backup-28473840", "the pod's start is unknown");
    }

    #[test]
    fn reported_controller_outranks_its_name() {
        let mut owners = Owners::default();
        let mut shared = SharedValues::default();
        let mut report = |owners: &mut Owners, namespace: &str, owner: Option<ControllerRef>| {
            let object = ControllerObject {
                kind: Kind::ReplicaSets,
                uid: "set".to_owned(),
                namespace: namespace.to_owned(),
                owner,
            };
            assert!(owners.upsert(by(1), &object, &mut shared));
        };
        let set = controlled("ReplicaSet", "web-5fb7f6f8d8");
        assert_eq!(workload(&owners, &set, Some(HASH), None), "Deployment/web");
        let canary = || Some(reference("Rollout", "canary", "top"));
        report(&mut owners, "shop", canary());
        assert_eq!(workload(&owners, &set, Some(HASH), None), "Rollout/canary");
        let version = owners.version();
        report(&mut owners, "shop", canary());
        assert_eq!(owners.version(), version, "nothing changed");
        report(&mut owners, "shop", None);
        assert_eq!(workload(&owners, &set, Some(HASH), None), "ReplicaSet/web-5fb7f6f8d8");
        report(
            &mut owners,
            "shop",
            Some(reference("ReplicaSet", "web-5fb7f6f8d8", "set")),
        );
        assert_eq!(
            workload(&owners, &set, Some(HASH), None),
            "ReplicaSet/web-5fb7f6f8d8",
            "a circle"
        );
        owners.end_list(by(2), Kind::Jobs, &mut SharedValues::default());
        assert_eq!(owners.entries.len(), 1, "a list of Jobs lacks no ReplicaSet");
        owners.end_list(by(2), Kind::ReplicaSets, &mut SharedValues::default());
        assert_eq!(workload(&owners, &set, Some(HASH), None), "Deployment/web");
        report(&mut owners, "other", canary());
        assert_eq!(
            workload(&owners, &set, Some(HASH), None),
            "Deployment/web",
            "another namespace's ReplicaSet"
        );
    }
}
