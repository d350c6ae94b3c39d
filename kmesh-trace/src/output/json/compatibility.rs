//! Compares today's schema with that of the last release, which is in `docs/schema`. A reader of the released lines
//! must be able to read today's lines as long as `v` is the same.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::contract::VERSION;
use super::schema::schema;

/// The members of a schema that change no line.
const ANNOTATIONS: [&str; 4] = ["$schema", "default", "description", "title"];
/// The members of a schema that may have more elements than before.
const GROWING: [&str; 3] = ["enum", "oneOf", "required"];

/// Returns each difference that a reader of the old lines would notice: a removed member, value or type of line, and
/// every other change. Additions are none.
fn breaking_changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(&without_annotations(old), &without_annotations(new), "", &mut found);
    found
}

fn without_annotations(schema: &Value) -> Value {
    match schema {
        Value::Object(members) => {
            // A property may have the name of an annotation. Its value is an object.
            let is_annotation = |name: &str, value: &Value| ANNOTATIONS.contains(&name) && !value.is_object();
            let members = members.iter().filter(|(name, value)| !is_annotation(name, value));
            members
                .map(|(name, value)| (name.clone(), without_annotations(value)))
                .collect()
        }
        Value::Array(elements) => elements.iter().map(without_annotations).collect(),
        other => other.clone(),
    }
}

fn compare(old: &Value, new: &Value, at: &str, found: &mut Vec<String>) {
    let (Value::Object(was), Value::Object(is)) = (old, new) else {
        if old != new {
            found.push(format!("{at} was {old} and is {new}"));
        }
        return;
    };
    // A new restriction breaks no reader, but it is an unintended change.
    for name in is.keys().filter(|name| !was.contains_key(*name)) {
        if !["properties", "required"].contains(&&**name) {
            found.push(format!("{at}/{name} is new"));
        }
    }
    for (name, old) in was {
        let at = format!("{at}/{name}");
        match is.get(name) {
            None => found.push(format!("{at} is gone")),
            Some(new) if ["properties", "$defs"].contains(&&**name) => compare_members(old, new, &at, found),
            Some(new) if GROWING.contains(&&**name) => compare_sets(old, new, &at, found),
            Some(new) if name == "pattern" => compare_patterns(old, new, &at, found),
            Some(new) => compare(old, new, &at, found),
        }
    }
}

/// Compares the members of a line, or the definitions of a schema.
fn compare_members(old: &Value, new: &Value, at: &str, found: &mut Vec<String>) {
    for (name, old) in old.as_object().into_iter().flatten() {
        let at = format!("{at}/{name}");
        match new.get(name) {
            None => found.push(format!("{at} is gone")),
            Some(new) => compare(old, new, &at, found),
        }
    }
}

fn compare_sets(old: &Value, new: &Value, at: &str, found: &mut Vec<String>) {
    let new = new.as_array().map_or(&[][..], Vec::as_slice);
    let old = old.as_array().into_iter().flatten();
    found.extend(
        old.filter(|one| !new.contains(one))
            .map(|one| format!("{at} lost {one}")),
    );
}

/// Compares two patterns. A list of words in a pattern, `(one|two)`, is an enumeration.
fn compare_patterns(old: &Value, new: &Value, at: &str, found: &mut Vec<String>) {
    let (old_frame, old_words) = split_pattern(old.as_str().unwrap_or_default());
    let (new_frame, new_words) = split_pattern(new.as_str().unwrap_or_default());
    if old_frame != new_frame || !old_words.is_subset(&new_words) {
        found.push(format!("{at} was {old} and is {new}"));
    }
}

/// Returns a pattern without its lists of words, and the words.
fn split_pattern(pattern: &str) -> (String, BTreeSet<&str>) {
    let (mut frame, mut words) = (String::new(), BTreeSet::new());
    for part in pattern.split_inclusive(['(', ')']) {
        let list = part.strip_suffix(')').filter(|list| list.contains('|'));
        match list.filter(|list| list.chars().all(|c| c.is_ascii_alphanumeric() || "_|".contains(c))) {
            Some(list) => words.extend(list.split('|')),
            None => frame.push_str(part),
        }
    }
    (frame, words)
}

