//! The arguments of `explain`.

use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{BufferSize, CapturePath, Filters, Names, TimeBound, values};

/// The format of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ReportFormat {
    /// Sentences for people
    Text,
    /// One JSON object per line (see kmesh-trace schema)
    Json,
}

/// The arguments of `explain`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES, mut_args = values::last_value_wins)]
pub struct Explain {
    /// Watch this long [default: 30s, or the whole capture]
    ///
    /// Ctrl-C ends the watch early and reports. With --read, the time counts from the start of the capture.
    ///
    /// Example: kmesh-trace explain --duration 5m
    #[arg(long, value_name = "TIME", value_parser = values::duration, allow_hyphen_values = true)]
    pub duration: Option<Duration>,

    /// Examine a capture instead of this node; may be repeated
    ///
    /// Also takes saved `-o json` output. Requires no privileges. A capture has everything that the rules need if it
    /// was recorded with --write, --drops and --events close,listener,reject.
    ///
    /// Example: kmesh-trace explain --read incident.jsonl.zst
    #[arg(short, long, value_name = "FILE", value_parser = OsStringValueParser::new().map(CapturePath::from))]
    #[arg(conflicts_with_all = ["buffer", "include_self", "cri", "kubelet", "kubeconfig"])]
    pub read: Vec<CapturePath>,

    /// With --read, examine records from this time on
    ///
    /// A time as in 2026-01-02T03:04:05Z, or -5m for five minutes before the end of a file.
    ///
    /// Example: kmesh-trace explain --read incident.jsonl.zst --since -5m
    #[arg(long, value_name = "TIME", requires = "read", allow_hyphen_values = true)]
    pub since: Option<TimeBound>,

    /// With --read, examine records up to this time
    ///
    /// A time as in 2026-01-02T03:04:05Z, or -5m for five minutes before the end of a file.
    ///
    /// Example: kmesh-trace explain --read incident.jsonl.zst --until 2026-01-02T03:04:05Z
    #[arg(long, value_name = "TIME", requires = "read", allow_hyphen_values = true)]
    pub until: Option<TimeBound>,

    /// Measure how long each answer takes
    ///
    /// Finds servers that answer slowly, and separates them from slow networks. Requires the tracepoints sk_data_ready
    /// and sock_send_length (Linux 6.3).
    ///
    /// Example: kmesh-trace explain --turns --duration 2m
    #[arg(long, conflicts_with = "read")]
    pub turns: bool,

    /// Print text or json
    ///
    /// text: one paragraph per finding. json: one `finding` line per finding, and the summary.
    ///
    /// Example: kmesh-trace explain -o json | jq -r 'select(.type == "finding").command'
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub output: ReportFormat,

    /// Examine this tool's own connections, too
    ///
    /// By default they are filtered out, on both ends.
    ///
    /// Example: kmesh-trace explain --include-self
    #[arg(long)]
    pub include_self: bool,

    /// Print only errors and losses to standard error
    ///
    /// Without this flag, the start message, warnings and the closing summary go to standard error, too.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print more details to standard error
    ///
    /// For example the kernel's version and the time that the start took.
    #[arg(short, long)]
    pub verbose: bool,

    /// Set the kernel's ring buffer size
    ///
    /// Units: k, M and G are powers of 1000; Ki, Mi and Gi are powers of 1024. The maximum is 1GiB.
    ///
    /// Example: kmesh-trace explain --buffer 64MiB
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub buffer: BufferSize,

    /// The flags that choose the sources of names.
    #[command(flatten)]
    pub names: Names,

    /// The flags that choose connections.
    #[command(flatten)]
    pub filters: Filters,
}

/// The end of `explain --help`.
const EXAMPLES: &str = "\
Examples:
  kmesh-trace explain
          Watch this node for 30 s, then print what is wrong
  kmesh-trace explain -n shop --duration 5m
          Watch only what goes in or out of one namespace
  kmesh-trace explain --read incident.jsonl.zst
          Examine a capture

Each finding says what happens, between whom, how often (such as 40 of 52
attempts), since when, on whose side it is and what supports that, then the
command that shows the lines. The report ends with the problems that were not
found, and with what could not be checked.

Exit status: 0, with or without findings; otherwise as without explain.";
