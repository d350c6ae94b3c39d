//! Tests of the command line as clap parses and prints it.

use clap::error::ErrorKind;
use clap::{Arg, CommandFactory};

use super::*;

fn parse(arguments: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(["kmesh-trace"].into_iter().chain(arguments.split_whitespace()))
}

#[test]
fn definition_is_consistent() {
    Cli::command().debug_assert();
}

/// Returns every flag of the main command, as clap prints them in help.
fn flags() -> Vec<Arg> {
    let mut command = Cli::command();
    command.build();
    command.get_arguments().cloned().collect()
}

/// Returns every flag of the subcommand `nodes`.
fn flags_of_nodes() -> Vec<Arg> {
    let mut command = Cli::command();
    command.build();
    let nodes = command.find_subcommand("nodes").unwrap();
    nodes.get_arguments().cloned().collect()
}

#[test]
fn every_flag_has_short_and_long_help() {
    for flag in [flags(), flags_of_nodes()].concat() {
        let short = flag.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(!short.is_empty() && !short.contains('\n'), "{flag}: {short:?}");
        // clap generates these two, whose short help says everything.
        if !["help", "version"].contains(&flag.get_id().as_str()) {
            let long = flag.get_long_help().map(ToString::to_string).unwrap_or_default();
            let detail = long.strip_prefix(&short).map(str::trim).unwrap_or_default();
            assert!(!detail.is_empty(), "{flag} has no long help: {long:?}");
        }
    }
}

#[test]
fn short_help_has_one_line_per_flag() {
    for width in [80, 100] {
        let help = Cli::command().term_width(width).render_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= width), "{help}");
        for flag in flags() {
            let name = match (flag.get_long(), flag.get_short()) {
                (Some(long), _) => format!("--{long}"),
                (None, short) => format!("-{}", short.unwrap()),
            };
            let short = flag.get_help().unwrap().to_string();
            let is_of_flag =
                |line: &&str| line.split([' ', ',', '=', '[', '<']).any(|word| word == name) && line.contains(&short);
            assert!(help.lines().any(|line| is_of_flag(&line)), "{width}: {name}: {help}");
            let default = flag
                .get_default_values()
                .first()
                .filter(|_| flag.get_action().takes_values());
            if let Some(default) = default {
                let default = format!("[default: {}]", default.to_str().unwrap());
                let line = help.lines().find(is_of_flag).unwrap();
                assert!(line.ends_with(&default), "{width}: {line}");
            }
        }
    }
}

#[test]
fn help_is_grouped_under_headings() {
    let help = Cli::command().term_width(80).render_help().to_string();
    let headings: Vec<_> = help
        .lines()
        .filter(|line| line.ends_with(':') && !line.starts_with(' '))
        .collect();
    let expected = [
        "Commands:",
        "Options:",
        "Table and rollups:",
        "Captures:",
        "Names:",
        "Metrics:",
        "Filters:",
    ];
    assert_eq!(headings, expected, "{help}");
}

#[test]
fn subcommands_have_help() {
    for arguments in [
        "check -h",
        "check --help",
        "explain --help",
        "diff --help",
        "schema -h",
        "completions -h",
        "nodes -h",
    ] {
        let shown = parse(arguments).unwrap_err();
        assert_eq!(shown.kind(), ErrorKind::DisplayHelp, "{arguments}: {shown}");
    }
}

#[test]
fn long_help_has_status_signals_and_environment() {
    let help = Cli::command().render_long_help().to_string();
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    assert!(
        EXAMPLES_AND_STATUS.lines().all(|line| line.chars().count() <= 80),
        "clap would wrap these lines"
    );
    for part in [
        "Exit status:",
        "SIGUSR1",
        "NO_COLOR",
        "CAP_BPF",
        "powers of 1000",
        "Examples:",
    ] {
        assert!(help.contains(part), "{part}: {help}");
    }
}

