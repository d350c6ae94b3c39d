//! Which pod and container a local socket belongs to, by what this node's kernel vouches for.

pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod cgroup_tree;
#[cfg(target_os = "linux")]
pub mod netns;
