//! The main function: drops privileges, parses the command line, runs, and returns the exit status.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{ArgMatches, ColorChoice, CommandFactory, FromArgMatches};
use kmesh_trace::blocking_io::Blocking;
use kmesh_trace::cli::{Cli, Command, Diff, Nodes, with_hint};
use kmesh_trace::completions;
use kmesh_trace::config::{Config, ConfigError, DiffConfig, Environment, has_escapes};
use kmesh_trace::output::json::schema::schema;
use kmesh_trace::output::stderr::status;
use kmesh_trace::privileges::{self, Stage};
use kmesh_trace::session;
use kmesh_trace::session::exit::Exit;
use kmesh_trace::session::replay::{offline_names, open, replay};

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    kmesh_trace::nss::use_static_modules();
    match privileges::limit(Stage::Start).and_then(|()| run(&parse())) {
        Ok(exit) => exit.into(),
        Err(error) if is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            status(&format!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

/// Parses the flags of a trace that follow a subcommand.
fn parse_flags(flags: &[OsString]) -> (Cli, ArgMatches) {
    let name = OsString::from("kmesh-trace");
    let matches = Cli::command().try_get_matches_from([&name].into_iter().chain(flags));
    let parsed = matches.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = parsed.unwrap_or_else(|error| with_hint(error, flags).exit());
    if cli.command.is_some() {
        let message = "only flags of a trace can follow --, no command";
        Cli::command().error(ErrorKind::ArgumentConflict, message).exit()
    }
    (cli, matches)
}

/// Parses the command line. The messages of `clap` have colors only on a terminal with escape sequences.
fn parse() -> Cli {
    let term = env::var_os("TERM");
    let styles = match has_escapes(term.as_deref()) {
        true => ColorChoice::Auto,
        false => ColorChoice::Never,
    };
    let matches = Cli::command().color(styles).try_get_matches();
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    cli.unwrap_or_else(|error| {
        let arguments: Vec<_> = env::args_os().skip(1).collect();
        with_hint(error, &arguments).exit()
    })
}

fn run(cli: &Cli) -> Result<Exit> {
    match &cli.command {
        Some(Command::Explain(explain)) => {
            let config = with_environment(|environment| Config::explain(explain, environment));
            trace_or_replay(&config.unwrap_or_else(|error| refuse(&error)))
        }
        Some(Command::Diff(arguments)) => Ok(diff(arguments)),
        None => trace_or_replay(&config(cli).unwrap_or_else(|error| refuse(&error))),
        Some(Command::Check) => check(cli),
        Some(Command::Schema) => print_schema(),
        Some(Command::Completions { shell }) => completions::write(*shell, &mut Blocking(io::stdout()))
            .map(|()| Exit::Ok)
            .context("cannot write to standard output"),
        Some(Command::Nodes(nodes)) => trace_nodes(nodes),
        Some(Command::NodeWait) => wait_in_pod(),
        Some(Command::NodeTrace { flags }) => trace_in_pod(&parse_flags(flags).0),
    }
}

/// Compares two captures. As in diff(1), the status of an error is 2.
fn diff(arguments: &Diff) -> Exit {
    let config = with_environment(|environment| DiffConfig::new(arguments, environment));
    let config = config.unwrap_or_else(|error| refuse(&error));
    let compared = session::diff::open(&config).and_then(|captures| {
        privileges::limit(Stage::UserFiles { is_rotated: false })?;
        let names = offline_names(&config.before)?;
        let more = offline_names(&config.after)?;
        privileges::limit(Stage::Replay { is_rotated: false })?;
        session::diff::run(&config, captures, (names, more))
    });
    match compared {
        Ok(exit) => exit,
        Err(error) if is_broken_pipe(&error) => Exit::Ok,
        Err(error) => {
            status(&format!("{error:#}"));
            Exit::TROUBLE
        }
    }
}

fn trace_or_replay(config: &Config) -> Result<Exit> {
    if config.read.is_empty() {
        config.check_live().unwrap_or_else(|error| refuse(&error));
        return trace(config);
    }
    let is_rotated = config.is_rotated();
    let files = open(config)?;
    privileges::limit(Stage::UserFiles { is_rotated })?;
    let names = offline_names(config)?;
    privileges::limit(Stage::Replay { is_rotated })?;
    replay(config, files, names)
}

fn config(cli: &Cli) -> Result<Config, ConfigError> {
    with_environment(|environment| Config::new(cli, environment))
}

/// Calls `resolve` with the environment of this process.
fn with_environment<T>(resolve: impl FnOnce(Environment<'_>) -> T) -> T {
    let (no_color, term) = (env::var_os("NO_COLOR"), env::var_os("TERM"));
    let environment = Environment {
        no_color: no_color.as_deref(),
        stdout_is_terminal: io::stdout().is_terminal(),
        stdin_is_terminal: io::stdin().is_terminal(),
        term: term.as_deref(),
        page_size: page_size(),
    };
    resolve(environment)
}

/// Prints the error in the format of clap's errors, and exits with status 2.
fn refuse(error: &ConfigError) -> ! {
    Cli::command().error(ErrorKind::ArgumentConflict, error).exit()
}

#[cfg(target_os = "linux")]
fn trace(config: &Config) -> Result<Exit> {
    kmesh_trace::session::live::run(config)
}

#[cfg(unix)]
fn trace_nodes(nodes: &Nodes) -> Result<Exit> {
    use kmesh_trace::config::{NodesConfig, api_server};
    use kmesh_trace::session::nodes;

    if nodes.clean {
        return nodes::clean(&api_server(nodes), nodes.pod_namespace.as_deref());
    }
    let (cli, matches) = parse_flags(&nodes.flags);
    let config = config(&cli).unwrap_or_else(|error| refuse(&error));
    let settings = NodesConfig::new(nodes, &config, &matches).unwrap_or_else(|error| refuse(&error));
    nodes::run(&config, &settings)
}

#[cfg(target_os = "linux")]
fn wait_in_pod() -> Result<Exit> {
    kmesh_trace::session::node_trace::wait()
}

#[cfg(target_os = "linux")]
fn trace_in_pod(cli: &Cli) -> Result<Exit> {
    kmesh_trace::session::node_trace::run(&config(cli).unwrap_or_else(|error| refuse(&error)))
}

#[cfg(target_os = "linux")]
fn page_size() -> u32 {
    rustix::param::page_size() as u32
}

#[cfg(target_os = "linux")]
fn check(cli: &Cli) -> Result<Exit> {
    use kmesh_trace::kernel::preflight::{self, Finding};
    use kmesh_trace::names::sources;

    let sources = config(cli).unwrap_or_else(|error| refuse(&error)).sources;
    let findings = preflight::check();
    privileges::limit(Stage::CheckNames)?;
    let report =
        preflight::report(&findings) + &sources::check(&sources).context("cannot check the sources of names")?;
    Blocking(io::stdout())
        .write_all(report.as_bytes())
        .context("cannot write to standard output")?;
    Ok(if findings.iter().any(Finding::is_fatal) {
        Exit::CannotTrace
    } else {
        Exit::Ok
    })
}

#[cfg(not(target_os = "linux"))]
fn trace(_: &Config) -> Result<Exit> {
    cannot_trace()
}

#[cfg(not(unix))]
fn trace_nodes(_: &Nodes) -> Result<Exit> {
    cannot_trace()
}

#[cfg(not(target_os = "linux"))]
fn wait_in_pod() -> Result<Exit> {
    cannot_trace()
}

#[cfg(not(target_os = "linux"))]
fn trace_in_pod(_: &Cli) -> Result<Exit> {
    cannot_trace()
}

/// Returns a page size that nothing uses: only Linux has the ring buffer.
#[cfg(not(target_os = "linux"))]
fn page_size() -> u32 {
    4096
}

#[cfg(not(target_os = "linux"))]
fn check(_: &Cli) -> Result<Exit> {
    cannot_trace()
}

#[cfg(not(target_os = "linux"))]
fn cannot_trace() -> Result<Exit> {
    status(
        "cannot trace: this is not Linux\n  try: kmesh-trace nodes, which traces the nodes of a cluster, or --read FILE, \
         which replays a capture",
    );
    Ok(Exit::CannotTrace)
}

fn print_schema() -> Result<Exit> {
    writeln!(Blocking(io::stdout()), "{:#}", schema()).context("cannot write to standard output")?;
    Ok(Exit::Ok)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
