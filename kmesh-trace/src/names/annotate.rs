//! Adds Kubernetes names to records, in their order. Holds a record for up to 200 ms while its own pod is unknown.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::conntrack::Conntrack;
use super::local::Lookup;
use super::local::cgroup_tree::CgroupTree;
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

/// A record on its way through the annotator.
struct HeldRecord {
    record: Record,
    local: LocalContext,
    /// The time of its event (CLOCK_MONOTONIC, ns).
    happened_ns: u64,
    /// Whether the event was after the end of `--duration`.
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

pub struct Annotator {
    pending: Pending<HeldRecord, Question>,
    resolver: Resolver,
}

struct Resolver {
    cgroups: CgroupTree,
    /// `None` without sources of names: then only the ids of containers are known.
    cluster: Option<Cluster>,
}

/// What exists only where there are sources of names.
struct Cluster {
    store: Store,
    namespaces: PodNamespaces,
    conntrack: Option<Conntrack>,
    /// The backends of the open connections that were reported.
    translated: HashMap<ConnId, Option<SocketAddr>>,
    /// When the pods below each kubelet's cgroup root were last compared with those that sources list.
    root_checks: HashMap<Arc<str>, u64>,
    /// Requests that the sources list this node's pods again.
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
            pending: Pending::default(),
            resolver: Resolver { cgroups, cluster: None },
        }
    }

    /// Returns an annotator for the reports of sources. `refresh` requests that they list this node's pods again.
    pub fn new(
        cgroups: CgroupTree,
        namespaces: PodNamespaces,
        conntrack: Option<Conntrack>,
        refresh: Box<dyn FnMut() + Send>,
    ) -> Self {
        let mut annotator = Self::without_sources(cgroups);
        annotator.resolver.cluster = Some(Cluster {
            store: Store::default(),
            namespaces,
            conntrack,
            translated: HashMap::new(),
            root_checks: HashMap::new(),
            refresh,
        });
        annotator
    }

    pub fn apply(&mut self, update: &SourceUpdate) {
        if let Some(cluster) = &mut self.resolver.cluster {
            cluster.store.apply(update);
        }
    }

    /// Takes the next record, whose event was at `happened_ns`, at the time `now_ns` (CLOCK_MONOTONIC) or `now`. The
    /// record is returned at once, or by [`Self::next`] within 200 ms.
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
        if let Some(cluster) = &mut self.resolver.cluster {
            local.is_in_node_netns = cluster.namespaces.is_nodes(record.netns);
            local.backend = cluster.backend(&record, now_ns.saturating_sub(happened_ns));
        }
        let mut held = HeldRecord {
            record,
            local,
            happened_ns,
            is_late,
        };
        let question = self
            .resolver
            .open_question(&mut held, &mut self.pending.questions, now_ns);
        if question.is_some() || !self.pending.is_empty() {
            self.pending.push(held, question, now_ns);
            return None;
        }
        Some(self.resolver.annotate(held, now))
    }

    /// Returns the next record that waited, if it need not wait any more.
    pub fn next(&mut self, now: WallTime, now_ns: u64) -> Option<(Record, bool)> {
        let resolver = &mut self.resolver;
        let held = self.pending.pop(now_ns, |held, questions| {
            resolver.open_question(held, questions, now_ns).is_none()
        })?;
        Some(resolver.annotate(held, now))
    }

    /// Returns the objects that sources report. `None` without sources.
    pub fn store(&mut self) -> Option<&mut Store> {
        Some(&mut self.resolver.cluster.as_mut()?.store)
    }

    /// Returns the number of pods that sources report.
    pub fn pods(&self) -> usize {
        self.resolver.cluster.as_ref().map_or(0, |cluster| cluster.store.pods())
    }

    /// Returns the longest time that a record has waited for a name, ns.
    pub fn longest_wait_ns(&self) -> u64 {
        self.pending.longest_wait_ns()
    }

    /// Returns the first record that waits, and the time until which it waits at most (CLOCK_MONOTONIC, ns).
    pub fn first_pending(&self) -> Option<(&Record, u64)> {
        let (held, until_ns) = self.pending.first()?;
        Some((&held.record, until_ns))
    }
}

impl Resolver {
    fn annotate(&mut self, held: HeldRecord, now: WallTime) -> (Record, bool) {
        let HeldRecord { mut record, local, .. } = held;
        match &mut self.cluster {
            Some(cluster) => cluster.store.annotate(&mut record, &local, now),
            None => record.container_id = local.owner.and_then(|owner| owner.container),
        }
        (record, held.is_late)
    }

