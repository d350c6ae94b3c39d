//! This node, as far as this process can see it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The inode number of the initial pid namespace (`PROC_PID_INIT_INO`), the same on every kernel.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNamespace {
    /// The file of the namespace below /proc.
    pub path: PathBuf,
    pub inode: u64,
    /// Whether this process is in it.
    pub is_own: bool,
}

/// Returns the node's own network namespace: that of the first visible process, or this process's own where the first
/// one may not be inspected. In a separate pid namespace, [`sees_all_processes`] is false and nothing better is
/// known.
pub fn network_namespace() -> Option<NetworkNamespace> {
    let (first, own) = (Path::new("/proc/1/ns/net"), Path::new("/proc/self/ns/net"));
    let own_inode = inode(own);
    let (path, inode) = match inode(first) {
        Some(inode) => (first, inode),
        None => (own, own_inode?),
    };
    Some(NetworkNamespace {
        path: path.to_owned(),
        inode,
        is_own: own_inode == Some(inode),
    })
}

/// Returns whether this process sees all processes of the machine. The kernel shows a process only those of its own
/// pid namespace.
pub fn sees_all_processes() -> bool {
    inode(Path::new("/proc/self/ns/pid")).is_none_or(|inode| inode == INITIAL_PID_NAMESPACE)
}

/// Returns the inode number of the file, links followed.
fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
