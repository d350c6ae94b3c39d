//! A terminal in which a user looks into an incident, and the comparison of its screens with golden files.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::support::actor::Actor;
use crate::support::sock::{Span, wait_until};
use crate::support::terminal::Terminal;
use crate::support::{net, scratch_dir, tracer};

/// The prompt of the shell, as in the README.
const PROMPT: &str = "# ";

/// A network namespace with addresses of its own, and a terminal in it.
pub struct Scene {
    pub terminal: Terminal,
    /// The second and the third byte of the addresses.
    network: (u8, u8),
    /// What varies between runs, and what stands for it in golden files.
    masks: Vec<(String, String)>,
}

impl Scene {
    /// Opens a terminal whose shell has the command `kmesh-trace`. The command traces only this scene's addresses, and
    /// calls the node `worker-1`.
    pub fn open(columns: u32, lines: u32) -> Self {
        let network = new_network();
        let prefix = format!("10.{}.{}", network.0, network.1);
        net::run("ip", &["addr", "add", &format!("{prefix}.100/24"), "dev", "lo"]);
        let terminal = Terminal::open(columns, lines);
        terminal.command(&format!(
            "kmesh-trace() {{ NODE_NAME=worker-1 '{}' \"$@\" --no-resolve --ip {prefix}.0/24; }}; PS1='{PROMPT}'; clear",
            tracer::binary().to_string_lossy()
        ));
        terminal.wait("the prompt", |screen| screen.trim_end() == PROMPT.trim_end());
        Self {
            terminal,
            network,
            masks: vec![(prefix, "10.NNN.NNN".to_owned())],
        }
    }

    /// Returns an address of the scene: one that ends with `host`, which has three digits.
    pub fn at(&self, host: u8, port: u16) -> SocketAddr {
        let (second, third) = self.network;
        (Ipv4Addr::new(10, second, third, host), port).into()
    }

    /// Starts a process of this name.
    pub fn process(&mut self, comm: &str) -> Actor {
        let actor = Actor::start();
        actor.set_comm(comm.as_bytes());
        self.masks
            .push((format!("{comm}/{}", actor.pid()), format!("{comm}/PID")));
        actor
    }

    /// Adds a text that varies between runs, and what stands for it in golden files.
    pub fn mask(&mut self, text: &str, mask: &str) {
        if !text.is_empty() {
            self.masks.push((text.to_owned(), mask.to_owned()));
        }
    }

