//! Splits a stream of JSON into Kubernetes objects, within a fixed amount of memory.
//!
//! The scanner takes the bytes as they arrive and passes on each object when it is complete, the items of a list one
//! by one. An object that is too large costs only itself. The scanner checks the syntax only as far as it must to
//! find the objects; what it passes on is parsed strictly.

use memchr::memchr2;

/// The largest object, in bytes of JSON. An API server stores at most 1.5 MiB of one object.
pub const MAX_OBJECT: usize = 2 << 20;
/// The buffer that stays allocated between two objects, in bytes.
const MAX_IDLE_BUFFER: usize = 64 << 10;
/// The deepest nesting of lists in lists.
const MAX_DEPTH: usize = 32;
/// The largest total of objects that wait for the kind of their list, in bytes.
const MAX_PENDING: usize = 64 << 20;
/// The suffix of a list's kind: `PodList`, or `List` for a list of anything.
const LIST: &str = "List";

/// What the scanner has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// An object, with its own kind, else the kind by its list.
    Object { kind: &'a str, json: &'a [u8] },
    /// The end of a list, with the members of the list itself. Its kind is empty when it has none.
    List { kind: &'a str, json: &'a [u8] },
    /// An object that is left out because it is too large.
    TooLarge,
    /// An object that is left out because its kind is unknown.
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
    /// The kind of objects without kind in lists without kind.
    default_kind: Option<&'static str>,
    /// The text of the open objects so far, the innermost last.
    text: Vec<u8>,
    objects: Vec<Open>,
    in_string: bool,
    is_escaped: bool,
    /// Bytes of objects that wait for the kind of their list.
    pending_bytes: usize,
    line: usize,
    column: usize,
}

/// An object, or a list, that is not complete.
#[derive(Default)]
struct Open {
    /// Where its JSON starts in the text.
    start: usize,
    /// The number of objects and arrays that are open in it.
    depth: u32,
    /// Where its last string starts in the text.
    string: usize,
    member: Option<Member>,
    kind: Option<String>,
    has_items: bool,
    /// Whether the next bytes are between two items.
    in_items: bool,
    is_too_large: bool,
    /// Items without a kind, until the kind of the list is known.
    pending: Vec<Box<[u8]>>,
}

/// A member of an object whose name has been read.
enum Member {
    Kind,
    /// The items of a list, whose value has not started.
    Items,
    Other,
}

impl Scanner {
    /// Returns a scanner. `default_kind` is the kind of objects without kind in lists without kind.
    pub fn new(default_kind: Option<&'static str>) -> Self {
        Self {
            default_kind,
            text: Vec::new(),
            objects: Vec::new(),
            in_string: false,
            is_escaped: false,
            pending_bytes: 0,
            line: 1,
            column: 0,
        }
    }

    /// Reads the next bytes of the stream, and passes on each object that is complete.
    pub fn feed(&mut self, bytes: &[u8], found: &mut dyn FnMut(Found<'_>)) -> Result<(), ScanError> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            // Most of the text is in strings.
            if self.in_string && !self.is_escaped {
                let run = memchr2(b'"', b'\\', &bytes[at..]).unwrap_or(bytes.len() - at);
                if run > 0 {
                    self.write(&bytes[at..at + run]);
                    at += run;
                    continue;
                }
            }
            if let Err(problem) = self.step(byte, found) {
                self.count(&bytes[..=at]);
                return Err(self.error(problem));
            }
            at += 1;
        }
        self.count(bytes);
        Ok(())
    }

    /// Ends the stream. An object that is not complete is an error.
    pub fn finish(&self) -> Result<(), ScanError> {
        match self.objects.is_empty() {
            true => Ok(()),
            false => Err(self.error("the text ends in the middle of an object")),
        }
    }

    fn error(&self, problem: &'static str) -> ScanError {
        let (line, column) = (self.line, self.column);
        ScanError { problem, line, column }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.line += bytes.iter().filter(|&&byte| byte == b'\n').count();
        self.column = match bytes.iter().rposition(|&byte| byte == b'\n') {
            Some(last) => bytes.len() - last - 1,
            None => self.column + bytes.len(),
        };
    }

