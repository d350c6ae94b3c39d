//! `--read` and `--write` without root: the real tool on a real capture, whole, damaged, rotated, through pipes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

/// Gets a folder of its own.
type Case = fn(&Path) -> Result<(), Failed>;

const TABLE: [(&str, Case); 20] = [
    ("a capture is told in every output", every_output),
    ("the shop's incident is told by its names", names),
    (
        "a pods file in the order that kubectl writes gives the names",
        pods_file_in_kubectls_order,
    ),
    ("filters and limits hold for a replay", filters_and_limits),
    ("a copy of a capture is told alike", copies),
    ("through pipes both ways", pipes),
    ("a full pipe with O_NONBLOCK is waited for", nonblocking_pipes),
    ("colours and the screen follow TERM", terminals),
    ("a file that exists is refused", existing),
    ("a link is never followed", links),
    ("what fits one file is not rotated", rotation),
    ("rotated files can be read alone and together", rotated_parts),
    ("a file that is cut off anywhere", cut_off),
    ("a flipped bit anywhere", flipped),
    ("foreign files are refused with their problem", foreign),
    ("captures of every compression are read by content", compressions),
    ("several captures are merged by time", merged),
    ("only a range of time is replayed", time_range),
    ("saved output is replayed", saved_output),
    ("a full disk", full_disk),
];

/// Other programs that read a capture, with the script that prints the number of its closes. `$1` is the capture. A program
/// that is not installed is skipped; `pip install duckdb chdb` installs two of them.
const READERS: [(&str, &str, &str); 3] = [
    (
        "zstdcat and jq",
        "command -v zstdcat && command -v jq",
        r#"zstdcat "$1" | jq -s 'map(select(.type == "conn" and .event == "close")) | length'"#,
    ),
    (
        "DuckDB",
        "python3 -c 'import duckdb'",
        r#"python3 -c 'import duckdb, sys
query = "select count(*) from read_json($file) where type = $type and event = $event"
print(duckdb.execute(query, {"file": sys.argv[1], "type": "conn", "event": "close"}).fetchone()[0])' "$1""#,
    ),
    (
        "ClickHouse",
        "python3 -c 'import chdb'",
        r#"python3 -c 'import chdb, sys
where = "where type = \"conn\" and event = \"close\"".replace(chr(34), chr(39))
named = "settings input_format_json_use_string_type_for_ambiguous_paths_in_named_tuples_inference_from_objects = 1"
query = "select count() from file({0}{1}{0}, JSONEachRow) {2} {3}".format(chr(39), sys.argv[1], where, named)
print(chdb.query(query, "CSV"))' "$1""#,
    ),
];

fn reader(name: &'static str, probe: &str, script: &'static str) -> Trial {
    let is_there = Command::new("sh")
        .args(["-c", probe])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let trial = Trial::test(format!("captures::read by {name}"), move || {
        let printed = printed("sh", &["-c", script, "sh", text(incident())])?;
        let closes: u64 = String::from_utf8(printed)?.trim().parse()?;
        assert_eq!(closes, sum(&all_json()?, "delivered")?);
        Ok(())
    });
    match is_there {
        true => trial,
        false => trial.with_kind(format!("skipped: no {name}")).with_ignored_flag(true),
    }
}

/// A trial a row, and one for each other program.
pub fn trials() -> Vec<Trial> {
    let readers = READERS.map(|(name, probe, script)| reader(name, probe, script));
    TABLE
        .into_iter()
        .enumerate()
        .map(|(number, (name, run))| {
            Trial::test(format!("captures::{name}"), move || {
                let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("captures-{number}"));
                _ = fs::remove_dir_all(&folder);
                fs::create_dir_all(&folder)?;
                run(&folder)
            })
        })
        .chain(readers)
        .collect()
}

fn incident() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.jsonl.zst"))
}

fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"));
    command.args(args).stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this repository")
}

fn run(args: &[&str]) -> Result<Output, Failed> {
    Ok(tool(args).output()?)
}

