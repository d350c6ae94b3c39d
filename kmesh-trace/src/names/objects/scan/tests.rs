//! Streams of JSON, in pieces of several sizes.

use super::*;
use crate::names::objects::fields::{EVENT, OBJECT};

/// What is found, in short, in pieces of this size.
fn found_in(json: &str, size: usize, fields: &'static Fields) -> Result<Vec<String>, ScanError> {
    let mut scanner = Scanner::new(fields, None);
    let mut all = Vec::new();
    for piece in json.as_bytes().chunks(size) {
        scanner.feed(piece, &mut |found| {
            all.push(match found {
                Found::Object { kind, json } => format!("{kind} {}", str::from_utf8(json).unwrap()),
                Found::List { kind, json } => format!("end of {kind} {}", str::from_utf8(json).unwrap()),
                other => format!("{other:?}"),
            });
        })?;
    }
    scanner.finish()?;
    Ok(all)
}

fn found(json: &str) -> Result<Vec<String>, ScanError> {
    let whole = found_in(json, json.len().max(1), &OBJECT);
    for size in [1, 2, 3, 7] {
        assert_eq!(found_in(json, size, &OBJECT), whole, "in pieces of {size}: {json}");
    }
    whole
}

#[test]
fn objects_are_reduced_to_the_fields() {
    let json = r#" {"apiVersion":"v1", "kind" : "PodList","metadata":{"resourceVersion":"7","x":[{"]":"}"}]},
        "items":[{"metadata":{"name":"a\"}","managedFields":[{"a":{}}],"labels":{"x":"y"}},"spec":{"containers":
          [{"name":"c","env":[{"name":"e","value":"{\\\""}],"ports":[{"containerPort":80}]},7,null,[]]}},
          {"kind":"Service","spec":null,"status":true,"other":-1.5e3}]}"#;
    let expected = [
        r#"Pod {"metadata":{"name":"a\"}","labels":{"x":"y"}},"spec":{"containers":[{"name":"c","ports":[{"containerPort":80}]},7,null,[]]}}"#,
        r#"Service {"kind":"Service","spec":null,"status":true}"#,
        r#"end of PodList {"kind":"PodList","metadata":{"resourceVersion":"7"}}"#,
    ];
    assert_eq!(found(json).unwrap(), expected);
}

#[test]
fn items_wait_for_the_kind_of_their_list() {
    let json = r#"{"items":[{"items":[{"code":1}],"kind":"ServiceList"},{"items":[{"code":2}],"kind":"PodList"},
        {"code":3},{"kind":"Node"}],"kind":"List"} {"kind":"Job"}"#;
    let expected = [
        r#"Service {"code":1}"#,
        r#"end of ServiceList {"kind":"ServiceList"}"#,
        r#"Pod {"code":2}"#,
        r#"end of PodList {"kind":"PodList"}"#,
        r#"Node {"kind":"Node"}"#,
        "Unknown",
        r#"end of List {"kind":"List"}"#,
        r#"Job {"kind":"Job"}"#,
    ];
    assert_eq!(found(json).unwrap(), expected);
    assert_eq!(
        found(r#"{"items":null,"kind":"PodList"}"#).unwrap(),
        [r#"end of PodList {"kind":"PodList"}"#]
    );
    assert_eq!(
        found(r#"{"items":[7,[],"x"],"kind":"PodList"}"#).unwrap()[..3],
        ["Unknown"; 3]
    );
}

#[test]
fn text_that_is_no_list_is_refused_with_its_place() {
    let cases = [
        ("[]", "expected an object at line 1 column 1"),
        ("\"Unauthorized\"", "expected an object"),
        ("{\n \"kind\" 7}", "unexpected character at line 2 column 9"),
        (r#"{"kind":"PodList","items":{"a":1}}"#, "expected a list of items"),
        (r#"{"kind":"PodList","items":[{}"#, "ends in the middle"),
        (r#"{"kind":"Pod"#, "ends in the middle"),
        ("{} x", "expected an object"),
        (r#"{"spec":}"#, "expected a value"),
    ];
    for (json, part) in cases {
        let error = found(json).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
    let deep = format!(r#"{{"spec":{}"#, "{\"containers\":".repeat(1 << 16));
    assert!(found_in(&deep, 1 << 20, &OBJECT).is_err());
}

/// One byte a value, 16 MiB of it: the scanner holds less than twice the largest object.
#[test]
fn object_that_is_too_large_costs_only_itself() {
    let value = format!(r#"{{"name":"{}"}},"#, "n".repeat(1000));
    let large = format!(
        r#"{{"kind":"Pod","spec":{{"containers":[{}{{}}]}}}}"#,
        value.repeat(1100)
    );
    let name = "x".repeat(MAX_VALUE);
    let json = format!(
        r#"{{"kind":"List","items":[{{"kind":"Pod"}},{large},{{"kind":"Pod","code":"{name}"}},{{"kind":"Node"}}]}}"#
    );
    let mut scanner = Scanner::new(&OBJECT, None);
    let mut all = Vec::new();
    for piece in json.as_bytes().chunks(1000) {
        scanner
            .feed(piece, &mut |found| {
                all.push(match found {
                    Found::Object { json, .. } => str::from_utf8(json).unwrap().to_owned(),
                    other => format!("{other:?}"),
                })
            })
            .unwrap();
        assert!(scanner.out.capacity() <= 2 * MAX_OBJECT);
    }
    let marked = r#"{"kind":"Pod","code":[[]]}"#;
    assert_eq!(
        all[..4],
        [r#"{"kind":"Pod"}"#, "TooLarge", marked, r#"{"kind":"Node"}"#]
    );
}

/// `{},{},…` of 57 MiB was 6.2 GB of memory.
#[test]
fn empty_items_take_no_memory() {
    let mut scanner = Scanner::new(&OBJECT, Some("Pod"));
    let mut count = 0;
    let mut feed = |bytes: &[u8]| scanner.feed(bytes, &mut |_| count += 1).unwrap();
    feed(br#"{"kind":"PodList","items":["#);
    let items = "{},".repeat(20_000);
    (0..100).for_each(|_| feed(items.as_bytes()));
    assert_eq!(count, 2_000_000);
    assert!(scanner.out.capacity() <= MAX_VALUE && scanner.pending_bytes == 0);
}

#[test]
fn events_are_objects_one_after_the_other() {
    let json = "{\"type\":\"ADDED\",\"object\":{\"kind\":\"Pod\",\"x\":1}}\n{\"type\":\"BOOKMARK\"}\n";
    for size in [1, 5, json.len()] {
        let all = found_in(json, size, &EVENT).unwrap();
        assert_eq!(all, ["Unknown"; 2], "without a default kind");
    }
    let mut scanner = Scanner::new(&EVENT, Some("Event"));
    let mut first = String::new();
    let event = &mut |found: Found<'_>| {
        if let (Found::Object { json, .. }, true) = (found, first.is_empty()) {
            first = str::from_utf8(json).unwrap().to_owned();
        }
    };
    scanner.feed(json.as_bytes(), event).unwrap();
    assert_eq!(first, r#"{"type":"ADDED","object":{"kind":"Pod"}}"#);
}
