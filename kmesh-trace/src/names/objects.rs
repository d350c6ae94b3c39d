//! Parses Kubernetes objects: the JSON of kubelets, API servers and files becomes the [`Object`]s of the store.
//!
//! Any field may be absent or null: versions differ, and so do a kubelet, an API server and a file. Everything that is kept of
//! one object is bounded.

mod controllers;
mod endpoints;
mod fields;
pub mod file;
mod nodes;
pub mod object_list;
mod pods;
mod scan;
mod services;

pub use self::pods::static_uid_by_kubelet;

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use chrono::DateTime;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};

use crate::names::update::{ControllerRef, Key, Kind, Object};
use crate::record::WallTime;

/// The largest total of a pod's labels, or of a Service's selector, in bytes of memory.
pub const MAX_LABEL_BYTES: usize = 64 << 10;
/// What a label takes besides its text, in bytes.
const LABEL_OVERHEAD: usize = 64;

/// Who wrote the objects. It decides which annotations prove anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A kubelet. It overwrites the annotation `kubernetes.io/config.source` of every pod.
    Kubelet,
    /// An API server, or a file that was saved from one. Users choose the annotations.
    ApiServer,
}

/// `metadata`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<String>,
    labels: Option<Labels>,
    annotations: Option<Annotations>,
    owner_references: List<OwnerReference, 32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.source")]
    config_source: Option<String>,
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    config_mirror: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OwnerReference {
    kind: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    controller: Option<bool>,
}

impl Meta {
    fn namespaced_name(&self) -> (String, String) {
        (text(&self.namespace), text(&self.name))
    }

    fn controller(&self) -> Option<ControllerRef> {
        let owners = &self.owner_references.0;
        let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
        Some(ControllerRef {
            kind: text(&owner.kind),
            name: text(&owner.name),
            uid: text(&owner.uid),
        })
    }
}

/// The metadata of an object of which nothing else is known.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Identity {
    metadata: Option<Meta>,
}

impl Identity {
    fn of(json: &[u8]) -> Meta {
        let identity = serde_json::from_slice::<Self>(json).unwrap_or_default();
        identity.metadata.unwrap_or_default()
    }
}

/// The first `MAX` elements of a list; null is an empty list.
#[derive(Clone, Debug)]
struct List<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Elements::<T, MAX>(PhantomData)).map(Self)
    }
}

struct Elements<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while elements.len() < MAX {
            match seq.next_element()? {
                Some(element) => elements.push(element),
                None => return Ok(elements),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(elements)
    }
}

/// Labels, or a selector; `None` when they are too large, or no labels at all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Labels(Option<Vec<(String, String)>>);

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Pairs).map(Self)
    }
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Option<Vec<(String, String)>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut labels = BoundedLabels::default();
        while let Some((key, value)) = map.next_entry::<String, Option<String>>()? {
            labels.push(key, value.unwrap_or_default());
        }
        Ok(labels.finish())
    }

    /// The scanner's mark of a value that is too large.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// Collects labels up to [`MAX_LABEL_BYTES`].
#[derive(Default)]
pub struct BoundedLabels {
    labels: Vec<(String, String)>,
    bytes: usize,
}

impl BoundedLabels {
    /// Adds a label.
    pub fn push(&mut self, key: String, value: String) {
        self.bytes += key.len() + value.len() + LABEL_OVERHEAD;
        if self.bytes > MAX_LABEL_BYTES {
            self.labels = Vec::new();
        } else {
            self.labels.push((key, value));
        }
    }

    /// Returns the labels in the order of their keys; `None` when they exceed the limit.
    pub fn finish(mut self) -> Option<Vec<(String, String)>> {
        self.labels.sort_unstable();
        (self.bytes <= MAX_LABEL_BYTES).then_some(self.labels)
    }
}

fn text(text: &Option<String>) -> String {
    text.clone().unwrap_or_default()
}

/// Parses an address. IPv4-mapped IPv6 is IPv4.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn time(text: &str) -> Option<WallTime> {
    DateTime::parse_from_rfc3339(text)
        .ok()?
        .timestamp_nanos_opt()
        .map(WallTime)
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.is_empty() || protocol == "TCP")
}

/// An address, as pods, load balancers and Endpoints have them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ip {
    ip: Option<String>,
}

/// An object that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// A field has another type than Kubernetes gives it.
    #[error("it has a field of the wrong type")]
    WrongType,
    /// It has no name or no UID.
    #[error("it has no name or no UID")]
    NoIdentity,
}

