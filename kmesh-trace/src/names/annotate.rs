//! Adds Kubernetes names to records, in their order. Holds a record for up to 200 ms while its own pod is unknown.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::conntrack::Conntrack;
use super::local::cgroup_tree::{CgroupTree, Lookup};
use super::local::netns::PodNamespaces;
use super::pending::{Pending, Questions};
use super::store::{LocalContext, Store};
use super::update::SourceUpdate;
use crate::record::{ConnId, Direction, Event, Record, WallTime};

/// The number of open connections whose translated address is remembered.
const MAX_TRANSLATED: usize = 65_536;

/// The time between two checks of a kubelet's cgroup root, ns.
const ROOT_CHECK_NS: u64 = 20_000_000;
/// The number of roots whose last check is remembered. Only root makes them.
const MAX_ROOT_CHECKS: usize = 1_024;

/// A record that passes through.
struct Passing {
    record: Record,
    local: LocalContext,
    /// When it happened (CLOCK_MONOTONIC, ns).
    happened_ns: u64,
    /// Whether it happened after `--duration` was over.
    is_late: bool,
}

/// What a record waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Question {
    /// The owner of a cgroup.
    Cgroup(u64),
    /// The pod of a network namespace.
    Netns(u32),
    /// A pod that no source has reported yet.
    Pod(Arc<str>),
}

/// Adds names to records.
pub struct Annotator {
    cgroups: CgroupTree,
    pending: Pending<Passing, Question>,
    resolver: Option<Resolver>,
}

/// What exists only where there are sources of names.
struct Resolver {
    store: Store,
    namespaces: PodNamespaces,
    conntrack: Option<Conntrack>,
    /// The backends of the open connections that were reported.
    translated: HashMap<ConnId, Option<SocketAddr>>,
    /// When the pods below each kubelet's cgroup root were last compared with those that sources list.
    root_checks: HashMap<Arc<str>, u64>,
    /// Asks the sources for this node's pods again.
    refresh: Box<dyn FnMut() + Send>,
}

impl fmt::Debug for Annotator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Annotator").finish_non_exhaustive()
    }
}

impl Annotator {
    /// Returns an annotator that knows no names but the ids of containers.
    pub fn without_sources(cgroups: CgroupTree) -> Self {
        Self {
            cgroups,
            pending: Pending::default(),
            resolver: None,
        }
    }

    /// Returns an annotator for the reports of sources. `refresh` asks them for this node's pods again.
    pub fn new(
        cgroups: CgroupTree,
        namespaces: PodNamespaces,
        conntrack: Option<Conntrack>,
        refresh: Box<dyn FnMut() + Send>,
    ) -> Self {
        let resolver = Resolver {
            store: Store::default(),
            namespaces,
            conntrack,
            translated: HashMap::new(),
            root_checks: HashMap::new(),
            refresh,
        };
        Self {
            resolver: Some(resolver),
            ..Self::without_sources(cgroups)
        }
    }

    /// Takes a change that a source reports.
    pub fn apply(&mut self, update: &SourceUpdate) {
        if let Some(resolver) = &mut self.resolver {
            resolver.store.apply(update);
        }
    }

    /// Takes the next record, which happened at `happened_ns`, at the time `now_ns` (CLOCK_MONOTONIC) or `now`. The record is
    /// returned at once, or by [`Self::next`] within 200 ms.
    pub fn take(
        &mut self,
        record: Record,
        happened_ns: u64,
        is_late: bool,
        now: WallTime,
        now_ns: u64,
    ) -> Option<(Record, bool)> {
        let mut local = LocalContext {
            is_netns_of_root: record.is_netns_of_root,
            ..LocalContext::default()
        };
        if let Some(resolver) = &mut self.resolver {
            local.is_in_node_netns = resolver.namespaces.is_nodes(record.netns);
            local.backend = resolver.backend(&record, now_ns.saturating_sub(happened_ns));
        }
        let mut passing = Passing {
            record,
            local,
            happened_ns,
            is_late,
        };
        let Self {
            cgroups,
            pending,
            resolver,
        } = self;
        let question = open_question(cgroups, resolver.as_mut(), &mut passing, &mut pending.questions, now_ns);
        if question.is_some() || !pending.is_empty() {
            pending.push(passing, question, now_ns);
            return None;
        }
        Some(annotated(resolver.as_mut(), passing, now))
    }

    /// Returns the next record that waited, if it need not wait any more.
    pub fn next(&mut self, now: WallTime, now_ns: u64) -> Option<(Record, bool)> {
        let Self {
            cgroups,
            pending,
            resolver,
        } = self;
        let passing = pending.pop(now_ns, |passing, questions| {
            open_question(cgroups, resolver.as_mut(), passing, questions, now_ns).is_none()
        })?;
        Some(annotated(resolver.as_mut(), passing, now))
    }

