//! Lists of objects as JSON: what a kubelet answers, and what `kubectl get -o json` prints.
//!
//! Each item becomes a fact as it is read, so that a list takes little more memory than its largest item and its facts.

use std::fmt;
use std::io::Read;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{KubeObject, Pod};
use crate::names::objects;
use crate::names::update::Object;
use crate::render::sanitize::one_line;

/// What a list's `kind` ends in: `PodList`, or `List` of anything.
const LIST: &str = "List";

/// A document that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Document {
    /// Its `kind`; empty when it has none.
    pub kind: String,
    /// What it tells.
    pub facts: Vec<Object>,
}

impl Document {
    /// Whether names can be had from such a document, though there be none in it.
    pub fn is_of_use(&self) -> bool {
        self.kind.ends_with(LIST) || !self.facts.is_empty()
    }
}

/// Reads one document: a list of objects, or an object. What stands behind it is left.
pub fn read(json: impl Read) -> serde_json::Result<Document> {
    from(&mut serde_json::Deserializer::from_reader(json))
}

/// Reads one document after the other, as they are parsed.
pub fn from<'de, R: serde_json::de::Read<'de>>(json: &mut serde_json::Deserializer<R>) -> serde_json::Result<Document> {
    json.deserialize_any(Top)
}

/// A whole document.
struct Top;

/// Its parts but for a list's items: small in a list, the object itself otherwise.
#[derive(Default, Serialize)]
struct Parts {
    #[serde(skip)]
    kind: Option<String>,
    metadata: Option<Box<RawValue>>,
    spec: Option<Box<RawValue>>,
    status: Option<Box<RawValue>>,
    endpoints: Option<Box<RawValue>>,
    ports: Option<Box<RawValue>>,
    subsets: Option<Box<RawValue>>,
}

impl<'de> Visitor<'de> for Top {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects of Kubernetes")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut parts = Parts::default();
        let mut facts = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "kind" => parts.kind = map.next_value()?,
                "items" => facts = Some(map.next_value_seed(Items { of: &parts.kind })?),
                "metadata" => parts.metadata = map.next_value()?,
                "spec" => parts.spec = map.next_value()?,
                "status" => parts.status = map.next_value()?,
                "endpoints" => parts.endpoints = map.next_value()?,
                "ports" => parts.ports = map.next_value()?,
                "subsets" => parts.subsets = map.next_value()?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        let kind = parts.kind.clone().unwrap_or_default();
        let facts = match facts {
            Some(facts) => facts,
            None if kind.ends_with(LIST) => Vec::new(),
            None => serde_json::to_string(&parts)
                .and_then(|json| objects::fact(&kind, &json))
                .map_err(de::Error::custom)?
                .into_iter()
                .collect(),
        };
        Ok(Document { kind, facts })
    }
}

/// The items of a list of this kind.
struct Items<'a> {
    of: &'a Option<String>,
}

/// Which object this is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Which {
    kind: Option<String>,
    metadata: Option<WhichName>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WhichName {
    namespace: Option<String>,
    name: Option<String>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Object>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Object>, D::Error> {
        // A kubelet that starts answers null.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Object>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of items")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Vec<Object>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<Object>, A::Error> {
        // Items have no kind of their own in what a server answers, and there the list's comes first.
        let of_list = self.of.as_deref().and_then(|kind| kind.strip_suffix(LIST));
        let mut facts = Vec::new();
        let mut number = 0_u64;
        while let Some(json) = items.next_element::<Box<RawValue>>()? {
            number += 1;
            let json = json.get();
            let fact = serde_json::from_str::<Which>(json).and_then(|which| {
                let kind = which.kind.as_deref().or(of_list).filter(|kind| !kind.is_empty());
                objects::fact(kind.unwrap_or(Pod::KIND), json)
            });
            match fact {
                Ok(fact) => facts.extend(fact),
                Err(error) => return Err(de::Error::custom(format!("{} {error}", name(number, json)))),
            }
        }
        Ok(facts)
    }
}