/// Runs it, which must end with this status; its output and what it said.
fn ends(status: i32, args: &[&str]) -> Result<(String, String), Failed> {
    let output = run(args)?;
    let (out, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    if output.status.code() != Some(status) || said.contains("panicked") {
        return Err(format!("{args:?}: {}, said {said}", output.status).into());
    }
    Ok((out, said))
}

fn check(holds: bool, what: impl Into<String>) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::from(what.into())) }
}

/// The whole incident as JSON, all events.
fn all_json() -> Result<String, Failed> {
    Ok(ends(
        0,
        &["-r", text(incident()), "-o", "json", "--events", "open,update,close"],
    )?
    .0)
}

fn sum(json: &str, member: &str) -> Result<u64, Failed> {
    let last = json.lines().last().ok_or("no line")?;
    let summary: serde_json::Value = serde_json::from_str(last)?;
    check(summary["type"] == "summary", last)?;
    summary[member].as_u64().ok_or_else(|| last.into())
}

fn every_output(_: &Path) -> Result<(), Failed> {
    check(fs::metadata(incident())?.len() < 64 << 10, "the incident is small")?;
    let json = all_json()?;
    for line in json.lines() {
        serde_json::from_str::<serde_json::Value>(line)?;
    }
    let closes = json.lines().filter(|line| line.contains(r#""event":"close""#)).count();
    let (log, said) = ends(0, &["-r", text(incident())])?;
    check(closes > 100 && log.lines().count() == closes, "a log line a close")?;
    check(log.lines().all(|line| line.starts_with("accesslog: ")), "log lines")?;
    check(said.contains("connections closed on"), said.clone())?;
    for outcome in ["refused", "reset_by_peer", "reset_by_local", "connect_aborted"] {
        check(log.contains(&format!("outcome={outcome}")), outcome)?;
    }
    let (none, said) = ends(0, &["-r", text(incident()), "-o", "none", "-q"])?;
    check(none.is_empty() && said.is_empty(), said)
}

/// `tests/data/incident.py` stopped the database: what the checkout asked it afterwards was refused.
fn names(_: &Path) -> Result<(), Failed> {
    let args = ["--to-workload", "database", "--outcome", "refused", "-o", "json"];
    let (out, _) = ends(0, &[&["--read", text(incident())], &args[..]].concat())?;
    let values = out
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    let conns: Vec<_> = values.iter().filter(|value| value["type"] == "conn").collect();
    assert!(conns.len() > 10, "{out}");
    for conn in conns {
        assert_eq!(
            (&conn["src"]["workload"], &conn["process"]["comm"]),
            (&"checkout".into(), &"checkout".into())
        );
        assert_eq!(
            (&conn["dst"]["pod"], &conn["service"]["name"]),
            (&"database-0".into(), &"database".into())
        );
    }
    Ok(())
}

/// kubectl writes the keys of YAML in alphabetical order, and the items of a typed list without their kind. The third Service is
/// one of type ExternalName, whose selector is a leftover.
fn pods_file_in_kubectls_order(folder: &Path) -> Result<(), Failed> {
    let shop = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/shop.json");
    let shop: Value = serde_json::from_slice(&fs::read(shop)?)?;
    let items = shop["items"].as_array().ok_or("no items")?;
    let of_kind = |kind: &str| -> Vec<Value> {
        let mut found: Vec<_> = items.iter().filter(|item| item["kind"] == kind).cloned().collect();
        for item in found.iter_mut().filter_map(Value::as_object_mut) {
            item.remove("kind");
            item.remove("apiVersion");
        }
        found
    };
    let (pods, mut services) = (of_kind("Pod"), of_kind("Service"));
    services.push(
        serde_json::json!({"metadata": {"name": "a-leftover", "namespace": "shop"}, "spec": {
        "type": "ExternalName", "externalName": "db.example", "selector": {"app": "database"},
        "ports": [{"port": 5432, "targetPort": 5432}]}}),
    );
    let list = |items: Vec<Value>, kind: &str| {
        format!(
            "apiVersion: v1\nitems: {}\nkind: {kind}\nmetadata:\n  resourceVersion: \"\"\n",
            Value::from(items)
        )
    };
    let file = folder.join("pods.yaml");
    fs::write(
        &file,
        format!("{}---\n{}", list(services, "ServiceList"), list(pods, "PodList")),
    )?;
    let args = [
        "-r",
        text(incident()),
        "--pods-file",
        text(&file),
        "-o",
        "json",
        "--to-workload",
        "database",
    ];
    let (out, said) = ends(0, &args)?;
    let values = out
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    let conns: Vec<_> = values.iter().filter(|value| value["type"] == "conn").collect();
    check(conns.len() > 10, format!("{out}{said}"))?;
    for conn in conns {
        check(
            conn["dst"]["pod"] == "database-0" && conn["service"]["name"] == "database",
            conn.to_string(),
        )?;
    }
    Ok(())
}

fn filters_and_limits(_: &Path) -> Result<(), Failed> {
    let file = incident();
    let all = all_json()?;
    let (refused, _) = ends(0, &["-r", text(file), "-o", "json", "--outcome", "refused"])?;
    let lines = refused.lines().count() - 1;
    check(
        lines > 0
            && refused
                .lines()
                .take(lines)
                .all(|line| line.contains(r#""outcome":"refused""#)),
        "refused",
    )?;
    check(
        sum(&refused, "closes")? == sum(&all, "closes")?,
        "all closes are accounted for",
    )?;
    check(
        sum(&refused, "delivered")? + sum(&refused, "filtered")? == sum(&refused, "closes")?,
        "they add up",
    )?;
    let (first, _) = ends(0, &["-r", text(file), "-o", "json", "--count", "3"])?;
    check(first.lines().count() == 4 && sum(&first, "delivered")? == 3, first)?;
    let (early, _) = ends(0, &["-r", text(file), "-o", "json", "--duration", "1s"])?;
    check(
        early.lines().count() > 3 && early.len() < all.len() / 2,
        "by the times of the records",
    )?;
    check(
        ends(2, &["-r", text(file), "--buffer", "1M"])?.1.contains("--buffer"),
        "named",
    )?;
    check(ends(2, &["--rotate", "1M"])?.1.contains("--write"), "named")?;
    let (_, said) = ends(2, &["-r", text(file), "-w", "-"])?;
    check(said.contains("-o none"), said)
}

fn copies(folder: &Path) -> Result<(), Failed> {
    let copy = folder.join("copy.jsonl.zst");
    let args = [
        "-r",
        text(incident()),
        "-o",
        "json",
        "--events",
        "open,update,close",
        "-w",
        text(&copy),
    ];
    let (shown, _) = ends(0, &args)?;
    check(shown == all_json()?, "it is shown while it is kept")?;
    check(
        fs::metadata(&copy)?.permissions().mode() & 0o777 == 0o600,
        "for its owner alone",
    )?;
    let (told, _) = ends(0, &["-r", text(&copy), "-o", "json", "--events", "open,update,close"])?;
    check(told == shown, "told alike")?;
    // A part of it, as a file of its own.
    let part = folder.join("part.jsonl.zst");
    let (shown, _) = ends(0, &["-r", text(&copy), "-o", "json", "--failed", "-w", text(&part)])?;
    let (told, _) = ends(0, &["-r", text(&part), "-o", "json"])?;
    check(told == shown, "told alike")
}

fn pipes(_: &Path) -> Result<(), Failed> {
    let events = "open,update,close";
    let mut writer = tool(&[
        "-r",
        text(incident()),
        "-o",
        "none",
        "-q",
        "--events",
        events,
        "-w",
        "-",
    ])
    .stdout(Stdio::piped())
    .spawn()?;
    let between = writer.stdout.take().ok_or("no pipe")?;
    let reader = tool(&["-r", "-", "-o", "json", "--events", events])
        .stdin(between)
        .output()?;
    check(writer.wait()?.success() && reader.status.success(), "both end well")?;
    check(reader.stdout == all_json()?.as_bytes(), "told alike")
}

/// A task runner's pipe: the reader has set O_NONBLOCK, and reads only once the pipe is full.
fn nonblocking_pipes(_: &Path) -> Result<(), Failed> {
    use std::io::{Read as _, Write as _};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::ioctl_fionbio;

    let expected = all_json()?;
    let (mut reader, writer) = std::io::pipe()?;
    ioctl_fionbio(&writer, true)?;
    let full = writer.try_clone()?;
    let is_full = || {
        let ready = poll(&mut [PollFd::new(&full, PollFlags::OUT)], Some(&Timespec::default()));
        ready.is_ok_and(|ready| ready == 0)
    };
    let mut child = tool(&["-r", "-", "-o", "json", "--events", "open,update,close"])
        .stdin({
            // Standard input is such a pipe too, and gives the capture only piece by piece.
            let (input, mut output) = std::io::pipe()?;
            ioctl_fionbio(&input, true)?;
            let capture = fs::read(incident())?;
            std::thread::spawn(move || capture.chunks(999).try_for_each(|part| output.write_all(part)));
            input
        })
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    while !is_full() && child.try_wait()?.is_none() {
        check(std::time::Instant::now() < deadline, "the pipe does not get full")?;
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    drop(full);
    let mut out = String::new();
    reader.read_to_string(&mut out)?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8(output.stderr)?;
    check(
        output.status.success() && said.is_empty(),
        format!("{}: {said}", output.status),
    )?;
    check(out == expected, format!("{} bytes of {}", out.len(), expected.len()))
}

/// What the tool prints on a terminal of this TERM.
fn on_terminal(args: &[&str], term: Option<&str>) -> Result<String, Failed> {
    use std::io::Read as _;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    let name = ptsname(&terminal, Vec::new())?;
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("a path"))
    };
    let mut command = tool(args);
    command
        .stdin(open()?)
        .stdout(open()?)
        .stderr(Stdio::null())
        .env_remove("NO_COLOR");
    match term {
        Some(term) => command.env("TERM", term),
        None => command.env_remove("TERM"),
    };
    let mut child = command.spawn()?;
    // Its descriptors of the terminal: once they are closed, reading ends.
    drop(command);
    let mut out = Vec::new();
    // The end of a terminal is an error.
    _ = File::from(terminal).read_to_end(&mut out);
    check(child.wait()?.success(), format!("{args:?} {term:?}"))?;
    Ok(String::from_utf8(out)?)
}

fn terminals(_: &Path) -> Result<(), Failed> {
    let capture = text(incident());
    let outputs: [&[&str]; 3] = [&["-r", capture], &["-r", capture, "-o", "table"], &["--help"]];
    for args in outputs {
        for term in [Some("dumb"), Some(""), None] {
            let out = on_terminal(args, term)?;
            let is_plain = !out.contains('\u{1b}');
            check(out.len() > 1000 && is_plain, format!("{args:?} {term:?}: {out:.300}"))?;
        }
    }
    for args in [outputs[0], outputs[2]] {
        let out = on_terminal(args, Some("xterm"))?;
        check(out.contains("\u{1b}["), format!("{args:?} has no colours"))?;
    }
    Ok(())
}

fn existing(folder: &Path) -> Result<(), Failed> {
    let file = folder.join("there.jsonl.zst");
    fs::write(&file, "precious")?;
    let (_, said) = ends(1, &["-r", text(incident()), "-o", "none", "-w", text(&file)])?;
    check(
        said.contains("there.jsonl.zst") && said.contains("try: another name"),
        said,
    )?;
    check(fs::read(&file)? == b"precious", "untouched")?;
    // The same of what rotation would have to rename.
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
    let (_, said) = ends(1, &args)?;
    check(said.contains("new.jsonl.zst.1") && !new.exists(), said)
}

fn links(folder: &Path) -> Result<(), Failed> {
    let (target, link) = (folder.join("target"), folder.join("link.jsonl.zst"));
    for exists in [false, true] {
        if exists {
            fs::write(&target, "precious")?;
        }
        _ = fs::remove_file(&link);
        symlink(&target, &link)?;
        ends(1, &["-r", text(incident()), "-o", "none", "-w", text(&link)])?;
        check(target.exists() == exists, "nothing is made through the link")?;
    }
    check(fs::read(&target)? == b"precious", "nothing is written through the link")
}

fn rotation(folder: &Path) -> Result<(), Failed> {
    let events = "open,update,close";
    let whole = folder.join("whole.jsonl.zst");
    let write = ["-r", text(incident()), "-o", "none", "-w", text(&whole), "--rotate"];
    ends(0, &[&write[..], &["1M,3"]].concat())?;
    let (told, _) = ends(0, &["-r", text(&whole), "-o", "json", "--events", events])?;
    check(told == all_json()?, "small enough for one file")?;
    check(!folder.join("whole.jsonl.zst.1").exists(), "one file")
}

/// Each file is small and can be read alone; together they have every record once.
fn rotated_parts(folder: &Path) -> Result<(), Failed> {
    let events = ["-o", "json", "--events", "open,update,close"];
    let part = folder.join("parts.jsonl");
    ends(
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
        check(fs::metadata(part)?.len() <= 200_000, "no larger than asked for")?;
        let (told, said) = ends(0, &[&["-r", text(part)], &events[..]].concat())?;
        let is_newest = part == &parts[0];
        check(said.contains("older part of a rotated capture") != is_newest, said)?;
        closes += told.lines().filter(|line| line.contains(r#""event":"close""#)).count() as u64;
        reads.extend(["-r", text(part)]);
    }
    assert_eq!(closes, sum(&all_json()?, "closes")?);
    let (told, _) = ends(0, &[&reads[..], &events[..]].concat())?;
    let conns = |json: &str| -> Vec<String> {
        let is_conn = |line: &&str| line.contains(r#""type":"conn""#);
        json.lines().filter(is_conn).map(str::to_owned).collect()
    };
    check(conns(&told) == conns(&all_json()?), "every record once, in its order")
}

fn cut_off(folder: &Path) -> Result<(), Failed> {
    let bytes = fs::read(incident())?;
    let all = all_json()?;
    let file = folder.join("cut.jsonl.zst");
    let mut before = 0;
    let lengths = (0..bytes.len())
        .step_by(bytes.len() / 60)
        .chain(bytes.len() - 70..bytes.len());
    for length in lengths {
        fs::write(&file, &bytes[..length])?;
        let (told, said) = ends(1, &["-r", text(&file), "-o", "json", "--events", "open,update,close"])?;
        check(said.contains("cut.jsonl.zst"), format!("{length}: {said}"))?;
        let conns = told.lines().filter(|line| line.contains(r#""type":"conn""#));
        let expected = all.lines().filter(|line| line.contains(r#""type":"conn""#));
        let count = conns.clone().count();
        check(
            conns.eq(expected.take(count)) && count >= before,
            format!("{length}: a beginning"),
        )?;
        before = count;
    }
    check(before > 600, format!("{before} records of the longest beginning"))
}

fn flipped(folder: &Path) -> Result<(), Failed> {
    let bytes = fs::read(incident())?;
    let all = all_json()?;
    let sound: std::collections::HashSet<_> = all.lines().collect();
    let file = folder.join("flipped.jsonl.zst");
    let places = (0..200).chain((200..bytes.len()).step_by(bytes.len() / 60));
    let mut most = 0;
    for at in places {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&file, &damaged)?;
        let output = run(&["-r", text(&file), "-o", "json", "--events", "open,update,close"])?;
        let (told, said) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        // Some bits of a frame's header mean nothing.
        let is_whole = output.status.success() && told == all;
        let is_reported = output.status.code() == Some(1) && said.contains("flipped.jsonl.zst");
        check(is_whole || is_reported, format!("{at}: {said}"))?;
        let conns = told.lines().filter(|line| line.contains(r#""type":"conn""#));
        check(
            conns.clone().all(|line| sound.contains(line)),
            format!("{at}: no wrong record"),
        )?;
        most = most.max(conns.count());
    }
    check(most > 600, format!("at most {most} records beside the damage"))
}

fn foreign(folder: &Path) -> Result<(), Failed> {
    let file = folder.join("foreign");
    let cases: [(&[u8], &str); 7] = [
        (b"", "not a capture: no line of the file is a record"),
        (b"{\"type\":\"conn\"}\n", "line 1: skipped: missing field"),
        (
            b"{\"type\":\"header\",\"v\":2}\n",
            "line 1: skipped: version 2 is not supported",
        ),
        (b"accesslog: 2024\n", "line 1: skipped: not a line of kmesh-trace"),
        (b"\x1f\x8b\x08\0", "cut off"),
        (&[0; 100_000], "cut off"),
        // A frame that wants a window of two terabytes.
        (b"\x28\xb5\x2f\xfd\x00\xff\x00\x00\x00", "damaged at byte 0"),
    ];
    for (bytes, part) in cases {
        fs::write(&file, bytes)?;
        // Whatever a file claims, memory stays bounded.
        let limited = Command::new("sh")
            .args(["-c", "ulimit -v 262144; exec \"$0\" -r \"$1\" -o json"])
            .args([env!("CARGO_BIN_EXE_kmesh-trace"), text(&file)])
            .output()?;
        let said = String::from_utf8(limited.stderr)?;
        check(
            limited.status.code() == Some(1) && said.contains(part) && said.contains("foreign"),
            format!("{part}: {}: {said}", limited.status),
        )?;
        check(!String::from_utf8(limited.stdout)?.contains(r#""conn""#), "no record")?;
    }
    let (_, said) = ends(1, &["-r", text(&folder.join("absent.jsonl"))])?;
    check(said.contains("absent.jsonl") && said.contains("No such file"), said)?;
    let (_, said) = ends(1, &["-r", text(folder)])?;
    check(said.contains("directory"), said)
}

/// Returns what a program prints of a file.
fn printed(program: &str, args: &[&str]) -> Result<Vec<u8>, Failed> {
    let output = Command::new(program).args(args).output()?;
    check(
        output.status.success(),
        format!("{program} {args:?}: {}", output.status),
    )?;
    Ok(output.stdout)
}

/// The name decides how a capture is written; gzip decompresses one of its names, and any name is read.
fn compressions(folder: &Path) -> Result<(), Failed> {
    let events = ["-o", "none", "--events", "open,update,close"];
    let copies = ["copy.jsonl", "copy.jsonl.gz", "copy.jsonl.zst"].map(|name| folder.join(name));
    for copy in &copies {
        ends(0, &[&["-r", text(incident()), "-w", text(copy)], &events[..]].concat())?;
    }
    let plain = fs::read(&copies[0])?;
    check(printed("gzip", &["-dc", text(&copies[1])])? == plain, "gzip reads it")?;
    let renamed = folder.join("no-name-that-says-anything");
    for copy in &copies {
        fs::copy(copy, &renamed)?;
        let (told, _) = ends(
            0,
            &["-r", text(&renamed), "-o", "json", "--events", "open,update,close"],
        )?;
        check(told == all_json()?, format!("{} by content", copy.display()))?;
    }
    Ok(())
}

/// The halves of a capture, in the wrong order, give all records in the order of time, and one summary.
fn merged(folder: &Path) -> Result<(), Failed> {
    let all = all_json()?;
    let conns: Vec<_> = all.lines().filter(|line| line.contains(r#""type":"conn""#)).collect();
    let halves = ["odd.jsonl", "even.jsonl"].map(|name| folder.join(name));
    for (index, half) in halves.iter().enumerate() {
        let lines: Vec<_> = conns.iter().skip(index).step_by(2).copied().collect();
        fs::write(half, lines.join("\n"))?;
    }
    let args = [
        "-r",
        text(&halves[1]),
        "-r",
        text(&halves[0]),
        "-o",
        "json",
        "--events",
        "open,update,close",
    ];
    let (told, _) = ends(0, &args)?;
    let (summary, merged) = {
        let mut lines: Vec<_> = told.lines().collect();
        (lines.pop().ok_or("no summary")?, lines)
    };
    let times = |lines: &[&str]| -> Result<Vec<String>, Failed> {
        let time = |line: &&str| Ok(serde_json::from_str::<Value>(line)?["time"].to_string());
        lines.iter().map(time).collect()
    };
    check(times(&merged)? == times(&conns)?, "in the order of time")?;
    let closes = conns.iter().filter(|line| line.contains(r#""event":"close""#)).count() as u64;
    let summary: Value = serde_json::from_str(summary)?;
    assert_eq!(
        (&summary["closes"], &summary["delivered"]),
        (&closes.into(), &closes.into())
    );
    Ok(())
}

fn time_range(_: &Path) -> Result<(), Failed> {
    let (json, _) = ends(0, &["-r", text(incident()), "-o", "json"])?;
    let times: Vec<String> = json
        .lines()
        .filter(|line| line.contains(r#""type":"conn""#))
        .map(|line| {
            Ok(serde_json::from_str::<Value>(line)?["time"]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        })
        .collect::<Result<_, Failed>>()?;
    let (first, last) = (&times[20], &times[30]);
    let args = ["-r", text(incident()), "-o", "json", "--since", first, "--until", last];
    let (part, _) = ends(0, &args)?;
    let expected = times.iter().filter(|time| *time >= first && *time <= last).count() as u64;
    assert_eq!(sum(&part, "delivered")?, expected);
    // Both ends of the capture's last second.
    let (end, _) = ends(0, &["-r", text(incident()), "-o", "json", "--since", "-1s"])?;
    let delivered = sum(&end, "delivered")?;
    check(0 < delivered && delivered < times.len() as u64 / 2, end)?;
    check(sum(&json, "closes")? >= delivered, "a part")?;
    for (args, part) in [
        (
            &["-r", text(incident()), "--since", "yesterday"][..],
            "2026-01-02T03:04:05Z",
        ),
        (&["--since", "-5m"], "--read"),
    ] {
        let (_, said) = ends(2, args)?;
        check(said.contains(part), said)?;
    }
    // The end of a pipe is unknown.
    let (_, said) = ends(1, &["-r", "-", "--since", "-5m"])?;
    check(said.contains("standard input") && said.contains("--since"), said)
}

/// Output that was saved is a capture without a header, with foreign lines between its own.
fn saved_output(folder: &Path) -> Result<(), Failed> {
    let (json, _) = ends(0, &["-r", text(incident()), "-o", "json"])?;
    let file = folder.join("saved.jsonl");
    fs::write(&file, &json)?;
    let (told, said) = ends(0, &["-r", text(&file), "-o", "json"])?;
    // The sink's summary names the tracer of the header, and this file has none.
    let conns = |json: &str| {
        json.lines()
            .filter(|line| line.contains("conn"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    check(conns(&told) == conns(&json) && said.is_empty(), said)?;
    assert_eq!(sum(&told, "delivered")?, sum(&json, "delivered")?);
    let mut lines: Vec<_> = json.lines().collect();
    lines.insert(3, "{\"level\":\"info\"}");
    lines.insert(5, "");
    fs::write(&file, lines.join("\n") + "\n")?;
    let (told, said) = ends(1, &["-r", text(&file), "-o", "json"])?;
    check(conns(&told) == conns(&json), "the sound lines")?;
    check(
        said.contains("line 4: skipped") && said.contains("line 6: skipped"),
        said,
    )
}

fn full_disk(_: &Path) -> Result<(), Failed> {
    // Where every write fails so, and nothing can be made but through what is open already.
    let mut full = tool(&["-r", text(incident()), "-o", "none", "-w", "-"])
        .stdout(File::options().write(true).open("/dev/full")?)
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    std::io::Read::read_to_string(&mut full.stderr.take().ok_or("no pipe")?, &mut said)?;
    check(full.wait()?.code() == Some(1) && said.contains("No space left"), said)
}
