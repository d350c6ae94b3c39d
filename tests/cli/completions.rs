//! `kmesh-trace completions`, each script tried in its own shell: the shell itself is asked what it would offer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};

/// A command line so far, what a shell must offer for its last word, what it must not offer, and the shells whose generated
/// script offers nothing.
struct Case(&'static str, &'static str, &'static str, &'static [&'static str]);

/// The scripts are what clap_complete 4.6 generates. For bash, it breaks at subcommands of a program with a hyphen in its name
/// (clap issue 6421) and after `=`. For fish, it offers no values after an option that still needs its value, nor of a
/// subcommand's argument (clap issue 6295).
const CASES: [Case; 8] = [
    Case("kmesh-trace --outp", "--output", "--outcome", &[]),
    Case("kmesh-trace --output js", "json", "log", &["fish"]),
    Case("kmesh-trace -o no", "none", "json", &["fish"]),
    Case("kmesh-trace --color=ne", "never", "always", &["bash"]),
    Case("kmesh-trace --quiet --output no", "none", "json", &["fish"]),
    Case("kmesh-trace chec", "check", "schema", &[]),
    Case("kmesh-trace completions --he", "--help", "--output", &["bash"]),
    Case("kmesh-trace completions fi", "fish", "zsh", &["bash", "fish"]),
];

/// Sources the script, then does what bash does at a tab: it calls the function that is registered for the command.
const BASH: &str = r#"
source "$1"
registered=$(complete -p kmesh-trace) || exit
function=${registered#*-F }
COMP_LINE=$2 COMP_POINT=${#2}
# Readline breaks words at = and : too, and the break is a word.
read -ra COMP_WORDS <<<"${2//=/ = }"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
"${function%% *}" kmesh-trace "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// zsh completes only in its line editor, so there is one, in a terminal of its own: it gets the line, a tab, and a key
/// that writes down what the line has become.
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
    /// Makes it read nothing of the person's, and take the program from the next argument.
    plain: &'static [&'static str],
    program: &'static str,
}

const SHELLS: [Shell; 3] = [
    Shell {
        name: "bash",
        plain: &["--norc", "--noprofile", "-c"],
        program: BASH,
    },
    Shell {
        name: "zsh",
        plain: &["-f", "-c"],
        program: ZSH,
    },
    Shell {
        name: "fish",
        plain: &["--no-config", "--command"],
        program: FISH,
    },
];

/// A trial a shell and case; skipped, and saying so, where the shell is not installed.
pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for shell in &SHELLS {
        let missing = Command::new(shell.name)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err();
        for (number, Case(line, offered, not_offered, broken)) in CASES.iter().enumerate() {
            let name = format!("completions::{}: {line}", shell.name);
            let trial = Trial::test(name, move || try_in(shell, number, line, offered, not_offered));
            let skipped = if missing {
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

fn try_in(shell: &Shell, number: usize, line: &str, offered: &str, not_offered: &str) -> Result<(), Failed> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("completions-{}-{number}", shell.name));
    fs::create_dir_all(&folder)?;
    let script = script(shell.name, &folder)?;
    let told = folder.join("told");
    let mut command = Command::new(shell.name);
    command.args(shell.plain).arg(shell.program);
    if shell.name != "fish" {
        // What the others take for the name of the program; its arguments follow.
        command.arg(shell.name);
    }
    let output = command
        .args([&script, Path::new(line), &told])
        .env("TERM", "dumb")
        .env("HOME", &folder)
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let offers = String::from_utf8_lossy(&output.stdout);
    // fish adds what each is for, zsh inserts it in the line.
    let words: Vec<&str> = offers.split([' ', '\t', '\n', '=']).collect();
    if !words.contains(&offered) || words.contains(&not_offered) {
        return Err(format!("for {line:?}, {} offers {offers:?} {complaint}", shell.name).into());
    }
    if !complaint.is_empty() {
        return Err(format!("{} complains: {complaint}", shell.name).into());
    }
    Ok(())
}

fn script(shell: &str, folder: &Path) -> Result<PathBuf, Failed> {
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
