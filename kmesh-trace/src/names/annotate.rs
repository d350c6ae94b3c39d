//! Names for records on their way: waits a little for those that are about to come.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::conntrack::Conntrack;
use super::index::{Index, Shown};
use super::local::cgroup::CgroupOwner;
use super::local::cgroup_tree::{CgroupTree, Lookup};
use super::local::netns::PodNamespaces;
use super::pending::Pending;
use super::update::SourceUpdate;
use crate::record::{ConnId, Direction, Event, Pod, Record};

/// Connections that are open, and of which it is remembered what was asked of them.
const MOST_ASKED: usize = 65_536;

/// A record on its way, and whether it happened after `--duration` was over.
type Passing = (Record, Shown, bool);

/// Names records, in their order.
pub struct Annotator {
    cgroups: CgroupTree,
    sources: Option<Sourced>,
}

/// What there is only when there are sources of names.
struct Sourced {
    index: Index,
    namespaces: PodNamespaces,
    conntrack: Option<Conntrack>,
    /// Where what connections dialled was translated to, of those that were told open.
    translated: HashMap<ConnId, Option<SocketAddr>>,
    waiting: Pending<Passing>,
    /// Makes sources look for a pod that none has told of.
    nudge: Box<dyn FnMut() + Send>,
}

impl fmt::Debug for Annotator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Annotator").finish_non_exhaustive()
    }
}

impl Annotator {
    /// No names but the ids of containers.
    pub fn without_sources(cgroups: CgroupTree) -> Self {
        Self { cgroups, sources: None }
    }

    /// Whatever sources will tell. `nudge` makes them look for a pod that none has told of.
    pub fn new(cgroups: CgroupTree, conntrack: Option<Conntrack>, nudge: Box<dyn FnMut() + Send>) -> Self {
        Self {
            cgroups,
            sources: Some(Sourced {
                index: Index::default(),
                namespaces: PodNamespaces::new(|| ()),
                conntrack,
                translated: HashMap::new(),
                waiting: Pending::default(),
                nudge,
            }),
        }
    }

    /// Takes news.
    pub fn learn(&mut self, told: &SourceUpdate) {
        if let Some(sources) = &mut self.sources {
            sources.index.learn(told);
        }
    }

    /// Takes the next record. It comes out of [`Self::next`], at once or after 200 ms at most.
    pub fn take(
        &mut self,
        mut record: Record,
        happened_ns: u64,
        too_late: bool,
        now_ns: u64,
    ) -> Option<(Record, bool)> {
        let place = record.cgroup_id.and_then(|id| self.owner_of(id));
        let Some(sources) = &mut self.sources else {
            record.container_id = place.and_then(|place| place.container);
            return Some((record, too_late));
        };
        let mut shown = Shown {
            in_nodes_netns: sources.namespaces.is_nodes(record.netns),
            ..Shown::default()
        };
        let mut unknown = None;
        match place {
            Some(place) if place.pod.is_some() => {
                let uid = place.pod.as_ref().map(|pod| Arc::clone(&pod.uid));
                unknown = uid.filter(|uid| !sources.index.knows(uid));
                shown.place = Some(place);
            }
            place => {
                shown.place = place;
                shown.netns_pod = match sources.namespaces.pod_of(record.netns, happened_ns) {
                    Lookup::Known(pod) => pod.map(|pod| pod.uid),
                    Lookup::Pending => None,
                };
            }
        }
        shown.backend = sources.backend(&record);
        if let Some(pod) = &unknown
            && sources.waiting.is_new(pod, now_ns)
        {
            (sources.nudge)();
        }
        if unknown.is_none() && sources.waiting.is_empty() {
            sources.index.name(&mut record, &shown);
            return Some((record, too_late));
        }
        sources.waiting.push((record, shown, too_late), unknown);
        None
    }

    /// The next of those that waited, if it need not wait any more.
    pub fn next(&mut self, now_ns: u64) -> Option<(Record, bool)> {
        let sources = self.sources.as_mut()?;
        let index = &sources.index;
        let (mut record, shown, too_late) = sources.waiting.pop(now_ns, |uid| index.knows(uid))?;
        sources.index.name(&mut record, &shown);
        Some((record, too_late))
    }

    /// The pod that the record's own end is of, if its cgroup shows it: then all connections of that cgroup are that pod's.
    pub fn own_pod<'a>(&mut self, record: &'a Record, cgroup_id: u64) -> Option<&'a Pod> {
        let place = self.owner_of(cgroup_id)?;
        let own = match record.direction {
            Direction::Outbound => &record.names.src,
            Direction::Inbound => &record.names.dst,
        };
        own.pod.as_deref().filter(|_| place.pod.is_some())
    }

    fn owner_of(&mut self, cgroup_id: u64) -> Option<Arc<CgroupOwner>> {
        match self.cgroups.lookup(cgroup_id) {
            Lookup::Known(owner) => owner,
            Lookup::Pending => None,
        }
    }

    /// How many pods sources tell of.
    pub fn pods(&self) -> usize {
        self.sources.as_ref().map_or(0, |sources| sources.index.pods())
    }

    /// The first of those that wait, and until when (CLOCK_MONOTONIC, ns).
    pub fn waits(&self) -> Option<(&Record, u64)> {
        let waiting = &self.sources.as_ref()?.waiting;
        let (record, _, _) = waiting.first()?;
        Some((record, waiting.until_ns()?))
    }
}

impl Sourced {
    /// Where what the record's client dialled was translated to. Asked once a connection.
    fn backend(&mut self, record: &Record) -> Option<SocketAddr> {
        let conntrack = self.conntrack.as_mut()?;
        let (ip, dialled) = (record.dst.ip(), record.dst);
        if record.direction == Direction::Inbound || ip.is_loopback() || self.index.is_a_pods(ip, record) {
            return None;
        }
        if record.event == Event::Close {
            let known = self.translated.remove(&record.id);
            return known.unwrap_or_else(|| conntrack.backend(record.src, dialled));
        }
        if let Some(&known) = self.translated.get(&record.id) {
            return known;
        }
        let backend = conntrack.backend(record.src, dialled);
        // While it connects it may not be there yet.
        if record.established {
            if self.translated.len() >= MOST_ASKED {
                self.translated.clear();
            }
            self.translated.insert(record.id, backend);
        }
        backend
    }
}
