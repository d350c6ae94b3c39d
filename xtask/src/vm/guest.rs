//! The initramfs of a VM: busybox, the programs under test, the tools that they call, and kernel modules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::kernels::Kernel;
use crate::host;

/// The modules that the kernel tests need. Modules that a kernel has built in or lacks are skipped.
const MODULES: &[&str] = &[
    "veth",
    "tun",
    "dummy",
    "bridge",
    // nf_tables needs libcrc32c, which needs this module when it is loaded.
    "crc32c_generic",
    "nf_tables",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nf_reject_ipv4",
    "nf_reject_ipv6",
    "nft_chain_nat",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_synproxy",
    "nft_tproxy",
    "sch_fq",
    "sch_fq_codel",
    "sch_htb",
    "sch_netem",
    "sch_tbf",
    "inet_diag",
    "tcp_diag",
    "mptcp_diag",
    "tcp_bbr",
];

/// The programs of every Debian system that the tests call. Some of them are in busybox, too, but with fewer options.
const SYSTEM_TOOLS: &[&str] = &["bash", "nsenter", "setpriv", "unshare"];

/// The files that tmux reads.
const TERMINAL_FILES: &[&str] = &[
    "/lib/terminfo/s/screen",
    "/lib/terminfo/s/screen-256color",
    "/lib/terminfo/t/tmux",
    "/lib/terminfo/t/tmux-256color",
    "/lib/terminfo/x/xterm",
    "/lib/terminfo/x/xterm-256color",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
];

/// A command that the VM runs. Its output and its exit status are reported under its name.
pub struct Step {
    pub name: &'static str,
    /// The path of the program in the VM, and its arguments.
    pub command: Vec<String>,
}

/// Returns the initramfs of a VM that contains only busybox and one program, both static.
pub fn static_initramfs(busybox: &Path, (here, there): (&Path, &str), steps: &[Step]) -> Result<Vec<u8>> {
    let mut archive = begin(steps);
    add_file(&mut archive, busybox, "/bin/busybox")?;
    add_file(&mut archive, here, there)?;
    Ok(archive.finish())
}

/// Returns the initramfs of a VM for the kernel tests. Each of `programs` is a path on this machine and a path in the
/// VM.
pub fn initramfs(kernel: &Kernel, programs: &[(&Path, &str)], steps: &[Step]) -> Result<Vec<u8>> {
    let mut archive = begin(steps);
    let mut libraries = BTreeSet::new();
    archive.file(
        "/etc/passwd",
        false,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    );
    archive.file("/etc/group", false, b"root:x:0:\nnogroup:x:65534:\n");
    // The folder of `ip netns`.
    archive.link("/var/run", "/run");

    let busybox = found("busybox")?;
    add_program(&mut archive, &mut libraries, &busybox, "/bin/busybox")?;
    // busybox's shell prefers its own `ip` to the one in PATH, so /bin/sh is the system's shell.
    add_program(&mut archive, &mut libraries, &found("sh")?, "/bin/sh")?;
    let tools = host::TEST_TOOLS.iter().map(|tool| tool.program);
    for tool in tools.chain(SYSTEM_TOOLS.iter().copied()) {
        add_program(
            &mut archive,
            &mut libraries,
            &found(tool)?,
            &format!("/usr/sbin/{tool}"),
        )?;
    }
    for file in TERMINAL_FILES.iter().map(Path::new).filter(|file| file.exists()) {
        add_file(&mut archive, file, &file.to_string_lossy())?;
    }
    for (here, there) in programs {
        add_program(&mut archive, &mut libraries, here, there)?;
    }
    for library in &libraries {
        add_file(&mut archive, library, &library.to_string_lossy())?;
    }

    for (position, module) in load_order(&kernel.modules)?.iter().enumerate() {
        // The number in the name keeps the order of loading.
        let name = module
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let name = name.split_once(".ko").map_or(name.as_str(), |(stem, _)| stem);
        archive.file(
            &format!("/modules/{position:03}-{name}.ko"),
            false,
            &decompressed(&kernel.modules.join(module))?,
        );
    }
    Ok(archive.finish())
}

