//! What the table's screen shows and what keys do to it: state alone. Windows and keys come in, lines and wishes go out.

use std::collections::HashSet;
use std::sync::Arc;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::columns::{Change, Layout, Shown, order};
use super::{Told, header, text};
use crate::filter::Filter;
use crate::rollup::{By, Group, Key, Row, Sort, SortKey};

/// Keys that are always there, at the foot.
const FOOT: &str = "q quit  p pause  s/S sort  g group  / filter  ↑↓ move  Enter connections  ? help";

const HELP: &[&str] = &[
    "Keys",
    "  q Esc Ctrl-C    quit                      p space       pause, go on",
    "  s  S            next sort column, turn    g             next grouping",
    "  /               filter, as typed on the command line: --port 443 --failed",
    "  ↑ ↓ PgUp PgDn   move                      Home          back to the top",
    "  Enter           the group's connections   Esc           back",
    "",
    "A line is one group, seen from the end that was traced: out is the client's end,",
    "in the server's. + new in this window, - gone since the last one, > selected.",
    "OPEN+TRY   open now; +2: two attempts to connect still hang",
    "FAILED     how many ended otherwise than ok, and mostly how:",
    "           no answer (connect timed out), gave up (closed before it connected),",
    "           peer reset, reset here (by this end), timed out (once connected)",
    "SENT       bytes a second by the end that was traced; RECEIVED likewise",
    "P50 P95    how long connections took that ended; HSHK95: their handshakes",
    "SRTT       median round-trip time     RETR LOST   segments sent again, lost",
];

/// What the screen wants from the rest.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// End the program.
    Quit,
    /// Stop the program, as the terminal would.
    Suspend,
    /// Group otherwise.
    Regroup(By),
    /// Count only what passes this, too.
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
enum Mode {
    Groups,
    Connections(Arc<Group>),
    Help,
    Prompt { text: String, error: Option<String> },
}

/// What the screen was told to begin with.
#[derive(Clone, Debug)]
pub struct Begin {
    /// What is grouped by.
    pub by: Vec<Key>,
    /// The order.
    pub sort: Sort,
    /// At most so many rows.
    pub top: Option<usize>,
    /// Whether there are colours.
    pub color: bool,
    /// Makes a filter of what was typed, or says what is wrong with it.
    pub parse: fn(&str) -> Result<Filter, String>,
}

/// The screen's state.
#[derive(Debug)]
pub struct View {
    begin: Begin,
    /// Where `g` has come to: 0 is what was begun with.
    grouping: usize,
    sort: Sort,
    filter: String,
    mode: Mode,
    paused: bool,
    /// What is shown.
    told: Option<Arc<Told>>,
    /// The groups of the window before that one.
    before: Vec<Row>,
    /// What came while paused.
    missed: Option<Arc<Told>>,
    /// Rows of another grouping or filter are not to be compared with.
    waiting: bool,
    cursor: usize,
    /// The group under the cursor, once it was moved: it is followed from window to window.
    followed: Option<Arc<Group>>,
    offset: usize,
    note: Option<String>,
    size: (usize, usize),
}

impl View {
    /// Nothing is told yet.
    pub fn new(begin: Begin, size: (u16, u16)) -> Self {
        let mut view = Self {
            sort: begin.sort,
            begin,
            grouping: 0,
            filter: String::new(),
            mode: Mode::Groups,
            paused: false,
            told: None,
            before: Vec::new(),
            missed: None,
            waiting: false,
            cursor: 0,
            followed: None,
            offset: 0,
            note: None,
            size: (0, 0),
        };
        view.resize(size);
        view
    }

    /// The terminal has so many columns and lines.
    pub fn resize(&mut self, (columns, lines): (u16, u16)) {
        // One that does not know is taken for the smallest that is usual.
        let known = |size: u16, usual| if size == 0 { usual } else { usize::from(size) };
        self.size = (known(columns, 80), known(lines, 24));
    }

    /// A window is over.
    pub fn window(&mut self, told: Arc<Told>) {
        if self.paused {
            self.missed = Some(told);
        } else {
            self.show(told);
        }
    }

    /// The latest of what the program has to say.
    pub fn note(&mut self, note: Option<String>) {
        self.note = note;
    }

