//! The flags of the table and of rollups.

use std::num::NonZeroUsize;

use clap::{Args, Parser};

use super::Filters;
use crate::config;
use crate::render::table::sort::Sort;
use crate::rollup::Key;

/// What to group by and how to show it, as it is typed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Table and rollups")]
pub struct TableFlags {
    /// With -o json: a line a group and --interval, in place of one a connection
    #[arg(long)]
    pub rollup: bool,

    /// What to group by [default: workload]
    ///
    /// Any of workload, service, pod, namespace, node, process, ip, port (the server's), outcome and connection. Where an
    /// end has no workload or pod, its pod, the node whose address it is, or the address stands for it; for a server
    /// without a Service, the same. Which end was traced is always grouped, too.
    #[arg(long, value_name = "KEY", value_delimiter = ',', hide_possible_values = true)]
    pub by: Vec<Key>,

    /// The table's order [default: -bytes]
    ///
    /// A key of the rollup line (open, connecting, opened, closed, failed, sent_bytes, received_bytes, duration_quantiles_ns,
    /// connect_quantiles_ns, srtt_quantiles_us, retransmits, lost_segments, group), or bytes for both directions; with a -
    /// before it the largest first. Quantiles are compared by their p95.
    #[arg(long, value_name = "[-]KEY", allow_hyphen_values = true)]
    pub sort: Option<Sort>,

    /// Rows of the table [default: what fits]
    #[arg(long, value_name = "N")]
    pub top: Option<NonZeroUsize>,

    /// Groups of one interval, up to 1000000 [default: 10000]
    ///
    /// The rest folds into one group, named so.
    #[arg(long, value_name = "N", value_parser = config::max_groups)]
    pub max_groups: Option<usize>,
}

/// Filters as they are typed at the table's prompt: as on the command line.
#[derive(Clone, Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, args_override_self = true)]
pub struct Typed {
    /// All of them.
    #[command(flatten)]
    pub filters: Filters,
}
