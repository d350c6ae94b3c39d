//! The flags that keep what is told, and tell it again.

use std::ffi::OsString;

use clap::Args;

use crate::capture::Rotation;

/// Captures, as they are typed.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Captures")]
pub struct Capture {
    /// Keep all that is told in a new file (-: standard output)
    ///
    /// Names included, whatever --output prints. A tracer that is killed loses no more than its last second. The file is
    /// readable by its owner alone; one that exists is refused, and a link is never followed. With - nothing else may go to
    /// standard output: add -o none.
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<OsString>,

    /// Tell again what --write kept (-: standard input)
    ///
    /// On any machine, without privileges, in any output and through any filter. --duration and --count go by the times and
    /// records of the capture. What it left unnamed --pods-file can name. What is damaged is said and skipped, and the exit
    /// status is 1 then.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["buffer", "cri", "kubelet", "kubeconfig"])]
    pub read: Option<OsString>,

    /// Go on in a new file after SIZE, and keep the newest N
    ///
    /// FILE is the newest, FILE.1 the one before, and so on; the oldest is removed. Without N there are ten. Each file can be
    /// read alone. If a new file cannot be made, a warning says why, and the capture goes on in the file that it has.
    #[arg(long, value_name = "SIZE[,N]", requires = "write")]
    pub rotate: Option<Rotation>,
}
