//! Kubernetes names for records: pods, workloads, Services, nodes and containers.
//!
//! ```text
//! sources ── SourceUpdate ──▶ store ──▶ annotate ──▶ records with names
//!                                          ▲
//! local (cgroups, network namespaces), conntrack
//! ```
//!
//! [`sources`] read Kubernetes objects from the container runtime, the kubelet, the API server and files. [`store`]
//! merges their updates and is pure. [`local`] and [`conntrack`] read the facts that this node's kernel vouches for.
//! [`Annotator`] joins them for a live trace; [`offline`] adds names to a capture.

#[cfg(target_os = "linux")]
mod annotate;
#[cfg(target_os = "linux")]
pub mod conntrack;
#[doc(hidden)]
pub mod fixture;
pub mod local;
pub mod objects;
pub mod offline;
pub mod pending;
#[cfg(unix)]
pub mod sources;
pub mod store;
pub mod update;

#[cfg(target_os = "linux")]
pub use annotate::Annotator;
