//! `--read` and `--write` without root: the real tool on a real capture, whole, damaged, rotated, through pipes.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

/// Gets a folder of its own.
type Case = fn(&Path) -> Result<(), Failed>;

const TABLE: [(&str, Case); 15] = [
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
    ("a file that is cut off anywhere", cut_off),
    ("a flipped bit anywhere", flipped),
    ("what is no capture", foreign),
    ("a full disk", full_disk),
];

/// A trial a row.
pub fn trials() -> Vec<Trial> {
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
        .collect()
}

fn incident() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.kmt"))
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
    let copy = folder.join("copy.kmt");
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
    let part = folder.join("part.kmt");
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
    let file = folder.join("there.kmt");
    fs::write(&file, "precious")?;
    let (_, said) = ends(1, &["-r", text(incident()), "-o", "none", "-w", text(&file)])?;
    check(said.contains("there.kmt") && said.contains("try: another name"), said)?;
    check(fs::read(&file)? == b"precious", "untouched")?;
    // The same of what rotation would have to rename.
    fs::rename(&file, folder.join("new.kmt.1"))?;
    let new = folder.join("new.kmt");
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
    check(said.contains("new.kmt.1") && !new.exists(), said)
}

fn links(folder: &Path) -> Result<(), Failed> {
    let (target, link) = (folder.join("target"), folder.join("link.kmt"));
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
    let whole = folder.join("whole.kmt");
    let args = [
        "-r",
        text(incident()),
        "-o",
        "none",
        "--events",
        events,
        "-w",
        text(&whole),
        "--rotate",
        "64Ki,3",
    ];
    ends(0, &args)?;
    let (told, _) = ends(0, &["-r", text(&whole), "-o", "json", "--events", events])?;
    check(told == all_json()?, "small enough for one file")?;
    check(!folder.join("whole.kmt.1").exists(), "one file")
}

fn cut_off(folder: &Path) -> Result<(), Failed> {
    let bytes = fs::read(incident())?;
    let all = all_json()?;
    let file = folder.join("cut.kmt");
    let mut before = 0;
    let lengths = (0..bytes.len())
        .step_by(bytes.len() / 60)
        .chain(bytes.len() - 70..bytes.len());
    for length in lengths {
        fs::write(&file, &bytes[..length])?;
        let (told, said) = ends(1, &["-r", text(&file), "-o", "json", "--events", "open,update,close"])?;
        check(said.contains("cut.kmt"), format!("{length}: {said}"))?;
        let conns = told.lines().filter(|line| line.contains(r#""type":"conn""#));
        let expected = all.lines().filter(|line| line.contains(r#""type":"conn""#));
        let count = conns.clone().count();
        check(
            conns.eq(expected.take(count)) && count >= before,
            format!("{length}: a beginning"),
        )?;
        before = count;
    }
    // The last length lacks one byte, so it has nearly all blocks.
    check(before > 100, format!("{before} records of the longest beginning"))
}

fn flipped(folder: &Path) -> Result<(), Failed> {
    let bytes = fs::read(incident())?;
    let all = all_json()?;
    let sound: std::collections::HashSet<_> = all.lines().collect();
    let file = folder.join("flipped.kmt");
    let places = (0..200).chain((200..bytes.len()).step_by(bytes.len() / 60));
    let mut most = 0;
    for at in places {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&file, &damaged)?;
        let (told, said) = ends(1, &["-r", text(&file), "-o", "json", "--events", "open,update,close"])?;
        check(said.contains("flipped.kmt"), format!("{at}: {said}"))?;
        let conns = told.lines().filter(|line| line.contains(r#""type":"conn""#));
        check(
            conns.clone().all(|line| sound.contains(line)),
            format!("{at}: no wrong record"),
        )?;
        most = most.max(conns.count());
    }
    check(most > 100, format!("at most {most} records beside the damage"))
}

fn foreign(folder: &Path) -> Result<(), Failed> {
    let file = folder.join("foreign.kmt");
    let mut newer = fs::read(incident())?;
    newer[8] = 9;
    let cases: [(&[u8], &str); 6] = [
        (b"", "empty"),
        (b"{\"type\":\"conn\"}\n", "JSON"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (&[0; 100_000], "no capture"),
        (b"\x89KMT\r\n", "damaged"),
        (&newer, "format 9"),
    ];
    for (bytes, part) in cases {
        fs::write(&file, bytes)?;
        let (out, said) = ends(1, &["-r", text(&file)])?;
        check(
            out.is_empty() && said.contains(part) && said.contains("foreign.kmt"),
            said,
        )?;
    }
    let (_, said) = ends(1, &["-r", text(&folder.join("absent.kmt"))])?;
    check(said.contains("absent.kmt") && said.contains("No such file"), said)?;
    let (_, said) = ends(1, &["-r", text(folder)])?;
    check(said.contains("directory"), said)?;
    // Whatever a file claims, memory stays bounded: here it is held to an address space of 256 MiB.
    let mut huge = fs::read(incident())?;
    let first = 16 + usize::from(u16::from_le_bytes([huge[10], huge[11]]));
    huge[first + 8..first + 16].fill(0xff);
    fs::write(&file, huge)?;
    let limited = Command::new("sh")
        .args(["-c", "ulimit -v 262144; exec \"$0\" -r \"$1\" -o none"])
        .args([env!("CARGO_BIN_EXE_kmesh-trace"), text(&file)])
        .output()?;
    check(
        limited.status.code() == Some(1),
        String::from_utf8_lossy(&limited.stderr),
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
