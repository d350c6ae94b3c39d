//! What this repository does to itself: `cargo xtask --help`. A file a task.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a task talks to the person who started it"
)]

mod arch;
mod bench;
mod built;
mod counts;
mod dist;
mod ebpf;
mod fuzz;
mod host;
mod licences;
mod man;
mod runner;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// What this repository does to itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure how fast and how small it is
    Bench(bench::Args),
    /// Make the archive to give away: one static file, manual, completions, licences, sums
    Dist(dist::Args),
    /// Build the committed eBPF object, or check that it is current
    Ebpf(ebpf::Args),
    /// Feed anything at all to what reads captures, pod lists, records and arguments
    Fuzz(fuzz::Args),
    /// Check the licence of every dependency against deny.toml
    Licences,
    /// Make the manual page, or tell whether the committed one is current and without fault
    Man(man::Args),
    /// Install the Debian packages that the tests call
    Setup,
    /// Run every test of user space; as root the kernel tests too
    Test(test::Args),
    /// Run the kernel tests on Debian's kernels, in QEMU without KVM
    Vm(vm::Args),
    /// What `cargo xtask test` gives cargo as the runner of test programs
    #[command(hide = true)]
    Runner(runner::Args),
}

fn main() -> ExitCode {
    let done: Result<ExitCode> = match Cli::parse().task {
        Task::Bench(args) => bench::run(&args),
        Task::Dist(args) => dist::run(&args),
        Task::Ebpf(args) => ebpf::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Licences => licences::run(),
        Task::Man(args) => man::run(&args),
        Task::Setup => setup::run(),
        Task::Test(args) => test::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Runner(args) => runner::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
