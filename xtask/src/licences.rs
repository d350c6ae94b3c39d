//! `cargo xtask licences`: compares the licence of every dependency with the list in `deny.toml`. `cargo deny check`
//! checks more, but takes minutes to build.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use spdx::{Expression, ParseMode};

use crate::arch::Arch;
use crate::host;

/// The file with the allowed licences, which cargo-deny reads, too.
const LIST: &str = "deny.toml";

/// Returns an error that names each dependency whose licence is not allowed.
pub fn run() -> Result<ExitCode> {
    let root = host::root();
    let text = fs::read_to_string(root.join(LIST)).with_context(|| format!("cannot read {LIST}"))?;
    let allowed = allowed(&text).with_context(|| format!("{LIST} has no list `allow` in [licenses]"))?;
    let metadata = host::metadata(&root, &[Arch::X86_64, Arch::Aarch64], &["--all-features"])?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    // This workspace's own packages have no source.
    let dependencies = packages.iter().filter(|package| package["source"].is_string());
    let (mut checked, mut refused) = (0, Vec::new());
    for dependency in dependencies {
        checked += 1;
        let licence = dependency["license"].as_str().unwrap_or_default();
        if !is_allowed(licence, &allowed) {
            refused.push(format!("{} {}: {licence:?}", dependency["name"], dependency["version"]));
        }
    }
    if !refused.is_empty() {
        bail!("{LIST} does not allow the licence of\n{}", refused.join("\n"));
    }
    println!("{LIST} allows the licences of all {checked} dependencies");
    Ok(ExitCode::SUCCESS)
}

/// Returns the strings of the list `allow` in the table `[licenses]`.
fn allowed(deny_toml: &str) -> Option<Vec<&str>> {
    let (_, table) = deny_toml.split_once("[licenses]\n")?;
    let (_, list) = table.split_once("\nallow = [")?;
    let (list, _) = list.split_once(']')?;
    // Every second part is between quotation marks.
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Returns whether the allowed licences satisfy an SPDX expression. `/` is an old spelling of OR.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    Expression::parse_mode(expression, ParseMode::LAX)
        .is_ok_and(|parsed| parsed.evaluate(|required| allowed.contains(&required.to_string().as_str())))
}

#[cfg(test)]
mod tests {
    use super::{allowed, is_allowed};

    #[test]
    fn list_of_the_licenses_table_is_found() {
        let text =
            "[graph]\nallow = [\"GPL-2.0\"]\n\n[licenses]\n# Why.\nallow = [\n    \"MIT\",\n    \"ISC\",\n]\nx = 1\n";
        assert_eq!(allowed(text), Some(vec!["MIT", "ISC"]));
        assert_eq!(allowed("[licenses]\nconfidence-threshold = 0.9\n"), None);
    }

    #[test]
    fn expression_needs_an_allowed_choice() {
        let list = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
        let cases = [
            ("MIT", true),
            ("GPL-2.0-only OR MIT", true),
            ("GPL-3.0-only/MIT", true),
            ("(MIT OR GPL-2.0-only) AND Unicode-3.0", true),
            ("MIT AND GPL-2.0-only", false),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("GPL-2.0-only", false),
            ("ISC", false),
            ("", false),
            ("see LICENSE", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(is_allowed(expression, &list), expected, "{expression}");
        }
    }
}
