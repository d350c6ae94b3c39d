//! The tool as a child process, and what its programs cost.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host;

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

/// Builds the tool as users get it, or takes the one that `KMESH_TRACE_BIN` names.
pub fn build() -> Result<PathBuf> {
    if let Some(tool) = std::env::var_os("KMESH_TRACE_BIN") {
        return Ok(tool.into());
    }
    host::succeed(host::cargo().args(["build", "--release", "--quiet", "--package", "kmesh-trace"]))?;
    Ok(host::target_dir().join("release/kmesh-trace"))
}

/// A running tracer.
pub struct Traced {
    child: Child,
}

impl Traced {
    /// Starts it, and waits until it captures.
    pub fn start(tool: &PathBuf, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(tool)
            .args(args)
            .args(["-o", "json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", tool.display()))?;
        let said = child.stderr.take().context("no standard error")?;
        for line in BufReader::new(said).lines() {
            if line
                .context("cannot read what the tracer says")?
                .contains("tracing every")
            {
                return Ok(Self { child });
            }
        }
        bail!("the tracer ended: {}", child.wait()?)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The time that its programs have run for, ns: each once, however many descriptors it has.
    pub fn programs_ns(&self) -> Result<u64> {
        let mut programs = std::collections::BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.pid())).context("cannot list its descriptors")? {
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            if let (Some(id), Some(time)) = (field(&info, "prog_id"), field(&info, "run_time_ns")) {
                programs.insert(id, time);
            }
        }
        Ok(programs.values().sum())
    }

    /// Interrupts it; its summary.
    pub fn finish(mut self) -> Result<Value> {
        let output = self.child.stdout.take().context("no standard output")?;
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).context("cannot interrupt the tracer")?;
        let mut last = String::new();
        for line in BufReader::new(output).lines() {
            last = line.context("cannot read what the tracer prints")?;
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the tracer: {status}");
        }
        serde_json::from_str(&last).context("the last line is no summary")
    }
}

/// The time that a program has run for, ns; `process` holds it as `descriptor`.
pub fn time_ns(process: &str, descriptor: i32) -> u64 {
    let info = fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")).unwrap_or_default();
    field(&info, "run_time_ns").unwrap_or(0)
}

fn field(info: &str, name: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line?.trim().parse().ok()
}
