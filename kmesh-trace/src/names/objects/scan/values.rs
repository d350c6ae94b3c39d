//! Values that the scanner takes as a whole, and the reduced JSON that it writes.

use super::{Lex, MAX_OBJECT, MAX_VALUE, Scanner, TOO_LARGE_VALUE};

impl Scanner {
    /// Takes bytes of a value up to its end.
    pub(super) fn value_bytes(&mut self, bytes: &[u8]) -> usize {
        let Lex::Value {
            copied_from,
            mut depth,
            mut in_string,
            mut escaped,
        } = self.lex
        else {
            return 0;
        };
        let mut taken = 0;
        let mut is_over = false;
        while taken < bytes.len() && !is_over {
            let byte = bytes[taken];
            taken += 1;
            match (in_string, byte) {
                (true, _) if escaped => escaped = false,
                (true, b'\\') => escaped = true,
                (true, b'"') => {
                    in_string = false;
                    is_over = depth == 0;
                }
                (true, _) => {}
                (false, b'"') => in_string = true,
                (false, b'{' | b'[') => depth += 1,
                (false, b'}' | b']') => {
                    depth -= 1;
                    is_over = depth == 0;
                }
                (false, _) => {}
            }
        }
        let copied_from = self.copy(copied_from, &bytes[..taken]);
        self.lex = Lex::Value {
            copied_from,
            depth,
            in_string,
            escaped,
        };
        if is_over {
            self.end_value(copied_from);
        }
        taken
    }

    pub(super) fn scalar_bytes(&mut self, bytes: &[u8], copied_from: Option<usize>) -> usize {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let taken = bytes.iter().position(|byte| !is_part(byte));
        let copied_from = self.copy(copied_from, &bytes[..taken.unwrap_or(bytes.len())]);
        match taken {
            Some(_) => self.end_value(copied_from),
            None => self.lex = Lex::Scalar { copied_from },
        }
        taken.unwrap_or(bytes.len())
    }

    /// Copies bytes of a value, unless the value is dropped. A value that becomes too large is replaced, and dropped.
    fn copy(&mut self, copied_from: Option<usize>, bytes: &[u8]) -> Option<usize> {
        let start = copied_from?;
        if self.out.len() - start.min(self.out.len()) + bytes.len() > MAX_VALUE {
            self.out.truncate(start);
            self.write(TOO_LARGE_VALUE);
            return None;
        }
        self.write(bytes);
        Some(start)
    }

    fn end_value(&mut self, copied_from: Option<usize>) {
        self.lex = Lex::Structure;
        let is_kind = self.key == b"kind" && self.frames.last().is_some_and(|frame| frame.is_object);
        let value = copied_from.filter(|_| is_kind).and_then(|start| self.out.get(start..));
        if let (Some(value), Some(object)) = (value, self.lists.last_mut()) {
            object.kind = serde_json::from_slice(value).ok();
        }
    }

    /// Writes the comma before a member or an element.
    pub(super) fn separate(&mut self) {
        let Some(frame) = self.frames.last_mut() else { return };
        if std::mem::replace(&mut frame.has_members, true) {
            self.write(b",");
        }
    }

    pub(super) fn write_key(&mut self) {
        let key = std::mem::take(&mut self.key);
        for part in [b"\"", key.as_slice(), b"\":"] {
            self.write(part);
        }
        self.key = key;
    }

    /// Adds to the innermost object, unless that is too large already.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let Some(object) = self.lists.last_mut() else { return };
        if object.too_large || self.out.len() - object.start + bytes.len() > MAX_OBJECT {
            object.too_large = true;
            self.out.truncate(object.start);
            return;
        }
        self.out.extend_from_slice(bytes);
    }
}
