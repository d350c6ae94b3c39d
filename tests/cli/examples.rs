//! Runs the command lines of the README, the manual and `--help`. Those that trace replay the recorded incident
//! instead.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::{CommandFactory as _, Parser as _};
use kmesh_trace::cli::Cli;
use libtest_mimic::{Failed, Trial};

/// The path of the recorded incident's capture.
pub const CAPTURE: &str = "tests/data/incident.jsonl.zst";

/// A program in place of the tool. It replays the capture if the arguments would trace. It ignores `--duration`, since
/// a capture ends by itself, and `--drops`, `--turns` and `--include-self`, which only a live trace has.
const REPLAY: &str = r#"#!/bin/sh
replay=yes
case $1 in
explain | diff) command=$1; shift ;;
esac
[ "$command" != diff ] || replay=no
for word; do
    shift
    case $word in
    --read | --read=* | -r) replay=no ;;
    --duration) drop=yes; continue ;;
    --drops | --turns | --include-self) continue ;;
    esac
    [ "$drop" ] || set -- "$@" "$word"
    drop=
done
[ $replay = no ] || set -- --read "$CAPTURE" "$@"
exec "$TOOL" $command "$@"
"#;

/// Returns a trial for each command, and the trials of the flags.
pub fn trials() -> Vec<Trial> {
    let readme = read("README.md");
    let manual = read("man/kmesh-trace.8");
    let (blocks, console) = (blocks(&manual), [console(&readme), shell_blocks(&readme)].concat());
    let help = help_examples();
    let counts = [
        ("the manual", blocks.len()),
        ("the README", console.len()),
        ("--help", help.len()),
    ];
    let mut trials: Vec<_> = blocks
        .into_iter()
        .chain(console)
        .chain(help)
        .enumerate()
        .map(|(number, script)| {
            let first = script.lines().next().unwrap_or_default();
            let name = format!("examples::{number} {}", first.chars().take(60).collect::<String>());
            needing(&["bash", "jq"], Trial::test(name, move || runs(number, &script)))
        })
        .collect();
    trials.push(Trial::test("examples::are found in each document", move || {
        are_found(counts)
    }));
    trials.push(needing(
        &["tmux", "bash"],
        Trial::test("examples::the README's table", the_readmes_table),
    ));
    trials.push(Trial::test("examples::flags that are shown exist", shown_flags_exist));
    trials.push(Trial::test(
        "examples::every flag is in the manual",
        every_flag_is_in_the_manual,
    ));
    trials
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Skips a trial if one of these programs is not installed.
pub fn needing(programs: &[&str], trial: Trial) -> Trial {
    match programs.iter().find(|program| !is_here(program)) {
        Some(program) => trial
            .with_kind(format!("skipped: {program} is missing"))
            .with_ignored_flag(true),
        None => trial,
    }
}

fn is_here(program: &str) -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Returns the blocks of the manual that begin with `kmesh-trace`, without roff escapes.
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

/// Returns the commands after the README's prompts. A command goes on after a line that ends with a backslash or a
/// pipe.
fn console(readme: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line.strip_prefix("# kmesh-trace ") else {
            continue;
        };
        let mut command = format!("kmesh-trace {rest}");
        while command.ends_with(['\\', '|']) {
            command.push('\n');
            command.push_str(lines.next().unwrap_or_default());
        }
        commands.push(command);
    }
    commands
}

/// Returns the README's shell blocks that begin with `kmesh-trace`.
fn shell_blocks(readme: &str) -> Vec<String> {
    let blocks = readme.split("\n```sh\n").skip(1);
    let blocks = blocks.filter_map(|block| Some(block.split_once("\n```")?.0.to_owned()));
    blocks.filter(|block| block.starts_with("kmesh-trace")).collect()
}

/// Returns the examples of `--help`: those of the flags, and those at the end.
fn help_examples() -> Vec<String> {
    let mut command = Cli::command();
    let end = command.get_after_long_help().map(ToString::to_string);
    command.build();
    let flags = command.get_arguments().filter_map(|flag| flag.get_long_help());
    let help: String = flags.map(|help| format!("{help}\n")).chain(end).collect();
    let lines = help.lines();
    lines
        .filter_map(|line| line.strip_prefix("Example: ").or(line.strip_prefix("  ")))
        .filter(|line| line.starts_with("kmesh-trace") || line.starts_with("kubectl"))
        .map(str::to_owned)
        .collect()
}

/// Fails when an edit of a document's layout hides its examples from the search above.
fn are_found(counts: [(&str, usize); 3]) -> Result<(), Failed> {
    match counts.iter().find(|(_, count)| *count < 3) {
        Some((document, count)) => Err(format!("{count} command lines in {document}").into()),
        None => Ok(()),
    }
}

