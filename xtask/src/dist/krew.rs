//! The manifest with which krew installs the tool as `kubectl kmesh-trace`. `deploy/krew/kmesh-trace.yaml` is the
//! template.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{HOMEPAGE, Release, VERSION, archive};

const TEMPLATE: &str = "deploy/krew/kmesh-trace.yaml";
const FILE: &str = "kmesh-trace.yaml";
/// The start of the template's part for one architecture.
const PLATFORM: &str = "    - selector:";
/// The placeholders of the template for the homepage and for a checksum.
const TEMPLATE_HOMEPAGE: &str = "https://example.com/kmesh-trace";
const TEMPLATE_SUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Writes the manifest with the platforms of these releases, and returns its path.
pub fn write(releases: &[&Release], root: &Path, out: &Path) -> Result<PathBuf> {
    let template = fs::read_to_string(root.join(TEMPLATE)).with_context(|| format!("cannot read {TEMPLATE}"))?;
    ensure!(
        template.contains(&format!("\n  version: v{VERSION}\n")),
        "{TEMPLATE} is not of version {VERSION}: cargo xtask release changes both"
    );
    let (head, platforms) = template
        .split_once(PLATFORM)
        .with_context(|| format!("{TEMPLATE} has no platforms"))?;
    // The comment describes the template.
    let head = head.lines().filter(|line| !line.starts_with('#'));
    let mut manifest: String = head.map(|line| format!("{line}\n")).collect();
    for platform in platforms.split(PLATFORM) {
        for release in releases {
            let archive = release.artefacts.first().context("a release has no archive")?;
            let name = archive.file_name().unwrap_or_default().to_string_lossy();
            if platform.contains(&*name) {
                let platform = platform.replace(TEMPLATE_SUM, &archive::digest(archive)?);
                manifest += &format!("{PLATFORM}{platform}");
            }
        }
    }
    let manifest = manifest.replace(TEMPLATE_HOMEPAGE, HOMEPAGE);
    archive::write(out, FILE, manifest.as_bytes())
}
