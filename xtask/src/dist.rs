//! `cargo xtask dist`: builds what a release consists of: an archive with one static executable, manual, completions
//! and licences; a Debian package, an image, an SBOM and a krew manifest; and the checksums of all. The build is
//! reproducible: the same sources, compiler and C library give the same bytes in any folder.

mod archive;
mod cross;
mod deb;
mod image;
mod krew;
mod linked;
mod reproducible;
mod sbom;
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
    /// Test the artefacts: their checksums, the executable in root folders of other systems and in a VM that contains
    /// only the executable and busybox, the package in Debian, the image in containerd; for another architecture, only
    /// the executable in the VM
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

/// The homepage, the authors and the version, by the workspace's manifest.
const HOMEPAGE: &str = env!("CARGO_PKG_HOMEPAGE");
const AUTHORS: &str = env!("CARGO_PKG_AUTHORS");
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What the tool does, in one line.
const SUMMARY: &str = "Prints one line for every TCP connection that closes on this node";

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

/// Builds the artefacts, and tests them if the arguments say so.
pub fn run(args: &Args) -> Result<ExitCode> {
    let here = Arch::here();
    let Some(arch) = args.arch.or(here) else {
        bail!("the tool does not support the architecture of this machine: select one with --arch");
    };
    let profile = if args.unoptimised { "dev" } else { "dist" };
    let release = build_here(arch, profile)?;
    for file in release.downloads().chain([&release.tool]) {
        let bytes = fs::metadata(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .len();
        println!("{}: {:.2} MiB", file.display(), bytes as f64 / f64::from(1 << 20));
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

/// What was built for one architecture.
pub struct Release {
    arch: Arch,
    /// The profile of the build.
    profile: &'static str,
    /// The date of all files, as `2024-09-14`.
    date: String,
    /// The folder of the artefacts and of [`Self::files`].
    folder: PathBuf,
    /// The folder that the archive contains.
    files: PathBuf,
    /// The executable in [`Self::files`].
    tool: PathBuf,
    /// The files that users download, for this architecture: archive, package and SBOM.
    artefacts: Vec<PathBuf>,
    /// The files that users download, for all architectures of a release: image and krew manifest.
    common: Vec<PathBuf>,
}

impl Release {
    fn downloads(&self) -> impl Iterator<Item = &PathBuf> {
        self.artefacts.iter().chain(&self.common)
    }
}

fn build_here(arch: Arch, profile: &'static str) -> Result<Release> {
    build(arch, profile, &host::root(), &host::target_dir(), &host::cargo_home()?)
}

/// Builds for these architectures, and copies the artefacts to a new folder, with one image and one krew manifest for
/// all of them.
pub fn gather(archs: &[Arch], profile: &'static str, out: &Path) -> Result<()> {
    let releases = archs.iter().map(|&arch| build_here(arch, profile));
    let releases = releases.collect::<Result<Vec<_>>>()?;
    if out.exists() {
        fs::remove_dir_all(out).with_context(|| format!("cannot remove {}", out.display()))?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    for file in releases.iter().flat_map(|release| &release.artefacts) {
        let to = out.join(file.file_name().context("an artefact has no name")?);
        fs::copy(file, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    finish(&releases.iter().collect::<Vec<_>>(), "linux", &host::root(), out).map(drop)
}

/// Builds the sources in `root`, and packs the artefacts in a folder of `target`.
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
    let mut release = archive::pack(arch, profile, root, &out, &tool)?;
    release.artefacts.push(deb::pack(&release, root)?);
    release.artefacts.push(sbom::write(&release, root)?);
    release.common = finish(&[&release], &format!("{}-linux", arch.name()), root, &out)?;
    Ok(release)
}

/// Makes the image and the krew manifest of these releases in `out`, and the checksums of all artefacts, which are
/// there too.
fn finish(releases: &[&Release], platform: &str, root: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    let common = vec![image::pack(releases, platform, out)?, krew::write(releases, root, out)?];
    let artefacts = releases.iter().flat_map(|release| &release.artefacts).chain(&common);
    let names: Option<Vec<_>> = artefacts.map(|file| file.file_name()?.to_str()).collect();
    let mut names = names.context("an artefact has no name")?;
    names.sort_unstable();
    archive::write_sums(out, &names)?;
    Ok(common)
}

fn remap(from: &Path, to: &str) -> [OsString; 2] {
    let mut map = from.as_os_str().to_owned();
    map.push("=");
    map.push(to);
    ["--remap-path-prefix".into(), map]
}
