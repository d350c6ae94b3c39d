//! Statically linked builds: for test machines, which have no libraries of the system that built them, and to give away.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Naming the target keeps these apart from the ordinary build, and the flags away from build scripts and macros.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What cargo calls the environment variable with the compiler's flags, separated by [`SEPARATOR`].
const FLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";
const SEPARATOR: &str = "\x1f";

/// The programs of one build.
pub struct Programs {
    messages: String,
}

/// Runs a `cargo build` or `cargo test --no-run`, with these flags for the compiler besides.
pub fn build(mut cargo: Command, flags: impl IntoIterator<Item = OsString>) -> Result<Programs> {
    let mut all = OsString::from(["-C", "target-feature=+crt-static"].join(SEPARATOR));
    for flag in flags {
        all.push(SEPARATOR);
        all.push(flag);
    }
    cargo
        .args(["--target", TARGET, "--message-format=json-render-diagnostics"])
        .env(FLAGS, all)
        .stderr(Stdio::inherit());
    let output = cargo.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the static build failed");
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
