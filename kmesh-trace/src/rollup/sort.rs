//! The order of rows.

use std::cmp::Ordering;
use std::str::FromStr;

use clap::ValueEnum;

use super::groups::Sums;
use super::quantiles::Quantiles;

/// A key of `--sort`: a key of a `rollup` line, or the bytes of both directions. The titles of the table's columns are
/// aliases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum SortKey {
    /// Bytes of both directions together
    Bytes,
    /// Names of the group
    #[value(alias = "client")]
    Group,
    /// Connections that are open
    Open,
    /// Attempts that are waiting for an answer
    Connecting,
    /// Connections that were established
    Opened,
    /// Connections and attempts that ended
    Closed,
    /// Connections that ended with an outcome other than ok
    Failed,
    /// Bytes sent by the traced end
    #[value(alias = "sent")]
    SentBytes,
    /// Bytes received by the traced end
    #[value(alias = "received")]
    ReceivedBytes,
    /// Duration of connections (p95)
    #[value(aliases = ["duration", "p95"])]
    DurationQuantilesNs,
    /// Duration of the handshake (p95)
    #[value(alias = "connect")]
    ConnectQuantilesNs,
    /// Smoothed round-trip time (p95)
    #[value(alias = "srtt")]
    SrttQuantilesUs,
    /// Time to each answer (p95), with --turns
    #[value(aliases = ["response", "resp95"])]
    ResponseQuantilesNs,
    /// Packets that this node dropped
    #[value(alias = "reason")]
    Drops,
    /// Segments that were retransmitted
    #[value(alias = "retrans")]
    Retransmits,
    /// Segments that were marked lost
    #[value(alias = "lost")]
    LostSegments,
}

impl SortKey {
    /// Returns the name that a user types.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Compares the sums of two rows by this key. Bytes are those that count in rates.
    pub fn compare(self, one: &Sums, two: &Sums) -> Ordering {
        let value = |sums: &Sums| match self {
            Self::Bytes => sums.rated_sent_bytes().saturating_add(sums.rated_received_bytes()),
            Self::Group => 0,
            Self::Open => sums.open,
            Self::Connecting => sums.connecting,
            Self::Opened => sums.opened,
            Self::Closed => sums.closed,
            Self::Failed => sums.failed(),
            Self::SentBytes => sums.rated_sent_bytes(),
            Self::ReceivedBytes => sums.rated_received_bytes(),
            Self::DurationQuantilesNs => p95(&sums.durations),
            Self::ConnectQuantilesNs => p95(&sums.connects),
            Self::SrttQuantilesUs => p95(&sums.srtts),
            Self::ResponseQuantilesNs => {
                let responses = sums.responses.as_ref();
                responses
                    .and_then(|responses| responses.summary())
                    .map_or(0, |summary| summary.p95)
            }
            Self::Drops => sums.drops.total(),
            Self::Retransmits => sums.retransmits,
            Self::LostSegments => sums.lost_segments,
        };
        value(one).cmp(&value(two))
    }
}

fn p95(quantiles: &Quantiles) -> u64 {
    quantiles.summary().map_or(0, |summary| summary.p95)
}

/// The value of `--sort`: a key, with a leading `-` for the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    /// The key that is compared.
    pub key: SortKey,
    /// Whether the row with the largest value comes first.
    pub descending: bool,
}

impl Default for Sort {
    fn default() -> Self {
        Self {
            key: SortKey::Bytes,
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
        match SortKey::from_str(name, false) {
            Ok(key) => Ok(Self { key, descending }),
            Err(_) => {
                let names: Vec<_> = SortKey::value_variants().iter().map(|key| key.name()).collect();
                Err(format!(
                    "the keys are {}; a leading - puts the largest first",
                    names.join(", ")
                ))
            }
        }
    }
}
