//! The Debian package: dpkg installs it, the tool runs, and dpkg removes all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use crate::roots::{DEBIANS, check_requirements, enter, run_in};
use crate::support::scratch_dir;
use crate::{artefact, output, trial};

/// The files that the package must have.
const FILES: [&str; 5] = [
    "usr/bin/kmesh-trace",
    "usr/share/bash-completion/completions/kmesh-trace",
    "usr/share/doc/kmesh-trace/THIRD-PARTY.gz",
    "usr/share/doc/kmesh-trace/copyright",
    "usr/share/man/man8/kmesh-trace.8.gz",
];

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![trial(
        "empty_root::dpkg_installs_and_removes",
        check_requirements,
        || {
            in_empty_root();
        },
    )];
    for debian in &DEBIANS {
        trials.push(trial(
            &format!("{}::dpkg_installs_and_removes", debian.name),
            || check_requirements().and_then(|()| debian.root().map(drop)),
            || in_debian(&debian.root().unwrap(), debian.version),
        ));
    }
    trials
}

/// Installs the package in a root that contains nothing but dpkg's database.
fn in_empty_root() {
    let root = scratch_dir().join("empty-root-deb");
    _ = fs::remove_dir_all(&root);
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "proc", "sys"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |action: &str, what: &Path| {
        let root = root.to_str().unwrap();
        output(Command::new("dpkg").args(["--root", root, action]).arg(what))
    };
    dpkg("--install", &artefact(".deb"));
    check_installed(&root, &dpkg("--listfiles", Path::new("kmesh-trace")));
    dpkg("--remove", Path::new("kmesh-trace"));
    assert!(!root.join("usr").exists(), "the package left files");
}

/// Installs the package in Debian as its administrator does.
fn in_debian(root: &Path, version: &str) {
    let debian_version = fs::read_to_string(root.join("etc/debian_version")).unwrap();
    assert!(debian_version.starts_with(version), "{debian_version}");
    let dpkg = |arguments: &[&str]| run_in(root, &[], &[&["dpkg"], arguments].concat());
    let before = files(root);
    fs::copy(artefact(".deb"), root.join("kmesh-trace.deb")).unwrap();
    dpkg(&["--install", "/kmesh-trace.deb"]);
    fs::remove_file(root.join("kmesh-trace.deb")).unwrap();
    check_installed(root, &dpkg(&["--listfiles", "kmesh-trace"]));
    // The digests of the installed files are those of the package.
    assert_eq!(dpkg(&["--verify", "kmesh-trace"]), "");
    let check = output(enter(root, &["proc", "sys"]).args(["kmesh-trace", "check"]));
    assert!(check.starts_with("ok "), "{check}");
    dpkg(&["--remove", "kmesh-trace"]);
    let after = files(root);
    assert_eq!(after.difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(before.difference(&after).collect::<Vec<_>>(), Vec::<&String>::new());
}

fn check_installed(root: &Path, list: &str) {
    for file in FILES {
        assert!(list.lines().any(|line| line == format!("/{file}")), "{file}: {list}");
        assert!(root.join(file).is_file(), "{file}");
    }
    let version = run_in(root, &[], &["/usr/bin/kmesh-trace", "--version"]);
    assert_eq!(version, format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION")));
}

/// Returns all files and folders of a root, except dpkg's database and logs.
fn files(root: &Path) -> BTreeSet<String> {
    let list = output(
        Command::new("find")
            .args([
                ".",
                "-path",
                "./var/lib/dpkg",
                "-prune",
                "-o",
                "-path",
                "./var/log",
                "-prune",
            ])
            .args(["-o", "-print"])
            .current_dir(root),
    );
    list.lines().map(str::to_owned).collect()
}
