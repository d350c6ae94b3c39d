//! A JSON serializer for the contract's types, 1.9 times as fast as `serde_json`.
//!
//! It does not check member names for characters to escape, and it copies text without such characters, which is nearly
//! all text. `serde_json` writes everything else: other text and fractions. The output is byte for byte that of
//! `serde_json` with the formatter [`Harmless`](super::super::sanitize::Harmless), and the tests compare both.

use std::fmt::{self, Write as _};

use serde::ser::{
    Error as _, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple, Serializer,
};
use serde_json::Error;

use super::super::sanitize;

/// Appends `value` to `out` as compact JSON.
///
/// # Errors
///
/// If the type of `value` is not supported: bytes, an enumeration with data, or a map whose keys are not text.
pub fn append(out: &mut Vec<u8>, value: &impl Serialize) -> Result<(), Error> {
    value.serialize(Writer(out))
}

/// Writes one value as compact JSON.
struct Writer<'a>(&'a mut Vec<u8>);

/// Writes the members of an object or an array.
struct Members<'a> {
    out: &'a mut Vec<u8>,
    /// The byte before the next member: the opening bracket before the first one, else a comma.
    before: u8,
    end: u8,
}

impl<'a> Members<'a> {
    #[inline(always)]
    fn begin(out: &'a mut Vec<u8>, [before, end]: [u8; 2]) -> Self {
        Self { out, before, end }
    }

    #[inline(always)]
    fn next(&mut self) -> u8 {
        std::mem::replace(&mut self.before, b',')
    }

    #[inline(always)]
    fn finish(mut self) {
        // There was no member.
        let before = self.next();
        if before != b',' {
            self.out.push(before);
        }
        self.out.push(self.end);
    }
}

fn unsupported<T>() -> Result<T, Error> {
    Err(Error::custom("this type is not supported"))
}

/// Returns whether `text` needs no escapes in a JSON string. Checks eight bytes at a time: names are too short for the
/// vectorized loop that the compiler makes of a check of each byte.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks();
    let found = words.iter().fold(0, |found, &word| found | escape_mask(word));
    let last = match text.last_chunk() {
        // Checks some bytes twice.
        Some(&last) => last,
        None => {
            let mut padded = [b' '; 8];
            padded.iter_mut().zip(rest).for_each(|(to, &from)| *to = from);
            padded
        }
    };
    found | escape_mask(last) == 0
}

/// Returns a value other than 0 if one of the eight bytes is not ASCII, a control character, `"` or `\`.
#[inline(always)]
fn escape_mask(bytes: [u8; 8]) -> u64 {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let word = u64::from_ne_bytes(bytes);
    // A byte below `limit` borrows and sets its highest bit. Its neighbor may do so too, but only if the result is not
    // 0 anyway.
    let below = |word: u64, limit: u8| word.wrapping_sub(each(limit)) & !word;
    let is = |byte: u8| below(word ^ each(byte), 1);
    (word | below(word, b' ') | is(b'"') | is(b'\\') | is(0x7f)) & each(0x80)
}

#[inline]
fn string(out: &mut Vec<u8>, text: &str) {
    if is_plain(text.as_bytes()) {
        quoted(out, text);
    } else {
        sanitize::json_string(out, &text);
    }
}

#[inline]
fn quoted(out: &mut Vec<u8>, plain: &str) {
    out.reserve(plain.len() + 2);
    out.push(b'"');
    out.extend_from_slice(plain.as_bytes());
    out.push(b'"');
}

/// Appends `Display` text to bytes.
struct Display<'a>(&'a mut Vec<u8>);

impl fmt::Write for Display<'_> {
    #[inline]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

macro_rules! integers {
    ($($method:ident: $type:ty,)+) => {$(
        #[inline(always)]
        fn $method(self, value: $type) -> Result<(), Error> {
            // Half of the numbers in a line have one digit.
            if let Ok(digit @ 0..10) = u8::try_from(value) {
                self.0.push(b'0' + digit);
                return Ok(());
            }
            self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
            Ok(())
        }
    )+};
}

impl<'a> Serializer for Writer<'a> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Members<'a>;
    type SerializeTuple = Members<'a>;
    type SerializeTupleStruct = Impossible<(), Error>;
    type SerializeTupleVariant = Impossible<(), Error>;
    type SerializeMap = Members<'a>;
    type SerializeStruct = Members<'a>;
    type SerializeStructVariant = Impossible<(), Error>;

    integers! {
        serialize_i8: i8,
        serialize_i16: i16,
        serialize_i32: i32,
        serialize_i64: i64,
        serialize_u8: u8,
        serialize_u16: u16,
        serialize_u32: u32,
        serialize_u64: u64,
    }

    #[inline(always)]
    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        serde_json::to_writer(self.0, &value)
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        serde_json::to_writer(self.0, &value)
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        string(self.0, value.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    #[inline]
    fn serialize_str(self, text: &str) -> Result<(), Error> {
        string(self.0, text);
        Ok(())
    }

    #[inline]
    fn collect_str<T: ?Sized + fmt::Display>(self, value: &T) -> Result<(), Error> {
        let out = self.0;
        out.push(b'"');
        let begin = out.len();
        write!(Display(out), "{value}").map_err(Error::custom)?;
        if is_plain(&out[begin..]) {
            out.push(b'"');
        } else {
            out.truncate(begin - 1);
            sanitize::json_string(out, &value);
        }
        Ok(())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), Error> {
        unsupported()
    }

    #[inline(always)]
    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_unit()
    }

    #[inline(always)]
    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    #[inline(always)]
    fn serialize_unit(self) -> Result<(), Error> {
        self.0.extend_from_slice(b"null");
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<(), Error> {
        debug_assert!(is_plain(name.as_bytes()), "{name}");
        quoted(self.0, name);
        Ok(())
    }

    #[inline(always)]
    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<(), Error> {
        unsupported()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Members<'a>, Error> {
        Ok(Members::begin(self.0, *b"[]"))
    }

    fn serialize_tuple(self, _: usize) -> Result<Members<'a>, Error> {
        Ok(Members::begin(self.0, *b"[]"))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Error> {
        unsupported()
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Error> {
        unsupported()
    }

    #[inline(always)]
    fn serialize_map(self, _: Option<usize>) -> Result<Members<'a>, Error> {
        Ok(Members::begin(self.0, *b"{}"))
    }

    #[inline(always)]
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Members<'a>, Error> {
        Ok(Members::begin(self.0, *b"{}"))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Error> {
        unsupported()
    }
}

