//! `cargo xtask dist`: one archive to copy anywhere: the tool as one static file, manual, completions, licences and sums.
//! The same sources give the same bytes, wherever they are built by the same compiler and C library.

mod again;
mod archive;
mod cross;
mod third_party;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::counts::Counts;
use crate::host::{self, Need};
use crate::{built, test, vm};

/// What `cargo xtask dist` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Build for this architecture [default: this machine's]
    #[arg(long)]
    arch: Option<Arch>,
    /// Try what was made: its sums, and the file in roots of other systems and in a machine that holds it and busybox only,
    /// where it must trace. Of what another architecture than this machine's executes, the last
    #[arg(long)]
    test: bool,
    /// Make it once more from a copy of the sources in another folder: it must be the same, to the bit
    #[arg(long)]
    again: bool,
    /// Build quickly and without optimisations, to test it and not to give it away
    #[arg(long)]
    unoptimised: bool,
    /// Filters for the trials of --test, which then boots no VM
    #[arg(last = true, requires = "test")]
    args: Vec<String>,
}

/// What cargo calls the environment variable with the compiler's flags, and what stands between two of them.
const FLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";
const SEPARATOR: &str = "\x1f";

/// What the tests call, besides what all kernel tests do.
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

/// Makes the archive, and tries it as far as it is asked to.
pub fn run(args: &Args) -> Result<ExitCode> {
    let here = Arch::here();
    let Some(arch) = args.arch.or(here) else {
        bail!("this machine is no architecture that the tool is built for: name one with --arch");
    };
    let profile = if args.unoptimised { "dev" } else { "dist" };
    let made = make(arch, profile, &host::root(), &host::target_dir(), &host::cargo_home()?)?;
    println!("{}", made.archive.display());
    for (what, file) in [("archive", &made.archive), ("file", &made.tool)] {
        let bytes = fs::metadata(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .len();
        println!("{what}: {bytes} bytes, {:.2} MiB", bytes as f64 / f64::from(1 << 20));
    }
    let mut counts = Counts::default();
    if args.test && here == Some(arch) {
        host::provide(host::TEST_TOOLS.iter().chain(TEST_TOOLS));
        let folder = [("KMESH_TRACE_DIST", made.folder.as_os_str())];
        counts += test::suites(&["--package", "kmesh-trace", "--test", "dist"], &args.args, &folder)?;
    }
    if args.test && args.args.is_empty() {
        counts += vm::alone::run(arch, &made.tool, &vm::folder())?;
    }
    if args.again {
        counts += again::compare(&made)?;
    }
    if args.test || args.again {
        println!("{counts}");
    }
    Ok(counts.exit_code())
}

/// What there is in the end.
struct Made {
    /// What executes it.
    arch: Arch,
    /// The profile of Cargo.toml that it was built with.
    profile: &'static str,
    /// Where the rest is.
    folder: PathBuf,
    /// What is given away.
    archive: PathBuf,
    /// The tool, as it is in the archive.
    tool: PathBuf,
}

/// Builds the sources in `root` and packs what comes of them in a folder of `target`.
fn make(arch: Arch, profile: &'static str, root: &Path, target: &Path, cargo_home: &Path) -> Result<Made> {
    let mut cargo = host::cargo();
    cargo
        .current_dir(root)
        .args(["build", "--locked", "--profile", profile, "--package", "kmesh-trace"])
        // Naming the target keeps this build apart from the ordinary one, and the flags away from build scripts and macros.
        .args(["--bin", "kmesh-trace", "--target", arch.target(), "--target-dir"])
        .arg(target)
        .env("CARGO_HOME", cargo_home)
        // The tests' profile shares macros and build scripts with the tests' build. This does not change those.
        .args(["--config", "profile.dev.opt-level=0"])
        .env_remove("CARGO_TARGET_DIR")
        // Another object than the committed one is for tests.
        .env_remove("KMESH_TRACE_EBPF_OBJECT");
    // Where things were built is in the texts of panics. The last that fits counts.
    let places = [(root, "/kmesh-trace"), (target, "/target"), (cargo_home, "/cargo")];
    let flags = places.iter().flat_map(|(from, to)| remapped(from, to));
    // Addresses of a program that may be anywhere are half a megabyte of relocations, or a tenth of that.
    let how = [
        "-C",
        "target-feature=+crt-static",
        "-C",
        // In the profile it would not reach a package whose own settings the profile has.
        "strip=symbols",
        "-C",
        "link-arg=-Wl,-z,pack-relative-relocs",
    ];
    let flags: Vec<_> = how.map(OsString::from).into_iter().chain(flags).collect();
    cargo.env(FLAGS, flags.join(SEPARATOR.as_ref()));
    if Arch::here() != Some(arch) {
        cross::compile(&mut cargo, arch)?;
    }
    let tool = built::build(cargo)?.path("bin", "kmesh-trace")?;
    let out = target.join(format!("{profile}-archive")).join(arch.name());
    archive::pack(arch, profile, root, &out, &tool)
}

fn remapped(from: &Path, to: &str) -> [OsString; 2] {
    let mut map = from.as_os_str().to_owned();
    map.push("=");
    map.push(to);
    ["--remap-path-prefix".into(), map]
}
