//! `explain` and `diff` without root: their exit statuses, and the schema of their JSON lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

use crate::examples::{CAPTURE, repository};

/// A test with its own files.
type Case = fn(&Files) -> Result<(), Failed>;

pub fn trials() -> Vec<Trial> {
    let cases: [(&str, Case); 4] = [
        ("statuses_are_those_of_the_manual", statuses),
        ("findings_conform_to_the_schema", findings),
        ("changes_conform_to_the_schema", changes),
        ("text_and_json_say_the_same", text_and_json),
    ];
    let trial =
        |(name, run): (&'static str, Case)| Trial::test(format!("reports::{name}"), move || run(&Files::new(name)?));
    cases.into_iter().map(trial).collect()
}

/// Captures, and files that are none.
struct Files {
    incident: PathBuf,
    /// The incident without the connections that failed.
    healthy: PathBuf,
    cut_off: PathBuf,
    text: PathBuf,
    empty: PathBuf,
    missing: PathBuf,
}

impl Files {
    fn new(test: &str) -> Result<Self, Failed> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reports").join(test);
        _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let files = Self {
            incident: repository().join(CAPTURE),
            healthy: folder.join("healthy.jsonl"),
            cut_off: folder.join("cut-off.jsonl.zst"),
            text: folder.join("text"),
            empty: folder.join("empty"),
            missing: folder.join("missing"),
        };
        let healthy = run(&["--read", path(&files.incident), "--outcome", "ok", "-o", "json"])?;
        fs::write(&files.healthy, healthy.stdout)?;
        let incident = fs::read(&files.incident)?;
        fs::write(&files.cut_off, &incident[..incident.len() / 2])?;
        fs::write(&files.text, "Dear diary,\ntoday the database was down.\n")?;
        fs::write(&files.empty, "")?;
        Ok(files)
    }
}

fn path(file: &Path) -> &str {
    file.to_str().expect("a path in UTF-8")
}

fn run(args: &[&str]) -> Result<Output, Failed> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"));
    Ok(command.args(args).stdin(Stdio::null()).output()?)
}

fn statuses(files: &Files) -> Result<(), Failed> {
    let Files {
        incident,
        healthy,
        cut_off,
        text,
        empty,
        missing,
    } = files;
    let [incident, healthy, cut_off, text, empty, missing] =
        [incident, healthy, cut_off, text, empty, missing].map(|file| path(file));
    let cases: &[(i32, &[&str])] = &[
        // The statuses are those of diff(1).
        (0, &["diff", incident, incident]),
        (1, &["diff", healthy, incident]),
        (0, &["diff", healthy, incident, "--outcome", "ok"]),
        (2, &["diff", incident, missing]),
        (2, &["diff", missing, incident]),
        (2, &["diff", incident, text]),
        (2, &["diff", incident, empty]),
        (2, &["diff", incident, cut_off]),
        (2, &["diff", incident]),
        // Findings do not change the status.
        (0, &["explain", "--read", incident]),
        (0, &["explain", "--read", healthy]),
        (1, &["explain", "--read", missing]),
        (1, &["explain", "--read", text]),
        (1, &["explain", "--read", empty]),
        (1, &["explain", "--read", cut_off]),
        (2, &["explain", "--read", incident, "--turns"]),
        (2, &["explain", "--read", incident, "--connecting"]),
        (2, &["explain", "--read", incident, "--outcome", "sad"]),
    ];
    for (status, args) in cases {
        for format in ["text", "json"] {
            let args = [args, &["-o", format][..]].concat();
            let output = run(&args)?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            if output.status.code() != Some(*status) || stderr.contains("panicked") {
                return Err(format!("{args:?}: {}, not {status}: {stderr}", output.status).into());
            }
            // An incomplete report gives the reason.
            assert!(*status < 2 || !stderr.is_empty(), "{args:?}");
        }
    }
    Ok(())
}

/// Runs the tool, and returns its JSON lines, each of which must conform to the schema.
fn json_lines(args: &[&str]) -> Result<Vec<Value>, Failed> {
    let schema: Value = serde_json::from_slice(&run(&["schema"])?.stdout)?;
    let schema = jsonschema::validator_for(&schema).map_err(|error| error.to_string())?;
    let output = run(args)?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = Vec::new();
    for line in text.lines() {
        let value: Value = serde_json::from_str(line)?;
        if let Err(error) = schema.validate(&value) {
            return Err(format!("{error} at {}: {line}", error.instance_path()).into());
        }
        lines.push(value);
    }
    Ok(lines)
}

fn is_of<'a>(kind: &'a str) -> impl Fn(&&Value) -> bool + 'a {
    move |line| line["type"] == kind
}

fn findings(files: &Files) -> Result<(), Failed> {
    let lines = json_lines(&["explain", "--read", path(&files.incident), "-o", "json"])?;
    let found: Vec<_> = lines
        .iter()
        .filter(is_of("finding"))
        .map(|line| &line["rule"])
        .collect();
    // The incident of tests/data/incident.py: the database stops, the stock service does not accept, payments resets.
    assert_eq!(found, ["refused", "no_answer", "resets"]);
    assert_eq!(lines.len(), found.len() + 1);
    assert_eq!(lines[found.len()]["type"], "summary");
    let lines = json_lines(&["explain", "--read", path(&files.healthy), "-o", "json"])?;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    Ok(())
}

fn changes(files: &Files) -> Result<(), Failed> {
    let (before, after) = (path(&files.healthy), path(&files.incident));
    for by in ["workload", "pod", "service,port"] {
        let lines = json_lines(&["diff", before, after, "--by", by, "-o", "json"])?;
        assert!(lines.iter().any(|line| is_of("change")(&line)), "{by}: {lines:#?}");
    }
    // Groups that are new.
    let lines = json_lines(&["diff", before, after, "--by", "outcome", "-o", "json"])?;
    assert!(lines.iter().any(|line| is_of("change")(&line)), "{lines:#?}");
    Ok(())
}

/// The text has a paragraph for each line of JSON.
fn text_and_json(files: &Files) -> Result<(), Failed> {
    let incident = path(&files.incident);
    let text = String::from_utf8(run(&["explain", "--read", incident])?.stdout)?;
    for line in json_lines(&["explain", "--read", incident, "-o", "json"])? {
        for member in ["text", "command"] {
            if let Some(part) = line[member].as_str() {
                assert!(text.contains(part), "{part:?} is not in {text}");
            }
        }
    }
    Ok(())
}
