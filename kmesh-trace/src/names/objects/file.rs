//! Objects from a file: what `kubectl get -o json` or `-o yaml` printed.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::Writer;
use super::object_list::{LeftOut, ObjectReader};
use crate::names::update::{Kind, Object};

/// The largest YAML file: YAML is held several times over while it is read.
const MAX_YAML_BYTES: u64 = 64 << 20;
/// The largest number of objects of a file.
const MAX_OBJECTS: usize = 1_000_000;
/// How much of a file is read at a time, in bytes.
const CHUNK: usize = 64 << 10;
/// How to make such a file.
const HOW: &str = "try: kubectl get pods,services,endpointslices,replicasets,nodes -A -o json > FILE";

/// The objects of a file.
#[derive(Debug, Default)]
pub struct PodsFile {
    /// All objects that naming needs.
    pub objects: Vec<Object>,
    pub left_out: LeftOut,
    /// The number of objects of other kinds.
    others: u64,
}

/// The number of objects by kind.
impl fmt::Display for PodsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |kind| self.objects.iter().filter(|object| object.kind() == kind).count();
        let (pods, services) = (count(Kind::Pods), count(Kind::Services));
        let others = self.objects.len() - pods - services;
        write!(f, "pods: {pods}, Services: {services}, other objects: {others}")?;
        match self.left_out.count {
            0 => Ok(()),
            count => write!(f, ", left out: {count}, the first: {}", self.left_out.first),
        }
    }
}

/// Reads a file. A file without any object that naming needs is an error.
pub fn read(path: &Path) -> Result<PodsFile> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {shown} (--pods-file)"))?;
    let found = parse(BufReader::with_capacity(CHUNK, file))
        .with_context(|| format!("{shown} (--pods-file) is not what kubectl prints as JSON or YAML"))?;
    if !found.objects.is_empty() {
        return Ok(found);
    }
    let what = match (&found.left_out, found.others) {
        (LeftOut { count: 0, .. }, 0) => "has no objects".to_owned(),
        (LeftOut { count: 0, .. }, others) => format!("has {others} objects, but none that names need"),
        (LeftOut { count, first }, _) => {
            format!("has no object that can be used; {count} left out, the first: {first}")
        }
    };
    bail!("{shown} (--pods-file) {what}\n  {HOW}")
}

fn parse(mut file: impl BufRead) -> Result<PodsFile> {
    // JSON is YAML, too, but text that begins like JSON gets the errors of JSON.
    let first = loop {
        let buffer = file.fill_buf()?;
        ensure!(!buffer.is_empty(), "it is empty");
        if let Some(first) = buffer.iter().find(|byte| !byte.is_ascii_whitespace()) {
            break *first;
        }
        let blank = buffer.len();
        file.consume(blank);
    };
    match first {
        b'{' | b'[' => parse_json(file),
        _ => parse_yaml(file),
    }
}

fn parse_json(mut file: impl BufRead) -> Result<PodsFile> {
    let mut reader = ObjectReader::new(Writer::ApiServer, None);
    let mut objects = Vec::new();
    loop {
        let chunk = file.fill_buf()?;
        if chunk.is_empty() {
            break;
        }
        reader.feed(chunk, &mut |object| objects.push(object))?;
        ensure!(objects.len() <= MAX_OBJECTS, "it has more than {MAX_OBJECTS} objects");
        let read = chunk.len();
        file.consume(read);
    }
    reader.finish()?;
    Ok(PodsFile {
        objects,
        others: reader.others,
        left_out: reader.left_out,
    })
}

fn parse_yaml(file: impl BufRead) -> Result<PodsFile> {
    let mut text = String::new();
    let length = file.take(MAX_YAML_BYTES + 1).read_to_string(&mut text)?;
    ensure!(
        length as u64 <= MAX_YAML_BYTES,
        "as YAML it is too large: kubectl prints JSON with -o json"
    );
    // The size of the file bounds it. Aliases could make a large document of a small file; kubectl prints none.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_aliases: 0,
        },
    };
    let values: Vec<serde_json::Value> =
        serde_saphyr::from_multiple_with_options(&text, options).map_err(|error| yaml_error(&error))?;
    let mut json = Vec::new();
    // There may be nothing between two separators.
    for value in values.iter().filter(|value| !value.is_null()) {
        serde_json::to_writer(&mut json, value)?;
    }
    parse_json(&json[..])
}

