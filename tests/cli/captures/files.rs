//! Files that `--write` creates, rotates or refuses to overwrite, and other programs that read them.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};

use super::{ALL_EVENTS, all_json, check, conns, incident, is_close, run_with_status, summary_count, text, tool};

/// Other programs that read captures: the name, a command that succeeds if the program is installed, and a script that
/// prints the number of closes of the capture `$1`. `pip install duckdb chdb` installs two of them.
const READERS: [(&str, &str, &str); 3] = [
    (
        "zstdcat_and_jq",
        "command -v zstdcat && command -v jq",
        r#"zstdcat "$1" | jq -s 'map(select(.type == "conn" and .event == "close")) | length'"#,
    ),
    (
        "duckdb",
        "python3 -c 'import duckdb'",
        r#"python3 -c 'import duckdb, sys
query = "select count(*) from read_json($file) where type = $type and event = $event"
print(duckdb.execute(query, {"file": sys.argv[1], "type": "conn", "event": "close"}).fetchone()[0])' "$1""#,
    ),
    (
        "clickhouse",
        "python3 -c 'import chdb'",
        r#"python3 -c 'import chdb, sys
where = "where type = \"conn\" and event = \"close\"".replace(chr(34), chr(39))
named = "settings input_format_json_use_string_type_for_ambiguous_paths_in_named_tuples_inference_from_objects = 1"
query = "select count() from file({0}{1}{0}, JSONEachRow) {2} {3}".format(chr(39), sys.argv[1], where, named)
print(chdb.query(query, "CSV"))' "$1""#,
    ),
];

/// Returns a test for each other program. Tests of a program that is not installed are skipped with the reason.
pub fn readers() -> impl Iterator<Item = Trial> {
    READERS
        .into_iter()
        .map(|(name, probe, script)| reader(name, probe, script))
}

fn reader(name: &'static str, probe: &str, script: &'static str) -> Trial {
    let is_installed = Command::new("sh")
        .args(["-c", probe])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let trial = Trial::test(format!("captures::is_read_by_{name}"), move || {
        let output = stdout_of("sh", &["-c", script, "sh", text(incident())])?;
        let closes: u64 = String::from_utf8(output)?.trim().parse()?;
        assert_eq!(closes, summary_count(&all_json()?, "delivered")?);
        Ok(())
    });
    match is_installed {
        true => trial,
        false => trial.with_kind(format!("skipped: no {name}")).with_ignored_flag(true),
    }
}

pub fn copy_replays_the_same(folder: &Path) -> Result<(), Failed> {
    let copy = folder.join("copy.jsonl.zst");
    let (printed, _) = run_with_status(
        0,
        &[&["-r", text(incident()), "-w", text(&copy)], &ALL_EVENTS[..]].concat(),
    )?;
    check(printed == all_json()?, "the output is printed as well")?;
    check(
        fs::metadata(&copy)?.permissions().mode() & 0o777 == 0o600,
        "only its owner can read the copy",
    )?;
    let (replayed, _) = run_with_status(0, &[&["-r", text(&copy)], &ALL_EVENTS[..]].concat())?;
    check(replayed == printed, "the copy replays the same")?;
    // Only a part of the capture.
    let part = folder.join("part.jsonl.zst");
    let (printed, _) = run_with_status(0, &["-r", text(&copy), "-o", "json", "--failed", "-w", text(&part)])?;
    let (replayed, _) = run_with_status(0, &["-r", text(&part), "-o", "json"])?;
    check(replayed == printed, "the part replays the same")
}

pub fn existing_file_is_not_overwritten(folder: &Path) -> Result<(), Failed> {
    let file = folder.join("there.jsonl.zst");
    fs::write(&file, "precious")?;
    let (_, stderr) = run_with_status(1, &["-r", text(incident()), "-o", "none", "-w", text(&file)])?;
    check(
        stderr.contains("there.jsonl.zst") && stderr.contains("try: another name"),
        stderr,
    )?;
    check(fs::read(&file)? == b"precious", "the file is unchanged")?;
    // Nor is a file with a name that rotation would use.
    fs::rename(&file, folder.join("new.jsonl.zst.1"))?;
    let new = folder.join("new.jsonl.zst");
    let args = [
        "-r",
        text(incident()),
        "-o",
        "none",
        "-w",
        text(&new),
        "--rotate",
        "64Ki,2",
    ];
    let (_, stderr) = run_with_status(1, &args)?;
    check(stderr.contains("new.jsonl.zst.1") && !new.exists(), stderr)
}

