//! Several streams, pipes among them, in one view.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

use super::{ALL_EVENTS, all_json, check, conns, is_close, run_with_status, text, tool};

/// The time after which a test fails.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum time that a live stream may hold the others back.
const MAX_HOLD: Duration = Duration::from_secs(2);

/// Makes named pipes in `folder`.
fn pipes<const N: usize>(folder: &Path, names: [&str; N]) -> Result<[PathBuf; N], Failed> {
    let paths = names.map(|name| folder.join(name));
    for path in &paths {
        mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    }
    Ok(paths)
}

/// Returns `line` as if it were of another node.
fn of_node(line: &str, node: &str) -> Result<String, Failed> {
    let own: Value = serde_json::from_str(line)?;
    let own = own["node"].as_str().ok_or("no node")?;
    Ok(line.replace(&format!("\"node\":\"{own}\""), &format!("\"node\":\"{node}\"")))
}

fn summary_of(node: &str, closes: usize) -> Result<String, Failed> {
    let all = all_json()?;
    let mut summary: Value = serde_json::from_str(all.lines().last().ok_or("no line")?)?;
    summary["node"] = node.into();
    for (member, number) in [
        ("closes", closes),
        ("delivered", closes),
        ("filtered", 0),
        ("lost_records", 0),
    ] {
        summary[member] = number.into();
    }
    Ok(summary.to_string())
}

/// A replay of pipes whose output is read line by line.
struct Replay {
    child: Child,
    lines: Receiver<String>,
}

impl Replay {
    fn start(args: &[&str]) -> Result<Self, Failed> {
        let mut child = tool(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (sender, lines) = channel();
        let out: BufReader<ChildStdout> = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { child, lines })
    }

    fn line(&self) -> Result<String, Failed> {
        Ok(self.lines.recv_timeout(TIMEOUT)?)
    }

    /// Waits for the end. Returns the exit status, the rest of the output and standard error.
    fn end(self) -> Result<(i32, Vec<String>, String), Failed> {
        let rest = self.lines.iter().collect();
        let output = self.child.wait_with_output()?;
        let stderr = String::from_utf8(output.stderr)?;
        Ok((output.status.code().ok_or("killed")?, rest, stderr))
    }
}

/// Writes `lines` to a pipe, in a thread, because the pipe may be full.
fn write(path: &Path, lines: Vec<String>) -> thread::JoinHandle<std::io::Result<()>> {
    let path = path.to_owned();
    thread::spawn(move || {
        let mut pipe = File::options().write(true).open(path)?;
        lines.iter().try_for_each(|line| writeln!(pipe, "{line}"))
    })
}

/// The records of two pipes and a file come in the order of time, and each stream has a summary.
pub fn live_streams_are_merged_by_time(folder: &Path) -> Result<(), Failed> {
    let all = all_json()?;
    let nodes = ["a", "b", "c"];
    let mut streams = nodes.map(|_| Vec::new());
    let mut expected = Vec::new();
    for (index, line) in conns(&all).into_iter().enumerate() {
        let line = of_node(line, nodes[index % 3])?;
        streams[index % 3].push(line.clone());
        expected.push(line);
    }
    let mut closes = Vec::new();
    for (lines, node) in streams.iter_mut().zip(nodes) {
        closes.push(lines.iter().filter(|line| is_close(&&***line)).count());
        lines.push(summary_of(node, closes[closes.len() - 1])?);
    }
    let [a, b] = pipes(folder, ["a.pipe", "b.pipe"])?;
    let file = folder.join("c.jsonl");
    let [lines_a, lines_b, lines_c] = streams;
    fs::write(&file, lines_c.join("\n"))?;
    let args = ["-r", text(&a), "-r", text(&b), "-r", text(&file)];
    let replay = Replay::start(&[&args, &ALL_EVENTS[..]].concat())?;
    let writers = [write(&a, lines_a), write(&b, lines_b)];
    let (status, lines, stderr) = replay.end()?;
    for writer in writers {
        writer.join().map_err(|_| "the writer panicked")??;
    }
    check(status == 0 && stderr.is_empty(), format!("{status}: {stderr}"))?;
    check(lines[..expected.len()] == expected[..], "in the order of time")?;
    let summaries = lines[expected.len()..].iter().map(|line| serde_json::from_str(line));
    let summaries = summaries.collect::<Result<Vec<Value>, _>>()?;
    let found: Vec<_> = summaries
        .iter()
        .map(|summary| (summary["node"].as_str(), summary["delivered"].as_u64()))
        .collect();
    let sum: usize = closes.iter().sum();
    let each = nodes
        .iter()
        .zip(&closes)
        .map(|(node, count)| (Some(*node), Some(*count as u64)));
    let expected: Vec<_> = each.chain([(Some("a,b,c"), Some(sum as u64))]).collect();
    assert_eq!(found, expected);
    // The output is itself a stream, with one summary of all.
    let saved = folder.join("saved.jsonl");
    fs::write(&saved, lines.join("\n"))?;
    let (again, _) = run_with_status(0, &[&["-r", text(&saved)], &ALL_EVENTS[..]].concat())?;
    let same = |text: &str| -> Vec<String> { text.lines().take(lines.len() - 1).map(str::to_owned).collect() };
    check(same(&again) == same(&lines.join("\n")), "the same lines")?;
    check(super::summary_count(&again, "closes")? == sum as u64, again)
}

