//! The thread that reads the cgroup tree, watches it, and looks up single ids.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};

use super::budget::DirectoryBudget;
use super::hierarchy::Hierarchy;
use super::table::Group;
use super::{SharedTable, path_text};
use crate::names::local::cgroup::{CgroupKind, CgroupOwner, CgroupPath};

/// The time between two scans of many directories, whatever makes them necessary.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);
/// A look-up that takes longer than this makes the thread rest, so that it uses at most a tenth of a core: a tenant
/// can make look-ups slow, by many sibling directories that the kernel has not cached.
const SLOW_LOOKUP: Duration = Duration::from_millis(1);
const REST_FACTOR: u32 = 9;
/// The number of directories below containers that one scan reads, where ids cannot be looked up. Each container has
/// an equal share.
const MAX_SCANNED: usize = 4096;
const MIN_SCANNED_SHARE: usize = 4;
const MAX_SCANNED_SHARE: usize = 64;
/// The number of changes that are applied at once, so that look-ups get their turn.
const MAX_CHANGES: usize = 4096;

pub(super) struct Watcher {
    hierarchy: Hierarchy,
    shared: Arc<SharedTable>,
    /// `None` where inotify fails; then only single look-ups find cgroups.
    inotify: Option<OwnedFd>,
    directories: HashMap<Arc<Path>, Directory>,
    paths_by_watch: HashMap<i32, Arc<Path>>,
    budget: DirectoryBudget,
    /// Whether ids can be looked up one by one.
    has_handles: bool,
    /// Whether the kernel dropped events.
    has_lost_events: bool,
    /// Whether a directory could not be watched.
    has_unwatched: bool,
    next_scan: Instant,
    next_lookup: Instant,
}

struct Directory {
    id: u64,
    watch: Option<i32>,
}

struct DirectoryChange {
    directory: Arc<Path>,
    name: OsString,
    is_removal: bool,
}

impl Watcher {
    pub(super) fn new(hierarchy: Hierarchy, shared: Arc<SharedTable>) -> Self {
        Self {
            has_handles: hierarchy.has_handles(),
            hierarchy,
            shared,
            inotify: init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok(),
            directories: HashMap::new(),
            paths_by_watch: HashMap::new(),
            budget: DirectoryBudget::default(),
            has_lost_events: false,
            has_unwatched: false,
            next_scan: Instant::now(),
            next_lookup: Instant::now(),
        }
    }

    pub(super) fn run(mut self, on_change: &dyn Fn()) {
        self.scan_tree();
        on_change();
        while !self.shared.lock().is_closed {
            self.apply_changes();
            // After the changes, so that a container that exists already is found without a look-up.
            if self.answer() {
                on_change();
            } else {
                self.wait();
            }
        }
    }

