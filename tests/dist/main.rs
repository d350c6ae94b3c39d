//! The dist suite: what `cargo xtask dist` makes, used as users do, and the static binary in the root file systems of
//! other systems.
//!
//! `KMESH_TRACE_DIST` names the folder with the artefacts; `cargo xtask dist --test` sets it. Needs root for chroot. A
//! test that cannot run shows as skipped with the reason, and is counted.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::print_stdout, reason = "the suite reports its results on the terminal")]
#![expect(dead_code, reason = "each suite uses a part of the shared modules")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../names/components.rs"]
mod components;

mod archive;
mod bill;
mod binary;
mod host_names;
mod image;
mod package;
mod roots;
mod traces;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::LazyLock;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use support::probe::NAMESPACES;
use support::{net, panic_message};

/// The folder of the unpacked archive.
static UNPACKED: LazyLock<PathBuf> = LazyLock::new(archive::unpack);

/// Returns the path of the binary under test.
fn tool() -> PathBuf {
    UNPACKED.join("kmesh-trace")
}

/// Returns the folder with the artefacts.
fn folder() -> PathBuf {
    std::env::var_os("KMESH_TRACE_DIST").unwrap().into()
}

/// Returns the artefact whose name has this ending.
fn artefact(ending: &str) -> PathBuf {
    let mut entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.find(|path| path.to_string_lossy().ends_with(ending));
    found.unwrap_or_else(|| panic!("no {ending} in KMESH_TRACE_DIST"))
}

/// Runs a command that must succeed, and returns its standard output.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Returns a test that is skipped if `check_requirements` fails. That is checked right before the test runs, since it
/// may take a minute to create a root file system.
fn trial(
    name: &str,
    check_requirements: impl FnOnce() -> Result<(), String> + Send + 'static,
    run: impl FnOnce() + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, || {
        if let Err(why) = check_requirements() {
            return Ok(Completion::ignored_with(format!("skipped: {why}")));
        }
        // In a separate network namespace, if the machine permits that.
        let run = std::panic::AssertUnwindSafe(run);
        let result = match *NAMESPACES {
            Ok(()) => net::in_namespace("trial", run),
            Err(_) => std::panic::catch_unwind(run),
        };
        result
            .map(|()| Completion::Completed)
            .map_err(|panic| Failed::from(panic_message(&*panic)))
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
    trials.extend(binary::trials());
    trials.extend(bill::trials());
    trials.extend(package::trials());
    trials.extend(image::trials());
    trials.extend(traces::trials());
    trials.extend(host_names::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    if !arguments.list {
        println!(
            "{} passed, {} failed, {} skipped",
            conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored
        );
    }
    conclusion.exit_code()
}
