//! The network namespaces of other processes, which a socket scan enters one after another.
//!
//! A thread in a network namespace can list all sockets of the namespace, also those that no process holds. To enter a
//! namespace, a thread needs CAP_SYS_ADMIN and a process in the namespace (and CAP_SYS_PTRACE, unless that process has
//! the same user and no more capabilities).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kmesh_trace_common::FoundNamespace;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::loader::{ScanPrograms, StartError, Take};
use crate::clocks::processor_time;

/// The network namespaces of other processes. Only the thread that created this value may use it.
#[derive(Debug)]
pub struct OtherNamespaces {
    /// The thread's own namespace, to which it returns.
    own: File,
    own_inode: u64,
    order: ScanOrder,
    /// The namespaces that the current scan has scanned, by inode number.
    of_this_scan: BTreeSet<u64>,
    /// The processor time that the last namespace took. For each namespace, the kernel reads its whole table of
    /// sockets.
    cost: Duration,
}

/// The order in which to scan namespaces, by inode number.
#[derive(Debug, Default)]
struct ScanOrder {
    /// The namespaces scanned at least once.
    scanned: BTreeSet<u64>,
    /// The namespaces whose last visit found a connection that the scan had not visited before.
    productive: BTreeSet<u64>,
    /// The unproductive namespace that was scanned last.
    last: u64,
    /// Whether one pass over all namespaces has ended.
    is_first_round_over: bool,
}

impl OtherNamespaces {
    /// Fails if the calling thread may not enter a network namespace.
    pub fn new() -> io::Result<Self> {
        let own = File::open("/proc/thread-self/ns/net")?;
        let own_inode = own.metadata()?.st_ino();
        enter(&own)?;
        Ok(Self {
            own,
            own_inode,
            order: ScanOrder::default(),
            of_this_scan: BTreeSet::new(),
            cost: Duration::ZERO,
        })
    }

    /// Begins a scan, in the thread's own namespace.
    pub fn begin(&mut self) -> Result<(), StartError> {
        self.of_this_scan.clear();
        // The last scan may have failed to leave a namespace.
        self.leave()
    }

    /// Scans each namespace that it has never scanned, and others while a connection is unvisited, except those that
    /// this scan has scanned. After the first one, it stops before a namespace that would exceed `deadline`, a
    /// processor time of this thread; the next scan continues there.
    pub fn scan(
        &mut self,
        programs: &mut ScanPrograms,
        deadline: Duration,
        part_begins: &dyn Fn(),
        take: Take<'_>,
    ) -> Result<ControlFlow<()>, StartError> {
        if self.order.is_first_round_over && programs.unvisited()? == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let scanned = self.scan_inside(programs, deadline, part_begins, take);
        self.leave_after(scanned)
    }

    /// Scans these namespaces, except the thread's own. Skips those that the thread cannot enter.
    pub fn scan_each(
        &mut self,
        programs: &mut ScanPrograms,
        found: &[FoundNamespace],
        part_begins: &dyn Fn(),
        take: Take<'_>,
    ) -> Result<ControlFlow<()>, StartError> {
        let mut scanned = Ok(ControlFlow::Continue(()));
        let mut of_processes = None;
        for namespace in found {
            let inode = u64::from(namespace.netns);
            if inode == self.own_inode || !enter_found(namespace, &mut of_processes) {
                continue;
            }
            part_begins();
            scanned = programs.scan_netns(take);
            if !matches!(scanned, Ok(ControlFlow::Continue(()))) {
                break;
            }
            self.order.scanned.insert(inode);
            self.of_this_scan.insert(inode);
        }
        self.leave_after(scanned)
    }

    /// Returns to the thread's own namespace, and returns the first error.
    fn leave_after(&self, scanned: Result<ControlFlow<()>, StartError>) -> Result<ControlFlow<()>, StartError> {
        let left = self.leave();
        scanned.and_then(|scanned| left.map(|()| scanned))
    }

    /// Returns to the thread's own namespace.
    fn leave(&self) -> Result<(), StartError> {
        enter(&self.own).map_err(|error| StartError::Failed {
            action: "return to the tool's own network namespace",
            reason: error.to_string(),
        })
    }

    fn scan_inside(
        &mut self,
        programs: &mut ScanPrograms,
        deadline: Duration,
        part_begins: &dyn Fn(),
        take: Take<'_>,
    ) -> Result<ControlFlow<()>, StartError> {
        let mut is_first = true;
        let listed = namespaces();
        let mut listed_again = None;
        // The kernel may reuse an inode number.
        self.order.retain(&listed);
        for inode in self.order.sorted(&listed) {
            let is_scanned = inode == self.own_inode || self.of_this_scan.contains(&inode);
            if is_scanned || programs.unvisited()? == 0 && self.order.scanned.contains(&inode) {
                continue;
            }
            let began = processor_time();
            if !is_first && began.saturating_add(self.cost) > deadline {
                return Ok(ControlFlow::Continue(()));
            }
            // The process of this path may have ended, although another one is in the namespace.
            if !enter_listed(inode, &listed) && !enter_listed(inode, listed_again.get_or_insert_with(namespaces)) {
                continue;
            }
            is_first = false;
            part_begins();
            let before = programs.visited()?;
            if programs.scan_netns(take)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.order.add(inode, programs.visited()? > before);
            self.cost = processor_time().saturating_sub(began);
        }
        self.order.is_first_round_over = true;
        Ok(ControlFlow::Continue(()))
    }
}