/// Tells an item by its place and, where it has one, its name.
fn name(number: u64, json: &str) -> String {
    let metadata = serde_json::from_str::<Which>(json)
        .ok()
        .and_then(|which| which.metadata);
    match metadata.and_then(|metadata| Some((metadata.namespace.unwrap_or_default(), metadata.name?))) {
        Some((namespace, name)) => format!("item {number} ({}/{}):", one_line(&namespace), one_line(&name)),
        None => format!("item {number}:"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::update::Owner;

    fn names(document: &Document) -> Vec<String> {
        let name = |fact: &Object| match fact {
            Object::Pod(pod) => format!("pod {}", pod.name),
            Object::Service(service) => format!("service {}", service.name),
            other => format!("{other:?}"),
        };
        document.facts.iter().map(name).collect()
    }

    #[test]
    fn lists_of_every_shape() {
        let cases: [(&str, &str, &[&str]); 9] = [
            (
                "as a kubelet answers",
                r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":[{"metadata":{"name":"a"}}]}"#,
                &["pod a"],
            ),
            (
                "as a kubelet that starts answers",
                r#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":null}"#,
                &[],
            ),
            ("without items", r#"{"kind":"PodList"}"#, &[]),
            (
                "as kubectl prints it",
                r#"{"apiVersion":"v1","items":[{"kind":"Pod","metadata":{"name":"a"}},
                    {"kind":"Service","metadata":{"name":"b"}},{"kind":"Deployment","metadata":{"name":"c"}}],
                    "kind":"List","metadata":{"resourceVersion":""}}"#,
                &["pod a", "service b"],
            ),
            (
                "of Services",
                r#"{"kind":"ServiceList","items":[{"metadata":{"name":"b"}}]}"#,
                &["service b"],
            ),
            (
                "of what naming does not need",
                r#"{"kind":"SecretList","items":[{"metadata":{"name":"b"}}]}"#,
                &[],
            ),
            (
                "a kind behind the items",
                r#"{"items":[{"metadata":{"name":"a"}}],"kind":"PodList"}"#,
                &["pod a"],
            ),
            (
                "an object alone",
                r#"{"apiVersion":"v1","metadata":{"name":"a"},"spec":{},"kind":"Pod"}"#,
                &["pod a"],
            ),
            ("fields of no use", r#"{"kind":"PodList","x":[[{}]],"items":[]}"#, &[]),
        ];
        for (name, json, expected) in cases {
            let document = read(json.as_bytes()).unwrap();
            assert_eq!(names(&document), expected, "{name}");
            assert!(document.is_of_use(), "{name}");
        }
    }

    #[test]
    fn what_is_no_list_is_told_where_it_goes_wrong() {
        let cases = [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("[]", "a list of objects of Kubernetes"),
            ("\"Unauthorized\"", "a list of objects of Kubernetes"),
            ("{\"kind\":\"PodList\",\n \"items\":[{\"metadata\":{}},]}", "at line 2"),
            (
                r#"{"kind":"PodList","items":[{},{"metadata":{"namespace":"shop","name":"web"},"spec":{"hostNetwork":7}}]}"#,
                "item 2 (shop/web): invalid type: integer `7`, expected a boolean",
            ),
            (r#"{"kind":"PodList","items":[{"metadata":7}]}"#, "item 1: invalid type"),
            (r#"{"kind":"PodList","items":{"a":1}}"#, "a list of items"),
            (r#"{"kind":7}"#, "invalid type: integer `7`, expected a string"),
        ];
        for (json, part) in cases {
            let error = read(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
        for json in ["{}", r#"{"kind":"Status","metadata":{},"status":"Failure"}"#] {
            assert!(!read(json.as_bytes()).unwrap().is_of_use(), "{json}");
        }
    }

    /// As real kubelets answered, without what nobody here reads.
    const STANDALONE: &str = include_str!("../../../../tests/data/pods/standalone.json");
    const REGISTERED: &str = include_str!("../../../../tests/data/pods/registered.json");
    const STARTING: &str = include_str!("../../../../tests/data/pods/starting.json");

    /// Name, owner, whether it is static, host network, address, whether it is terminal, containers that have run.
    type SourceUpdate<'a> = (&'a str, &'a str, bool, bool, &'a str, bool, usize);

    fn told(json: &str) -> Vec<String> {
        let facts = read(json.as_bytes()).unwrap().facts;
        let told = facts.iter().map(|fact| {
            let Object::Pod(pod) = fact else { panic!("{fact:?}") };
            let owner = match &pod.owner {
                Owner::By(owner) => format!("{}/{}", owner.kind, owner.name),
                other => format!("{other:?}"),
            };
            let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
            let told: SourceUpdate<'_> = (
                &pod.name,
                &owner,
                pod.static_uid.as_ref() == Some(&pod.uid),
                pod.host_network == Some(true),
                &ips.join(" "),
                pod.terminal,
                pod.containers.iter().filter(|container| container.id.is_some()).count(),
            );
            format!("{told:?}")
        });
        told.collect()
    }

    #[test]
    fn what_real_kubelets_answer() {
        let standalone: [SourceUpdate<'_>; 6] = [
            ("crashy-vm", "Nobody", true, false, "10.244.77.44", false, 1),
            ("job-vm", "Nobody", true, false, "10.244.77.42", true, 1),
            ("noimage-vm", "Nobody", true, false, "10.244.77.45", false, 0),
            ("hostnet-vm", "Nobody", true, true, "", false, 1),
            ("client-vm", "Nobody", true, false, "10.244.77.46", false, 2),
            ("web-vm", "Nobody", true, false, "10.244.77.43", false, 2),
        ];
        assert_eq!(told(STANDALONE), standalone.map(|told| format!("{told:?}")));
        let registered: [SourceUpdate<'_>; 13] = [
            ("bare", "Nobody", false, false, "10.244.77.57", false, 1),
            ("crashy-vm", "Nobody", true, false, "10.244.77.51", false, 1),
            ("job-vm", "Nobody", true, false, "10.244.77.48", true, 1),
            ("noimage-vm", "Nobody", true, false, "10.244.77.47", false, 0),
            ("agent-ljb97", "DaemonSet/agent", false, true, "192.0.2.2", false, 1),
            ("hostnet-vm", "Nobody", true, true, "192.0.2.2", false, 1),
            (
                "client-6cdf64b9f5-txsmw",
                "ReplicaSet/client-6cdf64b9f5",
                false,
                false,
                "10.244.77.54",
                false,
                1,
            ),
            ("client-vm", "Nobody", true, false, "10.244.77.49", false, 2),
            ("db-0", "StatefulSet/db", false, false, "10.244.77.55", false, 1),
            ("once-fnbb2", "Job/once", false, false, "10.244.77.56", true, 1),
            (
                "web-9b9899d94-jsjxn",
                "ReplicaSet/web-9b9899d94",
                false,
                false,
                "10.244.77.52",
                false,
                1,
            ),
            (
                "web-9b9899d94-vpbnr",
                "ReplicaSet/web-9b9899d94",
                false,
                false,
                "10.244.77.53",
                false,
                1,
            ),
            ("web-vm", "Nobody", true, false, "10.244.77.50", false, 2),
        ];
        assert_eq!(told(REGISTERED), registered.map(|told| format!("{told:?}")));
        assert_eq!(told(STARTING), [""; 0]);
    }

    #[test]
    fn depth_is_no_danger() {
        let deep = format!(r#"{{"kind":"PodList","items":[{}"#, "[".repeat(1 << 20));
        assert!(read(deep.as_bytes()).is_err());
    }

    #[test]
    fn strange_names_arrive_as_they_are() {
        let json = r#"{"kind":"PodList","items":[{"metadata":{"name":"a\n\"\u001b[31m\u2028"}}]}"#;
        assert_eq!(names(&read(json.as_bytes()).unwrap()), ["pod a\n\"\u{1b}[31m\u{2028}"]);
    }
}
