//! The cached result of a look-up of a Service.

use std::net::IpAddr;

use super::reports::SourceSet;
use crate::record::ServiceMatch;

/// The result of a look-up that is remembered for a port of a pod, until a Service of the pod's namespace changes, or an
/// endpoint at the pod's address.
#[derive(Clone, Debug)]
pub struct CachedMatch {
    /// The port of the pod.
    pub port: u16,
    pub(super) ip: IpAddr,
    pub(super) allowed: SourceSet,
    /// The last change of the endpoints at the address, and of the namespace's selectors: number and time.
    pub(super) changed: [(u32, i64); 2],
    pub(super) found: Option<ServiceMatch>,
}
