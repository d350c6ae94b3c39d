//! `cargo xtask ebpf`: builds the eBPF object. The object is committed, so that users need only stable Rust.
//!
//! The provenance file beside the object contains the digests of the object and its sources, and the versions of the
//! toolchain. `--check` compares the digests and needs no toolchain. `--check-bytes` also builds the object and
//! compares the bytes.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::host::{self, RUSTC};

const PACKAGE: &str = "kmesh-trace-ebpf";
const OBJECT: &str = "kmesh-trace-ebpf/kmesh-trace.bpf.o";
const PROVENANCE: &str = "kmesh-trace-ebpf/kmesh-trace.bpf.provenance";
const TARGET: &str = "bpfel-unknown-none";
const TARGET_DIR: &str = "target/ebpf";
const STRIP: &str = "/usr/lib/llvm-22/bin/llvm-strip";
/// The files and folders of this workspace from which the object is built.
const SOURCES: [&str; 4] = [
    "kmesh-trace-ebpf/src",
    "kmesh-trace-ebpf/Cargo.toml",
    "kmesh-trace-common/src",
    "kmesh-trace-common/Cargo.toml",
];
const REMEDY: &str = "on Debian: apt-get install --no-install-recommends rustc-web rust-web-src libstd-rust-web-dev-bpf \
                      llvm-22-dev libpolly-22-dev libzstd-dev zlib1g-dev && LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker \
                      --locked --no-default-features --features llvm-22";

