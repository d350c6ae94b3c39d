//! `kmesh-trace completions`: scripts that let a shell complete the command line, made from the same definition that
//! parses it.

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
        match self {
            Self::Bash => shells::Bash.try_generate(&command, out),
            Self::Zsh => shells::Zsh.try_generate(&command, out),
            Self::Fish => shells::Fish.try_generate(&command, out),
        }
    }
}
