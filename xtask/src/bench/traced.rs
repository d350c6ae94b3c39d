//! The tool or another tracer as a child process, and the cost of its programs.

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

/// Enables the kernel's run-time statistics of BPF programs until it is dropped.
pub struct Stats {
    before: String,
}

impl Stats {
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(STATS).with_context(|| format!("cannot read {STATS}"))?;
        fs::write(STATS, "1").with_context(|| format!("cannot write {STATS}"))?;
        Ok(Self { before })
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        // The file was writable before, so this does not fail.
        _ = fs::write(STATS, self.before.trim());
    }
}

/// Mounts tracefs, from which other tracers read the ids of tracepoints.
pub fn mount_tracefs() -> Result<()> {
    if !Path::new(TRACEFS).join("events").exists() {
        host::run(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACEFS]))?;
    }
    Ok(())
}

/// Returns the number of `ends` without a record, by the summary of their trace. Some kernels hide a process from
/// tracing, and so an end now and then (`docs/kernels.md`).
pub fn missing(summary: &Value, ends: usize) -> u64 {
    (ends as u64).saturating_sub(summary["delivered"].as_u64().unwrap_or(0))
}

/// Builds the tool in the release profile, or returns the path in `KMESH_TRACE_BIN`.
pub fn build() -> Result<PathBuf> {
    if let Some(tool) = std::env::var_os("KMESH_TRACE_BIN") {
        return Ok(tool.into());
    }
    host::run(host::cargo().args(["build", "--release", "--quiet", "--package", "kmesh-trace"]))?;
    Ok(host::target_dir().join("release/kmesh-trace"))
}

/// A running tracer, whose output goes to a file or through a pipe.
pub struct Traced {
    child: Child,
    output: PathBuf,
}

impl Traced {
    /// Starts the tool, and waits until it traces. Its output goes to a file.
    pub fn start(tool: &Path, args: &[&str]) -> Result<Self> {
        let (output, file) = output()?;
        Self::started(tool, args, file.into(), output)
    }

    /// Starts the tool with its output in a pipe, and waits until it traces. The caller must read the pipe.
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
        let stderr = traced.child.stderr.take().context("no standard error")?;
        for line in BufReader::new(stderr).lines() {
            if line
                .context("cannot read the standard error of the tracer")?
                .contains("tracing every")
            {
                return Ok(traced);
            }
        }
        bail!("the tracer ended: {}", traced.child.wait()?)
    }

    /// Starts another tracer, and makes connections until its programs have run.
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

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the run time of its programs in ns. A program with several descriptors counts once.
    pub fn programs_ns(&self) -> Result<u64> {
        Ok(self.descriptors("prog_id", "run_time_ns")?.values().sum())
    }

    /// Returns the number of runs of its programs.
    pub fn program_runs(&self) -> Result<u64> {
        Ok(self.descriptors("prog_id", "run_cnt")?.values().sum())
    }

    /// Returns a field of its descriptors by the field `id`. An object with several descriptors counts once.
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

    /// Returns the CPU time of its threads in ns.
    pub fn processor_ns(&self) -> Result<u64> {
        let tasks = self.tasks("schedstat")?;
        Ok(tasks
            .iter()
            .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
            .sum())
    }

    /// Returns the number of voluntary context switches of its threads.
    pub fn wakeups(&self) -> Result<u64> {
        let tasks = self.tasks("status")?;
        Ok(tasks
            .iter()
            .filter_map(|text| field(text, "voluntary_ctxt_switches"))
            .sum())
    }

    /// Returns the content of a file in `/proc` for each of its threads.
    fn tasks(&self, file: &str) -> Result<Vec<String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).context("cannot list its threads")?;
        // A thread that has ended meanwhile has no file.
        Ok(tasks
            .flatten()
            .filter_map(|task| fs::read_to_string(task.path().join(file)).ok())
            .collect())
    }

    /// Returns its anonymous memory and the memory of its BPF maps in MiB. Mapped pages of BPF maps are not anonymous,
    /// so they count once.
    pub fn memory_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).context("cannot read its status")?;
        let kib = field(&status, "RssAnon").context("no RssAnon in its status")?;
        let maps: u64 = self.descriptors("map_id", "memlock")?.values().sum();
        Ok(kib as f64 / 1024.0 + maps as f64 / f64::from(1 << 20))
    }

    /// Interrupts the tool, and returns its summary.
    pub fn finish(self) -> Result<Value> {
        let output = self.end()?;
        let mut last = String::new();
        for line in BufReader::new(File::open(output)?).lines() {
            last = line.context("cannot read the output of the tracer")?;
        }
        serde_json::from_str(&last).context("the last line is not a summary")
    }

    /// Interrupts the tracer, and returns the path of its output.
    pub fn end(mut self) -> Result<PathBuf> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).context("cannot interrupt the tracer")?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the tracer: {status}");
        }
        Ok(std::mem::take(&mut self.output))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // After an error it still runs.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Creates the file for the output.
fn output() -> Result<(PathBuf, File)> {
    let output = host::target_dir().join("bench.out");
    let file = File::create(&output).with_context(|| format!("cannot create {}", output.display()))?;
    Ok((output, file))
}

/// Returns the run time in ns of the program that is `descriptor` of `process`.
pub fn time_ns(process: &str, descriptor: i32) -> u64 {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")).unwrap_or_default();
    field(&info, "run_time_ns").unwrap_or(0)
}

fn field(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line?.split_whitespace().next()?.parse().ok()
}
