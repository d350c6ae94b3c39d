//! `cargo xtask man`: generates the manual page. The page is committed, so that packages need no tool to ship it.
//!
//! Names, usage, commands and options come from the definition of the command line. The other sections are the files of
//! `man/sections`, in the order of their names.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use kmesh_trace::cli::Cli;

use crate::host::{self, Need};

/// The page in the repository.
pub const PAGE: &str = "man/kmesh-trace.8";
const SECTIONS: &str = "man/sections";
/// The programs that `--check` calls.
pub const LINTERS: &[Need] = &[
    Need {
        program: "man",
        package: "man-db",
    },
    Need {
        program: "mandoc",
        package: "mandoc",
    },
];
/// The maximum length of a line of source, by mandoc.
const WIDTH: usize = 80;
/// The start of the lines with which `clap_mangen` defines an apostrophe, for both kinds of roff.
const APOSTROPHE: [&str; 2] = [r".ie \n(.g", r".el .ds Aq"];

#[derive(clap::Args)]
pub struct Args {
    /// Check that the committed page is current and valid, without writing it
    #[arg(long)]
    check: bool,
}

/// Generates or checks the page.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = host::root();
    if args.check {
        current(&root)?;
        lint(&root)?;
        println!("{PAGE} is current");
        return Ok(ExitCode::SUCCESS);
    }
    if current(&root).is_ok() {
        println!("{PAGE} is already current");
    } else {
        let today = host::text(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
        let sections = sections(&root.join(SECTIONS))?;
        fs::write(root.join(PAGE), page(today.trim(), &sections)?).with_context(|| format!("cannot write {PAGE}"))?;
        println!("{PAGE}: generated");
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the committed page. Returns an error if the page would change, apart from its date, which is the date of the
/// last change.
pub fn current(root: &Path) -> Result<String> {
    let committed = fs::read_to_string(root.join(PAGE));
    let committed = committed.with_context(|| format!("cannot read {PAGE}: run cargo xtask man"))?;
    let sections = sections(&root.join(SECTIONS))?;
    ensure!(
        page(date(&committed)?, &sections)? == committed,
        "{PAGE} is not current: run cargo xtask man"
    );
    Ok(committed)
}

/// Returns the text of all files in `man/sections`.
fn sections(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "roff"))
        .map(|file| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display())))
        .collect()
}

/// Returns the date in the title line of a page.
pub fn date(page: &str) -> Result<&str> {
    let title = page.lines().find_map(|line| line.strip_prefix(".TH "));
    title
        .and_then(|title| title.split_whitespace().nth(2))
        .with_context(|| format!("{PAGE} has no .TH line with a date: delete it and run cargo xtask man"))
}

fn page(date: &str, sections: &str) -> Result<String> {
    let command = Cli::command();
    let man = Man::new(command.clone())
        .title(command.get_name().to_uppercase())
        .section("8")
        .date(date)
        .manual("System Manager\u{2019}s Manual");
    let mut generated = Vec::new();
    man.render_title(&mut generated)?;
    man.render_name_section(&mut generated)?;
    man.render_synopsis_section(&mut generated)?;
    man.render_description_section(&mut generated)?;
    commands(&command).to_writer(&mut generated)?;
    man.render_options_section(&mut generated)?;
    let generated = String::from_utf8(generated).context("clap_mangen")?;
    let mut page = String::from(".\\\" Made by cargo xtask man from the command line's definition and man/sections.\n");
    // Each part defines a macro for an apostrophe. Every current roff has a character for it.
    for line in generated
        .lines()
        .filter(|line| !APOSTROPHE.iter().any(|begin| line.starts_with(begin)))
    {
        fold(&line.replace(r"\*(Aq", r"\(aq"), &mut page);
    }
    page.push_str(sections);
    Ok(page)
}

