//! Invalid command lines, the help, the schema, and hostile files.

use std::process::{Command, Output, Stdio};

use libtest_mimic::{Failed, Trial};

use crate::examples::{CAPTURE, needing, repository};

/// Invalid command lines, and texts of the error message: the flag, and a suggestion if there is one.
const INVALID: [(&str, &[&str]); 59] = [
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
    ("--top 0", &["--top", "write a whole number of 1 or more"]),
    ("--duration 1M", &["--duration", "months and years are not accepted"]),
    ("-r x.jsonl --since -5M", &["--since", "m is a minute"]),
    ("--duration -5m", &["--duration", "write 30s, 5m or 1h30m"]),
    (
        "--duration=abc",
        &["--duration", "the units are ns, us, ms, s, m, h, d and w"],
    ),
    ("--interval -1", &["--interval", "write 500ms, 5s, 1m or all"]),
    ("-w a.jsonl -w b.jsonl", &["--write", "multiple times"]),
    (
        "--pods-file a.json --pods-file b.json",
        &["--pods-file", "multiple times"],
    ),
    ("-r x.jsonl --since -1s --until -3s", &["--since", "--until"]),
    ("explain -r x.jsonl --since -1s --until -3s", &["--since", "--until"]),
    ("-r x.jsonl --include-self", &["--read", "--include-self"]),
    ("--metrics-level workload", &["--metrics <ADDR>"]),
    ("--trust-domain example.org", &["--metrics <ADDR>"]),
    ("--failed --outcome ok", &["--failed", "--outcome ok"]),
    (
        "--established-only --outcome refused",
        &["--established-only", "--outcome refused"],
    ),
    ("--duration soon", &["--duration"]),
    ("--buffer 8Mb", &["--buffer"]),
    ("check --count 3", &["--count"]),
    ("--read x.jsonl --drops", &["--read", "--drops"]),
    ("--read x.jsonl --turns", &["--read", "--turns"]),
    // Flags and values of other tools.
    ("--dst 10.0.0.1", &["--dst", "tip: ", "--to-ip"]),
    ("--format json", &["--format", "tip: ", "--output"]),
    ("--to shop/web", &["--to", "tip: ", "--service"]),
    ("--since 5m", &["--read", "tip: a live trace starts now"]),
    ("-c web", &["--count", "whole number"]),
    ("-A -n shop", &["--all-namespaces", "--namespace"]),
    ("--connecting", &["--connecting", "--events update", "-o table"]),
    ("--join", &["--join", "--read"]),
    // Words that are no subcommands, and subcommands that come too late.
    (
        "incident.jsonl.zst",
        &["tip: to replay a capture, write: kmesh-trace --read incident.jsonl.zst"],
    ),
    (
        "-o json incident.jsonl.zst",
        &["tip: to replay a capture, write: kmesh-trace --read incident.jsonl.zst"],
    ),
    (
        "explain incident.jsonl.zst",
        &["tip: to examine a capture, write: kmesh-trace explain --read incident.jsonl.zst"],
    ),
    (
        "--events close, open",
        &["tip: ", "commas and no spaces: --events close,open"],
    ),
    ("--port 443 8443", &["tip: ", "commas and no spaces: --port 443,8443"]),
    ("explain -p 443 8443", &["tip: ", "commas and no spaces: -p 443,8443"]),
    (
        "-q explain",
        &["tip: write the subcommand first: kmesh-trace explain -q"],
    ),
    (
        "-q diff a b",
        &["tip: write the subcommand first: kmesh-trace diff -q a b"],
    ),
    (
        "-r x explain",
        &["tip: write the subcommand first: kmesh-trace explain -r x"],
    ),
    (
        "--failed nodes --image x",
        &["tip: write the subcommand first: kmesh-trace nodes --image x -- --failed"],
    ),
    ("diff a b --since -5m", &["tip: diff compares whole captures"]),
    (
        "explain --json",
        &["tip: select a format with --output (-o): text or json"],
    ),
    ("nodes", &["--image"]),
    (
        "nodes --image x --image-pull-policy always",
        &["--image-pull-policy", "Always"],
    ),
    ("nodes --clean --image x", &["--clean", "--image"]),
    ("nodes --image x -- --prot 443", &["--prot", "--port"]),
    ("nodes --image x -- --read x.jsonl", &["--read", "nodes"]),
    ("nodes --image x -- --kubelet", &["--kubelet", "the API server"]),
    ("nodes --image x -- check", &["--", "command"]),
];

