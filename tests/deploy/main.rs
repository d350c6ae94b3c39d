//! The files in `deploy/` in real programs: rules in promtool, dashboards in a Prometheus that scrapes the tool,
//! manifests in an API server, configurations in log shippers.
//!
//! Needs root, Debian's `prometheus`, log shippers (`OTELCOL`, `FLUENT_BIT` and `VECTOR` may name them), and for the
//! manifests the Kubernetes programs in `K8S_BIN` or `../shared/k8s`. A test that cannot run shows as skipped with the
//! reason, and is counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "the suite reports its results on the terminal")]
#![expect(dead_code, reason = "each suite uses a part of the shared modules")]

#[path = "../names/components.rs"]
mod components;
#[path = "../support/mod.rs"]
mod support;

mod dashboards;
mod manifests;
mod prometheus;
mod rates;
mod rules;
mod shippers;

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use support::probe::NAMESPACES;
use support::{net, panic_message};

/// Returns the path of `deploy/`.
fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

/// Returns a test that is skipped if `requirements` is an error.
fn trial(name: &'static str, requirements: Result<(), String>, run: fn()) -> Trial {
    match requirements {
        Err(why) => Trial::test(name, || Ok(()))
            .with_kind(format!("skipped: {why}"))
            .with_ignored_flag(true),
        Ok(()) => Trial::test(name, move || {
            net::in_namespace(name, run).map_err(|panic| Failed::from(panic_message(&*panic)))
        }),
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let prometheus = || prometheus::check_installed().and_then(|()| NAMESPACES.clone());
    let trials = vec![
        trial("rules::are_valid", prometheus(), rules::are_valid),
        trial("rules::pass_their_tests", prometheus(), rules::pass_their_tests),
        trial(
            "rates::equal_traffic_over_restarts",
            prometheus(),
            rates::equal_traffic_over_restarts,
        ),
        trial(
            "dashboards::queries_equal_traffic",
            prometheus(),
            dashboards::queries_equal_traffic,
        ),
        trial(
            "manifests::grant_exactly_the_documented_rights",
            manifests::check_requirements(),
            manifests::grant_exactly_the_documented_rights,
        ),
        trial(
            "shippers::collector_delivers_each_line_once",
            shippers::has_collector().and_then(|()| NAMESPACES.clone()),
            shippers::collector_delivers_each_line_once,
        ),
        trial(
            "shippers::fluent_bit_delivers_each_line_once",
            shippers::has_fluent_bit().and_then(|()| NAMESPACES.clone()),
            shippers::fluent_bit_delivers_each_line_once,
        ),
        trial(
            "shippers::vector_delivers_each_line_once",
            shippers::has_vector().and_then(|()| NAMESPACES.clone()),
            shippers::vector_delivers_each_line_once,
        ),
    ];
    // Each test starts its own Prometheus or API server, and mostly waits for it.
    arguments.test_threads.get_or_insert(trials.len());
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!(
            "{} passed, {} failed, {} skipped",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
    }
    conclusion.exit_code()
}
