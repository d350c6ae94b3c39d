//! Measures the time from exec to tracing, and the part of the kernel's verifier.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{line, median, traced};

#[derive(clap::Args)]
pub struct Args {
    /// The number of starts
    #[arg(long, default_value_t = 20)]
    runs: usize,
}

/// Prints the times in µs.
pub fn run(args: &Args) -> Result<()> {
    let tool = traced::build()?;
    let [mut capturing, mut verifying] = [const { Vec::new() }; 2];
    for _ in 0..args.runs.max(1) {
        let (capture, verify) = start(&tool)?;
        capturing.push(capture);
        verifying.push(verify);
    }
    println!("{:<20} {:>10} {:>22} {:>8}", "µs", "median", "range", "ratio");
    let base = median(&mut capturing);
    line("exec → tracing", &mut capturing, base);
    line("verifier", &mut verifying, base);
    println!("{} runs, {}", args.runs, super::peers::machine());
    Ok(())
}

/// Starts the tool. Returns the time until it traces, and the verifier's part as the tool reports it, in µs.
fn start(tool: &Path) -> Result<(f64, f64)> {
    let began = Instant::now();
    let mut child = Command::new(tool)
        .args(["-v", "-o", "none", "--no-resolve"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run the tool")?;
    let messages = child.stderr.take().context("no standard error")?;
    let mut capturing = None;
    let mut verifier = None;
    for message in BufReader::new(messages).lines() {
        let message = message.context("cannot read the messages of the tracer")?;
        if message.contains("tracing every") {
            capturing = Some(began.elapsed().as_secs_f64() * 1e6);
        }
        if let Some((_, rest)) = message.split_once("the verifier ") {
            verifier = rest.split_whitespace().next().and_then(|ms| ms.parse::<f64>().ok());
            break;
        }
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).context("cannot interrupt the tracer")?;
    let status = child.wait()?;
    let (Some(capturing), Some(verifier)) = (capturing, verifier) else {
        bail!("the tracer did not report its start: {status}");
    };
    Ok((capturing, verifier * 1e3))
}
