//! Filters: which records a user wants to see.
//!
//! [`rule`] defines what a filter means, over finished records. [`kernel_filter`] derives from a filter what the eBPF
//! programs can decide earlier. [`KnownNames`] finds values that can match nothing.

pub mod kernel_filter;
mod known_names;
mod names;
pub mod rule;
mod selector;
mod values;

pub use kernel_filter::KernelFilter;
pub use known_names::KnownNames;
pub use names::{NamePattern, PodPattern, ServicePattern, WorkloadPattern};
pub use rule::{Ends, Filter, Selectors, Terms};
pub use selector::Selector;
pub use values::{CommPattern, ContainerPrefix, Network, Pid, PortRange, Term};
