//! The command lines that the README and the manual show, run as they stand there: live ones on the recorded incident.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use kmesh_trace::cli::Cli;
use libtest_mimic::{Failed, Trial};

/// In place of the tool: what would trace is told from the capture, whose end comes by itself.
const INSTEAD: &str = r#"#!/bin/sh
replay=yes
for word; do
    shift
    case $word in
    --read | --read=* | -r) replay=no ;;
    --duration) drop=yes; continue ;;
    esac
    [ "$drop" ] || set -- "$@" "$word"
    drop=
done
[ $replay = no ] || set -- --read "$CAPTURE" "$@"
exec "$TOOL" "$@"
"#;

/// A trial a command line or block of some.
pub fn trials() -> Vec<Trial> {
    let readme = read("README.md");
    let manual = read("man/kmesh-trace.8");
    let (blocks, console) = (blocks(&manual), console(&readme));
    let counts = [("the manual", blocks.len()), ("the README", console.len())];
    let mut trials: Vec<_> = blocks
        .into_iter()
        .chain(console)
        .enumerate()
        .map(|(number, script)| {
            let first = script.lines().next().unwrap_or_default();
            let name = format!("examples::{number} {}", first.chars().take(60).collect::<String>());
            let missing = ["bash", "jq"].into_iter().find(|program| !is_here(program));
            match missing {
                Some(program) => Trial::test(name, || Ok(()))
                    .with_kind(format!("skipped: {program} is missing"))
                    .with_ignored_flag(true),
                None => Trial::test(name, move || runs(number, &script)),
            }
        })
        .collect();
    trials.push(Trial::test("examples::are found in both files", move || {
        are_found(counts)
    }));
    trials.push(Trial::test("examples::the README's table", the_readmes_table));
    trials.push(Trial::test("examples::flags that are shown exist", shown_flags_exist));
    trials.push(Trial::test(
        "examples::every flag is in the manual",
        every_flag_is_in_the_manual,
    ));
    trials
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn is_here(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The blocks of the manual that begin with the tool, as a shell would get them.
fn blocks(manual: &str) -> Vec<String> {
    let parts = manual.split("\n.nf\n").skip(1);
    let blocks = parts.filter_map(|part| part.split_once("\n.fi"));
    blocks
        .map(|(block, _)| {
            let plain = [
                ("\\-", "-"),
                ("\\(aq", "'"),
                ("\\(dq", "\""),
                ("\\e", "\\"),
                ("\\&", ""),
            ];
            plain
                .into_iter()
                .fold(block.to_owned(), |text, (roff, plain)| text.replace(roff, plain))
        })
        .filter(|block| block.starts_with("kmesh-trace"))
        .collect()
}

/// What the README types at a prompt.
fn console(readme: &str) -> Vec<String> {
    let lines = readme.lines().filter_map(|line| line.strip_prefix("# kmesh-trace "));
    lines.map(|rest| format!("kmesh-trace {rest}")).collect()
}

/// Fails when an edit of a file's layout hides its examples from the search above.
fn are_found(counts: [(&str, usize); 2]) -> Result<(), Failed> {
    match counts.iter().find(|(_, count)| *count < 3) {
        Some((file, count)) => Err(format!("{count} command lines in {file}").into()),
        None => Ok(()),
    }
}

fn runs(number: usize, script: &str) -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("examples-{number}"));
    _ = fs::remove_dir_all(&folder);
    let programs = folder.join("bin");
    fs::create_dir_all(&programs)?;
    for (name, text) in [("kmesh-trace", INSTEAD), ("ssh", "#!/bin/sh\nshift\nexec \"$@\"\n")] {
        let file = programs.join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    let mut path = OsString::from(&programs);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(&folder)
        .env("PATH", path)
        .env("TOOL", env!("CARGO_BIN_EXE_kmesh-trace"))
        .env(
            "CAPTURE",
            fs::canonicalize(repository().join("tests/data/incident.jsonl.zst"))?,
        )
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || said.contains("error") {
        return Err(format!("{script}\n{}: {said}", output.status).into());
    }
    Ok(())
}

/// What the README shows under its third command is what that prints.
fn the_readmes_table() -> Result<(), Failed> {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("cargo run --release -- ").ok_or("no such command")?;
    let (arguments, rest) = rest.split_once('\n').ok_or("no end of the line")?;
    let shown = rest.split("```").nth(2).ok_or("no block after it")?.trim();
    let output = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"))
        .args(arguments.split_whitespace())
        .current_dir(repository())
        .stdin(Stdio::null())
        .output()?;
    let told = String::from_utf8(output.stdout)?;
    if told.contains(shown) {
        Ok(())
    } else {
        Err(format!("{arguments} prints\n{told}\nand the README shows\n{shown}").into())
    }
}

/// All long flags of the tool.
fn flags() -> Vec<String> {
    let mut command = Cli::command();
    command.build();
    let of = |command: &clap::Command| {
        let flags = command.get_arguments().filter_map(|argument| argument.get_long());
        flags.map(|long| format!("--{long}")).collect::<Vec<_>>()
    };
    let mut all = of(&command);
    command.get_subcommands().for_each(|command| all.extend(of(command)));
    all
}

fn shown_flags_exist() -> Result<(), Failed> {
    let known = flags();
    for file in ["README.md", "man/kmesh-trace.8"] {
        let text = read(file).replace("\\-", "-");
        // What others are told on the same line is theirs.
        let lines = text
            .lines()
            .filter(|line| !line.contains("cargo ") && !line.contains("xtask"));
        let mut found = 0;
        for line in lines.filter(|line| line.contains("kmesh-trace -") || line.contains("`--")) {
            let words = line.split(|char: char| !(char.is_ascii_alphanumeric() || char == '-'));
            for flag in words.filter(|word| word.starts_with("--") && word.len() > 2) {
                if !known.iter().any(|known| known == flag) {
                    return Err(format!("{file}: there is no {flag}: {line}").into());
                }
                found += 1;
            }
        }
        if found < 5 {
            return Err(format!("{file} shows {found} flags").into());
        }
    }
    Ok(())
}

fn every_flag_is_in_the_manual() -> Result<(), Failed> {
    let manual = read("man/kmesh-trace.8").replace("\\-", "-").replace("\\(aq", "'");
    if let Some(flag) = flags().into_iter().find(|flag| !manual.contains(flag.as_str())) {
        return Err(format!("no {flag}").into());
    }
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let manual = words(&manual);
    for flag in Cli::command().get_arguments() {
        let help = flag.get_long_help().or(flag.get_help()).ok_or("no help")?.to_string();
        let first = help.lines().next().unwrap_or_default();
        if first.is_empty() || !manual.contains(&words(first)) {
            return Err(format!("{flag} lacks its description: {first}").into());
        }
    }
    Ok(())
}
