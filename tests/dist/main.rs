//! The suite of what `cargo xtask dist` makes: the archive, and its one file in the roots of other systems.
//!
//! `KMESH_TRACE_DIST` names the folder with the archive; `cargo xtask dist --test` sets it. Needs root to enter other roots.
//! What cannot run here is shown as skipped with the reason, and counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "the counts are for the terminal")]
#![expect(dead_code, reason = "the support is made for several suites")]

#[path = "../support/mod.rs"]
mod support;

mod archive;
mod file;
mod names;
mod roots;
mod traces;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use support::net;
use support::probe::NAMESPACES;

/// What was made, unpacked: the folder in the archive.
static UNPACKED: LazyLock<PathBuf> = LazyLock::new(archive::unpack);

/// The file under test.
fn tool() -> PathBuf {
    UNPACKED.join("kmesh-trace")
}

/// Runs a command that must succeed, for what it prints.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A trial that is skipped where `missing` says why. It says so only when the trial is about to run: a root of another system
/// takes a minute to make.
fn trial(
    name: &str,
    missing: impl FnOnce() -> Result<(), String> + Send + 'static,
    run: impl FnOnce() + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, || {
        if let Err(why) = missing() {
            return Ok(Completion::ignored_with(format!("skipped: {why}")));
        }
        // Each in a network namespace of its own, where there can be some.
        let run = std::panic::AssertUnwindSafe(run);
        let ended = match *NAMESPACES {
            Ok(()) => net::in_namespace("trial", run),
            Err(_) => std::panic::catch_unwind(run),
        };
        ended.map(|()| Completion::Completed).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Failed::from(text.unwrap_or_default())
        })
    })
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    if std::env::var_os("KMESH_TRACE_DIST").is_none() {
        println!("KMESH_TRACE_DIST names no archive: cargo xtask dist --test");
        return ExitCode::FAILURE;
    }
    let mut trials = archive::trials();
    trials.extend(file::trials());
    trials.extend(traces::trials());
    trials.extend(names::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!(
            "{} passed, {} failed, {} skipped",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
    }
    conclusion.exit_code()
}
