//! How a run groups records.

use super::environment::Environment;
use super::error::ConfigError;
use std::time::Duration;

use crate::cli::{Cli, Interval, Output, Table};
use crate::rollup::{By, Key, RollupSettings, Sort};

/// The number of groups of a window without `--max-groups`.
const DEFAULT_MAX_GROUPS: usize = 10_000;
/// The time between updates with `--interval all`.
const UPDATE_INTERVAL: Duration = Duration::from_secs(5);

/// The settings of a run that groups records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollupConfig {
    /// The groups and windows.
    pub settings: RollupSettings,
    /// The keys of the groups, in the order of the command line.
    pub by: Vec<Key>,
    /// The order of the table's rows.
    pub sort: Sort,
    /// The maximum number of the table's rows.
    pub top: Option<usize>,
    /// Whether the table is drawn in place on a terminal.
    pub on_terminal: bool,
    /// Whether the table on a terminal starts with the totals of the run (`--interval all`).
    pub totals: bool,
    /// Whether both ends of a connection are one record.
    pub joins: bool,
    /// Whether records may be late by more than a window, because they come from several streams or from a live one.
    pub may_be_late: bool,
}

pub(super) fn rollup(
    cli: &Cli,
    output: Output,
    environment: Environment<'_>,
) -> Result<Option<RollupConfig>, ConfigError> {
    let flags = &cli.table;
    let is_table = output == Output::Table;
    check_output(flags, output)?;
    let is_one_window = cli.interval == Interval::All;
    if !(is_table || flags.rollup) {
        if is_one_window {
            return Err(ConfigError::new(
                "--interval all requires -o table, or -o json with --rollup",
            ));
        }
        return Ok(None);
    }
    let on_terminal = is_table && environment.is_interactive();
    let by = if flags.by.is_empty() {
        vec![Key::Workload]
    } else {
        flags.by.clone()
    };
    Ok(Some(RollupConfig {
        settings: RollupSettings {
            by: By::new(&by),
            // On a terminal, windows show the totals while they grow.
            interval: (on_terminal || !is_one_window).then(|| update_interval(cli)),
            max_groups: flags.max_groups.unwrap_or(DEFAULT_MAX_GROUPS),
        },
        by,
        sort: flags.sort.unwrap_or_default(),
        top: flags.top.map(usize::from),
        on_terminal,
        totals: is_one_window,
        joins: cli.capture.join,
        may_be_late: false,
    }))
}

/// Returns the time between updates.
pub(super) fn update_interval(cli: &Cli) -> Duration {
    match cli.interval {
        Interval::Every(interval) => interval,
        Interval::All => UPDATE_INTERVAL,
    }
}

/// Refuses flags that have no effect with the chosen output.
fn check_output(flags: &Table, output: Output) -> Result<(), ConfigError> {
    let is_table = output == Output::Table;
    if flags.rollup && output != Output::Json {
        return Err(ConfigError::new(
            "--rollup requires -o json; -o table groups records without it",
        ));
    }
    let requires_table = [("--sort", flags.sort.is_some()), ("--top", flags.top.is_some())];
    if let Some((flag, _)) = requires_table.into_iter().find(|(_, is_given)| *is_given && !is_table) {
        return Err(ConfigError::new(format!("{flag} requires -o table")));
    }
    let requires_groups = [
        ("--by", !flags.by.is_empty()),
        ("--max-groups", flags.max_groups.is_some()),
    ];
    let has_groups = is_table || flags.rollup;
    match requires_groups
        .into_iter()
        .find(|(_, is_given)| *is_given && !has_groups)
    {
        Some((flag, _)) => Err(ConfigError::new(format!(
            "{flag} requires -o table, or -o json with --rollup"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use crate::config::Config;
    use crate::config::tests::{PLAIN, parsed};

    #[test]
    fn flag_without_effect_is_refused_by_name() {
        let cases = [
            ("--rollup", "--rollup requires -o json"),
            ("-o table --rollup", "--rollup requires -o json"),
            ("-o json --rollup --sort failed", "--sort requires -o table"),
            ("-o json --rollup --top 3", "--top requires -o table"),
            ("--sort -failed", "--sort requires -o table"),
            ("-o json --by pod", "--by requires -o table, or -o json with --rollup"),
            ("--max-groups 3", "--max-groups requires"),
            ("--interval all", "--interval all requires -o table"),
            ("-o json --interval all", "--interval all requires -o table"),
        ];
        for (arguments, part) in cases {
            let error = Config::new(&parsed(arguments), PLAIN).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments}: {error}");
        }
    }

    #[test]
    fn interval_all_is_one_window() {
        let config = |arguments: &str, environment| Config::new(&parsed(arguments), environment).unwrap();
        let rollup = |arguments: &str, environment| config(arguments, environment).rollup.unwrap();
        for arguments in ["-o table --interval all", "-o json --rollup --interval all"] {
            assert_eq!(rollup(arguments, PLAIN).settings.interval, None, "{arguments}");
        }
        assert_eq!(config("-o table --interval all", PLAIN).interval, UPDATE_INTERVAL);
        let terminal = Environment {
            stdin_is_terminal: true,
            stdout_is_terminal: true,
            term: Some(OsStr::new("xterm")),
            ..PLAIN
        };
        let table = rollup("-o table --interval all", terminal);
        assert_eq!((table.settings.interval, table.totals), (Some(UPDATE_INTERVAL), true));
        let table = rollup("-o table --interval 2s", terminal);
        assert_eq!(
            (table.settings.interval, table.totals),
            (Some(Duration::from_secs(2)), false)
        );
    }

    #[test]
    fn rollups_use_every_event() {
        for arguments in [
            "-o table",
            "-o json --rollup --events close",
            "-o table --by pod,port --sort -failed --top 9",
        ] {
            let config = Config::new(&parsed(arguments), PLAIN).unwrap();
            assert!(
                config.events.open && config.events.update && config.events.close,
                "{arguments}"
            );
            assert!(config.rollup.is_some(), "{arguments}");
        }
        assert_eq!(Config::new(&parsed("-o json"), PLAIN).unwrap().rollup, None);
    }
}