pub fn symbolic_link_is_not_followed(folder: &Path) -> Result<(), Failed> {
    let (target, link) = (folder.join("target"), folder.join("link.jsonl.zst"));
    for exists in [false, true] {
        if exists {
            fs::write(&target, "precious")?;
        }
        _ = fs::remove_file(&link);
        symlink(&target, &link)?;
        run_with_status(1, &["-r", text(incident()), "-o", "none", "-w", text(&link)])?;
        check(target.exists() == exists, "no file is created through the link")?;
    }
    check(fs::read(&target)? == b"precious", "nothing is written through the link")
}

pub fn small_capture_is_not_rotated(folder: &Path) -> Result<(), Failed> {
    let whole = folder.join("whole.jsonl.zst");
    let write = ["-r", text(incident()), "-o", "none", "-w", text(&whole), "--rotate"];
    run_with_status(0, &[&write[..], &["1M,3"]].concat())?;
    let (replayed, _) = run_with_status(0, &[&["-r", text(&whole)], &ALL_EVENTS[..]].concat())?;
    check(replayed == all_json()?, "the file has all records")?;
    check(!folder.join("whole.jsonl.zst.1").exists(), "one file")
}

/// Each file has at most the requested size and can be read alone. Together they have each record once.
pub fn rotated_files_are_read_alone_and_together(folder: &Path) -> Result<(), Failed> {
    let part = folder.join("parts.jsonl");
    run_with_status(
        0,
        &[
            "-r",
            text(incident()),
            "-o",
            "none",
            "-w",
            text(&part),
            "--rotate",
            "200k,20",
        ],
    )?;
    let mut parts = vec![part.clone()];
    parts.extend((1..20).map(|age| folder.join(format!("parts.jsonl.{age}"))));
    parts.retain(|part| part.exists());
    check(parts.len() > 3, format!("{} parts", parts.len()))?;
    let mut reads = Vec::new();
    let mut closes = 0;
    for part in &parts {
        check(fs::metadata(part)?.len() <= 200_000, "no larger than requested")?;
        let (replayed, stderr) = run_with_status(0, &[&["-r", text(part)], &ALL_EVENTS[..]].concat())?;
        let is_newest = part == &parts[0];
        check(stderr.contains("older part of a rotated capture") != is_newest, stderr)?;
        closes += replayed.lines().filter(is_close).count() as u64;
        reads.extend(["-r", text(part)]);
    }
    assert_eq!(closes, summary_count(&all_json()?, "closes")?);
    let (replayed, _) = run_with_status(0, &[&reads[..], &ALL_EVENTS[..]].concat())?;
    check(conns(&replayed) == conns(&all_json()?), "each record once, in order")
}

/// Runs a program, which must succeed, and returns its standard output.
fn stdout_of(program: &str, args: &[&str]) -> Result<Vec<u8>, Failed> {
    let output = Command::new(program).args(args).output()?;
    check(
        output.status.success(),
        format!("{program} {args:?}: {}", output.status),
    )?;
    Ok(output.stdout)
}

/// The name of a capture decides its compression. Replay detects the compression by content, whatever the name.
pub fn compression_is_detected_by_content(folder: &Path) -> Result<(), Failed> {
    let events = ["-o", "none", "--events", "open,update,close"];
    let copies = ["copy.jsonl", "copy.jsonl.gz", "copy.jsonl.zst"].map(|name| folder.join(name));
    for copy in &copies {
        run_with_status(0, &[&["-r", text(incident()), "-w", text(copy)], &events[..]].concat())?;
    }
    let plain = fs::read(&copies[0])?;
    check(
        stdout_of("gzip", &["-dc", text(&copies[1])])? == plain,
        "gzip reads the capture",
    )?;
    let renamed = folder.join("no-extension");
    for copy in &copies {
        fs::copy(copy, &renamed)?;
        let (replayed, _) = run_with_status(0, &[&["-r", text(&renamed)], &ALL_EVENTS[..]].concat())?;
        check(replayed == all_json()?, format!("{} by content", copy.display()))?;
    }
    Ok(())
}

pub fn full_disk_is_an_error(_: &Path) -> Result<(), Failed> {
    // A copy to standard output, which is a device whose writes fail.
    let mut full = tool(&["-r", text(incident()), "-o", "none", "-w", "-"])
        .stdout(File::options().write(true).open("/dev/full")?)
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stderr = String::new();
    let mut pipe = full.stderr.take().ok_or("no pipe")?;
    pipe.read_to_string(&mut stderr)?;
    check(
        full.wait()?.code() == Some(1) && stderr.contains("No space left"),
        stderr,
    )
}
