//! Limits the number of cgroup directories that are visited and watched. Pure.
//!
//! Directories outside of pods are charged to their parent, those in a container outside of pods to that container,
//! and pods to their kubelet. So no user who creates directories hides those of another user.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::names::local::cgroup::{CgroupKind, CgroupPath};

/// The number of directories in one parent directory that are neither a pod's nor in a container.
const MAX_CHILDREN: usize = 1024;
/// The number of directories in one container outside of pods. A node that is a container needs a dozen.
const MAX_IN_CONTAINER: usize = 64;
const MAX_PODS_OF_KUBELET: usize = 16_384;
const MAX_PODS_IN_CONTAINER: usize = 1024;
const MAX_TOTAL: usize = 65_536;
/// systemd and container runtimes nested in each other need a dozen levels.
const MAX_DEPTH: usize = 32;

/// The number of directories in use, for each account.
#[derive(Debug, Default)]
pub struct DirectoryBudget {
    used: HashMap<DirectoryAccount, usize>,
    total: usize,
}

/// What a directory is charged to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum DirectoryAccount {
    Parent(PathBuf),
    Container(PathBuf),
    Kubelet(PathBuf),
    /// All kubelets in a container.
    Kubelets(PathBuf),
}

impl DirectoryBudget {
    /// Takes one directory out of the budget. Returns false if nothing is left.
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

fn account(path: &Path, parsed: &CgroupPath) -> (DirectoryAccount, usize) {
    let container = parsed.outer_container().filter(|(_, depth)| *depth < parsed.depth());
    let container = container.map(|(_, depth)| path.iter().take(depth).collect());
    match (parsed.kind(), parsed.pod(), container) {
        (CgroupKind::Pod, _, Some(container)) => (DirectoryAccount::Kubelets(container), MAX_PODS_IN_CONTAINER),
        (CgroupKind::Pod, Some(pod), None) => (
            DirectoryAccount::Kubelet(PathBuf::from(&*pod.root)),
            MAX_PODS_OF_KUBELET,
        ),
        (_, _, Some(container)) => (DirectoryAccount::Container(container), MAX_IN_CONTAINER),
        (_, _, None) => (
            DirectoryAccount::Parent(path.parent().unwrap_or(path).into()),
            MAX_CHILDREN,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &mut DirectoryBudget, paths: impl Iterator<Item = String>) -> usize {
        let is_taken = |path: &String| budget.take(Path::new(path), &CgroupPath::parse(path));
        paths.filter(is_taken).count()
    }

    fn uid(number: u32) -> String {
        format!("{number:08x}-0000-4000-8000-000000000000")
    }

    #[test]
    fn each_account_has_its_own_bound() {
        let container = format!("docker/{}", "3f".repeat(32));
        let mut budget = DirectoryBudget::default();
        let paths: [(&dyn Fn(u32) -> String, usize); 6] = [
            (&|number| format!("a/{number}"), MAX_CHILDREN),
            (&|number| format!("{container}/{number}"), MAX_IN_CONTAINER),
            (&|number| format!("{container}/x/{number}"), 0),
            (
                &|number| format!("{container}/kubepods/pod{}", uid(number)),
                MAX_PODS_IN_CONTAINER,
            ),
            (&|number| format!("{container}/{number}/kubepods/pod{}", uid(number)), 0),
            (&|number| format!("kubepods/pod{}", uid(number)), MAX_PODS_OF_KUBELET),
        ];
        for (path, max) in paths {
            assert_eq!(taken(&mut budget, (0..66_000).map(path)), max, "{}", path(0));
        }
        let others = ["b/1", "docker/1", &container, "b/kubepods"].map(str::to_owned);
        assert_eq!(taken(&mut budget, others.into_iter()), 4);
        let deep = ["x/".repeat(MAX_DEPTH) + "x", "y/".repeat(MAX_DEPTH - 1) + "y"];
        assert_eq!(taken(&mut budget, deep.into_iter()), 1);
    }

    #[test]
    fn returned_directories_can_be_taken_again() {
        let mut budget = DirectoryBudget::default();
        let paths = || (0..MAX_CHILDREN).map(|number| format!("a/{number}"));
        assert_eq!(taken(&mut budget, paths()), MAX_CHILDREN);
        for path in paths() {
            budget.give_back(Path::new(&path), &CgroupPath::parse(&path));
        }
        assert_eq!((budget.total, budget.used.len()), (0, 0));
        assert_eq!(taken(&mut budget, paths()), MAX_CHILDREN);
    }
}