/// Fails if a filter of jq does not select the connections. The last line of JSON is the summary.
fn selects_connections(script: &str) -> Result<(), Failed> {
    match script.contains("jq -") && !script.contains(".type == \"conn\"") {
        true => Err(format!("jq also gets the summary: {script}").into()),
        false => Ok(()),
    }
}

/// Parses the arguments of each `kmesh-trace` in a script as the tool does.
fn parses(script: &str) -> Result<(), Failed> {
    // The functions replace programs. The shell splits the arguments. It writes line by line, and the shells of one
    // script run at the same time, so each has its own file.
    const FUNCTIONS: &str = r#"
kmesh-trace() { printf '%s\n' kmesh-trace "$@" '' >>command-lines.$BASHPID; }
kubectl() { :; }
ssh() { shift; "$@"; }
"#;
    let folder = new_folder(&format!("parsed-examples-{:?}", std::thread::current().id()))?;
    Command::new("bash")
        .args(["-c", &format!("{FUNCTIONS}{script}")])
        .current_dir(&folder)
        .stdin(Stdio::null())
        .output()?;
    let mut command_lines = String::new();
    for entry in fs::read_dir(&folder)?.flatten() {
        command_lines += &fs::read_to_string(entry.path()).unwrap_or_default();
    }
    for arguments in command_lines.split_terminator("\n\n") {
        let cli = Cli::try_parse_from(arguments.lines()).map_err(|error| format!("{script}\n{error}"))?;
        if let Some(kmesh_trace::cli::Command::Nodes(nodes)) = cli.command {
            let name = [OsString::from("kmesh-trace")];
            Cli::try_parse_from(name.iter().chain(&nodes.flags)).map_err(|error| format!("{script}\n{error}"))?;
        }
    }
    Ok(())
}

/// Returns whether a replay can run the script: it needs no name sources, no kernel, no other program and no free port.
fn is_replayable(script: &str) -> bool {
    let needs = [
        "--cri",
        "--kube",
        "--context",
        "--this-node",
        "--buffer",
        "--metrics",
        "kubectl",
        "kmesh-trace check",
        "kmesh-trace nodes",
    ];
    !needs.iter().any(|need| script.contains(need))
}

/// Returns a new, empty folder for the files of one test.
pub fn new_folder(name: &str) -> Result<PathBuf, Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Runs a script in this folder. In it, `kmesh-trace` replays the recorded incident instead of tracing, and `ssh` runs
/// its command on this machine.
pub fn shell(folder: &Path, script: &str) -> Result<Output, Failed> {
    let programs = folder.join("bin");
    fs::create_dir_all(&programs)?;
    for (name, text) in [
        ("kmesh-trace", REPLAY),
        ("ssh", "#!/bin/sh\nshift\nexec \"$@\"\n"),
        ("less", "#!/bin/sh\nexec cat\n"),
    ] {
        let file = programs.join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    let mut path = OsString::from(&programs);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .current_dir(folder)
        .env("PATH", path)
        .env("TOOL", env!("CARGO_BIN_EXE_kmesh-trace"))
        .env("CAPTURE", fs::canonicalize(repository().join(CAPTURE))?)
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}

fn runs(number: usize, script: &str) -> Result<(), Failed> {
    selects_connections(script)?;
    parses(script)?;
    if !is_replayable(script) {
        return Ok(());
    }
    let folder = new_folder(&format!("examples-{number}"))?;
    if !script.contains("--write incident.jsonl.zst") {
        fs::copy(repository().join(CAPTURE), folder.join("incident.jsonl.zst"))?;
    }
    for (file, copy) in [
        (CAPTURE, "a.jsonl.zst"),
        (CAPTURE, "b.jsonl.zst"),
        ("tests/data/shop.json", "pods.json"),
    ] {
        fs::copy(repository().join(file), folder.join(copy))?;
    }
    let output = shell(&folder, script)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || errors.contains("error") {
        return Err(format!("{script}\n{}: {errors}", output.status).into());
    }
    Ok(())
}

/// The README's picture of the table is what a terminal shows.
fn the_readmes_table() -> Result<(), Failed> {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("cargo run --release -- ").ok_or("no such command")?;
    let (arguments, rest) = rest.split_once('\n').ok_or("no end of the line")?;
    let shown = rest.split("```").nth(2).ok_or("no block after it")?.trim();
    let output = Command::new("tests/readme/table.sh")
        .args(arguments.split_whitespace())
        .current_dir(repository())
        .env("KMESH_TRACE_BIN", env!("CARGO_BIN_EXE_kmesh-trace"))
        .stdin(Stdio::null())
        .output()?;
    let screen = String::from_utf8(output.stdout)?;
    if output.status.success() && screen.trim() == shown {
        Ok(())
    } else {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("{arguments} shows\n{screen}{errors}\nand the README shows\n{shown}").into())
    }
}

/// Returns all long flags of the tool and its subcommands.
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
        // These lines have flags of other programs.
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
