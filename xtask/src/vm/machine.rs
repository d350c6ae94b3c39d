//! Runs one QEMU VM: reads its two serial ports line by line, and ends it early after a kernel panic or a timeout.

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

/// Returns the emulator of an architecture.
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

/// The virtual hardware of an architecture.
struct Hardware {
    /// QEMU's options for the board and the processor.
    board: [&'static str; 4],
    /// QEMU's options for the second serial port, which is QEMU's standard error.
    programs_port: &'static [&'static str],
    /// The kernel's names of the two ports.
    ports: [&'static str; 2],
    /// Further parameters of the kernel.
    parameters: &'static str,
}

impl Hardware {
    fn of(arch: Arch) -> Self {
        match arch {
            Arch::X86_64 => Self {
                board: ["-M", "pc", "-cpu", "max"],
                programs_port: &["-serial", "file:/dev/fd/2"],
                ports: ["ttyS0", "ttyS1"],
                // The kernel panics at its start if the timer does not tick for a moment, as on a busy machine.
                parameters: "no_timer_check",
            },
            // The CPU "max" authenticates pointers, which doubles the time. The board has one port; a second one is a
            // PCI device.
            Arch::Aarch64 => Self {
                board: ["-M", "virt", "-cpu", "cortex-a76"],
                programs_port: &[
                    "-chardev",
                    "file,id=programs,path=/dev/fd/2",
                    "-device",
                    "pci-serial,chardev=programs",
                ],
                ports: ["ttyAMA0", "ttyS0"],
                parameters: "",
            },
        }
    }
}

/// The configuration of a VM.
pub struct Machine<'a> {
    pub arch: Arch,
    /// The prefix of its lines on the terminal.
    pub name: &'a str,
    pub image: &'a Path,
    pub initramfs: &'a Path,
    /// Whether the clock of the VM counts executed instructions, and jumps while all processors wait. With the clock of
    /// the host, a processor is about 40 times slower than its time slices expect, and stops at any instruction while
    /// the other one is emulated. (With this clock, the second processor does not start on 6.1 and earlier.)
    pub counts_instructions: bool,
    /// The file that receives all output of the VM.
    pub log: PathBuf,
    /// The maximum time of the VM.
    pub deadline: Duration,
}

/// The result of a VM.
pub struct Run {
    /// The lines of its programs.
    pub lines: Vec<String>,
    /// The reason why it was killed before it powered off.
    pub killed: Option<String>,
    pub elapsed: Duration,
}

enum Line {
    /// A line of the kernel's console.
    Kernel(String),
    /// A line of the programs in the VM.
    Program(String),
}

impl Machine<'_> {
    /// Runs the VM until it powers off or is killed.
    pub fn run(&self) -> Result<Run> {
        let mut log = File::create(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let start = Instant::now();
        let mut qemu = self.start()?;
        let (sender, lines) = mpsc::channel();
        let kernel = qemu.stdout.take().context("the VM has no console")?;
        let programs = qemu.stderr.take().context("the VM has no second port")?;
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
            // The rest of a panic's report, which explains it, follows soon.
            let grace = Instant::now() + Duration::from_secs(2);
            while let Ok(Line::Kernel(line) | Line::Program(line)) =
                lines.recv_timeout(grace.saturating_duration_since(Instant::now()))
            {
                write_line(&mut log, &line)?;
            }
            qemu.kill().context("cannot kill the VM")?;
        }
        let status = qemu.wait().context("cannot wait for the VM")?;
        for reader in readers {
            // The readers do not panic.
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
        // One thread for both processors. With one thread each, QEMU 7.2 runs stale code after the guest patches its
        // kernel, as every attach of a tracer does, and the guest crashes.
        qemu.args(hardware.board);
        qemu.args(["-accel", "tcg,thread=single", "-smp", "2", "-m", "1024"]);
        if self.counts_instructions {
            // An instruction takes 2 ns.
            qemu.args(["-icount", "shift=1,sleep=off", "-rtc", "clock=vm"]);
        }
        qemu.args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"]);
        // The first port is the kernel's, the second one that of the programs. QEMU has one standard output, so the
        // second port is its standard error.
        qemu.args(["-serial", "stdio"]).args(hardware.programs_port);
        qemu.arg("-kernel").arg(self.image).arg("-initrd").arg(self.initramfs);
        // thash_entries: TIME_WAIT sockets of a minute fit, as on a larger machine. preempt=lazy: the least preemption;
        // earlier kernels ignore it. A parameter that the kernel does not know becomes an environment variable of the
        // first process.
        qemu.arg("-append").arg(format!(
            "console={kernel_port} quiet panic=-1 thash_entries=65536 preempt=lazy programs_port={programs_port} {}",
            hardware.parameters
        ));
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        qemu.spawn().with_context(|| format!("cannot run {emulator}"))
    }
}

/// Sends the lines of a port to `to`, until the VM closes the port.
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
    writeln!(log, "{line}").context("cannot write the log of the VM")
}

/// Returns whether a line of the kernel means that the VM will not finish.
fn is_fatal(line: &str) -> bool {
    line.contains("Kernel panic")
        || line.contains("soft lockup")
        || (line.contains("stall") && line.to_ascii_lowercase().contains("rcu"))
}

#[cfg(test)]
mod tests {
    use super::is_fatal;

    #[test]
    fn fatal_kernel_messages_are_recognized() {
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
        for (line, expected) in cases {
            assert_eq!(is_fatal(line), expected, "{line}");
        }
    }
}
