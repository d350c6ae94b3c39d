//! The line on which a user types a filter.

use crossterm::event::KeyCode;

use super::text;

/// The marker of the cursor.
const CURSOR: char = '▏';
/// The maximum number of lines in the history.
const MAX_HISTORY: usize = 100;

/// The lines that were entered before, the latest last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromptHistory(Vec<String>);

impl PromptHistory {
    pub fn add(&mut self, line: &str) {
        if line.is_empty() || self.0.last().is_some_and(|last| last == line) {
            return;
        }
        self.0.push(line.to_owned());
        if self.0.len() > MAX_HISTORY {
            self.0.remove(0);
        }
    }
}

/// A line that is being edited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    chars: Vec<char>,
    /// The number of characters before the cursor.
    cursor: usize,
    /// The line of the history that is shown, from the latest. 0 is the edited line itself.
    recalled: usize,
    /// The edited line, while a line of the history is shown.
    edited: String,
    error: Option<String>,
}

impl Prompt {
    pub fn new(text: &str) -> Self {
        let chars: Vec<_> = text.chars().collect();
        Self {
            cursor: chars.len(),
            chars,
            ..Self::default()
        }
    }

    pub fn text(&self) -> String {
        self.chars.iter().collect()
    }

    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    pub fn set_error(&mut self, error: String) {
        self.error = Some(error);
    }

    /// Edits the line by a key.
    pub fn key(&mut self, key: KeyCode, is_control: bool, history: &PromptHistory) {
        self.error = None;
        match (key, is_control) {
            (KeyCode::Left, _) | (KeyCode::Char('b'), true) => self.cursor = self.cursor.saturating_sub(1),
            (KeyCode::Right, _) | (KeyCode::Char('f'), true) => self.cursor = (self.cursor + 1).min(self.chars.len()),
            (KeyCode::Home, _) | (KeyCode::Char('a'), true) => self.cursor = 0,
            (KeyCode::End, _) | (KeyCode::Char('e'), true) => self.cursor = self.chars.len(),
            (KeyCode::Up, _) | (KeyCode::Char('p'), true) => self.recall(self.recalled + 1, history),
            (KeyCode::Down, _) | (KeyCode::Char('n'), true) => self.recall(self.recalled.saturating_sub(1), history),
            (KeyCode::Backspace, _) | (KeyCode::Char('h'), true) => self.delete_back_to(self.cursor.saturating_sub(1)),
            (KeyCode::Delete, _) | (KeyCode::Char('d'), true) if self.cursor < self.chars.len() => {
                self.chars.remove(self.cursor);
            }
            (KeyCode::Char('w'), true) => self.delete_back_to(self.word_start()),
            (KeyCode::Char('u'), true) => self.delete_back_to(0),
            (KeyCode::Char('k'), true) => self.chars.truncate(self.cursor),
            (KeyCode::Char(char), false) => {
                self.chars.insert(self.cursor, char);
                self.cursor += 1;
            }
            _ => {}
        }
    }

    fn delete_back_to(&mut self, start: usize) {
        self.chars.drain(start..self.cursor);
        self.cursor = start;
    }

    /// Returns the start of the word before the cursor, which ends at a space.
    fn word_start(&self) -> usize {
        let before = &self.chars[..self.cursor];
        let word_end = before.iter().rposition(|&char| char != ' ').map_or(0, |at| at + 1);
        before[..word_end]
            .iter()
            .rposition(|&char| char == ' ')
            .map_or(0, |at| at + 1)
    }

    fn recall(&mut self, back: usize, history: &PromptHistory) {
        if back > history.0.len() {
            return;
        }
        if self.recalled == 0 {
            self.edited = self.text();
        }
        let line = match back {
            0 => &self.edited,
            back => &history.0[history.0.len() - back],
        };
        self.chars = line.chars().collect();
        self.cursor = self.chars.len();
        self.recalled = back;
    }

    /// Returns the line with a marker of the cursor, in at most `width` columns. The cursor is always visible.
    pub fn line(&self, width: usize) -> String {
        const LABEL: &str = "filter: ";
        let part = |chars: &[char]| text::harmless(&chars.iter().collect::<String>());
        let (before, after) = self.chars.split_at(self.cursor);
        let before = format!("{LABEL}{}{CURSOR}", part(before));
        let excess = text::width(&before).saturating_sub(width);
        let line = text::cut_front(&before, excess) + &part(after);
        text::cut(&line, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(keys: &[(KeyCode, bool)]) -> String {
        let mut history = PromptHistory::default();
        for line in ["--port 80", "--failed", "--failed"] {
            history.add(line);
        }
        let mut prompt = Prompt::new("--comm nginx");
        for &(key, is_control) in keys {
            prompt.key(key, is_control, &history);
        }
        prompt.line(80)
    }

    #[test]
    fn keys_edit_the_line() {
        use KeyCode::{Backspace, Char, Delete, Down, End, Home, Left, Right, Up};
        let control = |char| (Char(char), true);
        let plain = |key| (key, false);
        let cases: [(&[(KeyCode, bool)], &str); 14] = [
            (&[], "--comm nginx▏"),
            (&[plain(Char('s'))], "--comm nginxs▏"),
            (&[plain(Left), plain(Left), plain(Char('é'))], "--comm ngié▏nx"),
            (&[plain(Home), plain(Delete), plain(Delete)], "▏comm nginx"),
            (
                &[plain(Home), plain(Right), plain(End), plain(Backspace)],
                "--comm ngin▏",
            ),
            (&[control('w')], "--comm ▏"),
            (&[control('w'), control('w'), control('w')], "▏"),
            (&[plain(Left), control('w')], "--comm ▏x"),
            (&[control('u')], "▏"),
            (&[control('a'), plain(Right), control('k')], "-▏"),
            (&[plain(Up)], "--failed▏"),
            (&[plain(Up), plain(Up), plain(Up)], "--port 80▏"),
            (&[plain(Up), plain(Up), plain(Down), plain(Down)], "--comm nginx▏"),
            (&[plain(Home), plain(Backspace), plain(Left)], "▏--comm nginx"),
        ];
        for (keys, expected) in cases {
            assert_eq!(edited(keys), format!("filter: {expected}"), "{keys:?}");
        }
    }

    #[test]
    fn cursor_stays_visible_on_a_long_line() {
        let mut prompt = Prompt::new("--to-workload Deployment/productpage-v1");
        assert_eq!(prompt.line(20), "ment/productpage-v1▏");
        for _ in 0..8 {
            prompt.key(KeyCode::Left, false, &PromptHistory::default());
        }
        assert!(prompt.line(20).contains('▏'), "{}", prompt.line(20));
        assert!(text::width(&prompt.line(20)) <= 20);
    }
}
