//! A cgroup that limits memory.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A cgroup with a memory limit. Dropping it removes it.
pub struct MemoryLimit(PathBuf);

impl MemoryLimit {
    pub fn new(bytes: u64) -> Self {
        static CREATED: AtomicUsize = AtomicUsize::new(0);
        let hierarchy = super::probe::MEMORY_CGROUP.clone().unwrap();
        let (process, number) = (std::process::id(), CREATED.fetch_add(1, Ordering::Relaxed));
        let folder = hierarchy.join(format!("kmesh-trace-test-{process}-{number}"));
        fs::create_dir(&folder).unwrap();
        let cgroup = Self(folder);
        let files = ["memory.max", "memory.limit_in_bytes"].map(|name| cgroup.0.join(name));
        let file = files.into_iter().find(|file| file.exists()).unwrap();
        fs::write(file, bytes.to_string()).unwrap();
        cgroup
    }

    /// Returns a command that runs in the cgroup.
    pub fn command(&self, program: &Path) -> Command {
        let procs = self.0.join("cgroup.procs");
        let mut command = Command::new(program);
        // SAFETY: opens, writes and closes a file, which is allowed between fork and exec.
        unsafe { command.pre_exec(move || fs::write(&procs, "0")) };
        command
    }

    /// Returns the peak memory of the cgroup in bytes, or 0 if the kernel does not record it.
    pub fn peak_bytes(&self) -> u64 {
        let files = ["memory.peak", "memory.max_usage_in_bytes"].map(|name| self.0.join(name));
        let text = files.iter().find_map(|file| fs::read_to_string(file).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A process leaves its cgroup only some time after it has ended.
        let deadline = Instant::now() + super::test_timeout();
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
