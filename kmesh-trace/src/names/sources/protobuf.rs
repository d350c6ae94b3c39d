//! Reads protobuf messages and gRPC answers, field by field, without a copy.

use super::error::SourceError;

/// The largest element of an answer, in bytes.
const MAX_ELEMENT: u64 = 4 << 20;
/// The most bytes of a varint.
const MAX_VARINT: usize = 10;
/// The wire types of <https://protobuf.dev/programming-guides/encoding/>.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
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
#[derive(Clone)]
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

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(MAX_VARINT).position(|byte| byte & 0x80 == 0)?;
    let (number, rest) = bytes.split_at(end + 1);
    let digits = number.iter().rev();
    let number = digits.fold(0, |number, byte| number << 7 | u64::from(byte & 0x7f));
    Some((number, rest))
}

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

pub fn request(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &len.to_be_bytes()[..], message].concat()
}

/// Splits a gRPC message into the elements of its field 1, as the message arrives. Other fields are dropped.
#[derive(Default)]
pub struct Elements {
    buffer: Vec<u8>,
    has_header: bool,
    /// The number of bytes to skip: of an element that is left out, or of another field.
    skip: u64,
    /// The number of elements that were too large.
    pub too_large: u64,
}

impl Elements {
    /// Reads the next bytes, and passes on each element that is complete.
    pub fn feed(&mut self, bytes: &[u8], element: &mut dyn FnMut(&[u8])) -> Result<(), SourceError> {
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.extend_from_slice(&bytes[skipped as usize..]);
        let mut at = 0;
        while let Some(length) = self.take(&buffer[at..], element)? {
            at += length;
        }
        buffer.drain(..at);
        self.buffer = buffer;
        Ok(())
    }

    /// Takes the header of the message or the next field, if it is complete. Returns its length.
    fn take(&mut self, bytes: &[u8], element: &mut dyn FnMut(&[u8])) -> Result<Option<usize>, SourceError> {
        let no_message = || SourceError::new("the answer is not one of a container runtime");
        if !self.has_header {
            return match bytes.get(..5) {
                None => Ok(None),
                Some([0, ..]) => {
                    self.has_header = true;
                    Ok(Some(5))
                }
                Some(_) => Err(no_message()),
            };
        }
        let incomplete = |bytes: &[u8]| match bytes.len() < MAX_VARINT {
            true => Ok(None),
            false => Err(no_message()),
        };
        let Some((tag, after)) = varint(bytes) else {
            return incomplete(bytes);
        };
        let Some((number, after)) = varint(after) else {
            return incomplete(after);
        };
        let head = bytes.len() - after.len();
        let is_element = match tag & 7 {
            VARINT => return Ok(Some(head)),
            BYTES => tag >> 3 == 1,
            _ => return Err(no_message()),
        };
        if is_element && number <= MAX_ELEMENT {
            let found = after.get(..number as usize);
            return Ok(found.map(|found| {
                element(found);
                head + found.len()
            }));
        }
        self.too_large += u64::from(is_element);
        let here = number.min(after.len() as u64);
        self.skip = number - here;
        Ok(Some(head + here as usize))
    }

    /// Returns whether the message has ended with an element.
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
        let expected = [
            (1, Value::Varint(150)),
            (2, Value::Bytes(b"web")),
            (4, Value::Fixed),
            (3, Value::Varint(7)),
        ];
        assert_eq!(Fields(&message).collect::<Vec<_>>(), expected);
        // A message that is cut anywhere does no harm.
        for end in 0..message.len() {
            Fields(&message[..end]).for_each(drop);
        }
        assert_eq!(Fields(&[0xff; 20]).count(), 0);
        let endless = [0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Fields(&endless).count(), 0);
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
                let fed = elements.feed(piece, &mut |element| found.push(element.to_vec()));
                fed.unwrap();
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
            let fed = elements.feed(piece, &mut |element| found.push(element.to_vec()));
            fed.unwrap();
            assert!(elements.buffer.len() < 64 << 10);
        }
        assert_eq!((found, elements.too_large), (vec![b"a".to_vec(), b"b".to_vec()], 1));
    }
}
