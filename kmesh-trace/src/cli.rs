//! The command line as it is typed: types for `clap`, nothing else. What it means is [`crate::config`]'s.

use crate::config::{self, BufferSize, Color, Output};
use clap::{Parser, Subcommand};
use std::num::NonZeroU64;
use std::time::Duration;

const SCREEN: &str = "{about}\n\n{usage-heading} {usage}\n\n{all-args}{after-help}\n";

const EXAMPLES: &str = "\
Examples:
  kmesh-trace -o json | jq -r 'select(.outcome != \"ok\") | .process.comm'
  kmesh-trace check";

const MORE: &str = "\
Examples:
  kmesh-trace
          Every connection that closes, one access-log line each, until Ctrl-C
  kmesh-trace -o json --duration 60s > closed.jsonl
          A minute of them as JSON
  kmesh-trace -o json | jq -r 'select(.outcome != \"ok\") | .process.comm'
          Whose connections fail
  kmesh-trace check
          Can it run here?

Only data goes to standard output, all else to standard error. The closing summary accounts for every
connection that ended meanwhile; it is the last line with -o json, else it goes to standard error.

Exit status:
  0  It ran and ended as asked: Ctrl-C, SIGTERM, --duration, --count, or a reader that went away
  1  It failed while running
  2  The command line is wrong
  3  This system cannot trace: privileges, the kernel or its BTF. It says which, and what to do

Signals:
  SIGINT, SIGTERM  Stop, print what the kernel has already recorded, sum up. A second one: stop at once
  SIGUSR1          Sum up so far

Environment:
  NO_COLOR  When set and not empty, no colour unless --color asks for it

Nothing outlives the program: after any exit the kernel holds nothing of it.";

/// Trace every TCP connection of this node that ends, exactly
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kmesh-trace",
    version,
    long_about = "Trace every TCP connection of this node that ends, or that failed to begin, in all network \
                  namespaces: who, with whom, how many bytes each way, how long, and how it ended.\n\n\
                  Needs Linux 5.11 or later with BTF, and root or CAP_BPF and CAP_PERFMON.",
    help_template = SCREEN,
    override_usage = "kmesh-trace [OPTIONS]\n       kmesh-trace check | schema",
    after_help = EXAMPLES,
    after_long_help = MORE,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    disable_help_flag = true,
    disable_help_subcommand = true,
    disable_version_flag = true,
    max_term_width = 100,
    next_help_heading = "Options"
)]
pub struct Cli {
    /// What to do in place of tracing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Format of standard output: log, json or none
    #[arg(short, long, value_name = "FORMAT", default_value = "log", hide_possible_values = true)]
    #[arg(help_heading = "Output", hide_default_value = false)]
    pub output: Output,

    /// Colour in the log: auto, always or never
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_possible_values = true, help_heading = "Output")]
    pub color: Color,

    /// Say less on standard error
    ///
    /// Errors, and that records were lost, are said all the same.
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,

    /// Say more on standard error
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,

    /// Stop after this long: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    pub duration: Option<Duration>,

    /// Stop after N records
    #[arg(long, value_name = "N", value_parser = config::count)]
    pub count: Option<NonZeroU64>,

    /// Size of the kernel's ring buffer: 64k, 64Ki, up to 1GiB
    ///
    /// k, M and G are powers of 1000, Ki, Mi and Gi of 1024. The kernel takes powers of two of at least one page: the
    /// next one is used. Records for which it has no room are lost, and counted.
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub buffer: BufferSize,

    /// Print help (--help tells more)
    #[arg(short, long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// The main job needs none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Tell whether this system can be traced, and what is missing
    Check,
    /// Print the JSON Schema of every line of -o json
    Schema,
}
