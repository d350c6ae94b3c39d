//! Names for what a record has numbers of: pods, workloads, Services, nodes, containers.
//!
//! [`index`] has what sources tell ([`facts`]) and is pure, as are [`pods`], [`nodes`], [`service`], [`cgroup`] and [`waiting`].
//! What this node itself shows comes from [`cgroups`], [`procfs`] and [`conntrack`]. [`Enricher`] brings them together for
//! a live trace; [`afterwards`] names what a capture has left unnamed.

pub mod afterwards;
pub mod cgroup;
#[cfg(target_os = "linux")]
pub mod cgroups;
#[cfg(target_os = "linux")]
pub mod conntrack;
#[cfg(target_os = "linux")]
mod enricher;
pub mod facts;
pub mod file;
pub mod index;
pub mod list;
pub mod nodes;
pub mod objects;
pub mod pods;
#[cfg(target_os = "linux")]
pub mod procfs;
pub mod service;
pub mod shared;
#[cfg(target_os = "linux")]
pub mod sources;
#[doc(hidden)]
pub mod synthetic;
pub mod waiting;

#[cfg(target_os = "linux")]
pub use enricher::Enricher;
