//! The filter that a user types at the prompt of the table.

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use super::{check_family, check_outcomes};
use crate::cli::PromptFilter;
use crate::filter::Filter;

/// What a user can type, for texts without a flag.
const EXAMPLE: &str = "filters are flags, such as -n shop, --port 443 or --failed";

/// Parses filter flags. The error is one line.
pub fn parse_prompt_filter(text: &str) -> Result<Filter, String> {
    let words = split(text)?;
    let parsed = PromptFilter::try_parse_from(words).map_err(|error| error_line(&error))?;
    let filter = Filter::from(&parsed.filters);
    let checked = check_family(&filter).and_then(|()| check_outcomes(&filter));
    checked.map_err(|error| error.to_string())?;
    Ok(filter)
}

/// Splits text into words, with the quotes and backslashes of a POSIX shell.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let current = word.get_or_insert_default();
        match char {
            '\'' => quoted(&mut chars, '\'', current)?,
            '"' => quoted(&mut chars, '"', current)?,
            '\\' => current.push(chars.next().ok_or("a backslash must precede a character")?),
            char => current.push(char),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Appends the text up to the closing quote to `word`.
fn quoted(chars: &mut std::str::Chars<'_>, quote: char, word: &mut String) -> Result<(), String> {
    while let Some(char) = chars.next() {
        match char {
            char if char == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next() {
                Some(escaped @ ('"' | '\\' | '$' | '`')) => word.push(escaped),
                Some(other) => word.extend(['\\', other]),
                None => break,
            },
            char => word.push(char),
        }
    }
    Err(format!("the quote {quote} is not closed"))
}

/// Returns an error as one line, which says what the user can type.
fn error_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    if error.kind() == ErrorKind::UnknownArgument {
        let argument = context(ContextKind::InvalidArg).unwrap_or_default();
        return match context(ContextKind::SuggestedArg) {
            _ if !argument.starts_with('-') => format!("{argument} is no flag: {EXAMPLE}"),
            Some(similar) => format!("{argument} is no filter; similar: {similar}"),
            None => format!("{argument} is no filter: {EXAMPLE}"),
        };
    }
    let text = error.to_string();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let first = lines.first().copied().unwrap_or_default();
    let mut line = first.strip_prefix("error: ").unwrap_or(first).to_owned();
    if let Some(values) = context(ContextKind::ValidValue) {
        line += &format!("; possible: {values}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_split_as_by_a_shell() {
        let cases: [(&str, &[&str]); 11] = [
            ("", &[]),
            ("  ", &[]),
            ("--port 443", &["--port", "443"]),
            ("--comm 'inv*'", &["--comm", "inv*"]),
            (r#"--comm "a b""#, &["--comm", "a b"]),
            (r"--comm a\ b", &["--comm", "a b"]),
            (r#"-l 'app in (a, b)' --failed"#, &["-l", "app in (a, b)", "--failed"]),
            (r#"--comm='a"b'"c'd""#, &[r#"--comm=a"bc'd"#]),
            (r#"--comm "a\"b\c""#, &["--comm", r#"a"b\c"#]),
            ("--comm ''", &["--comm", ""]),
            ("--comm '\\'", &["--comm", "\\"]),
        ];
        for (text, expected) in cases {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn quoted_pattern_filters_like_a_plain_one() {
        assert_eq!(
            parse_prompt_filter("--comm 'inv*' -n \"shop\"").unwrap(),
            parse_prompt_filter("--comm inv* -n shop").unwrap()
        );
    }

    #[test]
    fn error_says_what_is_possible() {
        let cases = [
            (
                "shop",
                "shop is no flag: filters are flags, such as -n shop, --port 443 or --failed",
            ),
            ("--comm 'inv*", "the quote ' is not closed"),
            ("--comm \"inv*\\\"", "the quote \" is not closed"),
            ("--comm a\\", "a backslash must precede a character"),
            ("--prot 443", "--prot is no filter; similar: --port"),
            ("--interval 1s", "--interval is no filter"),
            ("--port x", "invalid value 'x' for '--port"),
            ("--outcome nope", "possible: ok, "),
            ("--direction up", "possible: inbound, outbound"),
            ("--port", "a value is required for '--port"),
            ("-4 --ip ::1", "--ip ::1"),
        ];
        for (text, expected) in cases {
            let error = parse_prompt_filter(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert_eq!(error.lines().count(), 1, "{text}: {error}");
        }
    }
}