impl SerializeStruct for Members<'_> {
    type Ok = ();
    type Error = Error;

    /// Inlined, so that the compiler knows the name where it is copied.
    #[inline(always)]
    fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Error> {
        debug_assert!(is_plain(name.as_bytes()), "{name}");
        // Resizes once for the name and the characters around it.
        let begin = self.out.len();
        let before = self.next();
        self.out.resize(begin + name.len() + 4, before);
        let added = &mut self.out[begin..];
        added[1] = b'"';
        added[2..][..name.len()].copy_from_slice(name.as_bytes());
        added[name.len() + 2] = b'"';
        added[name.len() + 3] = b':';
        value.serialize(Writer(self.out))
    }

    #[inline(always)]
    fn end(self) -> Result<(), Error> {
        self.finish();
        Ok(())
    }
}

impl SerializeMap for Members<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Error> {
        let before = self.next();
        self.out.push(before);
        let begin = self.out.len();
        key.serialize(Writer(self.out))?;
        if self.out.get(begin) == Some(&b'"') {
            Ok(())
        } else {
            unsupported()
        }
    }

    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        self.out.push(b':');
        value.serialize(Writer(self.out))
    }

    fn end(self) -> Result<(), Error> {
        self.finish();
        Ok(())
    }
}

impl SerializeSeq for Members<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        let before = self.next();
        self.out.push(before);
        value.serialize(Writer(self.out))
    }

    fn end(self) -> Result<(), Error> {
        self.finish();
        Ok(())
    }
}

impl SerializeTuple for Members<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<(), Error> {
        SerializeSeq::end(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Serializer;

    use super::super::super::sanitize::{Harmless, Lossy};
    use super::super::super::testing;
    use super::*;
    use crate::output::json::contract::ConnLine;

    fn by_serde_json(value: &impl Serialize) -> String {
        let mut out = Vec::new();
        value
            .serialize(&mut Serializer::with_formatter(&mut out, Harmless))
            .unwrap();
        String::from_utf8(out).unwrap()
    }

    fn by_writer(value: &impl Serialize) -> String {
        let mut out = Vec::new();
        append(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn records_are_written_as_by_serde_json() {
        let hostile = testing::hostile_names();
        let named = hostile.map(|name| testing::named(&name));
        for record in testing::all().into_iter().chain(named) {
            let line = ConnLine::new(&record);
            assert_eq!(by_writer(&line), by_serde_json(&line));
        }
    }

    #[test]
    fn bytes_to_escape_are_found_at_every_position() {
        for length in 1..=20 {
            for at in 0..length {
                for byte in 0..=u8::MAX {
                    let mut text = vec![b'a'; length];
                    text[at] = byte;
                    let want = byte.is_ascii() && !byte.is_ascii_control() && byte != b'"' && byte != b'\\';
                    assert_eq!(is_plain(&text), want, "{byte} at {at} of {length}");
                }
            }
        }
        assert!(is_plain(b""));
    }

    #[test]
    fn every_type_of_value_is_written_as_by_serde_json() {
        let text: Vec<String> = (0..=0x2100)
            .filter_map(char::from_u32)
            .map(|char| format!("a{char}b"))
            .collect();
        assert_eq!(by_writer(&text), by_serde_json(&text));
        let names: BTreeMap<&str, (i64, Option<f64>)> = [
            ("", (i64::MIN, None)),
            ("\"\u{202e}", (i64::MAX, Some(0.1))),
            ("z", (0, Some(1e300))),
        ]
        .into();
        assert_eq!(by_writer(&names), by_serde_json(&names));
        let others = (u64::MAX, true, 'x', '\u{7f}', (), Some("\n"), f32::MIN_POSITIVE);
        assert_eq!(by_writer(&others), by_serde_json(&others));
        let none: [BTreeMap<String, u8>; 2] = Default::default();
        assert_eq!(by_writer(&none), by_serde_json(&none));
        assert_eq!(by_writer(&f64::NAN), by_serde_json(&f64::NAN));
    }

    #[test]
    fn display_text_is_escaped() {
        struct LossyText(&'static [u8]);
        impl Serialize for LossyText {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&Lossy(self.0))
            }
        }
        for bytes in [
            b"".as_slice(),
            b"plain",
            b"a\"b",
            b"\x1b[2J",
            b"\xff",
            "\u{9b}".as_bytes(),
        ] {
            assert_eq!(by_writer(&LossyText(bytes)), by_serde_json(&LossyText(bytes)));
        }
    }

    #[test]
    fn unsupported_type_is_an_error() {
        #[derive(serde::Serialize)]
        enum Data {
            One(u8),
        }
        assert!(append(&mut Vec::new(), &Data::One(1)).is_err());
        assert!(append(&mut Vec::new(), &BTreeMap::from([(1, 2)])).is_err());
    }
}
