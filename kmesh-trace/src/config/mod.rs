//! Validated settings: what the arguments of [`crate::cli`] mean together and in their environment.

mod capture;
mod diff;
mod environment;
mod error;
mod events;
mod explain;
mod filters;
mod metrics;
mod names;
mod nodes;
mod rollup;
#[cfg(test)]
mod tests;

pub use capture::{CaptureConfig, TimeRange};
pub use diff::DiffConfig;
pub use environment::{Environment, has_escapes};
pub use error::ConfigError;
pub use events::Events;
pub use explain::FindingsConfig;
pub use filters::parse_prompt_filter;
pub use metrics::{CommonLabels, MetricsConfig, SeriesConfig};
pub use names::{ApiServer, Kubelet, Origin, SourceConfig};
pub use nodes::{NodesConfig, api_server};
pub use rollup::RollupConfig;

pub use crate::cli::{CapturePath, Level, Output, ReportFormat, Rotation, TimeBound, TimeFormat};

use std::num::NonZeroU64;
use std::time::Duration;

use crate::cli::Cli;
use crate::filter::Filter;

/// How much goes to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and losses only.
    Quiet,
    /// Also the start message, warnings and the closing summary.
    Normal,
    /// Also details of the run.
    Verbose,
}

impl Verbosity {
    fn new(quiet: bool, verbose: bool) -> Self {
        match (quiet, verbose) {
            (true, _) => Self::Quiet,
            (false, true) => Self::Verbose,
            (false, false) => Self::Normal,
        }
    }
}

/// The settings of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The captures to replay. Without any, the run traces.
    pub read: Vec<CapturePath>,
    /// Whether both ends of a connection become one record.
    pub join: bool,
    /// The part of the captures that is replayed.
    pub range: TimeRange<TimeBound>,
    /// The capture to record.
    pub capture: Option<CaptureConfig>,
    /// The format of standard output.
    pub output: Output,
    /// Whether `output` is the default, because no flag selects a format.
    pub is_default_output: bool,
    /// The events that are printed.
    pub events: Events,
    /// Whether dropped packets are counted.
    pub drops: bool,
    /// Whether turns are measured.
    pub turns: bool,
    /// How `explain` reports what is wrong; `None` without `explain`.
    pub findings: Option<FindingsConfig>,
    /// How records are grouped; `None` prints each record.
    pub rollup: Option<RollupConfig>,
    /// The conditions that a record must meet.
    pub filter: Filter,
    /// Whether the connections of this process pass the filter, too.
    pub include_self: bool,
    /// The sources of names; empty with `--no-resolve`.
    pub sources: Vec<SourceConfig>,
    /// The time between updates, and the length of a window.
    pub interval: Duration,
    /// Whether standard output has colors.
    pub color: bool,
    /// How the log, short lines and the table show times.
    pub time_format: TimeFormat,
    /// The time after which the run stops.
    pub duration: Option<Duration>,
    /// The number of records after which the run stops.
    pub count: Option<NonZeroU64>,
    /// The size of the kernel's ring buffer in bytes: a power of two of at least one page, as the kernel requires.
    pub ring_bytes: u32,
    /// How much goes to standard error.
    pub verbosity: Verbosity,
    /// The metrics that are served to Prometheus.
    pub metrics: Option<MetricsConfig>,
}

impl Config {
    /// Returns whether a capture is written whose files the tool rotates.
    pub fn is_rotated(&self) -> bool {
        self.capture.as_ref().is_some_and(|capture| capture.rotation.is_some())
    }

    /// Resolves `cli` in `environment`, or returns which flags cannot be used together.
    pub fn new(cli: &Cli, environment: Environment<'_>) -> Result<Self, ConfigError> {
        let output = cli.output.unwrap_or(match environment.stdout_is_terminal {
            true => Output::Short,
            false => Output::Log,
        });
        let rollup = rollup::rollup(cli, output, environment)?;
        // A window counts open connections, so rollups need every event.
        let events = match rollup {
            Some(_) => Events {
                close: true,
                open: true,
                update: true,
                ..Events::new(&cli.events)
            },
            None => Events::new(&cli.events),
        };
        let config = Self {
            read: cli.capture.read.clone(),
            join: cli.capture.join,
            range: TimeRange {
                since: cli.capture.since,
                until: cli.capture.until,
            },
            capture: capture::capture(cli, output, environment)?,
            output,
            is_default_output: cli.output.is_none(),
            events,
            drops: cli.drops,
            turns: cli.turns,
            findings: None,
            rollup,
            filter: filters::filter(cli)?,
            include_self: cli.include_self,
            sources: names::sources(&cli.names)?,
            interval: rollup::update_interval(cli),
            color: matches!(output, Output::Log | Output::Short | Output::Table) && environment.has_color(cli.color),
            time_format: cli.time_format,
            duration: cli.duration,
            count: cli.count,
            ring_bytes: cli.buffer.ring_bytes(environment.page_size),
            verbosity: Verbosity::new(cli.quiet, cli.verbose),
            metrics: metrics::metrics(&cli.metrics),
        };
        if config.range.is_empty() {
            return Err(ConfigError::new(
                "--since cannot be later than --until: no record is in that range",
            ));
        }
        if config.filter.connecting && !config.needs_updates() {
            return Err(ConfigError::new(
                "--connecting requires --events update, -o table, --rollup, --write or --metrics: only updates show \
                 attempts that are waiting",
            ));
        }
        Ok(config)
    }

    /// Returns an error for flags that a live trace of one node does not have.
    pub fn check_live(&self) -> Result<(), ConfigError> {
        match self.join {
            true => Err(ConfigError::new(
                "--join requires --read or nodes: a live trace of one node has no other end to join",
            )),
            false => Ok(()),
        }
    }

    /// Returns whether `open` events are needed. A capture has them whatever is printed.
    pub fn needs_opens(&self) -> bool {
        self.events.open || self.capture.is_some()
    }

    /// Returns whether the counters of connections that are open when tracing begins are needed.
    pub fn needs_baseline(&self) -> bool {
        self.rollup.is_some() || self.findings.is_some() || self.capture.is_some() || self.metrics.is_some()
    }

    /// Returns whether sockets are scanned for `update` events.
    pub fn needs_updates(&self) -> bool {
        self.events.update || self.needs_listeners() || self.capture.is_some()
    }

    /// Returns whether standard output has a line for each close, and none for a connection that is open or connecting.
    pub fn prints_only_closes(&self) -> bool {
        self.output != Output::None && self.findings.is_none() && !self.events.update
    }

    /// Returns whether socket scans report listening sockets.
    pub fn needs_listeners(&self) -> bool {
        let has_screen = self.rollup.as_ref().is_some_and(|rollup| rollup.on_terminal);
        self.events.listener || self.metrics.is_some() || has_screen
    }
}
