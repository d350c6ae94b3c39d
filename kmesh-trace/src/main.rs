//! `kmesh-trace`: parse, run, exit status.

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use kmesh_trace::cli::{Cli, Command};
use kmesh_trace::config::{Config, Refusal, Surroundings};
use kmesh_trace::enrich::sources;
use kmesh_trace::exit::Exit;
use kmesh_trace::run::run;
use kmesh_trace::schema::schema;
use kmesh_trace::source::preflight;
use kmesh_trace::writer::say;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        None => run(&config(&cli).unwrap_or_else(|refusal| refuse(&refusal))),
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

fn config(cli: &Cli) -> Result<Config, Refusal> {
    let no_color = env::var_os("NO_COLOR");
    let surroundings = Surroundings {
        no_color: no_color.as_deref(),
        stdout_is_terminal: io::stdout().is_terminal(),
        page_size: rustix::param::page_size() as u32,
    };
    Config::new(cli, surroundings)
}

/// As `clap` refuses what it can judge itself.
fn refuse(refusal: &Refusal) -> ! {
    Cli::command().error(ErrorKind::ArgumentConflict, refusal).exit()
}

fn check(cli: &Cli) -> Result<Exit> {
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

fn print_schema() -> Result<Exit> {
    writeln!(io::stdout(), "{:#}", schema()).context("cannot print")?;
    Ok(Exit::Ok)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
