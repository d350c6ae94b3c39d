//! Hints for flags of other tools (hubble, kubectl, tcpdump, ss), in place of clap's suggestion of a similar name.

use std::ffi::OsString;
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, Parser};

use super::Cli;
use crate::shell::quoted;

/// Unknown flags, and what to use instead.
const HINTS: &[(&[&str], &str)] = &[
    (
        &["--dst", "--dest", "--destination", "--to", "--to-service"],
        "filter by the server with --to-ip, --to-port, --to-pod, --to-workload, --to-namespace or --service",
    ),
    (
        &["--src", "--source", "--from"],
        "filter by the client with --from-ip, --from-port, --from-pod, --from-workload or --from-namespace",
    ),
    (
        &["--host", "--net", "--address"],
        "filter by address or network with --ip",
    ),
    (
        &["--format", "--json"],
        "select a format with --output (-o): log, short, json, table or none",
    ),
    (&["--follow", "-f"], "tracing continues until Ctrl-C without a flag"),
    (&["--last", "--limit"], "stop after a number of records with --count"),
    (&["--timeout", "-t"], "stop after a time with --duration"),
    (&["--verdict", "--type"], "filter by outcome with --failed or --outcome"),
    (&["--label", "--labels"], "filter by labels with --selector (-l)"),
    (
        &["--deployment", "--deploy"],
        "filter by workload with --workload Deployment/NAME",
    ),
    (&["--process", "--name"], "filter by process with --comm or --pid"),
    (
        &["--interface", "-i", "--netns", "-N"],
        "connections of all interfaces and network namespaces are traced; filter with --ip or --pod",
    ),
    (
        &["--tcp", "--proto", "--protocol"],
        "only TCP is traced, so no flag is needed",
    ),
];

/// The hint for a missing `--read`.
const NO_PAST: &str = "a live trace starts now: --since and --until select a part of the captures of --read";

/// The hint for the formats of `explain` and `diff`.
const REPORT_FORMATS: &str = "select a format with --output (-o): text or json";

/// The hint for a part of a capture that `diff` should compare.
const WHOLE_CAPTURES: &str = "diff compares whole captures: save a part of one with \
                              kmesh-trace --read FILE --since TIME --write PART";

/// The ends of the names of captures and of saved JSON.
const CAPTURE_SUFFIXES: [&str; 5] = [".jsonl", ".json", ".ndjson", ".zst", ".gz"];

