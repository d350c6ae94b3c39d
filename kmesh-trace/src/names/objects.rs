//! Parses Kubernetes objects: the JSON of kubelets, API servers and files becomes the [`Object`]s of the store.
//!
//! Any field may be absent or null: versions differ, and so do a kubelet, an API server and a file. Everything that
//! is stored of one object is bounded.

mod endpoints;
pub mod file;
pub mod object_list;
mod pods;
mod scan;
mod services;

pub use self::pods::static_uid_by_kubelet;

use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;

use chrono::DateTime;
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::names::update::{ControllerObject, ControllerRef, Key, Kind, NodeObject, Object};
use crate::record::WallTime;

/// The largest total of a pod's labels, or of a Service's selector, in bytes of memory.
pub const MAX_LABEL_BYTES: usize = 64 << 10;
/// What a label takes besides its text, in bytes.
const LABEL_OVERHEAD: usize = 64;
/// The longest text of any other field, in bytes. Kubernetes limits names to 253, but not the names in owner
/// references.
const MAX_TEXT: usize = 4 << 10;

/// Who wrote the objects. It decides which annotations prove anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// A kubelet. It overwrites the annotation `kubernetes.io/config.source` of every pod.
    Kubelet,
    /// An API server, or a file that was saved from one. Users choose the annotations.
    ApiServer,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    namespace: Text,
    name: Text,
    uid: Text,
    creation_timestamp: Text,
    labels: LabelMap,
    annotations: Option<Annotations>,
    owner_references: Bounded<OwnerReference, 32>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "kubernetes.io/config.source")]
    config_source: Text,
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Text,
    #[serde(rename = "kubernetes.io/config.mirror")]
    config_mirror: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct OwnerReference {
    kind: Text,
    name: Text,
    uid: Text,
    controller: Option<bool>,
}

impl Meta {
    /// Returns the controlling owner.
    fn controller(&mut self) -> Option<ControllerRef> {
        let owners = std::mem::take(&mut self.owner_references.0);
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true))?;
        Some(ControllerRef {
            kind: owner.kind.0,
            name: owner.name.0,
            uid: owner.uid.0,
        })
    }
}

/// The identity of an object whose other fields are invalid.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ObjectIdentity {
    namespace: Text,
    name: Text,
    uid: Text,
    resource_version: Text,
}

impl ObjectIdentity {
    fn of(json: &[u8]) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct OnlyIdentity {
            metadata: Option<ObjectIdentity>,
        }
        let parsed: OnlyIdentity = serde_json::from_slice(json).unwrap_or_default();
        parsed.metadata.unwrap_or_default()
    }
}

/// A ReplicaSet or a Job.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawController {
    metadata: Option<Meta>,
}

impl RawController {
    fn object(self, kind: Kind) -> ControllerObject {
        let mut meta = self.metadata.unwrap_or_default();
        ControllerObject {
            kind,
            owner: meta.controller(),
            uid: meta.uid.0,
            namespace: meta.namespace.0,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNode {
    metadata: Option<Meta>,
    status: Option<NodeStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Bounded<NodeAddress, 64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    address: Text,
}

impl RawNode {
    fn object(self) -> NodeObject {
        let addresses = self.status.unwrap_or_default().addresses.0;
        NodeObject {
            name: self.metadata.unwrap_or_default().name.0,
            ips: addresses.iter().filter_map(|one| ip(&one.address.0)).collect(),
        }
    }
}

/// A text of at most [`MAX_TEXT`] bytes; null is the empty text.
#[derive(Clone, Default)]
struct Text(String);

impl Text {
    fn non_empty(self) -> Option<String> {
        Some(self.0).filter(|text| !text.is_empty())
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(from)?.unwrap_or_default();
        match text.len() <= MAX_TEXT {
            true => Ok(Self(text)),
            false => Err(de::Error::custom("text too long")),
        }
    }
}

/// The first `MAX` elements of a list; null is an empty list.
struct Bounded<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(BoundedVisitor::<T, MAX>(PhantomData))
    }
}

struct BoundedVisitor<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedVisitor<T, MAX> {
    type Value = Bounded<T, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(Bounded::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut elements = Vec::new();
        while elements.len() < MAX {
            match seq.next_element()? {
                Some(element) => elements.push(element),
                None => return Ok(Bounded(elements)),
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Bounded(elements))
    }
}

/// LabelMap, or a selector, in the order of their keys; `None` when they exceed [`MAX_LABEL_BYTES`].
struct LabelMap(Option<Vec<(String, String)>>);

impl Default for LabelMap {
    fn default() -> Self {
        Self(Some(Vec::new()))
    }
}

impl<'de> Deserialize<'de> for LabelMap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(LabelMapVisitor)
    }
}

struct LabelMapVisitor;

impl<'de> Visitor<'de> for LabelMapVisitor {
    type Value = LabelMap;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels")
    }

    fn visit_unit<E: de::Error>(self) -> Result<LabelMap, E> {
        Ok(LabelMap::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LabelMap, A::Error> {
        let mut labels = BoundedLabels::default();
        while let Some((key, value)) = map.next_entry::<String, Option<String>>()? {
            labels.push(key, value.unwrap_or_default());
        }
        Ok(LabelMap(labels.finish()))
    }
}

/// Collects labels up to [`MAX_LABEL_BYTES`].
#[derive(Default)]
pub struct BoundedLabels {
    labels: Vec<(String, String)>,
    bytes: usize,
}

impl BoundedLabels {
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

/// An address, as pods, load balancers and Endpoints have them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Ip {
    ip: Text,
}

/// Parses an address. IPv4-mapped IPv6 is IPv4.
fn ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

fn time(text: &str) -> Option<WallTime> {
    let time = DateTime::parse_from_rfc3339(text).ok()?;
    time.timestamp_nanos_opt().map(WallTime)
}

fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}

