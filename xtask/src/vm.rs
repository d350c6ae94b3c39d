//! `cargo xtask vm`: runs the kernel tests on Debian's kernels, in small VMs that QEMU emulates without KVM. On a
//! kernel that is too old, the test is that the tool refuses it with a clear message.

mod apt;
pub mod boot_static;
mod build;
mod cpio;
mod guest;
mod kernels;
mod machine;
mod verdict;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::arch::Arch;
use crate::counts::Counts;
use crate::host::{self, Need};
use build::Build;
use guest::Step;
use kernels::Kernel;
use machine::Machine;
use verdict::Verdict;

#[derive(clap::Args)]
pub struct Args {
    /// 5.10, 6.1, 6.1-rt (PREEMPT_RT), 6.12, newest (Debian's newest), or the path of a vmlinuz
    #[arg(value_name = "KERNEL", default_values = ["5.10", "6.1", "newest"])]
    kernels: Vec<String>,
    /// The folder with the modules of a kernel that is a path [default: /lib/modules/RELEASE]
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Run only one scenario of each topic
    #[arg(long, conflicts_with = "args")]
    smoke: bool,
    /// The maximum time of a VM
    #[arg(long, value_name = "MINUTES", default_value_t = 20)]
    deadline: u64,
    /// The number of VMs that run in parallel; each uses one processor [default: the number of processors]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Arguments for the test program, such as a filter
    #[arg(last = true)]
    args: Vec<String>,
}

/// The architecture of the VMs of the kernel tests.
const ARCH: Arch = Arch::X86_64;
const TOOL: &str = "/usr/bin/kmesh-trace";
const TESTS: &str = "/usr/bin/kernel-tests";
const BUSYBOX: Need = Need {
    program: "busybox",
    package: "busybox-static",
};

/// Returns the programs that a run calls on this machine.
pub fn needs() -> Vec<&'static Need> {
    let needs = kernels::NEEDS.iter().chain(host::TEST_TOOLS);
    needs.chain([machine::emulator(ARCH), &BUSYBOX]).collect()
}

