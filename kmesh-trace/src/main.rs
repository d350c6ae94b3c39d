//! `kmesh-trace`: parse, run, exit status.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use kmesh_trace::cli::{Cli, Command};
use kmesh_trace::config::{Config, Refusal, Surroundings};
use kmesh_trace::exit::Exit;
use kmesh_trace::note::say;
use kmesh_trace::replay::replay;
use kmesh_trace::schema::schema;

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    kmesh_trace::nss::load_nothing();
    let cli = Cli::parse();
    let ended = match cli.command {
        None => main_job(&config(&cli).unwrap_or_else(|refusal| refuse(&refusal))),
        Some(Command::Check) => check(&cli),
        Some(Command::Schema) => print_schema(),
        Some(Command::Completions { shell }) => shell
            .write(&mut io::stdout())
            .map(|()| Exit::Ok)
            .context("cannot print"),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(error) if is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => {
            say(&format!("{error:#}"));
            Exit::Failed.into()
        }
    }
}

fn main_job(config: &Config) -> Result<Exit> {
    match &config.read {
        Some(place) => replay(config, place),
        None => trace(config),
    }
}

fn config(cli: &Cli) -> Result<Config, Refusal> {
    let no_color = env::var_os("NO_COLOR");
    let surroundings = Surroundings {
        no_color: no_color.as_deref(),
        stdout_is_terminal: io::stdout().is_terminal(),
        screen: io::stdin().is_terminal() && env::var_os("TERM").is_some_and(|term| term != "dumb"),
        page_size: page_size(),
    };
    Config::new(cli, surroundings)
}

/// As `clap` refuses what it can judge itself.
fn refuse(refusal: &Refusal) -> ! {
    Cli::command().error(ErrorKind::ArgumentConflict, refusal).exit()
}

#[cfg(target_os = "linux")]
fn trace(config: &Config) -> Result<Exit> {
    kmesh_trace::run::run(config)
}

#[cfg(target_os = "linux")]
fn page_size() -> u32 {
    rustix::param::page_size() as u32
}

#[cfg(target_os = "linux")]
fn check(cli: &Cli) -> Result<Exit> {
    use kmesh_trace::names::sources;
    use kmesh_trace::source::preflight;

    let sources = config(cli).unwrap_or_else(|refusal| refuse(&refusal)).sources;
    let findings = preflight::check();
    let report = preflight::report(&findings) + &sources::check(&sources).context("cannot start")?;
    io::stdout().write_all(report.as_bytes()).context("cannot print")?;
    Ok(if findings.iter().all(|finding| finding.found.is_ok()) {
        Exit::Ok
    } else {
        Exit::CannotTrace
    })
}

#[cfg(not(target_os = "linux"))]
fn trace(_: &Config) -> Result<Exit> {
    cannot_trace()
}

/// Of a ring buffer that there is not.
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
    say("cannot trace: this is not Linux\n  try: --read FILE, which replays a capture anywhere");
    Ok(Exit::CannotTrace)
}

fn print_schema() -> Result<Exit> {
    writeln!(io::stdout(), "{:#}", schema()).context("cannot print")?;
    Ok(Exit::Ok)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
