//! The pod of a network namespace: for sockets whose cgroup names no pod, as on nodes with cgroups of version 1 only.
//!
//! A thread reads the pods' cgroup directories and, of each pod, one process of its oldest container: that is the
//! sandbox, which is made in the pod's network namespace. So the cost grows with the number of pods, not with their
//! processes.
//!
//! The kernel reuses the number of a namespace soon after the namespace is gone. An answer is therefore given only
//! while the process exists, and only for times after its start.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Resource, getrlimit};

use super::Lookup;
use super::cgroup::{CgroupKind, CgroupPath, PodCgroup};
use super::cgroup_tree::{DirectoryBudget, Hierarchy, mounts, path_text, read_start};
use crate::clocks::monotonic_of_boot_time;
use crate::node;

/// The time between two scans, whatever makes them necessary.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// The number of pods whose namespace is known. Each takes a file descriptor; half of those that the process may open
/// are left for other uses.
const MAX_PODS: usize = 4096;
/// The number of containers of a pod in which a process is looked for: a sandbox may have none.
const MAX_CONTAINERS: usize = 4;
/// The number of namespaces without pod that are remembered.
const MAX_UNOWNED: usize = 4096;

/// The network namespaces of this node.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The node's own namespace.
    node: Option<u32>,
    state: Arc<Mutex<NamespaceState>>,
    /// Wakes the thread to scan.
    requests: Sender<()>,
}

#[derive(Debug, Default)]
struct NamespaceState {
    /// The pods of each namespace. A namespace with more than one belongs to none of them.
    known: HashMap<u32, Vec<Arc<SandboxProcess>>>,
    /// Namespaces without pod in the last scan.
    unowned: HashSet<u32>,
    requested: HashSet<u32>,
    last_scan: Option<Instant>,
}

fn lock(state: &Mutex<NamespaceState>) -> MutexGuard<'_, NamespaceState> {
    // No panic leaves the state half changed.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process in a pod's network namespace.
#[derive(Debug)]
struct SandboxProcess {
    pod: PodCgroup,
    netns: u32,
    /// The process's folder in /proc. While this is open, the folder is never another process's.
    process: OwnedFd,
    /// The start of the process (CLOCK_MONOTONIC, ns), rounded up.
    started_ns: u64,
}

impl PodNamespaces {
    /// Returns the namespaces, none known yet. `on_change` is called in another thread whenever pending look-ups were
    /// answered.
    pub fn new(on_change: impl Fn() + Send + 'static) -> Self {
        let (unified, legacy) = mounts();
        Self::of(unified.into_iter().chain(legacy).collect(), on_change)
    }

    fn of(mounts: Vec<PathBuf>, on_change: impl Fn() + Send + 'static) -> Self {
        let node = node::network_namespace().and_then(|namespace| namespace.inode.try_into().ok());
        let (requests, received) = channel();
        let state = Arc::default();
        let scanner = Scanner {
            state: Arc::clone(&state),
            hierarchies: mounts.iter().filter_map(|mount| Hierarchy::open(mount).ok()).collect(),
            node,
            known: HashMap::new(),
        };
        let thread = thread::Builder::new().name("netns".to_owned());
        // Without the thread, requests fail.
        _ = thread.spawn(move || scanner.run(&received, &on_change));
        Self { node, state, requests }
    }

    /// Returns whether this is the node's own namespace, which pods with `hostNetwork` share.
    pub fn is_nodes(&self, netns: u32) -> bool {
        self.node == Some(netns)
    }

    /// Returns the pod that had this namespace at a time when one of its sockets was in it (CLOCK_MONOTONIC, ns).
    pub fn pod_of(&mut self, netns: u32, at_ns: u64) -> Lookup<PodCgroup> {
        if self.is_nodes(netns) {
            return Lookup::Known(None);
        }
        let mut state = lock(&self.state);
        if let Some(sandboxes) = state.known.get(&netns) {
            if let [sandbox] = &sandboxes[..]
                && sandbox.is_in(netns)
            {
                let pod = (sandbox.started_ns <= at_ns).then(|| sandbox.pod.clone());
                return Lookup::Known(pod);
            }
            if sandboxes.iter().all(|sandbox| sandbox.is_in(netns)) {
                return Lookup::Known(None);
            }
            state.known.remove(&netns);
        }
        // A namespace without pod may have one by now: the next scan finds it.
        let is_unowned = state.unowned.contains(&netns);
        let is_fresh = state.last_scan.is_some_and(|scan| scan.elapsed() < SCAN_INTERVAL);
        let is_new = !(is_unowned && is_fresh) && state.requested.len() < MAX_UNOWNED && state.requested.insert(netns);
        let has_failed = is_new && self.requests.send(()).is_err();
        match is_unowned || has_failed {
            true => Lookup::Known(None),
            false => Lookup::Pending,
        }
    }
}

struct Scanner {
    state: Arc<Mutex<NamespaceState>>,
    hierarchies: Vec<Hierarchy>,
    node: Option<u32>,
    /// By the id of the container's cgroup.
    known: HashMap<u64, Arc<SandboxProcess>>,
}

/// A pod's containers, by the ids of their cgroups.
type Containers = Vec<(u64, PathBuf)>;

