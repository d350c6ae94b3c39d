//! The workload of a pod: the controller that people name.
//!
//! A pod is controlled by a ReplicaSet or a Job, which may itself be controlled by what somebody wrote. Where no source tells
//! of the one in the middle, its name tells, as far as that is certain.

use std::collections::HashMap;
use std::sync::Arc;

use crate::names::shared::{Shared, ToldBy};
use crate::names::update::{ControllerObject, ControllerRef, SourceId};
use crate::record::{Labels, WallTime, Workload};

use super::uid::Uid;

/// Controllers in the middle that are followed; there is one in fact, and it may not run in circles.
const MOST_STEPS: usize = 8;
/// How long after its time a CronJob's pod may start, ns: it may have been tried again.
const MOST_LATE: i64 = 24 * 60 * 60 * 1_000_000_000;
/// How much earlier than its time, ns: clocks differ.
const MOST_EARLY: i64 = 60 * 1_000_000_000;

/// Who controls a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Owner {
    /// No source has said.
    #[default]
    Unknown,
    /// Nobody, or its node: it is a static pod.
    Nobody,
    /// This one.
    By(Controller),
}

impl Owner {
    /// The controller's name; empty when there is none.
    pub fn name(&self) -> &str {
        match self {
            Self::By(controller) => &controller.name,
            Self::Unknown | Self::Nobody => "",
        }
    }
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    /// `kind`.
    pub kind: Arc<str>,
    /// `name`.
    pub name: Arc<str>,
    /// `uid`.
    pub uid: Uid,
}

impl Controller {
    /// What is told of one.
    pub fn new(told: &ControllerRef, strings: &mut Shared<str>) -> Self {
        Self {
            kind: strings.one(&*told.kind),
            name: strings.one(&*told.name),
            uid: Uid::from(&*told.uid),
        }
    }
}

/// The controllers in the middle.
#[derive(Debug, Default)]
pub struct Owners {
    known: HashMap<Uid, (ToldBy, Option<Controller>)>,
    /// Changes whenever a workload may.
    version: u32,
}

impl Owners {
    /// Changes whenever a workload may.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// This one is so.
    pub fn is(&mut self, source: SourceId, facts: &ControllerObject, strings: &mut Shared<str>) {
        let owner = facts.owner.as_ref().map(|owner| Controller::new(owner, strings));
        let (told, known) = self.known.entry(Uid::from(&*facts.uid)).or_insert_with(|| {
            self.version = self.version.wrapping_add(1);
            (ToldBy::default(), owner.clone())
        });
        told.told(source);
        if *known != owner {
            *known = owner;
            self.version = self.version.wrapping_add(1);
        }
    }

    /// It has gone. Its pods are as a rule gone before.
    pub fn gone(&mut self, source: SourceId, uid: &str) {
        let uid = Uid::from(uid);
        if let Some((told, _)) = self.known.get_mut(&uid) {
            told.gone(source);
            if !told.is_known() {
                self.known.remove(&uid);
                self.version = self.version.wrapping_add(1);
            }
        }
    }

    /// A list begins.
    pub fn list_begins(&mut self, source: SourceId) {
        self.known.values_mut().for_each(|(told, _)| told.list_begins(source));
    }

    /// It is whole.
    pub fn list_ends(&mut self, source: SourceId) {
        let before = self.known.len();
        self.known.retain(|_, (told, _)| {
            if told.is_missing(source) {
                told.gone(source);
            }
            told.is_known()
        });
        if self.known.len() != before {
            self.version = self.version.wrapping_add(1);
        }
    }

    /// The workload of a pod of this name that is controlled so.
    pub fn workload(
        &self,
        owner: &Owner,
        pod: &Arc<str>,
        labels: Option<&Labels>,
        started: Option<WallTime>,
    ) -> Option<Workload> {
        let mut controller = match owner {
            Owner::Unknown => return None,
            Owner::Nobody => {
                return Some(Workload {
                    kind: "Pod".into(),
                    name: Arc::clone(pod),
                });
            }
            Owner::By(controller) => controller,
        };
        for _ in 0..MOST_STEPS {
            match self.known.get(&controller.uid) {
                Some((_, Some(above))) => controller = above,
                Some((_, None)) => break,
                None => return Some(by_name(controller, labels, started)),
            }
        }
        Some(Workload {
            kind: Arc::clone(&controller.kind),
            name: Arc::clone(&controller.name),
        })
    }
}

/// What the name of a controller tells of who controls it.
fn by_name(controller: &Controller, labels: Option<&Labels>, started: Option<WallTime>) -> Workload {
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
        _ => Workload {
            kind: Arc::clone(&controller.kind),
            name: Arc::clone(&controller.name),
        },
    }
}