fn begin(steps: &[Step]) -> Archive {
    let mut archive = Archive::default();
    archive.file("/init", true, include_bytes!("init.sh"));
    archive.file("/job", false, job(steps).as_bytes());
    archive
}

fn job(steps: &[Step]) -> String {
    let quoted = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    steps
        .iter()
        .map(|step| {
            format!(
                "run {} {}\n",
                step.name,
                step.command.iter().map(quoted).collect::<Vec<_>>().join(" ")
            )
        })
        .collect()
}

fn found(program: &str) -> Result<PathBuf> {
    host::find(program).with_context(|| format!("{program} is not installed on this machine"))
}

fn add_file(archive: &mut Archive, here: &Path, there: &str) -> Result<()> {
    let content = fs::read(here).with_context(|| format!("cannot read {}", here.display()))?;
    archive.file(there, true, &content);
    Ok(())
}

/// Adds a program, and adds its libraries and its loader to `libraries`.
fn add_program(archive: &mut Archive, libraries: &mut BTreeSet<PathBuf>, here: &Path, there: &str) -> Result<()> {
    add_file(archive, here, there)?;
    // ldd fails for a static program, which needs no libraries.
    let listed = Command::new("ldd").arg(here).output().context("cannot run ldd")?;
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        if line.contains("not found") {
            bail!("{} lacks a library: {}", here.display(), line.trim());
        }
        // `name => /path (address)`, or `/path (address)` for the loader.
        libraries.extend(
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
    }
    Ok(())
}

/// Returns the files of [`MODULES`] and their dependencies, relative to `modules`. Each file comes after its
/// dependencies.
fn load_order(modules: &Path) -> Result<Vec<PathBuf>> {
    let file = modules.join("modules.dep");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(order(&text, MODULES).into_iter().map(PathBuf::from).collect())
}

fn order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut order = Vec::new();
    for name in wanted {
        let named = |file: &str| {
            let file = file.rsplit('/').next().unwrap_or(file);
            file.split_once(".ko")
                .is_some_and(|(stem, _)| stem.replace('-', "_") == *name)
        };
        let Some((file, dependencies)) = modules_dep
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(file, _)| named(file))
        else {
            continue;
        };
        // depmod lists all dependencies, those to load first at the end.
        for module in dependencies.split_whitespace().rev().chain([file]) {
            if !order.contains(&module) {
                order.push(module);
            }
        }
    }
    order
}

/// Returns the content of a module without compression, because busybox does not decompress modules.
fn decompressed(module: &Path) -> Result<Vec<u8>> {
    let tool = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(module).with_context(|| format!("cannot read {}", module.display())),
    };
    host::output(Command::new(tool).args(["-q", "-d", "-c"]).arg(module))
}

#[cfg(test)]
mod tests {
    use super::{Step, job, order};

    #[test]
    fn module_comes_once_and_after_its_dependencies() {
        let dep = "kernel/net/a.ko.xz:\n\
            kernel/net/b-c.ko.xz: kernel/net/a.ko.xz\n\
            kernel/net/d.ko: kernel/net/b-c.ko.xz kernel/net/a.ko.xz\n";
        let all = order(dep, &["d", "absent", "b_c", "a"]);
        assert_eq!(all, ["kernel/net/a.ko.xz", "kernel/net/b-c.ko.xz", "kernel/net/d.ko"]);
    }

    #[test]
    fn arguments_are_quoted_for_the_shell() {
        let step = Step {
            name: "tests",
            command: ["a b", "it's", "$x"].map(String::from).into(),
        };
        assert_eq!(job(&[step]), "run tests 'a b' 'it'\\''s' '$x'\n");
    }
}
