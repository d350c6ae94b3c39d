//! The settings of `nodes`: which nodes are traced, in which pods, and with which flags.

use std::env;
use std::ffi::OsStr;
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::{ApiServer, Config, ConfigError, Events};
use crate::cli::{Nodes, PullPolicy};

/// The flags that act on the nodes, by their ids: the filters that the kernel evaluates, and what is measured. Their
/// values are passed on as they were written.
const ON_NODES: &[&str] = &[
    "port",
    "from_port",
    "to_port",
    "ip",
    "from_ip",
    "to_ip",
    "direction",
    "interval",
    "buffer",
];
/// The switches that act on the nodes, and how they are written.
const SWITCHES_ON_NODES: &[(&str, &str)] = &[
    ("ipv4", "-4"),
    ("ipv6", "-6"),
    ("drops", "--drops"),
    ("turns", "--turns"),
];
/// The flags that have no meaning with `nodes`, and why.
const REFUSED: &[(&str, &str, &str)] = &[
    ("read", "--read", "nodes are traced live"),
    ("cri", "--cri", "names come from the API server"),
    ("kubelet", "--kubelet", "names come from the API server"),
    ("kubeconfig", "--kubeconfig", "it belongs before the --"),
    ("pods_file", "--pods-file", "names come from the API server"),
    ("include_self", "--include-self", "the pods make no connections"),
];

/// The longest run without `--duration`.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(3600);
/// The time that a pod has to start and to end, beside `--duration`.
const DEADLINE_RESERVE: Duration = Duration::from_secs(60);

/// The settings of `nodes`, beside those of the trace itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodesConfig {
    /// The names of the nodes; empty means all nodes.
    pub nodes: Vec<String>,
    /// The label selector of the nodes.
    pub selector: Option<String>,
    pub image: String,
    pub pull_policy: Option<PullPolicy>,
    /// The namespace of the pods. `None`: the namespace of the context.
    pub namespace: Option<String>,
    /// Whether this program is copied into the pods.
    pub copy_binary: bool,
    /// Whether any number of nodes is traced without a question.
    pub yes: bool,
    pub api_server: ApiServer,
    /// The time after which the cluster ends the pods.
    pub deadline: Duration,
    /// The flags of the tracers on the nodes.
    pub flags: Vec<String>,
}

impl NodesConfig {
    /// Resolves the flags of `nodes`. `config` and `matches` are those of the flags after `--`.
    pub fn new(nodes: &Nodes, config: &Config, matches: &ArgMatches) -> Result<Self, ConfigError> {
        for (id, flag, reason) in REFUSED {
            if matches.value_source(id) == Some(ValueSource::CommandLine) {
                return Err(ConfigError::new(format!("{flag} cannot be used with nodes: {reason}")));
            }
        }
        if nodes.copy_binary && cfg!(not(target_os = "linux")) {
            let reason = "--copy-binary cannot be used here: the nodes need a program for Linux, this one is for another \
                          system\n  try: --image with an image of kmesh-trace";
            return Err(ConfigError::new(reason.to_owned()));
        }
        Ok(Self {
            nodes: nodes.node.clone(),
            selector: nodes.selector.clone(),
            image: nodes.image.clone().unwrap_or_default(),
            pull_policy: nodes.image_pull_policy,
            namespace: nodes.pod_namespace.clone(),
            copy_binary: nodes.copy_binary,
            yes: nodes.yes,
            api_server: api_server(nodes),
            deadline: config
                .duration
                .map_or(DEFAULT_DEADLINE, |duration| duration.saturating_add(DEADLINE_RESERVE)),
            flags: node_flags(config, matches)?,
        })
    }
}

/// Returns the API server. kubectl trusts its default file, also with the programs that it names, so `nodes` does.
pub fn api_server(nodes: &Nodes) -> ApiServer {
    let is_set = env::var_os("KUBECONFIG").is_some_and(|value| !value.is_empty());
    let default = || {
        env::home_dir()
            .map(|home| home.join(".kube/config"))
            .filter(|path| path.exists())
    };
    ApiServer {
        kubeconfig: nodes
            .kubeconfig
            .clone()
            .or_else(|| if is_set { None } else { default() }),
        context: nodes.context.clone(),
        this_node: false,
    }
}