/// A stream that is silent holds the others back by at most two seconds. Its late line is printed at once, and counts.
pub fn silent_stream_holds_others_back_for_two_seconds(folder: &Path) -> Result<(), Failed> {
    let all = all_json()?;
    let lines: Vec<_> = conns(&all).into_iter().filter(is_close).take(12).collect();
    let [a, b] = pipes(folder, ["a.pipe", "b.pipe"])?;
    let args = ["-r", text(&a), "-r", text(&b), "-o", "json"];
    let replay = Replay::start(&args)?;
    let mut busy = File::options().write(true).open(&a)?;
    let mut silent = File::options().write(true).open(&b)?;
    let mut max = Duration::ZERO;
    for line in &lines[1..] {
        let written = Instant::now();
        writeln!(busy, "{}", of_node(line, "a")?)?;
        check(replay.line()? == of_node(line, "a")?, "the line")?;
        max = max.max(written.elapsed());
    }
    // The upper limit is far above what a busy machine adds.
    let limits = MAX_HOLD..MAX_HOLD + Duration::from_secs(8);
    check(limits.contains(&max), format!("held back for {max:?}"))?;
    // The time of this line is before the times of all others.
    writeln!(silent, "{}", of_node(lines[0], "b")?)?;
    let written = Instant::now();
    check(replay.line()? == of_node(lines[0], "b")?, "the late line")?;
    check(
        written.elapsed() < MAX_HOLD + Duration::from_secs(8),
        "the late line waits",
    )?;
    writeln!(busy, "{}", summary_of("a", 11)?)?;
    writeln!(silent, "{}", summary_of("b", 1)?)?;
    drop((busy, silent));
    let (status, rest, stderr) = replay.end()?;
    check(status == 0 && stderr.is_empty(), format!("{status}: {stderr}"))?;
    let counts: Vec<_> = rest
        .iter()
        .map(|line| super::summary_count(line, "delivered"))
        .collect::<Result<_, _>>()?;
    assert_eq!(counts, [11, 1, 12]);
    Ok(())
}

/// A stream that ends without a summary is reported once, the others go on, and the status is 1.
pub fn broken_stream_is_reported_and_others_go_on(folder: &Path) -> Result<(), Failed> {
    let all = all_json()?;
    let lines: Vec<_> = conns(&all).into_iter().filter(is_close).take(9).collect();
    let [a, b, c] = pipes(folder, ["a.pipe", "b.pipe", "c.pipe"])?;
    let args = ["-r", text(&a), "-r", text(&b), "-r", text(&c), "-o", "json"];
    let replay = Replay::start(&args)?;
    let [mut whole, mut ends, mut cut] = {
        let open = |path| File::options().write(true).open(path);
        [open(&a)?, open(&b)?, open(&c)?]
    };
    writeln!(ends, "{}", of_node(lines[0], "b")?)?;
    drop(ends);
    let line = of_node(lines[1], "c")?;
    write!(cut, "{line}\n{}", &line[..line.len() / 2])?;
    drop(cut);
    let mut printed = Vec::new();
    for line in &lines[2..] {
        writeln!(whole, "{}", of_node(line, "a")?)?;
        printed.push(replay.line()?);
    }
    writeln!(whole, "{}", summary_of("a", 7)?)?;
    drop(whole);
    let (status, rest, stderr) = replay.end()?;
    check(status == 1, format!("{status}: {stderr}"))?;
    printed.extend(rest);
    let count = printed.iter().filter(|line| is_close(&&***line)).count();
    check(count == 9, format!("{count} closes"))?;
    for part in [
        "node b: the stream ended: without a summary",
        "node c: the stream ended: in the middle of a line",
    ] {
        check(stderr.matches(part).count() == 1, format!("{part}: {stderr}"))?;
    }
    check(stderr.lines().count() == 2, stderr)?;
    let merged = printed.last().ok_or("no line")?;
    check(super::summary_count(merged, "delivered")? == 9, merged.clone())
}

/// Windows of live streams end without another record.
pub fn table_of_live_streams_shows_windows_as_they_end(folder: &Path) -> Result<(), Failed> {
    let all = all_json()?;
    let [a, b] = pipes(folder, ["a.pipe", "b.pipe"])?;
    let args = [
        "-r",
        text(&a),
        "-r",
        text(&b),
        "-o",
        "table",
        "--interval",
        "1s",
        "--by",
        "node",
    ];
    let replay = Replay::start(&args)?;
    let [mut one, mut two] = [
        File::options().write(true).open(&a)?,
        File::options().write(true).open(&b)?,
    ];
    let closes: Vec<_> = conns(&all).into_iter().filter(is_close).take(2).collect();
    writeln!(one, "{}", of_node(closes[0], "a")?)?;
    writeln!(two, "{}", of_node(closes[1], "b")?)?;
    // The pipes stay open, so only the progress of time can end the window.
    let mut block = vec![replay.line()?];
    while !block[block.len() - 1].is_empty() {
        block.push(replay.line()?);
    }
    check(block.len() >= 3, block.join("\n"))?;
    check(block[0].contains("a,b"), block.join("\n"))?;
    drop((one, two));
    check(replay.end()?.0 == 1, "both end without a summary")
}
