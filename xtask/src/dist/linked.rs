//! The packages that are linked into an executable of the workspace, by the output of `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

/// A package that is linked.
pub struct Linked<'a> {
    /// The package's entry in the metadata.
    pub package: &'a Value,
    /// The entries of the packages that this one links.
    pub dependencies: Vec<&'a Value>,
}

impl<'a> Linked<'a> {
    /// Returns a text member of the package's entry.
    pub fn field(&self, name: &str) -> &'a str {
        field(self.package, name)
    }

    /// Returns whether the package comes from a registry. The workspace's own packages do not.
    pub fn is_external(&self) -> bool {
        self.package["source"].is_string()
    }
}

/// Returns a text member of a package's entry, or an empty text.
pub fn field<'a>(package: &'a Value, name: &str) -> &'a str {
    package[name].as_str().unwrap_or_default()
}

/// Returns the package of the workspace with this name and all packages that it links, sorted by name and version.
pub fn packages<'a>(metadata: &'a Value, name: &str) -> Result<Vec<Linked<'a>>> {
    find(metadata, name).context("cannot parse the output of cargo metadata")
}

fn find<'a>(metadata: &'a Value, name: &str) -> Option<Vec<Linked<'a>>> {
    let by_id = |list: &str| -> Option<BTreeMap<&'a str, &'a Value>> {
        let entries = metadata.pointer(list)?.as_array()?.iter();
        entries.map(|entry| Some((entry["id"].as_str()?, entry))).collect()
    };
    let (packages, nodes) = (by_id("/packages")?, by_id("/resolve/nodes")?);
    let is_root = |id: &&&str| packages[**id]["name"] == name && packages[**id]["source"].is_null();
    let mut waiting: Vec<&str> = packages.keys().filter(is_root).copied().collect();
    let mut visited = BTreeSet::new();
    let mut found = Vec::new();
    while let Some(id) = waiting.pop() {
        if !visited.insert(id) {
            continue;
        }
        let mut dependencies = Vec::new();
        for dependency in nodes.get(id)?["deps"].as_array()? {
            // Dependencies of tests and of build scripts have a kind.
            let kinds = dependency["dep_kinds"].as_array()?;
            let package = packages.get(dependency["pkg"].as_str()?)?;
            if kinds.iter().any(|kind| kind["kind"].is_null()) && !is_macro(package) {
                waiting.push(field(package, "id"));
                dependencies.push(*package);
            }
        }
        let package = packages.get(id)?;
        found.push(Linked { package, dependencies });
    }
    found.sort_by_key(|linked| (linked.field("name"), linked.field("version")));
    Some(found)
}

fn is_macro(package: &Value) -> bool {
    let targets = package["targets"].as_array();
    targets.is_some_and(|targets| targets.iter().any(|target| target["kind"][0] == "proc-macro"))
}
