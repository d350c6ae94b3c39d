//! How a run groups records.

use super::environment::Environment;
use super::error::ConfigError;
use crate::cli::{Cli, Output};
use crate::rollup::{By, Key, Settings, Sort};

/// The number of groups of a window without `--max-groups`.
const DEFAULT_MAX_GROUPS: usize = 10_000;

/// The settings of a run that groups records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollupConfig {
    /// The groups and windows.
    pub settings: Settings,
    /// The keys of the groups, in the order of the command line.
    pub by: Vec<Key>,
    /// The order of the table's rows.
    pub sort: Sort,
    /// The maximum number of the table's rows.
    pub top: Option<usize>,
    /// Whether the table is drawn in place on a terminal.
    pub on_terminal: bool,
}

pub(super) fn rollup(cli: &Cli, environment: Environment<'_>) -> Result<Option<RollupConfig>, ConfigError> {
    let flags = &cli.table;
    let is_table = cli.output == Output::Table;
    check_output(cli)?;
    if !(is_table || flags.rollup) {
        return Ok(None);
    }
    let by = if flags.by.is_empty() {
        vec![Key::Workload]
    } else {
        flags.by.clone()
    };
    Ok(Some(RollupConfig {
        settings: Settings {
            by: By::new(&by),
            interval: cli.interval,
            max_groups: flags.max_groups.unwrap_or(DEFAULT_MAX_GROUPS),
        },
        by,
        sort: flags.sort.unwrap_or_default(),
        top: flags.top.map(usize::from),
        on_terminal: is_table && environment.is_interactive(),
    }))
}

/// Refuses flags that have no effect with the chosen output.
fn check_output(cli: &Cli) -> Result<(), ConfigError> {
    let flags = &cli.table;
    let is_table = cli.output == Output::Table;
    if flags.rollup && cli.output != Output::Json {
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
        ];
        for (arguments, part) in cases {
            let error = Config::new(&parsed(arguments), PLAIN).unwrap_err().to_string();
            assert!(error.contains(part), "{arguments}: {error}");
        }
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
