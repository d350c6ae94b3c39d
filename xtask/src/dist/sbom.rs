//! The software bill of materials in CycloneDX's JSON format: what is linked into the executable and into the eBPF
//! object inside it, with licences, checksums and dependencies.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::linked::{self, Linked};
use super::{AUTHORS, HOMEPAGE, Release, SUMMARY, VERSION, archive};
use crate::arch::Arch;
use crate::host;

/// The package of the eBPF programs, whose object is inside the executable.
const EBPF: &str = "kmesh-trace-ebpf";

/// Writes the SBOM of the release's executable, and returns its path.
pub fn write(release: &Release, root: &Path) -> Result<PathBuf> {
    let (of_tool, of_ebpf) = (
        host::metadata(root, &[release.arch], &[])?,
        // The programs are compiled for the kernel, which is no architecture of the tool.
        host::metadata(root, &[], &[])?,
    );
    let lock = fs::read_to_string(root.join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let sums = checksums(&lock);
    let system = system_libraries(release.arch)?;

    let mut components = BTreeMap::new();
    let mut dependencies = BTreeMap::new();
    for (metadata, name) in [(&of_tool, "kmesh-trace"), (&of_ebpf, EBPF)] {
        for package in linked::packages(metadata, name)? {
            let mut links: Vec<_> = package.dependencies.iter().map(|package| purl(package)).collect();
            if package.field("name") == "kmesh-trace" {
                links.extend(system.iter().map(|library| linked::field(library, "purl").to_owned()));
                links.push(format!("pkg:generic/{EBPF}@{VERSION}"));
            }
            links.sort();
            let reference = purl(package.package);
            dependencies.insert(reference.clone(), json!({"ref": reference, "dependsOn": links}));
            components.insert(reference, component(&package, &sums));
        }
    }
    for library in &system {
        let reference = linked::field(library, "purl").to_owned();
        dependencies.insert(reference.clone(), json!({"ref": reference}));
        components.insert(reference, library.clone());
    }
    let mut tool = components
        .remove(&format!("pkg:generic/kmesh-trace@{VERSION}"))
        .context("cargo metadata does not list kmesh-trace")?;
    tool["type"] = "application".into();
    tool["description"] = SUMMARY.into();
    tool["hashes"] = json!([{"alg": "SHA-256", "content": archive::digest(&release.tool)?}]);
    tool["externalReferences"] = json!([{"type": "website", "url": HOMEPAGE}]);
    let document = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": format!("{}T00:00:00Z", release.date),
            "authors": [{"name": AUTHORS}],
            "component": tool,
        },
        "components": components.into_values().collect::<Vec<_>>(),
        "dependencies": dependencies.into_values().collect::<Vec<_>>(),
    });
    let text = serde_json::to_string_pretty(&document)?;
    let file = format!("kmesh-trace-{VERSION}-{}-linux.cdx.json", release.arch.name());
    archive::write(&release.folder, &file, format!("{text}\n").as_bytes())
}

/// Returns the package URL of a package. Only packages of the registry have the type `cargo`, so that no scanner looks
/// for ours there.
fn purl(package: &Value) -> String {
    let kind = if package["source"].is_string() {
        "cargo"
    } else {
        "generic"
    };
    let version = linked::field(package, "version").replace('+', "%2B");
    format!("pkg:{kind}/{}@{version}", linked::field(package, "name"))
}

fn component(package: &Linked<'_>, sums: &BTreeMap<(&str, &str), &str>) -> Value {
    let (name, version) = (package.field("name"), package.field("version"));
    // `/` is an old spelling of OR.
    let licence = package.field("license").replace('/', " OR ");
    let mut component = library(name, version, &licence, &purl(package.package));
    if let Some(sum) = sums.get(&(name, version)) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
    }
    component
}

fn library(name: &str, version: &str, licence: &str, purl: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "licenses": [{"expression": licence}],
        "purl": purl,
    })
}

/// Returns the checksum of each package of the registry, by name and version.
fn checksums(lock: &str) -> BTreeMap<(&str, &str), &str> {
    let packages = lock.split("[[package]]\n").skip(1);
    let sums = packages.filter_map(|package| {
        let member = |name: &str| {
            let line = package.lines().find_map(|line| line.strip_prefix(name))?;
            line.strip_prefix(" = \"")?.strip_suffix('"')
        };
        Some(((member("name")?, member("version")?), member("checksum")?))
    });
    sums.collect()
}

/// Returns Rust's standard library, the C library and the compiler's library, which are linked, too.
fn system_libraries(arch: Arch) -> Result<Vec<Value>> {
    let is_here = Arch::here() == Some(arch);
    let rustc = match is_here {
        true => std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned()),
        false => host::RUSTC.to_owned(),
    };
    let version = host::text(Command::new(rustc).arg("--version"))?;
    let version = version
        .split_whitespace()
        .nth(1)
        .context("rustc --version has no version")?;
    let mut libraries = vec![library(
        "rust-std",
        version,
        "Apache-2.0 OR MIT",
        &format!("pkg:generic/rust-std@{version}"),
    )];
    let gcc = match is_here {
        true => "gcc".to_owned(),
        false => format!("{}-gcc", arch.gnu()),
    };
    let of_gcc = "GPL-3.0-or-later WITH GCC-exception-3.1";
    for (file, licence) in [("libc.a", "LGPL-2.1-or-later"), ("libgcc_eh.a", of_gcc)] {
        let path = host::text(Command::new(&gcc).arg(format!("-print-file-name={file}")))?;
        let path = fs::canonicalize(path.trim()).with_context(|| format!("{gcc} has no {file}"))?;
        let owner = host::text(Command::new("dpkg-query").arg("--search").arg(&path))?;
        let package = owner.split(": ").next().unwrap_or_default();
        let format = "--showformat=${source:Package} ${source:Version}";
        let source = host::text(Command::new("dpkg-query").args(["--show", format, package]))?;
        let (name, version) = source.split_once(' ').context("dpkg-query printed no version")?;
        let purl = format!("pkg:deb/debian/{name}@{}?arch=source", version.replace('+', "%2B"));
        libraries.push(library(name, version, licence, &purl));
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::checksums;

    #[test]
    fn checksums_are_found_by_name_and_version() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"12\"\n\
                    dependencies = [\n \"b\",\n]\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\n\
                    [[package]]\nname = \"a\"\nversion = \"2.0.0\"\nchecksum = \"34\"\n";
        let sums: Vec<_> = checksums(lock).into_iter().collect();
        assert_eq!(sums, [(("a", "1.0.0"), "12"), (("a", "2.0.0"), "34")]);
    }
}
