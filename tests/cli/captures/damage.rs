//! Captures that are cut off or damaged, and files that are no captures.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::Failed;

use super::{ALL_EVENTS, all_json, check, incident, is_conn, run, run_with_status, text};

/// At about 130 lengths, the replay has the records of the beginning, and reports that the file is cut off.
pub fn cut_off_capture_replays_its_beginning(folder: &Path) -> Result<(), Failed> {
    let bytes = fs::read(incident())?;
    let all = all_json()?;
    let file = folder.join("cut.jsonl.zst");
    let mut before = 0;
    let lengths = (0..bytes.len())
        .step_by(bytes.len() / 60)
        .chain(bytes.len() - 70..bytes.len());
    for length in lengths {
        fs::write(&file, &bytes[..length])?;
        let (replayed, stderr) = run_with_status(1, &[&["-r", text(&file)], &ALL_EVENTS[..]].concat())?;
        check(stderr.contains("cut.jsonl.zst"), format!("{length}: {stderr}"))?;
        let conns = replayed.lines().filter(is_conn);
        let expected = all.lines().filter(is_conn);
        let count = conns.clone().count();
        check(
            conns.eq(expected.take(count)) && count >= before,
            format!("{length}: not the beginning"),
        )?;
        before = count;
    }
    check(before > 600, format!("{before} records of the longest file"))
}

/// A damaged frame is reported and skipped, wherever the bit is. No record is wrong.
pub fn flipped_bit_costs_only_its_frame(folder: &Path) -> Result<(), Failed> {
    let bytes = fs::read(incident())?;
    let all = all_json()?;
    let valid: HashSet<_> = all.lines().collect();
    let file = folder.join("flipped.jsonl.zst");
    let offsets = (0..200).chain((200..bytes.len()).step_by(bytes.len() / 60));
    let mut max = 0;
    for at in offsets {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&file, &damaged)?;
        let output = run(&[&["-r", text(&file)], &ALL_EVENTS[..]].concat())?;
        let (replayed, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
        // Some bits of a frame's header have no meaning.
        let is_whole = output.status.success() && replayed == all;
        let is_reported = output.status.code() == Some(1) && stderr.contains("flipped.jsonl.zst");
        check(is_whole || is_reported, format!("{at}: {stderr}"))?;
        let conns = replayed.lines().filter(is_conn);
        check(
            conns.clone().all(|line| valid.contains(line)),
            format!("{at}: a wrong record"),
        )?;
        max = max.max(conns.count());
    }
    check(max > 600, format!("at most {max} records of a damaged file"))
}

pub fn foreign_files_are_rejected_with_a_reason(folder: &Path) -> Result<(), Failed> {
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
        // A frame with a window of two terabytes.
        (b"\x28\xb5\x2f\xfd\x00\xff\x00\x00\x00", "damaged at byte 0"),
    ];
    for (bytes, part) in cases {
        fs::write(&file, bytes)?;
        // The limit shows that memory does not depend on what a file claims.
        let limited = Command::new("sh")
            .args(["-c", "ulimit -v 262144; exec \"$0\" -r \"$1\" -o json"])
            .args([env!("CARGO_BIN_EXE_kmesh-trace"), text(&file)])
            .output()?;
        let stderr = String::from_utf8(limited.stderr)?;
        check(
            limited.status.code() == Some(1) && stderr.contains(part) && stderr.contains("foreign"),
            format!("{part}: {}: {stderr}", limited.status),
        )?;
        check(!String::from_utf8(limited.stdout)?.contains(r#""conn""#), "no record")?;
    }
    let (_, stderr) = run_with_status(1, &["-r", text(&folder.join("absent.jsonl"))])?;
    check(
        stderr.contains("absent.jsonl") && stderr.contains("No such file"),
        stderr,
    )?;
    let (_, stderr) = run_with_status(1, &["-r", text(folder)])?;
    check(stderr.contains("directory"), stderr)
}
