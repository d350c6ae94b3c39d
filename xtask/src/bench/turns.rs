//! Measures what `--turns` costs Redis and PostgreSQL: their requests per second with no tracer, with a tracer, and
//! with `--turns`, and the BPF time of each run of a program.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::median;
use super::traced::{self, Stats, Traced};
use crate::host::{self, Need};

#[derive(clap::Args)]
pub struct Args {
    /// The number of rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
}

const REDIS: &[Need] = &[
    Need {
        program: "redis-server",
        package: "redis-server",
    },
    Need {
        program: "redis-benchmark",
        package: "redis-tools",
    },
];
const PORT: &str = "15432";
const CLIENTS: &str = "20";
/// The user that PostgreSQL runs as: Debian's `nobody`. PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

/// A server that runs, and the command that measures it.
struct Server {
    name: &'static str,
    child: Child,
    folder: PathBuf,
    benchmark: Command,
    /// A text that only the line with the requests per second contains.
    marker: &'static str,
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        _ = self.child.wait();
        _ = fs::remove_dir_all(&self.folder);
    }
}

/// The rows of the table: what runs beside the server.
const ROWS: [(&str, Option<&[&str]>); 3] = [
    ("no tracer", None),
    ("kmesh-trace", Some(&[])),
    ("kmesh-trace --turns", Some(&["--turns"])),
];

/// Prints a table for each server.
pub fn run(args: &Args) -> Result<()> {
    host::ensure(REDIS)?;
    let tool = traced::build()?;
    measure(&mut redis()?, &tool, args.rounds)?;
    match postgres_programs() {
        Some(programs) => measure(&mut postgres(&programs)?, &tool, args.rounds)?,
        None => println!("PostgreSQL: skipped: it is not installed (Debian: postgresql)"),
    }
    println!(
        "{} alternating rounds, {CLIENTS} clients; medians; BPF time in a separate run. {}",
        args.rounds,
        super::peers::machine()
    );
    Ok(())
}

fn measure(server: &mut Server, tool: &Path, rounds: u32) -> Result<()> {
    let mut rates = ROWS.map(|_| Vec::new());
    // The first run warms up the server.
    server.requests_per_second()?;
    for _ in 0..rounds {
        for ((_, args), rates) in ROWS.iter().zip(&mut rates) {
            let start = |args: &&[&str]| Traced::start(tool, &[&["--no-resolve"], *args].concat());
            let traced = args.as_ref().map(start).transpose()?;
            rates.push(server.requests_per_second()?);
            traced.map(Traced::finish).transpose()?;
        }
    }
    let base = median(&mut rates[0]);
    println!(
        "{:<14} {:>20} {:>12} {:>22} {:>6}",
        "", "", "requests/s", "range", "share"
    );
    for ((name, _), rates) in ROWS.iter().zip(&mut rates) {
        let median = median(rates);
        let range = format!("{:.0} to {:.0}", rates[0], rates[rates.len() - 1]);
        println!(
            "{:<14} {name:>20} {median:>12.0} {range:>22} {:>5.1}%",
            server.name,
            100.0 * median / base
        );
    }
    let _stats = Stats::on()?;
    let traced = Traced::start(tool, &["--no-resolve", "--turns"])?;
    let (runs, ns) = (traced.program_runs()?, traced.programs_ns()?);
    server.requests_per_second()?;
    let (runs, ns) = (traced.program_runs()? - runs, traced.programs_ns()? - ns);
    println!(
        "{:<14} {:>20}: {runs} calls, {} ns each",
        server.name,
        "the programs",
        ns / runs.max(1)
    );
    traced.finish()?;
    Ok(())
}

impl Server {
    fn requests_per_second(&mut self) -> Result<f64> {
        let output = host::text(&mut self.benchmark)?;
        let line = output.lines().find(|line| line.contains(self.marker));
        let line = line.with_context(|| format!("no line with {:?} in: {output}", self.marker))?;
        let number = line.split([' ', ',', '"']).find_map(|word| word.parse().ok());
        number.with_context(|| format!("no number in {line:?}"))
    }

    /// Waits until the server answers a command.
    fn wait(mut self, mut answers: impl FnMut() -> bool) -> Result<Self> {
        let began = Instant::now();
        while !answers() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended: {status}", self.name);
            }
            if began.elapsed() > Duration::from_secs(60) {
                bail!("{} does not answer", self.name);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(self)
    }
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

fn redis() -> Result<Server> {
    let child = Command::new("redis-server")
        .args(["--bind", "127.0.0.1", "--port", PORT, "--save", ""])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run redis-server")?;
    let mut benchmark = Command::new("redis-benchmark");
    benchmark.args(["-p", PORT, "-c", CLIENTS, "-n", "200000", "-t", "get", "--csv"]);
    let server = Server {
        name: "Redis GET",
        child,
        folder: PathBuf::new(),
        benchmark,
        marker: "\"GET\"",
    };
    server.wait(|| succeeds(Command::new("redis-cli").args(["-p", PORT, "ping"])))
}

/// Returns the folder with PostgreSQL's programs, if it is installed.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = versions.map(|version| version.path().join("bin"));
    folders.filter(|folder| folder.join("initdb").exists()).max()
}

/// Starts a PostgreSQL server with an empty database, and fills the tables of pgbench.
fn postgres(programs: &Path) -> Result<Server> {
    let folder = std::env::temp_dir().join(format!("kmesh-trace-bench-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    chown(&folder, Some(NOBODY), Some(NOBODY)).context("cannot give the folder to nobody")?;
    let data = folder.join("data");
    let as_nobody = |program: &str| {
        let id = NOBODY.to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(programs.join(program))
            .current_dir(&folder);
        command
    };
    host::text(
        as_nobody("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "bench", "-A", "trust"]),
    )?;
    let child = as_nobody("postgres")
        .arg("-D")
        .arg(&data)
        .args([
            "-p",
            PORT,
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=127.0.0.1",
            "-k",
            "",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run postgres")?;
    let pgbench = || {
        let mut command = Command::new(programs.join("pgbench"));
        command.args(["-h", "127.0.0.1", "-p", PORT, "-U", "bench"]);
        command
    };
    let mut benchmark = pgbench();
    benchmark.args(["-S", "-c", CLIENTS, "-T", "5", "postgres"]);
    let server = Server {
        name: "pgbench -S",
        child,
        folder: folder.clone(),
        benchmark,
        marker: "tps = ",
    };
    server.wait(|| succeeds(pgbench().args(["-i", "-q", "postgres"])))
}
