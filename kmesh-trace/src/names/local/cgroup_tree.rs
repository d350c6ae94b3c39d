//! The running tree of cgroups: which pod and container a cgroup id belongs to.
//!
//! ```text
//!   writer ── lookup(id) ──▶ table ◀── add ── watcher thread ◀── inotify: pods and containers that start and end
//!                └── unknown id ── request ──────▶ └── kernel: the path of this id
//! ```
//!
//! The kernel's id of a cgroup is its directory's inode number. The watcher knows the directories of pods and
//! containers before their first connection, and remembers them after the last. All other ids are looked up one at a
//! time: nested cgroups within containers, system services, and all directories beyond the
//! `DirectoryBudget`.

mod budget;
mod hierarchy;
mod table;
#[cfg(test)]
mod tests;
mod watcher;

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use super::Lookup;
use super::cgroup::CgroupOwner;
pub(super) use budget::DirectoryBudget;
pub(super) use hierarchy::{Hierarchy, mounts, read_start};
use table::CgroupTable;
use watcher::Watcher;

/// The number of look-ups that may wait for their answer. Further ids have no owner, this once.
const MAX_REQUESTS: usize = 1024;

/// The cgroups of this node.
#[derive(Debug)]
pub struct CgroupTree {
    /// `None` where no cgroups of version 2 are mounted.
    shared: Option<Arc<SharedTable>>,
}

/// The state that the writer's thread and the watcher's share.
#[derive(Debug)]
struct SharedTable {
    state: Mutex<TableState>,
    /// Wakes the thread of the watcher.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct TableState {
    table: CgroupTable,
    requests: VecDeque<u64>,
    requested: HashSet<u64>,
    is_closed: bool,
}

impl CgroupTree {
    /// Opens the cgroup hierarchy of this node.
    pub fn mounted(on_change: impl Fn() + Send + 'static) -> Self {
        Self::open(mounts().0, on_change)
    }

    /// Opens the hierarchy of version 2 that is mounted at `root`. Returns at once: a thread reads the tree.
    /// `on_change` is called in that thread, after the first scan and whenever pending look-ups were answered.
    pub fn open(root: Option<PathBuf>, on_change: impl Fn() + Send + 'static) -> Self {
        let hierarchy = root.and_then(|root| Hierarchy::open(&root).ok());
        Self::watch(hierarchy, on_change)
    }

    /// Opens a directory tree and trusts this user's directories.
    #[cfg(test)]
    fn trusting(root: &Path, uid: u32, on_change: impl Fn() + Send + 'static) -> Self {
        Self::watch(Hierarchy::trusting(root, Some(uid)).ok(), on_change)
    }

    fn watch(hierarchy: Option<Hierarchy>, on_change: impl Fn() + Send + 'static) -> Self {
        let shared = hierarchy.and_then(|hierarchy| {
            let shared = Arc::new(SharedTable {
                state: Mutex::default(),
                wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?,
            });
            let watcher = Watcher::new(hierarchy, Arc::clone(&shared));
            thread::Builder::new()
                .name("cgroups".to_owned())
                .spawn(move || watcher.run(&on_change))
                .ok()?;
            Some(shared)
        });
        Self { shared }
    }

    /// Returns the owner of a cgroup. Never waits for a file system.
    pub fn lookup(&mut self, cgroup_id: u64) -> Lookup<Arc<CgroupOwner>> {
        let Some(shared) = &self.shared else {
            return Lookup::Known(None);
        };
        let mut state = shared.lock();
        if let Some(owner) = state.table.get(cgroup_id) {
            return Lookup::Known(owner);
        }
        if state.requested.contains(&cgroup_id) {
            return Lookup::Pending;
        }
        if state.requests.len() >= MAX_REQUESTS {
            return Lookup::Known(None);
        }
        state.requested.insert(cgroup_id);
        state.requests.push_back(cgroup_id);
        drop(state);
        shared.wake();
        Lookup::Pending
    }

    /// Returns the UIDs of the pods that now have a cgroup under this kubelet's root.
    pub fn pods_under(&self, root: &str) -> impl Iterator<Item = Arc<str>> + use<> {
        let uids = self.shared.as_ref().map(|shared| shared.lock().table.pods_under(root));
        uids.into_iter().flatten()
    }
}

impl Drop for CgroupTree {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.lock().is_closed = true;
            shared.wake();
        }
    }
}

impl SharedTable {
    fn lock(&self) -> MutexGuard<'_, TableState> {
        // No panic leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the watcher is awake.
        _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// Returns a path as [`CgroupPath`](super::cgroup::CgroupPath) reads it. Names that are not UTF-8 are no pod's or
/// container's.
pub(super) fn path_text(path: &Path) -> Cow<'_, str> {
    path.to_string_lossy()
}
