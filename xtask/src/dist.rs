//! `cargo xtask dist`: builds the release archive: one static executable, manual, completions, licences and checksums.
//! The build is reproducible: the same sources, compiler and C library give the same bytes in any folder.

mod archive;
mod cross;
mod reproducible;
mod third_party;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::counts::Counts;
use crate::host::{self, Need};
use crate::{artifacts, test, vm};

#[derive(clap::Args)]
pub struct Args {
    /// Build for this architecture [default: this machine's]
    #[arg(long)]
    arch: Option<Arch>,
    /// Test the archive: its checksums, and the executable in root folders of other systems and in a VM that contains
    /// only the executable and busybox; for another architecture, only in the VM
    #[arg(long)]
    test: bool,
    /// Build a second time from a copy of the sources in another folder, and compare the bytes
    #[arg(long)]
    reproducible: bool,
    /// Build without optimizations: fast, for tests only
    #[arg(long)]
    unoptimised: bool,
    /// Filters for the tests of --test, which then boots no VM
    #[arg(last = true, requires = "test")]
    args: Vec<String>,
}

/// Cargo's environment variable with the compiler's flags, and the separator between two flags.
const FLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";
const SEPARATOR: &str = "\x1f";

/// The programs that the tests call, besides those of all kernel tests.
pub const TEST_TOOLS: &[Need] = &[
    Need {
        program: "busybox",
        package: "busybox-static",
    },
    Need {
        program: "debootstrap",
        package: "debootstrap",
    },
];

/// Builds the archive, and tests it if the arguments say so.
pub fn run(args: &Args) -> Result<ExitCode> {
    let here = Arch::here();
    let Some(arch) = args.arch.or(here) else {
        bail!("the tool does not support the architecture of this machine: select one with --arch");
    };
    let profile = if args.unoptimised { "dev" } else { "dist" };
    let release = build(arch, profile, &host::root(), &host::target_dir(), &host::cargo_home()?)?;
    println!("{}", release.archive.display());
    for (what, file) in [("archive", &release.archive), ("file", &release.tool)] {
        let bytes = fs::metadata(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .len();
        println!("{what}: {bytes} bytes, {:.2} MiB", bytes as f64 / f64::from(1 << 20));
    }
    let mut counts = Counts::default();
    if args.test && here == Some(arch) {
        host::try_ensure(host::TEST_TOOLS.iter().chain(TEST_TOOLS));
        let folder = [("KMESH_TRACE_DIST", release.folder.as_os_str())];
        counts += test::suites(&["--package", "kmesh-trace", "--test", "dist"], &args.args, &folder)?;
    }
    if args.test && args.args.is_empty() {
        counts += vm::boot_static::run(arch, &release.tool, &vm::folder())?;
    }
    if args.reproducible {
        counts += reproducible::compare(&release)?;
    }
    if args.test || args.reproducible {
        println!("{counts}");
    }
    Ok(counts.exit_code())
}

/// A release archive and its parts.
struct Release {
    arch: Arch,
    /// The profile of the build.
    profile: &'static str,
    /// The folder that contains the files.
    folder: PathBuf,
    archive: PathBuf,
    /// The executable that the archive contains.
    tool: PathBuf,
}

/// Builds the sources in `root`, and packs the archive in a folder of `target`.
fn build(arch: Arch, profile: &'static str, root: &Path, target: &Path, cargo_home: &Path) -> Result<Release> {
    let mut cargo = host::cargo();
    cargo
        .current_dir(root)
        .args(["build", "--locked", "--profile", profile, "--package", "kmesh-trace"])
        // With an explicit target, the flags do not apply to build scripts and macros.
        .args(["--bin", "kmesh-trace", "--target", arch.target(), "--target-dir"])
        .arg(target)
        .env("CARGO_HOME", cargo_home)
        // The dev profile shares macros and build scripts with the build of the tests, which this setting does not
        // change.
        .args(["--config", "profile.dev.opt-level=0"])
        .env_remove("CARGO_TARGET_DIR")
        // The variable selects another eBPF object, for tests only.
        .env_remove("KMESH_TRACE_EBPF_OBJECT");
    // Panic messages contain paths. The last prefix that fits replaces a path.
    let folders = [(root, "/kmesh-trace"), (target, "/target"), (cargo_home, "/cargo")];
    let flags = folders.iter().flat_map(|(from, to)| remap(from, to));
    // Packed relocations save half a megabyte.
    let options = [
        "-C",
        "target-feature=+crt-static",
        "-C",
        // In the profile, it would not apply to packages with their own settings.
        "strip=symbols",
        "-C",
        "link-arg=-Wl,-z,pack-relative-relocs",
    ];
    let flags: Vec<_> = options.map(OsString::from).into_iter().chain(flags).collect();
    cargo.env(FLAGS, flags.join(SEPARATOR.as_ref()));
    if Arch::here() != Some(arch) {
        cross::configure(&mut cargo, arch)?;
    }
    let tool = artifacts::build(cargo)?.path("bin", "kmesh-trace")?;
    let out = target.join(format!("{profile}-archive")).join(arch.name());
    archive::pack(arch, profile, root, &out, &tool)
}

fn remap(from: &Path, to: &str) -> [OsString; 2] {
    let mut map = from.as_os_str().to_owned();
    map.push("=");
    map.push(to);
    ["--remap-path-prefix".into(), map]
}
