//! Which pod a network namespace is, learnt from the pods' own processes: for sockets whose cgroup says nothing.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cgroup;

/// Between walks over the processes, however many unknown namespaces turn up.
const WALKS: Duration = Duration::from_secs(1);
/// PodNamespaces remembered; then all are forgotten.
const MOST: usize = 10_000;

/// The network namespaces of this node.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The node's own.
    own: Option<u32>,
    /// Whose each is; none when it is no pod's, or of several.
    known: HashMap<u32, Option<Arc<str>>>,
    walked: Option<Instant>,
}

impl PodNamespaces {
    /// None is known yet.
    pub fn new() -> Self {
        // Where the first process may not be looked at, this one is taken to be in its namespace.
        let own = inode(Path::new("/proc/1/ns/net")).or_else(|| inode(Path::new("/proc/self/ns/net")));
        Self {
            own,
            known: HashMap::new(),
            walked: None,
        }
    }

    /// Whether it is the node's own, which pods with `hostNetwork` share.
    pub fn is_nodes(&self, netns: u32) -> bool {
        self.own == Some(netns)
    }

    /// The UID of the pod that this namespace is.
    pub fn pod_of(&mut self, netns: u32) -> super::Lookup<Arc<str>> {
        super::Lookup::Known(self.pod_(netns))
    }
    fn pod_(&mut self, netns: u32) -> Option<Arc<str>> {
        if self.is_nodes(netns) {
            return None;
        }
        if !self.known.contains_key(&netns) && self.walked.is_none_or(|walked| walked.elapsed() >= WALKS) {
            self.walk();
        }
        self.known.get(&netns)?.clone()
    }

    fn walk(&mut self) {
        if self.known.len() > MOST {
            self.known.clear();
        }
        let mut found: HashMap<u32, Option<Arc<str>>> = HashMap::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let is_process = process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit);
            let path = process.path();
            let Some(netns) = is_process.then(|| inode(&path.join("ns/net"))).flatten() else {
                continue;
            };
            if self.is_nodes(netns) {
                continue;
            }
            let Some(uid) = fs::read_to_string(path.join("cgroup"))
                .ok()
                .and_then(|cgroups| pod_of(&cgroups))
            else {
                continue;
            };
            let one = found.entry(netns).or_insert_with(|| Some(uid.clone()));
            if one.as_ref() != Some(&uid) {
                *one = None;
            }
        }
        self.known.extend(found);
        self.walked = Some(Instant::now());
    }
}

impl Default for PodNamespaces {
    fn default() -> Self {
        Self::new()
    }
}

/// The pod of a process, by its `/proc/PID/cgroup`: a line a hierarchy, the path behind the second colon.
fn pod_of(cgroups: &str) -> Option<Arc<str>> {
    let mut paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.find_map(|path| cgroup::pod_uids(path).next()).map(Arc::from)
}

fn inode(path: &Path) -> Option<u32> {
    fs::metadata(path).ok()?.ino().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_hierarchy_tells_the_pod() {
        let uid = "9d7c5fbe-11a2-4c3b-8f0e-0123456789ab";
        let cases = [
            (format!("12:memory:/kubepods/burstable/pod{uid}/abc\n0::/\n"), Some(uid)),
            (format!("0::/kubepods/pod{uid}/abc\n"), Some(uid)),
            (
                format!("9:name=systemd:/system.slice/containerd.service\n3:cpu,cpuacct:/kubepods/pod{uid}/a:b\n"),
                Some(uid),
            ),
            ("0::/system.slice/sshd.service\n".to_owned(), None),
            ("nonsense\n\n::\n".to_owned(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(pod_of(&text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn this_process_is_in_no_pod_and_its_namespace_may_be_the_nodes() {
        let mut namespaces = PodNamespaces::new();
        let own = namespaces.own.unwrap();
        assert!(namespaces.is_nodes(own));
        assert_eq!(namespaces.pod_of(own), None);
        assert_eq!(namespaces.pod_of(1), None, "there is none of that number");
    }
}
