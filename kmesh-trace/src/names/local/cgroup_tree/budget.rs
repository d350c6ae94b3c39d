//! How many directories of a cgroup tree are visited and watched. Pure.
//!
//! Directories outside of pods are charged to their parent, those in a container outside of pods to that container, and pods
//! to their kubelet. So nobody who creates directories keeps another's from being found.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::names::local::cgroup::{CgroupKind, CgroupPath};

/// Directories that are neither a pod's nor in a container, in one parent directory.
const MAX_CHILDREN: usize = 1024;
/// Directories in one container outside of pods. A node that is a container needs a dozen.
const MAX_IN_CONTAINER: usize = 64;
/// Pods of one kubelet.
const MAX_PODS: usize = 16_384;
/// Pods of all kubelets in one container.
const MAX_PODS_IN_CONTAINER: usize = 1024;
/// All directories.
const MAX_TOTAL: usize = 65_536;
/// systemd and container runtimes nested in each other need a dozen levels.
const MAX_DEPTH: usize = 32;

/// The number of directories in use, for each account.
#[derive(Debug, Default)]
pub struct Budget {
    used: HashMap<Account, usize>,
    total: usize,
}

/// Who pays for a directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Account {
    Parent(PathBuf),
    Container(PathBuf),
    Kubelet(PathBuf),
    Kubelets(PathBuf),
}

impl Budget {
    /// Takes one directory out of the budget; false if there is nothing left.
    pub fn take(&mut self, path: &Path, parsed: &CgroupPath) -> bool {
        let (account, max) = account(path, parsed);
        let used = self.used.get(&account).copied().unwrap_or_default();
        let is_allowed = used < max && self.total < MAX_TOTAL && parsed.depth() <= MAX_DEPTH;
        if is_allowed {
            self.used.insert(account, used + 1);
            self.total += 1;
        }
        is_allowed
    }

    /// Gives back a directory that [`Self::take`] took.
    pub fn give_back(&mut self, path: &Path, parsed: &CgroupPath) {
        let (account, _) = account(path, parsed);
        if let Some(used) = self.used.get_mut(&account) {
            *used -= 1;
            self.total -= 1;
            if *used == 0 {
                self.used.remove(&account);
            }
        }
    }
}

fn account(path: &Path, parsed: &CgroupPath) -> (Account, usize) {
    let container = parsed.outer_container().filter(|(_, depth)| *depth < parsed.depth());
    let container = container.map(|(_, depth)| path.iter().take(depth).collect());
    match (parsed.kind(), parsed.pod(), container) {
        (CgroupKind::Pod, _, Some(container)) => (Account::Kubelets(container), MAX_PODS_IN_CONTAINER),
        (CgroupKind::Pod, Some(pod), None) => (Account::Kubelet(PathBuf::from(&*pod.root)), MAX_PODS),
        (_, _, Some(container)) => (Account::Container(container), MAX_IN_CONTAINER),
        (_, _, None) => (Account::Parent(path.parent().unwrap_or(path).into()), MAX_CHILDREN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &mut Budget, paths: impl Iterator<Item = String>) -> usize {
        let is_taken = |path: &String| budget.take(Path::new(path), &CgroupPath::parse(path));
        paths.filter(is_taken).count()
    }

    fn uid(number: u32) -> String {
        format!("{number:08x}-0000-4000-8000-000000000000")
    }

    #[test]
    fn each_account_has_its_own_bound() {
        let container = format!("docker/{}", "3f".repeat(32));
        let mut budget = Budget::default();
        let tenants = [
            taken(&mut budget, (0..66_000).map(|number| format!("a/{number}"))),
            taken(&mut budget, (0..66_000).map(|number| format!("{container}/{number}"))),
            taken(&mut budget, (0..66_000).map(|number| format!("{container}/x/{number}"))),
            taken(
                &mut budget,
                (0..66_000).map(|number| format!("{container}/kubepods/pod{}", uid(number))),
            ),
            taken(
                &mut budget,
                (0..66_000).map(|number| format!("{container}/{number}/kubepods/pod{}", uid(number))),
            ),
            taken(
                &mut budget,
                (0..66_000).map(|number| format!("kubepods/pod{}", uid(number))),
            ),
        ];
        assert_eq!(
            tenants,
            [MAX_CHILDREN, MAX_IN_CONTAINER, 0, MAX_PODS_IN_CONTAINER, 0, MAX_PODS]
        );
        let others = ["b/1", "docker/1", &container, "b/kubepods"].map(str::to_owned);
        assert_eq!(taken(&mut budget, others.into_iter()), 4);
        let deep = ["x/".repeat(MAX_DEPTH) + "x", "y/".repeat(MAX_DEPTH - 1) + "y"];
        assert_eq!(taken(&mut budget, deep.into_iter()), 1);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut budget = Budget::default();
        let paths = || (0..MAX_CHILDREN).map(|number| format!("a/{number}"));
        assert_eq!(taken(&mut budget, paths()), MAX_CHILDREN);
        for path in paths() {
            budget.give_back(Path::new(&path), &CgroupPath::parse(&path));
        }
        assert_eq!((budget.total, budget.used.len()), (0, 0));
        assert_eq!(taken(&mut budget, paths()), MAX_CHILDREN);
    }
}
