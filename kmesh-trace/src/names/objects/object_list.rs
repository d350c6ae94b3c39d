//! Reads a stream of Kubernetes objects: an answer of a kubelet or an API server, a watch, or a file.

use std::collections::BTreeMap;

use super::fields::{EVENT, OBJECT};
use super::scan::{Found, Scanner};
use super::{ObjectError, Writer, key_of_unusable, parse, resource_version};
use crate::names::update::{Key, Kind, Object};
use crate::output::sanitize::one_line;
use serde::Deserialize;

pub use super::scan::ScanError;

/// The most bytes of an object's name in a message.
const MAX_NAME: usize = 80;

/// The objects of one stream that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Their number.
    pub count: u64,
    /// What is wrong with the first one.
    pub first: String,
}

impl LeftOut {
    fn add(&mut self, what: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = what();
        }
        self.count += 1;
    }

    fn object(&mut self, kind: &str, json: &[u8], error: ObjectError) {
        self.add(|| {
            let meta = super::Identity::of(json);
            let name = format!("{}/{}", super::text(&meta.namespace), super::text(&meta.name));
            let name: String = name.chars().take(MAX_NAME).collect();
            format!("{} {}: {error}", one_line(kind), one_line(&name))
        });
    }

    fn too_large(&mut self) {
        self.add(|| "one takes more than 1 MiB".to_owned());
    }

    /// Adds the objects that another stream has left out.
    pub fn merge(&mut self, other: Self) {
        if self.count == 0 {
            self.first = other.first;
        }
        self.count += other.count;
    }
}

/// The end of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// `kind`; empty when it has none.
    pub kind: String,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// `metadata.continue`: where the next page starts.
    pub next: Option<String>,
}

/// An answer that an API server gives in place of what was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// What is wrong.
    pub message: String,
    /// The same in one word.
    pub reason: String,
}

