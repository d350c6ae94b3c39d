//! The recipes in `examples/`. The first comment of each has a command, and what the command prints for the recorded
//! incident, each as an indented block. The tests run the command and compare the output.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use libtest_mimic::{Failed, Trial};

use crate::examples::{self, CAPTURE, repository};

/// Returns a trial per file. A trial whose program is missing is skipped.
pub fn trials() -> Vec<Trial> {
    let mut files: Vec<PathBuf> = recipes().collect();
    files.sort();
    files.into_iter().map(trial).collect()
}

/// Returns the recipes. The folder also has a README.
fn recipes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(repository().join("examples")).expect("examples");
    let paths = entries.map(|entry| entry.expect("an entry of examples").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension != "md"))
}

fn trial(file: PathBuf) -> Trial {
    let name = format!("recipes::{}", file.file_name().expect("a name").display());
    // `pip install duckdb-cli` installs DuckDB.
    let programs: &[&str] = match file.extension().and_then(|extension| extension.to_str()) {
        Some("sql") => &["duckdb"],
        _ => &["jq", "zstdcat"],
    };
    examples::needing(programs, Trial::test(name, move || prints_documented_output(&file)))
}

fn prints_documented_output(file: &Path) -> Result<(), Failed> {
    let text = fs::read_to_string(file)?;
    let blocks = indented_blocks(&text);
    let [command, expected] = &blocks[..] else {
        return Err(format!("{} indented blocks instead of a command and its output", blocks.len()).into());
    };
    let name = file.file_name().expect("a name");
    let folder = examples::new_folder(&format!("recipe-{}", name.display()))?;
    symlink(fs::canonicalize(file)?, folder.join(name))?;
    symlink(
        fs::canonicalize(repository().join(CAPTURE))?,
        folder.join("incident.jsonl.zst"),
    )?;
    let output = examples::shell(&folder, command)?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && printed.trim_end() == expected.trim_end() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command}\n{}: {errors}\nprinted:\n{printed}", output.status).into())
}

/// Returns the indented blocks of the first comment, without comment signs and indentation.
fn indented_blocks(text: &str) -> Vec<String> {
    let comment = text.lines().filter(|line| !line.starts_with("#!"));
    let comment = comment.map_while(|line| line.strip_prefix("--").or_else(|| line.strip_prefix('#')));
    let mut blocks = vec![String::new()];
    for line in comment {
        match line.strip_prefix("   ") {
            Some(line) => blocks.last_mut().expect("one").extend([line, "\n"]),
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}
