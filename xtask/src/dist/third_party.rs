//! The list of the linked dependencies with their licence texts, which most licences require.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::linked;
use crate::arch::Arch;
use crate::host;

/// The licence text of the C library on Debian.
const LGPL: &str = "/usr/share/common-licenses/LGPL-2.1";
/// The prefixes of the names of licence files.
const LICENCE_FILES: [&str; 4] = ["LICEN", "COPYING", "NOTICE", "UNLICENSE"];

/// Returns a list of all linked crates, and then each licence text with the crates that it applies to.
pub fn text(arch: Arch, root: &Path) -> Result<String> {
    let metadata = host::metadata(root, &[arch], &[])?;
    let mut list = String::new();
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let packages = linked::packages(&metadata, "kmesh-trace")?;
    for package in packages.iter().filter(|package| package.is_external()) {
        let name = format!("{} {}", package.field("name"), package.field("version"));
        // Writing to a string cannot fail.
        _ = writeln!(list, "{name}: {}", package.field("license"));
        let folder = Path::new(package.field("manifest_path")).parent().unwrap_or(root);
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
