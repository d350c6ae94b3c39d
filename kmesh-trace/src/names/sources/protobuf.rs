//! Reads protobuf messages and gRPC answers, field by field, without a copy.

use super::error::SourceError;

/// The largest element of an answer, in bytes.
const MAX_ELEMENT: u64 = 4 << 20;
/// Wire types: <https://protobuf.dev/programming-guides/encoding/>.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer.
    Varint(u64),
    /// A text, bytes, or a message.
    Bytes(&'a [u8]),
    /// A number of fixed size, which no message here has.
    Fixed,
}

impl<'a> Value<'a> {
    /// Returns the text; empty if the value is none.
    pub fn text(self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }

    /// Returns the bytes, or the message; empty if the value is none.
    pub fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Varint(_) | Self::Fixed => &[],
        }
    }

    /// Returns the integer; 0 if the value is none.
    pub fn number(self) -> i64 {
        match self {
            // An int64 is sent as its two's complement.
            Self::Varint(number) => number as i64,
            Self::Bytes(_) | Self::Fixed => 0,
        }
    }
}

/// The fields of a message: numbers and values. A message that is cut ends early.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (tag, rest) = varint(self.0)?;
        let (value, rest) = match tag & 7 {
            VARINT => varint(rest).map(|(number, rest)| (Value::Varint(number), rest))?,
            FIXED64 => (Value::Fixed, rest.get(8..)?),
            BYTES => {
                let (len, rest) = varint(rest)?;
                let (bytes, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
                (Value::Bytes(bytes), rest)
            }
            FIXED32 => (Value::Fixed, rest.get(4..)?),
            _ => return None,
        };
        self.0 = rest;
        Some((tag >> 3, value))
    }
}

/// Parses a number of 7 bits a byte.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    let (number, rest) = bytes.split_at(end + 1);
    let number = number
        .iter()
        .rev()
        .fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f));
    Some((number, rest))
}

/// Adds a text field to a message.
pub fn push_text(message: &mut Vec<u8>, field: u8, text: &str) {
    message.push(field << 3 | BYTES as u8);
    let mut len = text.len();
    while len >= 0x80 {
        message.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    message.push(len as u8);
    message.extend_from_slice(text.as_bytes());
}

/// Returns a gRPC request with this message.
pub fn request(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &len.to_be_bytes()[..], message].concat()
}

/// Splits a gRPC message into the elements of its field 1, as the message arrives. Other fields are dropped.
#[derive(Default)]
pub struct Elements {
    buffer: Vec<u8>,
    has_header: bool,
    /// Bytes of an element that is left out, or of another field.
    skip: u64,
    /// The number of elements that were too large.
    pub too_large: u64,
}

impl Elements {
    /// Reads the next bytes, and passes on each element that is complete.
    pub fn feed(&mut self, mut bytes: &[u8], element: &mut dyn FnMut(&[u8])) -> Result<(), SourceError> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
                self.skip -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.buffer.extend_from_slice(bytes);
            bytes = &[];
            let mut buffer = std::mem::take(&mut self.buffer);
            let left = self.split(&buffer, element)?;
            buffer.drain(..buffer.len() - left);
            self.buffer = buffer;
        }
        Ok(())
    }

    /// Passes on what is complete. Returns the number of bytes that are left.
    fn split(&mut self, buffer: &[u8], element: &mut dyn FnMut(&[u8])) -> Result<usize, SourceError> {
        let no_message = || SourceError::new("the answer is not one of a container runtime".to_owned());
        let mut rest = buffer;
        if !self.has_header {
            match rest.split_at_checked(5) {
                None => return Ok(rest.len()),
                Some(([0, ..], message)) => rest = message,
                Some(_) => return Err(no_message()),
            }
            self.has_header = true;
        }
        loop {
            let Some((tag, after)) = varint(rest) else {
                return if rest.len() < 10 {
                    Ok(rest.len())
                } else {
                    Err(no_message())
                };
            };
            let Some((number, after)) = varint(after) else {
                return if after.len() < 10 {
                    Ok(rest.len())
                } else {
                    Err(no_message())
                };
            };
            match tag & 7 {
                VARINT => {
                    rest = after;
                    continue;
                }
                BYTES => {}
                _ => return Err(no_message()),
            }
            let is_element = tag >> 3 == 1;
            if is_element && number <= MAX_ELEMENT {
                match after.split_at_checked(number as usize) {
                    Some((found, after)) => {
                        element(found);
                        rest = after;
                    }
                    None => return Ok(rest.len()),
                }
                continue;
            }
            self.too_large += u64::from(is_element);
            let here = number.min(after.len() as u64);
            self.skip = number - here;
            rest = &after[here as usize..];
            if self.skip > 0 {
                return Ok(0);
            }
        }
    }

    /// Whether the message has ended with an element.
    pub fn is_complete(&self) -> bool {
        self.has_header && self.buffer.is_empty() && self.skip == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_field(field: u8, bytes: &[u8]) -> Vec<u8> {
        let mut message = Vec::new();
        // A text is its bytes.
        push_text(&mut message, field, &"x".repeat(bytes.len()));
        let start = message.len() - bytes.len();
        message[start..].copy_from_slice(bytes);
        message
    }

    #[test]
    fn fields_are_read_one_after_the_other() {
        let message = [
            &[0x08, 0x96, 0x01][..],
            &bytes_field(2, b"web"),
            &[0x25, 1, 2, 3, 4],
            &[0x18, 7],
        ]
        .concat();
        let fields: Vec<_> = Fields(&message).collect();
        assert_eq!(
            fields,
            [
                (1, Value::Varint(150)),
                (2, Value::Bytes(b"web")),
                (4, Value::Fixed),
                (3, Value::Varint(7))
            ]
        );
        // However it is cut, it does no harm.
        for end in 0..message.len() {
            Fields(&message[..end]).for_each(drop);
        }
        assert_eq!(Fields(&[0xff; 20]).count(), 0);
        assert_eq!(
            Fields(&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).count(),
            0
        );
    }

    #[test]
    fn elements_arrive_in_any_pieces() {
        let long = vec![b'y'; 300];
        let message = [
            bytes_field(1, b"one"),
            bytes_field(2, b"another field"),
            vec![0x18, 7],
            bytes_field(1, &long),
            bytes_field(1, b""),
        ];
        let stream = request(&message.concat());
        for size in [1, 2, 3, 7, 100, stream.len()] {
            let mut elements = Elements::default();
            let mut found = Vec::new();
            for piece in stream.chunks(size) {
                elements
                    .feed(piece, &mut |element| found.push(element.to_vec()))
                    .unwrap();
            }
            assert_eq!(found, [b"one".to_vec(), long.clone(), vec![]], "{size}");
            assert!(elements.is_complete() && elements.too_large == 0);
        }
    }

    #[test]
    fn element_that_is_too_large_costs_only_itself() {
        let large = vec![b'z'; MAX_ELEMENT as usize + 1];
        let stream = request(&[bytes_field(1, b"a"), bytes_field(1, &large), bytes_field(1, b"b")].concat());
        let mut elements = Elements::default();
        let mut found = Vec::new();
        for piece in stream.chunks(16 << 10) {
            elements
                .feed(piece, &mut |element| found.push(element.to_vec()))
                .unwrap();
            assert!(elements.buffer.len() < 64 << 10);
        }
        assert_eq!((found, elements.too_large), (vec![b"a".to_vec(), b"b".to_vec()], 1));
    }
}