    /// Changes to a new directory, and returns its path.
    pub fn new_directory(&self) -> std::path::PathBuf {
        let (second, third) = self.network;
        let directory = scratch_dir().join(format!("incident-{second}-{third}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        self.terminal.command(&format!("cd '{}'; clear", directory.display()));
        self.terminal
            .wait("the prompt", |screen| screen.trim_end() == PROMPT.trim_end());
        directory
    }

    /// Types a command that prints lines, and waits until it traces.
    pub fn trace(&self, command: &str) {
        let count = |text: &str| text.matches("kmesh-trace: tracing every").count();
        let before = count(&self.terminal.unwrapped());
        self.terminal.command(command);
        self.terminal
            .wait_unwrapped("the start message", |text| count(text) > before);
    }

    /// Types a command that shows a table, and waits until it traces.
    pub fn table(&self, command: &str) {
        self.terminal.command(command);
        self.terminal
            .wait("the table", |_| self.terminal.fact("alternate_on") == "1");
        self.terminal
            .wait("the first screen", |screen| screen.contains("q quit"));
    }

    /// Waits for a screen of the table that meets the condition, and returns it. The keys stand on the last line again
    /// if there was a notice: a busy machine lengthens the update interval, and says so there.
    pub fn wait(&self, what: &str, is_it: impl Fn(&str) -> bool) -> String {
        self.terminal
            .wait(what, |screen| is_it(screen) && Self::shows_keys(screen))
    }

    pub fn shows_keys(screen: &str) -> bool {
        screen
            .trim_end()
            .lines()
            .last()
            .is_some_and(|line| line.starts_with("q quit"))
    }

    /// Waits for the end of a command that prints lines. Returns the command and its lines.
    pub fn lines(&self) -> String {
        let is_over = |text: &str| text.trim_end().ends_with("\n#");
        let text = self.terminal.wait_unwrapped("the prompt", is_over);
        let first = text.rfind(&format!("{PROMPT}kmesh-trace")).expect("a command");
        text[first..].trim_end().trim_end_matches('#').trim_end().to_owned()
    }

    /// Interrupts a command that prints lines, as [`Self::lines`].
    pub fn interrupt(&self) -> String {
        self.terminal.keys(&["C-c"]);
        self.lines()
    }

    /// Types `q`, and waits for the summary and the prompt.
    pub fn quit(&self) {
        self.terminal.keys(&["q"]);
        self.terminal
            .wait_unwrapped("the summary", |text| text.contains(" closed on "));
        wait_until("the prompt", || self.terminal.screen().trim_end().ends_with("\n#"));
    }

    /// Compares lines with a golden file.
    pub fn compare_lines(&self, name: &str, lines: &str) {
        // A busy machine lengthens the update interval, and says so.
        let lines = lines
            .lines()
            .filter(|line| !line.starts_with("kmesh-trace: socket scan took"));
        let masked = lines.map(|line| self.masked(line, false));
        compare(name, &masked.collect::<Vec<_>>());
    }

    /// Compares the screen of a table with a golden file. The parts of the first line that depend on time, and on the
    /// space that others leave, are left out.
    pub fn compare_screen(&self, name: &str, screen: &str) {
        let mut lines = screen.lines();
        let header = lines.next().unwrap_or_default().split("  ");
        let is_rate = |part: &str| {
            ["sent", "received", "opened", "failed"]
                .iter()
                .any(|end| part.ends_with(end))
        };
        let parts: Vec<_> = header
            .filter(|part| !is_rate(part) && !part.starts_with("partial") && !part.ends_with('Z'))
            .map(|part| match part.strip_prefix("up ") {
                Some(_) => "up TIME".to_owned(),
                None => masked_words(part, false),
            })
            .collect();
        let masked = std::iter::once(parts.join("  ")).chain(lines.map(|line| self.masked(line, true)));
        compare(name, &masked.collect::<Vec<_>>());
    }

    /// Returns a line without what varies. `is_aligned`: whether the line is a row of a table.
    fn masked(&self, line: &str, is_aligned: bool) -> String {
        let mut line = line.to_owned();
        for (text, mask) in &self.masks {
            line = line.replace(text, mask);
        }
        if line.starts_with(PROMPT) {
            return line;
        }
        match line.split_once(" closed on worker-1 in ") {
            Some((_, end)) => masked_summary(end),
            None if is_aligned => masked_words(&line, true),
            None => masked_words(&without_retransmissions(&line), false),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // A failed scene may leave a table on the screen.
        if std::thread::panicking() {
            eprintln!("{}", self.terminal.unwrapped());
        }
    }
}

/// Returns the second and the third byte of addresses that no other scene uses, and no other run of the suite. Both
/// have three digits, so all addresses have the same width.
fn new_network() -> (u8, u8) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 16;
    let byte = |number: u32| 100 + u8::try_from(number % 156).expect("less than 156");
    (byte(number), byte(number / 156))
}

/// Compares lines with a golden file. `KMESH_TRACE_UPDATE_GOLDEN=1` writes the file instead.
fn compare(name: &str, lines: &[String]) {
    let text: String = lines.iter().map(|line| format!("{}\n", line.trim_end())).collect();
    if std::env::var_os("KMESH_TRACE_UPDATE_GOLDEN").is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kernel/incidents");
        std::fs::write(folder.join(format!("{name}.txt")), text).expect("write the golden file");
        return;
    }
    let golden = super::GOLDEN.iter().find(|(golden, _)| *golden == name);
    let (_, golden) = golden.unwrap_or_else(|| panic!("no golden file {name}"));
    if let Some((number, line, golden)) = first_difference(&text, golden) {
        panic!("{name}: line {number} is {line:?} instead of {golden:?}:\n{text}");
    }
}

/// Returns the number of the first line that differs, from 1, and this line of both texts. A missing line is empty.
fn first_difference<'a>(text: &'a str, golden: &'a str) -> Option<(usize, &'a str, &'a str)> {
    let [mut lines, mut golden_lines] = [text, golden].map(|text| text.split('\n'));
    let mut number = 0;
    loop {
        number += 1;
        match (lines.next(), golden_lines.next()) {
            (None, None) => return None,
            (line, golden) if line == golden => {}
            (line, golden) => return Some((number, line.unwrap_or_default(), golden.unwrap_or_default())),
        }
    }
}

/// Returns a line without its number of retransmissions. On a busy machine, an acknowledgment may come too late.
fn without_retransmissions(line: &str) -> String {
    let parts = line.split("  ").filter(|part| !part.ends_with(" retransmitted"));
    parts.collect::<Vec<_>>().join("  ")
}

