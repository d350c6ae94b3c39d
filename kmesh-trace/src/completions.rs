//! `kmesh-trace completions`: generates shell completion scripts from the definition of the command line.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::{Generator, shells};

use crate::cli::{Cli, Shell};

const NAME: &str = "kmesh-trace";

/// Writes the completion script of `shell`.
pub fn write(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut command = visible_command();
    // clap_complete 4.6 splits the names of bash's cases at each hyphen, but not the names that select them (clap issue
    // 6421). Subcommands whose names start with `kmesh__trace` have cases that are selected.
    command.set_bin_name(match shell {
        Shell::Bash => NAME.replace('-', "__"),
        Shell::Zsh | Shell::Fish => NAME.to_owned(),
    });
    if shell == Shell::Fish {
        // clap_complete 4.6 offers subcommands in fish, but no values of an argument without a flag (clap issue 6295).
        command = command.mut_subcommand("completions", |completions| {
            let shells = ["bash", "zsh", "fish"].map(Command::new);
            Command::new("completions")
                .about(completions.get_about().cloned().unwrap_or_default())
                .disable_help_subcommand(true)
                .subcommands(shells)
        });
    }
    // `build` adds the flags that clap generates, such as --help of the subcommands, and names the subcommands.
    command.build();
    command.set_bin_name(NAME);
    match shell {
        Shell::Bash => shells::Bash.try_generate(&command, out),
        Shell::Zsh => shells::Zsh.try_generate(&command, out),
        Shell::Fish => shells::Fish.try_generate(&command, out),
    }
}

/// Returns the command without its hidden subcommands, which clap_complete would offer.
fn visible_command() -> Command {
    let command = Cli::command();
    let subcommands = command.get_subcommands();
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .args(command.get_arguments())
        .groups(command.get_groups())
        .subcommands(subcommands.filter(|subcommand| !subcommand.is_hide_set()))
}
