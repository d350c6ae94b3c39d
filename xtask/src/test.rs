//! `cargo xtask test`: runs the tests, and prints their counts as the last line.

use std::env;
use std::ffi::OsStr;
use std::hint;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};

use crate::counts::{Counts, Tally};
use crate::{host, runner};

#[derive(clap::Args)]
pub struct Args {
    /// Run only this suite (kernel, names, cli or deploy)
    #[arg(long, value_name = "SUITE")]
    only: Option<String>,
    /// Build the programs of all suites without running them
    #[arg(long, conflicts_with_all = ["only", "args"])]
    no_run: bool,
    /// Run a load meanwhile: a busy loop per processor, and a thousand TCP connections per second
    ///
    /// The connections are in a separate network namespace, which needs root. No test may depend on other work of the
    /// machine.
    #[arg(long)]
    beside_load: bool,
    /// Arguments for each test program, such as a filter or --nocapture
    #[arg(last = true)]
    args: Vec<String>,
}

/// Cargo's arguments without --only. The eBPF programs are excluded: they need another compiler, and the kernel tests
/// run their committed object.
pub const EVERYTHING: &[&str] = &["--workspace", "--exclude", "kmesh-trace-ebpf"];

/// The suites that run only with --only.
const NAMED: &[&str] = &["--package", "kmesh-trace", "--test", "names", "--test", "dist"];

/// Runs the selected suites.
pub fn run(args: &Args) -> Result<ExitCode> {
    let needs = [
        host::TEST_TOOLS,
        host::SERVERS,
        host::SHELLS,
        host::EXAMPLES,
        host::PROMETHEUS,
        host::CLUSTER,
    ];
    host::try_ensure(needs.into_iter().flatten());
    if args.no_run {
        for programs in [EVERYTHING, NAMED] {
            host::run(host::cargo().args(["test", "--no-run"]).args(programs))?;
        }
        return Ok(ExitCode::SUCCESS);
    }

    if args.beside_load {
        start_load()?;
    }
    let suites_of: &[&str] = match &args.only {
        Some(suite) => &["--package", "kmesh-trace", "--test", suite],
        None => EVERYTHING,
    };
    let counts = suites(suites_of, &args.args, &[])?;
    println!("{counts}");
    Ok(counts.exit_code())
}

/// Runs the tests that the arguments `selection` select, with additional environment variables. Prints their output,
/// and returns their counts.
pub fn suites(selection: &[&str], args: &[String], environment: &[(&str, &OsStr)]) -> Result<Counts> {
    let mut cargo = host::cargo();
    cargo
        .args(["test", "--no-fail-fast"])
        .args(selection)
        .envs(environment.iter().copied());
    if runner::is_needed() {
        let this = env::current_exe().context("cannot find the path of this program")?;
        cargo.args(["--config", &runner::cargo_setting(&this)]);
    }
    cargo.arg("--").args(args);

    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        tally.add_line(&line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    let mut counts = tally.counts();
    if !status.success() && counts.failed == 0 {
        // The tests did not compile, or a test program died before it printed its counts.
        eprintln!("xtask: cargo test: {status}");
        counts += Counts::one(false);
    }
    Ok(counts)
}

/// Keeps the machine busy until this process ends.
fn start_load() -> Result<()> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..processors {
        thread::spawn(|| {
            loop {
                hint::spin_loop();
            }
        });
    }
    let (ready, is_ready) = std::sync::mpsc::channel();
    thread::spawn(move || match listen_apart() {
        Ok(listener) => {
            _ = ready.send(Ok(()));
            churn(&listener)
        }
        Err(error) => _ = ready.send(Err(error)),
    });
    is_ready.recv().context("the load ended")?
}

/// Returns a listener in a new network namespace, which the calling thread enters.
fn listen_apart() -> Result<TcpListener> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    host::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    TcpListener::bind("127.0.0.1:0").context("cannot listen")
}

/// Connects in a loop. Each connection ends by a RST, because a FIN would leave its port in TIME_WAIT for a minute.
fn churn(listener: &TcpListener) {
    let reset = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    loop {
        let Ok(client) = listener.local_addr().and_then(TcpStream::connect) else {
            continue;
        };
        let server = listener.accept();
        _ = setsockopt(&client, sockopt::Linger, &reset);
        drop((client, server));
        thread::sleep(Duration::from_millis(1));
    }
}