/// Returns the summary without the numbers that depend on the rest of the machine. `end` follows the node's name.
fn masked_summary(end: &str) -> String {
    let delivered = end.split([' ', ':']).filter(|word| !word.is_empty()).nth(1);
    let delivered = delivered.unwrap_or_default();
    format!(
        "kmesh-trace: N connections closed on worker-1 in TIME: {delivered} delivered, N filtered, 0 lost, 0 after the \
         limit; N still open"
    )
}

/// Returns a line with `TIME` in place of durations, `RATE` of rates, and `HH:MM:SS` of times. With `is_aligned`, the
/// ends of the words stay where they are.
fn masked_words(line: &str, is_aligned: bool) -> String {
    let mut masked = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let spaces = rest.len() - rest.trim_start_matches(' ').len();
        masked.push_str(&rest[..spaces]);
        rest = &rest[spaces..];
        let (word, mask) = first_word(rest);
        rest = &rest[word.len()..];
        let Some(mask) = mask else {
            masked.push_str(word);
            continue;
        };
        if is_aligned {
            masked.truncate(masked.trim_end_matches(' ').len());
            let width = (masked.chars().count() + spaces + word.chars().count()).saturating_sub(mask.len());
            let padding = width.saturating_sub(masked.chars().count()).max(1);
            masked.push_str(&" ".repeat(padding));
        }
        masked.push_str(mask);
    }
    masked
}

/// Returns the first word, and what stands for it. A rate is one word.
fn first_word(text: &str) -> (&str, Option<&'static str>) {
    let end = text.find(' ').unwrap_or(text.len());
    let word = &text[..end];
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let unit = text[end..].trim_start().split(' ').next().unwrap_or_default();
    if unit.ends_with("B/s") && is_number(word.trim_start_matches('<')) {
        return (&text[..end + 1 + unit.len()], Some("RATE"));
    }
    let shape: String = word
        .chars()
        .map(|char| if char.is_ascii_digit() { '0' } else { char })
        .collect();
    let number = word.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let is_time = ["ns", "us", "ms", "s", "m", "h"].contains(&&word[number.len()..]);
    let mask = match &*shape {
        "00:00:00.000" => Some("HH:MM:SS.mmm"),
        "00:00:00Z" => Some("HH:MM:SSZ"),
        _ if is_time && is_number(number) => Some("TIME"),
        _ if is_time && is_number(number.trim_start_matches('>')) => Some(">TIME"),
        _ => None,
    };
    (word, mask)
}

/// Returns the words of the row of a table that contains `text`, without the mark before it.
pub fn row(screen: &str, text: &str) -> Option<Vec<String>> {
    let line = screen.lines().find(|line| line.contains(text))?;
    let words = line.trim_start_matches(['>', '+', '-', ' ']).split_whitespace();
    Some(words.map(str::to_owned).collect())
}

/// Returns the screen with the server's end of each connection above the client's. Both ends count the same bytes, but
/// a scan does not read them at the same moment. So in one window either can count more and stand above the other.
pub fn with_servers_first(screen: &str) -> String {
    const HEADER_LINES: usize = 3;
    let mut lines: Vec<_> = screen.lines().map(str::to_owned).collect();
    for ends in lines[HEADER_LINES..].chunks_exact_mut(2) {
        let [above, below] = ends else { unreachable!() };
        if above.starts_with([' ', '>'])
            && above[1..].starts_with("out ")
            && below.starts_with([' ', '>'])
            && below[1..].starts_with("in ")
        {
            std::mem::swap(above, below);
            // The mark of the selected row stays where it is.
            let mark = below[..1].to_owned();
            below.replace_range(..1, &above[..1]);
            above.replace_range(..1, &mark);
        }
    }
    lines.join("\n")
}

/// Checks that a short line's time is in `span`, to the millisecond.
pub fn check_time(line: &str, span: Span) {
    const DAY_MS: u128 = 86_400_000;
    let parts: Vec<u128> = line[..12]
        .split([':', '.'])
        .map(|part| part.parse().expect("a number"))
        .collect();
    let shown = ((parts[0] * 60 + parts[1]) * 60 + parts[2]) * 1000 + parts[3];
    let [before, after] = [span.before, span.after].map(|time| {
        let since_epoch = time.duration_since(std::time::UNIX_EPOCH);
        since_epoch.expect("after 1970").as_millis()
    });
    let is_within = (before..=after).any(|time| time % DAY_MS == shown);
    assert!(is_within, "{line} is not between {before} and {after}");
}
