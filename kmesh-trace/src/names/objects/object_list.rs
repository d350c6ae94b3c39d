//! Reads a stream of Kubernetes objects: an answer of a kubelet or an API server, a watch, or a file.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

pub use super::scan::ScanError;
use super::scan::{Found, MAX_OBJECT, Scanner};
use super::{ObjectError, ObjectIdentity, Writer, key_of_unusable, parse};
use crate::names::update::{Change, Kind, Object};
use crate::output::sanitize::one_line;

/// The longest name of an object in a message, in characters.
const MAX_NAME: usize = 80;

/// The objects of one stream that were left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
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
            let ObjectIdentity { namespace, name, .. } = ObjectIdentity::of(json);
            let name: String = format!("{}/{}", namespace.0, name.0).chars().take(MAX_NAME).collect();
            format!("{} {}: {error}", one_line(kind), one_line(&name))
        });
    }

    fn too_large(&mut self) {
        self.add(|| format!("one takes more than {} MiB", MAX_OBJECT >> 20));
    }
}

/// The metadata of a list that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListMeta {
    /// The list's own `kind`; empty when it has none.
    #[serde(skip)]
    pub kind: String,
    pub resource_version: Option<String>,
    /// Where the next page starts; empty or `None` on the last page.
    pub r#continue: Option<String>,
}

/// An answer that an API server gives in place of what was requested.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiStatus {
    /// The HTTP status, or 0.
    pub code: u16,
    pub message: String,
    /// What is wrong, in one word.
    pub reason: String,
}

pub struct ObjectReader {
    scanner: Scanner,
    writer: Writer,
    pub left_out: LeftOut,
    /// The last list that has ended.
    pub list: Option<ListMeta>,
    /// The number of objects of kinds that naming does not need.
    pub others: u64,
}

impl ObjectReader {
    /// Reads what this writer wrote. `default_kind` is the kind of objects without kind in lists without kind.
    pub fn new(writer: Writer, default_kind: Option<&'static str>) -> Self {
        Self {
            scanner: Scanner::new(default_kind),
            writer,
            left_out: LeftOut::default(),
            list: None,
            others: 0,
        }
    }

    /// Reads the next bytes, and passes on each object that is complete.
    pub fn feed(&mut self, bytes: &[u8], objects: &mut dyn FnMut(Object)) -> Result<(), ScanError> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct ListBody {
            metadata: Option<ListMeta>,
        }
        self.scanner.feed(bytes, &mut |found| match found {
            Found::Object { kind, json } => match parse(kind, json, self.writer) {
                Ok(Some(object)) => objects(object),
                Ok(None) => self.others += 1,
                Err(error) => self.left_out.object(kind, json, error),
            },
            Found::List { kind, json } => {
                let body: ListBody = serde_json::from_slice(json).unwrap_or_default();
                self.list = Some(ListMeta {
                    kind: kind.to_owned(),
                    ..body.metadata.unwrap_or_default()
                });
            }
            Found::TooLarge => self.left_out.too_large(),
            Found::Unknown => self.left_out.add(|| "one has no kind".to_owned()),
        })
    }

    /// Ends the stream. An object that is not complete is an error.
    pub fn finish(&self) -> Result<(), ScanError> {
        self.scanner.finish()
    }
}

/// An event of a watch.
#[expect(clippy::large_enum_variant, reason = "nearly all events are of the large kind")]
#[derive(Debug, PartialEq, Eq)]
pub enum WatchEvent {
    Change(Change),
    /// Nothing else happened up to here.
    Bookmark,
    /// An object changed that cannot be used or identified.
    Unknown,
}

/// An event that ends the watch.
#[derive(Debug, PartialEq, Eq)]
pub enum WatchError {
    /// The server reports an error.
    Status(ApiStatus),
    /// The server sends something else than an event; the position, if it is no JSON.
    NoEvent(Option<ScanError>),
}

pub struct EventReader {
    scanner: Scanner,
    kind: Kind,
    kind_name: &'static str,
    pub left_out: LeftOut,
    /// The resource version of the last event.
    pub version: Option<String>,
}