impl ScanOrder {
    /// Removes the namespaces that are not in `namespaces`.
    fn retain(&mut self, namespaces: &BTreeMap<u64, PathBuf>) {
        self.scanned.retain(|inode| namespaces.contains_key(inode));
        self.productive.retain(|inode| namespaces.contains_key(inode));
    }

    /// Returns the namespaces: the productive ones, then those after the last one scanned, then the rest.
    fn sorted(&self, namespaces: &BTreeMap<u64, PathBuf>) -> Vec<u64> {
        let mut order: Vec<_> = namespaces.keys().copied().collect();
        order.sort_by_key(|inode| (!self.productive.contains(inode), *inode <= self.last, *inode));
        order
    }

    /// Notes that a namespace was scanned. `is_productive`: the visit found a connection that was not visited before.
    fn add(&mut self, inode: u64, is_productive: bool) {
        self.scanned.insert(inode);
        if is_productive {
            self.productive.insert(inode);
        } else {
            self.productive.remove(&inode);
            // A productive namespace comes first anyway.
            self.last = inode;
        }
    }
}

/// Enters a namespace by one of its processes or threads. Returns whether that worked. `of_processes`: a cache for the
/// result of [`namespaces`].
fn enter_found(found: &FoundNamespace, of_processes: &mut Option<BTreeMap<u64, PathBuf>>) -> bool {
    let inode = u64::from(found.netns);
    let process = PathBuf::from(format!("/proc/{}", found.pid));
    if enter_path(&process.join("ns/net"), inode) {
        return true;
    }
    // A thread may be in another namespace than its process.
    let threads = fs::read_dir(process.join("task")).into_iter().flatten().flatten();
    if threads
        .into_iter()
        .any(|thread| enter_path(&thread.path().join("ns/net"), inode))
    {
        return true;
    }
    enter_listed(inode, of_processes.get_or_insert_with(namespaces))
}

/// Enters a namespace of a result of [`namespaces`]. Returns whether that worked.
fn enter_listed(inode: u64, listed: &BTreeMap<u64, PathBuf>) -> bool {
    listed.get(&inode).is_some_and(|path| enter_path(path, inode))
}

/// Enters the namespace of this file if it is the one with this inode number. Returns whether that worked.
fn enter_path(path: &Path, inode: u64) -> bool {
    // The process of this path may have ended.
    File::open(path).is_ok_and(|namespace| {
        let is_same = namespace.metadata().is_ok_and(|metadata| metadata.st_ino() == inode);
        is_same && enter(&namespace).is_ok()
    })
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Returns the network namespaces of all visible processes by inode number, each with the file of one process.
fn namespaces() -> BTreeMap<u64, PathBuf> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let files = processes
        .filter(|entry| is_process(&entry.file_name()))
        .map(|entry| entry.path().join("ns/net"));
    let mut namespaces = BTreeMap::new();
    for file in files {
        if let Ok(metadata) = fs::metadata(&file) {
            namespaces.entry(metadata.st_ino()).or_insert(file);
        }
    }
    namespaces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(inodes: &[u64]) -> BTreeMap<u64, PathBuf> {
        inodes.iter().map(|inode| (*inode, PathBuf::new())).collect()
    }

    #[test]
    fn next_scan_continues_after_last_namespace() {
        let mut order = ScanOrder::default();
        let namespaces = of(&[1, 2, 3, 4]);
        assert_eq!(order.sorted(&namespaces), [1, 2, 3, 4]);
        order.add(1, false);
        order.add(2, false);
        assert_eq!(order.sorted(&namespaces), [3, 4, 1, 2]);
    }

    #[test]
    fn productive_namespaces_come_first() {
        let mut order = ScanOrder::default();
        order.add(2, false);
        order.add(3, true);
        assert_eq!(order.sorted(&of(&[1, 2, 3, 4])), [3, 4, 1, 2]);
        order.retain(&of(&[1, 2]));
        assert_eq!(order.sorted(&of(&[1, 2, 3])), [3, 1, 2]);
        order.add(3, true);
        order.add(3, false);
        assert_eq!(order.sorted(&of(&[1, 2, 3, 4])), [4, 1, 2, 3]);
    }

    #[test]
    fn namespaces_include_own_namespace() {
        let own = File::open("/proc/self/ns/net").unwrap().metadata().unwrap().st_ino();
        assert!(namespaces().contains_key(&own));
    }
}
