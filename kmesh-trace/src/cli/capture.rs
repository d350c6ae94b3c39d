//! The flags that write and replay captures.

use std::ffi::OsString;

use clap::Args;

use crate::capture::Rotation;
use crate::config::TimeBound;

/// Captures, as they are typed.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Captures")]
pub struct Capture {
    /// Record every event that passes the filters to a new file (-: standard output)
    ///
    /// The file has the lines of -o json, with opens, updates and names, whatever --output and --events print: zstdcat and jq
    /// read it, and --read replays it. The name decides the compression: .zst zstd, .gz gzip, anything else none. A tracer
    /// that is killed loses at most its last second. Only the owner can read the file. A file that exists is refused, and a
    /// link is never followed. With - nothing else may go to standard output: add -o none.
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<OsString>,

    /// Replay a capture or the saved output of -o json (-: standard input)
    ///
    /// Works on any machine, without privileges, with any output and any filter. Repeat the flag to merge captures by time.
    /// The compression is found by content. --duration and --count count the times and records of the captures, and
    /// --pods-file adds names. Damaged lines are reported and skipped, and the exit status is 1 then.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["buffer", "cri", "kubelet", "kubeconfig"])]
    pub read: Vec<OsString>,

    /// With --read: replay only what happened at TIME or later
    ///
    /// TIME is a time such as 2026-01-02T03:04:05Z, or -5m for five minutes before the end of the captures.
    #[arg(long, value_name = "TIME", requires = "read", allow_hyphen_values = true)]
    pub since: Option<TimeBound>,

    /// With --read: replay only what happened at TIME or before
    ///
    /// TIME is as for --since.
    #[arg(long, value_name = "TIME", requires = "read", allow_hyphen_values = true)]
    pub until: Option<TimeBound>,

    /// Go on in a new file after SIZE, and keep the newest N
    ///
    /// FILE is the newest, FILE.1 the one before, and so on; the oldest is removed. Without N there are ten. Each file can be
    /// read alone. If a new file cannot be made, a warning says why, and the capture goes on in the file that it has.
    #[arg(long, value_name = "SIZE[,N]", requires = "write")]
    pub rotate: Option<Rotation>,
}
