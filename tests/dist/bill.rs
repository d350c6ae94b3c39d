//! The SBOM and the krew manifest.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::image::{read_json, sha256};
use crate::support::scratch_dir;
use crate::{UNPACKED, artefact, components, folder, output, tool, trial};

/// Validates a document with CycloneDX's own library, and prints the error if there is one.
const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())
print(error or 'valid')
";

pub fn trials() -> Vec<Trial> {
    vec![
        trial("sbom::lists_what_is_linked", || Ok(()), lists_what_is_linked),
        trial("sbom::is_valid", find_validator, is_valid),
        trial("krew::manifest_names_the_archive", || Ok(()), krew_manifest),
    ]
}

fn lists_what_is_linked() {
    let sbom = read_json(&artefact(".cdx.json"));
    let main = &sbom["metadata"]["component"];
    assert_eq!(main["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(main["hashes"][0]["content"], sha256(&tool()));

    let components = sbom["components"].as_array().unwrap();
    let text = |component: &Value, name: &str| component[name].as_str().unwrap().to_owned();
    let listed: BTreeSet<_> = components
        .iter()
        .map(|component| format!("{} {}", text(component, "name"), text(component, "version")))
        .collect();
    let third_party = fs::read_to_string(UNPACKED.join("THIRD-PARTY")).unwrap();
    let (list, _) = third_party.split_once("\n====").unwrap();
    let crates: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, _)| name.split(' ').count() == 2)
        .collect();
    assert!(crates.len() > 100, "{list}");
    for (name, _) in crates {
        assert!(listed.contains(name), "{name}");
    }
    for part in ["aya-ebpf ", "rust-std ", "kmesh-trace-ebpf "] {
        assert!(listed.iter().any(|name| name.starts_with(part)), "{part}");
    }
    for component in components {
        let is_of_registry = text(component, "purl").starts_with("pkg:cargo/");
        assert_eq!(is_of_registry, component["hashes"].is_array(), "{component}");
        assert_ne!(component["licenses"][0]["expression"], "", "{component}");
    }
    // Each dependency is a component.
    let references: BTreeSet<_> = components
        .iter()
        .chain([main])
        .map(|one| text(one, "bom-ref"))
        .collect();
    for dependency in sbom["dependencies"].as_array().unwrap() {
        let links = dependency["dependsOn"].as_array().into_iter().flatten();
        for link in links.chain([&dependency["ref"]]) {
            assert!(references.contains(link.as_str().unwrap()), "{link}");
        }
    }
}

fn find_validator() -> Result<(), String> {
    let found = Command::new("python3")
        .args(["-c", "import cyclonedx.validation.json"])
        .output();
    match found {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("Python has no cyclonedx-python-lib[json-validation]".to_owned()),
    }
}

fn is_valid() {
    let result = output(
        Command::new("python3")
            .args(["-c", VALIDATE])
            .arg(artefact(".cdx.json")),
    );
    assert_eq!(result.trim(), "valid");
}

/// Does what krew does: finds the platform, checks the archive, copies the files, and links the program. kubectl runs
/// it, if it is there.
fn krew_manifest() {
    let text = fs::read_to_string(folder().join("kmesh-trace.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&text).unwrap();
    let spec = &manifest["spec"];
    assert_eq!(spec["version"], concat!("v", env!("CARGO_PKG_VERSION")));
    let platforms = spec["platforms"].as_array().unwrap();
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let platform = platforms
        .iter()
        .find(|platform| platform["selector"]["matchLabels"]["arch"] == arch)
        .unwrap();
    let (_, file) = platform["uri"].as_str().unwrap().rsplit_once('/').unwrap();
    let archive = artefact(".tar.gz");
    assert_eq!(archive.file_name().unwrap(), file);
    assert_eq!(platform["sha256"], sha256(&archive));

    let plugin = scratch_dir().join("krew");
    _ = fs::remove_dir_all(&plugin);
    fs::create_dir_all(plugin.join("bin")).unwrap();
    let unpacked = UNPACKED.parent().unwrap();
    for operation in platform["files"].as_array().unwrap() {
        let to = plugin.join(operation["to"].as_str().unwrap());
        // The shell expands the pattern.
        let copy = format!("cp -r {} \"$0\"", operation["from"].as_str().unwrap());
        output(Command::new("sh").args(["-c", &copy]).arg(to).current_dir(unpacked));
    }
    assert!(plugin.join("LICENSE-MIT").is_file());
    let bin = platform["bin"].as_str().unwrap();
    assert_eq!(bin, "kubectl-kmesh_trace");
    symlink(plugin.join(bin), plugin.join("bin").join(bin)).unwrap();
    let mut command = match components::find(&["kubectl"]) {
        Ok(folder) => Command::new(folder.join("kubectl")),
        Err(_) => Command::new(plugin.join(bin)),
    };
    if Path::new(command.get_program()).ends_with("kubectl") {
        command.arg("kmesh-trace");
    }
    let version = output(command.arg("--version").env("PATH", plugin.join("bin")));
    assert_eq!(version, format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION")));
}
