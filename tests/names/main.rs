//! The suite of the sources of names: a real kubelet, API server and container runtime, of which each test knows on its own
//! what they run, against what the sources tell.
//!
//! Needs root, and the components: in `K8S_BIN`, or where `../shared/k8s` can get them. Where they cannot be had, every trial
//! is shown as skipped with the reason, and counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "what was measured belongs to the test's output")]

mod cluster;
mod listener;
mod node;
mod stage;
mod traced;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

/// What a trial is called, and what it does.
type Row = (&'static str, fn());

fn trial((name, run): Row) -> Trial {
    match stage::components() {
        Ok(_) => Trial::test(name, move || {
            std::panic::catch_unwind(run).map_err(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                Failed::from(
                    text.or_else(|| panic.downcast_ref::<&str>().copied())
                        .unwrap_or("a panic without text"),
                )
            })
        }),
        Err(why) => Trial::test(name, move || Err(Failed::from(why)))
            .with_kind(format!("skipped: {why}"))
            .with_ignored_flag(true),
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // There is one kubelet on a machine, and each trial has it for itself.
    arguments.test_threads = Some(1);
    let trials = node::TRIALS
        .iter()
        .chain(traced::TRIALS)
        .chain(cluster::TRIALS)
        .copied()
        .map(trial)
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    stage::clear();
    conclusion.exit_code()
}
