//! The proof that the bytes do not depend on where and when they were made: the archive once more, from a copy of the sources,
//! in another folder, with another target folder and cargo home.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Made, archive, make};
use crate::counts::Counts;
use crate::host;

/// Makes it and compares.
pub fn compare(first: &Made) -> Result<Counts> {
    let place = std::env::temp_dir().join(format!("made elsewhere {}", std::process::id()));
    let second = make_in(first, &place);
    let same = second.and_then(|second| {
        let pairs = [(&first.tool, &second.tool), (&first.archive, &second.archive)];
        let mut counts = Counts::default();
        for (one, other) in pairs {
            let (one, other) = (archive::digest(one)?, archive::digest(other)?);
            let same = one == other;
            println!("{one}\n{other} {}", if same { "the same" } else { "DIFFERENT" });
            counts += Counts::one(same);
        }
        Ok(counts)
    });
    // What differs is worth a look.
    if same.as_ref().is_ok_and(|counts| counts.failed == 0) {
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    } else {
        eprintln!("xtask: {} is kept", place.display());
    }
    same
}

fn make_in(first: &Made, place: &Path) -> Result<Made> {
    let sources = place.join("sources");
    copy_sources(&sources)?;
    let cargo_home = place.join("cargo home");
    fs::create_dir_all(&cargo_home).with_context(|| format!("cannot make {}", cargo_home.display()))?;
    // What was downloaded, and the settings, are the same.
    let home = host::cargo_home()?;
    for entry in fs::read_dir(&home).with_context(|| format!("cannot read {}", home.display()))? {
        let entry = entry?;
        symlink(entry.path(), cargo_home.join(entry.file_name()))?;
    }
    make(first.arch, first.profile, &sources, &place.join("target"), &cargo_home)
}

/// All that git knows of, as it is now, and what is new and not ignored.
fn copy_sources(to: &Path) -> Result<()> {
    let root = host::root();
    let list = host::text(
        Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(&root),
    )?;
    for name in list.split_terminator('\0') {
        let (from, to) = (root.join(name), to.join(name));
        // A file may have been removed, and git not told yet.
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
