//! The network namespaces of other processes, for the part of a socket scan that reaches one namespace at a time.
//!
//! The kernel lists all sockets of a network namespace to a thread in that namespace, also those that no process holds. To enter
//! a namespace takes CAP_SYS_ADMIN, and a process in it by which to find it (CAP_SYS_PTRACE, for processes with more
//! capabilities).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::loader::{StartError, Take, Walker};
use super::time::processor_time;

/// The namespaces that the calling thread can enter. Belongs to the thread that made it.
#[derive(Debug)]
pub struct OtherNamespaces {
    /// The thread's own namespace, to which it returns.
    own: File,
    own_inode: u64,
    progress: Progress,
    /// The processor time that one namespace took. For each, the kernel goes through its whole table of sockets.
    cost: Duration,
}

/// Which namespaces to scan first, by inode number.
#[derive(Debug, Default)]
struct Progress {
    /// Those scanned at least once.
    scanned: BTreeSet<u64>,
    /// Those where the last scan found a connection that it had not found by any descriptor.
    productive: BTreeSet<u64>,
    /// The one scanned last.
    last: u64,
    /// Whether all that there were at first have been scanned.
    is_first_round_over: bool,
}

impl OtherNamespaces {
    /// Fails where the calling thread may enter no namespace.
    pub fn new() -> io::Result<Self> {
        let own = File::open("/proc/thread-self/ns/net")?;
        let own_inode = own.metadata()?.st_ino();
        enter(&own)?;
        Ok(Self {
            own,
            own_inode,
            progress: Progress::default(),
            cost: Duration::ZERO,
        })
    }

    /// Scans as many namespaces as it takes to reach all open connections, and those that it has never scanned; but only one where
    /// the next would bring the thread's processor time beyond `deadline`. The next scan goes on there.
    pub fn scan(
        &mut self,
        walker: &mut Walker,
        deadline: Duration,
        take: Take<'_>,
    ) -> Result<ControlFlow<()>, StartError> {
        if self.progress.is_first_round_over && walker.unvisited()? == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        let scanned = self.scan_inside(walker, deadline, take);
        enter(&self.own).map_err(|error| StartError::Failed {
            doing: "returning to the tool's own network namespace",
            why: error.to_string(),
        })?;
        scanned
    }

    fn scan_inside(
        &mut self,
        walker: &mut Walker,
        deadline: Duration,
        take: Take<'_>,
    ) -> Result<ControlFlow<()>, StartError> {
        let mut is_first = true;
        let namespaces = namespaces();
        // A number may be another namespace's later.
        self.progress.forget_all_but(&namespaces);
        for inode in self.progress.order(&namespaces) {
            if inode == self.own_inode || walker.unvisited()? == 0 && self.progress.scanned.contains(&inode) {
                continue;
            }
            let began = processor_time();
            if !is_first && began.saturating_add(self.cost) > deadline {
                return Ok(ControlFlow::Continue(()));
            }
            // Its process may have ended.
            let namespace = namespaces.get(&inode).and_then(|path| File::open(path).ok());
            let is_inside = namespace.is_some_and(|namespace| {
                let is_same = namespace.metadata().is_ok_and(|metadata| metadata.st_ino() == inode);
                is_same && enter(&namespace).is_ok()
            });
            if !is_inside {
                continue;
            }
            is_first = false;
            let before = walker.visited()?;
            if walker.scan_netns(take)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.progress.note(inode, walker.visited()? > before);
            self.cost = processor_time().saturating_sub(began);
        }
        self.progress.is_first_round_over = true;
        Ok(ControlFlow::Continue(()))
    }
}

impl Progress {
    fn forget_all_but(&mut self, namespaces: &BTreeMap<u64, PathBuf>) {
        self.scanned.retain(|inode| namespaces.contains_key(inode));
        self.productive.retain(|inode| namespaces.contains_key(inode));
    }

    /// Returns the namespaces, the productive ones first, then those behind the one that was scanned last.
    fn order(&self, namespaces: &BTreeMap<u64, PathBuf>) -> Vec<u64> {
        let mut order: Vec<_> = namespaces.keys().copied().collect();
        order.sort_by_key(|inode| (!self.productive.contains(inode), *inode <= self.last, *inode));
        order
    }

    fn note(&mut self, inode: u64, is_productive: bool) {
        self.scanned.insert(inode);
        if is_productive {
            self.productive.insert(inode);
        } else {
            self.productive.remove(&inode);
            // The productive ones come first whichever was the last.
            self.last = inode;
        }
    }
}

fn enter(namespace: &File) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Returns the network namespaces of all processes that are visible, and the file of a process that leads to each.
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
    fn scan_goes_on_behind_the_namespace_that_it_scanned_last() {
        let mut progress = Progress::default();
        let namespaces = of(&[1, 2, 3, 4]);
        assert_eq!(progress.order(&namespaces), [1, 2, 3, 4]);
        progress.note(1, false);
        progress.note(2, false);
        assert_eq!(progress.order(&namespaces), [3, 4, 1, 2]);
    }

    #[test]
    fn productive_namespaces_come_first_while_they_exist() {
        let mut progress = Progress::default();
        progress.note(2, false);
        progress.note(3, true);
        assert_eq!(progress.order(&of(&[1, 2, 3, 4])), [3, 4, 1, 2]);
        progress.forget_all_but(&of(&[1, 2]));
        assert_eq!(progress.order(&of(&[1, 2, 3])), [3, 1, 2]);
        progress.note(3, true);
        progress.note(3, false);
        assert_eq!(progress.order(&of(&[1, 2, 3, 4])), [4, 1, 2, 3]);
    }

    #[test]
    fn own_namespace_is_among_those_of_all_processes() {
        let own = File::open("/proc/self/ns/net").unwrap().metadata().unwrap().st_ino();
        assert!(namespaces().contains_key(&own));
    }
}