/// Builds the programs, downloads the kernels, boots the VMs, and prints a table of results.
pub fn run(args: &Args) -> Result<ExitCode> {
    // The VMs run programs of this machine.
    if Arch::here() != Some(ARCH) {
        bail!(
            "the VMs of the kernel tests are {}, and this machine is not",
            ARCH.name()
        );
    }
    host::ensure(needs())?;
    let folder = folder();
    let build = Build::new(&folder)?;
    let kernels = args
        .kernels
        .iter()
        .map(|name| Kernel::find(name, args.modules.as_deref(), ARCH, &folder))
        .collect::<Result<Vec<_>>>()?;

    let queue = Mutex::new((0..kernels.len()).collect::<VecDeque<_>>());
    let verdicts = Mutex::new(Vec::new());
    let jobs = args
        .jobs
        .unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from))
        .clamp(1, kernels.len());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    // In the condition of a `while let`, the lock would live as long as the test.
                    let next = lock(&queue).pop_front();
                    let Some(index) = next else { break };
                    let verdict = test(&kernels[index], &build, &folder, args);
                    lock(&verdicts).push((index, verdict));
                }
            });
        }
    });

    let mut verdicts = verdicts.into_inner().unwrap_or_else(PoisonError::into_inner);
    verdicts.sort_by_key(|(index, _)| *index);
    let verdicts = verdicts
        .into_iter()
        .map(|(index, verdict)| {
            Ok((
                &kernels[index],
                verdict.with_context(|| format!("cannot test {}", kernels[index].name))?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    table(&verdicts);
    let sum: Counts = verdicts.iter().map(|(_, verdict)| verdict.counts).sum();
    println!("{sum}");
    Ok(sum.exit_code())
}

/// Returns the folder with the kernels and the logs of the VMs.
pub fn folder() -> PathBuf {
    host::target_dir().join("vm")
}

fn test(kernel: &Kernel, build: &Build, folder: &Path, args: &Args) -> Result<Verdict> {
    let programs = [(build.tool.as_path(), TOOL), (build.tests.as_path(), TESTS)];
    let is_refused = kernel.must_be_refused();
    let steps = if is_refused { refusal_steps() } else { test_steps(args) };
    let initramfs = folder.join(format!("{}.initramfs", kernel.name));
    fs::write(&initramfs, guest::initramfs(kernel, &programs, &steps)?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;

    let log = folder.join(format!("{}.log", kernel.name));
    let deadline = Duration::from_secs(args.deadline * 60);
    let run = Machine {
        arch: kernel.arch,
        name: &kernel.name,
        image: &kernel.image,
        initramfs: &initramfs,
        counts_instructions: kernel.preempts_programs(),
        log,
        deadline,
    }
    .run()?;
    Ok(if is_refused {
        verdict::judge_refusals(&run, &steps)
    } else {
        verdict::judge_tests(&run, &steps)
    })
}

/// Returns the test steps that the arguments select. The preemption test changes the scheduler's settings, so it runs
/// after the others.
fn test_steps(args: &Args) -> Vec<Step> {
    const PREEMPTION: &str = "stress::preempted_programs_lose_no_record_silently";
    let tests = |args: &[String]| test_step("tests", "KMESH_TRACE_TEST_STEP_CLOCK=1", args);
    let preemption = || test_step("preemption", "KMESH_TRACE_TEST_PREEMPT=1", &[PREEMPTION.to_owned()]);
    match args.args.as_slice() {
        _ if args.smoke => vec![test_step("smoke", "KMESH_TRACE_TEST_SMOKE=1", &[])],
        [] => vec![tests(&["--skip".to_owned(), PREEMPTION.to_owned()]), preemption()],
        [only] if PREEMPTION.contains(only) && only.contains("preempt") => vec![preemption()],
        filter => vec![tests(filter)],
    }
}

/// Returns a step that runs tests. `setting` is an environment variable that allows changes of the whole machine.
fn test_step(name: &'static str, setting: &str, args: &[String]) -> Step {
    // One test at a time, with little traffic: emulation is 30 to 45 times slower.
    let settings = ["KMESH_TRACE_TEST_SMALL=1", setting];
    let tool = format!("KMESH_TRACE_BIN={TOOL}");
    let command = ["env", &tool]
        .into_iter()
        .chain(settings)
        .chain([TESTS, "--test-threads=1", "--color=never"]);
    Step {
        name,
        command: command.map(str::to_owned).chain(args.iter().cloned()).collect(),
    }
}

fn refusal_steps() -> Vec<Step> {
    let step = |name, command: &[&str]| Step {
        name,
        command: command.iter().map(|&word| word.to_owned()).collect(),
    };
    // With --duration, the tool ends even if it does not refuse the kernel.
    vec![
        step("refuses_to_trace", &[TOOL, "--duration", "5s"]),
        step("check_says_why", &[TOOL, "check"]),
    ]
}

fn table(verdicts: &[(&Kernel, Verdict)]) {
    let width = verdicts
        .iter()
        .map(|(kernel, _)| kernel.name.len().max(kernel.release.len()))
        .max()
        .unwrap_or(0)
        .max("release".len());
    println!(
        "\n{:width$}  {:width$}  {:>6}  {:>6}  {:>7}  {:>7}",
        "kernel", "release", "passed", "failed", "skipped", "seconds"
    );
    for (kernel, verdict) in verdicts {
        let Counts {
            passed,
            failed,
            skipped,
        } = verdict.counts;
        let seconds = verdict.elapsed.as_secs();
        println!(
            "{:width$}  {:width$}  {passed:>6}  {failed:>6}  {skipped:>7}  {seconds:>7}",
            kernel.name, kernel.release
        );
        for note in &verdict.notes {
            println!("    {note}");
        }
    }
}

/// Locks a mutex. The values are valid even if a thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
