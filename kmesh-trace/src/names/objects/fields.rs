//! The fields of Kubernetes objects that naming needs. The scanner drops every other field as it reads.

/// The members of an object that are needed; all other members are dropped.
pub struct Fields(pub &'static [(&'static str, Field)]);

/// A member that is needed.
pub enum Field {
    /// The value as it is.
    Value,
    /// Some members of an object, or of each object in an array.
    Object(&'static Fields),
}

impl Fields {
    /// Returns the field of this name.
    pub fn get(&self, name: &[u8]) -> Option<&'static Field> {
        let (_, field) = self.0.iter().find(|(field, _)| field.as_bytes() == name)?;
        Some(field)
    }
}

use Field::{Object, Value};

/// An object of any kind, or a list of objects.
pub static OBJECT: Fields = Fields(&[
    ("kind", Value),
    ("metadata", Object(&METADATA)),
    ("spec", Object(&SPEC)),
    ("status", Object(&STATUS)),
    // EndpointSlice
    ("endpoints", Object(&ENDPOINT)),
    ("ports", Object(&PORT)),
    // Endpoints
    ("subsets", Object(&SUBSET)),
    // Status
    ("message", Value),
    ("reason", Value),
    ("code", Value),
]);

/// An event of a watch.
pub static EVENT: Fields = Fields(&[("type", Value), ("object", Object(&OBJECT))]);

static METADATA: Fields = Fields(&[
    ("namespace", Value),
    ("name", Value),
    ("uid", Value),
    ("resourceVersion", Value),
    ("continue", Value),
    ("creationTimestamp", Value),
    ("labels", Value),
    ("annotations", Object(&ANNOTATIONS)),
    ("ownerReferences", Object(&OWNER)),
]);

static ANNOTATIONS: Fields = Fields(&[
    ("kubernetes.io/config.source", Value),
    ("kubernetes.io/config.hash", Value),
    ("kubernetes.io/config.mirror", Value),
]);

static OWNER: Fields = Fields(&[("kind", Value), ("name", Value), ("uid", Value), ("controller", Value)]);

static SPEC: Fields = Fields(&[
    // Pod
    ("nodeName", Value),
    ("hostNetwork", Value),
    ("serviceAccountName", Value),
    ("initContainers", Object(&CONTAINER)),
    ("containers", Object(&CONTAINER)),
    ("ephemeralContainers", Object(&CONTAINER)),
    // Service
    ("type", Value),
    ("clusterIP", Value),
    ("clusterIPs", Value),
    ("externalIPs", Value),
    ("selector", Value),
    ("ports", Object(&PORT)),
]);

static CONTAINER: Fields = Fields(&[("name", Value), ("restartPolicy", Value), ("ports", Object(&PORT))]);

static PORT: Fields = Fields(&[
    ("name", Value),
    ("protocol", Value),
    ("port", Value),
    ("containerPort", Value),
    ("targetPort", Value),
    ("nodePort", Value),
]);

static STATUS: Fields = Fields(&[
    // Pod
    ("phase", Value),
    ("startTime", Value),
    ("podIP", Value),
    ("podIPs", Object(&IP)),
    ("initContainerStatuses", Object(&CONTAINER_STATUS)),
    ("containerStatuses", Object(&CONTAINER_STATUS)),
    ("ephemeralContainerStatuses", Object(&CONTAINER_STATUS)),
    // Service
    ("loadBalancer", Object(&LOAD_BALANCER)),
    // Node
    ("addresses", Object(&NODE_ADDRESS)),
]);

static CONTAINER_STATUS: Fields = Fields(&[("name", Value), ("containerID", Value)]);
static LOAD_BALANCER: Fields = Fields(&[("ingress", Object(&IP))]);
static NODE_ADDRESS: Fields = Fields(&[("address", Value)]);
static IP: Fields = Fields(&[("ip", Value)]);
static ENDPOINT: Fields = Fields(&[("addresses", Value)]);
static SUBSET: Fields = Fields(&[
    ("addresses", Object(&IP)),
    ("notReadyAddresses", Object(&IP)),
    ("ports", Object(&PORT)),
]);
