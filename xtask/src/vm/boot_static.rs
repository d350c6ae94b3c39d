//! Tests the static executable in a VM that contains only the executable and busybox. It must pass its own check, and
//! trace the connections of busybox's `nc` exactly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::apt::Apt;
use super::guest::{self, Step};
use super::kernels::Kernel;
use super::machine::{self, Machine, Run};
use super::verdict::{Verdict, step_output};
use super::{kernels, table};
use crate::arch::Arch;
use crate::counts::Counts;
use crate::host;

/// The kernel and its Debian suite, which is also the suite of busybox and of the build machine.
const KERNEL: &str = "6.1";
const SUITE: &str = "bookworm";
const TOOL: &str = "/kmesh-trace";
/// The time limit of the VM. An emulated VM boots in half a minute.
const DEADLINE: Duration = Duration::from_secs(300);

/// The bytes that `traces.sh` sends, the port that it sends to, and a closed port.
const SENT: u64 = 70_000;
const LISTENED: u16 = 7777;
const REFUSED: u16 = 7778;

/// Boots the VM, and returns the counts of passed and failed checks.
pub fn run(arch: Arch, tool: &Path, folder: &Path) -> Result<Counts> {
    host::ensure(kernels::NEEDS.iter().chain([machine::emulator(arch)]))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let kernel = Kernel::find(KERNEL, None, arch, folder)?;
    let steps = steps();
    let initramfs = folder.join(format!("static.{}.initramfs", arch.name()));
    fs::write(
        &initramfs,
        guest::static_initramfs(&busybox(arch, folder)?, (tool, TOOL), &steps)?,
    )
    .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let run = Machine {
        arch,
        name: arch.name(),
        image: &kernel.image,
        initramfs: &initramfs,
        counts_instructions: false,
        log: folder.join(format!("static.{}.log", arch.name())),
        deadline: DEADLINE,
    }
    .run()?;
    let verdict = judge(&run, &steps);
    let counts = verdict.counts;
    table(&[(&kernel, verdict)]);
    Ok(counts)
}

fn steps() -> [Step; 3] {
    let step = |name, words: &[&str]| Step {
        name,
        command: words.iter().map(|&word| word.to_owned()).collect(),
    };
    let [sent, listened, refused] = [SENT, LISTENED.into(), REFUSED.into()].map(|number| number.to_string());
    [
        step("version", &[TOOL, "--version"]),
        step("check", &[TOOL, "check"]),
        step(
            "traces",
            &["sh", "-c", include_str!("traces.sh"), TOOL, &sent, &listened, &refused],
        ),
    ]
}

/// Returns the path of Debian's static busybox for the architecture.
fn busybox(arch: Arch, folder: &Path) -> Result<PathBuf> {
    const PACKAGE: &str = "busybox-static";
    let folder = folder.join(arch.debian());
    let root = folder.join("busybox");
    if !root.is_dir() {
        let apt = Apt::open(&[SUITE], arch, &folder.join("apt").join(SUITE))?;
        let debs = folder.join("busybox-deb");
        // Remove the package of an earlier version.
        let _ = fs::remove_dir_all(&debs);
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        apt.download(&[(PACKAGE.to_owned(), apt.newest(PACKAGE)?)], &debs)?;
        let unfinished = folder.join("busybox-unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        for deb in kernels::entries(&debs)? {
            host::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unfinished))?;
        }
        fs::rename(&unfinished, &root).with_context(|| format!("cannot rename {}", unfinished.display()))?;
    }
    let found = ["bin/busybox", "usr/bin/busybox"]
        .map(|file| root.join(file))
        .into_iter()
        .find(|file| file.is_file());
    found.with_context(|| format!("no busybox in {}", root.display()))
}

fn judge(run: &Run, steps: &[Step]) -> Verdict {
    let mut verdict = Verdict::new(run);
    for step in steps {
        let output = step_output(&run.lines, step.name);
        let result = match output.status {
            Some(0) if step.name == "traces" => check_records(&output.lines),
            Some(0) => Ok(()),
            Some(status) => Err(anyhow::anyhow!("status {status}")),
            None => Err(anyhow::anyhow!("did not end")),
        };
        match result {
            Ok(()) => verdict.counts += Counts::one(true),
            Err(error) => {
                let last = output.lines.last().unwrap_or(&"none");
                verdict.fail(&format!("{}: {error:#}; its last line: {last}", step.name));
            }
        }
    }
    verdict
}

/// Checks for exactly three records: both ends of one connection with the bytes that `nc` sent, and a refused attempt.
fn check_records(lines: &[&str]) -> Result<()> {
    let records = lines.iter().filter(|line| line.starts_with('{'));
    let records = records.map(|line| serde_json::from_str::<Value>(line));
    let records: Vec<_> = records.collect::<Result<_, _>>().context("a line is not JSON")?;
    let of = |kind: &'static str| records.iter().filter(move |record| record["type"] == kind);
    let ends = |port: u16, direction: &'static str| {
        of("conn").filter(move |record| record["direction"] == direction && record["dst"]["port"] == port)
    };
    let values = |port: u16, direction: &'static str, field: &str| -> Vec<Value> {
        ends(port, direction).map(|record| record[field].clone()).collect()
    };
    for (name, values, expected) in [
        (
            "the client's end",
            values(LISTENED, "outbound", "sent_bytes"),
            Value::from(SENT),
        ),
        (
            "the server's end",
            values(LISTENED, "inbound", "received_bytes"),
            Value::from(SENT),
        ),
        (
            "the refused attempt",
            values(REFUSED, "outbound", "outcome"),
            Value::from("refused"),
        ),
    ] {
        ensure!(values == [expected], "{name}: {values:?}");
    }
    ensure!(of("conn").count() == 3, "{} records, not 3", of("conn").count());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_records;

    const CLIENT: &str =
        r#"{"type":"conn","direction":"outbound","dst":{"port":7777},"sent_bytes":70000,"outcome":"ok"}"#;
    const SERVER: &str =
        r#"{"type":"conn","direction":"inbound","dst":{"port":7777},"received_bytes":70000,"outcome":"ok"}"#;
    const REFUSED: &str =
        r#"{"type":"conn","direction":"outbound","dst":{"port":7778},"sent_bytes":0,"outcome":"refused"}"#;

    #[test]
    fn records_must_match_the_traffic() {
        let short = CLIENT.replace("70000", "69999");
        let cases: [(&str, &[&str], bool); 6] = [
            ("all", &["ready", REFUSED, CLIENT, SERVER], true),
            ("a byte less", &[&short, SERVER, REFUSED], false),
            ("one end", &[CLIENT, REFUSED], false),
            ("one end twice", &[CLIENT, SERVER, SERVER, REFUSED], false),
            (
                "not refused",
                &[CLIENT, SERVER, &REFUSED.replace("refused", "ok")],
                false,
            ),
            ("no JSON", &[CLIENT, SERVER, REFUSED, "{"], false),
        ];
        for (name, lines, expected) in cases {
            assert_eq!(check_records(lines).is_ok(), expected, "{name}");
        }
    }
}
