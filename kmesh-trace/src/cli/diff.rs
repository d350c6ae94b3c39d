//! The arguments of `diff`.

use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::{CapturePath, Filters, ReportFormat, values};
use crate::rollup::Key;

/// The arguments of `diff`.
#[derive(Clone, Debug, Args)]
#[command(after_long_help = EXAMPLES, mut_args = values::last_value_wins)]
pub struct Diff {
    /// The capture from before
    #[arg(value_name = "BEFORE", value_parser = OsStringValueParser::new().map(CapturePath::from))]
    pub before: CapturePath,

    /// The capture from after
    #[arg(value_name = "AFTER", value_parser = OsStringValueParser::new().map(CapturePath::from))]
    pub after: CapturePath,

    /// Group connections by these keys [default: workload]
    ///
    /// The keys are those of the table: workload, service, pod, namespace, node, process, pid, ip, port, outcome,
    /// connection.
    ///
    /// Example: kmesh-trace diff good.jsonl bad.jsonl --by service,port
    #[arg(long, value_name = "KEY", value_delimiter = ',', hide_possible_values = true)]
    pub by: Vec<Key>,

    /// Print text or json
    ///
    /// text: one line per change. json: one `change` line per change.
    ///
    /// Example: kmesh-trace diff good.jsonl bad.jsonl -o json | jq .metric
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub output: ReportFormat,

    /// Take names from a file that kubectl printed
    ///
    /// Example: kmesh-trace diff good.jsonl bad.jsonl --pods-file pods.json
    #[arg(long, value_name = "FILE")]
    pub pods_file: Option<PathBuf>,

    /// Print only errors to standard error
    ///
    /// Without this flag, warnings go to standard error, too.
    #[arg(short, long)]
    pub quiet: bool,

    /// The flags that choose connections.
    #[command(flatten)]
    pub filters: Filters,
}

/// The end of `diff --help`.
const EXAMPLES: &str = "\
Examples:
  kmesh-trace diff good.jsonl.zst bad.jsonl.zst
          Print what changed between two captures
  kmesh-trace diff good.jsonl.zst bad.jsonl.zst -n shop --by service
          Compare one namespace, by Service

Only what differs beyond chance is printed: pairs that are new or gone, the share
of failures, the median and p95 of durations, handshakes and responses, and
rates. The intervals hold together with 99.9 %.

Exit status: 0  nothing differs    1  something differs    2  trouble";