/// Returns the schema of the last release with this version of the contract. There is none before the first release
/// with that version.
fn released(version: u8) -> Option<Value> {
    let file = format!("../docs/schema/v{version}.json");
    let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

#[test]
fn todays_lines_fit_readers_of_the_last_release() {
    match released(VERSION) {
        Some(released) => assert_eq!(breaking_changes(&released, &schema()), Vec::<String>::new()),
        None => assert!(released(VERSION - 1).is_some(), "v rises by one"),
    }
}

#[test]
fn additions_break_nothing() {
    let old = schema();
    let mut new = old.clone();
    new["$defs"]["conn"]["properties"]["colour"] = serde_json::json!({"type": "string"});
    let list = |value: &mut Value, one: Value| value.as_array_mut().unwrap().push(one);
    list(&mut new["$defs"]["conn"]["required"], "colour".into());
    list(&mut new["$defs"]["outcome"]["enum"], "vanished".into());
    list(&mut new["oneOf"], serde_json::json!({"$ref": "#/$defs/rainbow"}));
    new["$defs"]["rainbow"] = serde_json::json!({"type": "object"});
    new["$defs"]["conn"]["description"] = "Something else.".into();
    let reasons = &mut new["$defs"]["loss_reasons"]["pattern"];
    *reasons = reasons
        .as_str()
        .unwrap()
        .replace("ring_full", "ring_full|moon_full")
        .into();
    assert_eq!(breaking_changes(&old, &new), Vec::<String>::new());
}

#[test]
fn what_readers_rely_on_is_compared() {
    type Change = fn(&mut Value);
    fn remove(value: &mut Value, name: &str) {
        value.as_object_mut().unwrap().remove(name).unwrap();
    }
    fn lose(list: &mut Value, what: &str) {
        let list = list.as_array_mut().unwrap();
        let before = list.len();
        list.retain(|one| one != what && one["const"] != what && one["$ref"] != what);
        assert_eq!(list.len(), before - 1, "{what}");
    }
    let cases: [(&str, Change); 12] = [
        ("/$defs/conn/properties/start is gone", |new| {
            remove(&mut new["$defs"]["conn"]["properties"], "start");
            lose(&mut new["$defs"]["conn"]["required"], "start");
        }),
        ("/$defs/conn/required lost \"start\"", |new| {
            lose(&mut new["$defs"]["conn"]["required"], "start")
        }),
        ("/$defs/lost is gone", |new| remove(&mut new["$defs"], "lost")),
        ("/oneOf lost {\"$ref\":\"#/$defs/lost\"}", |new| {
            lose(&mut new["oneOf"], "#/$defs/lost")
        }),
        ("/$defs/outcome/enum lost \"ok\"", |new| {
            lose(&mut new["$defs"]["outcome"]["enum"], "ok")
        }),
        ("/$defs/security_policy/oneOf lost", |new| {
            lose(&mut new["$defs"]["security_policy"]["oneOf"], "unknown");
        }),
        ("/$defs/conn/properties/duration_ns/type was", |new| {
            new["$defs"]["conn"]["properties"]["duration_ns"]["type"] = "integer".into();
        }),
        ("/$defs/conn/properties/sent_bytes/type was", |new| {
            new["$defs"]["conn"]["properties"]["sent_bytes"]["type"] = "string".into();
        }),
        ("/$defs/conn/properties/sent_bytes/maximum is new", |new| {
            new["$defs"]["conn"]["properties"]["sent_bytes"]["maximum"] = 7.into();
        }),
        ("/$defs/conn/properties/v/const was 1 and is 2", |new| {
            new["$defs"]["conn"]["properties"]["v"]["const"] = 2.into();
        }),
        ("/$defs/time/pattern was", |new| {
            new["$defs"]["time"]["pattern"] = "^.*$".into()
        }),
        ("/$defs/loss_reasons/pattern was", |new| {
            let reasons = &mut new["$defs"]["loss_reasons"]["pattern"];
            *reasons = reasons.as_str().unwrap().replace("|undecodable", "").into();
        }),
    ];
    let old = schema();
    for (expected, change) in cases {
        let mut new = old.clone();
        change(&mut new);
        let found = breaking_changes(&old, &new);
        assert!(
            found.iter().any(|found| found.starts_with(expected)),
            "{expected}: {found:?}"
        );
    }
}