impl EventReader {
    /// Reads the events of objects of this kind, by its two names.
    pub fn new(kind: Kind, kind_name: &'static str) -> Self {
        Self {
            scanner: Scanner::new(Some("WatchEvent")),
            kind,
            kind_name,
            left_out: LeftOut::default(),
            version: None,
        }
    }

    /// Reads the next bytes, and passes on each event that is complete, up to one that ends the watch.
    pub fn feed(&mut self, bytes: &[u8], events: &mut dyn FnMut(WatchEvent)) -> Result<(), WatchError> {
        let mut end = None;
        let (kind, kind_name) = (self.kind, self.kind_name);
        let scanned = self.scanner.feed(bytes, &mut |found| {
            let event = match found {
                _ if end.is_some() => return,
                Found::Object { json, .. } => read_event(json, kind, kind_name, &mut self.left_out, &mut self.version),
                Found::TooLarge => {
                    self.left_out.too_large();
                    Ok(WatchEvent::Unknown)
                }
                Found::List { .. } | Found::Unknown => Err(WatchError::NoEvent(None)),
            };
            match event {
                Ok(event) => events(event),
                Err(error) => end = Some(error),
            }
        });
        match end {
            Some(error) => Err(error),
            None => scanned.map_err(|error| WatchError::NoEvent(Some(error))),
        }
    }
}