#[test]
fn valid_arguments_are_accepted() {
    let accepted = [
        "",
        "-o log",
        "-ojson",
        "--output=none",
        "-o json -o log",
        "-q -q --failed --failed --duration 5 --duration 1m --interval 2 --interval 3s",
        "diff a b -o json -o text -q -q",
        "explain --duration 5s --duration 6s",
        "nodes --image x --image y --yes --yes",
        "--color always",
        "--duration 1h30m",
        "--count 1",
        "--buffer 4096",
        "-w x.jsonl --rotate 64Ki,3",
        "-r - -w y.jsonl --count 3",
        "-q",
        "-v",
        "-o none --metrics 15020 --metrics-level workload,connection --metrics-max-series 9 --metrics-idle 1h",
        "--metrics [::]:15020 --metrics-compat --cluster east --trust-domain example.org",
        "-4 -p 443 -p 8000-8999,!8080 --from-port !0 --to-port 443",
        "-6 --ip ::1,fd00::/8 --from-ip !::2 --to-ip ::",
        "--pid 1,2 --comm n*,!nginx --container containerd://3f9A",
        "--direction inbound --outcome !ok,timeout --failed --established-only",
        "--outcome reset,!refused_by_peer,Reset-By-Peer",
        "--connecting --events update",
        "-A --failed",
        "-o short --include-self --interval 1",
        "--cri /run/x.sock --kubelet https://10.0.0.5:10250/pods --kubeconfig k --this-node",
        "--min-duration 1s500ms --min-bytes 64Ki",
        "-o table --by workload,port --by outcome --sort -failed --top 5 --max-groups 1",
        "-o table --sort bytes",
        "-o json --rollup --by connection --max-groups 1000000",
        "--cri --kubelet --kubeconfig --pods-file p.json",
        "--cri=/run/x.sock --kubelet=https://10.0.0.5:10250/pods --kubeconfig=k --context c --this-node",
        "--kubelet --kubelet-token t --kubelet-ca c",
        "--kubelet --kubelet-cert c --kubelet-key k --kubelet-insecure",
        "--no-resolve",
        "check",
        "explain",
        "diff a.jsonl b.jsonl",
        "diff a.jsonl - -n shop --by service,port -o json -q --pods-file p.json",
        "explain --duration 5s -n shop --failed -o json --include-self -q",
        "explain --read x.jsonl --since -5m --until 2026-01-02T03:04:05Z --pods-file p.json",
        "schema",
        "completions bash",
        "completions zsh",
        "completions fish",
        "nodes --image x",
        "nodes --image x -l a=b --node n1,n2 --node n3 --image-pull-policy Never --pod-namespace p --yes -- -n shop -l c=d",
        "nodes --image x --copy-binary --kubeconfig k --context c -- --failed -o table",
        "nodes --clean --pod-namespace p",
        "node-wait",
        "node-trace -- -o json --port 443",
    ];
    for arguments in accepted {
        assert!(parse(arguments).is_ok(), "{arguments}");
    }
    assert_eq!(parse("-o json -o log").unwrap().output, Some(Output::Log));
    assert_eq!(parse("-c 3").unwrap().count, parse("--count 3").unwrap().count);
    assert!(matches!(parse("check").unwrap().command, Some(Command::Check)));
    assert!(matches!(parse("schema").unwrap().command, Some(Command::Schema)));
}

