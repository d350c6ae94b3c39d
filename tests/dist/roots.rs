//! Root file systems of other systems, with the binary.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::support::probe::NAMESPACES;
use crate::support::{net, scratch_dir};
use crate::{output, tool};

/// A system with a root file system.
pub struct System {
    /// Its name in names of tests.
    pub name: &'static str,
    /// Creates its root file system, or returns why that failed.
    pub root: fn() -> Result<PathBuf, String>,
    /// The command that starts the tool: the binary itself, or the system's shell.
    pub start: &'static [&'static str],
}

const SHELL: &[&str] = &["/bin/sh", "-c", "exec \"$0\" \"$@\"", "/kmesh-trace"];

/// An empty system, a small one, and a complete one that is older than the build system.
pub const SYSTEMS: [System; 3] = [
    System {
        name: "empty_root",
        root: || Ok(empty_root("empty-root")),
        start: &["/kmesh-trace"],
    },
    System {
        name: "busybox",
        root: busybox,
        start: SHELL,
    },
    System {
        name: "debian_11",
        root: || DEBIANS[0].root(),
        start: SHELL,
    },
];

/// Creates a root with the binary and the empty folders /proc and /sys.
pub fn empty_root(name: &str) -> PathBuf {
    let root = scratch_dir().join(name);
    _ = fs::remove_dir_all(&root);
    add_binary(root)
}

fn add_binary(root: PathBuf) -> PathBuf {
    for folder in ["proc", "sys"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy(tool(), root.join("kmesh-trace")).unwrap();
    root
}

fn busybox() -> Result<PathBuf, String> {
    let found = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    let found = found.ok_or("no busybox (Debian: busybox-static)")?;
    let root = empty_root("busybox");
    fs::create_dir(root.join("bin")).unwrap();
    fs::copy(found, root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let runs = Command::new("chroot").arg(&root).args(["/bin/sh", "-c", ":"]).output();
    match runs {
        Ok(output) if output.status.success() => Ok(root),
        _ => Err("busybox is not static (Debian: busybox-static)".to_owned()),
    }
}

/// A release of Debian.
pub struct Debian {
    /// Its name in names of tests.
    pub name: &'static str,
    suite: &'static str,
    /// The start of its version.
    pub version: &'static str,
    root: LazyLock<Result<PathBuf, String>>,
}

impl Debian {
    /// Returns its root file system, or why there is none.
    pub fn root(&self) -> Result<PathBuf, String> {
        self.root.clone()
    }
}

/// The releases of Debian in which the package must work.
pub static DEBIANS: [Debian; 3] = [
    Debian {
        name: "debian_11",
        suite: "bullseye",
        version: "11.",
        root: LazyLock::new(|| debian(&DEBIANS[0])),
    },
    Debian {
        name: "debian_12",
        suite: "bookworm",
        version: "12.",
        root: LazyLock::new(|| debian(&DEBIANS[1])),
    },
    Debian {
        name: "debian_13",
        suite: "trixie",
        version: "13.",
        root: LazyLock::new(|| debian(&DEBIANS[2])),
    },
];

/// Creates the root of a Debian with an NSS module, which is of another glibc than the binary's. Later runs use it
/// again.
fn debian(debian: &Debian) -> Result<PathBuf, String> {
    let root = scratch_dir().join(debian.name);
    let complete = root.join("complete");
    if !complete.exists() {
        _ = fs::remove_dir_all(&root);
        let arguments = ["--variant=minbase", "--include=libnss-myhostname", debian.suite];
        net::try_run("debootstrap", &[&arguments[..], &[root.to_str().unwrap()]].concat()).map_err(|why| {
            format!(
                "cannot create Debian's {}: {}",
                debian.suite,
                why.lines().next_back().unwrap_or_default()
            )
        })?;
        fs::write(complete, "").unwrap();
    }
    Ok(add_binary(root))
}

/// Checks that a test can use chroot.
pub fn check_requirements() -> Result<(), String> {
    NAMESPACES.clone()
}

/// Returns a command that runs its arguments in a root, with these file systems of the kernel. The command's process
/// becomes the tool's, and its end removes the mounts.
pub fn enter(root: &Path, mounted: &[&str]) -> Command {
    let script = "root=$1 mounted=$2; shift 2
        for name in $mounted; do mount --rbind /$name \"$root/$name\" || exit; done
        exec chroot \"$root\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(root).arg(mounted.join(" "));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Runs a command in a root, and returns its standard output.
pub fn run_in(root: &Path, mounted: &[&str], arguments: &[&str]) -> String {
    output(enter(root, mounted).args(arguments))
}
