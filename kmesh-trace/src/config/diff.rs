//! The settings of `diff`: two replays, and how their groups are compared.

use clap::Parser;

use super::Config;
use super::environment::Environment;
use super::error::ConfigError;
use crate::cli::{Capture, CapturePath, Cli, Diff, Names, Output, ReportFormat};
use crate::rollup::{By, Key};

/// The settings of `diff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffConfig {
    pub before: Config,
    pub after: Config,
    pub by: By,
    pub format: ReportFormat,
}

impl DiffConfig {
    /// Resolves the arguments of `diff` in `environment`, or returns which flags cannot be used together.
    pub fn new(diff: &Diff, environment: Environment<'_>) -> Result<Self, ConfigError> {
        if diff.before == CapturePath::Pipe && diff.after == CapturePath::Pipe {
            return Err(ConfigError::new("only one of both captures can be standard input"));
        }
        let replay = |path: &CapturePath| {
            let cli = Cli {
                output: Some(Output::None),
                quiet: diff.quiet,
                capture: Capture {
                    read: vec![path.clone()],
                    ..Capture::default()
                },
                names: Names {
                    pods_file: diff.pods_file.clone(),
                    ..Names::default()
                },
                filters: diff.filters.clone(),
                ..Cli::parse_from(["kmesh-trace", "--events", "close,open,update"])
            };
            Config::new(&cli, environment)
        };
        Ok(Self {
            before: replay(&diff.before)?,
            after: replay(&diff.after)?,
            by: By::new(if diff.by.is_empty() { &[Key::Workload] } else { &diff.by }),
            format: diff.output,
        })
    }
}
