//! `cargo xtask ebpf`: builds the eBPF object, which is committed so that a user needs stable Rust and nothing else.
//!
//! The provenance file beside the object has the digests of its sources and the versions of its toolchain. `--check` compares
//! digests and needs no toolchain. `--check-bytes` also builds the object again and compares the bytes.

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
const STRIP: &str = "/usr/lib/llvm-22/bin/llvm-strip";
/// What is compiled into the object, beside its dependencies.
const SOURCES: [&str; 4] = [
    "kmesh-trace-ebpf/src",
    "kmesh-trace-ebpf/Cargo.toml",
    "kmesh-trace-common/src",
    "kmesh-trace-common/Cargo.toml",
];
const REMEDY: &str = "on Debian: apt-get install --no-install-recommends rustc-web libstd-rust-web-dev-bpf llvm-22-dev \
                      libpolly-22-dev libzstd-dev zlib1g-dev && LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker \
                      --locked --no-default-features --features llvm-22";

/// What `cargo xtask ebpf` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Check by digests that the committed object is made from the present sources; build nothing
    #[arg(long, conflicts_with_all = ["out", "check_bytes"])]
    check: bool,
    /// Also build the object again and check that the committed one has the same bytes; fail where the toolchain that made
    /// it is not installed
    #[arg(long, conflicts_with = "out")]
    check_bytes: bool,
    /// Write the object to this file instead of the committed one
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Builds or checks.
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

/// Compares the digests of object and sources with the recorded ones.
fn check(root: &Path) -> Result<Provenance> {
    let text = fs::read_to_string(root.join(PROVENANCE)).with_context(|| format!("cannot read {PROVENANCE}"))?;
    let recorded = Provenance::from_text(&text)?;
    let committed = fs::read(root.join(OBJECT)).with_context(|| format!("cannot read {OBJECT}"))?;
    ensure!(
        hex(&Sha256::digest(&committed)) == recorded.object,
        "{OBJECT} is not the object that {PROVENANCE} records: run cargo xtask ebpf"
    );
    ensure!(
        sources_digest(root)? == recorded.sources,
        "{OBJECT} is not made from the present sources: run cargo xtask ebpf"
    );
    println!("{OBJECT} is made from the present sources, by its digests");
    Ok(recorded)
}

/// Builds the object again and compares its digest with the recorded one.
fn check_bytes(root: &Path, recorded: &Provenance) -> Result<()> {
    let toolchain = toolchain().context("cannot build the object again")?;
    ensure!(
        toolchain == recorded.toolchain,
        "cannot compare bytes: {OBJECT} was made with {}, and installed is {toolchain}. With this toolchain run cargo xtask \
         ebpf, cargo xtask test and .ci/full, then commit the new object",
        recorded.toolchain
    );
    ensure!(
        hex(&Sha256::digest(build(root)?)) == recorded.object,
        "the same sources and toolchain make another object than {OBJECT}"
    );
    println!("{OBJECT} has the bytes that its sources and its toolchain make");
    Ok(())
}

/// What a committed object was made of, and by what.
struct Provenance {
    /// SHA-256 over the sources and the versions of all dependencies.
    sources: String,
    /// Versions of compiler, linker and stripper.
    toolchain: String,
    /// SHA-256 of the object.
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

/// Compiles, links and strips.
fn build(root: &Path) -> Result<Vec<u8>> {
    let target = root.join("target/ebpf");
    let mut flags: Vec<OsString> = ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf"]
        .map(Into::into)
        .into();
    flags.extend(["--cfg".into(), "bpf_target_arch=\"x86_64\"".into()]);
    // The object carries line numbers for the verifier's log; they must not depend on where it was built.
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
        // Debian's compiler is a stable one, and eBPF needs what is not stable.
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

/// Where cargo keeps the sources of dependencies: a folder a registry.
fn registries() -> Result<Vec<PathBuf>> {
    let sources = host::cargo_home()?.join("registry/src");
    // On a fresh machine the folder is made by the first fetch.
    let status = Command::new("cargo")
        .args(["fetch", "--quiet", "--locked"])
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cannot fetch the dependencies");
    let entries = fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Versions of what builds it, or what is missing.
fn toolchain() -> Result<String> {
    let version = |program: &str| -> Result<String> {
        let output = Command::new(program).arg("--version").output();
        let output = output.with_context(|| format!("{program} is missing; {REMEDY}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // llvm-strip tells its version in a later line than its name.
        let line = text
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()))
            .unwrap_or_default();
        Ok(line.trim().to_owned())
    };
    let toolchain = [version(RUSTC)?, version("bpf-linker")?, version(STRIP)?].join(", ");
    let cores = Command::new(RUSTC)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()?;
    let libdir = PathBuf::from(String::from_utf8_lossy(&cores.stdout).trim());
    if !libdir.is_dir() {
        bail!("{RUSTC} has no core library for {TARGET}; {REMEDY}");
    }
    Ok(toolchain)
}

/// SHA-256 over names and contents of all sources, the profile they are built with, and the dependencies' versions.
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
    // Ours come with the path of this checkout; their sources are digested as they are.
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
