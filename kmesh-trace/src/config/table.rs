//! What is rolled up, and how it is shown.

use clap::Parser;

use super::{Output, Refusal, Surroundings, filters};
use crate::cli::{Cli, Typed};
use crate::filter::Filter;
use crate::render::table::sort::Sort;
use crate::rollup::{By, Key, Settings};

/// Groups of a window when nothing is said.
const MAX_GROUPS: usize = 10_000;
/// The most groups of a window: more would be gigabytes.
const MOST_GROUPS: usize = 1_000_000;

/// A run whose records are rolled up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rolled {
    /// Into what.
    pub settings: Settings,
    /// As it was typed.
    pub by: Vec<Key>,
    /// The table's order.
    pub sort: Sort,
    /// Its rows, if there is a limit.
    pub top: Option<usize>,
    /// A person looks at it in a terminal.
    pub on_terminal: bool,
}

impl Rolled {
    pub(super) fn new(cli: &Cli, surroundings: Surroundings<'_>) -> Result<Option<Self>, Refusal> {
        let flags = &cli.table;
        let is_table = cli.output == Output::Table;
        if flags.rollup && cli.output != Output::Json {
            let why = "--rollup is for -o json; -o table rolls up by itself";
            return Err(Refusal(why.to_owned()));
        }
        let only_of_table = [("--sort", flags.sort.is_some()), ("--top", flags.top.is_some())];
        let of_both = [
            ("--by", !flags.by.is_empty()),
            ("--max-groups", flags.max_groups.is_some()),
        ];
        if let Some((flag, _)) = only_of_table.into_iter().find(|(_, given)| *given && !is_table) {
            return Err(Refusal(format!("{flag} is for -o table")));
        }
        if !(is_table || flags.rollup) {
            return match of_both.into_iter().find(|(_, given)| *given) {
                Some((flag, _)) => Err(Refusal(format!("{flag} is for -o table, or -o json with --rollup"))),
                None => Ok(None),
            };
        }
        let by = if flags.by.is_empty() {
            vec![Key::Workload]
        } else {
            flags.by.clone()
        };
        Ok(Some(Self {
            settings: Settings {
                by: By::new(&by),
                interval: cli.interval,
                max_groups: flags.max_groups.unwrap_or(MAX_GROUPS),
            },
            by,
            sort: flags.sort.unwrap_or_default(),
            top: flags.top.map(usize::from),
            on_terminal: is_table && surroundings.is_interactive(),
        }))
    }
}

/// Parses `--max-groups`.
pub(crate) fn max_groups(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=MOST_GROUPS) => Ok(number),
        _ => Err("a whole number from 1 to 1000000".to_owned()),
    }
}

/// The filter that was typed at the table's prompt: the flags of the command line.
pub fn typed_filter(text: &str) -> Result<Filter, String> {
    let typed = Typed::try_parse_from(text.split_whitespace()).map_err(|error| {
        let error = error.to_string();
        let first = error.lines().next().unwrap_or_default();
        first.strip_prefix("error: ").unwrap_or(first).to_owned()
    })?;
    let filter = Filter::from(&typed.filters);
    filters::check_family(&filter).map_err(|refusal| refusal.to_string())?;
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PLAIN, parsed};
    use super::*;
    use crate::config::Config;

    #[test]
    fn flags_that_mean_nothing_here_are_refused_by_name() {
        let cases = [
            ("--rollup", "--rollup is for -o json"),
            ("-o table --rollup", "--rollup is for -o json"),
            ("-o json --rollup --sort failed", "--sort is for -o table"),
            ("-o json --rollup --top 3", "--top is for -o table"),
            ("--sort -failed", "--sort is for -o table"),
            ("-o json --by pod", "--by is for -o table, or -o json with --rollup"),
            ("--max-groups 3", "--max-groups is for"),
        ];
        for (arguments, part) in cases {
            let refusal = Config::new(&parsed(arguments), PLAIN).unwrap_err().to_string();
            assert!(refusal.contains(part), "{arguments}: {refusal}");
        }
    }

    #[test]
    fn what_is_rolled_up_is_told_of_whole() {
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
            assert!(config.rolled.is_some(), "{arguments}");
        }
        assert_eq!(Config::new(&parsed("-o json"), PLAIN).unwrap().rolled, None);
    }

    #[test]
    fn a_typed_filter_is_one_of_the_command_line() {
        for text in ["", "  ", "--port 443", "-4 --failed --comm 'n*'", "-p !443,80"] {
            assert!(typed_filter(text).is_ok(), "{text}");
        }
        assert_eq!(typed_filter(""), Ok(Filter::default()));
        for (text, part) in [
            ("443", "443"),
            ("--port x", "--port"),
            ("--prot 80", "--prot"),
            ("-4 -6", "-4"),
            ("-4 --ip ::1", "--ip"),
            ("--help", "--help"),
        ] {
            let error = typed_filter(text).unwrap_err();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
    }
}
