//! The order of the table's rows.

use std::cmp::Ordering;
use std::str::FromStr;

use clap::ValueEnum;

use crate::rollup::{Quantiles, Sums};

/// What rows can be ordered by: the keys of a `rollup` line, and both directions' bytes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Key {
    /// Sent and received together
    Bytes,
    /// Names
    Group,
    /// Open now
    Open,
    /// Still connecting
    Connecting,
    /// Became established
    Opened,
    /// Ended
    Closed,
    /// Ended with any outcome but ok
    Failed,
    /// Sent
    SentBytes,
    /// Received
    ReceivedBytes,
    /// How long they took, 95 of 100
    #[value(alias = "duration")]
    DurationQuantilesNs,
    /// How long the handshake took, 95 of 100
    #[value(alias = "connect")]
    ConnectQuantilesNs,
    /// Round-trip time, 95 of 100
    #[value(alias = "srtt")]
    SrttQuantilesUs,
    /// Segments sent again
    Retransmits,
    /// Segments lost
    LostSegments,
}

impl Key {
    /// As it is typed.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Compares two rows' sums by it.
    pub fn compare(self, one: &Sums, two: &Sums) -> Ordering {
        let value = |sums: &Sums| match self {
            Self::Bytes => sums.sent_bytes.saturating_add(sums.received_bytes),
            Self::Group => 0,
            Self::Open => sums.open,
            Self::Connecting => sums.connecting,
            Self::Opened => sums.opened,
            Self::Closed => sums.closed,
            Self::Failed => sums.failed(),
            Self::SentBytes => sums.sent_bytes,
            Self::ReceivedBytes => sums.received_bytes,
            Self::DurationQuantilesNs => slow(&sums.durations),
            Self::ConnectQuantilesNs => slow(&sums.connects),
            Self::SrttQuantilesUs => slow(&sums.srtts),
            Self::Retransmits => sums.retransmits,
            Self::LostSegments => sums.lost_segments,
        };
        value(one).cmp(&value(two))
    }
}

fn slow(quantiles: &Quantiles) -> u64 {
    quantiles.summary().map_or(0, |summary| summary.p95)
}

/// `--sort`: a key, the largest first where a `-` stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub key: Key,
    /// The largest first.
    pub descending: bool,
}

impl Default for Sort {
    fn default() -> Self {
        Self {
            key: Key::Bytes,
            descending: true,
        }
    }
}

impl std::fmt::Display for Sort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", if self.descending { "-" } else { "" }, self.key.name())
    }
}

impl FromStr for Sort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (descending, name) = match text.strip_prefix('-') {
            Some(name) => (true, name),
            None => (false, text),
        };
        match Key::from_str(name, false) {
            Ok(key) => Ok(Self { key, descending }),
            Err(_) => {
                let names: Vec<_> = Key::value_variants().iter().map(|key| key.name()).collect();
                Err(format!(
                    "the keys are {}; a - before one: the largest first",
                    names.join(", ")
                ))
            }
        }
    }
}