/// Parses an object of this kind; `None` for a kind that naming does not need.
pub fn parse(kind: &str, json: &[u8], writer: Writer) -> Result<Option<Object>, ObjectError> {
    fn of<T: DeserializeOwned>(json: &[u8], object: impl FnOnce(T) -> Option<Object>) -> Result<Object, ObjectError> {
        let parsed = serde_json::from_slice(json).map_err(|_| ObjectError::WrongType)?;
        object(parsed).ok_or(ObjectError::WrongType)
    }
    let object = match kind {
        "Pod" => of(json, |pod: pods::Pod| Some(pod.object(writer)))?,
        "Service" => of(json, services::Service::object)?,
        "EndpointSlice" => of(json, |slice: endpoints::EndpointSlice| Some(slice.object()))?,
        "Endpoints" => of(json, |endpoints: endpoints::Endpoints| Some(endpoints.object()))?,
        "ReplicaSet" => of(json, |one: controllers::Controller| Some(one.object(Kind::ReplicaSets)))?,
        "Job" => of(json, |one: controllers::Controller| Some(one.object(Kind::Jobs)))?,
        "Node" => of(json, |node: nodes::Node| Some(node.object()))?,
        _ => return Ok(None),
    };
    let is_known = match key(&object) {
        Key::Pod(uid) | Key::Controller(uid) => !uid.is_empty(),
        Key::Service(_, name) | Key::Endpoints(_, name) | Key::Node(name) => !name.is_empty(),
    };
    match is_known {
        true => Ok(Some(object)),
        false => Err(ObjectError::NoIdentity),
    }
}

/// Returns the identity of an object of this kind that cannot be used, as far as its metadata says it.
pub fn key_of_unusable(kind: Kind, json: &[u8]) -> Option<Key> {
    let meta = Identity::of(json);
    Some(match kind {
        Kind::Pods => Key::Pod(meta.uid?),
        Kind::ReplicaSets | Kind::Jobs => Key::Controller(meta.uid?),
        Kind::Services => Key::Service(meta.namespace?, meta.name?),
        Kind::Endpoints => Key::Endpoints(meta.namespace?, meta.name?),
        Kind::Nodes => Key::Node(meta.name?),
    })
}

/// Returns `metadata.resourceVersion`.
pub fn resource_version(json: &[u8]) -> Option<String> {
    Identity::of(json).resource_version
}

/// Returns the identity of an object.
pub fn key(object: &Object) -> Key {
    match object {
        Object::Pod(pod) => Key::Pod(pod.uid.clone()),
        Object::Service(service) => Key::Service(service.namespace.clone(), service.name.clone()),
        Object::Endpoints(endpoints) => Key::Endpoints(endpoints.namespace.clone(), endpoints.name.clone()),
        Object::Controller(controller) => Key::Controller(controller.uid.clone()),
        Object::Node(node) => Key::Node(node.name.clone()),
    }
}

/// Returns the kind of an object.
pub fn kind(object: &Object) -> Kind {
    match object {
        Object::Pod(_) => Kind::Pods,
        Object::Service(_) => Kind::Services,
        Object::Endpoints(_) => Kind::Endpoints,
        Object::Controller(controller) => controller.kind,
        Object::Node(_) => Kind::Nodes,
    }
}

#[cfg(test)]
fn parsed(kind: &str, json: &str) -> Object {
    parse(kind, json.as_bytes(), Writer::ApiServer).unwrap().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::update::PodObject;

    fn pod(json: &str) -> PodObject {
        match parsed("Pod", json) {
            Object::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    }

    fn with_labels(count: usize) -> String {
        let labels: Vec<_> = (0..count).map(|number| format!(r#""k{number}":"v""#)).collect();
        format!(
            r#"{{"metadata":{{"uid":"u","name":"web","labels":{{{}}}}}}}"#,
            labels.join(",")
        )
    }

    #[test]
    fn pod_with_too_many_labels_keeps_its_name() {
        assert_eq!(pod(&with_labels(100)).labels.unwrap().len(), 100);
        // 130,000 labels were 29 MiB of memory.
        for count in [2_000, 130_000] {
            let pod = pod(&with_labels(count));
            assert_eq!((&*pod.name, pod.labels), ("web", None), "{count}");
        }
    }

    #[test]
    fn objects_without_identity_are_refused() {
        for kind in ["Pod", "Service", "EndpointSlice", "ReplicaSet", "Job", "Node"] {
            assert_eq!(
                parse(kind, b"{}", Writer::Kubelet),
                Err(ObjectError::NoIdentity),
                "{kind}"
            );
        }
        assert_eq!(parse("Secret", b"{}", Writer::Kubelet), Ok(None));
    }

    #[test]
    fn unusable_object_still_has_an_identity() {
        let json = br#"{"metadata":{"uid":"u","namespace":"shop","name":"web","labels":[[]]},"spec":7}"#;
        assert_eq!(parse("Pod", json, Writer::Kubelet), Err(ObjectError::WrongType));
        assert_eq!(key_of_unusable(Kind::Pods, json), Some(Key::Pod("u".to_owned())));
        let service = Key::Service("shop".to_owned(), "web".to_owned());
        assert_eq!(key_of_unusable(Kind::Services, json), Some(service));
        assert_eq!(key_of_unusable(Kind::Nodes, b"{"), None);
    }

    #[test]
    fn lists_are_cut_at_their_limit() {
        let list: List<u8, 2> = serde_json::from_str("[1,2,3,\"x\"]").unwrap();
        assert_eq!(list.0, [1, 2]);
        let list: List<u8, 2> = serde_json::from_str("null").unwrap();
        assert!(list.0.is_empty());
        assert!(serde_json::from_str::<List<u8, 2>>("[\"x\"]").is_err());
    }
}