    /// Waits for a change, for a request, or until a request that waits may be answered.
    fn wait(&mut self) {
        let answer_due = match self.shared.lock().requests.is_empty() {
            true => None,
            false if self.has_handles => Some(self.next_lookup),
            false => Some(self.next_scan),
        };
        let scan_due = self.has_lost_events.then_some(self.next_scan);
        let timeout = answer_due.into_iter().chain(scan_due).min().map(|due| {
            let rest = due.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: rest.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: rest.subsec_nanos().into(),
            }
        });
        let wake = PollFd::new(&self.shared.wake, PollFlags::IN);
        let inotify = self.inotify.iter().map(|inotify| PollFd::new(inotify, PollFlags::IN));
        let mut descriptors: Vec<PollFd<'_>> = [wake].into_iter().chain(inotify).collect();
        // An interruption counts as an event.
        _ = poll(&mut descriptors, timeout.as_ref());
        _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
    }

    /// Scans the whole tree, as far as the budget allows.
    fn scan_tree(&mut self) {
        self.has_lost_events = false;
        self.has_unwatched = false;
        self.next_scan = Instant::now() + SCAN_INTERVAL;
        let has_vanished = |path: &Path, directory: &Directory| {
            let now = self.hierarchy.inspect(path);
            !now.is_ok_and(|(id, is_trusted)| id == directory.id && is_trusted)
        };
        let vanished = self
            .directories
            .iter()
            .filter(|(path, directory)| has_vanished(path, directory));
        for path in vanished.map(|(path, _)| Arc::clone(path)).collect::<Vec<_>>() {
            self.remove(&path);
        }
        if let Ok((id, _)) = self.hierarchy.inspect(Path::new("")) {
            self.visit(Path::new(""), id);
        }
    }

    /// Adds a directory whose parents are all trusted, and the directories below it.
    fn visit(&mut self, path: &Path, id: u64) {
        let parsed = CgroupPath::parse(&path_text(path));
        let above = parsed.depth();
        match parsed.kind() {
            CgroupKind::Nested => return,
            CgroupKind::Container => return self.add(id, parsed.owner(above)),
            CgroupKind::Pod | CgroupKind::Outside => {}
        }
        let is_trusted = self.hierarchy.inspect(path).is_ok_and(|(_, is_trusted)| is_trusted);
        let is_outer_container = parsed.outer_container().is_some_and(|(_, depth)| depth == above);
        if parsed.pod().is_some() || is_outer_container {
            self.add(id, parsed.owner(above + usize::from(is_trusted)));
        }
        if !is_trusted || !(self.directories.contains_key(path) || self.budget.take(path, &parsed)) {
            return;
        }
        // Before its children are read, so that none is missed in between.
        self.watch(path, id);
        for (name, id) in self.hierarchy.children(path) {
            self.visit(&path.join(name), id);
        }
    }

    fn add(&self, id: u64, owner: Option<CgroupOwner>) {
        if let Some(owner) = owner {
            self.shared.lock().table.add_present(id, owner);
        }
    }

    fn watch(&mut self, path: &Path, id: u64) {
        if self.directories.get(path).is_some_and(|known| known.watch.is_some()) {
            return;
        }
        let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR | WatchFlags::DONT_FOLLOW;
        let directory = self.hierarchy.absolute(path);
        let inotify = self.inotify.as_ref();
        let watch = inotify.and_then(|inotify| add_watch(inotify, directory, flags).ok());
        self.has_unwatched |= watch.is_none();
        let path: Arc<Path> = path.into();
        if let Some(watch) = watch {
            self.paths_by_watch.insert(watch, Arc::clone(&path));
        }
        self.directories.insert(path, Directory { id, watch });
    }

    /// Stops watching a directory. The kernel reports no event when a watched cgroup is removed, and keeps its watch
    /// (seen on Linux 6.18), so the parent's watch must report it.
    fn forget(&mut self, path: &Path) {
        let Some(directory) = self.directories.remove(path) else {
            return;
        };
        self.budget.give_back(path, &CgroupPath::parse(&path_text(path)));
        if let (Some(watch), Some(inotify)) = (directory.watch, &self.inotify) {
            self.paths_by_watch.remove(&watch);
            // Other file systems have removed it.
            _ = remove_watch(inotify, watch);
        }
    }

    fn apply_changes(&mut self) {
        for change in self.read_changes() {
            let path = change.directory.join(&change.name);
            if change.is_removal {
                self.remove(&path);
            } else if self.hierarchy.trusted_depth(&change.directory) > change.directory.iter().count() {
                if let Ok((id, _)) = self.hierarchy.inspect(&path) {
                    self.visit(&path, id);
                }
            } else {
                // Its owner or its mode was changed after it was made.
                self.forget(&change.directory);
            }
        }
        if self.has_lost_events && Instant::now() >= self.next_scan {
            self.scan_tree();
        }
    }

    fn remove(&mut self, path: &Path) {
        let parsed = CgroupPath::parse(&path_text(path));
        let group = match (parsed.kind(), parsed.pod(), parsed.outer_container()) {
            (CgroupKind::Pod, Some(pod), _) => Some(Group::Pod(pod.clone())),
            (CgroupKind::Outside, _, Some((container, depth))) if depth == parsed.depth() => {
                Some(Group::Container(container))
            }
            _ => None,
        };
        if let Some(group) = group {
            self.shared.lock().table.remove(group);
        }
        self.forget(path);
    }

    /// Returns the next changes that have happened.
    fn read_changes(&mut self) -> Vec<DirectoryChange> {
        let Some(inotify) = &self.inotify else {
            return Vec::new();
        };
        let mut changes = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 16_384];
        let mut reader = Reader::new(inotify, &mut buffer);
        // It ends with EAGAIN.
        while changes.len() < MAX_CHANGES
            && let Ok(event) = reader.next()
        {
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                self.has_lost_events = true;
            }
            if let Some(directory) = self.paths_by_watch.get(&event.wd())
                && event.events().contains(ReadFlags::ISDIR)
                && let Some(name) = event.file_name()
            {
                changes.push(DirectoryChange {
                    directory: Arc::clone(directory),
                    name: OsStr::from_bytes(name.to_bytes()).to_owned(),
                    is_removal: event.events().contains(ReadFlags::DELETE),
                });
            }
        }
        changes
    }

    /// Answers requests. Returns false if none can be answered now.
    fn answer(&mut self) -> bool {
        let now = Instant::now();
        if self.has_handles {
            let request = self.shared.lock().requests.front().copied();
            let Some(id) = request.filter(|_| now >= self.next_lookup) else {
                return false;
            };
            let owner = self.look_up(id);
            let taken = now.elapsed();
            if taken > SLOW_LOOKUP {
                self.next_lookup = now + taken * REST_FACTOR;
            }
            self.answered(&[(id, owner)]);
            return true;
        }
        if now < self.next_scan || self.shared.lock().requests.is_empty() {
            return false;
        }
        let requests: Vec<u64> = self.shared.lock().requests.iter().copied().collect();
        if self.has_unwatched {
            self.scan_tree();
        }
        let found = self.scan_containers();
        let answers: Vec<_> = requests.iter().map(|id| (*id, found.get(id).cloned())).collect();
        self.answered(&answers);
        true
    }

    fn answered(&self, answers: &[(u64, Option<CgroupOwner>)]) {
        let mut state = self.shared.lock();
        for (id, owner) in answers {
            state.table.add_resolved(*id, owner.clone());
            state.requests.pop_front();
            state.requested.remove(id);
        }
    }

    /// Looks up one cgroup. A cgroup that is gone has no owner.
    fn look_up(&self, id: u64) -> Option<CgroupOwner> {
        if let Some(known) = self.shared.lock().table.get(id) {
            return known.map(|owner| (*owner).clone());
        }
        let path = self.hierarchy.path_of(id).ok()?;
        let trusted = self.hierarchy.trusted_depth(&path);
        CgroupPath::parse(&path_text(&path)).owner(trusted)
    }

    /// Returns the owners of the cgroups below containers, read level by level.
    fn scan_containers(&mut self) -> HashMap<u64, CgroupOwner> {
        self.next_scan = Instant::now() + SCAN_INTERVAL;
        let directories = self.directories.keys().take(MAX_SCANNED);
        let containers: Vec<_> = directories.flat_map(|path| self.containers_in(path)).collect();
        let containers = &containers[..containers.len().min(MAX_SCANNED / MIN_SCANNED_SHARE)];
        let share = (MAX_SCANNED / containers.len().max(1)).clamp(MIN_SCANNED_SHARE, MAX_SCANNED_SHARE);
        let mut found = HashMap::new();
        for container in containers {
            let owner = CgroupPath::parse(&path_text(container)).owner(container.iter().count());
            let mut paths = VecDeque::from([container.clone()]);
            let mut left = share;
            while let (Some(path), Some(owner)) = (paths.pop_front(), &owner) {
                for (name, id) in self.hierarchy.children(&path).take(left) {
                    left -= 1;
                    found.insert(id, owner.clone());
                    paths.push_back(path.join(name));
                }
            }
        }
        found
    }

    /// Returns the container that a watched directory is, or the containers in it.
    fn containers_in(&self, path: &Path) -> Vec<PathBuf> {
        let parsed = CgroupPath::parse(&path_text(path));
        if parsed.kind() == CgroupKind::Pod {
            let children = self.hierarchy.children(path).map(|(name, _)| path.join(name));
            let is_container = |path: &PathBuf| CgroupPath::parse(&path_text(path)).kind() == CgroupKind::Container;
            return children.filter(is_container).collect();
        }
        let outer = parsed.outer_container().filter(|(_, depth)| *depth == parsed.depth());
        outer.map(|_| path.to_owned()).into_iter().collect()
    }
}
