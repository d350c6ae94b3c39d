//! The SQL of `docs/at-scale.md`, run by DuckDB and by ClickHouse as a library.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};

use crate::examples::CAPTURE;

/// The engines by the names of their Python packages. `pip install duckdb chdb` installs them.
const ENGINES: [&str; 2] = ["duckdb", "chdb"];

/// Returns a test for each engine. Those of an engine that is not installed are skipped with the reason.
pub fn trials() -> impl Iterator<Item = Trial> {
    ENGINES.into_iter().map(|engine| {
        let is_installed = Command::new("python3")
            .args(["-c", &format!("import {engine}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let trial = Trial::test(format!("at_scale::queries_run_in_{engine}"), move || {
            queries_run(engine)
        });
        match is_installed {
            true => trial,
            false => trial
                .with_kind(format!("skipped: no Python package {engine}"))
                .with_ignored_flag(true),
        }
    })
}

fn queries_run(engine: &str) -> Result<(), Failed> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("at_scale").join(engine);
    fs::create_dir_all(&folder)?;
    let (capture, lines) = (root.join(CAPTURE), folder.join("incident.jsonl"));
    let replay = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"))
        .args(["-o", "json", "--read"])
        .arg(&capture)
        .output()?;
    fs::write(&lines, replay.stdout)?;
    let output = Command::new("python3")
        .arg(root.join("tests/cli/at_scale.py"))
        .arg(engine)
        .args([&root.join("docs/at-scale.md"), &capture, &lines])
        .current_dir(&folder)
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    match output.stdout == b"5 queries\n" {
        true => Ok(()),
        false => Err(format!("{}: {stderr}", output.status).into()),
    }
}