/// Returns the section about subcommands. `clap_mangen` would refer to a page for each of them.
fn commands(command: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        roff.control("TP", []);
        let mut usage = vec![bold(subcommand.get_name())];
        let has_flags = subcommand.get_opts().next().is_some();
        if has_flags {
            usage.push(roman(" [OPTIONS]"));
        }
        for argument in subcommand.get_positionals() {
            let names: Vec<_> = argument
                .get_possible_values()
                .iter()
                .map(|value| value.get_name().to_owned())
                .collect();
            usage.extend(match (argument.is_last_set(), argument.get_value_names()) {
                (true, _) => vec![roman(" [-- FLAGS]")],
                (false, Some([name, ..])) if names.is_empty() => vec![roman(" "), italic(name.as_str())],
                (false, _) => vec![roman(" "), bold(names.join("|"))],
            });
        }
        roff.text(usage);
        let about = subcommand.get_about().map(|about| format!("{about}."));
        roff.text([roman(about.unwrap_or_default())]);
        let (_, more) = split_help(subcommand.get_long_about());
        roff.text([roman(more)]);
        for argument in subcommand.get_positionals() {
            // The first paragraph only names the argument.
            roff.text([roman(split_help(argument.get_long_help()).1)]);
        }
        if has_flags {
            subcommand_flags(subcommand, &mut roff);
        }
    }
    roff
}

/// Appends the flags of a subcommand. Those under a heading are also flags of the tool itself, which OPTIONS has.
fn subcommand_flags(subcommand: &clap::Command, roff: &mut Roff) {
    let is_shared = |argument: &clap::Arg| argument.get_help_heading().is_some();
    let has_names = |argument: &clap::Arg| argument.get_help_heading() == Some("Names");
    if subcommand.get_arguments().any(has_names) {
        roff.text([roman(
            "The flags that filter and those that choose sources of names are under OPTIONS, too.",
        )]);
    } else if subcommand.get_arguments().any(is_shared) {
        roff.text([roman("The flags that filter are under OPTIONS, too.")]);
    }
    roff.control("RS", []);
    let is_own = |argument: &&clap::Arg| {
        let is_standard = ["help", "version"].contains(&argument.get_id().as_str());
        !argument.is_positional() && !is_standard && !is_shared(argument)
    };
    for argument in subcommand.get_arguments().filter(is_own) {
        roff.control("TP", []);
        let short = argument.get_short().map(|short| format!("-{short}"));
        let long = argument.get_long().map(|long| format!("--{long}"));
        let names: Vec<_> = short.into_iter().chain(long).collect();
        let mut usage = vec![bold(names.join(", "))];
        if let Some(values) = argument
            .get_value_names()
            .filter(|_| argument.get_action().takes_values())
        {
            usage.extend([roman(" "), italic(values[0].as_str())]);
        }
        roff.text(usage);
        let (first, more) = split_help(argument.get_long_help());
        roff.text([roman(format!("{first}."))]);
        roff.text([roman(more.replace("\n\n", " "))]);
    }
    roff.control("RE", []);
}

/// Returns the first paragraph of a help text, and the rest.
fn split_help(help: Option<&clap::builder::StyledStr>) -> (String, String) {
    let help = help.map(ToString::to_string).unwrap_or_default();
    let (first, more) = help.split_once("\n\n").unwrap_or((&help, ""));
    (first.to_owned(), more.to_owned())
}

/// Appends a line to the page, folded at [`WIDTH`]. roff joins the parts again.
fn fold(line: &str, page: &mut String) {
    let mut width = 0;
    for word in line.split(' ') {
        // A line that starts with one of these characters would be a request.
        let breakable = !line.starts_with('.') && !word.starts_with(['.', '\'']) && !word.is_empty();
        if width > 0 {
            let full = width + 1 + columns(word) > WIDTH;
            page.push(if full && breakable { '\n' } else { ' ' });
            width = if full && breakable { 0 } else { width + 1 };
        }
        page.push_str(word);
        width += columns(word);
    }
    page.push('\n');
}

/// Returns the length of a word as mandoc counts it: a character that is not ASCII counts as `\[u2026]`.
fn columns(word: &str) -> usize {
    let of = |letter: char| {
        if letter.is_ascii() {
            1
        } else {
            format!("\\[u{:04X}]", u32::from(letter)).len()
        }
    };
    word.chars().map(of).sum()
}

