//! `cargo xtask fuzz`: libFuzzer, guided by the compiler's coverage counters, over what others may write: captures, pod lists,
//! records, arguments.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::counts::Counts;
use crate::host::{self, Need};

/// What `cargo xtask fuzz` takes.
#[derive(clap::Args)]
pub struct Args {
    /// Which targets [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Where they are.
const FOLDER: &str = "tests/fuzz";
/// The most memory that a target may take, MiB, and the most time for one input, s. Other work on the machine takes part of
/// that time, so it is long enough for a hang only.
const LIMITS: [&str; 2] = ["-rss_limit_mb=512", "-timeout=60"];
const NEEDS: &[Need] = &[Need {
    program: "g++",
    package: "g++",
}];

/// Builds and runs them.
pub fn run(args: &Args) -> Result<ExitCode> {
    host::ensure(NEEDS)?;
    let folder = host::root().join(FOLDER);
    let target = host::target_dir().join("fuzz");
    let here = Arch::here().context("this machine is no architecture that the tool is built for")?;
    // What cargo-fuzz asks of the compiler, but for the sanitizers, which stable Rust has not.
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
        .args(["build", "--release", "--manifest-path"])
        .arg(folder.join("Cargo.toml"));
    // Naming the target keeps the flags away from build scripts and macros.
    cargo.args(["--target", here.target(), "--target-dir"]).arg(&target);
    cargo.env("RUSTFLAGS", flags.join(" "));
    host::succeed(&mut cargo)?;

    let mut counts = Counts::default();
    for name in targets(&folder, &args.targets)? {
        println!("{name}: {} s", args.seconds);
        let work = target.join("corpus").join(&name);
        fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
        let program = target.join(here.target()).join("release").join(&name);
        let mut fuzzer = Command::new(program);
        fuzzer.arg(format!("-max_total_time={}", args.seconds)).args(LIMITS);
        // Else it prints a line for whatever is new to it.
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

/// Those that were named; all, when none was.
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