#[derive(clap::Args)]
pub struct Args {
    /// Check by digests that the committed object is current, without a build
    #[arg(long, conflicts_with_all = ["out", "check_bytes"])]
    check: bool,
    /// Check that a build gives the bytes of the committed object; requires the toolchain that built it
    #[arg(long, conflicts_with = "out")]
    check_bytes: bool,
    /// Write the object to FILE instead of the committed object
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Builds or checks the object.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = &host::root();
    if args.check || args.check_bytes {
        let recorded = check(root)?;
        if args.check_bytes {
            check_bytes(root, &recorded)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let toolchain = toolchain()?;
    let object = build(root)?;
    match &args.out {
        Some(out) => {
            fs::write(out, &object).with_context(|| format!("cannot write {}", out.display()))?;
            println!("{}: {} bytes", out.display(), object.len());
        }
        None => {
            fs::write(root.join(OBJECT), &object).with_context(|| format!("cannot write {OBJECT}"))?;
            let provenance = Provenance {
                sources: sources_digest(root)?,
                toolchain,
                object: hex(&Sha256::digest(&object)),
            };
            fs::write(root.join(PROVENANCE), provenance.to_text())
                .with_context(|| format!("cannot write {PROVENANCE}"))?;
            println!("{OBJECT}: {} bytes", object.len());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the digests of the object and its sources with the provenance file.
fn check(root: &Path) -> Result<Provenance> {
    let text = fs::read_to_string(root.join(PROVENANCE)).with_context(|| format!("cannot read {PROVENANCE}"))?;
    let recorded = Provenance::from_text(&text)?;
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    ensure!(
        hex(&Sha256::digest(&committed)) == recorded.object,
        "{OBJECT} does not have the digest in {PROVENANCE}: run cargo xtask ebpf"
    );
    ensure!(
        sources_digest(root)? == recorded.sources,
        "{OBJECT} is not current: its sources have changed; run cargo xtask ebpf"
    );
    println!("{OBJECT} is current, by its digests");
    Ok(recorded)
}

/// Builds the object and compares its digest with the provenance file.
fn check_bytes(root: &Path, recorded: &Provenance) -> Result<()> {
    let toolchain = toolchain().context("cannot build the object")?;
    ensure!(
        toolchain == recorded.toolchain,
        "cannot compare bytes: {OBJECT} was built with {}, but {toolchain} is installed\n  \
         try: cargo xtask ebpf, cargo xtask test and .ci/full with this toolchain, then commit the new object",
        recorded.toolchain
    );
    // Cargo does not notice if the compiler or its libraries have changed since an earlier build.
    let target = root.join(TARGET_DIR);
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    ensure!(
        hex(&Sha256::digest(build(root)?)) == recorded.object,
        "the sources and the toolchain of {OBJECT} give other bytes"
    );
    println!("{OBJECT} has the bytes that a build gives");
    Ok(())
}

/// The origin of the committed object.
struct Provenance {
    /// The SHA-256 digest of the sources and of the versions of all dependencies.
    sources: String,
    /// The versions of the compiler, the linker and llvm-strip.
    toolchain: String,
    /// The SHA-256 digest of the object.
    object: String,
}

impl Provenance {
    fn to_text(&self) -> String {
        format!(
            "sources {}\ntoolchain {}\nobject {}\n",
            self.sources, self.toolchain, self.object
        )
    }

    fn from_text(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map(str::to_owned)
                .with_context(|| format!("{PROVENANCE} has no line {name}"))
        };
        Ok(Self {
            sources: field("sources")?,
            toolchain: field("toolchain")?,
            object: field("object")?,
        })
    }
}

/// Compiles, links and strips the object, and returns its bytes.
fn build(root: &Path) -> Result<Vec<u8>> {
    let target = root.join(TARGET_DIR);
    let mut flags: Vec<OsString> = ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf"]
        .map(Into::into)
        .into();
    flags.extend(["--cfg".into(), "bpf_target_arch=\"x86_64\"".into()]);
    // The object contains paths of sources for the verifier's log. They must not depend on the folder of the build.
    flags.push(remap(&root.join(""), ""));
    for registry in registries()? {
        flags.push(remap(&registry, "registry"));
    }
    let status = Command::new("cargo")
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--locked",
            "--profile",
            "ebpf",
            "--package",
            PACKAGE,
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join(&OsString::from("\x1f")))
        .env("RUSTC", RUSTC)
        // Debian's compiler is stable, and eBPF needs unstable features.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTUP_TOOLCHAIN")
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the eBPF programs do not build");
    let linked = target.join(TARGET).join("ebpf/kmesh-trace");
    let stripped = target.join("kmesh-trace.bpf.o");
    let status = Command::new(STRIP)
        .args(["-g", "-o"])
        .args([&stripped, &linked])
        .status()
        .context("cannot run llvm-strip")?;
    ensure!(status.success(), "llvm-strip failed");
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

fn remap(from: &Path, to: &str) -> OsString {
    let mut flag = OsString::from("--remap-path-prefix=");
    flag.push(from);
    flag.push("=");
    flag.push(to);
    flag
}

/// Returns the folders with the sources of dependencies: one per registry.
fn registries() -> Result<Vec<PathBuf>> {
    let sources = host::cargo_home()?.join("registry/src");
    // The first fetch creates the folder.
    let status = Command::new("cargo")
        .args(["fetch", "--quiet", "--locked"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot fetch the dependencies");
    let entries = fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Returns the versions of the toolchain, or an error that names what is missing.
fn toolchain() -> Result<String> {
    let version = |program: &str| -> Result<String> {
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| format!("{program} is missing; {REMEDY}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // llvm-strip prints its version after a line with its name.
        let line = text
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()))
            .unwrap_or_default();
        Ok(line.trim().to_owned())
    };
    let toolchain = [version(RUSTC)?, version("bpf-linker")?, version(STRIP)?].join(", ");
    let folder = |kind: &str| -> Result<PathBuf> {
        let output = Command::new(RUSTC)
            .args(["--print", kind, "--target", TARGET])
            .output()?;
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    };
    if !folder("target-libdir")?.is_dir() {
        bail!("{RUSTC} has no core library for {TARGET}; {REMEDY}");
    }
    // The object contains source lines for the verifier's log, also those of the core library.
    if !folder("sysroot")?.join("lib/rustlib/src/rust/library/core").is_dir() {
        bail!("{RUSTC} has no sources of the core library; {REMEDY}");
    }
    Ok(toolchain)
}

/// Returns the SHA-256 digest of the names and contents of all sources, of the build profile, and of the versions of
/// the dependencies.
fn sources_digest(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        let name = file.strip_prefix(root)?.to_string_lossy().into_owned();
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        digest.update(format!("{name} {}\n", content.len()));
        digest.update(content);
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let profile = manifest
        .split_once("[profile.ebpf]")
        .context("Cargo.toml has no [profile.ebpf]")?
        .1;
    digest.update(profile);
    digest.update(dependencies(root)?);
    Ok(hex(&digest.finalize()))
}

fn dependencies(root: &Path) -> Result<Vec<u8>> {
    let output = Command::new("cargo")
        .current_dir(root)
        .args([
            "tree",
            "--quiet",
            "--locked",
            "--package",
            PACKAGE,
            "--target",
            TARGET,
            "--edges",
            "normal,build",
        ])
        .args(["--prefix", "none", "--no-dedupe", "--format", "{p} {f}"])
        .output()
        .context("cannot run cargo tree")?;
    ensure!(
        output.status.success(),
        "cargo tree failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout).context("cargo tree")?;
    // The packages of this workspace have the path of this checkout. The digest already contains their sources.
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.contains("(/")).collect();
    lines.sort_unstable();
    lines.dedup();
    Ok(lines.join("\n").into_bytes())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        _ = write!(text, "{byte:02x}");
        text
    })
}