#[test]
fn wrong_argument_is_refused_with_status_2_and_its_flag() {
    let cases: &[(&str, ErrorKind, &[&str])] = &[
        (
            "-o yaml",
            ErrorKind::InvalidValue,
            &["--output", "yaml", "log, short, json, table, none"],
        ),
        ("-o jsno", ErrorKind::InvalidValue, &["--output", "similar", "json"]),
        ("-o", ErrorKind::InvalidValue, &["--output"]),
        (
            "--color sometimes",
            ErrorKind::InvalidValue,
            &["--color", "auto, always, never"],
        ),
        ("--count 0", ErrorKind::ValueValidation, &["--count", "1 or more"]),
        ("--count=-1", ErrorKind::ValueValidation, &["--count", "whole number"]),
        ("--count -1", ErrorKind::ValueValidation, &["--count", "whole number"]),
        (
            "--interval -1",
            ErrorKind::ValueValidation,
            &["--interval", "write 500ms"],
        ),
        (
            "--duration -5m",
            ErrorKind::ValueValidation,
            &["--duration", "write 30s"],
        ),
        ("--duration 1M", ErrorKind::ValueValidation, &["--duration", "months"]),
        (
            "explain --duration -5m",
            ErrorKind::ValueValidation,
            &["--duration", "write 30s"],
        ),
        (
            "-r x --since -5M",
            ErrorKind::ValueValidation,
            &["--since", "months", "m is a minute"],
        ),
        ("-w a -w b", ErrorKind::ArgumentConflict, &["--write", "multiple times"]),
        (
            "--pods-file a --pods-file b",
            ErrorKind::ArgumentConflict,
            &["--pods-file", "multiple times"],
        ),
        (
            "--kubeconfig a --kubeconfig b",
            ErrorKind::ArgumentConflict,
            &["--kubeconfig", "multiple times"],
        ),
        (
            "--metrics 1 --metrics 2",
            ErrorKind::ArgumentConflict,
            &["--metrics", "multiple times"],
        ),
        (
            "explain --pods-file a --pods-file b",
            ErrorKind::ArgumentConflict,
            &["--pods-file", "multiple times"],
        ),
        (
            "diff a b --pods-file a --pods-file b",
            ErrorKind::ArgumentConflict,
            &["--pods-file", "multiple times"],
        ),
        (
            "nodes --image x -l a=b -l c=d",
            ErrorKind::ArgumentConflict,
            &["--selector", "multiple times"],
        ),
        (
            "-r x --include-self",
            ErrorKind::ArgumentConflict,
            &["--read", "--include-self"],
        ),
        (
            "--metrics-level service",
            ErrorKind::MissingRequiredArgument,
            &["--metrics <ADDR>"],
        ),
        (
            "--metrics-max-series 9",
            ErrorKind::MissingRequiredArgument,
            &["--metrics <ADDR>"],
        ),
        (
            "--metrics-idle 1h",
            ErrorKind::MissingRequiredArgument,
            &["--metrics <ADDR>"],
        ),
        (
            "--metrics-compat",
            ErrorKind::MissingRequiredArgument,
            &["--metrics <ADDR>"],
        ),
        (
            "--cluster east",
            ErrorKind::MissingRequiredArgument,
            &["--metrics <ADDR>"],
        ),
        (
            "--trust-domain x",
            ErrorKind::MissingRequiredArgument,
            &["--metrics <ADDR>"],
        ),
        (
            "--duration 0s",
            ErrorKind::ValueValidation,
            &["--duration", "more than 0s"],
        ),
        ("--duration soon", ErrorKind::ValueValidation, &["--duration", "30s"]),
        ("--buffer 0", ErrorKind::ValueValidation, &["--buffer", "4Ki"]),
        ("--buffer 2Gi", ErrorKind::ValueValidation, &["--buffer", "1GiB"]),
        ("--buffer 8Mb", ErrorKind::ValueValidation, &["--buffer", "units"]),
        (
            "-o table --by pods",
            ErrorKind::InvalidValue,
            &["--by", "similar", "pod"],
        ),
        (
            "-o table --sort latency",
            ErrorKind::ValueValidation,
            &["--sort", "failed"],
        ),
        ("-o table --top 0", ErrorKind::ValueValidation, &["--top", "1 or more"]),
        ("-o table --top -1", ErrorKind::ValueValidation, &["--top", "1 or more"]),
        (
            "-o table --max-groups 0",
            ErrorKind::ValueValidation,
            &["--max-groups", "1000000"],
        ),
        ("-4 -6", ErrorKind::ArgumentConflict, &["-4", "-6"]),
        ("-q -v", ErrorKind::ArgumentConflict, &["--quiet", "--verbose"]),
        ("--ouput json", ErrorKind::UnknownArgument, &["--ouput", "--output"]),
        (
            "--namespace Shop",
            ErrorKind::ValueValidation,
            &["--namespace", "lower-case"],
        ),
        ("-l a=b=c", ErrorKind::ValueValidation, &["--selector", "comma"]),
        (
            "--workload a/b/c",
            ErrorKind::ValueValidation,
            &["--workload", "lower-case"],
        ),
        ("chekc", ErrorKind::InvalidSubcommand, &["chekc", "check"]),
        ("--count 3 check", ErrorKind::ArgumentConflict, &["--count", "check"]),
        ("--prot 80", ErrorKind::UnknownArgument, &["--prot", "--port"]),
        ("--port 70000", ErrorKind::ValueValidation, &["--port", "65535"]),
        ("--to-port 9-3", ErrorKind::ValueValidation, &["--to-port", "3-9"]),
        ("--from-port http", ErrorKind::ValueValidation, &["--from-port", "443"]),
        ("--port !", ErrorKind::ValueValidation, &["--port", "missing"]),
        ("--port 80,", ErrorKind::ValueValidation, &["--port", "missing"]),
        ("--ip 10.0.0.0/33", ErrorKind::ValueValidation, &["--ip", "0 to 32"]),
        ("--ip localhost", ErrorKind::ValueValidation, &["--ip", "10.0.0.0/8"]),
        ("--ip fe80::1%eth0", ErrorKind::ValueValidation, &["--ip", "zones"]),
        ("--pid nginx", ErrorKind::ValueValidation, &["--pid", "--comm"]),
        (
            "--comm prometheus-node-exporter",
            ErrorKind::ValueValidation,
            &["--comm", "15 bytes"],
        ),
        (
            "--container web",
            ErrorKind::ValueValidation,
            &["--container", "hexadecimal"],
        ),
        (
            "--outcome rfused",
            ErrorKind::InvalidValue,
            &["--outcome", "similar", "refused"],
        ),
        (
            "--outcome !time_out",
            ErrorKind::InvalidValue,
            &["--outcome", "similar", "timeout"],
        ),
        (
            "--direction in",
            ErrorKind::InvalidValue,
            &["--direction", "inbound, outbound"],
        ),
        (
            "--min-bytes 1MB2",
            ErrorKind::ValueValidation,
            &["--min-bytes", "units"],
        ),
        (
            "--min-duration -5s",
            ErrorKind::ValueValidation,
            &["--min-duration", "100ms"],
        ),
        ("--failed=yes", ErrorKind::TooManyValues, &["--failed"]),
        (
            "--kubelet=ftp://n1",
            ErrorKind::ValueValidation,
            &["--kubelet", "https://"],
        ),
        ("--kubelet-token t", ErrorKind::MissingRequiredArgument, &["--kubelet"]),
        (
            "--kubelet --kubelet-cert c",
            ErrorKind::MissingRequiredArgument,
            &["--kubelet-key"],
        ),
        ("--context c", ErrorKind::MissingRequiredArgument, &["--kubeconfig"]),
        ("--this-node", ErrorKind::MissingRequiredArgument, &["--kubeconfig"]),
        (
            "--no-resolve --kubelet",
            ErrorKind::ArgumentConflict,
            &["--no-resolve", "--kubelet"],
        ),
        (
            "--kubelet --kubelet-ca c --kubelet-insecure",
            ErrorKind::ArgumentConflict,
            &["--kubelet-ca", "--kubelet-insecure"],
        ),
        (
            "--metrics :15020",
            ErrorKind::ValueValidation,
            &["--metrics", "0.0.0.0:15020"],
        ),
        (
            "--metrics-level pod",
            ErrorKind::InvalidValue,
            &["--metrics-level", "workload, service, connection"],
        ),
        (
            "--metrics-idle ten",
            ErrorKind::ValueValidation,
            &["--metrics-idle", "10m"],
        ),
        ("check --count 3", ErrorKind::UnknownArgument, &["--count"]),
    ];
    for &(arguments, kind, parts) in cases {
        let error = parse(arguments).unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{arguments}: {text}");
        assert_eq!(error.exit_code(), 2, "{arguments}");
        assert!(error.use_stderr(), "{arguments}");
        for part in parts {
            assert!(text.contains(part), "{arguments}: {part}: {text}");
        }
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for (arguments, kind) in [
        ("-h", ErrorKind::DisplayHelp),
        ("--help", ErrorKind::DisplayHelp),
        ("-V", ErrorKind::DisplayVersion),
        ("--version", ErrorKind::DisplayVersion),
    ] {
        let shown = parse(arguments).unwrap_err();
        assert_eq!(
            (shown.kind(), shown.exit_code(), shown.use_stderr()),
            (kind, 0, false),
            "{arguments}"
        );
    }
    assert_eq!(
        parse("-V").unwrap_err().to_string(),
        format!("kmesh-trace {}\n", env!("CARGO_PKG_VERSION"))
    );
}
