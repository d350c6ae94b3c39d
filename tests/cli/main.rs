//! The cli suite: the real binary, without root. A test that cannot run shows as skipped with the reason, and is
//! counted.

mod arguments;
mod at_scale;
mod captures;
mod completions;
mod examples;
mod recipes;
mod reports;

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
        .chain(reports::trials())
        .chain(at_scale::trials())
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
