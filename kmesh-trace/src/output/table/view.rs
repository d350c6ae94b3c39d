//! The state of the table's screen: what it shows, and what keys do to it. It has no clock and no terminal.

use std::sync::Arc;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::Frame;
use super::columns::{Contents, Layout, order};
use super::help::HELP;
use super::history::SharedHistory;
use super::listeners::ListenerRow;
use super::prompt::{Prompt, PromptHistory};
use super::quiet::{RowRef, RowState};
use crate::filter::Filter;
use crate::rollup::{By, Group, Key, Row, Sort, SortKey};

/// A command of the user that the screen does not carry out itself.
#[derive(Clone, Debug, PartialEq)]
pub enum UiCommand {
    Quit,
    /// Stops the process, as the terminal does at Ctrl-Z.
    Suspend,
    Regroup(By),
    /// Counts only the records that pass this filter, too.
    Filter(Box<Filter>),
}

/// The page that the screen shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Page {
    Groups,
    /// The connections of a group.
    Connections(Arc<Group>),
    /// The listening sockets, from this line on.
    Listeners(usize),
}

/// The settings of the view at its start.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    pub by: Vec<Key>,
    pub sort: Sort,
    /// The maximum number of rows.
    pub top: Option<usize>,
    pub color: bool,
    /// Whether the view starts with the totals.
    pub totals: bool,
    /// Whether the records can be read again after the end of a replay, for other groups or another filter.
    pub can_reread: bool,
    /// Whether the records come from captures.
    pub is_replay: bool,
    /// Whether both ends of a connection are one record.
    pub joins: bool,
    /// Parses the filter that a user types.
    pub parse_filter: fn(&str) -> Result<Filter, String>,
}

/// The state of the screen.
#[derive(Debug)]
pub struct View {
    pub(super) options: ViewOptions,
    pub(super) history: SharedHistory,
    /// The index of the current grouping in [`Self::groupings`].
    pub(super) grouping: usize,
    pub(super) sort: Sort,
    pub(super) only_failures: bool,
    pub(super) shows_totals: bool,
    pub(super) filter: String,
    pub(super) page: Page,
    /// The first line of the help page, if it is shown.
    pub(super) help: Option<usize>,
    pub(super) prompt: Option<Prompt>,
    pub(super) prompt_history: PromptHistory,
    /// The position of the frame among the windows when the view was paused. `None` while it is not.
    pub(super) paused_at: Option<(usize, usize)>,
    pub(super) frame: Option<Arc<Frame>>,
    /// Whether the frame is from before the last change of the grouping or the filter.
    pub(super) is_stale: bool,
    pub(super) cursor: usize,
    /// The group under the cursor. The cursor follows it from window to window.
    pub(super) followed: Option<Arc<Group>>,
    pub(super) offset: usize,
    pub(super) notice: Option<String>,
    /// The number of columns and lines.
    pub(super) size: (usize, usize),
}

impl View {
    pub fn new(options: ViewOptions, history: SharedHistory, size: (u16, u16)) -> Self {
        let mut view = Self {
            sort: options.sort,
            shows_totals: options.totals,
            options,
            history,
            grouping: 0,
            only_failures: false,
            filter: String::new(),
            page: Page::Groups,
            help: None,
            prompt: None,
            prompt_history: PromptHistory::default(),
            paused_at: None,
            frame: None,
            is_stale: false,
            cursor: 0,
            followed: None,
            offset: 0,
            notice: None,
            size: (0, 0),
        };
        view.resize(size);
        view
    }

    /// Sets the number of columns and lines.
    pub fn resize(&mut self, (columns, lines): (u16, u16)) {
        // A terminal that does not know its size reports 0. The usual minimum stands for it.
        let known = |size: u16, usual| if size == 0 { usual } else { usize::from(size) };
        self.size = (known(columns, 80), known(lines, 24));
    }

    /// Shows the latest window, unless the view is paused.
    pub fn refresh(&mut self) {
        if self.paused_at.is_some() {
            return;
        }
        let history = self.history.lock();
        let latest = match (self.shows_totals, history.latest()) {
            (true, Some(_)) => history.totals().map(Arc::new),
            (_, latest) => latest.cloned(),
        };
        drop(history);
        if latest.is_some() {
            self.frame = latest;
            self.is_stale = false;
        }
    }