fn is_tcp(protocol: &Text) -> bool {
    matches!(&*protocol.0, "" | "TCP")
}

/// An object that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    #[error("it is not valid JSON")]
    Syntax,
    #[error("it has a field of the wrong type")]
    WrongType,
    #[error("it has no name or no UID")]
    NoIdentity,
}

/// Parses an object of this kind; `None` for a kind that naming does not need.
pub fn parse(kind: &str, json: &[u8], writer: Writer) -> Result<Option<Object>, ObjectError> {
    fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, ObjectError> {
        serde_json::from_slice(json).map_err(|error| match error.is_data() {
            true => ObjectError::WrongType,
            false => ObjectError::Syntax,
        })
    }
    let object = match kind {
        "Pod" => Object::Pod(read::<pods::RawPod>(json)?.object(writer)),
        "Service" => Object::Service(
            read::<services::RawService>(json)?
                .object()
                .ok_or(ObjectError::WrongType)?,
        ),
        "EndpointSlice" => Object::Endpoints(read::<endpoints::EndpointSlice>(json)?.object()),
        "Endpoints" => Object::Endpoints(read::<endpoints::Endpoints>(json)?.object()),
        "ReplicaSet" => Object::Controller(read::<RawController>(json)?.object(Kind::ReplicaSets)),
        "Job" => Object::Controller(read::<RawController>(json)?.object(Kind::Jobs)),
        "Node" => Object::Node(read::<RawNode>(json)?.object()),
        _ => return Ok(None),
    };
    let has_identity = match object.key() {
        Key::Pod(uid) | Key::Controller(uid) => !uid.is_empty(),
        Key::Service(_, name) | Key::Endpoints(_, name) | Key::Node(name) => !name.is_empty(),
    };
    match has_identity {
        true => Ok(Some(object)),
        false => Err(ObjectError::NoIdentity),
    }
}

/// Returns the identity of an object of this kind that cannot be used, if its metadata has one.
pub fn key_of_unusable(kind: Kind, json: &[u8]) -> Option<Key> {
    let ObjectIdentity {
        namespace, name, uid, ..
    } = ObjectIdentity::of(json);
    Some(match kind {
        Kind::Pods => Key::Pod(uid.non_empty()?),
        Kind::ReplicaSets | Kind::Jobs => Key::Controller(uid.non_empty()?),
        Kind::Services => Key::Service(namespace.0, name.non_empty()?),
        Kind::Endpoints => Key::Endpoints(namespace.0, name.non_empty()?),
        Kind::Nodes => Key::Node(name.non_empty()?),
    })
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
        let labels = labels.join(",");
        format!(r#"{{"metadata":{{"uid":"u","name":"web","labels":{{{labels}}}}}}}"#)
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
    fn objects_that_cannot_be_used_are_refused() {
        use ObjectError::{NoIdentity, Syntax, WrongType};
        let parse = |kind, json: &str| parse(kind, json.as_bytes(), Writer::Kubelet);
        for kind in [
            "Pod",
            "Service",
            "EndpointSlice",
            "Endpoints",
            "ReplicaSet",
            "Job",
            "Node",
        ] {
            assert_eq!(parse(kind, "{}"), Err(NoIdentity), "{kind}");
        }
        assert_eq!(parse("Secret", "{}"), Ok(None));
        assert_eq!(parse("Pod", "{\"metadata\" 7}"), Err(Syntax));
        // A user chooses the names in owner references.
        let owned = |length| {
            let name = "n".repeat(length);
            format!(r#"{{"metadata":{{"uid":"u","name":"web","ownerReferences":[{{"name":"{name}"}}]}}}}"#)
        };
        assert!(parse("Pod", &owned(MAX_TEXT)).is_ok());
        assert_eq!(parse("Pod", &owned(MAX_TEXT + 1)), Err(WrongType));
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
        let list = serde_json::from_str::<Bounded<u8, 2>>;
        assert_eq!(list("[1,2,3,\"x\"]").unwrap().0, [1, 2]);
        assert!(list("null").unwrap().0.is_empty());
        assert!(list("[\"x\"]").is_err());
    }

    #[test]
    fn controller_has_its_controlling_owner() {
        let reference = r#"{"kind":"Deployment","name":"web","uid":"d1","controller":true}"#;
        let owner = ControllerRef {
            kind: "Deployment".to_owned(),
            name: "web".to_owned(),
            uid: "d1".to_owned(),
        };
        for (name, kind) in [("ReplicaSet", Kind::ReplicaSets), ("Job", Kind::Jobs)] {
            for (references, owner) in [(reference, Some(owner.clone())), ("", None)] {
                let json = format!(r#"{{"metadata":{{"uid":"r1","ownerReferences":[{references}]}}}}"#);
                let expected = ControllerObject {
                    kind,
                    namespace: String::new(),
                    uid: "r1".to_owned(),
                    owner,
                };
                assert_eq!(parsed(name, &json), Object::Controller(expected));
            }
        }
    }

    #[test]
    fn host_names_of_nodes_are_no_addresses() {
        let node = r#"{"metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.2"},
            {"type":"Hostname","address":"n1"},{"address":null}]}}"#;
        let expected = Object::Node(NodeObject {
            name: "n1".to_owned(),
            ips: vec!["192.0.2.2".parse().unwrap()],
        });
        assert_eq!(parsed("Node", node), expected);
    }
}
