//! Which pod and container a local socket belongs to, by what this node's kernel vouches for.

pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod cgroup_tree;
#[cfg(target_os = "linux")]
pub mod netns;

/// The owner of a cgroup or a network namespace, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// `None`: no pod or container owns it.
    Known(Option<T>),
    /// A thread is looking it up. It calls `on_change` when the answer is there.
    Pending,
}
