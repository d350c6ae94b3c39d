//! The command line: types for `clap` that hold each argument as a typed value.
//!
//! Each value is checked while it is parsed, so that `clap` names the flag in the error. [`crate::config`] decides what
//! the arguments mean together.

mod capture;
mod diff;
mod explain;
mod filters;
mod hints;
mod metrics;
mod names;
mod nodes;
mod table;
#[cfg(test)]
mod tests;
mod values;

pub use capture::{Capture, CapturePath, Rotation, TimeBound};
pub use diff::Diff;
pub use explain::{Explain, ReportFormat};
pub use filters::{Filters, OutcomeName, PromptFilter};
pub use hints::with_hint;
pub use metrics::{Level, Metrics};
pub use names::Names;
pub use nodes::{Nodes, PullPolicy};
pub use table::Table;
pub use values::{BufferSize, Color, EventName, Interval, Output, Shell, Size, TimeFormat};

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::time::Duration;

use clap::{Parser, Subcommand};

const HELP_TEMPLATE: &str = "{about}\n\n{usage-heading} {usage}\n\n{all-args}{after-help}\n";

/// The end of `-h`.
const FILTER_HELP: &str = "\
Filters: commas and repeated flags mean OR, different flags mean AND, a leading
! negates a value, and * matches any characters in a name.
Try 'kmesh-trace --help' for details and examples.";

/// The end of `--help`.
const EXAMPLES_AND_STATUS: &str = "\
Examples:
  kmesh-trace
          Print one line for every connection that closes, until Ctrl-C
  kmesh-trace -o json --duration 60s > closed.jsonl
          Save one minute of connections as JSON
  kmesh-trace --failed -o json | jq -r 'select(.type == \"conn\").process.comm'
          Print the processes whose connections fail
  kmesh-trace -o table --by service --sort -failed
          Show the services that fail most in a live table (press ? for keys)
  kmesh-trace --kubeconfig -o json
          Add the names of the whole cluster, not only of this node's pods
  kmesh-trace -o none --metrics 15020
          Serve Prometheus metrics on http://127.0.0.1:15020/metrics
  kmesh-trace explain
          Watch for 30 s, then print what is wrong, with evidence
  kmesh-trace check
          Check whether this system can be traced and which names are available

  kmesh-trace --failed --to-port 5432 --from-ip '10.0.0.0/8,!10.0.0.7'
          Print failed attempts to reach the database from one network,
          except from one address
  kmesh-trace -n shop --failed
          Print what failed in or out of one namespace
  kmesh-trace --events update --interval 1s --connecting
          Print attempts to connect that wait for an answer, each second
  kmesh-trace --from-workload Deployment/web --service shop/database
          Print connections of one Deployment to one service
  kmesh-trace --comm 'nginx*' --direction inbound --min-duration 2s
          Print connections that nginx served for 2 s or longer

How filters combine:
  Values of one flag, with commas or repeated flags, are alternatives. Different
  flags must all pass. A leading ! negates a value. A flag passes a record when
  one of its positive values matches, or it has none, and no negated value
  matches. An unknown property (the process, or the outcome of a connection that
  is still open) matches no value. Quote ! and * for the shell: '!443', 'kube*'.
  -l has kubectl's grammar instead: in 'app=web,tier!=db' the comma means AND.

Output:
  Only data goes to standard output. Messages go to standard error. The closing
  summary accounts for every connection that ended during the run. With -o json
  the summary is the last line of the output, otherwise a message.

Exit status:
  0  The run ended as requested: Ctrl-C, SIGTERM, SIGHUP, --duration, --count,
     or the reader of standard output closed it
  1  The run failed, or a named source of names did not answer within 10 s
  2  The command line is wrong
  3  This system cannot be traced: privileges, the kernel or its BTF. The
     message says what is missing and what to do
  As in diff(1), kmesh-trace diff returns 0 if nothing differs, 1 if something
  differs, and 2 for trouble

Signals:
  SIGINT, SIGTERM, SIGHUP
           Stop, print what the kernel has already recorded and the summary.
           A second signal stops at once. Under nohup, SIGHUP does nothing
  SIGUSR1  Print the summary so far

