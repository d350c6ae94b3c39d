//! The suite of the sources of names: a real kubelet, API server and container runtime, of which each test knows on its own
//! what they run, against what the sources tell.
//!
//! Needs root, and the components: in `K8S_BIN`, or where `../shared/k8s` can get them. Where they cannot be had, every trial
//! is shown as skipped with the reason, and counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "what was measured belongs to the test's output")]
#![expect(dead_code, reason = "the support is made for several suites")]

mod cluster;
mod components;
mod listener;
mod node;
mod stage;
#[path = "../support/mod.rs"]
mod support;
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
        Err(why) => Trial::test(name, || Ok(()))
            .with_kind(format!("skipped: {why}"))
            .with_ignored_flag(true),
    }
}

/// Trials that run one after another, or beside each other. There is one kubelet on a machine.
enum Phase {
    InTurn(Vec<Row>),
    Together(Vec<Row>),
}

fn phases() -> [Phase; 6] {
    [
        Phase::Together([node::ALONE, traced::ALONE].concat()),
        Phase::Together(node::BESIDE_OTHERS.to_vec()),
        Phase::InTurn([node::BY_ITSELF, traced::WITH_A_NODE].concat()),
        Phase::Together(cluster::BESIDE_OTHERS.to_vec()),
        Phase::Together(cluster::HANGING.to_vec()),
        Phase::InTurn(cluster::BY_ITSELF.to_vec()),
    ]
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let is_whole = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    let starting = (is_whole && stage::components().is_ok()).then(|| std::thread::spawn(stage::start_all));
    let mut has_failed = false;
    for phase in phases() {
        let (threads, rows) = match phase {
            Phase::InTurn(rows) => (1, rows),
            Phase::Together(rows) => (rows.len(), rows),
        };
        arguments.test_threads = Some(threads);
        let conclusion = libtest_mimic::run(&arguments, rows.into_iter().map(trial).collect());
        has_failed |= conclusion.has_failed();
    }
    // A panic there is a failure of the trials that wanted what was not started.
    _ = starting.map(std::thread::JoinHandle::join);
    if stage::components().is_ok() {
        stage::clear();
    }
    if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
