//! The settings of `explain`: a run whose standard output is a report at its end.

use std::time::Duration;

use clap::Parser;

use super::environment::Environment;
use super::error::ConfigError;
use super::{Config, Events};
use crate::cli::{Capture, CapturePath, Cli, Explain, Output, ReportFormat, TimeBound};
use crate::filter::Filter;
use crate::record::rfc3339::Rfc3339;

/// The length of a live watch without `--duration`.
const DEFAULT_WATCH: Duration = Duration::from_secs(30);

/// How `explain` reports what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FindingsConfig {
    pub format: ReportFormat,
    /// The words of the command that shows the same records, to which a finding adds its filters.
    pub command: Vec<String>,
    /// Whether filters choose connections.
    pub has_filters: bool,
}

impl Config {
    /// Resolves the arguments of `explain` in `environment`, or returns which flags cannot be used together.
    pub fn explain(explain: &Explain, environment: Environment<'_>) -> Result<Self, ConfigError> {
        if explain.filters.connecting {
            return Err(ConfigError::new(
                "explain cannot use --connecting: the rules need connections that end; without the flag, explain also \
                 reports attempts that wait for an answer",
            ));
        }
        let is_live = explain.read.is_empty();
        let events = if is_live {
            "close,update,listener"
        } else {
            "close,open,update,reject,listener"
        };
        let cli = Cli {
            output: Some(match explain.output {
                ReportFormat::Text => Output::Short,
                ReportFormat::Json => Output::Json,
            }),
            duration: explain.duration.or_else(|| is_live.then_some(DEFAULT_WATCH)),
            include_self: explain.include_self,
            turns: explain.turns,
            quiet: explain.quiet,
            verbose: explain.verbose,
            buffer: explain.buffer,
            capture: Capture {
                read: explain.read.clone(),
                since: explain.since,
                until: explain.until,
                ..Capture::default()
            },
            names: explain.names.clone(),
            filters: explain.filters.clone(),
            ..Cli::parse_from(["kmesh-trace", "--events", events])
        };
        let config = Self::new(&cli, environment)?;
        Ok(Self {
            findings: Some(FindingsConfig {
                format: explain.output,
                command: command(explain),
                has_filters: config.filter != Filter::default(),
            }),
            events: Events {
                reject: true,
                ..config.events
            },
            ..config
        })
    }
}

/// Returns the words of the command that reads the same records.
fn command(explain: &Explain) -> Vec<String> {
    let mut words = vec!["kmesh-trace".to_owned()];
    let mut add = |flag: &str, value: String| words.extend([format!("--{flag}"), value]);
    for path in &explain.read {
        match path {
            CapturePath::Pipe => add("read", "-".to_owned()),
            CapturePath::File(path) => add("read", path.display().to_string()),
        }
    }
    for (flag, bound) in [("since", explain.since), ("until", explain.until)] {
        match bound {
            None => {}
            Some(TimeBound::At(time)) => add(flag, Rfc3339::new(time).as_str().to_owned()),
            Some(TimeBound::BeforeEnd(time)) => {
                // Long times are in seconds, because humantime writes months, which the flags do not accept.
                let time = match time.as_secs() {
                    seconds @ 2_592_000.. => format!("{seconds}s"),
                    _ => humantime::format_duration(time).to_string(),
                };
                add(flag, format!("-{time}").replace(' ', ""))
            }
        }
    }
    let names = &explain.names;
    if let Some(path) = &names.pods_file {
        add("pods-file", path.display().to_string());
    }
    if let Some(path) = names.cri.as_ref() {
        words.push(with_value(
            "--cri",
            path.as_ref().map(|path| path.display().to_string()),
        ));
    }
    if let Some(url) = names.kubelet.as_ref() {
        words.push(with_value("--kubelet", url.as_ref().map(ToString::to_string)));
    }
    if let Some(path) = names.kubeconfig.as_ref() {
        words.push(with_value(
            "--kubeconfig",
            path.as_ref().map(|path| path.display().to_string()),
        ));
    }
    words
}

fn with_value(flag: &str, value: Option<String>) -> String {
    value.map_or_else(|| flag.to_owned(), |value| format!("{flag}={value}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;
    use crate::config::tests::{PLAIN, parsed};

    fn explained(arguments: &str) -> Config {
        let Some(Command::Explain(explain)) = parsed(arguments).command else {
            panic!("{arguments}")
        };
        Config::explain(&explain, PLAIN).unwrap()
    }

    #[test]
    fn live_watch_lasts_30_s_and_a_capture_is_read_whole() {
        assert_eq!(explained("explain").duration, Some(DEFAULT_WATCH));
        assert_eq!(
            explained("explain --duration 5s").duration,
            Some(Duration::from_secs(5))
        );
        assert_eq!(explained("explain --read x").duration, None);
        let config = explained("explain");
        assert!(config.needs_updates() && config.needs_listeners() && config.needs_baseline());
    }

    #[test]
    fn connecting_is_refused() {
        let Some(Command::Explain(explain)) = parsed("explain -r x --connecting").command else {
            panic!("no explain")
        };
        let error = Config::explain(&explain, PLAIN).unwrap_err().to_string();
        assert!(error.contains("explain cannot use --connecting"), "{error}");
    }

    #[test]
    fn filters_are_noticed() {
        let has_filters = |arguments| explained(arguments).findings.unwrap().has_filters;
        assert!(!has_filters("explain -r x --since -5m"));
        assert!(has_filters("explain -r x -n shop"));
    }

    #[test]
    fn command_reads_the_same_records() {
        let command = |arguments| explained(arguments).findings.unwrap().command.join(" ");
        assert_eq!(command("explain -n shop"), "kmesh-trace");
        assert_eq!(
            command("explain -r a -r - --since -5m --until 2026-01-02T03:04:05Z --pods-file p"),
            "kmesh-trace --read a --read - --since -5m --until 2026-01-02T03:04:05.000000000Z --pods-file p"
        );
        assert_eq!(
            command("explain -r a --since -5w"),
            "kmesh-trace --read a --since -3024000s"
        );
        assert_eq!(
            command("explain --kubeconfig k --cri"),
            "kmesh-trace --cri --kubeconfig=k"
        );
    }
}