    /// Shows a message in place of the keys. `None` shows the keys again.
    pub fn set_notice(&mut self, notice: Option<String>) {
        self.notice = notice;
    }

    pub fn has_notice(&self) -> bool {
        self.notice.is_some()
    }

    /// Handles a key. Returns the command that the rest of the program must carry out.
    pub fn key(&mut self, key: KeyEvent) -> Option<UiCommand> {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        // Terminals send Alt and a key as Esc and the key, so Esc and a key soon after it may arrive as Alt.
        let is_alt = key.modifiers.contains(KeyModifiers::ALT);
        if self.prompt.is_some() {
            return if is_alt {
                None
            } else {
                self.prompt_key(key.code, is_control)
            };
        }
        if is_alt {
            self.key(KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE));
        }
        match (key.code, is_control) {
            (KeyCode::Char('c'), true) => return Some(UiCommand::Quit),
            (KeyCode::Char('z'), true) => return Some(UiCommand::Suspend),
            (_, true) => return None,
            _ => {}
        }
        if let Some(line) = self.help {
            self.help = self.help_key(key.code, line);
            return None;
        }
        if let Page::Listeners(line) = self.page
            && let Some(page) = self.listeners_key(key.code, line)
        {
            self.page = page;
            return None;
        }
        self.page_key(key.code)
    }

    /// Returns the page after a key on the page of listeners. `None` if the key does there what it does on every page.
    fn listeners_key(&self, key: KeyCode, line: usize) -> Option<Page> {
        let (page_rows, rows) = (self.page_rows(), self.listeners().len());
        let last = rows.saturating_sub(page_rows);
        let line = match key {
            KeyCode::Esc | KeyCode::Char('l') => return Some(Page::Groups),
            KeyCode::Up => line.saturating_sub(1),
            KeyCode::Down => (line + 1).min(last),
            KeyCode::PageUp => line.saturating_sub(page_rows),
            KeyCode::PageDown => (line + page_rows).min(last),
            KeyCode::Home => 0,
            KeyCode::End => last,
            // These are about groups.
            KeyCode::Char('s' | 'S' | 'g' | 't') | KeyCode::Enter => line,
            _ => return None,
        };
        Some(Page::Listeners(line))
    }

    fn prompt_key(&mut self, key: KeyCode, is_control: bool) -> Option<UiCommand> {
        let prompt = self.prompt.as_mut()?;
        match (key, is_control) {
            (KeyCode::Esc, _) | (KeyCode::Char('c'), true) => self.prompt = None,
            (KeyCode::Char('z'), true) => return Some(UiCommand::Suspend),
            (KeyCode::Enter, _) => return self.apply_filter(),
            _ => prompt.key(key, is_control, &self.prompt_history),
        }
        None
    }

    /// Returns the first line of the help page after a key. `None` closes the page.
    fn help_key(&self, key: KeyCode, line: usize) -> Option<usize> {
        let last = HELP.len().saturating_sub(self.size.1 - 1);
        match key {
            KeyCode::Up => Some(line.saturating_sub(1)),
            KeyCode::Down => Some((line + 1).min(last)),
            KeyCode::PageUp | KeyCode::Home => Some(0),
            KeyCode::PageDown | KeyCode::End => Some(last),
            _ => None,
        }
    }

    fn page_key(&mut self, key: KeyCode) -> Option<UiCommand> {
        let page_rows = self.page_rows();
        match key {
            KeyCode::Char('q') => return Some(UiCommand::Quit),
            KeyCode::Esc => self.go_back(),
            KeyCode::Char('p' | ' ') => self.toggle_pause(),
            KeyCode::Char('[') => self.step_window(false),
            KeyCode::Char(']') => self.step_window(true),
            KeyCode::Char('s') => self.next_sort(),
            KeyCode::Char('S') => self.sort.descending = !self.sort.descending,
            KeyCode::Char('g') => return self.next_grouping(),
            KeyCode::Char('t') => self.toggle_totals(),
            KeyCode::Char('f') => {
                self.only_failures = !self.only_failures;
                self.move_to_top();
            }
            KeyCode::Char('l') => self.page = Page::Listeners(0),
            KeyCode::Char('/') => self.prompt = Some(Prompt::new(&self.filter)),
            KeyCode::Char('?') => self.help = Some(0),
            KeyCode::Up => self.move_to(self.cursor.saturating_sub(1)),
            KeyCode::Down => self.move_to(self.cursor + 1),
            KeyCode::PageUp => self.move_to(self.cursor.saturating_sub(page_rows)),
            KeyCode::PageDown => self.move_to(self.cursor + page_rows),
            KeyCode::Home => self.move_to_top(),
            KeyCode::End => self.move_to(usize::MAX),
            KeyCode::Enter if self.page == Page::Groups => {
                if let Some(group) = self.selected() {
                    self.page = Page::Connections(group);
                    self.move_to_top();
                }
            }
            _ => {}
        }
        None
    }

    /// Goes back to the groups. After the connections of a group, the cursor is on the group again.
    fn go_back(&mut self) {
        if let Page::Connections(group) = std::mem::replace(&mut self.page, Page::Groups) {
            self.move_to_top();
            self.followed = Some(group);
        }
    }

    fn move_to_top(&mut self) {
        (self.cursor, self.offset, self.followed) = (0, 0, None);
    }

    fn toggle_pause(&mut self) {
        self.paused_at = match self.paused_at {
            Some(_) => None,
            None => Some(self.position()),
        };
        self.refresh();
    }

    /// Returns the position of the frame among the windows, from 1, and the number of windows.
    fn position(&self) -> (usize, usize) {
        let number = self.frame.as_ref().map_or(0, |frame| frame.number);
        self.history.lock().position(number)
    }

    /// Shows the window before or after the current one, and pauses the view.
    fn step_window(&mut self, forward: bool) {
        self.shows_totals = false;
        let Some(number) = self.frame.as_ref().map(|frame| frame.number) else {
            return;
        };
        let history = self.history.lock();
        let found = if forward {
            history.after(number)
        } else {
            history.before(number)
        };
        if let Some(frame) = found.cloned() {
            self.frame = Some(frame);
        }
        drop(history);
        self.paused_at = Some(self.position());
    }

    /// Switches between the totals and the latest window.
    fn toggle_totals(&mut self) {
        self.shows_totals = !self.shows_totals;
        self.page = Page::Groups;
        self.paused_at = None;
        self.refresh();
    }

    /// Sorts by the next column on the screen; after the last column, by the sum of the bytes of both directions; then
    /// by the first column again.
    fn next_sort(&mut self) {
        let mut keys: Vec<SortKey> = self.layout().sort_keys().collect();
        if !keys.contains(&SortKey::Bytes) {
            keys.push(SortKey::Bytes);
        }
        let at = keys.iter().position(|&key| key == self.sort.key);
        let key = keys[at.map_or(0, |at| (at + 1) % keys.len())];
        self.sort = Sort {
            key,
            // Names from A to Z, numbers from the largest.
            descending: key != SortKey::Group,
        };
    }

    fn next_grouping(&mut self) -> Option<UiCommand> {
        if self.is_final() {
            return self.refuse("a pipe cannot be read again; to group otherwise, run again with --by KEY".to_owned());
        }
        self.grouping = (self.grouping + 1) % self.groupings().len();
        self.restart();
        Some(UiCommand::Regroup(By::new(&self.by())))
    }

    /// Returns the grouping of the command line, and each other key.
    fn groupings(&self) -> Vec<Vec<Key>> {
        use clap::ValueEnum;
        let singles = Key::value_variants().iter().map(|&key| vec![key]);
        let others = singles.filter(|keys| *keys != self.options.by);
        std::iter::once(self.options.by.clone()).chain(others).collect()
    }

    pub(super) fn by(&self) -> Vec<Key> {
        self.groupings().swap_remove(self.grouping)
    }

    fn apply_filter(&mut self) -> Option<UiCommand> {
        let is_final = self.is_final();
        let prompt = self.prompt.as_mut()?;
        let text = prompt.text().trim().to_owned();
        match (self.options.parse_filter)(&text) {
            Ok(_) if is_final => {
                self.prompt = None;
                self.refuse(format!("a pipe cannot be read again; to filter, run again with {text}"))
            }
            Ok(filter) => {
                self.prompt_history.add(&text);
                self.prompt = None;
                self.filter = text;
                self.restart();
                Some(UiCommand::Filter(Box::new(filter)))
            }
            Err(error) => {
                prompt.set_error(error);
                None
            }
        }
    }

    /// Returns whether no window can follow, as at the end of a replay from a pipe.
    fn is_final(&self) -> bool {
        !self.options.can_reread && self.history.lock().is_complete()
    }

    fn refuse(&mut self, notice: String) -> Option<UiCommand> {
        self.notice = Some(notice);
        None
    }

    /// Prepares for other groups.
    fn restart(&mut self) {
        self.page = Page::Groups;
        self.move_to_top();
        self.paused_at = None;
        self.is_stale = true;
    }

    fn move_to(&mut self, row: usize) {
        let source = self.source();
        let rows = self.rows(source.as_deref());
        self.cursor = row.min(rows.len().saturating_sub(1));
        self.followed = rows.get(self.cursor).map(|row| Arc::clone(&row.row.group));
    }

    fn selected(&self) -> Option<Arc<Group>> {
        let source = self.source();
        let rows = self.rows(source.as_deref());
        rows.get(self.cursor).map(|row| Arc::clone(&row.row.group))
    }

    pub(super) fn layout(&self) -> Layout {
        let contents = Contents {
            joins: self.options.joins,
            has_turns: self.frame.as_ref().is_some_and(|frame| frame.has_turns),
        };
        match self.page {
            Page::Connections(_) => Layout::of_connections(self.size.0, contents),
            _ => Layout::new(self.size.0, self.by().contains(&Key::Outcome), contents),
        }
    }

    /// Returns the rows of the page of listeners.
    pub(super) fn listeners(&self) -> Vec<&ListenerRow> {
        let rows = self.frame.iter().flat_map(|frame| &frame.listeners);
        rows.filter(|row| !self.only_failures || row.has_failures()).collect()
    }

    /// Returns the number of lines for rows: all but two lines of the header, the titles and the last line.
    pub(super) fn page_rows(&self) -> usize {
        self.size.1.saturating_sub(4).max(1)
    }

    /// Returns the frame whose rows the page shows. If the group of the page is quiet, this is the last frame in which
    /// it was not.
    pub(super) fn source(&self) -> Option<Arc<Frame>> {
        let frame = self.frame.as_ref()?;
        let Page::Connections(group) = &self.page else {
            return Some(Arc::clone(frame));
        };
        let has_connections = |frame: &Frame| frame.connections.iter().any(|row| is_of_group(row, group));
        let history = self.history.lock();
        let found = history.latest_with(frame.number, has_connections);
        Some(Arc::clone(found.unwrap_or(frame)))
    }

    /// Returns all rows of the page, which are in `source`, in their order.
    pub(super) fn rows<'a>(&self, source: Option<&'a Frame>) -> Vec<RowRef<'a>> {
        let (Some(frame), Some(source)) = (&self.frame, source) else {
            return Vec::new();
        };
        let mut rows: Vec<RowRef<'_>> = match &self.page {
            Page::Listeners(_) => Vec::new(),
            Page::Groups => source.rows.iter().map(RowRef::from).collect(),
            Page::Connections(group) => {
                let state = match source.number == frame.number {
                    true => RowState::Active,
                    false => RowState::Quiet,
                };
                let rows = source.connections.iter().filter(|row| is_of_group(row, group));
                rows.map(|row| RowRef { row, state }).collect()
            }
        };
        if self.only_failures {
            rows.retain(has_failures);
        }
        rows.sort_by(|&one, &two| order(one, two, self.sort));
        rows.truncate(self.options.top.unwrap_or(usize::MAX));
        rows
    }
}

/// Returns whether `row` is a connection of `group`.
fn is_of_group(row: &Row, group: &Arc<Group>) -> bool {
    row.parent.as_ref() == Some(group)
}

/// Returns whether a group has failed, or has attempts that wait for an answer.
fn has_failures(row: &RowRef<'_>) -> bool {
    let is_quiet_failure = row.state == RowState::Quiet && row.row.last_failure.is_some();
    row.row.sums.failed() > 0 || row.row.sums.connecting > 0 || is_quiet_failure
}
