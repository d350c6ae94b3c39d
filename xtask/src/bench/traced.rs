//! The tool, or a peer of it, as a child process, and what its programs cost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host;

const TRACEFS: &str = "/sys/kernel/tracing";
const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// While it lives the kernel takes the time of programs.
pub struct Stats {
    before: String,
}

impl Stats {
    /// Turns it on.
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
        fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
        Ok(Self { before })
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        // It was written a moment ago.
        _ = fs::write(STATS, self.before.trim());
    }
}

/// Peers ask there for the numbers of their tracepoints.
pub fn mount_tracefs() -> Result<()> {
    if !Path::new(TRACEFS).join("events").exists() {
        host::succeed(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACEFS]))?;
    }
    Ok(())
}

/// Builds the tool as users get it, or takes the one that `KMESH_TRACE_BIN` names.
pub fn build() -> Result<PathBuf> {
    if let Some(tool) = std::env::var_os("KMESH_TRACE_BIN") {
        return Ok(tool.into());
    }
    host::succeed(host::cargo().args(["build", "--release", "--quiet", "--package", "kmesh-trace"]))?;
    Ok(host::target_dir().join("release/kmesh-trace"))
}

/// A running tracer, whose output goes to a file or through a pipe.
pub struct Traced {
    child: Child,
    output: PathBuf,
}

impl Traced {
    /// Starts the tool, and waits until it captures.
    pub fn start(tool: &Path, args: &[&str]) -> Result<Self> {
        let (output, file) = output()?;
        Self::started(tool, args, file.into(), output)
    }

    /// The same, with a pipe that its output comes through. Who does not read it holds the tool up.
    pub fn piped(tool: &Path, args: &[&str]) -> Result<(Self, ChildStdout)> {
        let mut traced = Self::started(tool, args, Stdio::piped(), PathBuf::new())?;
        let output = traced.child.stdout.take().context("no standard output")?;
        Ok((traced, output))
    }

    fn started(tool: &Path, args: &[&str], stdout: Stdio, output: PathBuf) -> Result<Self> {
        let mut command = Command::new(tool);
        command
            .args(args)
            .args(["-o", "json"])
            .stdout(stdout)
            .stderr(Stdio::piped());
        let mut traced = Self::spawn(&mut command, output)?;
        let said = traced.child.stderr.take().context("no standard error")?;
        for line in BufReader::new(said).lines() {
            if line
                .context("cannot read what the tracer says")?
                .contains("tracing every")
            {
                return Ok(traced);
            }
        }
        bail!("the tracer ended: {}", traced.child.wait()?)
    }

    /// Starts a peer, and makes connections until its programs have seen one.
    pub fn peer(command: &mut Command) -> Result<Self> {
        let (output, file) = output()?;
        let mut traced = Self::spawn(command.stdout(file).stderr(Stdio::null()), output)?;
        let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
        let address = listener.local_addr().context("no address")?;
        while traced.programs_ns()? == 0 {
            if let Some(status) = traced.child.try_wait()? {
                bail!("the peer ended: {status}");
            }
            let client = TcpStream::connect(address).context("cannot connect")?;
            drop((listener.accept().context("cannot accept")?, client));
        }
        Ok(traced)
    }

    fn spawn(command: &mut Command, output: PathBuf) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Self { child, output })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The time that its programs have run for, ns: each once, however many descriptors it has.
    pub fn programs_ns(&self) -> Result<u64> {
        Ok(self.descriptors("prog_id", "run_time_ns")?.values().sum())
    }

    /// A value of each thing that has such an id, however many descriptors it has.
    fn descriptors(&self, id: &str, value: &str) -> Result<BTreeMap<u64, u64>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid())).context("cannot list its descriptors")? {
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            if let (Some(id), Some(value)) = (field(&info, id), field(&info, value)) {
                found.insert(id, value);
            }
        }
        Ok(found)
    }

    /// The processor time of its threads so far, ns.
    pub fn processor_ns(&self) -> Result<u64> {
        let tasks = self.tasks("schedstat")?;
        Ok(tasks
            .iter()
            .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .sum())
    }

    /// How often its threads have waited for something, and been woken.
    pub fn wakeups(&self) -> Result<u64> {
        let tasks = self.tasks("status")?;
        Ok(tasks
            .iter()
            .filter_map(|text| field(text, "voluntary_ctxt_switches"))
            .sum())
    }

    /// A file of each of its threads.
    fn tasks(&self, file: &str) -> Result<Vec<String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).context("cannot list its threads")?;
        // One that ends meanwhile has none.
        Ok(tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join(file)).ok())
            .collect())
    }

    /// Its own memory and its BPF maps', MiB. Code, and a map's pages that it sees too, count no more than once: they are not
    /// anonymous.
    pub fn memory_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).context("cannot read its status")?;
        let kib = field(&status, "RssAnon").context("no RssAnon in its status")?;
        let maps: u64 = self.descriptors("map_id", "memlock")?.values().sum();
        Ok(kib as f64 / 1024.0 + maps as f64 / f64::from(1 << 20))
    }

    /// Interrupts the tool; its summary.
    pub fn finish(self) -> Result<Value> {
        let output = self.end()?;
        let mut last = String::new();
        for line in BufReader::new(File::open(output)?).lines() {
            last = line.context("cannot read what the tracer printed")?;
        }
        serde_json::from_str(&last).context("the last line is no summary")
    }

    /// Interrupts it; where its output is.
    pub fn end(mut self) -> Result<PathBuf> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).context("cannot interrupt the tracer")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the tracer: {status}");
        }
        Ok(self.output)
    }
}

/// Where output goes.
fn output() -> Result<(PathBuf, File)> {
    let output = host::target_dir().join("bench.out");
    let file = File::create(&output).with_context(|| format!("cannot make {}", output.display()))?;
    Ok((output, file))
}

/// The time that a program has run for, ns; `process` holds it as `descriptor`.
pub fn time_ns(process: &str, descriptor: i32) -> u64 {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")).unwrap_or_default();
    field(&info, "run_time_ns").unwrap_or(0)
}

fn field(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line?.split_whitespace().next()?.parse().ok()
}
