//! Chooses the sinks of a run.

use anyhow::{Context, Result};

use crate::capture::Target;
use crate::config::{CaptureConfig, CapturePath, Config, Events, RollupConfig, Verbosity, parse_prompt_filter};
use crate::findings::Abilities;
use crate::output::NameSourceStatus;
use crate::output::metrics::Metrics;
use crate::output::metrics::exposition::Exposition;
use crate::output::metrics::server::Server;
use crate::output::stderr::{Reports, status};
use crate::output::table::history::SharedHistory;
use crate::output::table::view::{UiCommand, ViewOptions};
use crate::output::table::{Session, TuiTable};
use crate::output::term::{self, TableScreen};
use crate::output::{Findings, Sink, Stdout, stdout_sink};
use crate::record::{Header, RunInfo};

/// The sinks of a run, in the order in which records reach them.
pub struct Outputs {
    pub sinks: Vec<Box<dyn Sink>>,
    /// The screen of a table on a terminal. While it exists, nothing else may write to the terminal.
    pub screen: Option<term::SignalHandle>,
}

/// Opens the outputs that `config` asks for. `abilities` is what a report can rely on. The table on the terminal calls
/// `on_command` with the commands of the user.
pub fn open(
    config: &Config,
    info: &RunInfo,
    names: &NameSourceStatus,
    capture: Option<(Target, Header)>,
    abilities: Abilities,
    on_command: impl Fn(&UiCommand) + Send + 'static,
) -> Result<Outputs> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    let mut screen = None;
    if let Some(rollup) = terminal_table(config) {
        let options = ViewOptions {
            by: rollup.by.clone(),
            sort: rollup.sort,
            top: rollup.top,
            color: config.color,
            totals: rollup.totals,
            can_reread: can_reread(config),
            is_replay: !config.read.is_empty(),
            joins: rollup.joins,
            parse_filter: parse_prompt_filter,
        };
        let history = SharedHistory::new(rollup.settings.max_groups);
        let TableScreen {
            screen: window,
            commands,
            signals,
        } = term::start(options, history.clone(), on_command).context("cannot use the terminal")?;
        let session = Session::new(info, names, config.time_format);
        sinks.push(Box::new(TuiTable::new(rollup, session, history, commands, window)));
        screen = Some(signals);
    } else if let Some(findings) = &config.findings {
        sinks.push(Box::new(Findings::new(findings, abilities, info, Stdout::new())));
    } else {
        sinks.extend(stdout_sink(config, info, names));
    }
    if let Some((target, header)) = capture {
        // Everything in a replayed capture was selected when it was recorded.
        let events = match config.read[..] {
            [] => config.events,
            _ => Events::ALL,
        };
        sinks.push(Box::new(target.start(header, events)?));
    }
    if let Some(reports) = Reports::new(config, info) {
        sinks.push(Box::new(reports));
    }
    Ok(Outputs { sinks, screen })
}

/// Creates the capture that `config` asks for, if any.
pub fn create_target(config: &Config) -> Result<Option<Target>> {
    let target = config.capture.as_ref();
    let target = target.map(|CaptureConfig { path, rotation }| Target::create(path, *rotation));
    Ok(target.transpose()?)
}

/// Binds the address of the metrics that `config` asks for, if any.
pub fn bind_server(config: &Config) -> Result<Option<Server>> {
    let server = config.metrics.as_ref().map(|metrics| Server::bind(metrics.address));
    Ok(server.transpose()?)
}

/// Starts to serve metrics, if `config` asks for them.
pub fn serve_metrics(config: &Config, info: &RunInfo, server: Option<Server>) -> Result<Option<Metrics>> {
    let (Some(settings), Some(server)) = (&config.metrics, server) else {
        return Ok(None);
    };
    let metrics = Metrics::new(settings.series.clone(), info);
    if config.verbosity > Verbosity::Quiet {
        status(&format!("serving metrics on http://{}/metrics", server.address));
    }
    server.serve(Exposition::new(metrics.values()))?;
    Ok(Some(metrics))
}

/// Returns whether a replay can read its input again.
fn can_reread(config: &Config) -> bool {
    let is_file = |path: &CapturePath| matches!(path, CapturePath::File(path) if path.is_file());
    !config.read.is_empty() && config.read.iter().all(is_file)
}

/// Returns the settings of the table on the terminal, if the run has one.
fn terminal_table(config: &Config) -> Option<&RollupConfig> {
    config.rollup.as_ref().filter(|rollup| rollup.on_terminal)
}
