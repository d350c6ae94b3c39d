//! Names for what a record has numbers of: so far, the container of a socket's cgroup.

pub mod cgroup;
pub mod facts;
pub mod sources;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::record::ContainerId;

/// Between walks over the cgroups' tree, however many unknown ones turn up.
const WALKS: Duration = Duration::from_secs(1);
/// Cgroups remembered; then all are forgotten but those that are still there.
const MOST: usize = 100_000;

/// The containers of cgroups, by the kernel's id: the inode number of the cgroup's directory. A container that has gone is
/// remembered, since its last connections may close after it.
#[derive(Debug)]
pub struct Cgroups {
    root: Option<PathBuf>,
    known: HashMap<u64, Option<ContainerId>>,
    walked: Option<Instant>,
}

impl Cgroups {
    /// Those of this system; none where cgroups v2 are not mounted.
    pub fn mounted() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        Self::below(mount)
    }

    /// Those below this directory.
    pub fn below(root: Option<PathBuf>) -> Self {
        let mut cgroups = Self {
            root,
            known: HashMap::new(),
            walked: None,
        };
        cgroups.walk();
        cgroups
    }

    /// The container of a cgroup, if it is one's.
    pub fn container_of(&mut self, cgroup_id: u64) -> Option<ContainerId> {
        if !self.known.contains_key(&cgroup_id) && self.walked.is_none_or(|walked| walked.elapsed() >= WALKS) {
            self.walk();
        }
        self.known.get(&cgroup_id).copied().flatten()
    }

    fn walk(&mut self) {
        if self.known.len() > MOST {
            self.known.clear();
        }
        if let Some(root) = self.root.take() {
            self.visit(&root, &mut String::new());
            self.root = Some(root);
        }
        self.walked = Some(Instant::now());
    }

    fn visit(&mut self, directory: &Path, path: &mut String) {
        // What cannot be read, or goes meanwhile, has no name.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let length = path.len();
                path.push('/');
                path.push_str(&entry.file_name().to_string_lossy());
                self.known.insert(entry.ino(), cgroup::container_id(path));
                self.visit(&entry.path(), path);
                path.truncate(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_cgroup_is_its_directorys_inode_and_is_remembered() {
        let root = std::env::temp_dir().join(format!("kmesh-trace-cgroups-{}", std::process::id()));
        let id = "3f".repeat(32);
        let container = root.join("kubepods/pod9").join(&id);
        fs::create_dir_all(&container).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let (of_container, of_pod) = (inode(&container), inode(container.parent().unwrap()));
        let mut cgroups = Cgroups::below(Some(root.clone()));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(cgroups.container_of(of_container), ContainerId::new(&id));
        assert_eq!(cgroups.container_of(of_pod), None);
        assert_eq!(cgroups.container_of(0), None);
    }
}
