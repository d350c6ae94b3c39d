//! Splits a stream of JSON into Kubernetes objects, within a fixed amount of memory.
//!
//! The scanner takes the bytes as they arrive. It reduces each object to the members in a table of [`Fields`] and passes it on
//! when the object is complete. An object that is too large costs only itself. The scanner checks the syntax only as far as it
//! must to find the members; what it passes on is parsed strictly.

mod values;

use super::fields::{Field, Fields};

/// The largest reduced object, in bytes.
pub const MAX_OBJECT: usize = 1 << 20;
/// The largest single value of a reduced object, in bytes.
const MAX_VALUE: usize = 64 << 10;
/// Stands for a value that is too large: no field has this type, so that nobody takes it for the real value.
const TOO_LARGE_VALUE: &[u8] = b"[[]]";
/// The longest member name that can be in a table of fields.
const MAX_KEY: usize = 64;
/// The deepest nesting of what is not dropped.
const MAX_DEPTH: usize = 32;
/// The largest total of objects that wait for the kind of their list, in bytes.
const MAX_PENDING: usize = 64 << 20;
/// What the kind of a list ends in: `PodList`, or `List` of anything.
const LIST: &str = "List";

/// What the scanner has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// An object.
    Object {
        /// Its own kind, else the kind by its list.
        kind: &'a str,
        /// Its reduced JSON.
        json: &'a [u8],
    },
    /// The end of a list, with the members of the list itself.
    List {
        /// `kind`; empty when the list has none.
        kind: &'a str,
        /// The reduced JSON, without items.
        json: &'a [u8],
    },
    /// An object that is left out because it is too large.
    TooLarge,
    /// An item that is left out because nothing says what it is.
    Unknown,
}

/// Text that is not the JSON of Kubernetes objects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at line {line} column {column}")]
pub struct ScanError {
    problem: &'static str,
    line: usize,
    column: usize,
}

/// A scanner of one stream. A stream has any number of documents.
pub struct Scanner {
    fields: &'static Fields,
    /// The kind of objects whose list has no kind, if the stream's reader knows it.
    default_kind: Option<&'static str>,
    /// Reduced objects that are not complete, the innermost one last.
    out: Vec<u8>,
    frames: Vec<Frame>,
    lists: Vec<Open>,
    lex: Lex,
    key: Vec<u8>,
    /// Bytes of objects that wait for the kind of their list.
    pending_bytes: usize,
    line: usize,
    column: usize,
}

/// An object or array of which some members are needed.
struct Frame {
    is_array: bool,
    /// Whether the array is the items of a list.
    is_items: bool,
    /// Whether the object is a Kubernetes object, or a list of such objects.
    is_object: bool,
    fields: &'static Fields,
    expect: Expect,
    has_members: bool,
}

