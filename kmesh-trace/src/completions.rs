//! `kmesh-trace completions`: generates shell completion scripts from the definition of the command line.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::{Generator, shells};

use crate::cli::{Cli, Shell};

/// Writes the completion script of `shell`.
pub fn write(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    command.set_bin_name(name);
    // `build` adds the flags that clap generates, such as --help of the subcommands.
    command.build();
    match shell {
        Shell::Bash => shells::Bash.try_generate(&command, out),
        Shell::Zsh => shells::Zsh.try_generate(&command, out),
        Shell::Fish => shells::Fish.try_generate(&command, out),
    }
}
