//! The machine this runs on: where things are, which programs it has, and how it gets those that are missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::arch::Arch;

/// A program, and the Debian package that has it.
pub struct Need {
    /// What is called.
    pub program: &'static str,
    /// What is installed.
    pub package: &'static str,
}

/// Debian's compiler: Debian has prebuilt libraries for what the stable toolchain has none for, eBPF and other architectures.
pub const RUSTC: &str = "/usr/bin/rustc";

/// What the kernel tests call, here and in a test machine.
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

/// The shells in which the completion scripts are tried, beside bash.
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

/// What scrapes the tool and executes the queries of `deploy/`.
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

/// What the scripts call that start a kubelet and an API server (`tests/support/k8s`).
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

/// The workspace's root folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| ".".into(), Path::to_path_buf)
}

/// Where cargo builds, and where these tasks keep what they fetched.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where cargo keeps what it downloaded.
pub fn cargo_home() -> Result<PathBuf> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("where is cargo's home? HOME is not set")
}

/// The cargo that started this task.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // What it says of this package to this process is no news for another cargo, and some build scripts would begin anew.
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

/// Returns what `cargo metadata` says of the workspace in `root`, for these architectures.
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

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Finds a program where a login shell of root would. An ordinary user's PATH often lacks the sbin folders.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Makes sure that the programs are there: root on a Debian system gets what is missing, anyone else is told.
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
    if !installs() {
        bail!(
            "missing on this machine: {0}; on Debian: sudo apt-get install {0}",
            packages.join(" ")
        );
    }
    install(&packages)
}

/// Installs the programs that tests call, as far as they are missing. Where that is not possible, says which are missing: the
/// tests that need one of them are skipped.
pub fn provide<'a>(needs: impl IntoIterator<Item = &'a Need>) {
    if let Err(error) = ensure(needs) {
        eprintln!("xtask: {error:#}\nxtask: tests that need what is missing are skipped");
    }
}

/// Whether these tasks may install Debian's packages here: root on a Debian system.
pub fn installs() -> bool {
    is_root() && find("apt-get").is_some()
}

/// Installs packages of Debian's.
pub fn install(packages: &[&str]) -> Result<()> {
    eprintln!("xtask: installing {}", packages.join(" "));
    apt_get(&["update", "-q"])?;
    // Another program may be installing something, too.
    let wait = ["-o", "DPkg::Lock::Timeout=600"];
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    apt_get(&[&wait[..], &install, packages].concat())
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    output(apt.args(args).env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

/// Runs a command whose output is for the person; an error when it does not succeed.
pub fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !status.success() {
        bail!("{}: {status}", shown(command));
    }
    Ok(())
}

/// Runs a command for its standard output; an error, with what it said, when it does not succeed.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{}: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}

/// The same, as text.
pub fn text(command: &mut Command) -> Result<String> {
    let bytes = output(command)?;
    String::from_utf8(bytes).with_context(|| format!("{} did not print UTF-8", shown(command)))
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