/// Checks the page with man and mandoc. A program that is missing and cannot be installed is skipped with a message.
fn lint(root: &Path) -> Result<()> {
    if host::is_root() {
        host::ensure(LINTERS)?;
    }
    let lints: [(&str, &[&str]); 2] = [
        ("man", &["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", PAGE]),
        ("mandoc", &["-Tlint", PAGE]),
    ];
    for (program, arguments) in lints {
        if host::find(program).is_none() {
            eprintln!("xtask: SKIPPED: {program} is not installed, so it has not checked {PAGE}");
            continue;
        }
        let output = Command::new(program)
            .current_dir(root)
            .args(arguments)
            .stdin(Stdio::null())
            .env("MANWIDTH", "80")
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        // mandoc prints complaints on standard output, man prints the typeset page there.
        let mut complaints = String::from_utf8_lossy(&output.stderr).into_owned();
        if program == "mandoc" {
            complaints.push_str(&String::from_utf8_lossy(&output.stdout));
        }
        if !output.status.success() || !complaints.is_empty() {
            bail!(
                "{program} reports problems in {PAGE} ({}):\n{}",
                output.status,
                complaints.trim_end()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use kmesh_trace::output::json::schema::schema;
    use kmesh_trace::record::Outcome;
    use serde_json::Value;

    use super::*;

    /// Returns the words of the page without roff's markup.
    fn words() -> BTreeSet<String> {
        let sections = sections(&host::root().join(SECTIONS)).unwrap();
        let page = page("2000-01-01", &sections).unwrap();
        let plain = page.replace("\\-", "-").replace("\\f", " \\f");
        let words = plain.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c)));
        words.map(str::to_owned).collect()
    }

    fn properties(schema: &Value, names: &mut BTreeSet<String>) {
        match schema {
            Value::Object(members) => {
                if let Some(Value::Object(properties)) = members.get("properties") {
                    names.extend(properties.keys().cloned());
                }
                members.values().for_each(|member| properties(member, names));
            }
            Value::Array(members) => members.iter().for_each(|member| properties(member, names)),
            _ => {}
        }
    }

    #[test]
    fn every_field_and_outcome_is_explained() {
        let words = words();
        let mut names: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.name().to_owned()).collect();
        let schema = serde_json::to_value(schema()).unwrap();
        properties(&schema, &mut names);
        assert!(names.len() > 60, "{names:?}");
        let missing: Vec<_> = names.difference(&words).collect();
        assert!(missing.is_empty(), "man/sections does not explain {missing:?}");
    }

    #[test]
    fn commands_have_their_arguments_and_flags() {
        let mut roff = Vec::new();
        commands(&Cli::command()).to_writer(&mut roff).unwrap();
        let text = String::from_utf8(roff).unwrap();
        let (_, diff) = text.split_once("\\fBdiff\\fR").unwrap();
        let (diff, nodes) = diff.split_once("\\fBnodes\\fR").unwrap();
        assert!(diff.starts_with(" [OPTIONS] \\fIBEFORE\\fR \\fIAFTER\\fR\n"), "{diff}");
        assert_eq!(diff.matches("saved").count(), 1, "{diff}");
        assert!(diff.contains("The flags that filter are under OPTIONS, too."), "{diff}");
        assert!(
            nodes.contains("[\\-\\- FLAGS]") || nodes.contains("[-- FLAGS]"),
            "{nodes}"
        );
        assert!(nodes.contains("\\fBbash|zsh|fish\\fR"), "{nodes}");
    }

    #[test]
    fn long_lines_are_folded_except_requests() {
        let word = "x".repeat(30);
        let cases = [
            ("short".to_owned(), "short\n".to_owned()),
            (String::new(), "\n".to_owned()),
            (format!("{word} {word} {word}"), format!("{word} {word}\n{word}\n")),
            (format!("{word} {word} .{word}"), format!("{word} {word} .{word}\n")),
            (format!(".B {word} {word} {word}"), format!(".B {word} {word} {word}\n")),
        ];
        for (line, expected) in cases {
            let mut page = String::new();
            fold(&line, &mut page);
            assert_eq!(page, expected);
        }
    }

    #[test]
    fn date_is_read_from_the_title() {
        assert_eq!(
            date(".\\\" note\n.TH KMESH-TRACE 8 2026-01-02 \"x\"\n").unwrap(),
            "2026-01-02"
        );
        assert!(date(".SH NAME\n").is_err());
    }
}