    /// Returns the number of pods that sources report.
    pub fn pods(&self) -> usize {
        self.resolver.as_ref().map_or(0, |resolver| resolver.store.pods())
    }

    /// Returns the longest time that a record has waited for a name, ns.
    pub fn longest_wait_ns(&self) -> u64 {
        self.pending.longest_wait_ns()
    }

    /// Returns the first record that waits, and the time until which it waits at most (CLOCK_MONOTONIC, ns).
    pub fn first_pending(&self) -> Option<(&Record, u64)> {
        let (passing, until_ns) = self.pending.first()?;
        Some((&passing.record, until_ns))
    }
}

fn annotated(resolver: Option<&mut Resolver>, passing: Passing, now: WallTime) -> (Record, bool) {
    let Passing {
        mut record,
        local,
        is_late,
        ..
    } = passing;
    match resolver {
        Some(resolver) => resolver.store.annotate(&mut record, &local, now),
        None => record.container_id = local.owner.and_then(|owner| owner.container),
    }
    (record, is_late)
}

/// Fills in what the kernel says of the record's socket. Returns the question that is open, if any, after asking it.
fn open_question(
    cgroups: &mut CgroupTree,
    resolver: Option<&mut Resolver>,
    passing: &mut Passing,
    questions: &mut Questions<Question>,
    now_ns: u64,
) -> Option<Question> {
    let Passing { record, local, .. } = passing;
    if local.owner.is_none()
        && let Some(id) = record.cgroup_id
    {
        match cgroups.lookup(id) {
            Lookup::Known(owner) => {
                local.owner = owner;
                local.is_netns_of_root = record.is_netns_of_root;
            }
            Lookup::Pending => {
                // It may be a container's: until that is known, no address names the local end.
                local.is_netns_of_root = false;
                let question = Question::Cgroup(id);
                questions.ask(&question, now_ns);
                return Some(question);
            }
        }
    }
    let resolver = resolver?;
    let question = resolver.question(cgroups, passing, now_ns)?;
    if questions.ask(&question, now_ns)
        && let Question::Pod(_) = question
    {
        (resolver.refresh)();
    }
    Some(question)
}

impl Resolver {
    /// Returns the backend to which the node translated the address that the record's client dialled. Asked once a connection,
    /// `late_ns` after the record's event.
    fn backend(&mut self, record: &Record, late_ns: u64) -> Option<SocketAddr> {
        let conntrack = self.conntrack.as_mut()?;
        let (ip, dialled) = (record.dst.ip(), record.dst);
        if record.direction == Direction::Inbound || ip.is_loopback() || self.store.is_pod_address(ip, record) {
            return None;
        }
        let since_start = record
            .duration_ns
            .map(|ns| Duration::from_nanos(ns.saturating_add(late_ns)));
        if record.event == Event::Close {
            let known = self.translated.remove(&record.id);
            return known.unwrap_or_else(|| conntrack.backend(record.src, dialled, since_start));
        }
        if let Some(&known) = self.translated.get(&record.id) {
            return known;
        }
        let backend = conntrack.backend(record.src, dialled, since_start);
        // While it connects, the entry may not be there yet.
        if record.established {
            if self.translated.len() >= MAX_TRANSLATED {
                self.translated.clear();
            }
            self.translated.insert(record.id, backend);
        }
        backend
    }

    /// Returns the question that is open once the owner of the record's cgroup is known.
    fn question(&mut self, cgroups: &CgroupTree, passing: &mut Passing, now_ns: u64) -> Option<Question> {
        let Passing { record, local, .. } = passing;
        if let Some(pod) = local.owner.as_ref().and_then(|owner| owner.pod.as_ref()) {
            if self.store.knows(&pod.uid) {
                return None;
            }
            self.check_root(cgroups, &pod.root, now_ns);
            return Some(Question::Pod(Arc::clone(&pod.uid)));
        }
        let is_in_container = local.owner.as_ref().is_some_and(|owner| owner.container.is_some());
        if !local.is_in_node_netns && !is_in_container && local.netns_pod.is_none() {
            match self.namespaces.pod_of(record.netns, passing.happened_ns) {
                Lookup::Known(pod) => local.netns_pod = pod,
                Lookup::Pending => return Some(Question::Netns(record.netns)),
            }
        }
        None
    }

    /// Looks whether a source lists any pod below a kubelet's cgroup root, now and then.
    fn check_root(&mut self, cgroups: &CgroupTree, root: &Arc<str>, now_ns: u64) {
        let checked_ns = self.root_checks.get(root).copied().unwrap_or(0);
        if self.store.owns_root(root) || now_ns.saturating_sub(checked_ns) < ROOT_CHECK_NS {
            return;
        }
        if self.root_checks.len() < MAX_ROOT_CHECKS || checked_ns != 0 {
            self.root_checks.insert(Arc::clone(root), now_ns);
        }
        for uid in cgroups.pods_under(root) {
            self.store.see_pod_under(root, &uid);
        }
    }
}
