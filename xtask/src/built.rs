//! What cargo builds, and where it puts it.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The programs of one build.
pub struct Programs {
    messages: String,
}

/// Runs a `cargo build` or `cargo test --no-run`.
pub fn build(mut cargo: Command) -> Result<Programs> {
    cargo
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo built nothing");
    }
    Ok(Programs {
        messages: String::from_utf8_lossy(&output.stdout).into_owned(),
    })
}

impl Programs {
    /// Where a program is. Kinds are cargo's: `bin`, `test`.
    pub fn path(&self, kind: &str, name: &str) -> Result<PathBuf> {
        let found = self
            .messages
            .lines()
            .filter_map(|line| executable_of(line, kind, name))
            .next_back();
        found.with_context(|| format!("cargo did not say where the {kind} {name} is"))
    }
}

/// The program in one of cargo's messages, if that is about this one.
fn executable_of(message: &str, kind: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let target = &message["target"];
    // The unit tests of a binary are a `bin` too.
    let as_test = message["profile"]["test"].as_bool()?;
    let is_it = target["name"] == name && target["kind"][0] == kind && as_test == (kind == "test");
    is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
}
