//! The Debian package. It needs no other package, and has no scripts.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{AUTHORS, HOMEPAGE, Release, SUMMARY, VERSION, archive};
use crate::host;

/// The files of the archive, and where the package has them.
const FILES: [(&str, &str); 7] = [
    ("kmesh-trace", "usr/bin/kmesh-trace"),
    ("man/kmesh-trace.8", "usr/share/man/man8/kmesh-trace.8"),
    (
        "completions/kmesh-trace.bash",
        "usr/share/bash-completion/completions/kmesh-trace",
    ),
    (
        "completions/_kmesh-trace",
        "usr/share/zsh/vendor-completions/_kmesh-trace",
    ),
    (
        "completions/kmesh-trace.fish",
        "usr/share/fish/vendor_completions.d/kmesh-trace.fish",
    ),
    ("README.md", "usr/share/doc/kmesh-trace/README.md"),
    ("THIRD-PARTY", "usr/share/doc/kmesh-trace/THIRD-PARTY"),
];
const COPYRIGHT: &str = "usr/share/doc/kmesh-trace/copyright";
const CHANGELOG: &str = "usr/share/doc/kmesh-trace/changelog";
/// The files that the Debian policy wants compressed.
const COMPRESSED: [&str; 3] = [FILES[1].1, FILES[6].1, CHANGELOG];

/// Packs the release's files into a package, and returns its path.
pub fn pack(release: &Release, root: &Path) -> Result<PathBuf> {
    let tree = release.folder.join("deb");
    for (from, to) in FILES {
        let bytes = archive::read(&release.files.join(from))?;
        archive::write(&tree, to, &bytes)?;
    }
    archive::write(&tree, COPYRIGHT, copyright(release)?.as_bytes())?;
    archive::write(&tree, CHANGELOG, &archive::read(&root.join("CHANGELOG.md"))?)?;
    for file in COMPRESSED {
        archive::gzip(&tree.join(file))?;
    }
    let sums = host::text(
        Command::new("sh")
            .args(["-c", "find usr -type f | LC_ALL=C sort | xargs md5sum"])
            .current_dir(&tree),
    )?;
    archive::write(&tree, "DEBIAN/md5sums", sums.as_bytes())?;
    let size = host::text(
        Command::new("du")
            .args(["-sk", "--apparent-size", "usr"])
            .current_dir(&tree),
    )?;
    let size = size.split_whitespace().next().context("du printed no size")?;
    archive::write(&tree, "DEBIAN/control", control(release, size).as_bytes())?;

    let version = debian_version();
    let file = release
        .folder
        .join(format!("kmesh-trace_{version}_{}.deb", release.arch.debian()));
    host::run(Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(&tree))?;
    let seconds = host::text(Command::new("date").args(["-u", "+%s", "-d", &release.date]))?;
    host::output(
        Command::new("dpkg-deb")
            // xz, since Debian 11 does not read zstd. More threads would give other bytes.
            .args(["--root-owner-group", "-Zxz", "--threads-max=1", "--build"])
            .args([&tree, &file])
            .env("SOURCE_DATE_EPOCH", seconds.trim()),
    )?;
    fs::remove_dir_all(&tree).with_context(|| format!("cannot remove {}", tree.display()))?;
    Ok(file)
}

/// Returns the version as Debian writes it: `1.0~rc.1` is before `1.0`.
fn debian_version() -> String {
    VERSION.replace('-', "~")
}

fn control(release: &Release, kibibytes: &str) -> String {
    format!(
        "Package: kmesh-trace\n\
         Version: {}\n\
         Architecture: {}\n\
         Maintainer: {AUTHORS}\n\
         Installed-Size: {kibibytes}\n\
         Section: net\n\
         Priority: optional\n\
         Homepage: {HOMEPAGE}\n\
         Description: {SUMMARY}\n \
         Each line has both ends, the process, the bytes, the duration and how the\n \
         connection ended. On a Kubernetes node, it names pods and Services. The\n \
         program is one static file with eBPF programs inside. It needs a kernel\n \
         with BTF, and nothing else of the system.\n",
        debian_version(),
        release.arch.debian(),
    )
}

/// Returns the licences of the tool. The licences of linked code are in another file.
fn copyright(release: &Release) -> Result<String> {
    let mut text = format!(
        "kmesh-trace is from {HOMEPAGE}\n\n\
         The program is licensed under the Apache License 2.0 or the MIT licence. The eBPF programs in it are also\n\
         licensed under the GNU GPL version 2. THIRD-PARTY.gz in this folder has the licences of all that is linked in.\n\
         On Debian, /usr/share/common-licenses has the texts of Apache-2.0 and GPL-2.\n"
    );
    for name in ["LICENSE-MIT", "LICENSE-APACHE", "LICENSE-GPL2"] {
        let licence = archive::read(&release.files.join(name))?;
        // Writing to a string cannot fail.
        _ = write!(text, "\n{name}:\n\n{}", String::from_utf8_lossy(&licence));
    }
    Ok(text)
}
