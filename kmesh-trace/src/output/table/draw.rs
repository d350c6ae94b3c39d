//! Draws the table's screen as lines of text.

use std::sync::Arc;

use super::columns::ShownRow;
use super::header::{self, Part};
use super::help::{HELP, KEYS};
use super::listeners;
use super::quiet::{RowRef, RowState, TableRow};
use super::view::{Page, View};
use super::{Frame, text, units};
use crate::output::time_text::date_and_time;
use crate::rollup::Group;

impl View {
    /// Returns the lines of the screen, none wider than it.
    pub fn lines(&mut self) -> Vec<String> {
        let (columns, lines) = self.size;
        let foot = self.foot();
        let above = lines.saturating_sub(foot.len());
        let mut all = match self.help {
            Some(first) => HELP.iter().skip(first).map(|&line| line.to_owned()).collect(),
            None => self.page_lines(),
        };
        all.resize(above, String::new());
        // The lines of the table fit already, and may contain escape sequences.
        let is_row = |at: usize| self.help.is_none() && at >= 2;
        let mut cut: Vec<_> = all
            .into_iter()
            .enumerate()
            .map(|(at, line)| if is_row(at) { line } else { text::cut(&line, columns) })
            .collect();
        cut.extend(foot.iter().map(|line| text::cut(line, columns)));
        cut
    }

    /// Returns the lines that stay on the terminal after the end: those of the screen without the last one.
    pub fn final_lines(&mut self) -> Vec<String> {
        (self.help, self.prompt, self.notice) = (None, None, None);
        if self.frame.is_none() {
            return Vec::new();
        }
        let mut lines = self.lines();
        lines.pop();
        while lines.last().is_some_and(|line| line.trim().is_empty()) {
            lines.pop();
        }
        lines
    }

    fn page_lines(&mut self) -> Vec<String> {
        let columns = self.size.0;
        let first = match &self.frame {
            Some(frame) => header::frame_line(frame, columns),
            None => "waiting for the end of the first window".to_owned(),
        };
        if let Page::Listeners(line) = self.page {
            return self.listener_lines(first, line);
        }
        let source = self.source();
        let rows = self.rows(source.as_deref());
        self.scroll(&rows);
        let second = header::join(self.state_parts(&rows), columns, usize::MAX);
        let mut lines = vec![first, second];
        lines.extend(self.table(&rows));
        if rows.is_empty() && self.frame.is_some() {
            lines.push("no connections".to_owned());
        }
        lines
    }

    /// Returns the lines of the page of listeners, from row `line` on.
    fn listener_lines(&self, first: String, line: usize) -> Vec<String> {
        let columns = self.size.0;
        let rows = self.listeners();
        let full = rows.iter().filter(|row| row.is_full()).count();
        let mut parts = self.common_parts();
        let has_reports = self.frame.as_ref().is_none_or(|frame| frame.has_listener_reports);
        let is_unreported = self.options.is_replay && !has_reports;
        parts.insert(
            0,
            (
                0,
                match is_unreported {
                    true => "listeners".to_owned(),
                    false => format!("{} listeners, {full} full", rows.len()),
                },
            ),
        );
        let mut lines = vec![first, header::join(parts, columns, usize::MAX)];
        // Rows may have gone since the last key.
        let line = line.min(rows.len().saturating_sub(1));
        let shown = rows.iter().copied().skip(line).take(self.page_rows());
        lines.extend(listeners::lines(shown, columns, self.options.color));
        if rows.is_empty() {
            let text = match is_unreported {
                true => {
                    "no listener events passed the filters, or the capture has none (--events listener records them)"
                }
                false => "no listeners",
            };
            lines.push(text.to_owned());
        }
        lines
    }

