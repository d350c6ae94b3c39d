//! One QEMU machine from power-on to power-off: its two serial ports line by line, and what must end it early.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::host::Need;

/// The emulator of an architecture.
pub fn emulator(arch: Arch) -> &'static Need {
    match arch {
        Arch::X86_64 => &Need {
            program: "qemu-system-x86_64",
            package: "qemu-system-x86",
        },
        Arch::Aarch64 => &Need {
            program: "qemu-system-aarch64",
            package: "qemu-system-arm",
        },
    }
}

/// What differs from one architecture's machine to another's.
struct Hardware {
    /// QEMU's options for board and processor.
    board: [&'static str; 4],
    /// QEMU's options for the second port, which is QEMU's standard error.
    programs_port: &'static [&'static str],
    /// What the kernel calls the two ports.
    ports: [&'static str; 2],
}

impl Hardware {
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self {
                board: ["-M", "pc", "-cpu", "max"],
                programs_port: &["-serial", "file:/dev/fd/2"],
                ports: ["ttyS0", "ttyS1"],
            },
            // "max" would authenticate pointers, at twice the time. The board has one port, and takes more by PCI.
            Arch::Aarch64 => Self {
                board: ["-M", "virt", "-cpu", "cortex-a76"],
                programs_port: &[
                    "-chardev",
                    "file,id=programs,path=/dev/fd/2",
                    "-device",
                    "pci-serial,chardev=programs",
                ],
                ports: ["ttyAMA0", "ttyS0"],
            },
        }
    }
}

/// What the machine is made of.
pub struct Machine<'a> {
    pub arch: Arch,
    /// How its lines are marked on this terminal.
    pub name: &'a str,
    pub image: &'a Path,
    pub initramfs: &'a Path,
    /// Its clock goes by what its processors have done, and leaps where they wait. By the host's they are some forty times slower
    /// than their own time slices, and each stands still in the middle of anything whenever the other one is emulated.
    /// (A second processor of 6.1 and before does not come up so.)
    pub by_instructions: bool,
    /// Gets everything that the machine says.
    pub log: PathBuf,
    /// How long it may run.
    pub deadline: Duration,
}

/// What a machine did.
pub struct Run {
    /// Everything that came from its programs.
    pub lines: Vec<String>,
    /// Why it was ended before it turned itself off.
    pub killed: Option<String>,
    pub elapsed: Duration,
}

enum Line {
    /// From the kernel's console.
    Kernel(String),
    /// From what runs in the machine.
    Program(String),
}

impl Machine<'_> {
    /// Runs it to its end.
    pub fn run(&self) -> Result<Run> {
        let mut log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let start = Instant::now();
        let mut qemu = self.start()?;
        let (sender, lines) = mpsc::channel();
        let kernel = qemu.stdout.take().context("the machine has no console")?;
        let programs = qemu.stderr.take().context("the machine has no second port")?;
        let readers = [
            read(kernel, Line::Kernel, sender.clone()),
            read(programs, Line::Program, sender),
        ];

        let mut run = Run {
            lines: Vec::new(),
            killed: None,
            elapsed: Duration::ZERO,
        };
        while run.killed.is_none() {
            match lines.recv_timeout(self.deadline.saturating_sub(start.elapsed())) {
                Ok(Line::Kernel(line)) => {
                    write_line(&mut log, &line)?;
                    if is_fatal(&line) {
                        println!("{} | {line}", self.name);
                        run.killed = Some(line);
                    }
                }
                Ok(Line::Program(line)) => {
                    write_line(&mut log, &line)?;
                    if !line.is_empty() {
                        println!("{} | {line}", self.name);
                    }
                    run.lines.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    run.killed = Some(format!("still running after {} s", self.deadline.as_secs()))
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if run.killed.is_some() {
            // The rest of a panic's report follows within moments, and is what one needs to read.
            let grace = Instant::now() + Duration::from_secs(2);
            while let Ok(Line::Kernel(line) | Line::Program(line)) =
                lines.recv_timeout(grace.saturating_duration_since(Instant::now()))
            {
                write_line(&mut log, &line)?;
            }
            qemu.kill().context("cannot end the machine")?;
        }
        let status = qemu.wait().context("cannot wait for the machine")?;
        for reader in readers {
            // A reader cannot panic, and its lines are all here or no longer wanted.
            let _ = reader.join();
        }
        if run.killed.is_none() && !status.success() {
            run.killed = Some(format!("qemu: {status}"));
        }
        run.elapsed = start.elapsed();
        Ok(run)
    }

    fn start(&self) -> Result<Child> {
        let emulator = emulator(self.arch).program;
        let mut qemu = Command::new(emulator);
        let hardware = Hardware::of(self.arch);
        let [kernel_port, programs_port] = hardware.ports;
        // One thread for both processors: with a thread each, QEMU 7.2 runs stale code where a guest patches its kernel's
        // text, which every attach of a tracer does, and the guest dies.
        qemu.args(hardware.board);
        qemu.args(["-accel", "tcg,thread=single", "-smp", "2", "-m", "1024"]);
        if self.by_instructions {
            // 2 ns each.
            qemu.args(["-icount", "shift=1,sleep=off", "-rtc", "clock=vm"]);
        }
        qemu.args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]);
        // The kernel's port, then the programs'. QEMU has one standard output, so the second port is its standard error.
        qemu.args(["-serial", "stdio"]).args(hardware.programs_port);
        qemu.arg("-kernel").arg(self.image).arg("-initrd").arg(self.initramfs);
        // Room in TIME_WAIT for all connections of a minute, as larger machines have it; tasks are preempted as lazily as the
        // kernel can (earlier kernels do not know it). What is no parameter of the kernel's is in the first process' environment.
        qemu.arg("-append").arg(format!(
            "console={kernel_port} quiet panic=-1 thash_entries=65536 preempt=lazy programs_port={programs_port}"
        ));
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        qemu.spawn().with_context(|| format!("cannot run {emulator}"))
    }
}

/// Reads until the machine closes the port.
fn read(port: impl Read + Send + 'static, line: fn(String) -> Line, to: Sender<Line>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for bytes in BufReader::new(port).split(b'\n') {
            let Ok(bytes) = bytes else { return };
            let text = String::from_utf8_lossy(&bytes);
            if to.send(line(text.trim_end_matches('\r').to_owned())).is_err() {
                return;
            }
        }
    })
}

fn write_line(log: &mut File, line: &str) -> Result<()> {
    writeln!(log, "{line}").context("cannot write the machine's log")
}

/// What the kernel says when there is nothing left to wait for.
fn is_fatal(line: &str) -> bool {
    line.contains("Kernel panic")
        || line.contains("soft lockup")
        || (line.contains("stall") && line.to_ascii_lowercase().contains("rcu"))
}

#[cfg(test)]
mod tests {
    use super::is_fatal;

    #[test]
    fn a_dead_kernel_is_recognised() {
        let cases = [
            ("[   12.3] Kernel panic - not syncing: Attempted to kill init!", true),
            (
                "[   40.1] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [kernel-1234:80]",
                true,
            ),
            ("[   40.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:", true),
            ("[   40.1] RCU stall", true),
            ("[    0.1] rcu: Hierarchical RCU implementation.", false),
            ("[    1.0] installing", false),
        ];
        for (line, want) in cases {
            assert_eq!(is_fatal(line), want, "{line}");
        }
    }
}