    fn step(&mut self, byte: u8, found: &mut dyn FnMut(Found<'_>)) -> Result<(), &'static str> {
        let Some(object) = self.objects.last_mut().filter(|object| !object.in_items) else {
            return self.step_between(byte);
        };
        if self.in_string {
            self.step_in_string(byte);
            return Ok(());
        }
        if matches!(object.member, Some(Member::Items)) && byte != b':' && !byte.is_ascii_whitespace() {
            object.member = Some(Member::Other);
            match byte {
                b'[' => {
                    (object.has_items, object.in_items) = (true, true);
                    return Ok(());
                }
                // A kubelet that starts answers null.
                b'n' => {}
                _ => return Err("expected a list of items"),
            }
        }
        match byte {
            b'"' => {
                self.in_string = true;
                object.string = self.text.len();
            }
            b'{' | b'[' => object.depth += 1,
            b'}' | b']' if object.depth == 0 => {
                self.close(byte, found);
                return Ok(());
            }
            b'}' | b']' => object.depth -= 1,
            b',' if object.depth == 0 => object.member = None,
            _ => {}
        }
        self.write(&[byte]);
        Ok(())
    }

    /// Takes a byte between two documents, or between two items of a list.
    fn step_between(&mut self, byte: u8) -> Result<(), &'static str> {
        match byte {
            b'{' if self.objects.len() == MAX_DEPTH => return Err("nested too deeply"),
            b'{' => {
                let start = self.text.len();
                self.objects.push(Open {
                    start,
                    ..Open::default()
                });
                self.write(b"{");
            }
            b']' => {
                self.objects.last_mut().ok_or("expected an object")?.in_items = false;
                self.write(b"null");
            }
            b',' if !self.objects.is_empty() => {}
            _ if byte.is_ascii_whitespace() => {}
            _ => return Err("expected an object"),
        }
        Ok(())
    }

    fn step_in_string(&mut self, byte: u8) {
        self.write(&[byte]);
        let was_escaped = self.is_escaped;
        self.is_escaped = byte == b'\\' && !was_escaped;
        if byte != b'"' || was_escaped {
            return;
        }
        self.in_string = false;
        let Some(object) = self.objects.last_mut().filter(|object| object.depth == 0) else {
            return;
        };
        let Some(string) = self.text.get(object.string..).filter(|_| !object.is_too_large) else {
            return;
        };
        match object.member {
            None => {
                object.member = Some(match string {
                    b"\"kind\"" => Member::Kind,
                    b"\"items\"" => Member::Items,
                    _ => Member::Other,
                });
            }
            Some(Member::Kind) => object.kind = serde_json::from_slice(string).ok(),
            Some(Member::Items | Member::Other) => {}
        }
    }

    /// Adds to the innermost object, unless that is too large already.
    fn write(&mut self, bytes: &[u8]) {
        let Some(object) = self.objects.last_mut() else { return };
        object.is_too_large |= self.text.len() - object.start + bytes.len() > MAX_OBJECT;
        match object.is_too_large {
            true => self.text.truncate(object.start),
            false => self.text.extend_from_slice(bytes),
        }
    }

    fn close(&mut self, byte: u8, found: &mut dyn FnMut(Found<'_>)) {
        self.write(&[byte]);
        let Some(object) = self.objects.pop() else { return };
        if object.has_items || object.kind.as_deref().is_some_and(|kind| kind.ends_with(LIST)) {
            self.close_list(&object, found);
        } else if object.is_too_large {
            found(Found::TooLarge);
        } else {
            self.pass_on(&object, found);
        }
        self.text.truncate(object.start);
        // One large object does not hold its memory for the rest of the stream.
        self.text.shrink_to(MAX_IDLE_BUFFER);
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
        let json = if list.is_too_large {
            b"{}"
        } else {
            &self.text[list.start..]
        };
        found(Found::List { kind, json });
    }

    /// Passes on an object, if its kind is known by now.
    fn pass_on(&mut self, object: &Open, found: &mut dyn FnMut(Found<'_>)) {
        let json = &self.text[object.start..];
        let kind = object.kind.as_deref().filter(|kind| !kind.is_empty());
        let of_list = self.objects.last().and_then(|list| item_kind(list.kind.as_deref()?));
        if let Some(kind) = kind.or(of_list).or(self.default_kind) {
            found(Found::Object { kind, json });
            return;
        }
        match self.objects.last_mut() {
            Some(list) if list.kind.is_none() && self.pending_bytes + json.len() <= MAX_PENDING => {
                self.pending_bytes += json.len();
                list.pending.push(json.into());
            }
            _ => found(Found::Unknown),
        }
    }
}

/// Returns the kind of the items of a list of this kind.
fn item_kind(list_kind: &str) -> Option<&str> {
    list_kind.strip_suffix(LIST).filter(|kind| !kind.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(found: Found<'_>) -> String {
        match found {
            Found::Object { kind, json } => format!("{kind} {}", str::from_utf8(json).unwrap()),
            Found::List { kind, json } => format!("end of {kind} {}", str::from_utf8(json).unwrap()),
            other => format!("{other:?}"),
        }
    }

    fn found_in_pieces(json: &str, size: usize) -> Result<Vec<String>, ScanError> {
        let mut scanner = Scanner::new(None);
        let mut all = Vec::new();
        for piece in json.as_bytes().chunks(size) {
            scanner.feed(piece, &mut |found| all.push(text(found)))?;
        }
        scanner.finish()?;
        Ok(all)
    }

    fn found(json: &str) -> Result<Vec<String>, ScanError> {
        let whole = found_in_pieces(json, json.len().max(1));
        for size in [1, 2, 3, 7] {
            assert_eq!(found_in_pieces(json, size), whole, "in pieces of {size}: {json}");
        }
        whole
    }

    #[test]
    fn items_are_passed_on_one_by_one() {
        let json = r#" {"apiVersion":"v1", "kind" : "PodList","metadata":{"items":[{"]":"}"}],"kind":"x"},
            "items":[{"metadata":{"name":"a\"}","kind":"{\\\""},"spec":[7,null,{}]} ,
              {"kind":"Service","spec":-1.5e3}],"x":1} {"kind":"Job"}"#;
        let expected = [
            r#"Pod {"metadata":{"name":"a\"}","kind":"{\\\""},"spec":[7,null,{}]}"#,
            r#"Service {"kind":"Service","spec":-1.5e3}"#,
            r#"end of PodList {"apiVersion":"v1", "kind" : "PodList","metadata":{"items":[{"]":"}"}],"kind":"x"},
            "items":null,"x":1}"#,
            r#"Job {"kind":"Job"}"#,
        ];
        assert_eq!(found(json).unwrap(), expected);
    }

    #[test]
    fn items_wait_for_the_kind_of_their_list() {
        let json = r#"{"items":[{"items":[{"code":1}],"kind":"ServiceList"},{"items":[{"code":2}],"kind":"PodList"},
            {"code":3},{"kind":"Node"}],"kind":"List"}{"items":null,"kind":"PodList"}"#;
        let expected = [
            r#"Service {"code":1}"#,
            r#"end of ServiceList {"items":null,"kind":"ServiceList"}"#,
            r#"Pod {"code":2}"#,
            r#"end of PodList {"items":null,"kind":"PodList"}"#,
            r#"Node {"kind":"Node"}"#,
            "Unknown",
            r#"end of List {"items":null,"kind":"List"}"#,
            r#"end of PodList {"items":null,"kind":"PodList"}"#,
        ];
        assert_eq!(found(json).unwrap(), expected);
    }

