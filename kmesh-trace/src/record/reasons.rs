//! The running kernel's names of the reasons why it drops a packet or sends a RST.

use std::sync::Arc;

/// The name of a reason that says nothing.
const NOT_SPECIFIED: &str = "NOT_SPECIFIED";
/// The name of the number after the last reason.
const MAX: &str = "MAX";

/// Numbers from here on belong to subsystems that drop no TCP packets.
const MAX_REASONS: usize = 256;

/// The names of one kind of reason, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReasonNames(Arc<[Option<Arc<str>>]>);

impl ReasonNames {
    /// Returns the names of the enumerators that begin with `prefix`, without it.
    pub fn new(enumerators: impl IntoIterator<Item = (u32, String)>, prefix: &str) -> Self {
        let mut names = Vec::new();
        for (number, name) in enumerators {
            let (Some(name), number) = (name.strip_prefix(prefix), number as usize) else {
                continue;
            };
            if number >= MAX_REASONS || [MAX, NOT_SPECIFIED].contains(&name) {
                continue;
            }
            if names.len() <= number {
                names.resize(number + 1, None);
            }
            names[number] = Some(Arc::from(name));
        }
        Self(names.into())
    }

    /// Returns the name of a reason; `None` if the kernel does not specify it.
    pub fn name(&self, number: u32) -> Option<Arc<str>> {
        self.0.get(number as usize)?.clone()
    }

    /// Returns all reasons with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Arc<str>)> {
        (0..).zip(self.0.iter()).filter_map(|(number, name)| Some((number, name.as_ref()?)))
    }
}
