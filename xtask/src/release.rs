//! `cargo xtask release VERSION`: makes a release in two runs. The first one changes the files that have the version,
//! for a commit. The second one checks that commit, and builds the artefacts and the tag's message. `docs/releasing.md`
//! has the checklist around both.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use kmesh_trace::output::json::{contract, schema};

use crate::arch::Arch;
use crate::dist::{self, VERSION};
use crate::host;

const CHANGELOG: &str = "CHANGELOG.md";
const UNRELEASED: &str = "## [Unreleased]\n";
/// The tasks of this program that must pass.
const CHECKS: [&[&str]; 3] = [&["man", "--check"], &["licences"], &["ebpf", "--check"]];

#[derive(clap::Args)]
pub struct Args {
    /// The version, as 1.2.3 or 1.2.3-rc.1
    version: String,
    /// Build for this architecture only; can be repeated [default: all]
    #[arg(long)]
    arch: Vec<Arch>,
    /// Build without optimizations: fast, for trying the task out
    #[arg(long)]
    unoptimised: bool,
}

/// Prepares the release, or builds it if it is prepared.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = host::root();
    let version = &args.version;
    ensure!(
        is_version(version),
        "{version} is no version: write it as 1.2.3 or 1.2.3-rc.1"
    );
    let changelog = fs::read_to_string(root.join(CHANGELOG)).with_context(|| format!("cannot read {CHANGELOG}"))?;
    match section(&changelog, version) {
        Some(notes) if version == VERSION => build(&root, args, notes)?,
        _ => prepare(&root, version, &changelog)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns whether a text is three numbers, perhaps with a part for a prerelease.
fn is_version(text: &str) -> bool {
    let (numbers, suffix) = text.split_once('-').unwrap_or((text, "rc"));
    let parts: Vec<_> = numbers.split('.').collect();
    parts.len() == 3
        && parts
            .iter()
            .all(|part| part.parse::<u32>().is_ok_and(|number| number.to_string() == **part))
        && !suffix.is_empty()
        && suffix.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
}

/// Returns what the changelog has about a version.
fn section<'a>(changelog: &'a str, version: &str) -> Option<&'a str> {
    let (_, rest) = changelog.split_once(&format!("\n## [{version}] - "))?;
    let (_, rest) = rest.split_once('\n')?;
    Some(rest.split("\n## [").next().unwrap_or(rest).trim())
}

/// Returns the changelog in which the unreleased changes are those of a version.
fn released(changelog: &str, version: &str, date: &str) -> Result<String> {
    let (head, rest) = changelog
        .split_once(UNRELEASED)
        .with_context(|| format!("{CHANGELOG} has no line {UNRELEASED:?}"))?;
    let changes = rest.split("\n## [").next().unwrap_or(rest);
    ensure!(changes.contains("\n- "), "{CHANGELOG} lists no unreleased changes");
    let first = format!("\nThe first release will be {version}.\n");
    let rest = rest.replacen(&first, "", 1);
    Ok(format!("{head}{UNRELEASED}\n## [{version}] - {date}\n{rest}"))
}

/// Returns a text that names the new version wherever it named the old one: of the tool, its image and its archives.
fn with_version(text: &str, old: &str, new: &str) -> String {
    let names = [
        "kmesh-trace:@",
        "kmesh-trace-@-",
        "download/v@/",
        "\n  version: v@\n",
        "\nversion = \"@\"\nedition",
    ];
    names.iter().fold(text.to_owned(), |text, name| {
        text.replace(&name.replace('@', old), &name.replace('@', new))
    })
}