    #[test]
    fn text_that_is_no_list_is_refused_with_its_position() {
        let nested = "{\"items\":[".repeat(MAX_DEPTH + 1);
        let cases = [
            ("[]", "expected an object at line 1 column 1"),
            ("\"Unauthorized\"", "expected an object"),
            ("{}\n{}\n x", "expected an object at line 3 column 2"),
            (r#"{"kind":"PodList","items":[7]}"#, "expected an object"),
            (r#"{"kind":"PodList","items":{"a":1}}"#, "expected a list of items"),
            (r#"{"kind":"PodList","items":"a"}"#, "expected a list of items"),
            (r#"{"kind":"PodList","items":[{}"#, "ends in the middle"),
            (r#"{"kind":"Pod"#, "ends in the middle"),
            (&nested, "nested too deeply"),
        ];
        for (json, part) in cases {
            let error = found(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    /// 16 MiB of one object: the scanner holds less than twice the largest object.
    #[test]
    fn object_that_is_too_large_costs_only_itself() {
        let large = format!(
            r#"{{"kind":"Pod","spec":[{}{{}}]}}"#,
            r#"{"name":"]}"},"#.repeat(1 << 20)
        );
        let json = format!(r#"{{"kind":"List","items":[{{"kind":"Pod"}},{large},{{"kind":"Node"}}]}}{large}"#);
        let mut scanner = Scanner::new(None);
        let mut all = Vec::new();
        for piece in json.as_bytes().chunks(1000) {
            scanner.feed(piece, &mut |found| all.push(text(found))).unwrap();
            assert!(scanner.text.capacity() <= 2 * MAX_OBJECT);
        }
        let expected = [
            r#"Pod {"kind":"Pod"}"#,
            "TooLarge",
            r#"Node {"kind":"Node"}"#,
            r#"end of List {"kind":"List","items":null}"#,
            "TooLarge",
        ];
        assert_eq!(all, expected);
    }

    /// `{},{},…` of 57 MiB was 6.2 GB of memory.
    #[test]
    fn empty_items_take_no_memory() {
        let mut scanner = Scanner::new(Some("Pod"));
        let mut count = 0;
        let mut feed = |bytes: &[u8]| scanner.feed(bytes, &mut |_| count += 1).unwrap();
        feed(br#"{"kind":"PodList","items":["#);
        let items = "{},".repeat(20_000);
        (0..100).for_each(|_| feed(items.as_bytes()));
        assert_eq!(count, 2_000_000);
        assert!(scanner.text.capacity() <= MAX_IDLE_BUFFER && scanner.pending_bytes == 0);
    }
}
