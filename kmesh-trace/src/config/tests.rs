//! Tests of whole command lines, and what other tests of settings use.

use std::ffi::OsStr;

use super::*;
use clap::Parser;

const CLOSES: Events = Events {
    close: true,
    open: false,
    update: false,
    reject: false,
    listener: false,
};

/// An environment without terminals and variables, except that standard input is a terminal.
pub(super) const PLAIN: Environment<'_> = Environment {
    no_color: None,
    stdout_is_terminal: false,
    stdin_is_terminal: true,
    term: None,
    page_size: 4096,
};

/// Parses arguments that contain no spaces.
pub(super) fn parsed(arguments: &str) -> Cli {
    let arguments = ["kmesh-trace"].into_iter().chain(arguments.split_whitespace());
    Cli::try_parse_from(arguments).unwrap()
}

fn config(arguments: &str, environment: Environment<'_>) -> Config {
    Config::new(&parsed(arguments), environment).unwrap()
}

#[test]
fn bare_command_has_documented_defaults() {
    let expected = Config {
        read: Vec::new(),
        join: false,
        range: TimeRange {
            since: None,
            until: None,
        },
        capture: None,
        output: Output::Log,
        is_default_output: true,
        events: CLOSES,
        drops: false,
        turns: false,
        findings: None,
        rollup: None,
        filter: Filter::default(),
        include_self: false,
        time_format: TimeFormat::Utc,
        sources: names::sources(&Default::default()).unwrap(),
        interval: Duration::from_secs(5),
        color: false,
        duration: None,
        count: None,
        ring_bytes: 8 << 20,
        verbosity: Verbosity::Normal,
        metrics: None,
    };
    assert_eq!(config("", PLAIN), expected);
}

#[test]
fn flags_set_their_settings() {
    let expected = Config {
        read: Vec::new(),
        join: false,
        range: TimeRange {
            since: None,
            until: None,
        },
        capture: None,
        output: Output::None,
        is_default_output: false,
        events: CLOSES,
        drops: false,
        turns: false,
        findings: None,
        rollup: None,
        filter: Filter::default(),
        include_self: false,
        time_format: TimeFormat::Relative,
        sources: names::sources(&Default::default()).unwrap(),
        interval: Duration::from_secs(5),
        color: false,
        duration: Some(Duration::from_secs(60)),
        count: NonZeroU64::new(9),
        ring_bytes: 65536,
        verbosity: Verbosity::Verbose,
        metrics: None,
    };
    assert_eq!(
        config(
            "-o none --duration 60s --count 9 --buffer 50k -v --time-format relative",
            PLAIN
        ),
        expected
    );
    assert_eq!(config("-q", PLAIN).verbosity, Verbosity::Quiet);
    assert!(config("-o json", PLAIN).output.has_reports());
}

#[test]
fn default_output_is_short_on_a_terminal_and_log_elsewhere() {
    let terminal = Environment {
        stdout_is_terminal: true,
        ..PLAIN
    };
    let output = |arguments, environment| {
        let config = config(arguments, environment);
        (config.output, config.is_default_output)
    };
    assert_eq!(output("", terminal), (Output::Short, true));
    assert_eq!(output("-r x", terminal), (Output::Short, true));
    assert_eq!(output("", PLAIN), (Output::Log, true));
    assert_eq!(output("-o log", terminal), (Output::Log, false));
}

#[test]
fn connecting_requires_an_output_of_updates() {
    for (arguments, is_accepted) in [
        ("--connecting", false),
        ("--connecting -o json --events open", false),
        ("--connecting --events update,close", true),
        ("--connecting -o table", true),
        ("--connecting -o json --rollup", true),
        ("--connecting -w x", true),
        ("--connecting -o none --metrics 0", true),
    ] {
        let config = Config::new(&parsed(arguments), PLAIN);
        assert_eq!(config.is_ok(), is_accepted, "{arguments}: {config:?}");
    }
}

#[test]
fn color_and_screen_require_terminal_with_escape_sequences() {
    for (term, expected) in [
        (Some("xterm-256color"), true),
        (Some("vt100"), true),
        (Some("dumb"), false),
        (Some(""), false),
        (None, false),
    ] {
        let environment = Environment {
            stdout_is_terminal: true,
            term: term.map(OsStr::new),
            ..PLAIN
        };
        assert_eq!(config("", environment).color, expected, "{term:?}");
        let table = config("-o table", environment);
        let on_terminal = table.rollup.is_some_and(|rollup| rollup.on_terminal);
        assert_eq!((table.color, on_terminal), (expected, expected), "{term:?}");
    }
}

#[test]
fn color_obeys_flag_then_no_color_then_terminal() {
    let set = Some(OsStr::new("1"));
    let empty = Some(OsStr::new(""));
    let term = Some(OsStr::new("xterm"));
    let cases = [
        ("a terminal", "", None, true, true),
        ("a pipe", "", None, false, false),
        ("NO_COLOR", "", set, true, false),
        ("empty NO_COLOR", "", empty, true, true),
        ("--color always into a pipe", "--color always", None, false, true),
        ("--color always against NO_COLOR", "--color always", set, true, true),
        ("--color never on a terminal", "--color never", None, true, false),
        ("JSON has no colors", "-o json --color always", None, true, false),
    ];
    for (name, arguments, no_color, stdout_is_terminal, expected) in cases {
        let environment = Environment {
            no_color,
            stdout_is_terminal,
            term,
            ..PLAIN
        };
        assert_eq!(config(arguments, environment).color, expected, "{name}");
    }
}