Environment:
  NO_COLOR    If set and not empty, print no color unless --color asks for it
  TERM        If unset, empty or dumb, print no color, and print -o table as
              blocks of lines
  TZ          The time zone for --time-format local. If unset, /etc/localtime
  KUBECONFIG  The kubeconfig that --kubeconfig uses when it has no value
  NODE_NAME   The name of this node in the cluster, for records and --this-node

After any exit, the kernel holds nothing of this program.";

/// Trace every TCP connection that closes on this node
#[derive(Clone, Debug, Parser)]
#[command(
    name = "kmesh-trace",
    version,
    long_about = "Trace every TCP connection that closes on this node, and every failed attempt to connect, in all \
                  network namespaces: client and server, bytes in each direction, duration, and how the connection \
                  ended.\n\n\
                  Requires Linux 5.12 or later with BTF, and root or CAP_BPF and CAP_PERFMON.",
    help_template = HELP_TEMPLATE,
    override_usage = "kmesh-trace [OPTIONS | COMMAND]",
    after_help = FILTER_HELP,
    after_long_help = EXAMPLES_AND_STATUS,
    args_conflicts_with_subcommands = true,
    mut_args = values::last_value_wins,
    max_term_width = 100
)]
pub struct Cli {
    /// The subcommand; `None` traces or replays.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Print short (default), log, json, table, none
    ///
    /// log: access-log lines that begin with Kmesh's fields. short: one short line per connection, for people. json:
    /// one object per line, as `kmesh-trace schema` describes. table: a live table of groups of connections, or blocks
    /// of lines if standard output is not a terminal. none: nothing but the summary on standard error. The default is
    /// short on a terminal, and log in a file or a pipe.
    ///
    /// Example: kmesh-trace -o json | jq .
    #[arg(short, long, value_name = "FORMAT", hide_possible_values = true)]
    pub output: Option<Output>,

