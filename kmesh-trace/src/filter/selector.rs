//! Label selectors, with the grammar and the meaning of kubectl's `--selector`.
//!
//! A selector is a list of requirements, separated by commas: `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (x,y)`, `a notin
//! (x,y)`, `a>1`, `a<9`. All of them must hold. A missing label satisfies `!a`, `a!=b` and `a notin (x,y)`, and nothing
//! else.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::record::Labels;

/// The maximum length of a label's value, and of its name without the prefix.
const MAX_LABEL_CHARACTERS: usize = 63;
/// The maximum length of the prefix of a label's name.
const MAX_PREFIX_CHARACTERS: usize = 253;

/// The requirements on the labels of one pod. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    condition: Condition,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Exists,
    Absent,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Above(i64),
    Below(i64),
}

impl Condition {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Above(bound) => number().is_some_and(|number| number > *bound),
            Self::Below(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl Selector {
    /// Joins selectors: every requirement of all of them must hold.
    pub fn all<'a>(selectors: impl IntoIterator<Item = &'a Self>) -> Self {
        Self(
            selectors
                .into_iter()
                .flat_map(|selector| selector.0.iter().cloned())
                .collect(),
        )
    }

    /// Returns whether there are no requirements.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether a requirement is about the label `key`.
    pub fn has_key(&self, key: &str) -> bool {
        self.0.iter().any(|requirement| requirement.key == key)
    }

    /// Returns whether `labels` satisfy every requirement.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0
            .iter()
            .all(|requirement| requirement.condition.holds(labels.get(&requirement.key)))
    }
}

/// Displays the selector as kubectl does.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Requirement { key, condition }) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(",")?;
            }
            let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(",");
            match condition {
                Condition::Exists => f.write_str(key),
                Condition::Absent => write!(f, "!{key}"),
                Condition::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
                Condition::In(values) => write!(f, "{key} in ({})", list(values)),
                Condition::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values)),
                Condition::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
                Condition::Above(bound) => write!(f, "{key}>{bound}"),
                Condition::Below(bound) => write!(f, "{key}<{bound}"),
            }?;
        }
        Ok(())
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut tokens = Tokens { rest: text };
        let mut requirements = Vec::new();
        loop {
            requirements.push(tokens.requirement()?);
            match tokens.next() {
                None => return Ok(Self(requirements)),
                Some(Token::Comma) => {}
                Some(token) => {
                    return Err(format!("unexpected {}: a comma must come before it", token.text()));
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Comma,
    Open,
    Close,
    Not,
    Equals,
    NotEquals,
    Above,
    Below,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Comma => ",",
            Self::Open => "(",
            Self::Close => ")",
            Self::Not => "!",
            Self::Equals => "=",
            Self::NotEquals => "!=",
            Self::Above => ">",
            Self::Below => "<",
        }
    }
}

#[derive(Clone, Copy)]
struct Tokens<'a> {
    rest: &'a str,
}

/// The tokens that are not words. A token comes before its own prefixes.
const SIGNS: [(&str, Token<'static>); 9] = [
    ("!=", Token::NotEquals),
    ("==", Token::Equals),
    ("=", Token::Equals),
    ("!", Token::Not),
    (",", Token::Comma),
    ("(", Token::Open),
    (")", Token::Close),
    (">", Token::Above),
    ("<", Token::Below),
];

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        for (sign, token) in SIGNS {
            if let Some(rest) = self.rest.strip_prefix(sign) {
                self.rest = rest;
                return Some(token);
            }
        }
        let end = self
            .rest
            .find([' ', '\t', '\r', '\n', '!', '=', ',', '(', ')', '>', '<']);
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!word.is_empty()).then_some(Token::Word(word))
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.clone().next()
    }

    fn word(&mut self, what: &str) -> Result<&'a str, String> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word),
            Some(token) => Err(format!("unexpected {}: {what} must be here", token.text())),
            None => Err(format!("the selector ends where {what} must be")),
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let is_negated = self.peek() == Some(Token::Not);
        if is_negated {
            self.next();
        }
        let key = self.word("a label")?;
        check_key(key)?;
        let key = key.to_owned();
        if is_negated {
            return Ok(Requirement {
                key,
                condition: Condition::Absent,
            });
        }
        if matches!(self.peek(), None | Some(Token::Comma)) {
            return Ok(Requirement {
                key,
                condition: Condition::Exists,
            });
        }
        let condition = match self.next() {
            Some(Token::Equals) => Condition::In(BTreeSet::from([self.value()?])),
            Some(Token::NotEquals) => Condition::NotIn(BTreeSet::from([self.value()?])),
            Some(Token::Word("in")) => Condition::In(self.values()?),
            Some(Token::Word("notin")) => Condition::NotIn(self.values()?),
            Some(Token::Above) => Condition::Above(self.number()?),
            Some(Token::Below) => Condition::Below(self.number()?),
            token => {
                let text = token.as_ref().map_or("", Token::text);
                return Err(format!(
                    "{text} is not an operator; the operators are =, ==, !=, in, notin, > and <"
                ));
            }
        };
        Ok(Requirement { key, condition })
    }

    /// Reads a value, which may be empty.
    fn value(&mut self) -> Result<String, String> {
        let value = match self.peek() {
            None | Some(Token::Comma) => "",
            _ => self.word("a value")?,
        };
        check_value(value)?;
        Ok(value.to_owned())
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.word("a number")?;
        check_value(word)?;
        word.parse().map_err(|_| format!("{word} is not a whole number"))
    }

    /// Reads values in parentheses, separated by commas. Each may be empty.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        const EXPECTED: &str = "write the values in parentheses: a in (x,y)";
        if self.next() != Some(Token::Open) {
            return Err(EXPECTED.to_owned());
        }
        if self.peek() == Some(Token::Close) {
            return Err("the parentheses are empty".to_owned());
        }
        let mut values = BTreeSet::new();
        loop {
            let value = match self.peek() {
                Some(Token::Comma | Token::Close) => "",
                _ => self.word("a value")?,
            };
            check_value(value)?;
            values.insert(value.to_owned());
            match self.next() {
                Some(Token::Comma) => {}
                Some(Token::Close) => return Ok(values),
                _ => return Err(EXPECTED.to_owned()),
            }
        }
    }
}

