//! Debian's kernels: which package has one is read from the package index, the packages are unpacked and never installed,
//! and the system's own apt is not touched.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt::Apt;
use crate::arch::Arch;
use crate::host::{self, Need};

/// A kernel to boot.
pub struct Kernel {
    /// What it runs on.
    pub arch: Arch,
    /// What the person called it.
    pub name: String,
    /// What it calls itself.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// The folder with its modules and `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Whether it may put a program at a tracepoint aside with its task.
    pub fn preempts_programs(&self) -> bool {
        let major = self.release.split('.').next();
        major
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major >= 7)
    }
}

/// What fetching and unpacking call.
pub const NEEDS: &[Need] = &[
    Need {
        program: "apt-get",
        package: "apt",
    },
    Need {
        program: "dpkg-deb",
        package: "dpkg",
    },
    Need {
        program: "depmod",
        package: "kmod",
    },
    Need {
        program: "xz",
        package: "xz-utils",
    },
    Need {
        program: "zstd",
        package: "zstd",
    },
];

/// The configuration of a kernel for virtual machines.
const CLOUD: &str = "cloud";
/// The configuration of a kernel that is preemptible throughout (PREEMPT_RT), whose locks have another layout.
const RT: &str = "rt";

/// The kernels that can be named, the Debian suites which have them, and their configuration. Among several suites the newest
/// version wins.
const DEBIAN: &[(&str, &[&str], &str)] = &[
    ("5.10", &["bullseye"], CLOUD),
    ("6.1", &["bookworm"], CLOUD),
    ("6.1-rt", &["bookworm"], RT),
    ("6.12", &["trixie"], CLOUD),
    ("newest", &["trixie", "trixie-backports"], CLOUD),
];

impl Kernel {
    /// Finds a kernel by its short name, or by a path; `modules` goes with a path. Packages are kept under `cache`.
    pub fn find(name: &str, modules: Option<&Path>, arch: Arch, cache: &Path) -> Result<Self> {
        if let Some((_, suites, configuration)) = DEBIAN.iter().find(|(known, ..)| *known == name) {
            return from_debian(name, suites, configuration, arch, cache)
                .with_context(|| format!("cannot get Debian's kernel {name}"));
        }
        let image = PathBuf::from(name);
        if !image.is_file() {
            let known: Vec<_> = DEBIAN.iter().map(|(known, ..)| *known).collect();
            bail!(
                "no kernel {name:?}: give one of {}, or the path of a vmlinuz",
                known.join(", ")
            );
        }
        let release = release_of(&image)?;
        let modules = modules.map_or_else(|| Path::new("/lib/modules").join(&release), Path::to_path_buf);
        Ok(Self {
            arch,
            name: release.clone(),
            release,
            image,
            modules,
        })
    }

    /// Whether the tracer must refuse it: what it needs came with 5.12. A test's expectation; the tracer itself probes.
    pub fn must_be_refused(&self) -> bool {
        let mut numbers = self
            .release
            .split(['.', '-', '+'])
            .map(|number| number.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < (5, 12)
    }
}

fn from_debian(name: &str, suites: &[&str], configuration: &str, arch: Arch, cache: &Path) -> Result<Kernel> {
    let cache = cache.join(arch.debian());
    let apt = Apt::open(suites, arch, &cache.join("apt").join(suites.join("+")))?;
    // Depends on the image that is current in its suite.
    let package = format!("linux-image-{configuration}-{}", arch.debian());
    let version = apt.newest(&package)?;
    let folder = cache.join("kernels").join(configuration).join(&version);
    let root = folder.join("root");
    if !root.is_dir() {
        eprintln!("xtask: fetching Debian's kernel {version} for {name}");
        let debs = folder.join("debs");
        fs::create_dir_all(&debs).with_context(|| format!("cannot make {}", debs.display()))?;
        apt.download(&apt.with_dependencies(&package, &version)?, &debs)?;
        // Complete or absent: a task that was interrupted leaves no half kernel.
        let unfinished = folder.join("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        unpack(&debs, &unfinished)?;
        fs::rename(&unfinished, &root).with_context(|| format!("cannot rename {}", unfinished.display()))?;
    }
    let modules = only_one(&root.join("lib/modules"), "")?;
    // Newer packages have the image beside its modules.
    let image = match modules.join("vmlinuz") {
        image if image.is_file() => image,
        _ => only_one(&root.join("boot"), "vmlinuz-")?,
    };
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Kernel {
        arch,
        name: name.to_owned(),
        release,
        image,
        modules,
    })
}

fn unpack(debs: &Path, root: &Path) -> Result<()> {
    for deb in entries(debs)? {
        host::succeed(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(root))?;
    }
    // Newer packages have their modules under /usr, where depmod does not look.
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib")).context("cannot make the link from lib to usr/lib")?;
    }
    let modules = only_one(&root.join("lib/modules"), "")?;
    let release = modules.file_name().unwrap_or_default();
    host::output(Command::new("depmod").arg("-b").arg(root).arg(release)).map(drop)
}

/// What is in a folder.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    listed.map(|entry| Ok(entry?.path())).collect()
}

fn only_one(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = entries(folder)?;
    found.retain(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    ensure!(
        found.len() == 1,
        "expected one {prefix}* in {}, found {}",
        folder.display(),
        found.len()
    );
    Ok(found.remove(0))
}

/// The release that a bootable x86 image says it is ("The Linux/x86 Boot Protocol", field `kernel_version`).
fn release_of(image: &Path) -> Result<String> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let release = || {
        (bytes.get(0x202..0x206)? == b"HdrS").then_some(())?;
        let offset = u16::from_le_bytes(bytes.get(0x20e..0x210)?.try_into().ok()?);
        let text = bytes.get(usize::from(offset) + 0x200..)?;
        let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
        String::from_utf8(text[..end].to_vec()).ok()
    };
    release().with_context(|| format!("{} is not a bootable x86 Linux image", image.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Arch, Kernel};

    #[test]
    fn only_kernels_before_5_12_must_be_refused() {
        let cases = [
            ("5.10.0-32-cloud-amd64", true),
            ("4.19.0", true),
            ("5.11.22", true),
            ("5.12-rc1", false),
            ("6.1.0", false),
            ("7.3.4+deb13", false),
        ];
        for (release, want) in cases {
            let kernel = Kernel {
                arch: Arch::X86_64,
                name: String::new(),
                release: release.into(),
                image: PathBuf::new(),
                modules: PathBuf::new(),
            };
            assert_eq!(kernel.must_be_refused(), want, "{release}");
        }
    }
}
