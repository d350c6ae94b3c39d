//! Values of filters by Kubernetes names. `*` matches any characters.

use std::fmt;
use std::str::FromStr;

use super::values::Glob;
use crate::record::{Pod, Service, Workload};

/// The maximum length of a name. Kubernetes limits names to DNS subdomains (RFC 1123).
const MAX_NAME_CHARACTERS: usize = 253;

/// A pattern of the name of a namespace, pod, workload or service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern(Glob);

impl NamePattern {
    /// Returns whether the pattern matches `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name.as_bytes())
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'*');
        if text.is_empty() || !text.bytes().all(is_allowed) {
            return Err("a name has lower-case letters, digits, - and .; * matches any of them".to_owned());
        }
        if text.bytes().filter(|&byte| byte != b'*').count() > MAX_NAME_CHARACTERS {
            return Err(format!("a name has at most {MAX_NAME_CHARACTERS} characters"));
        }
        Ok(Self(Glob::new(text)))
    }
}

/// Splits `prefix/name` into the prefix, if there is one, and the name.
fn split_prefix(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    }
}

fn write_qualified(f: &mut fmt::Formatter<'_>, prefix: Option<&impl fmt::Display>, name: &NamePattern) -> fmt::Result {
    match prefix {
        Some(prefix) => write!(f, "{prefix}/{name}"),
        None => write!(f, "{name}"),
    }
}

/// A pattern of pods: `name` or `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPattern {
    namespace: Option<NamePattern>,
    name: NamePattern,
}

impl PodPattern {
    /// Returns whether the pattern matches `pod`.
    pub fn matches(&self, pod: &Pod) -> bool {
        let namespace = self.namespace.as_ref();
        self.name.matches(&pod.name) && namespace.is_none_or(|namespace| namespace.matches(&pod.namespace))
    }
}

impl fmt::Display for PodPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_qualified(f, self.namespace.as_ref(), &self.name)
    }
}

impl FromStr for PodPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = split_prefix(text);
        Ok(Self {
            namespace: namespace.map(str::parse).transpose()?,
            name: name.parse()?,
        })
    }
}

/// A pattern of workloads: `name` or `Kind/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPattern {
    /// The pattern of the kind in lower case.
    kind: Option<Glob>,
    name: NamePattern,
}

impl WorkloadPattern {
    /// Returns whether the pattern matches `workload`. Upper and lower case of the kind do not differ.
    pub fn matches(&self, workload: &Workload) -> bool {
        let kind = self.kind.as_ref();
        self.name.matches(&workload.name)
            && kind.is_none_or(|kind| kind.matches(workload.kind.to_ascii_lowercase().as_bytes()))
    }
}

impl fmt::Display for WorkloadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_qualified(f, self.kind.as_ref(), &self.name)
    }
}

impl FromStr for WorkloadPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = split_prefix(text);
        Ok(Self {
            kind: kind.map(parse_kind).transpose()?,
            name: name.parse()?,
        })
    }
}

fn parse_kind(text: &str) -> Result<Glob, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'*') {
        return Err("a kind has only letters and digits: Deployment/web".to_owned());
    }
    Ok(Glob::new(&text.to_ascii_lowercase()))
}

/// A pattern of services. A DNS name has dots, and the name of a service has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServicePattern {
    /// The pattern `name` or `namespace/name`: first the namespace, then the name.
    Name(Option<NamePattern>, NamePattern),
    /// The pattern of the full DNS name.
    Host(NamePattern),
}

impl ServicePattern {
    /// Returns whether the pattern matches `service`.
    pub fn matches(&self, service: &Service) -> bool {
        match self {
            Self::Name(namespace, name) => {
                let namespace = namespace.as_ref();
                name.matches(&service.name) && namespace.is_none_or(|namespace| namespace.matches(&service.namespace))
            }
            Self::Host(host) => host.matches(&service.host),
        }
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(namespace, name) => write_qualified(f, namespace.as_ref(), name),
            Self::Host(host) => write!(f, "{host}"),
        }
    }
}

impl FromStr for ServicePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match split_prefix(text) {
            (None, host) if host.contains('.') => host.parse().map(Self::Host),
            (namespace, name) => Ok(Self::Name(namespace.map(str::parse).transpose()?, name.parse()?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asserts that each text is refused with an error that contains the expected part.
    fn assert_refused<T: FromStr<Err = String>>(cases: &[(&str, &str)]) {
        for (text, part) in cases {
            match text.parse::<T>() {
                Err(error) => assert!(error.contains(part), "{text:?}: {error}"),
                Ok(_) => panic!("{text:?}"),
            }
        }
    }

    #[test]
    fn names_have_the_characters_of_kubernetes() {
        assert_refused::<NamePattern>(&[
            ("Shop", "lower-case"),
            ("shop/web", "lower-case"),
            ("my_shop", "lower-case"),
            (&"a".repeat(254), "253"),
        ]);
        assert_refused::<PodPattern>(&[
            ("Web", "lower-case"),
            ("/web", "lower-case"),
            ("shop/", "lower-case"),
            ("a/b/c", "lower-case"),
        ]);
        assert_refused::<WorkloadPattern>(&[
            ("Deploy-ment/web", "a kind"),
            ("/web", "a kind"),
            ("Deployment/Web", "lower-case"),
        ]);
        assert_refused::<ServicePattern>(&[("web:80", "lower-case"), ("shop/web:80", "lower-case")]);
    }
}
