//! The list of the linked dependencies with their licence texts, which most licences require.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::arch::Arch;
use crate::host;

/// The licence text of the C library on Debian.
const LGPL: &str = "/usr/share/common-licenses/LGPL-2.1";
/// The prefixes of the names of licence files.
const LICENCE_FILES: [&str; 4] = ["LICEN", "COPYING", "NOTICE", "UNLICENSE"];

/// Returns a list of all linked crates, and then each licence text with the crates that it applies to.
pub fn text(arch: Arch, root: &Path) -> Result<String> {
    let metadata = host::metadata(root, &[arch], &[])?;
    let packages = linked(&metadata).context("cannot parse the output of cargo metadata")?;

    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages {
        let field = |name: &str| package[name].as_str().unwrap_or_default();
        let name = format!("{} {}", field("name"), field("version"));
        // Writing to a string cannot fail.
        _ = writeln!(list, "{name}: {}", field("license"));
        let folder = Path::new(field("manifest_path")).parent().unwrap_or(root);
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().to_uppercase();
            if LICENCE_FILES.iter().any(|prefix| file.starts_with(prefix)) && entry.path().is_file() {
                let text = String::from_utf8_lossy(&fs::read(entry.path())?)
                    .trim()
                    .replace('\r', "");
                texts.entry(text).or_default().insert(name.clone());
            }
        }
    }
    let lgpl = fs::read_to_string(LGPL).with_context(|| format!("cannot read {LGPL} (Debian: base-files)"))?;
    texts.entry(lgpl).or_default().insert("the GNU C Library".to_owned());

    let mut text = format!(
        "The dependencies that are linked into kmesh-trace, and their licences.\n\n\
         Rust's standard library: Apache-2.0 OR MIT\n\
         The GNU C Library: LGPL-2.1-or-later. cargo xtask dist, with the sources, links another version.\n\
         {list}"
    );
    for (licence, packages) in texts {
        let packages: Vec<_> = packages.into_iter().collect();
        _ = write!(text, "\n{}\n{}:\n\n{licence}\n", "=".repeat(80), packages.join(", "));
    }
    Ok(text)
}

/// Returns the external packages that are linked into the tool, sorted by name and version. Returns `None` if the
/// metadata has an unexpected form.
fn linked(metadata: &Value) -> Option<Vec<&Value>> {
    let by_id = |list: &'static str, metadata: &'_ Value| -> Option<BTreeMap<String, usize>> {
        let ids = metadata.pointer(list)?.as_array()?.iter().enumerate();
        ids.map(|(at, one)| Some((one["id"].as_str()?.to_owned(), at)))
            .collect()
    };
    let (packages, nodes) = (by_id("/packages", metadata)?, by_id("/resolve/nodes", metadata)?);
    let package = |id: &str| metadata.pointer(&format!("/packages/{}", packages.get(id)?));
    let is_macro = |id: &str| {
        let targets = package(id).and_then(|package| package["targets"].as_array());
        targets.is_some_and(|targets| targets.iter().any(|target| target["kind"][0] == "proc-macro"))
    };
    let mut waiting: Vec<&str> = packages
        .keys()
        .map(String::as_str)
        .filter(|id| package(id).is_some_and(|package| package["name"] == "kmesh-trace"))
        .collect();
    let mut found = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if !found.insert(id) {
            continue;
        }
        let node = metadata.pointer(&format!("/resolve/nodes/{}", nodes.get(id)?))?;
        for dependency in node["deps"].as_array()? {
            // Dependencies of tests and of build scripts have a kind.
            let is_linked = dependency["dep_kinds"]
                .as_array()?
                .iter()
                .any(|kind| kind["kind"].is_null());
            let id = dependency["pkg"].as_str()?;
            if is_linked && !is_macro(id) {
                waiting.push(id);
            }
        }
    }
    let mut external: Vec<_> = found
        .into_iter()
        .filter_map(package)
        .filter(|package| package["source"].is_string())
        .collect();
    external.sort_by_key(|package| (package["name"].as_str(), package["version"].as_str()));
    Some(external)
}
