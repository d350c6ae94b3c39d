//! Captures that are written to pipes and terminals, or read from them.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use libtest_mimic::Failed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{ALL_EVENTS, all_json, check, incident, text, tool};

pub fn capture_through_a_pipe(_: &Path) -> Result<(), Failed> {
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
    let pipe = writer.stdout.take().ok_or("no pipe")?;
    let reader = tool(&[&["-r", "-"], &ALL_EVENTS[..]].concat()).stdin(pipe).output()?;
    check(writer.wait()?.success() && reader.status.success(), "both succeed")?;
    check(reader.stdout == all_json()?.as_bytes(), "the replay is the same")
}

/// Both ends of a pipe may have O_NONBLOCK, for example in a task runner. The test reads standard output only when the
/// pipe is full.
pub fn full_nonblocking_pipe_is_waited_for(_: &Path) -> Result<(), Failed> {
    let expected = all_json()?;
    let (mut reader, writer) = std::io::pipe()?;
    ioctl_fionbio(&writer, true)?;
    let full = writer.try_clone()?;
    let is_full = || {
        let ready = poll(&mut [PollFd::new(&full, PollFlags::OUT)], Some(&Timespec::default()));
        ready.is_ok_and(|ready| ready == 0)
    };
    let mut child = tool(&[&["-r", "-"], &ALL_EVENTS[..]].concat())
        .stdin({
            // Standard input is such a pipe, too, and gets the capture in small parts.
            let (input, mut output) = std::io::pipe()?;
            ioctl_fionbio(&input, true)?;
            let capture = fs::read(incident())?;
            std::thread::spawn(move || capture.chunks(999).try_for_each(|part| output.write_all(part)));
            input
        })
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_full() && child.try_wait()?.is_none() {
        check(Instant::now() < deadline, "timeout: the pipe is not full")?;
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(full);
    let mut out = String::new();
    reader.read_to_string(&mut out)?;
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8(output.stderr)?;
    check(
        output.status.success() && stderr.is_empty(),
        format!("{}: {stderr}", output.status),
    )?;
    check(out == expected, format!("{} bytes of {}", out.len(), expected.len()))
}

/// Runs the tool on a terminal with this TERM, and returns its output.
fn on_terminal(args: &[&str], term: Option<&str>) -> Result<String, Failed> {
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
    // Closes the descriptors of the terminal, so that reading ends with the tool.
    drop(command);
    let mut out = Vec::new();
    // A terminal ends with an error.
    _ = File::from(terminal).read_to_end(&mut out);
    check(child.wait()?.success(), format!("{args:?} {term:?}"))?;
    Ok(String::from_utf8(out)?)
}

pub fn dumb_terminal_gets_no_escape_sequences(_: &Path) -> Result<(), Failed> {
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
        check(out.contains("\u{1b}["), format!("{args:?} has no colors"))?;
    }
    Ok(())
}
