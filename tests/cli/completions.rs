//! `kmesh-trace completions`: each script runs in its shell, which prints the completions that it offers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};

/// An incomplete command line, a completion that the shell must offer, one that it must not offer, and the shells whose
/// generated script offers nothing.
struct Case(&'static str, &'static str, &'static str, &'static [&'static str]);

/// The scripts are what clap_complete 4.6 generates, without changes. For bash, it offers no values after `=`. For
/// fish, it offers no values of the flags before a subcommand: its script fails while a flag still lacks its value.
const CASES: [Case; 16] = [
    Case("kmesh-trace --outp", "--output", "--outcome", &[]),
    Case("kmesh-trace --output js", "json", "log", &["fish"]),
    Case("kmesh-trace -o no", "none", "json", &["fish"]),
    Case("kmesh-trace --color=ne", "never", "always", &["bash"]),
    Case("kmesh-trace --quiet --output no", "none", "json", &["fish"]),
    Case("kmesh-trace --by serv", "service", "process", &["fish"]),
    Case("kmesh-trace --outcome ref", "refused", "ok", &["fish"]),
    Case("kmesh-trace chec", "check", "schema", &[]),
    Case("kmesh-trace node", "nodes", "node-trace", &[]),
    Case("kmesh-trace completions --he", "--help", "--output", &[]),
    Case("kmesh-trace completions fi", "fish", "zsh", &[]),
    Case("kmesh-trace completions z", "zsh", "fish", &[]),
    Case("kmesh-trace explain --rea", "--read", "--write", &[]),
    Case("kmesh-trace diff --b", "--by", "--buffer", &[]),
    Case("kmesh-trace diff --by serv", "service", "process", &[]),
    Case("kmesh-trace nodes --image-", "--image-pull-policy", "--clean", &[]),
];

/// Sources the script, then does what bash does for the Tab key: it calls the function that is registered for the
/// command.
const BASH: &str = r#"
source "$1"
registered=$(complete -p kmesh-trace) || exit
function=${registered#*-F }
COMP_LINE=$2 COMP_POINT=${#2}
# Readline also splits words at = and :, which become words.
read -ra COMP_WORDS <<<"${2//=/ = }"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"${function%% *}" kmesh-trace "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// zsh completes only in its line editor. This script starts one in a pseudo-terminal, types the line, the Tab key, and
/// a key that writes the completed line to a file.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty editor "zsh -f -i"
zpty -w editor "autoload -Uz compinit && compinit -D -u; source ${(q)1}; PS1=
tell() { print -r -- \$BUFFER >${(q)3}; exit }; zle -N tell; bindkey '^X' tell
zle-line-init() { print -n 'RE''ADY' }; zle -N zle-line-init"
zpty -r editor answer '*READY*'
zpty -w -n editor "$2"$'\t\x18'
while zpty -r editor answer; do :; done
cat $3
"#;

const FISH: &str = r#"
source $argv[1]
complete --do-complete $argv[2]
"#;

struct Shell {
    name: &'static str,
    /// The flags to read no configuration, and to run the program in the next argument.
    flags: &'static [&'static str],
    program: &'static str,
}

const SHELLS: [Shell; 3] = [
    Shell {
        name: "bash",
        flags: &["--norc", "--noprofile", "-c"],
        program: BASH,
    },
    Shell {
        name: "zsh",
        flags: &["-f", "-c"],
        program: ZSH,
    },
    Shell {
        name: "fish",
        flags: &["--no-config", "--command"],
        program: FISH,
    },
];

/// Returns a test for each shell and case. Tests of a shell that is not installed are skipped with the reason.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for shell in &SHELLS {
        let is_missing = Command::new(shell.name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err();
        for (number, Case(line, offered, not_offered, broken)) in CASES.iter().enumerate() {
            let name = format!("completions::{}: {line}", shell.name);
            let trial = Trial::test(name, move || {
                check_completion(shell, number, line, offered, not_offered)
            });
            let skipped = if is_missing {
                Some(format!("skipped: no {}", shell.name))
            } else if broken.contains(&shell.name) {
                Some("skipped: clap_complete 4.6 offers nothing here".to_owned())
            } else {
                None
            };
            trials.push(match skipped {
                Some(reason) => trial.with_kind(reason).with_ignored_flag(true),
                None => trial,
            });
        }
    }
    trials
}

fn check_completion(shell: &Shell, number: usize, line: &str, offered: &str, not_offered: &str) -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("completions-{}-{number}", shell.name));
    fs::create_dir_all(&folder)?;
    let script = write_script(shell.name, &folder)?;
    let completed = folder.join("completed");
    let mut command = Command::new(shell.name);
    command.args(shell.flags).arg(shell.program);
    if shell.name != "fish" {
        // The other shells take the first argument as the name of the program.
        command.arg(shell.name);
    }
    let output = command
        .args([&script, Path::new(line), &completed])
        .env("TERM", "dumb")
        .env("HOME", &folder)
        .output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let offers = String::from_utf8_lossy(&output.stdout);
    // fish adds descriptions, and zsh prints the completed line.
    let words: Vec<&str> = offers.split([' ', '\t', '\n', '=']).collect();
    if !words.contains(&offered) || words.contains(&not_offered) {
        return Err(format!("for {line:?}, {} offers {offers:?} {stderr}", shell.name).into());
    }
    if !stderr.is_empty() {
        return Err(format!("{} prints an error: {stderr}", shell.name).into());
    }
    Ok(())
}

/// Writes the completion script for a shell, and returns its path.
fn write_script(shell: &str, folder: &Path) -> Result<PathBuf, Failed> {
    let output = Command::new(env!("CARGO_BIN_EXE_kmesh-trace"))
        .args(["completions", shell])
        .output()?;
    if !output.status.success() || !output.stderr.is_empty() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let script = folder.join("script");
    fs::write(&script, output.stdout)?;
    Ok(script)
}
