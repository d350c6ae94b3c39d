//! A pod's UID, small: there are a hundred thousand, and few are ever printed.

use std::fmt;
use std::sync::Arc;

/// A UID. Kubernetes makes UUIDs, and for static pods 32 digits; any other text is kept as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Uid {
    /// `8-4-4-4-12` digits.
    Dashed([u8; 16]),
    /// 32 digits.
    Plain([u8; 16]),
    /// Anything else.
    Other(Arc<str>),
}

/// Where a UUID has its dashes.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let bytes = text.as_bytes();
        let is_dashed = bytes.len() == 36 && DASHES.iter().all(|&at| bytes[at] == b'-');
        let digits = match bytes.len() {
            32 => number(bytes.iter()),
            36 if is_dashed => number(
                bytes
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| !DASHES.contains(at))
                    .map(|(_, byte)| byte),
            ),
            _ => None,
        };
        match digits {
            Some(digits) if is_dashed => Self::Dashed(digits),
            Some(digits) => Self::Plain(digits),
            None => Self::Other(text.into()),
        }
    }
}

/// Of lower-case digits only, so that it can be printed as it was.
fn number<'a>(digits: impl Iterator<Item = &'a u8>) -> Option<[u8; 16]> {
    let mut number = 0_u128;
    for digit in digits {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number.to_be_bytes())
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(bytes) => write!(f, "{:032x}", u128::from_be_bytes(*bytes)),
            Self::Dashed(bytes) => {
                let digits = format!("{:032x}", u128::from_be_bytes(*bytes));
                let [a, b, c, d] = [8, 12, 16, 20];
                let parts = [&digits[..a], &digits[a..b], &digits[b..c], &digits[c..d], &digits[d..]];
                f.write_str(&parts.join("-"))
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back_as_it_was() {
        let uuid = "0d7c5fbe-11a2-4c3b-8f0e-0123456789ab";
        assert!(matches!(Uid::from(uuid), Uid::Dashed(_)));
        let plain = "00b6f14a38b14b6c0b0d7ef7a2a9c8d1";
        assert!(matches!(Uid::from(plain), Uid::Plain(_)));
        let others = [
            "",
            "web-0",
            &uuid.to_uppercase(),
            &plain[1..],
            "0d7c5fbe-11a2-4c3b-8f0e-0123456789a-",
            "0d7c5fbe-11a2-4c3b-8f0e-0123456789é",
            "00b6f14a38b14b6c0b0d7ef7a2a9c8dx",
        ];
        for text in others {
            assert!(matches!(Uid::from(text), Uid::Other(_)), "{text}");
        }
        for text in others.into_iter().chain([uuid, plain]) {
            assert_eq!(Uid::from(text).to_string(), text);
        }
    }
}