pub fn trials() -> Vec<Trial> {
    let errors = INVALID
        .iter()
        .map(|&(line, parts)| Trial::test(format!("arguments::invalid: {line}"), move || check_error(line, parts)));
    errors
        .chain([
            Trial::test("arguments::short_help_fits_80_columns", short_help_fits_80_columns),
            Trial::test("arguments::schema_is_a_json_schema", schema_is_a_json_schema),
            Trial::test(
                "arguments::help_command_prints_the_long_help",
                help_command_prints_the_long_help,
            ),
            Trial::test("arguments::closed_pipe_is_no_error", closed_pipe_is_no_error),
            Trial::test("arguments::replay_reports_unknown_names", replay_reports_unknown_names),
            needing(
                &["script"],
                Trial::test(
                    "arguments::short_lines_are_the_default_on_a_terminal",
                    short_is_the_default_on_a_terminal,
                ),
            ),
            Trial::test("arguments::yaml_alias_bomb_is_rejected", yaml_alias_bomb_is_rejected),
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

fn check_error(line: &str, parts: &[&str]) -> Result<(), Failed> {
    let output = run(line)?;
    let stderr = text(&output.stderr);
    if output.status.code() != Some(2) || !output.stdout.is_empty() {
        return Err(format!("{line}: {}: {stderr}", output.status).into());
    }
    match parts.iter().find(|&&part| !stderr.contains(part)) {
        Some(part) => Err(format!("{line}: no {part} in: {stderr}").into()),
        None => Ok(()),
    }
}

fn help_command_prints_the_long_help() -> Result<(), Failed> {
    let (command, flag) = (run("help")?, run("--help")?);
    match command.status.success() && command.stdout == flag.stdout {
        true => Ok(()),
        false => Err(text(&command.stderr).into()),
    }
}

/// Returns the path of the recorded incident.
fn capture() -> String {
    repository().join(CAPTURE).display().to_string()
}

/// A replay without matching records prints nothing but the reason.
fn replay_reports_unknown_names() -> Result<(), Failed> {
    let output = run(&format!("-r {} -o short -n shpo --workload stock", capture()))?;
    let stderr = text(&output.stderr);
    let warning = "warning: no pod is in namespace shpo; known: shop";
    match output.status.success() && output.stdout.is_empty() && stderr.contains(warning) {
        true if !stderr.contains("no workload") => Ok(()),
        _ => Err(stderr.into()),
    }
}

fn short_is_the_default_on_a_terminal() -> Result<(), Failed> {
    let tool = env!("CARGO_BIN_EXE_kmesh-trace");
    let command = format!("{tool} -q -r {} --outcome refused --count 1", capture());
    let terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()?;
    let piped = Command::new("sh").args(["-c", &command]).output()?;
    let (short, log) = (text(&terminal.stdout), text(&piped.stdout));
    let is_short = short.lines().count() == 1
        && short.contains("  shop/checkout (checkout/")
        && short.contains(") → shop/database 10.244.0.40:5432  refused by peer  ");
    match is_short && log.starts_with("accesslog: ") {
        true => Ok(()),
        false => Err(format!("{short:?} and {log:?}").into()),
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

fn schema_is_a_json_schema() -> Result<(), Failed> {
    let output = run("schema")?;
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    Ok(())
}

/// As in `kmesh-trace --help | true`: status 0 and no message.
fn closed_pipe_is_no_error() -> Result<(), Failed> {
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

/// A pods file of less than a kilobyte has ten billion strings as YAML aliases, and is rejected. The tool has an
/// address space of 256 MiB and 60 s of CPU time, which the expanded strings exceed many times over.
fn yaml_alias_bomb_is_rejected() -> Result<(), Failed> {
    let line = |level| {
        format!(
            "a{level}: &a{level} [{}]\n",
            vec![format!("*a{}", level - 1); 10].join(",")
        )
    };
    let aliases: String = (1..=10).map(line).collect();
    let bomb = format!("kind: PodList\nitems: []\na0: &a0 laugh\n{aliases}");
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