    /// Completes what the kernel vouches for about the record's socket. Returns the question that is open, if any,
    /// after asking it.
    fn open_question(
        &mut self,
        held: &mut HeldRecord,
        questions: &mut Questions<Question>,
        now_ns: u64,
    ) -> Option<Question> {
        let HeldRecord { record, local, .. } = held;
        if local.owner.is_none()
            && let Some(id) = record.cgroup_id
        {
            let Lookup::Known(owner) = self.cgroups.lookup(id) else {
                // It may be a container's: until that is known, no address names the local end.
                local.is_netns_of_root = false;
                let question = Question::Cgroup(id);
                questions.ask(&question, now_ns);
                return Some(question);
            };
            local.owner = owner;
            local.is_netns_of_root = record.is_netns_of_root;
        }
        let cluster = self.cluster.as_mut()?;
        let question = cluster.question(&self.cgroups, held, now_ns)?;
        if questions.ask(&question, now_ns) && matches!(question, Question::Pod(_)) {
            (cluster.refresh)();
        }
        Some(question)
    }
}

impl Cluster {
    /// Returns the backend to which the node translated the address that the record's client dialled. Stores the answer
    /// until the connection closes. `late_ns` is the time since the record's event.
    fn backend(&mut self, record: &Record, late_ns: u64) -> Option<SocketAddr> {
        let (ip, dialled) = (record.dst.ip(), record.dst);
        if record.direction == Direction::Inbound || ip.is_loopback() || self.store.is_pod_address(ip, record) {
            return None;
        }
        let known = match record.event {
            Event::Close => self.translated.remove(&record.id),
            _ => self.translated.get(&record.id).copied(),
        };
        if let Some(backend) = known {
            return backend;
        }
        let since_start = record
            .duration_ns
            .map(|ns| Duration::from_nanos(ns.saturating_add(late_ns)));
        let entry = self
            .conntrack
            .as_mut()
            .and_then(|conntrack| conntrack.backend(record.src, dialled, since_start));
        // The kernel discards the entry of a SYN that it drops.
        let backend = entry.or_else(|| {
            let (backend, netns) = record.dropped_to?;
            self.namespaces.is_nodes(netns).then_some(backend)
        });
        // While the client connects, the entry may not exist yet.
        if record.event != Event::Close && record.established {
            if self.translated.len() >= MAX_TRANSLATED {
                self.translated.clear();
            }
            self.translated.insert(record.id, backend);
        }
        backend
    }

    /// Returns the question that is open once the owner of the record's cgroup is known.
    fn question(&mut self, cgroups: &CgroupTree, held: &mut HeldRecord, now_ns: u64) -> Option<Question> {
        let HeldRecord { record, local, .. } = held;
        if let Some(pod) = local.owner.as_ref().and_then(|owner| owner.pod.as_ref()) {
            if self.store.knows(&pod.uid) {
                return None;
            }
            self.check_root(cgroups, &pod.root, now_ns);
            return Some(Question::Pod(Arc::clone(&pod.uid)));
        }
        let is_in_container = local.owner.as_ref().is_some_and(|owner| owner.container.is_some());
        if !local.is_in_node_netns && !is_in_container && local.netns_pod.is_none() {
            match self.namespaces.pod_of(record.netns, held.happened_ns) {
                Lookup::Known(pod) => {
                    local.netns_pod = pod;
                    local.is_netns_of_root = record.is_netns_of_root;
                }
                Lookup::Pending => {
                    // It may be a pod's: until that is known, no address names the local end.
                    local.is_netns_of_root = false;
                    return Some(Question::Netns(record.netns));
                }
            }
        }
        None
    }

    /// Checks, at most once per [`ROOT_CHECK_NS`] and root, whether a source lists any pod below a kubelet's cgroup
    /// root.
    fn check_root(&mut self, cgroups: &CgroupTree, root: &Arc<str>, now_ns: u64) {
        let checked_ns = self.root_checks.get(root).copied().unwrap_or(0);
        if self.store.owns_root(root) || now_ns.saturating_sub(checked_ns) < ROOT_CHECK_NS {
            return;
        }
        if self.root_checks.len() < MAX_ROOT_CHECKS || checked_ns != 0 {
            self.root_checks.insert(Arc::clone(root), now_ns);
        }
        for uid in cgroups.pods_under(root) {
            self.store.add_pod_under(root, &uid);
        }
    }
}