/// An open Kubernetes object, or list.
struct Open {
    /// Where its reduced JSON starts in `out`.
    start: usize,
    kind: Option<String>,
    has_items: bool,
    too_large: bool,
    /// Items without a kind, until the kind of the list is known.
    pending: Vec<Box<[u8]>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expect {
    Key,
    Colon,
    /// A value, and the field that it is of.
    Value,
    CommaOrEnd,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lex {
    /// Nothing that is begun.
    Structure,
    Key {
        escaped: bool,
    },
    /// A value that is dropped or copied as a whole.
    Value {
        copied_from: Option<usize>,
        depth: u32,
        in_string: bool,
        escaped: bool,
    },
    /// A number, `true`, `false` or `null`.
    Scalar {
        copied_from: Option<usize>,
    },
}

impl Scanner {
    /// Returns a scanner that keeps these fields. `default_kind` is the kind of objects where nothing else says it.
    pub fn new(fields: &'static Fields, default_kind: Option<&'static str>) -> Self {
        Self {
            fields,
            default_kind,
            out: Vec::new(),
            frames: Vec::new(),
            lists: Vec::new(),
            lex: Lex::Structure,
            key: Vec::new(),
            pending_bytes: 0,
            line: 1,
            column: 0,
        }
    }

    /// Reads the next bytes of the stream, and passes on each object that is complete.
    pub fn feed(&mut self, bytes: &[u8], found: &mut dyn FnMut(Found<'_>)) -> Result<(), ScanError> {
        let mut at = 0;
        while at < bytes.len() {
            let taken = match self.step(&bytes[at..], found) {
                Ok(taken) => taken,
                Err(problem) => {
                    self.count(&bytes[..=at]);
                    return Err(self.error(problem));
                }
            };
            at += taken;
        }
        self.count(bytes);
        Ok(())
    }

    /// Ends the stream. An object that is not complete is an error.
    pub fn finish(&self) -> Result<(), ScanError> {
        match self.frames.is_empty() {
            true => Ok(()),
            false => Err(self.error("the text ends in the middle of an object")),
        }
    }

    fn error(&self, problem: &'static str) -> ScanError {
        ScanError {
            problem,
            line: self.line,
            column: self.column,
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.line += bytes.iter().filter(|&&byte| byte == b'\n').count();
        self.column = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(last) => bytes.len() - last - 1,
            None => self.column + bytes.len(),
        };
    }

    /// Takes at least one byte, or as many as are of the same value.
    fn step(&mut self, bytes: &[u8], found: &mut dyn FnMut(Found<'_>)) -> Result<usize, &'static str> {
        match self.lex {
            Lex::Structure => self.structure(bytes[0], found).map(|()| 1),
            Lex::Key { escaped } => {
                self.key_byte(bytes[0], escaped);
                Ok(1)
            }
            Lex::Value { .. } => Ok(self.value_bytes(bytes)),
            Lex::Scalar { copied_from } => Ok(self.scalar_bytes(bytes, copied_from)),
        }
    }

    fn structure(&mut self, byte: u8, found: &mut dyn FnMut(Found<'_>)) -> Result<(), &'static str> {
        if byte.is_ascii_whitespace() {
            return Ok(());
        }
        let Some(frame) = self.frames.last_mut() else {
            return match byte {
                b'{' => self.open_object(self.fields),
                _ => Err("expected an object"),
            };
        };
        match (frame.expect, byte) {
            (Expect::Key, b'"') => {
                self.key.clear();
                self.lex = Lex::Key { escaped: false };
                Ok(())
            }
            (Expect::Colon, b':') => {
                frame.expect = Expect::Value;
                Ok(())
            }
            (Expect::CommaOrEnd, b',') => {
                frame.expect = if frame.is_array { Expect::Value } else { Expect::Key };
                Ok(())
            }
            (Expect::Key | Expect::CommaOrEnd, b'}') if !frame.is_array => self.close_object(found),
            (Expect::Value | Expect::CommaOrEnd, b']') if frame.is_array => {
                let is_items = frame.is_items;
                self.frames.pop();
                if !is_items {
                    self.write(b"]");
                }
                Ok(())
            }
            (Expect::Value, _) => self.value(byte, found),
            _ => Err("unexpected character"),
        }
    }

    /// Starts the value of a member or an element.
    fn value(&mut self, byte: u8, found: &mut dyn FnMut(Found<'_>)) -> Result<(), &'static str> {
        let Some(frame) = self.frames.last_mut() else {
            return Err("expected an object");
        };
        frame.expect = Expect::CommaOrEnd;
        if frame.is_items {
            let fields = frame.fields;
            return match byte {
                b'{' => self.open_object(fields),
                _ => {
                    found(Found::Unknown);
                    self.whole_value(byte, false)
                }
            };
        }
        if frame.is_array {
            let fields = frame.fields;
            self.separate();
            return self.needed(byte, &Field::Object(fields));
        }
        if frame.is_object && self.key == b"items" {
            if let Some(list) = self.lists.last_mut() {
                list.has_items = true;
            }
            return match byte {
                b'[' => self.push(Frame {
                    is_array: true,
                    is_items: true,
                    is_object: false,
                    fields: self.fields,
                    expect: Expect::Value,
                    has_members: false,
                }),
                // A kubelet that starts answers null.
                b'n' => self.whole_value(byte, false),
                _ => Err("expected a list of items"),
            };
        }
        match frame.fields.get(&self.key) {
            Some(field) => {
                self.separate();
                self.write_key();
                self.needed(byte, field)
            }
            None => self.whole_value(byte, false),
        }
    }

    /// Starts a value that is needed.
    fn needed(&mut self, byte: u8, field: &Field) -> Result<(), &'static str> {
        match (field, byte) {
            (Field::Object(fields), b'{' | b'[') => {
                self.write(&[byte]);
                let is_array = byte == b'[';
                self.push(Frame {
                    is_array,
                    is_items: false,
                    is_object: false,
                    fields,
                    expect: if is_array { Expect::Value } else { Expect::Key },
                    has_members: false,
                })
            }
            _ => self.whole_value(byte, true),
        }
    }

    fn push(&mut self, frame: Frame) -> Result<(), &'static str> {
        if self.frames.len() == MAX_DEPTH {
            return Err("nested too deeply");
        }
        self.frames.push(frame);
        Ok(())
    }

    /// Starts a value that is copied or dropped as a whole.
    fn whole_value(&mut self, byte: u8, copied: bool) -> Result<(), &'static str> {
        let copied_from = copied.then_some(self.out.len());
        self.lex = match byte {
            b'{' | b'[' | b'"' => Lex::Value {
                copied_from,
                depth: u32::from(byte != b'"'),
                in_string: byte == b'"',
                escaped: false,
            },
            b'-' | b'0'..=b'9' | b'a'..=b'z' => Lex::Scalar { copied_from },
            _ => return Err("expected a value"),
        };
        if copied {
            self.write(&[byte]);
        }
        Ok(())
    }

    fn open_object(&mut self, fields: &'static Fields) -> Result<(), &'static str> {
        self.lists.push(Open {
            start: self.out.len(),
            kind: None,
            has_items: false,
            too_large: false,
            pending: Vec::new(),
        });
        self.write(b"{");
        self.push(Frame {
            is_array: false,
            is_items: false,
            is_object: true,
            fields,
            expect: Expect::Key,
            has_members: false,
        })
    }

    fn close_object(&mut self, found: &mut dyn FnMut(Found<'_>)) -> Result<(), &'static str> {
        self.write(b"}");
        let Some(frame) = self.frames.pop() else {
            return Ok(());
        };
        if !frame.is_object {
            return Ok(());
        }
        let Some(object) = self.lists.pop() else {
            return Ok(());
        };
        let is_list = object.has_items || object.kind.as_deref().is_some_and(|kind| kind.ends_with(LIST));
        if is_list {
            self.close_list(&object, found);
        } else if object.too_large {
            found(Found::TooLarge);
        } else {
            self.pass_on(&object, found);
        }
        self.out.truncate(object.start);
        if self.out.is_empty() {
            // One large object does not hold its memory for the rest of the stream.
            self.out.shrink_to(MAX_VALUE);
        }
        Ok(())
    }

    fn close_list(&mut self, list: &Open, found: &mut dyn FnMut(Found<'_>)) {
        let kind = list.kind.as_deref().unwrap_or_default();
        for json in &list.pending {
            self.pending_bytes -= json.len();
            match item_kind(kind) {
                Some(kind) => found(Found::Object { kind, json }),
                None => found(Found::Unknown),
            }
        }
        let json = if list.too_large { b"{}" } else { &self.out[list.start..] };
        found(Found::List { kind, json });
    }

    /// Passes on an object, if its kind is known by now.
    fn pass_on(&mut self, object: &Open, found: &mut dyn FnMut(Found<'_>)) {
        let json = &self.out[object.start..];
        let kind = object.kind.as_deref().filter(|kind| !kind.is_empty());
        let of_list = self.lists.last().and_then(|list| item_kind(list.kind.as_deref()?));
        if let Some(kind) = kind.or(of_list).or(self.default_kind) {
            found(Found::Object { kind, json });
            return;
        }
        match self.lists.last_mut() {
            Some(list) if list.kind.is_none() && self.pending_bytes + json.len() <= MAX_PENDING => {
                self.pending_bytes += json.len();
                list.pending.push(json.into());
            }
            _ => found(Found::Unknown),
        }
    }

    fn key_byte(&mut self, byte: u8, escaped: bool) {
        if byte == b'"' && !escaped {
            self.lex = Lex::Structure;
            if let Some(frame) = self.frames.last_mut() {
                frame.expect = Expect::Colon;
            }
            return;
        }
        // A longer name is in no table, with or without its end.
        if self.key.len() < MAX_KEY {
            self.key.push(byte);
        }
        self.lex = Lex::Key {
            escaped: byte == b'\\' && !escaped,
        };
    }
}

/// Returns the kind of the items of a list of this kind.
fn item_kind(list_kind: &str) -> Option<&str> {
    list_kind.strip_suffix(LIST).filter(|kind| !kind.is_empty())
}

#[cfg(test)]
mod tests;
