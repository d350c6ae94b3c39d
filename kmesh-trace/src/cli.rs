//! The command line as it is typed: types for `clap`, nothing else. What it means is [`crate::config`]'s.

mod capture;
mod filters;
mod metrics;
mod names;
mod table;

pub use capture::Capture;
pub use filters::Filters;
pub use metrics::Metrics;
pub use names::Names;
pub use table::{TableFlags, Typed};

use crate::completions::Shell;
use crate::config::{self, BufferSize, Color, EventName, Output};
use clap::{Parser, Subcommand};
use std::num::NonZeroU64;
use std::time::Duration;

const LAYOUT: &str = "{about}\n{usage-heading} {usage}\n{all-args}{after-help}\n";

const MORE: &str = "\
Examples:
  kmesh-trace
          Every connection that closes, one access-log line each, until Ctrl-C
  kmesh-trace -o json --duration 60s > closed.jsonl
          A minute of them as JSON
  kmesh-trace -o json | jq -r 'select(.outcome != \"ok\") | .process.comm'
          Whose connections fail
  kmesh-trace -o table --by service --sort -failed
          What fails right now, seen in the terminal (? tells the keys)
  kmesh-trace --kubeconfig -o json
          With the names of the whole cluster, not of this node's pods alone
  kmesh-trace -o none --metrics 15020
          For Prometheus, to scrape http://127.0.0.1:15020/metrics
  kmesh-trace check
          Can it run here, and what will it be able to name?

  kmesh-trace --failed --to-port 5432 --from-ip '10.0.0.0/8,!10.0.0.7'
          Who in this network, but for one, fails to reach the database
  kmesh-trace -n shop --failed
          What failed, in or out of a namespace
  kmesh-trace --from-workload Deployment/web --service shop/database
          What a Deployment does with a Service
  kmesh-trace --comm 'nginx*' --direction inbound --min-duration 2s
          What nginx was slow to serve

Filters: a flag's values, with commas or repeated, are alternatives; different
flags must all pass. A leading ! negates a value: what it matches does not pass.
A flag passes when one of its other values matches, or it has none, and no
negated one does. What is not known (the process, the outcome of what has not
ended) matches no value. Quote ! and * for the shell: '!443', 'kube*'. A record
of `open` or `update` has no outcome. -l has kubectl's own grammar:
'app=web,tier!=db', where a comma means AND.

Only data goes to standard output, all else to standard error. The closing
summary accounts for every connection that ended meanwhile; with -o json it is
the last line, otherwise it goes to standard error.

Exit status:
  0  It ran and ended as asked: Ctrl-C, SIGTERM, --duration, --count, or a
     reader that went away
  1  It failed while running, or a source of names that was named did not
     answer within 10 s
  2  The command line is wrong
  3  This system cannot trace: privileges, the kernel or its BTF; it says
     which, and what to do

Signals:
  SIGINT, SIGTERM  Stop, print what the kernel has already recorded, sum up;
                   a second one: stop at once
  SIGUSR1          Sum up so far

Environment:
  NO_COLOR    When set and not empty, no colour unless --color asks for it
  TERM        When unset, empty or dumb, no colour, and -o table prints blocks
  KUBECONFIG  What --kubeconfig takes when it has no value
  NODE_NAME   This node's name in the cluster, for --this-node

Nothing outlives the program: after any exit the kernel holds nothing of it.";