/// Returns the flags of the tracers on the nodes. Rollups, metrics and captures need what a capture contains; other
/// outputs need only the events that are printed.
fn node_flags(config: &Config, matches: &ArgMatches) -> Result<Vec<String>, ConfigError> {
    let mut flags = vec!["--no-resolve".to_owned(), "--quiet".to_owned()];
    if config.rollup.is_some() || config.capture.is_some() || config.metrics.is_some() {
        flags.extend(["--output=none", "--write=-"].map(str::to_owned));
    } else {
        flags.push("--output=json".to_owned());
    }
    let events = Events {
        listener: config.needs_listeners(),
        ..config.events
    };
    flags.push(format!("--events={}", events.names().join(",")));
    for id in ON_NODES {
        for value in written(matches, id) {
            flags.push(format!("--{}={}", id.replace('_', "-"), text(value)?));
        }
    }
    for (id, flag) in SWITCHES_ON_NODES {
        if matches.try_get_one::<bool>(id).ok().flatten() == Some(&true) {
            flags.push((*flag).to_owned());
        }
    }
    Ok(flags)
}

/// Returns the values of a flag as they were written on the command line.
fn written<'a>(matches: &'a ArgMatches, id: &str) -> impl Iterator<Item = &'a OsStr> {
    let is_written = matches.value_source(id) == Some(ValueSource::CommandLine);
    let values = is_written.then(|| matches.get_raw(id)).flatten();
    values.into_iter().flatten()
}

fn text(value: &OsStr) -> Result<&str, ConfigError> {
    let invalid = || ConfigError::new(format!("{} is not UTF-8", value.display()));
    value.to_str().ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, FromArgMatches as _};

    use super::*;
    use crate::cli::Cli;
    use crate::config::Environment;

    fn arguments(text: &str) -> Vec<&str> {
        ["kmesh-trace"].into_iter().chain(text.split_whitespace()).collect()
    }

    /// Returns the settings of `nodes` with this trace.
    fn nodes(trace: &str) -> Result<NodesConfig, ConfigError> {
        let environment = Environment {
            no_color: None,
            stdout_is_terminal: false,
            stdin_is_terminal: false,
            term: None,
            page_size: 4096,
        };
        let matches = Cli::command().try_get_matches_from(arguments(trace)).unwrap();
        let config = Config::new(&Cli::from_arg_matches(&matches).unwrap(), environment)?;
        let nodes = Cli::command()
            .try_get_matches_from(arguments("nodes --image x"))
            .unwrap();
        let Some(crate::cli::Command::Nodes(nodes)) = Cli::from_arg_matches(&nodes).unwrap().command else {
            panic!("the command is nodes")
        };
        NodesConfig::new(&nodes, &config, &matches)
    }

    #[test]
    fn only_what_the_kernel_evaluates_and_measures_acts_on_the_nodes() {
        let json = "--no-resolve --quiet --output=json --events=close";
        let capture = "--no-resolve --quiet --output=none --write=-";
        let cases = [
            ("", json.to_owned()),
            ("-n shop --failed --comm nginx -o log", json.to_owned()),
            (
                "-p 443,!8080 --from-port 1-2 --to-ip 10.0.0.0/8,!10.0.0.7 -4 --drops --direction inbound",
                format!(
                    "{json} --port=443 --port=!8080 --from-port=1-2 --to-ip=10.0.0.0/8 --to-ip=!10.0.0.7 \
                     --direction=inbound -4 --drops"
                ),
            ),
            (
                "--events update,open --interval 1s",
                "--no-resolve --quiet --output=json --events=open,update --interval=1s".to_owned(),
            ),
            ("-o table", format!("{capture} --events=close,open,update")),
            ("-o none --metrics 15020", format!("{capture} --events=close,listener")),
        ];
        for (trace, expected) in cases {
            assert_eq!(nodes(trace).unwrap().flags.join(" "), expected, "{trace}");
        }
    }

    #[test]
    fn deadline_is_an_hour_or_the_duration_and_a_minute() {
        assert_eq!(nodes("").unwrap().deadline, Duration::from_secs(3600));
        assert_eq!(nodes("--duration 90s").unwrap().deadline, Duration::from_secs(150));
        assert_eq!(nodes("--duration 2h").unwrap().deadline, Duration::from_secs(7260));
    }

    #[test]
    fn other_sources_and_captures_are_refused() {
        for trace in [
            "--read x.jsonl",
            "--cri",
            "--kubelet",
            "--kubeconfig",
            "--pods-file x",
            "--include-self",
        ] {
            let error = nodes(trace).unwrap_err().to_string();
            assert!(error.starts_with(trace.split(' ').next().unwrap()), "{error}");
        }
    }
}