/// Changes the files that have the version.
fn prepare(root: &Path, version: &str, changelog: &str) -> Result<()> {
    let date = host::text(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    write(root, CHANGELOG, &released(changelog, version, date.trim())?)?;
    if version != VERSION {
        let list = host::text(
            Command::new("git")
                .args(["grep", "--files-with-matches", "--fixed-strings", VERSION, "--"])
                .args([".", ":!CHANGELOG.md", ":!*.lock", ":!tests"])
                .current_dir(root),
        )?;
        for name in list.lines() {
            let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
            write(root, name, &with_version(&text, VERSION, version))?;
        }
        for manifest in ["Cargo.toml", "tests/fuzz/Cargo.toml"] {
            let manifest = root.join(manifest);
            host::run(
                host::cargo()
                    .args(["update", "--workspace", "--manifest-path"])
                    .arg(manifest),
            )?;
        }
        // This program has the old version, and the help of the old sources.
        host::run(host::cargo().args(["run", "--quiet", "--package", "xtask", "--", "man"]))?;
    }
    let schema = serde_json::to_string_pretty(&schema::schema())?;
    write(
        root,
        &format!("docs/schema/v{}.json", contract::VERSION),
        &format!("{schema}\n"),
    )?;
    println!(
        "The files are those of {version}. Next: read git diff, commit it as \"Release {version}\", run .ci/run and \
         .ci/full,\nand run cargo xtask release {version} again"
    );
    Ok(())
}

/// Checks the commit, and builds the artefacts and the message of the tag.
fn build(root: &Path, args: &Args, notes: &str) -> Result<()> {
    let version = &args.version;
    let git = |arguments: &[&str]| host::text(Command::new("git").args(arguments).current_dir(root));
    let changes = git(&["status", "--porcelain"])?;
    ensure!(changes.is_empty(), "commit these changes first:\n{changes}");
    let tag = format!("v{version}");
    ensure!(
        git(&["tag", "--list", &tag])?.is_empty(),
        "the tag {tag} exists already"
    );
    let xtask = std::env::current_exe().context("cannot find this program")?;
    for check in CHECKS {
        host::run(Command::new(&xtask).args(check))?;
    }
    let test = ["test", "--locked", "--package", "kmesh-trace", "--lib", "compatibility"];
    host::run(host::cargo().args(test))?;

    let archs = match args.arch.as_slice() {
        [] => &[Arch::X86_64, Arch::Aarch64],
        archs => archs,
    };
    let out = host::target_dir().join(format!("release-{version}"));
    let profile = if args.unoptimised { "dev" } else { "dist" };
    dist::gather(archs, profile, &out)?;
    write(&out, "tag-message", &format!("kmesh-trace {version}\n\n{notes}\n"))?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    println!("{}: the release {version} of commit {}", out.display(), commit.trim());
    if args.unoptimised || !args.arch.is_empty() {
        bail!("this is no release: it is unoptimised or lacks an architecture");
    }
    println!("Next: sign, tag and publish as docs/releasing.md says");
    Ok(())
}

fn write(root: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(root.join(name), text).with_context(|| format!("cannot write {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "# Changelog\n\n## [Unreleased]\n\nThe first release will be 0.1.0.\n\n### Added\n\n- One.\n";

    #[test]
    fn versions_are_three_numbers() {
        for version in ["0.1.0", "1.20.3", "1.0.0-rc.1"] {
            assert!(is_version(version), "{version}");
        }
        for text in [
            "v1.0.0",
            "1.0",
            "1.0.0.0",
            "1.0.x",
            "01.0.0",
            "1.0.0-",
            "1.0.0-rc/1",
            "",
        ] {
            assert!(!is_version(text), "{text}");
        }
    }

    #[test]
    fn unreleased_changes_become_those_of_the_version() {
        let first = released(LOG, "0.1.0", "2024-09-14").unwrap();
        assert_eq!(
            first,
            "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2024-09-14\n\n### Added\n\n- One.\n"
        );
        assert_eq!(section(&first, "0.1.0"), Some("### Added\n\n- One."));
        assert_eq!(section(&first, "0.2.0"), None);
        // Nothing is unreleased now.
        assert!(released(&first, "0.2.0", "2024-09-15").is_err());
        let more = first.replace("[Unreleased]\n", "[Unreleased]\n\n### Fixed\n\n- Two.\n");
        let second = released(&more, "0.2.0", "2024-09-15").unwrap();
        assert_eq!(section(&second, "0.2.0"), Some("### Fixed\n\n- Two."));
        assert_eq!(section(&second, "0.1.0"), Some("### Added\n\n- One."));
    }

    #[test]
    fn only_the_tools_own_version_changes() {
        let text = "podman load -i kmesh-trace-0.1.0-linux.oci.tar\nimage: kmesh-trace:0.1.0\nserde = \"0.1.0\"\n";
        let new = "podman load -i kmesh-trace-0.2.0-linux.oci.tar\nimage: kmesh-trace:0.2.0\nserde = \"0.1.0\"\n";
        assert_eq!(with_version(text, "0.1.0", "0.2.0"), new);
        let manifest = "[workspace.package]\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        assert!(with_version(manifest, "0.1.0", "0.2.0").contains("version = \"0.2.0\""));
    }
}
