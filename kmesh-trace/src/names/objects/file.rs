//! Names out of a file: lists and objects as JSON, or as YAML of one or several documents.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::list::{self, Document};
use crate::names::update::Object;

/// The largest file. A hundred thousand pods are half of it.
const MOST_BYTES: u64 = 1 << 30;
/// The largest one of YAML, which is held several times over while it is read.
const MOST_BYTES_OF_YAML: usize = 64 << 20;

/// All that a file tells.
pub fn read(path: &Path) -> Result<Vec<Object>> {
    let shown = path.display();
    let text = text(path).with_context(|| format!("cannot read {shown} (--pods-file)"))?;
    let documents = documents(&text)
        .with_context(|| format!("{shown} (--pods-file) is not what kubectl prints as JSON or YAML"))?;
    if !documents.iter().any(Document::is_of_use) {
        bail!(
            "{shown} (--pods-file) has neither pods nor Services\n  \
             try: kubectl get pods,services,endpointslices,replicasets,nodes -A -o json > FILE"
        );
    }
    Ok(documents.into_iter().flat_map(|document| document.facts).collect())
}

fn text(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let read = File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut text)?;
    if read as u64 > MOST_BYTES {
        return Err(io::Error::other("it has more than 1 GiB"));
    }
    Ok(text)
}

fn documents(text: &[u8]) -> Result<Vec<Document>> {
    // YAML may begin like JSON, too, but nobody writes it so: what begins like JSON gets JSON's errors.
    match text.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => bail!("it is empty"),
        Some(b'{' | b'[') => json(text),
        Some(_) => yaml(text),
    }
}

fn json(text: &[u8]) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut parser = serde_json::Deserializer::from_slice(text);
    while documents.is_empty() || parser.end().is_err() {
        documents.push(list::from(&mut parser)?);
    }
    Ok(documents)
}

fn yaml(text: &[u8]) -> Result<Vec<Document>> {
    if text.len() > MOST_BYTES_OF_YAML {
        bail!("as YAML it is too large; kubectl prints JSON with -o json");
    }
    let text = str::from_utf8(text).context("it is not UTF-8")?;
    // Its size bounds it; aliases, with which a small file can be a large one, kubectl does not print.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_aliases: 0,
        },
    };
    let values: Vec<serde_json::Value> = serde_saphyr::from_multiple_with_options(text, options)?;
    values
        .iter()
        // Nothing between two separators.
        .filter(|value| !value.is_null())
        .map(|value| Ok(list::read(&*serde_json::to_vec(value)?)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Result<usize> {
        let documents = documents(text.as_bytes())?;
        Ok(documents.iter().map(|document| document.facts.len()).sum())
    }

    #[test]
    fn json_and_yaml_of_one_or_several_documents() {
        let cases = [
            (r#"{"kind":"PodList","items":[{},{}]}"#, 2),
            (
                "\n {\"kind\":\"List\",\"items\":[{\"kind\":\"Pod\"}]}\n{\"kind\":\"Pod\"}\n",
                2,
            ),
            (
                "kind: PodList\nitems:\n- metadata: {name: a}\n- metadata:\n    name: b\n",
                2,
            ),
            (
                "---\nkind: Pod\nmetadata: {name: a}\n---\nkind: Service\nmetadata: {name: b}\n---\n",
                2,
            ),
            ("# nothing of use\nkind: Deployment\n", 0),
            ("kind: PodList\nitems:\n", 0),
        ];
        for (text, expected) in cases {
            assert_eq!(told(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn yaml_means_what_json_means() {
        let yaml = "kind: Service\nmetadata: {namespace: shop, name: web, labels: {version: \"1\"}}\n\
                    spec:\n  clusterIP: 10.96.0.7\n  ports:\n  - {port: 80, targetPort: http}\n  - {port: 81, targetPort: 8081}\n";
        let json = r#"{"kind":"Service","metadata":{"namespace":"shop","name":"web","labels":{"version":"1"}},
            "spec":{"clusterIP":"10.96.0.7","ports":[{"port":80,"targetPort":"http"},{"port":81,"targetPort":8081}]}}"#;
        assert_eq!(documents(yaml.as_bytes()).unwrap(), documents(json.as_bytes()).unwrap());
    }

    #[test]
    fn faults_are_told_with_their_place() {
        let deep = "[".repeat(100_000);
        let cases = [
            ("", "empty"),
            ("{\"kind\":\"PodList\",\n\"items\":[}", "line 2 column 10"),
            ("kind: PodList\nitems: [\n", "line"),
            (
                "kind: PodList\nitems:\n- spec: {hostNetwork: 7}\n",
                "item 1: invalid type",
            ),
            ("{\"kind\":\"PodList\"} trailing", "line 1"),
            ("NAME   READY\nweb-1  1/1\n", ""),
            (&deep, "a list of objects"),
        ];
        for (text, part) in cases {
            let error = format!("{:#}", told(text).unwrap_err());
            assert!(error.contains(part), "{}: {error}", &text[..text.len().min(60)]);
        }
    }

    /// A billion laughs: each line is ten of the one before.
    #[test]
    fn a_bomb_of_aliases_is_refused_at_once() {
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
        let error = format!("{:#}", told(&bomb).unwrap_err());
        let took = began.elapsed();
        assert!(error.contains("alias"), "{error}");
        assert!(took < std::time::Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn a_file_without_names_is_refused_with_what_to_do() {
        let path = std::env::temp_dir().join(format!("kmesh-trace-pods-{}", std::process::id()));
        std::fs::write(&path, r#"{"kind":"Status","message":"Unauthorized"}"#).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(
            error.contains("neither pods nor Services") && error.contains("kubectl get"),
            "{error}"
        );
        std::fs::write(&path, r#"{"kind":"PodList","items":null}"#).unwrap();
        assert_eq!(read(&path).unwrap(), []);
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(
            error.contains("--pods-file") && error.contains("No such file"),
            "{error}"
        );
    }
}
