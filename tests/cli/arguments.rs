//! What is said about the command line itself: help, versions, the schema, and what is wrong with it.

use std::process::{Command, Output, Stdio};

use libtest_mimic::{Failed, Trial};

/// Wrong command lines, and what the refusal must name: the flag, and where there is one the near word.
const WRONG: [(&str, &[&str]); 15] = [
    ("--no-such-flag", &["--no-such-flag"]),
    ("--prot 443", &["--prot", "--port"]),
    ("--ouput json", &["--ouput", "--output"]),
    ("-o jsno", &["--output", "jsno", "json"]),
    ("--outcome refussed", &["--outcome", "refussed", "refused"]),
    ("chekc", &["chekc", "check"]),
    ("--port 70000", &["--port", "65535"]),
    ("--port 9-3", &["--port", "3-9"]),
    ("-4 --ip ::1", &["-4", "--ip", "IPv6"]),
    ("-n shop --no-resolve", &["--namespace", "--no-resolve", "names"]),
    (
        "--from-pod web-0 --no-resolve",
        &["--from-pod", "--no-resolve", "names"],
    ),
    ("--count 0", &["--count"]),
    ("--duration soon", &["--duration"]),
    ("--buffer 8Mb", &["--buffer"]),
    ("check --count 3", &["--count"]),
];

/// A trial a way of asking.
pub fn trials() -> Vec<Trial> {
    let refusals = WRONG
        .iter()
        .map(|&(line, parts)| Trial::test(format!("arguments::refused: {line}"), move || refused(line, parts)));
    refusals
        .chain([
            Trial::test("arguments::short_help_fits_80_columns", short_help_fits_80_columns),
            Trial::test("arguments::the_schema_is_json", the_schema_is_json),
            Trial::test("arguments::a_reader_that_goes", a_reader_that_goes),
            Trial::test("arguments::a_bomb_of_aliases", a_bomb_of_aliases),
        ])
        .collect()
}

fn run(line: &str) -> Result<Output, Failed> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"));
    Ok(command
        .args(line.split_whitespace())
        .stdin(Stdio::null())
        .env_remove("RUST_BACKTRACE")
        .output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(line: &str, parts: &[&str]) -> Result<(), Failed> {
    let output = run(line)?;
    let said = text(&output.stderr);
    if output.status.code() != Some(2) || !output.stdout.is_empty() {
        return Err(format!("{line}: {}: {said}", output.status).into());
    }
    match parts.iter().find(|&&part| !said.contains(part)) {
        Some(part) => Err(format!("{line}: no word of {part} in: {said}").into()),
        None => Ok(()),
    }
}

fn short_help_fits_80_columns() -> Result<(), Failed> {
    let output = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"))
        .arg("-h")
        .env("COLUMNS", "80")
        .output()?;
    let help = text(&output.stdout);
    let fits = help.lines().all(|line| line.chars().count() <= 80) && help.contains("\nFilters:\n");
    if output.status.success() && fits && output.stderr.is_empty() {
        Ok(())
    } else {
        Err(help.into())
    }
}

fn the_schema_is_json() -> Result<(), Failed> {
    let output = run("schema")?;
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    Ok(())
}

/// `kmesh-trace --help | true`: no noise, and no failure.
fn a_reader_that_goes() -> Result<(), Failed> {
    for line in ["schema", "completions bash", "--help"] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"))
            .args(line.split_whitespace())
            .stdin(Stdio::null())
            .stdout(writer)
            .output()?;
        if output.status.code() != Some(0) || !output.stderr.is_empty() {
            return Err(format!("{line}: {}: {}", output.status, text(&output.stderr)).into());
        }
    }
    Ok(())
}

/// Ten billion strings as YAML aliases in less than a kilobyte: the tool refuses the file. It has an address space of 256 MiB
/// and 60 s of processor time, which the expanded strings exceed many times over.
fn a_bomb_of_aliases() -> Result<(), Failed> {
    let line = |level| {
        format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{}", level - 1); 10].join(",")
        )
    };
    let laughs: String = (1..=10).map(line).collect();
    let bomb = format!("kind: PodList\nitems: []\na0: &a0 laugh\n{laughs}");
    assert!(bomb.len() < 1000, "{} bytes", bomb.len());
    let file = std::env::temp_dir().join(format!("kmesh-trace-bomb-{}.yaml", std::process::id()));
    std::fs::write(&file, bomb)?;
    let limits = "ulimit -v 262144; ulimit -t 60; exec \"$0\" --pods-file \"$1\" --duration 1s";
    let output = Command::new("sh")
        .args(["-c", limits])
        .arg(env!("CARGO_BIN_EXE_kmesh-trace"))
        .arg(&file)
        .output()?;
    std::fs::remove_file(&file)?;
    let stderr = text(&output.stderr);
    if output.status.code() != Some(1) || !stderr.contains("alias") {
        return Err(format!("{}: {stderr}", output.status).into());
    }
    Ok(())
}
