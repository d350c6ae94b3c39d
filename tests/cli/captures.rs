//! `--read` and `--write` without root: the real tool with a real capture.

mod damage;
mod files;
mod live;
mod streams;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

/// A test, which gets its own empty folder.
type Case = fn(&Path) -> Result<(), Failed>;

const CASES: [(&str, Case); 26] = [
    ("replay_prints_every_output", replay_prints_every_output),
    ("replay_filters_by_names", replay_filters_by_names),
    (
        "pods_file_in_kubectl_order_gives_names",
        pods_file_in_kubectl_order_gives_names,
    ),
    (
        "filters_and_limits_apply_to_a_replay",
        filters_and_limits_apply_to_a_replay,
    ),
    ("captures_are_merged_by_time", captures_are_merged_by_time),
    (
        "successive_captures_of_a_node_have_one_account",
        successive_captures_of_a_node_have_one_account,
    ),
    ("time_range_is_replayed", time_range_is_replayed),
    (
        "local_times_are_those_of_the_time_zone",
        local_times_are_those_of_the_time_zone,
    ),
    ("saved_json_output_is_replayed", saved_json_output_is_replayed),
    ("copy_replays_the_same", files::copy_replays_the_same),
    (
        "existing_file_is_not_overwritten",
        files::existing_file_is_not_overwritten,
    ),
    ("symbolic_link_is_not_followed", files::symbolic_link_is_not_followed),
    ("small_capture_is_not_rotated", files::small_capture_is_not_rotated),
    (
        "rotated_files_are_read_alone_and_together",
        files::rotated_files_are_read_alone_and_together,
    ),
    (
        "compression_is_detected_by_content",
        files::compression_is_detected_by_content,
    ),
    ("full_disk_is_an_error", files::full_disk_is_an_error),
    ("capture_through_a_pipe", streams::capture_through_a_pipe),
    (
        "full_nonblocking_pipe_is_waited_for",
        streams::full_nonblocking_pipe_is_waited_for,
    ),
    (
        "dumb_terminal_gets_no_escape_sequences",
        streams::dumb_terminal_gets_no_escape_sequences,
    ),
    ("live_streams_are_merged_by_time", live::live_streams_are_merged_by_time),
    (
        "silent_stream_holds_others_back_for_two_seconds",
        live::silent_stream_holds_others_back_for_two_seconds,
    ),
    (
        "broken_stream_is_reported_and_others_go_on",
        live::broken_stream_is_reported_and_others_go_on,
    ),
    (
        "table_of_live_streams_shows_windows_as_they_end",
        live::table_of_live_streams_shows_windows_as_they_end,
    ),
    (
        "cut_off_capture_replays_its_beginning",
        damage::cut_off_capture_replays_its_beginning,
    ),
    (
        "flipped_bit_costs_only_its_frame",
        damage::flipped_bit_costs_only_its_frame,
    ),
    (
        "foreign_files_are_rejected_with_a_reason",
        damage::foreign_files_are_rejected_with_a_reason,
    ),
];

pub fn trials() -> Vec<Trial> {
    let trial = |(name, run): (&'static str, Case)| {
        Trial::test(format!("captures::{name}"), move || {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("captures").join(name);
            _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(&folder)?;
            run(&folder)
        })
    };
    CASES.into_iter().map(trial).chain(files::readers()).collect()
}

const ALL_EVENTS: [&str; 4] = ["-o", "json", "--events", "open,update,close"];

fn incident() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.jsonl.zst"))
}

fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"));
    command.args(args).stdin(Stdio::null());
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(args: &[&str]) -> Result<Output, Failed> {
    Ok(tool(args).output()?)
}

/// Runs the tool, which must exit with this status. Returns standard output and standard error.
fn run_with_status(status: i32, args: &[&str]) -> Result<(String, String), Failed> {
    let output = run(args)?;
    let (out, stderr) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    if output.status.code() != Some(status) || stderr.contains("panicked") {
        return Err(format!("{args:?}: {}, stderr: {stderr}", output.status).into());
    }
    Ok((out, stderr))
}