/// A CronJob adds to its Jobs' names the minute that they are for, since 1970; before Kubernetes 1.21 it was the second. A
/// Job that somebody named may end in any number, but hardly in the time that its pod started at.
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
    let due = suffix.parse::<i64>().ok()?.checked_mul(unit_ns)?;
    let late = started?.0.checked_sub(due)?;
    (-MOST_EARLY..=MOST_LATE).contains(&late).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: SourceId = SourceId(0);
    /// 2024-02-20 12:00:10 UTC, 28,473,840 minutes after 1970 and ten seconds.
    const STARTED: WallTime = WallTime(1_708_430_410_000_000_000);

    fn reference(kind: &str, name: &str, uid: &str) -> ControllerRef {
        ControllerRef {
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }
    }

    fn controlled(kind: &str, name: &str, uid: &str) -> Owner {
        let told = reference(kind, name, uid);
        Owner::By(Controller::new(&told, &mut Shared::default()))
    }

    fn workload(owners: &Owners, owner: &Owner, hash: Option<&str>, started: Option<WallTime>) -> String {
        let labels: Labels = hash.map(|hash| ("pod-template-hash", hash)).into_iter().collect();
        owners
            .workload(owner, &"the-pod".into(), Some(&labels), started)
            .map_or_else(|| "-".to_owned(), |found| format!("{}/{}", found.kind, found.name))
    }

    #[test]
    fn without_the_one_in_the_middle_its_name_tells_what_is_certain() {
        let minute = "28473840";
        let second = "1708430400";
        let cases = [
            (Owner::Unknown, None, "-"),
            (Owner::Nobody, None, "Pod/the-pod"),
            (controlled("StatefulSet", "db", "u"), None, "StatefulSet/db"),
            (controlled("DaemonSet", "agent", "u"), None, "DaemonSet/agent"),
            (controlled("Rollout", "web", "u"), None, "Rollout/web"),
            (
                controlled("ReplicaSet", "web-5fb7f6f8d8", "u"),
                Some("5fb7f6f8d8"),
                "Deployment/web",
            ),
            (
                controlled("ReplicaSet", "a-b-5fb7f6f8d8", "u"),
                Some("5fb7f6f8d8"),
                "Deployment/a-b",
            ),
            (
                controlled("ReplicaSet", "web-5fb7f6f8d8", "u"),
                Some("7f6f8d8"),
                "ReplicaSet/web-5fb7f6f8d8",
            ),
            (
                controlled("ReplicaSet", "web-5fb7f6f8d8", "u"),
                None,
                "ReplicaSet/web-5fb7f6f8d8",
            ),
            (
                controlled("ReplicaSet", "5fb7f6f8d8", "u"),
                Some("5fb7f6f8d8"),
                "ReplicaSet/5fb7f6f8d8",
            ),
            (
                controlled("ReplicaSet", "-5fb7f6f8d8", "u"),
                Some("5fb7f6f8d8"),
                "ReplicaSet/-5fb7f6f8d8",
            ),
            (controlled("ReplicaSet", "web", "u"), Some(""), "ReplicaSet/web"),
            (
                controlled("Job", &format!("backup-{minute}"), "u"),
                None,
                "CronJob/backup",
            ),
            (
                controlled("Job", &format!("backup-{second}"), "u"),
                None,
                "CronJob/backup",
            ),
            (controlled("Job", "backup-28473839", "u"), None, "CronJob/backup"),
            (controlled("Job", "backup-28473842", "u"), None, "Job/backup-28473842"),
            (controlled("Job", "backup-20240220", "u"), None, "Job/backup-20240220"),
            (controlled("Job", "backup-1", "u"), None, "Job/backup-1"),
            (controlled("Job", "backup", "u"), None, "Job/backup"),
            (controlled("Job", "backup-+8473840", "u"), None, "Job/backup-+8473840"),
            (
                controlled("Job", "backup-9999999999", "u"),
                None,
                "Job/backup-9999999999",
            ),
        ];
        for (owner, hash, expected) in cases {
            assert_eq!(
                workload(&Owners::default(), &owner, hash, Some(STARTED)),
                expected,
                "{owner:?}"
            );
        }
        let job = controlled("Job", &format!("backup-{minute}"), "u");
        assert_eq!(
            workload(&Owners::default(), &job, None, None),
            format!("Job/backup-{minute}"),
            "not certain"
        );
    }

    #[test]
    fn what_is_told_counts_more_than_names() {
        let mut owners = Owners::default();
        let mut strings = Shared::default();
        let mut tell = |owners: &mut Owners, uid: &str, owner: Option<ControllerRef>| {
            let facts = ControllerObject {
                kind: crate::names::update::Kind::ReplicaSets,
                namespace: String::new(),
                uid: uid.to_owned(),
                owner,
            };
            owners.is(SOURCE, &facts, &mut strings);
        };
        let set = controlled("ReplicaSet", "web-5fb7f6f8d8", "set");
        let hash = Some("5fb7f6f8d8");
        assert_eq!(workload(&owners, &set, hash, None), "Deployment/web");
        let version = owners.version();
        tell(&mut owners, "set", Some(reference("Rollout", "canary", "top")));
        assert_eq!(workload(&owners, &set, hash, None), "Rollout/canary");
        assert_ne!(owners.version(), version);
        let version = owners.version();
        tell(&mut owners, "set", Some(reference("Rollout", "canary", "top")));
        assert_eq!(owners.version(), version, "nothing new");
        tell(&mut owners, "set", None);
        assert_eq!(workload(&owners, &set, hash, None), "ReplicaSet/web-5fb7f6f8d8");
        // A circle.
        tell(
            &mut owners,
            "set",
            Some(reference("ReplicaSet", "web-5fb7f6f8d8", "set")),
        );
        assert_eq!(workload(&owners, &set, hash, None), "ReplicaSet/web-5fb7f6f8d8");
        owners.list_begins(SOURCE);
        owners.list_ends(SOURCE);
        assert_eq!(workload(&owners, &set, hash, None), "Deployment/web");
    }
}
