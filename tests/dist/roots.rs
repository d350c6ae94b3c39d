//! Roots of other systems, with the file in them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::support::probe::NAMESPACES;
use crate::support::{net, scratch_dir};
use crate::{output, tool};

/// A system whose root can be had.
pub struct System {
    /// In names of trials.
    pub name: &'static str,
    /// Makes a root of it, or says why there is none.
    pub root: fn() -> Result<PathBuf, String>,
    /// The command in it that starts the tool: itself, or the system's shell.
    pub start: &'static [&'static str],
}

const SHELL: &[&str] = &["/bin/sh", "-c", "exec \"$0\" \"$@\"", "/kmesh-trace"];

/// From none at all to a whole one, older than what built the file.
pub const SYSTEMS: [System; 3] = [
    System {
        name: "only_the_file",
        root: || Ok(only_the_file("only-the-file")),
        start: &["/kmesh-trace"],
    },
    System {
        name: "busybox",
        root: busybox,
        start: SHELL,
    },
    System {
        name: "debian_11",
        root: || DEBIAN_11.clone(),
        start: SHELL,
    },
];

/// A folder with the file, and empty ones where the kernel's own file systems go.
pub fn only_the_file(name: &str) -> PathBuf {
    let root = scratch_dir().join(name);
    _ = fs::remove_dir_all(&root);
    with_file(root)
}

fn with_file(root: PathBuf) -> PathBuf {
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
    let root = only_the_file("busybox");
    fs::create_dir(root.join("bin")).unwrap();
    fs::copy(found, root.join("bin/busybox")).unwrap();
    symlink("busybox", root.join("bin/sh")).unwrap();
    let runs = Command::new("chroot").arg(&root).args(["/bin/sh", "-c", ":"]).output();
    match runs {
        Ok(output) if output.status.success() => Ok(root),
        _ => Err("busybox is not static (Debian: busybox-static)".to_owned()),
    }
}

/// Its packages, with one of the modules that look names up, from another glibc than the file's. Kept between runs.
static DEBIAN_11: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    let root = scratch_dir().join("debian-11");
    let whole = root.join("whole");
    if !whole.exists() {
        _ = fs::remove_dir_all(&root);
        let arguments = ["--variant=minbase", "--include=libnss-myhostname", "bullseye"];
        net::try_run("debootstrap", &[&arguments[..], &[root.to_str().unwrap()]].concat()).map_err(|why| {
            format!(
                "Debian 11 cannot be had: {}",
                why.lines().next_back().unwrap_or_default()
            )
        })?;
        fs::write(whole, "").unwrap();
    }
    let version = fs::read_to_string(root.join("etc/debian_version")).unwrap();
    assert!(version.starts_with("11."), "{version}");
    Ok(with_file(root))
});

/// Why no root can be entered here.
pub fn missing() -> Result<(), String> {
    NAMESPACES.clone()
}

/// What starts a command in a root, where of the kernel's file systems these are mounted. It is the tool's own process
/// in the end, and the mounts go with it.
pub fn enter(root: &Path, mounted: &[&str]) -> Command {
    let script = "root=$1 mounted=$2; shift 2
        for one in $mounted; do mount --rbind /$one \"$root/$one\" || exit; done
        exec chroot \"$root\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(root).arg(mounted.join(" "));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// What the tool prints in a root, when it succeeds.
pub fn told(root: &Path, mounted: &[&str], arguments: &[&str]) -> String {
    output(enter(root, mounted).args(arguments))
}