/// Fails with this message if the condition is not met.
fn check(is_met: bool, message: impl Into<String>) -> Result<(), Failed> {
    if is_met {
        Ok(())
    } else {
        Err(Failed::from(message.into()))
    }
}

fn is_conn(line: &&str) -> bool {
    line.contains(r#""type":"conn""#)
}

fn is_close(line: &&str) -> bool {
    line.contains(r#""event":"close""#)
}

/// Returns the `conn` lines of JSON output.
fn conns(json: &str) -> Vec<&str> {
    json.lines().filter(is_conn).collect()
}

/// Replays the incident as JSON, with all events.
fn all_json() -> Result<String, Failed> {
    Ok(run_with_status(0, &[&["-r", text(incident())], &ALL_EVENTS[..]].concat())?.0)
}

/// Returns a number of the summary, which is the last line.
fn summary_count(json: &str, member: &str) -> Result<u64, Failed> {
    let last = json.lines().last().ok_or("no line")?;
    let summary: serde_json::Value = serde_json::from_str(last)?;
    check(summary["type"] == "summary", last)?;
    summary[member].as_u64().ok_or_else(|| last.into())
}

fn replay_prints_every_output(_: &Path) -> Result<(), Failed> {
    check(fs::metadata(incident())?.len() < 64 << 10, "the incident is small")?;
    let json = all_json()?;
    for line in json.lines() {
        serde_json::from_str::<Value>(line)?;
    }
    let closes = json.lines().filter(is_close).count();
    let (log, stderr) = run_with_status(0, &["-r", text(incident())])?;
    check(
        closes > 100 && log.lines().count() == closes,
        "a log line for each close",
    )?;
    check(log.lines().all(|line| line.starts_with("accesslog: ")), "log lines")?;
    check(stderr.contains("connections closed on"), stderr.clone())?;
    for outcome in ["refused", "reset_by_peer", "reset_by_local", "connect_aborted"] {
        check(log.contains(&format!("outcome={outcome}")), outcome)?;
    }
    let (none, stderr) = run_with_status(0, &["-r", text(incident()), "-o", "none", "-q"])?;
    check(none.is_empty() && stderr.is_empty(), stderr)
}

/// In the incident of `tests/data/incident.py` the database stops, and refuses later connections of the checkout.
fn replay_filters_by_names(_: &Path) -> Result<(), Failed> {
    let args = ["--to-workload", "database", "--outcome", "refused", "-o", "json"];
    let (out, _) = run_with_status(0, &[&["--read", text(incident())], &args[..]].concat())?;
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

/// kubectl writes the keys of YAML in alphabetical order, and the items of a typed list without their kind. The third
/// Service has the type ExternalName, with a selector that does not apply.
fn pods_file_in_kubectl_order_gives_names(folder: &Path) -> Result<(), Failed> {
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
        serde_json::json!({"metadata": {"name": "external", "namespace": "shop"}, "spec": {
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
    let (out, stderr) = run_with_status(0, &args)?;
    let values = out
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    let conns: Vec<_> = values.iter().filter(|value| value["type"] == "conn").collect();
    check(conns.len() > 10, format!("{out}{stderr}"))?;
    for conn in conns {
        check(
            conn["dst"]["pod"] == "database-0" && conn["service"]["name"] == "database",
            conn.to_string(),
        )?;
    }
    Ok(())
}

fn filters_and_limits_apply_to_a_replay(_: &Path) -> Result<(), Failed> {
    let file = incident();
    let all = all_json()?;
    let (refused, _) = run_with_status(0, &["-r", text(file), "-o", "json", "--outcome", "refused"])?;
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
        summary_count(&refused, "closes")? == summary_count(&all, "closes")?,
        "all closes are counted",
    )?;
    check(
        summary_count(&refused, "delivered")? + summary_count(&refused, "filtered")?
            == summary_count(&refused, "closes")?,
        "delivered and filtered add up",
    )?;
    let (first, _) = run_with_status(0, &["-r", text(file), "-o", "json", "--count", "3"])?;
    check(
        first.lines().count() == 4 && summary_count(&first, "delivered")? == 3,
        first,
    )?;
    let (early, _) = run_with_status(0, &["-r", text(file), "-o", "json", "--duration", "1s"])?;
    check(
        early.lines().count() > 3 && early.len() < all.len() / 2,
        "the duration is by the times of the records",
    )?;
    check(
        run_with_status(2, &["-r", text(file), "--buffer", "1M"])?
            .1
            .contains("--buffer"),
        "the error names the flag",
    )?;
    check(
        run_with_status(2, &["--rotate", "1M"])?.1.contains("--write"),
        "the error names the flag",
    )?;
    let (_, stderr) = run_with_status(2, &["-r", text(file), "-w", "-"])?;
    check(stderr.contains("-o none"), stderr)
}

/// Two halves of a capture, in the wrong order, replay all records in the order of time, a summary of each, and one of
/// all.
fn captures_are_merged_by_time(folder: &Path) -> Result<(), Failed> {
    let all = all_json()?;
    let conns = conns(&all);
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
    let (replayed, _) = run_with_status(0, &args)?;
    let (summary, merged) = {
        let mut lines: Vec<_> = replayed.lines().collect();
        let summaries = lines.split_off(lines.len().saturating_sub(3));
        (*summaries.last().ok_or("no summary")?, lines)
    };
    let times = |lines: &[&str]| -> Result<Vec<String>, Failed> {
        let time = |line: &&str| Ok(serde_json::from_str::<Value>(line)?["time"].to_string());
        lines.iter().map(time).collect()
    };
    check(times(&merged)? == times(&conns)?, "in the order of time")?;
    let closes = conns.iter().filter(|line| is_close(line)).count() as u64;
    let summary: Value = serde_json::from_str(summary)?;
    assert_eq!(
        (&summary["closes"], &summary["delivered"]),
        (&closes.into(), &closes.into())
    );
    Ok(())
}

/// Two captures of a node, one after the other: the merged run lasts from the start of the first one to the end of the
/// last one, and a connection that is open at both ends counts once.
fn successive_captures_of_a_node_have_one_account(folder: &Path) -> Result<(), Failed> {
    let lines = |day: u32, open: u32| {
        format!(
            "{{\"type\":\"header\",\"v\":1,\"time\":\"2026-01-0{day}T00:00:00Z\",\
             \"start\":\"2026-01-0{day}T00:00:00Z\",\"node\":\"vm\",\"kernel\":\"6.18\",\"version\":\"0.1.0\",\"part\":0,\"closes_before\":0}}\n\
             {{\"type\":\"summary\",\"v\":1,\"time\":\"2026-01-0{day}T00:00:12Z\",\"node\":\"vm\",\"kernel\":\"6.18\",\
             \"version\":\"0.1.0\",\"closes\":0,\"delivered\":0,\"filtered\":0,\"lost_records\":0,\"lost_at_most\":0,\
             \"reason\":null,\"after_limit\":0,\"unresolved\":0,\"open\":{open},\"elapsed_ns\":12000000000}}\n"
        )
    };
    let captures = ["monday.jsonl", "tuesday.jsonl"].map(|name| folder.join(name));
    fs::write(&captures[0], lines(5, 3))?;
    fs::write(&captures[1], lines(6, 2))?;
    // The order of the flags does not matter.
    for [first, second] in [[0, 1], [1, 0]] {
        let args = [
            "-r",
            text(&captures[first]),
            "-r",
            text(&captures[second]),
            "-o",
            "none",
        ];
        let (_, stderr) = run_with_status(0, &args)?;
        check(
            stderr.contains("closed on vm in 1day 12s") && stderr.contains("; 2 still open"),
            stderr,
        )?;
    }
    Ok(())
}

fn time_range_is_replayed(_: &Path) -> Result<(), Failed> {
    let (json, _) = run_with_status(0, &["-r", text(incident()), "-o", "json"])?;
    let times: Vec<String> = json
        .lines()
        .filter(is_conn)
        .map(|line| {
            Ok(serde_json::from_str::<Value>(line)?["time"]
                .as_str()
                .unwrap_or_default()
                .to_owned())
        })
        .collect::<Result<_, Failed>>()?;
    let (first, last) = (&times[20], &times[30]);
    let args = ["-r", text(incident()), "-o", "json", "--since", first, "--until", last];
    let (part, _) = run_with_status(0, &args)?;
    let expected = times.iter().filter(|time| *time >= first && *time <= last).count() as u64;
    assert_eq!(summary_count(&part, "delivered")?, expected);
    // The last second of the capture.
    let (end, _) = run_with_status(0, &["-r", text(incident()), "-o", "json", "--since", "-1s"])?;
    let delivered = summary_count(&end, "delivered")?;
    check(0 < delivered && delivered < times.len() as u64 / 2, end)?;
    check(summary_count(&json, "closes")? >= delivered, "a part of the closes")?;
    for (args, part) in [
        (
            &["-r", text(incident()), "--since", "yesterday"][..],
            "2026-01-02T03:04:05Z",
        ),
        (&["--since", "-5m"], "--read"),
    ] {
        let (_, stderr) = run_with_status(2, args)?;
        check(stderr.contains(part), stderr)?;
    }
    // The time of a pipe's last record is unknown.
    let (_, stderr) = run_with_status(1, &["-r", "-", "--since", "-5m"])?;
    check(stderr.contains("standard input") && stderr.contains("--since"), stderr)
}

/// `date` knows the time zone, too.
fn local_times_are_those_of_the_time_zone(_: &Path) -> Result<(), Failed> {
    // Five hours and 45 minutes ahead of UTC.
    const ZONE: &str = "NPT-5:45";
    let (json, _) = run_with_status(0, &["-r", text(incident()), "-o", "json", "--count", "1"])?;
    let record: Value = serde_json::from_str(conns(&json)[0])?;
    let time = record["time"].as_str().unwrap_or_default();
    for (output, format, prefix) in [
        ("short", "+%H:%M:%S.%3N", ""),
        ("log", "+%F %T.%N %z %z", "accesslog: "),
    ] {
        let date = Command::new("date")
            .env("TZ", ZONE)
            .args(["-d", time, format])
            .output()?;
        let expected = format!("{prefix}{} ", String::from_utf8(date.stdout)?.trim_end());
        let args = [
            "-r",
            text(incident()),
            "-o",
            output,
            "--count",
            "1",
            "--time-format",
            "local",
        ];
        let line = String::from_utf8(tool(&args).env("TZ", ZONE).output()?.stdout)?;
        check(line.starts_with(&expected), format!("{expected}: {line}"))?;
    }
    Ok(())
}

/// Saved JSON output is a capture without a header. Foreign lines in it are skipped.
fn saved_json_output_is_replayed(folder: &Path) -> Result<(), Failed> {
    let (json, _) = run_with_status(0, &["-r", text(incident()), "-o", "json"])?;
    let file = folder.join("saved.jsonl");
    fs::write(&file, &json)?;
    let (replayed, stderr) = run_with_status(0, &["-r", text(&file), "-o", "json"])?;
    // The summary has the node, the kernel and the version, although the file has no header.
    check(replayed == json && stderr.is_empty(), format!("{stderr}{replayed}"))?;
    let mut lines: Vec<_> = json.lines().collect();
    lines.insert(3, "{\"level\":\"info\"}");
    lines.insert(5, "");
    fs::write(&file, lines.join("\n") + "\n")?;
    let (replayed, stderr) = run_with_status(1, &["-r", text(&file), "-o", "json"])?;
    check(conns(&replayed) == conns(&json), "all valid lines")?;
    check(
        stderr.contains("line 4: skipped") && stderr.contains("line 6: skipped"),
        stderr,
    )
}
