//! Debian's kernels: finds their packages in the package index, downloads them, and unpacks them without installing.

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
    pub arch: Arch,
    /// The name on the command line, or the release of a kernel that is a path.
    pub name: String,
    /// The release, as `uname -r` prints it.
    pub release: String,
    pub image: PathBuf,
    /// The folder with the modules and `modules.dep`.
    pub modules: PathBuf,
}

impl Kernel {
    /// Returns whether the kernel may preempt a task in a program at a tracepoint.
    pub fn preempts_programs(&self) -> bool {
        let major = self.release.split('.').next();
        major
            .and_then(|major| major.parse().ok())
            .is_some_and(|major: u32| major >= 7)
    }
}

/// The programs that download and unpack kernels.
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

/// Debian's configuration for virtual machines.
const CLOUD: &str = "cloud";
/// Debian's configuration with PREEMPT_RT, in which locks have another layout.
const RT: &str = "rt";

/// The names of kernels, with their Debian suites and their configuration. Of several suites, the one with the newest
/// version counts.
const DEBIAN: &[(&str, &[&str], &str)] = &[
    ("5.10", &["bullseye"], CLOUD),
    ("6.1", &["bookworm"], CLOUD),
    ("6.1-rt", &["bookworm"], RT),
    ("6.12", &["trixie"], CLOUD),
    ("newest", &["trixie", "trixie-backports"], CLOUD),
];

impl Kernel {
    /// Finds a kernel by its name or path. `modules` is the folder with the modules of a path. `cache` contains
    /// downloads.
    pub fn find(name: &str, modules: Option<&Path>, arch: Arch, cache: &Path) -> Result<Self> {
        if let Some((_, suites, configuration)) = DEBIAN.iter().find(|(known, ..)| *known == name) {
            return from_debian(name, suites, configuration, arch, cache)
                .with_context(|| format!("cannot get Debian's kernel {name}"));
        }
        let image = PathBuf::from(name);
        if !image.is_file() {
            let known: Vec<_> = DEBIAN.iter().map(|(known, ..)| *known).collect();
            bail!(
                "no kernel {name:?}: write one of {}, or the path of a vmlinuz",
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

    /// Returns whether the tool must refuse the kernel. Its requirements are in Linux 5.12 and later. This is what the
    /// test expects; the tool itself probes.
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
    // This package depends on the current image of its suite.
    let package = format!("linux-image-{configuration}-{}", arch.debian());
    let version = apt.newest(&package)?;
    let folder = cache.join("kernels").join(configuration).join(&version);
    let root = folder.join("root");
    if !root.is_dir() {
        eprintln!("xtask: downloading Debian's kernel {version} for {name}");
        let debs = folder.join("debs");
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        apt.download(&apt.with_dependencies(&package, &version)?, &debs)?;
        // The folder is renamed when it is complete, so an interrupted task leaves no incomplete kernel.
        let unfinished = folder.join("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        unpack(&debs, &unfinished)?;
        fs::rename(&unfinished, &root).with_context(|| format!("cannot rename {}", unfinished.display()))?;
    }
    let modules = only_one(&root.join("lib/modules"), "")?;
    // Newer packages have the image in the folder of the modules.
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
        host::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(root))?;
    }
    // Newer packages have their modules in /usr/lib, but depmod reads /lib.
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib")).context("cannot create the link from lib to usr/lib")?;
    }
    let modules = only_one(&root.join("lib/modules"), "")?;
    let release = modules.file_name().unwrap_or_default();
    host::output(Command::new("depmod").arg("-b").arg(root).arg(release)).map(drop)
}

/// Returns the paths of all entries of a folder.
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

/// Returns the release in the header of a bootable x86 image ("The Linux/x86 Boot Protocol", field `kernel_version`).
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
        for (release, expected) in cases {
            let kernel = Kernel {
                arch: Arch::X86_64,
                name: String::new(),
                release: release.into(),
                image: PathBuf::new(),
                modules: PathBuf::new(),
            };
            assert_eq!(kernel.must_be_refused(), expected, "{release}");
        }
    }
}
