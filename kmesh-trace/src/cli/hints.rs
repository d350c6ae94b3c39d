//! Hints for flags of other tools (hubble, kubectl, tcpdump, ss), in place of clap's suggestion of a similar name.

use clap::error::{ContextKind, ContextValue, ErrorKind};

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

/// Replaces clap's suggestion by a better hint, if there is one.
pub fn with_hint(mut error: clap::Error) -> clap::Error {
    let hint = match error.kind() {
        ErrorKind::UnknownArgument => error
            .get(ContextKind::InvalidArg)
            .and_then(|argument| hint(&argument.to_string())),
        ErrorKind::MissingRequiredArgument => {
            let missing = error.get(ContextKind::InvalidArg).map(ToString::to_string);
            missing.filter(|missing| missing.contains("--read")).map(|_| NO_PAST)
        }
        _ => None,
    };
    if let Some(hint) = hint {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

fn hint(argument: &str) -> Option<&'static str> {
    let name = argument.split(['=', ' ']).next()?;
    let (_, hint) = HINTS.iter().find(|(names, _)| names.contains(&name))?;
    Some(hint)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    fn refused(arguments: &str) -> String {
        let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
        with_hint(Cli::try_parse_from(arguments).unwrap_err()).to_string()
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
