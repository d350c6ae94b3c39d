//! Escapes text that others control, such as process and pod names.
//!
//! The result is a JSON string that decodes to the exact text. Its bytes cannot control a terminal or change the
//! reading direction of a line. U+FFFD replaces invalid UTF-8.

use serde_json::ser::{CharEscape, Formatter, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

/// Displays bytes like [`String::from_utf8_lossy`], without a copy.
#[derive(Clone, Copy, Debug)]
pub struct Lossy<'a>(pub &'a [u8]);

impl fmt::Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_str("\u{fffd}")?;
            }
        }
        Ok(())
    }
}

/// Appends `text` as a JSON string with quotes. It is harmless in a log and on a terminal.
pub fn json_string(out: &mut Vec<u8>, text: &impl fmt::Display) {
    use serde::Serializer as _;
    // Writing to a Vec cannot fail, and our Display implementations do not fail.
    let written = Serializer::with_formatter(out, Harmless).collect_str(text);
    debug_assert!(written.is_ok(), "{written:?}");
}

/// Compact JSON as `serde_json` writes it, with `\u` escapes for every character that [`is_harmful`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        // serde_json has removed the characters that it escapes itself. The only other harmful ASCII character is DEL.
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return out.write_all(fragment.as_bytes());
        }
        let mut written = 0;
        for (at, char) in fragment.char_indices().filter(|&(_, char)| is_harmful(char)) {
            out.write_all(&fragment.as_bytes()[written..at])?;
            escape(out, char)?;
            written = at + char.len_utf8();
        }
        out.write_all(&fragment.as_bytes()[written..])
    }

    /// Writes `\u000a` instead of `\n`: the contract has one form for all control characters.
    fn write_char_escape<W: ?Sized + Write>(&mut self, out: &mut W, char_escape: CharEscape) -> io::Result<()> {
        let control = match char_escape {
            CharEscape::Quote => return out.write_all(br#"\""#),
            CharEscape::ReverseSolidus => return out.write_all(br"\\"),
            CharEscape::Solidus => return out.write_all(b"/"),
            CharEscape::Backspace => 0x08,
            CharEscape::FormFeed => 0x0c,
            CharEscape::LineFeed => b'\n',
            CharEscape::CarriageReturn => b'\r',
            CharEscape::Tab => b'\t',
            CharEscape::AsciiControl(control) => control,
        };
        escape(out, char::from(control))
    }
}

/// Returns `text` as one line that is harmless on a terminal, with `\u` escapes for every character that
/// [`is_harmful`].
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return text.into();
    }
    let mut line = String::with_capacity(text.len());
    for char in text.chars() {
        if is_harmful(char) {
            // Writing to a string cannot fail.
            _ = fmt::Write::write_fmt(&mut line, format_args!("\\u{:04x}", u32::from(char)));
        } else {
            line.push(char);
        }
    }
    line.into()
}

/// Returns whether a character can do harm on a terminal: C0, DEL and C1 (Unicode's `Cc`), and the marks that change
/// the reading direction.
pub fn is_harmful(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Writes a `\u` escape. Every harmful character is in the basic plane, so one escape is enough.
fn escape<W: ?Sized + Write>(out: &mut W, char: char) -> io::Result<()> {
    write!(out, "\\u{:04x}", u32::from(char))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        json_string(&mut out, &Lossy(bytes));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_string_escapes_harmful_characters() {
        let cases: [(&str, &[u8], &str); 17] = [
            ("plain", b"nginx", r#""nginx""#),
            ("empty", b"", r#""""#),
            ("space and comma", b"a, b=c", r#""a, b=c""#),
            ("quote and backslash", br#"a"b\c"#, r#""a\"b\\c""#),
            ("solidus", b"kworker/0:1", r#""kworker/0:1""#),
            ("line feed and tab", b"a\nb\tc\r", r#""a\u000ab\u0009c\u000d""#),
            ("backspace and form feed", b"\x08\x0c", r#""\u0008\u000c""#),
            ("escape sequence", b"\x1b[2J", r#""\u001b[2J""#),
            ("NUL", b"a\0b", r#""a\u0000b""#),
            ("DEL", b"a\x7fb", r#""a\u007fb""#),
            ("C1, the eight-bit CSI", "a\u{9b}2J".as_bytes(), r#""a\u009b2J""#),
            ("direction override", "a\u{202e}b".as_bytes(), r#""a\u202eb""#),
            ("direction isolate at the end", "a\u{2066}".as_bytes(), r#""a\u2066""#),
            ("Arabic letter mark at the start", "\u{61c}a".as_bytes(), r#""\u061ca""#),
            (
                "other letters are unchanged",
                "café-日本-🦀".as_bytes(),
                r#""café-日本-🦀""#,
            ),
            ("invalid UTF-8", b"a\xff\xfeb", "\"a\u{fffd}\u{fffd}b\""),
            ("truncated UTF-8", b"a\xf0\x9f\xa6", "\"a\u{fffd}\""),
        ];
        for (name, bytes, json) in cases {
            assert_eq!(quoted(bytes), json, "{name}");
            let decoded: String = serde_json::from_str(json).unwrap();
            assert_eq!(decoded, String::from_utf8_lossy(bytes), "{name}");
        }
    }

    #[test]
    fn one_line_has_no_control_characters() {
        assert_eq!(one_line("plain – 日本"), "plain – 日本");
        assert_eq!(
            one_line("a\u{1b}[2J\nb\u{202e}\u{9b}c"),
            r"a\u001b[2J\u000ab\u202e\u009bc"
        );
    }

    #[test]
    fn only_harmful_characters_are_escaped_and_all_decode() {
        let listed = |c: u32| {
            c < 0x20
                || (0x7f..=0x9f).contains(&c)
                || [0x61c, 0x200e, 0x200f].contains(&c)
                || (0x202a..=0x202e).contains(&c)
                || (0x2066..=0x2069).contains(&c)
        };
        for char in (0..=0xffff).filter_map(char::from_u32) {
            let mut bytes = [0; 4];
            let json = quoted(char.encode_utf8(&mut bytes).as_bytes());
            let expected = match char {
                '"' => r#""\"""#.to_owned(),
                '\\' => r#""\\""#.to_owned(),
                char if listed(char.into()) => format!("\"\\u{:04x}\"", u32::from(char)),
                char => format!("\"{char}\""),
            };
            assert_eq!(json, expected);
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), char.to_string());
        }
    }
}
