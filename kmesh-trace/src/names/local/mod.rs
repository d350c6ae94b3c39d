//! Which pod and container a local socket belongs to, by what this node's kernel vouches for.

pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod cgroup_tree;
#[cfg(target_os = "linux")]
pub mod netns;
#[cfg(target_os = "linux")]
pub mod node;

#[cfg(target_os = "linux")]
pub use cgroup_tree::CgroupTree;
#[cfg(target_os = "linux")]
pub use netns::PodNamespaces;

/// The answer to a question about this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// The answer; `None` if nobody.
    Known(Option<T>),
    /// The answer is on its way.
    Pending,
}
