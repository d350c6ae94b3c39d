//! The two processes in a pod of `nodes`: one waits, the other one traces as long as the command that started it is
//! there.
//!
//! A container runtime does not end a process when its `exec` ends. The tracer therefore reads its standard input: the
//! command sends a heartbeat every five seconds.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::exit;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process};
use rustix::stdio::{stderr, stdin};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::exit::Exit;
use super::live;
use crate::cluster::protocol::{END, STARTED};
use crate::config::Config;

/// The longest time without a heartbeat.
const HEARTBEAT_TIMEOUT: Timespec = Timespec { tv_sec: 15, tv_nsec: 0 };
/// The time that the tracer has to print its last records. It waits forever if nobody reads them.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until a signal comes.
pub fn wait() -> Result<Exit> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot listen for signals")?;
    signals.forever().next();
    Ok(Exit::Ok)
}

/// Traces as [`live::run`] does, until standard input ends, or brings no heartbeat for 15 seconds.
pub fn run(config: &Config) -> Result<Exit> {
    live::run_with(config, || {
        // This thread starts only now, so that it has no privileges that the rest of the run does not need.
        let heartbeat = thread::Builder::new().name("heartbeat".to_owned());
        if heartbeat.spawn(end_with_input).is_err() {
            exit(Exit::Failed as i32);
        }
        _ = writeln!(io::stderr(), "{STARTED}");
    })
}

/// Ends the trace when the command asks for it or is gone.
fn end_with_input() {
    if let Err(why) = wait_for_end() {
        print_without_waiting(&format!("kmesh-trace: {why}\n"));
        exit(Exit::Failed as i32);
    }
    // The session ends in order, as with `kill`.
    _ = kill_process(getpid(), Signal::TERM);
    thread::sleep(END_TIMEOUT);
    exit(Exit::Ok as i32);
}

/// Prints a message on standard error, unless the pipe is full: nobody may read it any more.
fn print_without_waiting(message: &str) {
    let error = stderr();
    let mut polled = [PollFd::from_borrowed_fd(error.as_fd(), PollFlags::OUT)];
    if poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready == 1) {
        // A pipe that is ready has room for a short message. Not through `io::stderr()`, which a thread that waits for
        // the reader may have locked.
        _ = rustix::io::write(error, message.as_bytes());
    }
}

/// Waits until the command asks the trace to end. An error is why the trace must end without that: the command is gone.
fn wait_for_end() -> Result<(), &'static str> {
    let mut buffer = [0; 64];
    loop {
        let input = stdin();
        let mut polled = [PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)];
        match poll(&mut polled, Some(&HEARTBEAT_TIMEOUT)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) => return Err("the command has sent no heartbeat for 15 s"),
            Err(_) => return Err("standard input cannot be read"),
            Ok(_) => {}
        }
        match rustix::io::read(input, &mut buffer).map_err(io::Error::from) {
            Ok(read) if buffer[..read].contains(&END) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // With version 5 of the protocol, the command may close standard input instead.
            Ok(0) | Err(_) => return Err("standard input ended"),
            Ok(_) => {}
        }
    }
}
