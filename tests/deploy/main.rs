//! What is in `deploy/`, against the real things: rules through promtool, dashboards through a Prometheus that scrapes the
//! tool under traffic, manifests through an API server.
//!
//! Needs root, Debian's `prometheus`, and for the manifests the components that `K8S_BIN` names or `../shared/k8s` has. What
//! cannot run here is shown as skipped with the reason, and counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "the counts are for the terminal")]
#![expect(dead_code, reason = "the support is made for several suites")]

#[path = "../names/components.rs"]
mod components;
#[path = "../support/mod.rs"]
mod support;

mod dashboards;
mod manifests;
mod prometheus;
mod rates;
mod rules;

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use support::net;
use support::probe::NAMESPACES;

/// Why a trial cannot run here, if it cannot.
type Missing = Result<(), String>;

/// `deploy/` of this repository.
fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy"))
}

fn trial(name: &'static str, missing: Missing, run: fn()) -> Trial {
    match missing {
        Err(why) => Trial::test(name, || Ok(()))
            .with_kind(format!("skipped: {why}"))
            .with_ignored_flag(true),
        Ok(()) => Trial::test(name, move || {
            net::in_namespace(name, run).map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                Failed::from(text.unwrap_or_default())
            })
        }),
    }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    let prometheus = || prometheus::missing().and_then(|()| NAMESPACES.clone());
    let trials = vec![
        trial("rules::are_valid", prometheus(), rules::are_valid),
        trial("rules::do_what_they_say", prometheus(), rules::do_what_they_say),
        trial(
            "rates::match_what_was_sent_over_restarts",
            prometheus(),
            rates::over_restarts,
        ),
        trial(
            "dashboards::show_what_was_sent",
            prometheus(),
            dashboards::show_what_was_sent,
        ),
        trial(
            "manifests::are_taken_by_an_api_server",
            manifests::missing(),
            manifests::applied,
        ),
    ];
    // Each has a Prometheus or an API server of its own, and waits for it most of the time.
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
