//! Checks that the build is reproducible: builds all artefacts a second time from a copy of the sources, in another
//! folder, with another target folder and another cargo home.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Release, archive, build};
use crate::counts::Counts;
use crate::host;

/// Builds a second time, and compares the executables and all artefacts.
pub fn compare(first: &Release) -> Result<Counts> {
    let folder = std::env::temp_dir().join(format!("kmesh-trace second build {}", std::process::id()));
    let second = build_in(first, &folder);
    let comparison = second.and_then(|second| {
        let pairs = first.downloads().zip(second.downloads());
        let mut counts = Counts::default();
        for (one, other) in pairs.chain([(&first.tool, &second.tool)]) {
            let name = one.file_name().unwrap_or_default().display();
            let (one, other) = (archive::digest(one)?, archive::digest(other)?);
            let is_same = one == other;
            println!("{one}\n{other} {name}: {}", if is_same { "equal" } else { "DIFFERENT" });
            counts += Counts::one(is_same);
        }
        Ok(counts)
    });
    // Keep files that differ for inspection.
    if comparison.as_ref().is_ok_and(|counts| counts.failed == 0) {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    } else {
        eprintln!("xtask: the second build is in {}", folder.display());
    }
    comparison
}

fn build_in(first: &Release, folder: &Path) -> Result<Release> {
    let sources = folder.join("sources");
    copy_sources(&sources)?;
    let cargo_home = folder.join("cargo home");
    fs::create_dir_all(&cargo_home).with_context(|| format!("cannot create {}", cargo_home.display()))?;
    // Downloads and settings are shared.
    let home = host::cargo_home()?;
    for entry in fs::read_dir(&home).with_context(|| format!("cannot read {}", home.display()))? {
        let entry = entry?;
        symlink(entry.path(), cargo_home.join(entry.file_name()))?;
    }
    build(first.arch, first.profile, &sources, &folder.join("target"), &cargo_home)
}

/// Copies the working tree: all files that git tracks, and new files that it does not ignore.
fn copy_sources(to: &Path) -> Result<()> {
    let root = host::root();
    let list = host::text(
        Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root),
    )?;
    for name in list.split_terminator('\0') {
        let (from, to) = (root.join(name), to.join(name));
        // git still lists a file whose removal is not staged.
        if !from.exists() {
            continue;
        }
        let parent = to.parent().unwrap_or(&to);
        fs::create_dir_all(parent)
            .and_then(|()| fs::copy(&from, &to).map(drop))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}