fn read_event(
    json: &[u8],
    kind: Kind,
    kind_name: &str,
    left_out: &mut LeftOut,
    version: &mut Option<String>,
) -> Result<WatchEvent, WatchError> {
    #[derive(Deserialize)]
    struct RawEvent<'a> {
        #[serde(rename = "type", borrow)]
        event_type: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let no_event = |_| WatchError::NoEvent(None);
    let event: RawEvent<'_> = serde_json::from_slice(json).map_err(no_event)?;
    let json = event.object.get().as_bytes();
    let is_delete = match &*event.event_type {
        "ADDED" | "MODIFIED" | "BOOKMARK" => false,
        "DELETED" => true,
        "ERROR" => return Err(WatchError::Status(serde_json::from_slice(json).map_err(no_event)?)),
        _ => return Err(WatchError::NoEvent(None)),
    };
    *version = ObjectIdentity::of(json).resource_version.non_empty().or(version.take());
    if event.event_type == "BOOKMARK" {
        return Ok(WatchEvent::Bookmark);
    }
    Ok(match parse(kind_name, json, Writer::ApiServer) {
        Ok(Some(object)) if is_delete => WatchEvent::Change(Change::Delete(object.key())),
        Ok(Some(object)) => WatchEvent::Change(Change::Upsert(object)),
        Ok(None) => return Err(WatchError::NoEvent(None)),
        Err(error) => {
            left_out.object(kind_name, json, error);
            let key = key_of_unusable(kind, json);
            key.map_or(WatchEvent::Unknown, |key| WatchEvent::Change(Change::Delete(key)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::update::{Key, Owner};

    fn read(json: &str, writer: Writer) -> (Vec<Object>, ObjectReader) {
        let mut reader = ObjectReader::new(writer, Some("Pod"));
        let mut objects = Vec::new();
        reader
            .feed(json.as_bytes(), &mut |object| objects.push(object))
            .unwrap();
        reader.finish().unwrap();
        (objects, reader)
    }

    /// Real answers of kubelets, without the fields that no test needs.
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
        const CLIENT: &str = "ReplicaSet/client-6cdf64b9f5";
        const WEB: &str = "ReplicaSet/web-9b9899d94";
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
                CLIENT,
                false,
                false,
                "10.244.77.54",
                false,
                1,
            ),
            ("client-vm", "Nobody", true, false, "10.244.77.49", false, 2),
            ("db-0", "StatefulSet/db", false, false, "10.244.77.55", false, 1),
            ("once-fnbb2", "Job/once", false, false, "10.244.77.56", true, 1),
            ("web-9b9899d94-jsjxn", WEB, false, false, "10.244.77.52", false, 1),
            ("web-9b9899d94-vpbnr", WEB, false, false, "10.244.77.53", false, 1),
            ("web-vm", "Nobody", true, false, "10.244.77.50", false, 2),
        ];
        let text = |rows: &[Row<'_>]| rows.iter().map(|row| format!("{row:?}")).collect::<Vec<_>>();
        assert_eq!(rows(STANDALONE, Writer::Kubelet), text(&standalone));
        assert_eq!(rows(REGISTERED, Writer::Kubelet), text(&registered));
        assert_eq!(rows(STARTING, Writer::Kubelet), [""; 0]);
        // The same text from an API server proves nothing: users write annotations there.
        let by_api_server = rows(REGISTERED, Writer::ApiServer);
        assert!(by_api_server.iter().all(|row| !row.contains("true, true")));
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
        assert_eq!(reader.others, 1);
        let expected = ListMeta {
            kind: "PodList".to_owned(),
            resource_version: Some("7".to_owned()),
            r#continue: Some("next".to_owned()),
        };
        assert_eq!(reader.list, Some(expected));
    }

    /// Returns the events as short texts. The last event ends the watch.
    fn events(text: &str) -> (Vec<String>, EventReader) {
        let mut reader = EventReader::new(Kind::Pods, "Pod");
        let mut events = Vec::new();
        let end = reader.feed(text.as_bytes(), &mut |event| {
            events.push(match event {
                WatchEvent::Change(Change::Upsert(Object::Pod(pod))) => format!("upsert {}", pod.uid),
                WatchEvent::Change(Change::Delete(Key::Pod(uid))) => format!("delete {uid}"),
                other => format!("{other:?}"),
            });
        });
        events.extend(end.err().map(|error| match error {
            WatchError::Status(status) => format!("status {}", status.code),
            WatchError::NoEvent(error) => {
                format!("no event {}", error.map_or(String::new(), |error| error.to_string()))
            }
        }));
        (events, reader)
    }

    #[test]
    fn events_of_a_watch_are_read() {
        let (all, reader) = events(
            r#"{"type":"ADDED","object":{"metadata":{"uid":"a","name":"web","resourceVersion":"8"}}}
            {"object":{"metadata":{"uid":"c","name":"db","resourceVersion":"8"}},"type":"MODIFIED"}
            {"type":"DELETED","object":{"metadata":{"uid":"b","resourceVersion":"9"}}}
            {"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"10"},"spec":{"containers":null}}}
            {"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old"}}
            {"type":"ADDED","object":{"metadata":{"uid":"d","resourceVersion":"11"}}}"#,
        );
        assert_eq!(all, ["upsert a", "upsert c", "delete b", "Bookmark", "status 410"]);
        assert_eq!(reader.version.as_deref(), Some("10"));
    }

    #[test]
    fn event_of_an_object_that_cannot_be_used_removes_it() {
        let large = r#"{"name":"nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"},"#.repeat(80_000);
        let large = format!(
            r#"{{"type":"MODIFIED","object":{{"metadata":{{"uid":"c"}},"spec":{{"containers":[{large}{{}}]}}}}}}"#
        );
        let odd =
            r#"{"type":"MODIFIED","object":{"metadata":{"uid":"a","resourceVersion":"8"},"spec":{"hostNetwork":7}}}"#;
        let without_metadata = odd.replace("\"metadata\":{", "\"metadata\":7,\"x\":{");
        let (all, reader) = events(&[odd, &large, &without_metadata].join("\n"));
        assert_eq!(all, ["delete a", "Unknown", "Unknown"]);
        assert_eq!((reader.left_out.count, reader.version.as_deref()), (3, Some("8")));
    }

    #[test]
    fn other_text_is_no_event() {
        for text in [
            r#"{"type":"EXPLODED","object":{}}"#,
            r#"{"type":"BOOKMARK"}"#,
            r#"{"type":"ERROR","object":7}"#,
            r#"{"object":{}}"#,
            r#"{"type":7,"object":{}}"#,
            r#"{"items":[]}"#,
        ] {
            assert_eq!(events(text).0, ["no event "], "{text}");
        }
        assert_eq!(events("<html>").0, ["no event expected an object at line 1 column 1"]);
    }
}