    /// Returns the parts of the line about the state of the view.
    fn state_parts(&self, rows: &[RowRef<'_>]) -> Vec<Part> {
        let mut parts = Vec::new();
        if self.is_stale {
            parts.push((0, "from the next window on:".to_owned()));
        }
        if let Some((position, count)) = self.paused_at {
            parts.push((0, format!("PAUSED at window {position} of {count}")));
        }
        match (&self.page, &self.frame) {
            (Page::Connections(group), _) => {
                parts.push((0, self.connections_text(group)));
                parts.extend(self.reasons(group).map(|text| (1, text)));
            }
            (Page::Groups, Some(frame)) if self.shows_totals => {
                let since = match date_and_time(frame.span.from, frame.time_format) {
                    Some((_, time)) => time,
                    None => "the start".to_owned(),
                };
                parts.push((0, format!("totals since {since}")));
            }
            _ => {}
        }
        if self.page == Page::Groups {
            let names: Vec<_> = self.by().iter().map(|key| key.name()).collect();
            parts.push((0, format!("by {}", names.join(","))));
        }
        parts.push((2, format!("sorted by {}", self.sort)));
        parts.extend(self.common_parts());
        if !rows.is_empty() {
            parts.push((0, format!("row {} of {}", self.cursor + 1, rows.len())));
        }
        parts
    }

    /// Returns the parts that every page has.
    fn common_parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        if self.only_failures {
            parts.push((0, "failures only".to_owned()));
        }
        if !self.filter.is_empty() {
            parts.push((0, format!("only {}", text::harmless(&self.filter))));
        }
        if let Some(frame) = &self.frame {
            parts.push((3, text::harmless(&frame.names)));
        }
        parts
    }

    /// Returns the texts about the dropped packets and the resets of a group.
    fn reasons(&self, group: &Arc<Group>) -> impl Iterator<Item = String> + use<> {
        let rows = self.frame.as_ref().map(|frame| &frame.rows);
        let row = rows.and_then(|rows| rows.iter().find(|row| row.row.group == *group));
        let sums = row.map(|row| row.row.sums.clone()).unwrap_or_default();
        [("dropped", sums.drops), ("reset", sums.reset_reasons)]
            .into_iter()
            .filter(|(_, reasons)| !reasons.is_empty())
            .map(|(what, reasons)| {
                let reasons = reasons
                    .iter()
                    .map(|(reason, count)| format!("{} {}", units::count(count), text::harmless(reason)));
                format!("{what}: {}", reasons.collect::<Vec<_>>().join(", "))
            })
    }

    fn connections_text(&self, group: &Arc<Group>) -> String {
        let rows = self.frame.as_ref().map(|frame| &frame.rows);
        let Some(TableRow { row, state }) = rows.and_then(|rows| rows.iter().find(|row| row.row.group == *group))
        else {
            return "connections of a group that is no longer in the table".to_owned();
        };
        let (client, server) = (text::client(row).whole(), text::server(row).whole());
        if *state == RowState::Quiet {
            return format!("the last connections of {client} to {server}, which is quiet");
        }
        let count = row.sums.open + row.sums.connecting + row.sums.closed;
        format!("{} of {count} connections of {client} to {server}", row.listed)
    }

    /// Moves the cursor to the followed group, and the page so that the cursor is on it.
    fn scroll(&mut self, rows: &[RowRef<'_>]) {
        let page_rows = self.page_rows();
        let followed = self.followed.as_ref();
        let found = rows.iter().position(|row| Some(&row.row.group) == followed);
        let cursor = found.unwrap_or(self.cursor).min(rows.len().saturating_sub(1));
        let min = (cursor + 1).saturating_sub(page_rows);
        let max = rows.len().saturating_sub(page_rows).max(min);
        self.offset = self.offset.clamp(min, cursor.max(min)).min(max);
        self.cursor = cursor;
    }

    fn table(&self, rows: &[RowRef<'_>]) -> Vec<String> {
        let Some(Frame { span, .. }) = self.frame.as_deref() else {
            return self.layout().lines(&[], self.sort, self.options.color);
        };
        let page = rows.iter().enumerate().skip(self.offset).take(self.page_rows());
        let shown: Vec<_> = page
            .map(|(at, &row)| ShownRow::new(row, span).selected(at == self.cursor))
            .collect();
        self.layout().lines(&shown, self.sort, self.options.color)
    }

    /// Returns the last line, or two lines while the prompt has an error.
    fn foot(&self) -> Vec<String> {
        let columns = self.size.0;
        if let Some(prompt) = &self.prompt {
            let error = prompt.error().map(text::harmless);
            return error.into_iter().chain([prompt.line(columns)]).collect();
        }
        vec![match (&self.notice, self.help) {
            (Some(notice), _) => text::harmless(notice),
            (None, Some(_)) => "any other key: back".to_owned(),
            (None, None) => self.keys(columns),
        }]
    }

    /// Returns as many keys as fit.
    fn keys(&self, columns: usize) -> String {
        let back = (self.page != Page::Groups).then_some("Esc back");
        let mut keys = String::new();
        for key in back.into_iter().chain(KEYS.iter().copied()) {
            let gap = if keys.is_empty() { "" } else { "  " };
            if text::width(&keys) + gap.len() + text::width(key) > columns {
                break;
            }
            keys += gap;
            keys += key;
        }
        keys
    }
}
