//! Label selectors, with the grammar and the meaning of kubectl's `--selector`.
//!
//! Requirements stand between commas, and all must hold: `a`, `!a`, `a=b`, `a==b`, `a!=b`, `a in (x,y)`, `a notin (x,y)`, `a>1`,
//! `a<9`. A label that is not there satisfies what it must not be, and has no number.

use std::collections::BTreeSet;
use std::str::FromStr;

use crate::record::Labels;

/// The longest name of a label, without its prefix, and the longest value.
const MOST_CHARACTERS: usize = 63;
/// The longest prefix of a label's name.
const LONGEST_PREFIX: usize = 253;

/// All requirements of one end. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    demand: Demand,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Demand {
    Exists,
    Lacks,
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Above(i64),
    Below(i64),
}

impl Demand {
    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match self {
            Self::Exists => value.is_some(),
            Self::Lacks => value.is_none(),
            Self::In(values) => value.is_some_and(|value| values.contains(value)),
            Self::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
            Self::Above(bound) => number().is_some_and(|number| number > *bound),
            Self::Below(bound) => number().is_some_and(|number| number < *bound),
        }
    }
}

impl Selector {
    /// All of these at once, as when they are written with commas between them.
    pub fn all<'a>(selectors: impl IntoIterator<Item = &'a Self>) -> Self {
        Self(selectors.into_iter().flat_map(|one| one.0.iter().cloned()).collect())
    }

    /// Whether it demands nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels are as demanded.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0
            .iter()
            .all(|requirement| requirement.demand.holds(labels.get(&requirement.key)))
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut tokens = Tokens { left: text };
        let mut requirements = Vec::new();
        loop {
            requirements.push(tokens.requirement()?);
            match tokens.next() {
                None => return Ok(Self(requirements)),
                Some(Token::Comma) => {}
                Some(token) => {
                    return Err(format!(
                        "{} cannot stand there: a comma must come before it",
                        token.text()
                    ));
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
    left: &'a str,
}

/// In this order: the longest first.
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
        self.left = self.left.trim_start_matches([' ', '\t', '\r', '\n']);
        for (sign, token) in SIGNS {
            if let Some(left) = self.left.strip_prefix(sign) {
                self.left = left;
                return Some(token);
            }
        }
        let end = self
            .left
            .find([' ', '\t', '\r', '\n', '!', '=', ',', '(', ')', '>', '<']);
        let (word, left) = self.left.split_at(end.unwrap_or(self.left.len()));
        self.left = left;
        (!word.is_empty()).then_some(Token::Word(word))
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.clone().next()
    }

    fn word(&mut self, what: &str) -> Result<&'a str, String> {
        match self.next() {
            Some(Token::Word(word)) => Ok(word),
            Some(token) => Err(format!("{} cannot stand there: {what} must", token.text())),
            None => Err(format!("it ends where {what} must stand")),
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let lacks = self.peek() == Some(Token::Not);
        if lacks {
            self.next();
        }
        let key = self.word("a label")?;
        check_key(key)?;
        let key = key.to_owned();
        if lacks {
            return Ok(Requirement {
                key,
                demand: Demand::Lacks,
            });
        }
        if matches!(self.peek(), None | Some(Token::Comma)) {
            return Ok(Requirement {
                key,
                demand: Demand::Exists,
            });
        }
        let demand = match self.next() {
            Some(Token::Equals) => Demand::In(BTreeSet::from([self.value()?])),
            Some(Token::NotEquals) => Demand::NotIn(BTreeSet::from([self.value()?])),
            Some(Token::Word("in")) => Demand::In(self.values()?),
            Some(Token::Word("notin")) => Demand::NotIn(self.values()?),
            Some(Token::Above) => Demand::Above(self.number()?),
            Some(Token::Below) => Demand::Below(self.number()?),
            token => {
                let text = token.as_ref().map_or("", Token::text);
                return Err(format!("{text} is no operator: =, ==, !=, in, notin, > and < are"));
            }
        };
        Ok(Requirement { key, demand })
    }

    /// May be empty.
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
        word.parse().map_err(|_| format!("{word} is no whole number"))
    }

    /// Between parentheses; one between two commas may be empty.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        const WANTED: &str = "values stand in parentheses: a in (x,y)";
        if self.next() != Some(Token::Open) {
            return Err(WANTED.to_owned());
        }
        if self.peek() == Some(Token::Close) {
            return Err("there is no value in the parentheses".to_owned());
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
                _ => return Err(WANTED.to_owned()),
            }
        }
    }
}

/// `name` or `prefix/name`, the prefix a DNS name.
fn check_key(key: &str) -> Result<(), String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_part = |part: &str| {
        let is_inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        part.bytes().all(is_inner) && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    let is_prefix = |prefix: &str| prefix.len() <= LONGEST_PREFIX && prefix.split('.').all(is_part);
    if name.is_empty() || !is_qualified(name) || !prefix.is_none_or(is_prefix) {
        return Err(format!("{key} is no label's name: app, app.kubernetes.io/name"));
    }
    Ok(())
}

fn check_value(value: &str) -> Result<(), String> {
    if is_qualified(value) {
        Ok(())
    } else {
        Err(format!(
            "{value} is no label's value: up to {MOST_CHARACTERS} letters and digits, with - _ . between them"
        ))
    }
}

/// Letters and digits, with some signs between them; or nothing.
fn is_qualified(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= MOST_CHARACTERS
        && text.bytes().all(is_inner)
        && is_end(text.bytes().next())
        && is_end(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each selects, as `kubectl get pods -l` does.
    #[test]
    fn every_form() {
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
    fn what_kubectl_refuses_is_refused() {
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
