//! What is in a filter's flags for the names of Kubernetes, and what each value matches. `*` stands for any run of characters.

use std::str::FromStr;

use super::value::Glob;
use crate::record::{Pod, Service, Workload};

/// The longest name of anything.
const MOST_CHARACTERS: usize = 253;

/// A name, as almost everything in Kubernetes has it.
fn name(text: &str) -> Result<Glob, String> {
    let is_part = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'*');
    if text.is_empty() || !text.bytes().all(is_part) {
        return Err("a name has lower-case letters, digits, - and .; * stands for any of them".to_owned());
    }
    if text.bytes().filter(|&byte| byte != b'*').count() > MOST_CHARACTERS {
        return Err(format!("no name has more than {MOST_CHARACTERS} characters"));
    }
    Ok(Glob::new(text))
}

/// A kind. Its spelling is known, so upper and lower case need not be right.
fn kind(text: &str) -> Result<Glob, String> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'*') {
        return Err("a kind is a word: Deployment/web".to_owned());
    }
    Ok(Glob::new(&text.to_ascii_lowercase()))
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespacePattern(Glob);

impl NamespacePattern {
    /// Whether this one is such a namespace.
    pub fn matches(&self, namespace: &str) -> bool {
        self.0.matches(namespace.as_bytes())
    }
}

impl FromStr for NamespacePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        name(text).map(Self)
    }
}

/// A pod: `name` or `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPattern {
    namespace: Option<Glob>,
    name: Glob,
}

impl PodPattern {
    /// Whether this one is such a pod.
    pub fn matches(&self, pod: &Pod) -> bool {
        self.name.matches(pod.name.as_bytes())
            && self
                .namespace
                .as_ref()
                .is_none_or(|namespace| namespace.matches(pod.namespace.as_bytes()))
    }
}

impl FromStr for PodPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, rest) = match text.split_once('/') {
            Some((namespace, rest)) => (Some(self::name(namespace)?), rest),
            None => (None, text),
        };
        Ok(Self {
            namespace,
            name: name(rest)?,
        })
    }
}

/// A workload: `name` or `Kind/name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPattern {
    /// In lower case.
    kind: Option<Glob>,
    name: Glob,
}

impl WorkloadPattern {
    /// Whether this one is such a workload.
    pub fn matches(&self, workload: &Workload) -> bool {
        self.name.matches(workload.name.as_bytes())
            && self
                .kind
                .as_ref()
                .is_none_or(|kind| kind.matches(workload.kind.to_ascii_lowercase().as_bytes()))
    }
}

impl FromStr for WorkloadPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = match text.split_once('/') {
            Some((kind, rest)) => (Some(self::kind(kind)?), rest),
            None => (None, text),
        };
        Ok(Self {
            kind,
            name: name(rest)?,
        })
    }
}

/// A Service: `name`, `namespace/name`, or its whole DNS name, which has dots where no name of a Service has any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServicePattern {
    /// With its namespace, or without.
    Name(Option<NamespacePattern>, NamespacePattern),
    /// The whole one.
    Host(NamespacePattern),
}

impl ServicePattern {
    /// Whether this one is such a Service.
    pub fn matches(&self, service: &Service) -> bool {
        match self {
            Self::Name(namespace, name) => {
                name.matches(&service.name)
                    && namespace
                        .as_ref()
                        .is_none_or(|namespace| namespace.matches(&service.namespace))
            }
            Self::Host(host) => host.matches(&service.host),
        }
    }
}

impl FromStr for ServicePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self::Name(Some(namespace.parse()?), name.parse()?)),
            None if text.contains('.') => text.parse().map(Self::Host),
            None => Ok(Self::Name(None, text.parse()?)),
        }
    }
}
