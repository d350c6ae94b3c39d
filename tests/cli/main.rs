//! The suite without root: the real binary on arguments and bad input. What cannot run here is shown as skipped with the
//! reason, and counted.

mod arguments;
mod captures;
mod completions;
mod examples;
mod recipes;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = arguments::trials()
        .into_iter()
        .chain(captures::trials())
        .chain(completions::trials())
        .chain(examples::trials())
        .chain(recipes::trials())
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
