//! The names suite: the updates of the name sources, compared with what a real kubelet, API server and container
//! runtime run.
//!
//! Needs root, and the Kubernetes programs in `K8S_BIN` or `../shared/k8s`. Without them each test shows as skipped
//! with the reason, and is counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "a test prints what it measures")]
#![expect(dead_code, reason = "each suite uses a part of the shared modules")]

mod cluster;
mod components;
mod credentials;
mod fixture;
mod listener;
mod node;
mod nodes;
mod policy;
#[path = "../support/mod.rs"]
mod support;
mod traced;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

/// The name and the function of a test.
type Row = (&'static str, fn());

fn trial((name, run): Row) -> Trial {
    match fixture::components() {
        Ok(_) => Trial::test(name, move || {
            std::panic::catch_unwind(run).map_err(|panic| Failed::from(support::panic_message(&*panic)))
        }),
        Err(why) => Trial::test(name, || Ok(()))
            .with_kind(format!("skipped: {why}"))
            .with_ignored_flag(true),
    }
}

/// Tests that run one after another or in parallel. The phases run one after another, since a machine has one kubelet.
enum Phase {
    Sequential(Vec<Row>),
    Parallel(Vec<Row>),
}

fn phases() -> [Phase; 7] {
    [
        Phase::Parallel([node::WITHOUT_KUBELET, traced::WITHOUT_KUBELET].concat()),
        Phase::Parallel(node::PARALLEL.to_vec()),
        Phase::Sequential([node::SEQUENTIAL, traced::SEQUENTIAL].concat()),
        Phase::Parallel([cluster::PARALLEL, credentials::PARALLEL].concat()),
        Phase::Sequential([policy::SEQUENTIAL, nodes::SEQUENTIAL].concat()),
        Phase::Parallel(cluster::HANGING_SERVERS.to_vec()),
        Phase::Sequential(cluster::SEQUENTIAL.to_vec()),
    ]
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let is_whole = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    let starting = (is_whole && fixture::components().is_ok()).then(|| std::thread::spawn(fixture::start_all));
    let mut has_failed = false;
    for phase in phases() {
        let (threads, rows) = match phase {
            Phase::Sequential(rows) => (1, rows),
            Phase::Parallel(rows) => (rows.len(), rows),
        };
        arguments.test_threads = Some(threads);
        let conclusion = libtest_mimic::run(&arguments, rows.into_iter().map(trial).collect());
        has_failed |= conclusion.has_failed();
    }
    // If it panicked, the tests that need the fixture have failed.
    _ = starting.map(std::thread::JoinHandle::join);
    if fixture::components().is_ok() {
        fixture::stop_all();
    }
    if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