/// Checks the name of a label: `name` or `prefix/name`, where the prefix is a DNS name.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_part = |part: &str| {
        let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        part.bytes().all(is_inner) && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    let is_prefix = |prefix: &str| prefix.len() <= MAX_PREFIX_CHARACTERS && prefix.split('.').all(is_part);
    if name.is_empty() || !is_qualified(name) || !prefix.is_none_or(is_prefix) {
        return Err(format!(
            "{key} is not the name of a label, such as app or app.kubernetes.io/name"
        ));
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), String> {
    if is_qualified(value) {
        Ok(())
    } else {
        Err(format!(
            "{value} is not the value of a label: up to {MAX_LABEL_CHARACTERS} letters and digits, with - _ . between \
             them"
        ))
    }
}

/// Returns whether `text` is empty, or letters and digits with `-`, `_` and `.` between them.
fn is_qualified(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= MAX_LABEL_CHARACTERS
        && text.bytes().all(is_inner)
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selector_matches_as_kubectl_does() {
        let labels: Labels = [
            ("app", "web"),
            ("n", "5"),
            ("x.io/tier", "front"),
            ("empty", ""),
            ("in", "in"),
        ]
        .into_iter()
        .collect();
        let cases = [
            ("app", true),
            ("!app", false),
            ("other", false),
            ("!other", true),
            ("! other", true),
            ("app=web", true),
            ("app==web", true),
            (" app = web ", true),
            ("app=db", false),
            ("app!=web", false),
            ("app!=db", true),
            ("other!=db", true),
            ("empty=", true),
            ("app=", false),
            ("app!=", true),
            ("empty!=,app", false),
            ("app in (web)", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("other in (db)", false),
            ("app notin (db,cache)", true),
            ("app notin (web)", false),
            ("other notin (db)", true),
            ("empty in (,x)", true),
            ("empty in (x,)", true),
            ("empty in (x,,y)", true),
            ("app in(web)", true),
            ("in", true),
            ("in in (in)", true),
            ("in=in", true),
            ("notin notin (notin)", true),
            ("n>4", true),
            ("n>5", false),
            ("n<6", true),
            ("n < 5", false),
            ("app>1", false),
            ("other<1", false),
            ("x.io/tier=front", true),
            ("app=web,n>4,!other", true),
            ("app=web,n>5", false),
            ("app=web,app=web", true),
        ];
        for (text, expected) in cases {
            let selector: Selector = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.matches(&labels), expected, "{text}");
        }
    }

    #[test]
    fn selector_that_kubectl_refuses_is_refused() {
        let long = "a".repeat(64);
        let cases = [
            "",
            " ",
            ",",
            "a,",
            ",a",
            "a,,b",
            "!",
            "!!a",
            "=b",
            "a b",
            "a=b c",
            "a=b=c",
            "!a=b",
            "a in",
            "a in b",
            "a in ()",
            "a in (b",
            "a in (b c)",
            "a in ((b))",
            "a notin",
            "a IN (b)",
            "a>",
            "a>b",
            "a>1.5",
            "a>-1",
            "a<>1",
            "a=-b",
            "a=b_",
            "-a",
            "a-",
            "a/",
            "/a",
            "X.io/a",
            "x..io/a",
            "x/y/z",
            "a=é",
            "a=b:c",
            long.as_str(),
        ];
        for text in cases {
            assert!(text.parse::<Selector>().is_err(), "{text:?}");
        }
        assert!(format!("a={long}").parse::<Selector>().is_err());
        assert!(format!("a={}", &long[1..]).parse::<Selector>().is_ok());
    }
}
