//! Package indexes of any Debian suite, in a separate folder with sources, lists, cache and an empty list of installed
//! packages. The state of the system's apt does not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::arch::Arch;
use crate::host;

/// The mirrors. A suite moves from the first to the second when its support ends.
const MIRRORS: [&str; 2] = ["http://deb.debian.org/debian", "http://archive.debian.org/debian"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package index of some suites for one architecture.
pub struct Apt {
    folder: PathBuf,
    arch: Arch,
}

/// The name and the exact version of a package.
pub type Package = (String, String);

impl Apt {
    /// Updates the index of these suites. Without a network, prints a message and uses the previous index.
    pub fn open(suites: &[&str], arch: Arch, folder: &Path) -> Result<Self> {
        let apt = Self {
            folder: folder.to_owned(),
            arch,
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))
                .with_context(|| format!("cannot create {}", folder.join(part).display()))?;
        }
        apt.write("status", "")?;
        let mut failures = Vec::new();
        for mirror in MIRRORS {
            apt.use_mirrors(suites, &[mirror])?;
            // Without this mode, an index that apt cannot fetch is only a warning.
            match host::output(
                apt.tool("apt-get")
                    .args(["-o", "APT::Update::Error-Mode=any", "update"]),
            ) {
                Ok(_) => return Ok(apt),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        eprintln!(
            "xtask: cannot update the package index of {}; using the previous index:\n{}",
            suites.join(", "),
            failures.join("\n")
        );
        apt.use_mirrors(suites, &MIRRORS)?;
        Ok(apt)
    }

    /// Returns the newest version of a package, in Debian's order of versions.
    pub fn newest(&self, package: &str) -> Result<String> {
        let versions = self.fields(package, "Version")?;
        let newer = |one: String, other: String| if is_newer(&other, &one) { other } else { one };
        versions
            .into_iter()
            .reduce(newer)
            .with_context(|| format!("no package {package}"))
    }

    /// Returns a package and its dependencies with an exact version, which come from the same build.
    pub fn with_dependencies(&self, package: &str, version: &str) -> Result<Vec<Package>> {
        let mut all: Vec<Package> = vec![(package.to_owned(), version.to_owned())];
        let mut position = 0;
        while let Some((name, version)) = all.get(position) {
            for depends in self.fields(&format!("{name}={version}"), "Depends")? {
                for needed in depends.split(',').filter_map(exact) {
                    if !all.contains(&needed) {
                        all.push(needed);
                    }
                }
            }
            position += 1;
        }
        Ok(all)
    }

    /// Downloads packages to a folder. apt verifies them with the signed index.
    pub fn download(&self, packages: &[Package], into: &Path) -> Result<()> {
        let names = packages.iter().map(|(name, version)| format!("{name}={version}"));
        host::output(self.tool("apt-get").arg("download").args(names).current_dir(into)).map(drop)
    }

    /// Returns the values of a field in all stanzas of a package.
    fn fields(&self, package: &str, field: &str) -> Result<Vec<String>> {
        let shown = host::text(self.tool("apt-cache").args(["show", package]))?;
        let value = |line: &str| Some(line.strip_prefix(field)?.strip_prefix(": ")?.to_owned());
        Ok(shown.lines().filter_map(value).collect())
    }

    fn use_mirrors(&self, suites: &[&str], mirrors: &[&str]) -> Result<()> {
        let arch = self.arch.debian();
        let line = |mirror: &&str, suite: &str| {
            format!("deb [arch={arch} target=Packages lang=none signed-by={KEYRING}] {mirror} {suite} main\n")
        };
        self.write(
            "sources.list",
            &suites
                .iter()
                .flat_map(|suite| mirrors.iter().map(move |mirror| line(mirror, suite)))
                .collect::<String>(),
        )
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let file = self.folder.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for (setting, value) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "none"),
            ("Dir::Etc::PreferencesParts", "none"),
            ("Dir::Etc::Preferences", "none"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::Status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            command
                .arg("-o")
                .arg(format!("{setting}={}", self.folder.join(value).display()));
        }
        command
            .arg("-o")
            .arg(format!("APT::Architecture={}", self.arch.debian()));
        // Without cleanup, the lists of the other mirror stay. apt's sandbox user may have no access to this folder.
        command.args(["-o", "APT::Get::List-Cleanup=false", "-o", "APT::Sandbox::User=root"]);
        command.env("LC_ALL", "C");
        command
    }
}

/// Parses `name (= version)`. Returns `None` for any other dependency.
fn exact(dependency: &str) -> Option<Package> {
    if dependency.contains('|') {
        return None;
    }
    let (name, rest) = dependency.trim().split_once(" (= ")?;
    Some((name.to_owned(), rest.strip_suffix(')')?.to_owned()))
}

fn is_newer(one: &str, other: &str) -> bool {
    Command::new("dpkg")
        .args(["--compare-versions", one, "gt", other])
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::exact;

    #[test]
    fn only_exact_dependencies_are_followed() {
        let depends =
            "kmod, linux-base (>= 4.3~), linux-modules-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), a | b (= 1)";
        let found: Vec<_> = depends.split(',').filter_map(exact).collect();
        assert_eq!(
            found,
            [(
                "linux-modules-7.3.4+deb13-cloud-amd64".to_owned(),
                "7.3.4-1~bpo13+1".to_owned()
            )]
        );
    }
}
