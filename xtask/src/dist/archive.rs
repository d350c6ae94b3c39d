//! Packs the archive. Files are in the order of their names, with the same time and owner, so that the bytes are
//! reproducible.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use kmesh_trace::cli::Shell;
use kmesh_trace::completions;
use sha2::{Digest, Sha256};

use super::{Release, third_party};
use crate::arch::Arch;
use crate::{host, man};

/// The file with checksums, in the format of `sha256sum`.
pub const SUMS: &str = "SHA256SUMS";
/// The files that are copied: path in the repository, path in the archive.
const COPIED: [(&str, &str); 5] = [
    ("README.md", "README.md"),
    ("LICENSE-APACHE", "LICENSE-APACHE"),
    ("LICENSE-MIT", "LICENSE-MIT"),
    ("LICENSE-GPL2", "LICENSE-GPL2"),
    (man::PAGE, "man/kmesh-trace.8"),
];
/// The completion scripts, with the names that each shell looks for.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "completions/kmesh-trace.bash"),
    (Shell::Zsh, "completions/_kmesh-trace"),
    (Shell::Fish, "completions/kmesh-trace.fish"),
];

/// Copies all files to a new folder in `out`, and packs the folder into an archive beside it.
pub fn pack(arch: Arch, profile: &'static str, root: &Path, out: &Path, tool: &Path) -> Result<Release> {
    let name = format!("kmesh-trace-{}-{}-linux", env!("CARGO_PKG_VERSION"), arch.name());
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    let folder = out.join(&name);
    let page = man::current(root)?;
    write(&folder, "kmesh-trace", &read(tool)?)?;
    for (from, to) in COPIED {
        write(&folder, to, &read(&root.join(from))?)?;
    }
    for (shell, to) in COMPLETIONS {
        let mut script = Vec::new();
        completions::write(shell, &mut script)?;
        write(&folder, to, &script)?;
    }
    write(&folder, "THIRD-PARTY", third_party::text(arch, root)?.as_bytes())?;

    let mut files: Vec<&str> = ["kmesh-trace", "THIRD-PARTY"]
        .into_iter()
        .chain(COPIED.map(|(_, to)| to))
        .chain(COMPLETIONS.map(|(_, to)| to))
        .collect();
    files.sort_unstable();
    write_sums(&folder, &files)?;

    // The date must not depend on the build, so it is that of the manual.
    let date = man::date(&page)?.to_owned();
    let archive = out.join(format!("{name}.tar.gz"));
    let tar = out.join(format!("{name}.tar"));
    self::tar(out, &[&name], &date, &tar)?;
    gzip(&tar)?;
    Ok(Release {
        arch,
        profile,
        date,
        tool: folder.join("kmesh-trace"),
        files: folder,
        artefacts: vec![archive],
        common: Vec::new(),
        folder: out.to_owned(),
    })
}

/// Packs these entries of a folder, in the order of their names, with this date and without the owner.
pub fn tar(folder: &Path, entries: &[&str], date: &str, to: &Path) -> Result<()> {
    host::run(
        Command::new("tar")
            .args(["--create", "--format=ustar", "--sort=name", "--numeric-owner"])
            .args(["--owner=0", "--group=0", "--mode=u=rwX,go=rX"])
            .arg(format!("--mtime={date} UTC"))
            .arg("--file")
            .arg(to)
            .args(entries)
            .current_dir(folder)
            .env_remove("TAR_OPTIONS"),
    )
}

/// Compresses a file, whose name then ends with `.gz`.
pub fn gzip(file: &Path) -> Result<()> {
    let mut gzip = Command::new("gzip");
    host::run(gzip.args(["-9", "--no-name", "--force"]).arg(file).env_remove("GZIP"))
}

/// Writes a file with the checksums of these files of a folder, in the format of `sha256sum`.
pub fn write_sums(folder: &Path, files: &[&str]) -> Result<()> {
    write(folder, SUMS, sums(folder, files)?.as_bytes()).map(drop)
}

/// Returns the SHA-256 digest of a file in hexadecimal.
pub fn digest(file: &Path) -> Result<String> {
    let mut text = String::new();
    for byte in Sha256::digest(read(file)?) {
        // Writing to a string cannot fail.
        _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

fn sums(folder: &Path, files: &[&str]) -> Result<String> {
    let lines = files
        .iter()
        .map(|file| Ok(format!("{}  {file}\n", digest(&folder.join(file))?)));
    lines.collect()
}

/// Reads a file. The error names it.
pub fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Writes a file in a folder, which it creates if necessary. Only the tool is executable.
pub fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;

    let file = folder.join(name);
    let parent = file.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let mode = if name.rsplit('/').next() == Some("kmesh-trace") {
        0o755
    } else {
        0o644
    };
    fs::write(&file, bytes)
        .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
