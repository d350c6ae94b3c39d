//! Flags of Prometheus metrics.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

use super::values;

/// The maximum of `--metrics-max-series`.
const MAX_MAX_SERIES: usize = 10_000_000;
/// The minimum of `--metrics-idle`. Prometheus would not scrape a series that lives shorter.
const MIN_IDLE: Duration = Duration::from_secs(1);

/// Flags of Prometheus metrics.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Metrics")]
pub struct Metrics {
    /// Serve Prometheus metrics on http://ADDR/metrics
    ///
    /// A port alone is served on 127.0.0.1, so only to this machine. The metrics count every connection that passes the
    /// filters, open connections included, whatever --output prints. Kmesh's path /status/metric serves them, too.
    ///
    /// Example: kmesh-trace -o none --metrics 15020
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub metrics: Option<SocketAddr>,

    /// Set detail levels
    ///
    /// A level is the detail of the labels. workload: Kmesh's families kmesh_tcp_workload_*, kmesh_tcp_retrans_total
    /// and kmesh_tcp_packet_loss_total. service: the families kmesh_tcp_*. connection: the families
    /// kmesh_tcp_connection_*, which are four series per connection: use this level for debugging, not in production.
    ///
    /// Example: kmesh-trace --metrics 15020 --metrics-level workload
    #[arg(
        long,
        value_name = "LEVEL",
        value_delimiter = ',',
        default_value = "workload,service",
        requires = "metrics",
        hide_possible_values = true
    )]
    pub metrics_level: Vec<Level>,

    /// Limit the number of series
    ///
    /// Further records are added up in one series per family and reporter, whose labels are other.
    /// kmesh_trace_metrics_folded_total counts these records.
    ///
    /// Example: kmesh-trace --metrics 15020 --metrics-max-series 100000
    #[arg(long, value_name = "N", default_value = "20000", value_parser = max_series, requires = "metrics")]
    #[arg(allow_negative_numbers = true)]
    pub metrics_max_series: NonZeroUsize,

    /// Drop idle series after TIME
    ///
    /// Only a series whose pods are gone, or whose connection has ended, is dropped.
    ///
    /// Example: kmesh-trace --metrics 15020 --metrics-idle 1h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = idle, requires = "metrics")]
    #[arg(allow_hyphen_values = true)]
    pub metrics_idle: Duration,

    /// Add Kmesh's misspelt families for old dashboards
    ///
    /// This also sets connection_security_policy="mutual_tls" on every series, as Kmesh does. Without this flag, only
    /// connections that are known to use mutual TLS have that label.
    #[arg(long, requires = "metrics")]
    pub metrics_compat: bool,

    /// Set the cluster label
    ///
    /// The labels source_cluster and destination_cluster have this value.
    ///
    /// Example: kmesh-trace --metrics 15020 --cluster east
    #[arg(long, value_name = "NAME", default_value = "Kubernetes", value_parser = label, requires = "metrics")]
    pub cluster: String,

    /// Set the trust domain
    ///
    /// The labels of principals contain it: spiffe://NAME/ns/NAMESPACE/sa/SERVICE_ACCOUNT.
    ///
    /// Example: kmesh-trace --metrics 15020 --trust-domain example.org
    #[arg(long, value_name = "NAME", default_value = "cluster.local", value_parser = label, requires = "metrics")]
    pub trust_domain: String,
}

/// A level of detail of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// By workloads and the destination's pod
    Workload,
    /// By workloads and the destination's service
    Service,
    /// By single connections
    Connection,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        "write a port (15020, for this machine only), an address of this machine with a port (10.0.0.1:15020, \
         [fd00::1]:15020), or 0.0.0.0:15020 or [::]:15020 for all addresses"
            .to_owned()
    })
}

fn max_series(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(count) if count.get() <= MAX_MAX_SERIES => Ok(count),
        Ok(_) => Err(format!("the maximum is {MAX_MAX_SERIES}")),
        Err(_) => Err("write a whole number of 1 or more".to_owned()),
    }
}

fn idle(text: &str) -> Result<Duration, String> {
    match values::time(text, "30s, 10m or 1h")? {
        idle if idle < MIN_IDLE => Err("the minimum is 1s, so that a scrape can see the series".to_owned()),
        idle => Ok(idle),
    }
}

fn label(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err("write a name that is not empty and has no control characters".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_alone_is_served_on_loopback() {
        let cases = [
            ("15020", Ok("127.0.0.1:15020")),
            ("0", Ok("127.0.0.1:0")),
            ("127.0.0.1:1", Ok("127.0.0.1:1")),
            ("0.0.0.0:15020", Ok("0.0.0.0:15020")),
            ("[::]:15020", Ok("[::]:15020")),
            ("[::1]:15020", Ok("[::1]:15020")),
            (":15020", Err("0.0.0.0:15020")),
            ("*:15020", Err("0.0.0.0:15020")),
            ("65536", Err("write a port")),
            ("localhost:15020", Err("write a port")),
            ("10.0.0.1", Err("write a port")),
            ("", Err("write a port")),
        ];
        for (text, expected) in cases {
            match (address(text), expected) {
                (Ok(address), Ok(expected)) => assert_eq!(address.to_string(), expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn value_out_of_range_is_refused_with_limit() {
        let refused = [
            (max_series("0").map(drop), "1 or more"),
            (max_series("many").map(drop), "1 or more"),
            (max_series("10000001").map(drop), "maximum"),
            (idle("ten").map(drop), "write 30s"),
            (idle("1M").map(drop), "months"),
            (idle("10ms").map(drop), "minimum is 1s"),
            (label("").map(drop), "not empty"),
            (label("a\nb").map(drop), "control characters"),
        ];
        for (result, part) in refused {
            let error = result.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
