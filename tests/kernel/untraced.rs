//! State changes of sockets at which the kernel runs no BPF program.
//!
//! The kernels of some sandboxes hide process 1 from tracing. While one of its threads is the current task, they run no
//! BPF program, not even in an interrupt. So the change of state that a segment causes in such an interrupt is unseen
//! by every tracer, about once in 500,000 connections. The kernel's own trace buffer records it.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A trace buffer that records the state changes of TCP sockets while a thread of process 1 is the current task.
pub struct UntracedChanges {
    instance: PathBuf,
    /// The numbers of the selected threads.
    threads: HashSet<String>,
}

impl UntracedChanges {
    /// Starts to record the state changes.
    pub fn record() -> io::Result<Self> {
        let tracefs = Path::new("/sys/kernel/tracing");
        if !tracefs.join("instances").exists() {
            let status = Command::new("mount")
                .args(["-t", "tracefs", "tracefs"])
                .arg(tracefs)
                .status()?;
            if !status.success() {
                return Err(io::Error::other("cannot mount tracefs"));
            }
        }
        let instance = tracefs
            .join("instances")
            .join(format!("kmesh-trace-{}", std::process::id()));
        fs::create_dir(&instance)?;
        let mut changes = Self {
            instance,
            threads: HashSet::new(),
        };
        changes.select_threads()?;
        let event = changes.instance.join("events/sock/inet_sock_set_state");
        fs::write(event.join("filter"), "protocol == 6")?;
        fs::write(event.join("enable"), "1")?;
        Ok(changes)
    }

    /// Also selects the present threads of process 1.
    fn select_threads(&mut self) -> io::Result<()> {
        for thread in fs::read_dir("/proc/1/task")? {
            let thread = thread?.file_name().to_string_lossy().into_owned();
            if !self.threads.contains(&thread) {
                // Without truncation, which would select all threads for a moment.
                let mut selection = OpenOptions::new()
                    .append(true)
                    .open(self.instance.join("set_event_pid"))?;
                selection.write_all(thread.as_bytes())?;
                self.threads.insert(thread);
            }
        }
        Ok(())
    }

    /// Returns the changes so far, in the kernel's text form.
    pub fn lines(&mut self) -> Vec<String> {
        // Process 1 may start threads at any time. An error only means that no scenario is repeated for them.
        _ = self.select_threads();
        let text = fs::read_to_string(self.instance.join("trace")).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.trim().to_owned()).collect()
    }
}

impl Drop for UntracedChanges {
    fn drop(&mut self) {
        // If this fails, the unused instance stays. Its name has the pid of an ended process.
        _ = fs::remove_dir(&self.instance);
    }
}
