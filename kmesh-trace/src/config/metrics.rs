//! What the flags about metrics mean.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{self, Cli};

/// Where to serve what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// The address.
    pub address: SocketAddr,
    /// What is counted, and how.
    pub settings: Settings,
}

/// What to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// At these granularities.
    pub levels: Vec<Level>,
    /// At most so many series that have to do with connections.
    pub max_series: usize,
    /// A series whose pods are gone, or whose connection has ended, is dropped after so long.
    pub idle: Duration,
    /// For labels.
    pub common: Common,
}

/// What is the same for all series of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    /// `--cluster`.
    pub cluster: Arc<str>,
    /// `--trust-domain`.
    pub trust_domain: Arc<str>,
    /// `--metrics-compat`.
    pub compat: bool,
}

/// A granularity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// By workloads and the destination's pod
    Workload,
    /// By workloads and the destination's Service
    Service,
    /// One by one
    Connection,
}

/// If they are wanted.
pub(super) fn metrics(cli: &Cli) -> Option<Metrics> {
    let cli::Metrics {
        metrics,
        metrics_level,
        metrics_max_series,
        metrics_idle,
        metrics_compat,
        cluster,
        trust_domain,
    } = &cli.metrics;
    Some(Metrics {
        address: (*metrics)?,
        settings: Settings {
            levels: metrics_level.clone(),
            max_series: metrics_max_series.get(),
            idle: *metrics_idle,
            common: Common {
                cluster: cluster.as_str().into(),
                trust_domain: trust_domain.as_str().into(),
                compat: *metrics_compat,
            },
        },
    })
}

/// Parses `--metrics`.
pub(crate) fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        "write a port (15020: for this machine only), an address of this machine with one (10.0.0.1:15020, \
         [fd00::1]:15020), or 0.0.0.0:15020 or [::]:15020 for all"
            .to_owned()
    })
}

/// Parses `--metrics-max-series`.
pub(crate) fn max_series(text: &str) -> Result<NonZeroUsize, String> {
    const MOST: usize = 10_000_000;
    match text.parse::<NonZeroUsize>() {
        Ok(count) if count.get() <= MOST => Ok(count),
        Ok(_) => Err(format!("{MOST} are the most")),
        Err(_) => Err("a number of series is a whole number from 1".to_owned()),
    }
}

/// Parses `--metrics-idle`.
pub(crate) fn metrics_idle(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(idle) if idle < Duration::from_secs(1) => {
            Err("1s is the least: nobody could scrape it before it is gone".to_owned())
        }
        Ok(idle) if idle > super::MAX_DURATION => Err("ten years are the most".to_owned()),
        Ok(idle) => Ok(idle),
        Err(error) => Err(format!("{error}; write 30s, 10m or 1h")),
    }
}

/// Parses `--cluster` and `--trust-domain`.
pub(crate) fn cluster(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err("a name is text, and not empty".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::tests::{PLAIN, parsed};

    #[test]
    fn a_port_alone_is_for_this_machine() {
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
            match (metrics_address(text), expected) {
                (Ok(address), Ok(expected)) => assert_eq!(address.to_string(), expected),
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }

    #[test]
    fn they_are_off_and_have_the_defaults_of_the_contract() {
        let config = |arguments| Config::new(&parsed(arguments), PLAIN).unwrap().metrics;
        assert_eq!(config(""), None);
        let metrics = config("--metrics 15020").unwrap();
        assert_eq!(metrics.settings.levels, [Level::Workload, Level::Service]);
        assert_eq!(metrics.settings.idle, Duration::from_secs(600));
        assert_eq!(&*metrics.settings.common.cluster, "Kubernetes");
        assert_eq!(&*metrics.settings.common.trust_domain, "cluster.local");
        assert!(!metrics.settings.common.compat);
    }

    #[test]
    fn limits_are_refused_in_words() {
        let refused = [
            (max_series("0").map(drop), "from 1"),
            (max_series("many").map(drop), "from 1"),
            (max_series("10000001").map(drop), "the most"),
            (metrics_idle("10").map(drop), "write 30s"),
            (metrics_idle("10ms").map(drop), "1s is the least"),
            (cluster("").map(drop), "not empty"),
            (cluster("a\nb").map(drop), "is text"),
        ];
        for (result, part) in refused {
            let error = result.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
