//! `cargo xtask fuzz`: runs libFuzzer on the parsers of captures, pod lists, records and arguments, guided by the
//! compiler's coverage counters.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::counts::Counts;
use crate::host::{self, Need};

#[derive(clap::Args)]
pub struct Args {
    /// The fuzz targets [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// The time for each target in seconds
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

const FOLDER: &str = "tests/fuzz";
/// The limits of a target: MiB of memory, and seconds for one input. On a busy machine an input takes longer, so only a
/// hang reaches the limit.
const LIMITS: [&str; 2] = ["-rss_limit_mb=512", "-timeout=60"];
const NEEDS: &[Need] = &[Need {
    program: "g++",
    package: "g++",
}];

/// Builds and runs the fuzz targets.
pub fn run(args: &Args) -> Result<ExitCode> {
    host::ensure(NEEDS)?;
    let folder = host::root().join(FOLDER);
    let target = host::target_dir().join("fuzz");
    let here = Arch::here().context("the tool does not support the architecture of this machine")?;
    // The flags of cargo-fuzz, without sanitizers, which stable Rust does not have.
    let flags = [
        "-Cpasses=sancov-module",
        "-Cllvm-args=-sanitizer-coverage-level=4",
        "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
        "-Cllvm-args=-sanitizer-coverage-pc-table",
        "-Cllvm-args=-sanitizer-coverage-trace-compares",
        "-Ccodegen-units=1",
        "--cfg",
        "fuzzing",
    ];
    let mut cargo = host::cargo();
    cargo
        .args(["build", "--locked", "--release", "--manifest-path"])
        .arg(folder.join("Cargo.toml"));
    // With an explicit target, the flags do not apply to build scripts and macros.
    cargo.args(["--target", here.target(), "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", flags.join(" "));
    host::run(&mut cargo)?;

    let mut counts = Counts::default();
    for name in targets(&folder, &args.targets)? {
        println!("{name}: {} s", args.seconds);
        let work = target.join("corpus").join(&name);
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        let program = target.join(here.target()).join("release").join(&name);
        let mut fuzzer = Command::new(program);
        fuzzer.arg(format!("-max_total_time={}", args.seconds)).args(LIMITS);
        // The default verbosity prints a line for each new input.
        fuzzer
            .args(["-verbosity=0", "-print_final_stats=1"])
            .arg(format!("-artifact_prefix={}/", target.display()));
        fuzzer.arg(work).arg(folder.join("corpus").join(&name));
        let status = fuzzer.status().with_context(|| format!("cannot run {name}"))?;
        counts += Counts::one(status.success());
    }
    println!("{counts}");
    Ok(counts.exit_code())
}

/// Returns the named targets, or all of them if none is named.
fn targets(folder: &Path, named: &[String]) -> Result<Vec<String>> {
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    let programs = folder.join("src/bin");
    let mut names = Vec::new();
    for entry in fs::read_dir(&programs).with_context(|| format!("cannot read {}", programs.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}