/// Replaces clap's suggestion by a better hint, if there is one. `arguments` are the command line without the name of
/// the program.
pub fn with_hint(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    let words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
    let line = CommandLine::new(words.collect());
    let text = |kind| error.get(kind).map(ToString::to_string);
    let hint = match error.kind() {
        ErrorKind::UnknownArgument => text(ContextKind::InvalidArg).and_then(|argument| line.hint(&argument)),
        ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict => {
            text(ContextKind::InvalidSubcommand).and_then(|word| line.hint_for_word(&word))
        }
        ErrorKind::MissingRequiredArgument => text(ContextKind::InvalidArg)
            .filter(|missing| missing.contains("--read"))
            .map(|_| NO_PAST.to_owned()),
        _ => None,
    };
    if line.subcommand.as_deref().is_some_and(|name| name != "nodes") {
        // clap would explain how to pass the flag as a file of `diff` or a shell of `completions`.
        error.remove(ContextKind::Suggested);
    }
    if let Some(hint) = hint {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

/// A command line that clap refuses.
struct CommandLine {
    words: Vec<String>,
    command: Command,
    /// The subcommand, if it is the first word. clap refuses flags before a subcommand.
    subcommand: Option<String>,
}

impl CommandLine {
    fn new(words: Vec<String>) -> Self {
        let mut command = Cli::command();
        command.build();
        let first = words.first().filter(|word| command.find_subcommand(word).is_some());
        Self {
            subcommand: first.cloned(),
            words,
            command,
        }
    }

    /// Returns the hint for an unknown argument.
    fn hint(&self, argument: &str) -> Option<String> {
        if !argument.starts_with('-') {
            return self.hint_for_word(argument);
        }
        let name = argument.split(['=', ' ']).next()?;
        let (_, hint) = HINTS.iter().find(|(names, _)| names.contains(&name)).copied().unzip();
        let hint = match self.subcommand.as_deref() {
            None => hint,
            Some("diff") if ["--since", "--until"].contains(&name) => Some(WHOLE_CAPTURES),
            Some("explain" | "diff") if ["--format", "--json"].contains(&name) => Some(REPORT_FORMATS),
            Some("explain" | "diff") => hint.filter(|hint| hint.starts_with("filter ")),
            Some(_) => None,
        };
        hint.map(str::to_owned)
    }

    /// Returns the hint for a word that is neither a flag nor the value of a flag.
    fn hint_for_word(&self, word: &str) -> Option<String> {
        if self.subcommand.is_none() && self.command.find_subcommand(word).is_some() {
            return self.hint_to_begin_with(word);
        }
        let is_capture = CAPTURE_SUFFIXES.iter().any(|suffix| word.ends_with(suffix)) || Path::new(word).is_file();
        match self.subcommand.as_deref() {
            _ if !is_capture => self.hint_for_values(word),
            None => Some(format!(
                "to replay a capture, write: kmesh-trace --read {}",
                quoted(word)
            )),
            Some("explain") => Some(format!(
                "to examine a capture, write: kmesh-trace explain --read {}",
                quoted(word)
            )),
            Some(_) => None,
        }
    }

    /// Returns the command line with `subcommand` in front, if that is a valid one.
    fn hint_to_begin_with(&self, subcommand: &str) -> Option<String> {
        let position = self.words.iter().position(|word| word == subcommand)?;
        let (before, after) = (&self.words[..position], &self.words[position + 1..]);
        let first = [subcommand.to_owned()];
        let separator = ["--".to_owned()];
        let lines = [
            [&first, before, after].concat(),
            // The flags of the trace follow the flags of `nodes`.
            [&first, after, &separator, before].concat(),
        ];
        let is_valid = |line: &&Vec<String>| {
            let line = ["kmesh-trace"].into_iter().chain(line.iter().map(String::as_str));
            Cli::try_parse_from(line).is_ok()
        };
        let line: Vec<_> = lines.iter().find(is_valid)?.iter().map(|word| quoted(word)).collect();
        Some(format!("write the subcommand first: kmesh-trace {}", line.join(" ")))
    }

    /// Returns the hint for values of one flag with spaces between them.
    fn hint_for_values(&self, word: &str) -> Option<String> {
        let position = self.words.iter().position(|other| other == word)?;
        let flag = self.words[..position].iter().rposition(|word| word.starts_with('-'))?;
        let command = match &self.subcommand {
            Some(name) => self.command.find_subcommand(name)?,
            None => &self.command,
        };
        let (name, values) = (&self.words[flag], &self.words[flag + 1..=position]);
        let has_name = |argument: &&Arg| {
            let long = argument.get_long().map(|long| format!("--{long}"));
            let short = argument.get_short().map(|short| format!("-{short}"));
            long.as_ref() == Some(name) || short.as_ref() == Some(name)
        };
        let argument = command.get_arguments().find(has_name)?;
        if argument.get_value_delimiter() != Some(',') || values.len() < 2 {
            return None;
        }
        let values: Vec<_> = values.iter().map(|value| value.trim_matches(',')).collect();
        Some(format!(
            "separate the values of a flag with commas and no spaces: {name} {}",
            quoted(&values.join(","))
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(arguments: &str) -> String {
        let words = arguments.split_whitespace();
        let error = Cli::try_parse_from(["kmesh-trace"].into_iter().chain(words.clone())).unwrap_err();
        with_hint(error, &words.map(OsString::from).collect::<Vec<_>>()).to_string()
    }

    #[test]
    fn word_that_is_no_subcommand_has_a_hint() {
        let cases = [
            (
                "x.jsonl.zst",
                "to replay a capture, write: kmesh-trace --read x.jsonl.zst",
            ),
            ("/proc/self/stat", "kmesh-trace --read /proc/self/stat"),
            ("-q it's.gz", r"kmesh-trace --read 'it'\''s.gz'"),
            (
                "explain x.gz",
                "to examine a capture, write: kmesh-trace explain --read x.gz",
            ),
            ("--events close, open", "no spaces: --events close,open"),
            ("--port 443 !8443 --failed", "no spaces: --port '443,!8443'"),
            ("diff a b --by pod port", "no spaces: --by pod,port"),
            ("-q explain", "first: kmesh-trace explain -q\n"),
            ("-q -n shop diff a b", "first: kmesh-trace diff -q -n shop a b"),
            (
                "--failed nodes --image x",
                "first: kmesh-trace nodes --image x -- --failed",
            ),
        ];
        for (arguments, hint) in cases {
            let error = refused(arguments);
            assert!(error.contains("tip: ") && error.contains(hint), "{arguments}: {error}");
        }
        for arguments in ["web", "-q web", "--duration 5s 6s", "--count 3 check", "diff a b c.gz"] {
            let error = refused(arguments);
            assert!(!error.contains("tip: "), "{arguments}: {error}");
        }
    }

    #[test]
    fn subcommand_has_no_hint_about_another() {
        let cases = [
            ("check --json", ""),
            ("schema --format json", ""),
            ("completions bash --json", ""),
            ("diff a b --json", REPORT_FORMATS),
            ("explain --format json", REPORT_FORMATS),
            ("explain --dst 10.0.0.1", "--to-ip"),
            ("explain --follow", ""),
            ("diff a b --since -5m", WHOLE_CAPTURES),
            ("nodes --image x --prot 443", "-- --prot"),
        ];
        for (arguments, hint) in cases {
            let error = refused(arguments);
            assert!(error.contains(hint), "{arguments}: {error}");
            assert_eq!(error.contains("tip: "), !hint.is_empty(), "{arguments}: {error}");
        }
    }

    #[test]
    fn flag_of_another_tool_has_a_hint_instead_of_a_similar_name() {
        let cases = [
            ("--dst 10.0.0.1", "--to-ip", "--sort"),
            ("--dst=10.0.0.1", "--to-ip", "--sort"),
            ("--format json", "--output (-o)", "--port"),
            ("--to shop/web", "--service", "--top"),
            ("-f", "until Ctrl-C", "-6"),
            ("--since -5m", "a live trace starts now", "similar"),
        ];
        for (arguments, hint, misleading) in cases {
            let error = refused(arguments);
            assert!(error.contains("tip: ") && error.contains(hint), "{error}");
            assert!(!error.contains(misleading), "{error}");
        }
        assert!(refused("--prot 80").contains("--port"));
    }

    #[test]
    fn hints_are_about_unknown_flags() {
        let mut command = Cli::command();
        command.build();
        for name in HINTS.iter().flat_map(|(names, _)| *names) {
            let is_known = command.get_arguments().any(|argument| {
                let long = argument.get_long().map(|long| format!("--{long}"));
                let short = argument.get_short_and_visible_aliases().unwrap_or_default();
                long.as_deref() == Some(name) || short.iter().any(|short| format!("-{short}") == *name)
            });
            assert!(!is_known, "{name}");
        }
    }
}