/// Reads objects and lists of objects.
pub struct ObjectReader {
    scanner: Scanner,
    writer: Writer,
    /// The objects that were left out.
    pub left_out: LeftOut,
    /// The last list that has ended.
    pub list: Option<ListMeta>,
    /// The number of objects of kinds that naming does not need, by kind.
    pub other_kinds: BTreeMap<String, u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListParts {
    metadata: Option<ListPartsMeta>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListPartsMeta {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

impl ObjectReader {
    /// Reads what this writer wrote. `default_kind` is the kind of objects where nothing else says it.
    pub fn new(writer: Writer, default_kind: Option<&'static str>) -> Self {
        Self {
            scanner: Scanner::new(&OBJECT, default_kind),
            writer,
            left_out: LeftOut::default(),
            list: None,
            other_kinds: BTreeMap::new(),
        }
    }

    /// Reads the next bytes, and passes on each object that is complete.
    pub fn feed(&mut self, bytes: &[u8], objects: &mut dyn FnMut(Object)) -> Result<(), ScanError> {
        let Self {
            scanner,
            writer,
            left_out,
            list,
            other_kinds,
        } = self;
        scanner.feed(bytes, &mut |found| match found {
            Found::Object { kind, json } => match parse(kind, json, *writer) {
                Ok(Some(object)) => objects(object),
                Ok(None) if other_kinds.len() < 16 || other_kinds.contains_key(kind) => {
                    *other_kinds.entry(kind.to_owned()).or_default() += 1;
                }
                Ok(None) => {}
                Err(error) => left_out.object(kind, json, error),
            },
            Found::List { kind, json } => {
                let meta = serde_json::from_slice::<ListParts>(json).unwrap_or_default();
                let meta = meta.metadata.unwrap_or_default();
                *list = Some(ListMeta {
                    kind: kind.to_owned(),
                    resource_version: meta.resource_version,
                    next: meta.r#continue.filter(|next| !next.is_empty()),
                });
            }
            Found::TooLarge => left_out.too_large(),
            Found::Unknown => left_out.add(|| "one has no kind".to_owned()),
        })
    }

    /// Ends the stream.
    pub fn finish(&self) -> Result<(), ScanError> {
        self.scanner.finish()
    }
}

/// An event of a watch.
#[expect(clippy::large_enum_variant, reason = "nearly all events are of the large kind")]
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The object exists and looks like this.
    Upsert(Object),
    /// The object is gone, or cannot be used any more.
    Delete(Key),
    /// Nothing else happened up to here.
    Bookmark,
    /// The watch has ended.
    Error(Status),
    /// An object changed that cannot be used, and nothing says which one.
    Unknown,
}

/// Reads the events of a watch.
pub struct EventReader {
    scanner: Scanner,
    kind: Kind,
    kind_name: &'static str,
    /// The objects that were left out.
    pub left_out: LeftOut,
    /// The resource version of the last event.
    pub version: Option<String>,
}

#[derive(Deserialize)]
struct EventParts<'a> {
    #[serde(rename = "type", borrow)]
    event_type: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

impl EventReader {
    /// Reads the events of objects of this kind, by its two names.
    pub fn new(kind: Kind, kind_name: &'static str) -> Self {
        Self {
            scanner: Scanner::new(&EVENT, Some("Event")),
            kind,
            kind_name,
            left_out: LeftOut::default(),
            version: None,
        }
    }

    /// Reads the next bytes, and passes on each event that is complete. `None` stands for an event that makes no sense.
    pub fn feed(&mut self, bytes: &[u8], events: &mut dyn FnMut(Option<Event>)) -> Result<(), ScanError> {
        let Self {
            scanner,
            kind,
            kind_name,
            left_out,
            version,
        } = self;
        scanner.feed(bytes, &mut |found| match found {
            Found::Object { json, .. } => {
                let event = serde_json::from_slice::<EventParts>(json).ok();
                events(event.and_then(|event| {
                    let json = event.object.get().as_bytes();
                    let read = read_event(&event.event_type, json, *kind, kind_name, left_out)?;
                    if !matches!(read, Event::Error(_)) {
                        *version = resource_version(json).or(version.take());
                    }
                    Some(read)
                }));
            }
            Found::TooLarge => {
                left_out.too_large();
                events(Some(Event::Unknown));
            }
            Found::List { .. } | Found::Unknown => events(None),
        })
    }
}

fn read_event(event_type: &str, json: &[u8], kind: Kind, kind_name: &str, left_out: &mut LeftOut) -> Option<Event> {
    let is_delete = match event_type {
        "ADDED" | "MODIFIED" => false,
        "DELETED" => true,
        "BOOKMARK" => return Some(Event::Bookmark),
        "ERROR" => return serde_json::from_slice(json).ok().map(Event::Error),
        _ => return None,
    };
    match parse(kind_name, json, Writer::ApiServer) {
        Ok(Some(object)) if is_delete => Some(Event::Delete(super::key(&object))),
        Ok(Some(object)) => Some(Event::Upsert(object)),
        Ok(None) => None,
        Err(error) => {
            left_out.object(kind_name, json, error);
            Some(key_of_unusable(kind, json).map_or(Event::Unknown, Event::Delete))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::update::Owner;

    fn read(json: &str, writer: Writer) -> (Vec<Object>, ObjectReader) {
        let mut reader = ObjectReader::new(writer, Some("Pod"));
        let mut objects = Vec::new();
        reader
            .feed(json.as_bytes(), &mut |object| objects.push(object))
            .unwrap();
        reader.finish().unwrap();
        (objects, reader)
    }

    /// Real answers of kubelets, without what nobody here reads.
    const STANDALONE: &str = include_str!("../../../../tests/data/pods/standalone.json");
    const REGISTERED: &str = include_str!("../../../../tests/data/pods/registered.json");
    const STARTING: &str = include_str!("../../../../tests/data/pods/starting.json");

    /// Name, owner, whether it is static, host network, address, whether it is terminal, containers that have run.
    type Row<'a> = (&'a str, &'a str, bool, bool, &'a str, bool, usize);

    fn rows(json: &str, writer: Writer) -> Vec<String> {
        let (objects, _) = read(json, writer);
        let rows = objects.iter().map(|object| {
            let Object::Pod(pod) = object else { panic!("{object:?}") };
            let owner = match &pod.owner {
                Owner::By(owner) => format!("{}/{}", owner.kind, owner.name),
                other => format!("{other:?}"),
            };
            let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
            let row: Row<'_> = (
                &pod.name,
                &owner,
                pod.static_uid.as_ref() == Some(&pod.uid),
                pod.host_network == Some(true),
                &ips.join(" "),
                pod.terminal,
                pod.containers.iter().filter(|container| container.id.is_some()).count(),
            );
            format!("{row:?}")
        });
        rows.collect()
    }

    #[test]
    fn answers_of_real_kubelets_are_read() {
        let standalone: [Row<'_>; 6] = [
            ("crashy-vm", "Nobody", true, false, "10.244.77.44", false, 1),
            ("job-vm", "Nobody", true, false, "10.244.77.42", true, 1),
            ("noimage-vm", "Nobody", true, false, "10.244.77.45", false, 0),
            ("hostnet-vm", "Nobody", true, true, "", false, 1),
            ("client-vm", "Nobody", true, false, "10.244.77.46", false, 2),
            ("web-vm", "Nobody", true, false, "10.244.77.43", false, 2),
        ];
        assert_eq!(
            rows(STANDALONE, Writer::Kubelet),
            standalone.map(|row| format!("{row:?}"))
        );
        let registered: [Row<'_>; 13] = [
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
        assert_eq!(
            rows(REGISTERED, Writer::Kubelet),
            registered.map(|row| format!("{row:?}"))
        );
        assert_eq!(rows(STARTING, Writer::Kubelet), [""; 0]);
        // The same text from an API server proves nothing: users write annotations there.
        assert!(
            rows(REGISTERED, Writer::ApiServer)
                .iter()
                .all(|row| !row.contains("true, true"))
        );
    }

    #[test]
    fn odd_item_costs_only_itself() {
        let json = r#"{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"next"},"items":[
            {"metadata":{"uid":"a","namespace":"shop","name":"odd\u001b[2J"},"spec":{"hostNetwork":7}},
            {"metadata":{"uid":"b","name":"a\n\"\u001b[31m\u2028"}},{},{"kind":"Secret"}]}"#;
        let (objects, reader) = read(json, Writer::Kubelet);
        let [Object::Pod(pod)] = &objects[..] else {
            panic!("{objects:?}")
        };
        assert_eq!(pod.name, "a\n\"\u{1b}[31m\u{2028}");
        let first = r"Pod shop/odd\u001b[2J: it has a field of the wrong type".to_owned();
        assert_eq!(reader.left_out, LeftOut { count: 2, first });
        assert_eq!(
            reader.other_kinds.into_iter().collect::<Vec<_>>(),
            [("Secret".to_owned(), 1)]
        );
        let list = reader.list.unwrap();
        assert_eq!(
            (&*list.kind, list.resource_version.as_deref(), list.next.as_deref()),
            ("PodList", Some("7"), Some("next"))
        );
    }

    fn events(text: &str) -> (Vec<Option<Event>>, EventReader) {
        let mut reader = EventReader::new(Kind::Pods, "Pod");
        let mut events = Vec::new();
        reader.feed(text.as_bytes(), &mut |event| events.push(event)).unwrap();
        (events, reader)
    }

    #[test]
    fn events_of_a_watch_are_read() {
        let (all, reader) = events(
            r#"{"type":"ADDED","object":{"metadata":{"uid":"a","name":"web","resourceVersion":"8"}}}
            {"object":{"metadata":{"uid":"c","name":"db","resourceVersion":"8"}},"type":"MODIFIED"}
            {"type":"DELETED","object":{"metadata":{"uid":"b","resourceVersion":"9"}}}
            {"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"10"},"spec":{"containers":null}}}
            {"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}"#,
        );
        let kinds: Vec<_> = all
            .iter()
            .map(|event| match event {
                Some(Event::Upsert(Object::Pod(pod))) => format!("upsert {}", pod.uid),
                Some(Event::Delete(Key::Pod(uid))) => format!("delete {uid}"),
                Some(Event::Bookmark) => "bookmark".to_owned(),
                Some(Event::Error(status)) => format!("error {}", status.code),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, ["upsert a", "upsert c", "delete b", "bookmark", "error 410"]);
        assert_eq!(reader.version.as_deref(), Some("10"));
    }

    #[test]
    fn event_of_an_object_that_cannot_be_used_removes_it() {
        let large = format!(
            r#"{{"type":"MODIFIED","object":{{"metadata":{{"uid":"c"}},"spec":{{"containers":[{}{{}}]}}}}}}"#,
            r#"{"name":"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"},"#.repeat(20_000)
        );
        let odd =
            r#"{"type":"MODIFIED","object":{"metadata":{"uid":"a","resourceVersion":"8"},"spec":{"hostNetwork":7}}}"#;
        let (all, reader) = events(&format!(
            "{odd}\n{large}\n{}",
            odd.replace("\"metadata\":{", "\"metadata\":7,\"x\":{")
        ));
        assert_eq!(
            all,
            [
                Some(Event::Delete(Key::Pod("a".to_owned()))),
                Some(Event::Unknown),
                Some(Event::Unknown)
            ]
        );
        assert_eq!((reader.left_out.count, reader.version.as_deref()), (3, Some("8")));
    }

    #[test]
    fn events_that_make_no_sense_are_none() {
        for text in [
            r#"{"type":"EXPLODED","object":{}}"#,
            r#"{"type":"BOOKMARK"}"#,
            r#"{"object":{}}"#,
            r#"{"type":7,"object":{}}"#,
            r#"{"items":[]}"#,
        ] {
            assert_eq!(events(text).0, [None], "{text}");
        }
    }
}