/// Trace every TCP connection of this node that ends, exactly
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kmesh-trace",
    version,
    long_about = "Trace every TCP connection of this node that ends, or that failed to begin, in all network \
                  namespaces: who, with whom, how many bytes each way, how long, and how it ended.\n\n\
                  Needs Linux 5.12 or later with BTF, and root or CAP_BPF and CAP_PERFMON.",
    help_template = LAYOUT,
    override_usage = "kmesh-trace [OPTIONS | COMMAND]",
    after_long_help = MORE,
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    disable_help_flag = true,
    disable_help_subcommand = true,
    disable_version_flag = true,
    max_term_width = 100,
    next_help_heading = "Options"
)]
pub struct Cli {
    /// What to do in place of tracing.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// What to print: log, json, table or none
    ///
    /// log: access-log lines, Kmesh's fields first. json: one object a line, as the schema command describes them.
    /// table: what groups of connections do, in the terminal; a block of lines an --interval where there is none.
    /// none: nothing but the summary on standard error.
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "log",
        hide_possible_values = true
    )]
    #[arg(help_heading = "Output")]
    pub output: Output,

    /// Which events: close, open, update
    ///
    /// close: the connection, or the attempt to connect, is over. open: it was established. update: how a connection that
    /// is open, or an attempt that is not over, stands after each --interval.
    #[arg(
        long,
        value_name = "EVENT",
        value_delimiter = ',',
        default_value = "close",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub events: Vec<EventName>,

    /// How often update events are told, and how long what is rolled up is
    ///
    /// Where a scan of all open sockets takes more than 5 % of that, updates come less often, and a line on standard error says
    /// how often.
    #[arg(
        long,
        value_name = "TIME",
        default_value = "5s",
        value_parser = config::interval,
        help_heading = "Output"
    )]
    pub interval: Duration,

    /// Colour: auto, always or never
    ///
    /// auto: on a terminal, unless NO_COLOR is set or TERM is empty or dumb. Colour marks failures in the log and changes no word of it.
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "Output"
    )]
    pub color: Color,

    /// Say less on standard error
    ///
    /// Errors, and that records were lost, are said all the same.
    #[arg(short, long, conflicts_with = "verbose", help_heading = "Output")]
    pub quiet: bool,

    /// Say more on standard error
    #[arg(short, long, help_heading = "Output")]
    pub verbose: bool,

    /// Stop after this long: 30s, 5m, 1h30m
    #[arg(long, value_name = "TIME", value_parser = config::duration)]
    pub duration: Option<Duration>,

    /// Stop after N records
    ///
    /// What ends after that is not printed, but counted in the summary.
    #[arg(long, value_name = "N", value_parser = config::count)]
    pub count: Option<NonZeroU64>,

    /// The kernel's ring buffer, up to 1GiB
    ///
    /// Written 65536, 64k, 64Ki or 64KiB: k, M and G are powers of 1000, Ki, Mi and Gi of 1024. The kernel takes powers of two of at least one page: the
    /// next one is used. Records for which it has no room are lost, and counted.
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub buffer: BufferSize,

    /// Print help (--help tells more)
    #[arg(short, long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,

    /// Print the version
    #[arg(short = 'V', long, action = clap::ArgAction::Version)]
    version: Option<bool>,

    /// What is rolled up.
    #[command(flatten)]
    pub table: TableFlags,

    /// What is kept, and told again.
    #[command(flatten)]
    pub capture: Capture,

    /// Where names come from.
    #[command(flatten)]
    pub names: Names,
    /// Whether and how metrics are served.
    #[command(flatten)]
    pub metrics: Metrics,

    /// Which connections.
    // Last, because what follows it would stand under its heading.
    #[command(flatten)]
    pub filters: Filters,
}

/// The main job needs none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Tell whether this system can be traced, and what is missing
    Check,
    /// Print the JSON Schema of every line of -o json
    Schema,
    /// Print a shell's completion script: bash, zsh or fish
    Completions {
        /// The shell
        ///
        /// bash: eval "$(kmesh-trace completions bash)". zsh: the same after compinit, or a file _kmesh-trace in a
        /// folder of $fpath. fish: kmesh-trace completions fish | source.
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        shell: Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(arguments: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(["kmesh-trace"].into_iter().chain(arguments.split_whitespace()))
    }

    #[test]
    fn clap_finds_no_fault() {
        Cli::command().debug_assert();
    }

    #[test]
    fn subcommands_have_help_of_their_own() {
        for arguments in ["check -h", "check --help", "schema -h", "completions -h"] {
            let shown = parse(arguments).unwrap_err();
            assert_eq!(shown.kind(), ErrorKind::DisplayHelp, "{arguments}: {shown}");
        }
    }

    #[test]
    fn long_help_tells_what_scripts_need() {
        let help = Cli::command().render_long_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
        assert!(
            MORE.lines().all(|line| line.chars().count() <= 80),
            "clap would break these"
        );
        for part in ["Exit status:", "SIGUSR1", "NO_COLOR", "CAP_BPF", "powers of 1000"] {
            assert!(help.contains(part), "{part}: {help}");
        }
    }

    #[test]
    fn what_is_typed_is_understood() {
        let accepted = [
            "",
            "-o log",
            "-ojson",
            "--output=none",
            "-o json -o log",
            "--color always",
            "--duration 1h30m",
            "--count 1",
            "--buffer 4096",
            "-w x.kmt --rotate 64Ki,3",
            "-r - -w y.kmt --count 3",
            "-q",
            "-v",
            "-o none --metrics 15020 --metrics-level workload,connection --metrics-max-series 9 --metrics-idle 1h",
            "--metrics [::]:15020 --metrics-compat --cluster east --trust-domain example.org",
            "-4 -p 443 -p 8000-8999,!8080 --from-port !0 --to-port 443",
            "-6 --ip ::1,fd00::/8 --from-ip !::2 --to-ip ::",
            "--pid 1,2 --comm n*,!nginx --container containerd://3f9A",
            "--direction inbound --outcome !ok,timeout --failed --established-only",
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
            "schema",
            "completions bash",
            "completions zsh",
            "completions fish",
        ];
        for arguments in accepted {
            assert!(parse(arguments).is_ok(), "{arguments}");
        }
        assert_eq!(parse("-o json -o log").unwrap().output, Output::Log);
        assert_eq!(parse("check").unwrap().command, Some(Command::Check));
        assert_eq!(parse("schema").unwrap().command, Some(Command::Schema));
    }

    #[test]
    fn wrong_arguments_end_with_status_2_and_name_the_flag() {
        let cases: &[(&str, ErrorKind, &[&str])] = &[
            (
                "-o yaml",
                ErrorKind::InvalidValue,
                &["--output", "yaml", "log, json, table, none"],
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
            ("-o table --top 0", ErrorKind::ValueValidation, &["--top"]),
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
                "--min-duration 5",
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
                "--metrics-idle 5",
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
    fn help_and_version_are_data_and_no_failure() {
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
}
