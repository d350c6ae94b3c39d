//! Which pod a network namespace belongs to: for sockets whose cgroup says nothing, on nodes with cgroups of version 1 only.
//!
//! A thread reads the pods' cgroup directories and, of each pod, one process of its oldest container: that is the sandbox,
//! which is made in the pod's network namespace. So the cost grows with the number of pods, not with what runs in them.
//!
//! The kernel uses the number of a namespace again, soon after the namespace is gone. An answer is therefore given only while
//! the process is there, and only for times after its start.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Resource, getrlimit};

use super::cgroup::{CgroupKind, CgroupPath, PodCgroup};
use super::cgroup_tree::{Budget, Hierarchy, Lookup, mounts, path_text, read_start};
use super::node;
use crate::kernel::monotonic_of_boot_time;

/// The time between two scans, whatever makes them necessary.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// Pods whose namespace is known. Each takes a file descriptor; half of those that the process may open are left to others.
const MAX_PODS: usize = 4096;
/// Containers of a pod of which a process is looked for: a sandbox may have none.
const MAX_CONTAINERS: usize = 4;
/// Namespaces that no pod has, for which it is remembered.
const MAX_NOBODYS: usize = 4096;

/// The network namespaces of this node.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The node's own.
    node: Option<u32>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The pods of each namespace. More than one make it nobody's.
    known: HashMap<u32, Vec<Arc<Sandbox>>>,
    /// Namespaces that no pod had in the last scan.
    nobodys: HashSet<u32>,
    requested: HashSet<u32>,
    last_scan: Option<Instant>,
    is_closed: bool,
}

/// A process in a pod's network namespace.
#[derive(Debug)]
struct Sandbox {
    pod: PodCgroup,
    netns: u32,
    /// Its folder in /proc. While this is open, the folder is never another process's.
    process: OwnedFd,
    /// When it started (CLOCK_MONOTONIC, ns), rounded up.
    started_ns: u64,
}

impl PodNamespaces {
    /// Knows no namespace yet. `on_change` is called in another thread whenever pending lookups were answered.
    pub fn new(on_change: impl Fn() + Send + 'static) -> Self {
        let (unified, legacy) = mounts();
        Self::of(unified.into_iter().chain(legacy).collect(), on_change)
    }

    fn of(mounts: Vec<PathBuf>, on_change: impl Fn() + Send + 'static) -> Self {
        let namespaces = Self {
            node: node::network_namespace().and_then(|namespace| namespace.inode.try_into().ok()),
            shared: Arc::default(),
        };
        let hierarchies = mounts.iter().filter_map(|mount| Hierarchy::open(mount).ok()).collect();
        let scanner = Scanner {
            shared: Arc::clone(&namespaces.shared),
            hierarchies,
            node: namespaces.node,
            known: HashMap::new(),
        };
        let thread = thread::Builder::new().name("netns".to_owned());
        if thread.spawn(move || scanner.run(&on_change)).is_err() {
            namespaces.shared.lock().is_closed = true;
        }
        namespaces
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
        let mut state = self.shared.lock();
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
        if state.is_closed {
            return Lookup::Known(None);
        }
        // A namespace that was nobody's may be a pod's by now: the next scan tells.
        let is_nobodys = state.nobodys.contains(&netns);
        let is_fresh = state.last_scan.is_some_and(|scan| scan.elapsed() < SCAN_INTERVAL);
        if !(is_nobodys && is_fresh) && state.requested.len() < MAX_NOBODYS && state.requested.insert(netns) {
            drop(state);
            self.shared.wake.notify_one();
        }
        if is_nobodys {
            Lookup::Known(None)
        } else {
            Lookup::Pending
        }
    }
}

impl Drop for PodNamespaces {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until somebody asks and a scan is due; false when the namespaces are no longer wanted.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.is_closed {
                return false;
            }
            let rest = state
                .last_scan
                .map_or(Duration::ZERO, |scan| SCAN_INTERVAL.saturating_sub(scan.elapsed()));
            state = match (state.requested.is_empty(), rest) {
                (false, Duration::ZERO) => return true,
                (false, rest) => {
                    self.wake
                        .wait_timeout(state, rest)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                (true, _) => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

/// The state of the thread.
struct Scanner {
    shared: Arc<Shared>,
    hierarchies: Vec<Hierarchy>,
    node: Option<u32>,
    /// By the id of the container's cgroup.
    known: HashMap<u64, Arc<Sandbox>>,
}

/// A pod's containers, by the ids of their cgroups.
type Containers = Vec<(u64, PathBuf)>;

impl Scanner {
    fn run(mut self, on_change: &dyn Fn()) {
        while self.shared.wait() {
            let requested = {
                let mut state = self.shared.lock();
                state.last_scan = Some(Instant::now());
                std::mem::take(&mut state.requested)
            };
            let mut known: HashMap<u32, Vec<Arc<Sandbox>>> = HashMap::new();
            for sandbox in self.scan() {
                known.entry(sandbox.netns).or_default().push(sandbox);
            }
            let mut state = self.shared.lock();
            if state.nobodys.len() + requested.len() > MAX_NOBODYS {
                state.nobodys.clear();
            }
            state.nobodys.extend(requested);
            state.nobodys.retain(|netns| !known.contains_key(netns));
            state.known = known;
            drop(state);
            on_change();
        }
    }

    /// Returns the pods with a namespace of their own. Kubelets make each pod in every hierarchy, so the first with pods counts.
    fn scan(&mut self) -> Vec<Arc<Sandbox>> {
        let max = getrlimit(Resource::Nofile)
            .current
            .map_or(MAX_PODS, |max| max as usize / 2);
        let mut found = HashMap::new();
        for hierarchy in &self.hierarchies {
            let mut pods = HashMap::new();
            collect_pods(hierarchy, Path::new(""), &mut Budget::default(), &mut pods);
            for (pod, mut containers) in pods.drain().take(MAX_PODS.min(max)) {
                containers.sort_unstable();
                let sandbox = containers.iter().take(MAX_CONTAINERS).find_map(|(id, path)| {
                    let known = self.known.get(id).filter(|known| known.is_in(known.netns));
                    let sandbox = known
                        .cloned()
                        .or_else(|| Sandbox::find(hierarchy, &pod, path).map(Arc::new));
                    Some((*id, sandbox?))
                });
                found.extend(sandbox);
            }
            if !found.is_empty() {
                break;
            }
        }
        self.known = found;
        let own = self.known.values().filter(|sandbox| self.node != Some(sandbox.netns));
        own.cloned().collect()
    }
}

impl Sandbox {
    /// Returns a process of a container.
    fn find(hierarchy: &Hierarchy, pod: &PodCgroup, container: &Path) -> Option<Self> {
        let first_pid = || {
            let text = hierarchy.read_start(container, c"cgroup.procs").ok()?;
            let pid: u32 = str::from_utf8(&text).ok()?.lines().next()?.parse().ok()?;
            // It is 0 in another pid namespace.
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

    /// Returns whether the process is still there, in this namespace.
    fn is_in(&self, netns: u32) -> bool {
        netns_of(&self.process) == Some(netns)
    }
}

/// Collects the pods below a directory whose parents are all trusted.
fn collect_pods(hierarchy: &Hierarchy, path: &Path, budget: &mut Budget, pods: &mut HashMap<PodCgroup, Containers>) {
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

/// Returns when a process started (CLOCK_MONOTONIC, ns), rounded up.
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