impl Scanner {
    /// Scans on request, at most once each [`SCAN_INTERVAL`], until the namespaces are dropped.
    fn run(mut self, requests: &Receiver<()>, on_change: &dyn Fn()) {
        let mut next_scan = Instant::now();
        while requests.recv().is_ok() {
            thread::sleep(next_scan.saturating_duration_since(Instant::now()));
            while requests.try_recv().is_ok() {}
            let mut state = lock(&self.state);
            let requested = std::mem::take(&mut state.requested);
            if requested.is_empty() {
                // The last scan has answered this request.
                continue;
            }
            let now = Instant::now();
            state.last_scan = Some(now);
            next_scan = now + SCAN_INTERVAL;
            drop(state);
            let mut known: HashMap<u32, Vec<Arc<SandboxProcess>>> = HashMap::new();
            for sandbox in self.scan() {
                known.entry(sandbox.netns).or_default().push(sandbox);
            }
            let mut state = lock(&self.state);
            if state.unowned.len() + requested.len() > MAX_UNOWNED {
                state.unowned.clear();
            }
            state.unowned.extend(requested);
            state.unowned.retain(|netns| !known.contains_key(netns));
            state.known = known;
            drop(state);
            on_change();
        }
    }

    /// Returns the pods with their own namespace. Kubelets make each pod in every hierarchy, so the first with pods
    /// counts.
    fn scan(&mut self) -> Vec<Arc<SandboxProcess>> {
        let max = getrlimit(Resource::Nofile)
            .current
            .map_or(MAX_PODS, |max| max as usize / 2);
        let mut found = HashMap::new();
        for hierarchy in &self.hierarchies {
            let mut pods = HashMap::new();
            collect_pods(hierarchy, Path::new(""), &mut DirectoryBudget::default(), &mut pods);
            for (pod, mut containers) in pods.drain().take(MAX_PODS.min(max)) {
                containers.sort_unstable();
                let sandbox = containers.iter().take(MAX_CONTAINERS).find_map(|(id, path)| {
                    let known = self.known.get(id).filter(|known| known.is_in(known.netns));
                    let sandbox = known
                        .cloned()
                        .or_else(|| SandboxProcess::find(hierarchy, &pod, path).map(Arc::new));
                    Some((*id, sandbox?))
                });
                found.extend(sandbox);
            }
            if !found.is_empty() {
                break;
            }
        }
        self.known = found;
        let isolated = self.known.values().filter(|sandbox| self.node != Some(sandbox.netns));
        isolated.cloned().collect()
    }
}

impl SandboxProcess {
    /// Returns a process of a container.
    fn find(hierarchy: &Hierarchy, pod: &PodCgroup, container: &Path) -> Option<Self> {
        let first_pid = || {
            let text = hierarchy.read_start(container, c"cgroup.procs").ok()?;
            let pid: u32 = str::from_utf8(&text).ok()?.lines().next()?.parse().ok()?;
            // The number is 0 for a process of another pid namespace.
            (pid > 0).then_some(pid)
        };
        let pid = first_pid()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = openat(rustix::fs::CWD, format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
        let netns = netns_of(&process)?;
        let started_ns = started_ns(&process)?;
        // The number may have become another process's before its folder was opened.
        (first_pid()? == pid && netns_of(&process)? == netns).then_some(Self {
            pod: pod.clone(),
            netns,
            process,
            started_ns,
        })
    }

    /// Returns whether the process still exists, in this namespace.
    fn is_in(&self, netns: u32) -> bool {
        netns_of(&self.process) == Some(netns)
    }
}

/// Collects the pods below a directory whose parents are all trusted.
fn collect_pods(
    hierarchy: &Hierarchy,
    path: &Path,
    budget: &mut DirectoryBudget,
    pods: &mut HashMap<PodCgroup, Containers>,
) {
    let parsed = CgroupPath::parse(&path_text(path));
    let is_trusted = hierarchy.inspect(path).is_ok_and(|(_, is_trusted)| is_trusted);
    if !is_trusted || !budget.take(path, &parsed) {
        return;
    }
    for (name, id) in hierarchy.children(path) {
        let child = path.join(name);
        let parsed = CgroupPath::parse(&path_text(&child));
        match (parsed.kind(), parsed.pod()) {
            (CgroupKind::Container, Some(pod)) => pods.entry(pod.clone()).or_default().push((id, child)),
            (CgroupKind::Nested, _) => {}
            _ => collect_pods(hierarchy, &child, budget, pods),
        }
    }
}

fn netns_of(process: &OwnedFd) -> Option<u32> {
    statat(process, "ns/net", AtFlags::empty()).ok()?.st_ino.try_into().ok()
}

/// Returns the start of a process (CLOCK_MONOTONIC, ns), rounded up.
fn started_ns(process: &OwnedFd) -> Option<u64> {
    let text = read_start(process, Path::new("stat")).ok()?;
    let ticks = start_ticks(&text)?;
    let tick_ns = 1_000_000_000 / clock_ticks_per_second();
    Some(monotonic_of_boot_time((ticks + 1) * tick_ns))
}

/// Reads field 22 of `/proc/PID/stat`. The second field, in parentheses, may contain anything.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = str::from_utf8(&stat[end + 1..]).ok()?;
    fields.split_whitespace().nth(19)?.parse().ok()
}
