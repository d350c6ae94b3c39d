//! Flags of the table and of rollups.

use std::num::NonZeroUsize;

use clap::Args;

use crate::rollup::{Key, Sort};

/// The maximum of `--max-groups`. More groups would take gigabytes.
const MAX_MAX_GROUPS: usize = 1_000_000;

/// Flags that group connections and order the groups.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Table and rollups")]
pub struct Table {
    /// Print a line per group and window with -o json
    ///
    /// Without this flag, -o json prints a line per connection.
    ///
    /// Example: kmesh-trace -o json --rollup --by service
    #[arg(long)]
    pub rollup: bool,

    /// Group connections by these keys [default: workload]
    ///
    /// The keys are workload, service, pod, namespace, node, process (the name), pid, ip, port (the server's), outcome
    /// and connection.
    /// An end without a workload or pod is grouped by its pod, node or address. So is a server without a service.
    /// Inbound and outbound records are always in separate groups.
    ///
    /// Example: kmesh-trace -o table --by service,port
    #[arg(long, value_name = "KEY", value_delimiter = ',', hide_possible_values = true)]
    pub by: Vec<Key>,

    /// Sort the table by this key [default: -bytes]
    ///
    /// A leading - puts the largest first. The keys are those of a rollup line (open, connecting, opened, closed,
    /// failed, sent_bytes, received_bytes, duration_quantiles_ns, connect_quantiles_ns, srtt_quantiles_us,
    /// response_quantiles_ns, drops, retransmits, lost_segments, group), bytes for both directions, and the titles of
    /// the table's columns. Bytes are those of the table's rates, and quantiles are compared by their p95.
    ///
    /// Example: kmesh-trace -o table --sort -failed
    #[arg(long, value_name = "[-]KEY", allow_hyphen_values = true)]
    pub sort: Option<Sort>,

    /// Limit the table to N rows [default: what fits]
    ///
    /// Without a terminal, the default is all rows.
    ///
    /// Example: kmesh-trace -o table --top 10
    #[arg(long, value_name = "N", value_parser = top, allow_negative_numbers = true)]
    pub top: Option<NonZeroUsize>,

    /// Limit a window to N groups [default: 10000]
    ///
    /// The maximum is 1000000. Further groups are added up in one group named other.
    ///
    /// Example: kmesh-trace -o table --by connection --max-groups 100000
    #[arg(long, value_name = "N", value_parser = max_groups, allow_negative_numbers = true)]
    pub max_groups: Option<usize>,
}

fn top(text: &str) -> Result<NonZeroUsize, String> {
    text.parse().map_err(|_| "write a whole number of 1 or more".to_owned())
}

fn max_groups(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=MAX_MAX_GROUPS) => Ok(number),
        _ => Err(format!("write a whole number from 1 to {MAX_MAX_GROUPS}")),
    }
}
