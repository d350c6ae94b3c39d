//! Fuzzes the parsers of the command line, including selectors, and of cgroup paths.
#![no_main]

use clap::Parser;
use kmesh_trace::cli::Cli;
use kmesh_trace::config::{Config, Environment};
use kmesh_trace::names::local::cgroup::CgroupPath;

libfuzzer_sys::fuzz_target!(|text: &str| {
    _ = CgroupPath::parse(text).owner(usize::MAX);
    let words = ["kmesh-trace"].into_iter().chain(text.split('\n'));
    if let Ok(cli) = Cli::try_parse_from(words) {
        _ = Config::new(
            &cli,
            Environment {
                no_color: None,
                stdout_is_terminal: false,
                stdin_is_terminal: false,
                term: None,
                page_size: 4096,
            },
        );
    }
});
