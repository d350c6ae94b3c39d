//! This machine: its folders, its programs, and the installation of missing programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::arch::Arch;

/// A program and the Debian package that contains it.
pub struct Need {
    pub program: &'static str,
    pub package: &'static str,
}

/// Debian's compiler. Debian has prebuilt standard libraries for eBPF and for other architectures.
pub const RUSTC: &str = "/usr/bin/rustc";

/// The programs that the kernel tests call, on this machine and in a VM.
pub const TEST_TOOLS: &[Need] = &[
    Need {
        program: "ip",
        package: "iproute2",
    },
    Need {
        program: "ss",
        package: "iproute2",
    },
    Need {
        program: "tc",
        package: "iproute2",
    },
    Need {
        program: "nft",
        package: "nftables",
    },
    Need {
        program: "tmux",
        package: "tmux",
    },
];

/// The real servers and clients of the kernel tests, on this machine only. PostgreSQL is not among them, since it needs
/// 160 MiB: its test is skipped where it is missing.
pub const SERVERS: &[Need] = &[
    Need {
        program: "python3",
        package: "python3",
    },
    Need {
        program: "redis-server",
        package: "redis-server",
    },
    Need {
        program: "nghttpd",
        package: "nghttp2-server",
    },
    Need {
        program: "nghttp",
        package: "nghttp2-client",
    },
];

/// The shells besides bash in which the completion scripts are tested.
pub const SHELLS: &[Need] = &[
    Need {
        program: "zsh",
        package: "zsh",
    },
    Need {
        program: "fish",
        package: "fish",
    },
];

/// The programs that the examples of the README, the manual and `examples/` call.
pub const EXAMPLES: &[Need] = &[
    Need {
        program: "jq",
        package: "jq",
    },
    Need {
        program: "zstdcat",
        package: "zstd",
    },
];

/// The programs that scrape the tool and evaluate the queries of `deploy/`.
pub const PROMETHEUS: &[Need] = &[
    Need {
        program: "prometheus",
        package: "prometheus",
    },
    Need {
        program: "promtool",
        package: "prometheus",
    },
];

/// The programs that the scripts in `tests/support/k8s` call, which start a kubelet and an API server.
pub const CLUSTER: &[Need] = &[
    Need {
        program: "curl",
        package: "curl",
    },
    Need {
        program: "openssl",
        package: "openssl",
    },
    Need {
        program: "sysctl",
        package: "procps",
    },
    Need {
        program: "xz",
        package: "xz-utils",
    },
];

/// Returns the root folder of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| ".".into(), Path::to_path_buf)
}

/// Returns cargo's target folder. It also contains the downloads of these tasks.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Returns cargo's home folder, which contains its downloads.
pub fn cargo_home() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("cannot find cargo's home folder: HOME is not set")
}

/// Returns a command for the cargo that started this task.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // These variables describe xtask. With them, some build scripts would run again.
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Returns the output of `cargo metadata` for the workspace in `root` and these architectures.
pub fn metadata(root: &Path, archs: &[Arch], options: &[&str]) -> Result<Value> {
    let mut cargo = cargo();
    cargo
        .current_dir(root)
        .args(["metadata", "--locked", "--format-version", "1"]);
    for arch in archs {
        cargo.args(["--filter-platform", arch.target()]);
    }
    serde_json::from_slice(&output(cargo.args(options))?).context("cargo metadata")
}

/// Returns whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Finds a program in PATH, and in the system folders: the PATH of a user often lacks the sbin folders.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Ensures that the programs are installed: installs missing packages as root on Debian, otherwise returns an error
/// that names them.
pub fn ensure<'a>(needs: impl IntoIterator<Item = &'a Need>) -> Result<()> {
    let mut packages: Vec<&str> = needs
        .into_iter()
        .filter(|need| find(need.program).is_none())
        .map(|need| need.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !can_install() {
        bail!(
            "missing on this machine: {0}; on Debian: sudo apt-get install {0}",
            packages.join(" ")
        );
    }
    install(&packages)
}

/// Installs missing programs if possible. Otherwise prints which are missing: the tests that need them are skipped.
pub fn try_ensure<'a>(needs: impl IntoIterator<Item = &'a Need>) {
    if let Err(error) = ensure(needs) {
        eprintln!("xtask: {error:#}\nxtask: the tests that need these programs are skipped");
    }
}

/// Returns whether tasks can install Debian packages: as root on a Debian system.
pub fn can_install() -> bool {
    is_root() && find("apt-get").is_some()
}

pub fn install(packages: &[&str]) -> Result<()> {
    eprintln!("xtask: installing {}", packages.join(" "));
    apt_get(&["update", "-q"])?;
    // Another program may hold the lock.
    let lock = ["-o", "DPkg::Lock::Timeout=600"];
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    apt_get(&[&lock[..], &install, packages].concat())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    output(apt.args(args).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

/// Runs a command, whose output goes to the terminal. Returns an error if the command fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command_line(command)))?;
    if !status.success() {
        bail!("{}: {status}", command_line(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output. Returns an error with its standard error if the command fails.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command_line(command)))?;
    if !output.status.success() {
        bail!(
            "{}: {}\n{}",
            command_line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

/// Runs a command and returns its standard output as text. Returns an error if the command fails.
pub fn text(command: &mut Command) -> Result<String> {
    let bytes = output(command)?;
    String::from_utf8(bytes).with_context(|| format!("{} did not print UTF-8", command_line(command)))
}

fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