    /// Print events of these kinds
    ///
    /// close: a connection ended, or an attempt to connect failed. open: a connection was established. update: the
    /// counters of each open connection and each waiting attempt, after each --interval. reject: this node answered a
    /// segment with RST because no socket was there, so that somebody dials a closed port; at most one line a second
    /// for each client, port and reason (Linux 6.10). listener: the backlog, its limit, half-open connections and
    /// dropped packets of listening sockets, after each --interval; all of them once, then those that are busy or
    /// changed. Filters about the course of a connection, such as --failed, do not apply to reject and listener.
    ///
    /// Example: kmesh-trace --events open,close
    #[arg(
        long,
        value_name = "EVENT",
        value_delimiter = ',',
        default_value = "close",
        hide_possible_values = true
    )]
    pub events: Vec<EventName>,

    /// Count the packets that the kernel drops
    ///
    /// The `drops` of a record are the packets of its connection that this node's kernel dropped, by direction and the
    /// kernel's own reason, in any network namespace of the node, before and after a Service's translation. Segments
    /// that a closing socket discards do not count. Requires a kernel that says why it drops a packet (Linux 5.17).
    ///
    /// Example: kmesh-trace --failed --drops -o json | jq 'select(.type == "conn") | [.outcome, .drops]'
    #[arg(long)]
    pub drops: bool,

    /// Measure how long each answer takes
    ///
    /// The `turns` of a record show how often the direction changed, and how long the answers took, without knowledge
    /// of the protocol. At a client (outbound) a wait is the time until the first byte of the answer: server and
    /// network. At a server (inbound) it is the time until the process begins to answer. The difference between both
    /// ends is the network's. Turns in which both directions move at once (pipelining, streams) count as overlapped,
    /// without a wait. Requires the tracepoints sk_data_ready and sock_send_length (Linux 6.3).
    ///
    /// Example: kmesh-trace -o table --turns --sort -response
    #[arg(long)]
    pub turns: bool,

    /// Set the time between updates
    ///
    /// The interval is also the length of a window of the table and of rollups. all: one window for the whole run. A
    /// number without a unit is in seconds. If a scan of all open sockets takes more than 5 % of the interval, updates
    /// come less often, and a message on standard error says how often.
    ///
    /// Example: kmesh-trace --events update --interval 1s
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::interval, allow_hyphen_values = true)]
    pub interval: Interval,

    /// Use color: auto, always or never
    ///
    /// auto: color on a terminal, unless NO_COLOR is set, or TERM is empty or dumb. In the log, color marks failures.
    ///
    /// Example: kmesh-trace --color always | less -R
    #[arg(long, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub color: Color,

    /// Show times in utc, local or relative
    ///
    /// The format of the time at the start of a line of the log and of short lines, and in the header of the table.
    /// local: the time zone of TZ or of /etc/localtime. relative: seconds since the first line; the header of the table
    /// then has only the elapsed time. Other times of the log and JSON are always in UTC.
    ///
    /// Example: kmesh-trace --time-format local --failed
    #[arg(long, value_name = "KIND", default_value = "utc", hide_possible_values = true)]
    pub time_format: TimeFormat,

    /// Trace this tool's own connections, too
    ///
    /// By default, the connections of this process to the kubelet, to the API server and from scrapers of its metrics
    /// are filtered out, on both ends. Their closes count as filtered in the summary.
    ///
    /// Example: kmesh-trace --include-self --port 10250
    #[arg(long)]
    pub include_self: bool,

    /// Print only errors and losses to standard error
    ///
    /// Without this flag, the start message, warnings and the closing summary go to standard error, too.
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print more details to standard error
    ///
    /// For example the kernel's version, the size of the ring buffer and the time that the start took.
    #[arg(short, long)]
    pub verbose: bool,

    /// Stop after this time: 30s, 5m, 1h30m
    ///
    /// Without this flag, tracing ends with Ctrl-C. With --read, the time counts from the start of the capture. The
    /// units are ns, us, ms, s, m, h, d and w. A number without a unit is in seconds.
    ///
    /// Example: kmesh-trace --duration 60s
    #[arg(long, value_name = "TIME", value_parser = values::duration, allow_hyphen_values = true)]
    pub duration: Option<Duration>,

    /// Stop after N records [default: never]
    ///
    /// Later records are not printed. The summary still counts their connections.
    ///
    /// Example: kmesh-trace --failed --count 10
    #[arg(long, value_name = "N", short_alias = 'c', value_parser = values::count, allow_negative_numbers = true)]
    pub count: Option<NonZeroU64>,

    /// Set the kernel's ring buffer size
    ///
    /// Units: k, M and G are powers of 1000; Ki, Mi and Gi are powers of 1024. The size is rounded up to a power of two
    /// of at least one page. The maximum is 1GiB. Records that do not fit into the buffer are lost and counted.
    ///
    /// Example: kmesh-trace --buffer 64MiB
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    pub buffer: BufferSize,

    /// The flags of the table and of rollups.
    #[command(flatten)]
    pub table: Table,

    /// The flags that record and replay captures.
    #[command(flatten)]
    pub capture: Capture,

    /// The flags that choose the sources of names.
    #[command(flatten)]
    pub names: Names,

    /// The flags of Prometheus metrics.
    #[command(flatten)]
    pub metrics: Metrics,

    /// The flags that choose connections.
    #[command(flatten)]
    pub filters: Filters,
}

/// The subcommands. Tracing and replaying need none.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Find what is wrong on this node, or in a capture, and show the evidence
    Explain(Box<Explain>),
    /// Print what changed between two captures, beyond chance
    ///
    /// Each of the two files is a capture or saved `-o json` output. One of them may be `-`, standard input.
    Diff(Box<Diff>),
    /// Trace nodes of a Kubernetes cluster from this machine
    ///
    /// Starts one pod on each matching node, prints the records of all nodes here, and deletes the pods at the end.
    Nodes(Nodes),
    /// Check whether this system can be traced, and what is missing
    Check,
    /// Print the JSON Schema of the lines of -o json
    Schema,
    /// Print the completion script of a shell: bash, zsh or fish
    Completions {
        /// The shell: bash, zsh or fish
        ///
        /// bash: eval "$(kmesh-trace completions bash)". zsh: the same after compinit, or a file _kmesh-trace in a
        /// folder of $fpath. fish: kmesh-trace completions fish | source.
        #[arg(value_name = "SHELL", hide_possible_values = true)]
        shell: Shell,
    },
    /// Wait until a signal comes: the main process of the pods of `nodes`
    #[command(hide = true)]
    NodeWait,
    /// Trace until standard input ends: the second process of the pods of `nodes`
    #[command(hide = true)]
    NodeTrace {
        /// The flags of the trace
        #[arg(last = true, value_name = "FLAGS")]
        flags: Vec<OsString>,
    },
}
