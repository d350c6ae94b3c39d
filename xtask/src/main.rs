//! Development tasks: builds, tests, benchmarks and release archives. One file per task; see `cargo xtask --help`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task prints its results on the terminal"
)]

mod arch;
mod artifacts;
mod bench;
mod counts;
mod dist;
mod ebpf;
mod fuzz;
mod host;
mod licences;
mod man;
mod release;
mod runner;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Development tasks of kmesh-trace
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run benchmarks
    Bench(bench::Args),
    /// Build what a release consists of: archive with the static executable, .deb, image, SBOM, krew manifest,
    /// checksums
    Dist(dist::Args),
    /// Build the committed eBPF object, or check whether it is current
    Ebpf(ebpf::Args),
    /// Fuzz the parsers of captures, pod lists, records and arguments
    Fuzz(fuzz::Args),
    /// Check the licences of all dependencies against deny.toml
    Licences,
    /// Generate the manual page, or check whether the committed one is current
    Man(man::Args),
    /// Prepare a release, and once that is committed, build its artefacts: docs/releasing.md
    Release(release::Args),
    /// Install the Debian packages that the tests need
    Setup,
    /// Run the tests; the kernel tests need root
    Test(test::Args),
    /// Run the kernel tests on Debian's kernels, in QEMU without KVM
    Vm(vm::Args),
    /// Run a test program for cargo, with sudo if it needs root
    #[command(hide = true)]
    Runner(runner::Args),
}

fn main() -> ExitCode {
    let result: Result<ExitCode> = match Cli::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Ebpf(args) => ebpf::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Licences => licences::run(),
        Task::Man(args) => man::run(&args),
        Task::Release(args) => release::run(&args),
        Task::Setup => setup::run(),
        Task::Test(args) => test::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Runner(args) => runner::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