/// Returns an error with the position only. The library's own message would quote the file.
pub fn yaml_error(error: &serde_saphyr::Error) -> anyhow::Error {
    let location = error.location();
    let at = location.map(|location| format!(", at line {} column {}", location.line(), location.column()));
    let at = at.unwrap_or_default();
    anyhow!("not valid YAML, or a value of the wrong type, or an alias{at}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<PodsFile> {
        parse(text.as_bytes())
    }

    fn counts(text: &str) -> String {
        read_text(text).unwrap().to_string()
    }

    const TWO: &str = "pods: 2, Services: 0, other objects: 0";
    const BOTH: &str = "pods: 1, Services: 1, other objects: 0";

    #[test]
    fn output_of_kubectl_is_read() {
        let pod = |uid: &str| format!(r#"{{"metadata":{{"uid":"{uid}","name":"web"}}}}"#);
        let (a, b) = (pod("a"), pod("b"));
        let service = r#"{"metadata":{"name":"web"}}"#;
        let services = format!(r#"{{"items":[{service}],"kind":"ServiceList"}}"#);
        let yaml_list = "kind: PodList\nitems:\n- metadata: {uid: a, name: a}\n- metadata:\n    uid: b\n    name: b\n";
        let yaml_sorted = "apiVersion: v1\nitems:\n- metadata: {name: web}\nkind: ServiceList\n---\n\
                           items:\n- metadata: {uid: a, name: web}\nkind: PodList\n";
        let yaml_several = "---\nkind: Pod\nmetadata: {uid: a, name: a}\n---\n\
                            kind: Service\nmetadata: {name: b}\n---\n";
        let list = format!(r#"{{"kind":"PodList","items":[{a}]}}"#);
        let cases = [
            ("typed list", format!(r#"{{"kind":"PodList","items":[{a},{b}]}}"#), TWO),
            (
                "kind behind the items",
                format!(r#"{{"items":[{a},{b}],"kind":"PodList"}}"#),
                TWO,
            ),
            (
                "kind of Services behind the items",
                format!(r#"{{"kind":"List","items":[{services},{{"items":[{a}],"kind":"PodList"}}]}}"#),
                BOTH,
            ),
            (
                "several documents",
                format!("\n {list}\n{}\n", list.replace(&a, &b)),
                TWO,
            ),
            ("YAML", yaml_list.to_owned(), TWO),
            ("YAML in alphabetical order", yaml_sorted.to_owned(), BOTH),
            ("several documents of YAML", yaml_several.to_owned(), BOTH),
        ];
        for (name, text, expected) in cases {
            assert_eq!(counts(&text), expected, "{name}");
        }
    }

    #[test]
    fn yaml_means_what_json_means() {
        let yaml = "kind: Service\nmetadata: {namespace: shop, name: web, labels: {version: \"1\"}}\n\
                    spec:\n  clusterIP: 10.96.0.7\n  ports:\n  - {port: 80, targetPort: http}\n  \
                    - {port: 81, targetPort: 8081}\n";
        let json = r#"{"kind":"Service","metadata":{"namespace":"shop","name":"web","labels":{"version":"1"}},
            "spec":{"clusterIP":"10.96.0.7","ports":[{"port":80,"targetPort":"http"},{"port":81,"targetPort":8081}]}}"#;
        let (yaml, json) = (read_text(yaml).unwrap().objects, read_text(json).unwrap().objects);
        assert!(yaml.len() == 1 && yaml == json);
    }

    #[test]
    fn odd_object_costs_only_itself() {
        let text = "kind: PodList\nitems:\n- metadata: {uid: a, namespace: shop, name: odd}\n  \
                    spec: {hostNetwork: 7}\n- metadata: {uid: b, name: b}\n";
        let left_out = "left out: 1, the first: Pod shop/odd: it has a field of the wrong type";
        assert_eq!(
            counts(text),
            format!("pods: 1, Services: 0, other objects: 0, {left_out}")
        );
    }

    #[test]
    fn errors_have_the_position_and_quote_nothing() {
        let deep = format!("{{\"kind\":\"PodList\",\"items\":[{{\"spec\":{}", "[".repeat(100_000));
        let cases = [
            ("", "empty"),
            ("{\"kind\":\"PodList\",\n\"items\":[}", "at line 2 column 10"),
            ("kind: PodList\ntoken: s3cr3t\nitems: [\n", "line"),
            ("kind: PodList\nitems: [s3cr3t\ntoken: s3cr3t }\n", "line"),
            ("{\"kind\":\"PodList\"} s3cr3t", "line 1"),
            (&deep, "the middle of an object"),
            ("{\"kind\":\"PodList\",\"items\":[[", "expected an object"),
        ];
        for (text, part) in cases {
            let error = format!("{:#}", read_text(text).unwrap_err());
            let start = &text[..text.len().min(60)];
            assert!(error.contains(part) && !error.contains("s3cr3t"), "{start}: {error}");
        }
    }

    /// A billion laughs: each line is ten of the one before.
    #[test]
    fn bomb_of_aliases_is_refused_at_once() {
        let levels = (1..=9).map(|level| {
            let before = format!("*a{}", level - 1);
            format!("a{level}: &a{level} [{}]\n", [before.as_str(); 10].join(","))
        });
        let bomb = format!(
            "kind: PodList\nitems: []\na0: &a0 laugh\n{}",
            levels.collect::<String>()
        );
        assert!(bomb.len() < 1000);
        let began = std::time::Instant::now();
        let error = format!("{:#}", read_text(&bomb).unwrap_err());
        let took = began.elapsed();
        assert!(error.contains("not valid YAML"), "{error}");
        assert!(took < std::time::Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn file_without_names_is_refused_with_a_remedy() {
        let path = std::env::temp_dir().join(format!("kmesh-trace-pods-{}", std::process::id()));
        for (text, part) in [
            (
                r#"{"kind":"Status","message":"Unauthorized"}"#,
                "1 objects, but none that names need",
            ),
            (r#"{"kind":"PodList","items":null}"#, "no objects"),
            (r#"{"items":[{"metadata":{"uid":"a"}}]}"#, "one has no kind"),
            (r#"{"kind":"PodList","items":[{}]}"#, "no name or no UID"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", read(&path).unwrap_err());
            assert!(error.contains(part) && error.contains("kubectl get"), "{text}: {error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(
            error.contains("--pods-file") && error.contains("No such file"),
            "{error}"
        );
    }
}
