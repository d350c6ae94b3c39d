//! The metrics that a run serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{self, Level};

/// The metrics that a run serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsConfig {
    /// The address that Prometheus scrapes.
    pub address: SocketAddr,
    /// The series that are served.
    pub series: SeriesConfig,
}

/// The series that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeriesConfig {
    /// The levels of detail.
    pub levels: Vec<Level>,
    /// The maximum number of series about connections.
    pub max_series: usize,
    /// The idle time after which a series is dropped, if its pods are gone or its connection has ended.
    pub idle: Duration,
    /// The values of labels that all series share.
    pub common: CommonLabels,
}

/// The values of labels that all series of a run share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommonLabels {
    /// The name of the cluster.
    pub cluster: Arc<str>,
    /// The trust domain of principals.
    pub trust_domain: Arc<str>,
    /// Whether labels and families are exactly Kmesh's, its misspellings included.
    pub compat: bool,
}

pub(super) fn metrics(flags: &cli::Metrics) -> Option<MetricsConfig> {
    Some(MetricsConfig {
        address: flags.metrics?,
        series: SeriesConfig {
            levels: flags.metrics_level.clone(),
            max_series: flags.metrics_max_series.get(),
            idle: flags.metrics_idle,
            common: CommonLabels {
                cluster: flags.cluster.as_str().into(),
                trust_domain: flags.trust_domain.as_str().into(),
                compat: flags.metrics_compat,
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::tests::{PLAIN, parsed};

    #[test]
    fn metrics_are_off_and_have_documented_defaults() {
        let config = |arguments| Config::new(&parsed(arguments), PLAIN).unwrap().metrics;
        assert_eq!(config(""), None);
        let series = config("--metrics 15020").unwrap().series;
        assert_eq!(series.levels, [Level::Workload, Level::Service]);
        assert_eq!(series.idle, Duration::from_secs(600));
        assert_eq!(&*series.common.cluster, "Kubernetes");
        assert_eq!(&*series.common.trust_domain, "cluster.local");
        assert!(!series.common.compat);
    }
}