    fn show(&mut self, told: Arc<Told>) {
        let last = self.told.replace(told);
        let comparable = last.filter(|_| !std::mem::take(&mut self.waiting));
        self.before = comparable.map_or_else(Vec::new, |last| last.window.rows.clone());
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Option<Ask> {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (key.code, is_control) {
            (KeyCode::Char('c'), true) => return Some(Ask::Quit),
            (KeyCode::Char('z'), true) => return Some(Ask::Suspend),
            _ => {}
        }
        match &mut self.mode {
            Mode::Prompt { text, error } => match (key.code, is_control) {
                (KeyCode::Esc, _) => self.mode = Mode::Groups,
                (KeyCode::Enter, _) => return self.apply_filter(),
                (KeyCode::Backspace, _) => _ = text.pop(),
                (KeyCode::Char('u'), true) => text.clear(),
                (KeyCode::Char(char), false) => {
                    text.push(char);
                    *error = None;
                }
                _ => {}
            },
            Mode::Help => self.mode = Mode::Groups,
            Mode::Groups | Mode::Connections(_) if !is_control => return self.command(key.code),
            Mode::Groups | Mode::Connections(_) => {}
        }
        None
    }

    fn command(&mut self, key: KeyCode) -> Option<Ask> {
        let page = self.page();
        match key {
            KeyCode::Char('q') => return Some(Ask::Quit),
            KeyCode::Esc if self.mode == Mode::Groups => return Some(Ask::Quit),
            KeyCode::Esc => self.enter(Mode::Groups),
            KeyCode::Char('p' | ' ') => self.pause(),
            KeyCode::Char('s') => self.next_sort(),
            KeyCode::Char('S') => self.sort.descending = !self.sort.descending,
            KeyCode::Char('g') => return self.next_grouping(),
            KeyCode::Char('/') => {
                self.mode = Mode::Prompt {
                    text: self.filter.clone(),
                    error: None,
                }
            }
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Up => self.step(self.cursor.saturating_sub(1)),
            KeyCode::Down => self.step(self.cursor + 1),
            KeyCode::PageUp => self.step(self.cursor.saturating_sub(page)),
            KeyCode::PageDown => self.step(self.cursor + page),
            KeyCode::Home => {
                (self.cursor, self.offset, self.followed) = (0, 0, None);
            }
            KeyCode::End => self.step(usize::MAX),
            KeyCode::Enter if self.mode == Mode::Groups => {
                if let Some(group) = self.selected() {
                    self.enter(Mode::Connections(group));
                }
            }
            _ => {}
        }
        None
    }

    fn enter(&mut self, mode: Mode) {
        // Back from the connections, the cursor is where it was.
        self.followed = match &self.mode {
            Mode::Connections(group) => Some(Arc::clone(group)),
            _ => None,
        };
        self.mode = mode;
        (self.cursor, self.offset) = (0, 0);
    }

    fn pause(&mut self) {
        self.paused = !self.paused;
        if !self.paused
            && let Some(missed) = self.missed.take()
        {
            self.show(missed);
        }
    }

    /// The next column that is on the screen, after the last one both directions' bytes together.
    fn next_sort(&mut self) {
        let keys: Vec<SortKey> = self.layout().sort_keys().chain([SortKey::Bytes]).collect();
        let at = keys.iter().position(|&key| key == self.sort.key);
        let key = keys[at.map_or(0, |at| (at + 1) % keys.len())];
        self.sort = Sort {
            key,
            // Names from A to Z, of numbers the largest first.
            descending: key != SortKey::Group,
        };
    }

    fn next_grouping(&mut self) -> Option<Ask> {
        self.grouping = (self.grouping + 1) % self.groupings().len();
        self.enter(Mode::Groups);
        self.followed = None;
        self.waiting = true;
        Some(Ask::Regroup(By::new(&self.by())))
    }

    /// What was begun with, and each key on its own.
    fn groupings(&self) -> Vec<Vec<Key>> {
        use clap::ValueEnum;
        let singles = Key::value_variants().iter().map(|&key| vec![key]);
        let others = singles.filter(|keys| *keys != self.begin.by);
        std::iter::once(self.begin.by.clone()).chain(others).collect()
    }

    fn by(&self) -> Vec<Key> {
        self.groupings().swap_remove(self.grouping)
    }

    fn apply_filter(&mut self) -> Option<Ask> {
        let Mode::Prompt { text, error } = &mut self.mode else {
            return None;
        };
        match (self.begin.parse)(text) {
            Ok(filter) => {
                self.filter = std::mem::take(text).trim().to_owned();
                self.mode = Mode::Groups;
                self.waiting = true;
                Some(Ask::Filter(Box::new(filter)))
            }
            Err(why) => {
                *error = Some(why);
                None
            }
        }
    }

    fn step(&mut self, to: usize) {
        self.cursor = to.min(self.rows().len().saturating_sub(1));
        self.followed = self.selected();
    }

    fn selected(&self) -> Option<Arc<Group>> {
        let rows = self.rows();
        rows.get(self.cursor).map(|(row, _)| Arc::clone(&row.group))
    }

    fn layout(&self) -> Layout {
        Layout::new(self.size.0)
    }

    /// Lines for rows: not the two of the header, the titles and the foot.
    fn page(&self) -> usize {
        self.size.1.saturating_sub(4).max(1)
    }

    /// All rows in their order.
    fn rows(&self) -> Vec<(&Row, Change)> {
        let Some(told) = &self.told else { return Vec::new() };
        let mut rows: Vec<_> = match &self.mode {
            Mode::Connections(group) => {
                let of_group = told.window.connections.iter();
                of_group
                    .filter(|row| row.parent.as_ref() == Some(group))
                    .map(|row| (row, Change::None))
                    .collect()
            }
            _ => compared(&told.window.rows, &self.before),
        };
        rows.sort_by(|(one, is_gone), (two, is_gone_too)| {
            let gone = |change: &Change| *change == Change::Gone;
            gone(is_gone)
                .cmp(&gone(is_gone_too))
                .then_with(|| order(one, two, self.sort))
        });
        rows.truncate(self.begin.top.unwrap_or(usize::MAX));
        rows
    }

    /// The whole screen, a string a line, none wider than it.
    pub fn lines(&mut self) -> Vec<String> {
        let (columns, lines) = self.size;
        let mut all = match &self.told {
            None => vec![format!(
                "waiting for the first window, of {}",
                text::harmless(&self.what())
            )],
            Some(told) => vec![header::first(told, columns)],
        };
        all.push(self.second());
        if self.mode == Mode::Help {
            all.extend(HELP.iter().map(|&line| line.to_owned()));
        } else {
            all.extend(self.table());
        }
        all.truncate(lines.saturating_sub(1));
        let foot = self.foot();
        all.resize(lines.saturating_sub(1), String::new());
        all.push(foot);
        let is_row = |at: usize| self.mode != Mode::Help && (2..lines - 1).contains(&at);
        all.into_iter()
            .enumerate()
            // The table's lines fit, and may have colours in them.
            .map(|(at, line)| if is_row(at) { line } else { text::cut(&line, columns) })
            .collect()
    }

    fn what(&self) -> String {
        let names: Vec<_> = self.by().iter().map(|key| key.name()).collect();
        let mut what = format!("by {}, sorted by {}", names.join(","), self.sort);
        if !self.filter.is_empty() {
            what += &format!(", only {}", text::harmless(&self.filter));
        }
        what
    }

    fn second(&self) -> String {
        let mut line = match &self.mode {
            Mode::Connections(group) => {
                let rows = self.told.as_ref().map(|told| &told.window.rows);
                let row = rows.and_then(|rows| rows.iter().find(|row| row.group == *group));
                let name = row.map_or_else(
                    || "a group that is gone".to_owned(),
                    |row| format!("{} to {}", text::client(row).whole(), text::server(row).whole()),
                );
                let count = row.map_or(0, |row| row.sums.open + row.sums.connecting + row.sums.closed);
                let listed = row.map_or(0, |row| row.listed);
                format!(
                    "{listed} of {count} connections of {name}, sorted by {}; Esc: back",
                    self.sort
                )
            }
            _ => self.what(),
        };
        if self.waiting {
            line = format!("from the next window on {line}");
        }
        if self.paused {
            line = format!("PAUSED (p: go on)  {line}");
        }
        line
    }

    fn table(&mut self) -> Vec<String> {
        let page = self.page();
        let rows: Vec<_> = self.rows();
        // What the cursor is on has moved, or is gone.
        let is_followed = |row: &&Row| Some(&row.group) == self.followed.as_ref();
        let found = rows.iter().position(|(row, _)| is_followed(row));
        let cursor = found.unwrap_or(self.cursor).min(rows.len().saturating_sub(1));
        let least = (cursor + 1).saturating_sub(page);
        let offset = self
            .offset
            .clamp(least, cursor.max(least))
            .min(rows.len().saturating_sub(page).max(least));
        let window_ns = self.told.as_ref().map_or(1, |told| told.window.length_ns);
        let shown: Vec<_> = rows
            .iter()
            .enumerate()
            .skip(offset)
            .take(page)
            .map(|(at, &(row, change))| Shown {
                row,
                change,
                selected: at == cursor,
                window_ns,
            })
            .collect();
        let lines = self.layout().lines(&shown, self.sort, self.begin.color);
        (self.cursor, self.offset) = (cursor, offset);
        lines
    }

    fn foot(&self) -> String {
        match &self.mode {
            Mode::Prompt { text, error: None } => format!("filter: {}_", text::harmless(text)),
            Mode::Prompt { text, error: Some(why) } => format!("{why}  (filter: {}_)", text::harmless(text)),
            Mode::Help => "any key: back".to_owned(),
            _ => match &self.note {
                Some(note) => text::harmless(note),
                None => {
                    let count = self.rows().len();
                    let more = if count > self.page() {
                        format!("{}/{count}  ", self.cursor + 1)
                    } else {
                        String::new()
                    };
                    more + FOOT
                }
            },
        }
    }
}

/// The rows of a window, what is new among them, and what is gone.
pub(super) fn compared<'a>(now: &'a [Row], before: &'a [Row]) -> Vec<(&'a Row, Change)> {
    if before.is_empty() {
        return now.iter().map(|row| (row, Change::None)).collect();
    }
    let groups = |rows: &'a [Row]| rows.iter().map(|row| &*row.group).collect::<HashSet<_>>();
    let (there, was_there) = (groups(now), groups(before));
    let new = now.iter().map(|row| {
        let change = if was_there.contains(&*row.group) {
            Change::None
        } else {
            Change::New
        };
        (row, change)
    });
    let gone = before.iter().filter(|row| !there.contains(&*row.group));
    new.chain(gone.map(|row| (row, Change::Gone))).collect()
}
