//! `kmesh-trace completions`: scripts that let a shell complete the command line, made from the same definition that
//! parses it.
//!
//! What `clap_complete` 4.6 makes for bash and fish has faults, which are mended here in its text; `tests/cli` tries the
//! scripts in their shells, and so tells when a mend no longer takes.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::{Generator, shells};

use crate::cli::Cli;

/// The shells that there are scripts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    /// Writes the script.
    pub fn write(self, out: &mut dyn Write) -> io::Result<()> {
        let mut command = Cli::command();
        let name = command.get_name().to_owned();
        command.set_bin_name(name);
        // --help of subcommands, and more, is only there once the command is built.
        command.build();
        let mended = match self {
            Self::Bash => mend_bash(generate(&shells::Bash, &command)?),
            Self::Zsh => generate(&shells::Zsh, &command)?,
            Self::Fish => mend_fish(generate(&shells::Fish, &command)?, &command),
        };
        out.write_all(mended.as_bytes())
    }
}

fn generate(shell: &impl Generator, command: &clap::Command) -> io::Result<String> {
    let mut script = Vec::new();
    shell.try_generate(command, &mut script)?;
    String::from_utf8(script).map_err(io::Error::other)
}

/// Two faults: nothing is offered after a subcommand of a program with a hyphen in its name (clap issue 6421), nor after
/// `--color=`, for bash counts a `=` as a word of its own.
fn mend_bash(script: String) -> String {
    const EQUALS: &str = "    prev=\"$3\"
    if [[ ${cur} == = ]]; then cur=; fi
    if [[ ${prev} == = ]]; then prev=\"${COMP_WORDS[COMP_CWORD-2]}\"; fi
";
    script
        .replace("kmesh__subcmd__trace__subcmd__", "kmesh__trace__subcmd__")
        .replacen("    prev=\"$3\"\n", EQUALS, 1)
}

/// Two faults: nothing is offered after `--output `, because the script gives up where an option still lacks its value;
/// nor what a subcommand's argument may be (clap issue 6295).
fn mend_fish(script: String, command: &clap::Command) -> String {
    let mut script = script.replacen("    or return\n", "    or return 0\n", 1);
    for subcommand in command.get_subcommands() {
        for argument in subcommand.get_positionals() {
            let values = argument.get_possible_values();
            let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
            let (name, names) = (subcommand.get_name(), names.join(" "));
            // Writing to a string cannot fail.
            _ = writeln!(
                script,
                "complete -c kmesh-trace -n \"__fish_kmesh_trace_using_subcommand {name}\" -f -a \"{names}\""
            );
        }
    }
    script
}
