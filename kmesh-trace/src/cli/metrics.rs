//! The flags about metrics.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use crate::config::{self, Level};

/// Metrics, as they are typed.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Metrics")]
pub struct Metrics {
    /// Serve Prometheus metrics on http://ADDR/metrics: 15020, 10.0.0.1:15020, [::]:15020
    ///
    /// A port alone is served on 127.0.0.1, to this machine only. Metrics count what passes the filters, connections that are
    /// open included, whatever goes to standard output; -o none: nothing else. They are also at /status/metric, Kmesh's path.
    #[arg(long, value_name = "ADDR", value_parser = config::metrics_address)]
    pub metrics: Option<SocketAddr>,

    /// By what: workload, service, connection
    ///
    /// workload: Kmesh's families kmesh_tcp_workload_*, kmesh_tcp_retrans_total and kmesh_tcp_packet_loss_total. service: those
    /// named kmesh_tcp_*. connection: kmesh_tcp_connection_*, four series for each connection, so rather for a look than for
    /// good.
    #[arg(
        long,
        value_name = "LEVEL",
        value_delimiter = ',',
        default_value = "workload,service",
        hide_possible_values = true
    )]
    pub metrics_level: Vec<Level>,

    /// At most N series; the rest folds into one a family and reporter, with labels that say other
    ///
    /// kmesh_trace_metrics_folded_total counts the records that were counted there.
    #[arg(long, value_name = "N", default_value = "20000", value_parser = config::max_series)]
    pub metrics_max_series: NonZeroUsize,

    /// Drop a series after this long without traffic once its pods are gone or its connection has ended
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = config::metrics_idle)]
    pub metrics_idle: Duration,

    /// Also Kmesh's misspelt families, and connection_security_policy="mutual_tls" always, as it has it
    ///
    /// For dashboards that select on them. Without it, the policy says mutual_tls only where that is known.
    #[arg(long)]
    pub metrics_compat: bool,

    /// The cluster's name, for labels
    #[arg(long, value_name = "NAME", default_value = "Kubernetes", value_parser = config::cluster)]
    pub cluster: String,

    /// The trust domain of principals, for labels: spiffe://NAME/ns/…/sa/…
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = config::cluster)]
    pub trust_domain: String,
}
