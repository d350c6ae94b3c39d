//! The counters in a record that the kernel computes for TCP_INFO from several of its members, by the same rules.

use std::borrow::Cow;
use std::fmt::{self, Write};

use kmesh_trace_common::Snapshot;
use kmesh_trace_common::unit::{Nullable, Unit};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::record::Comm;

/// The name of a congestion control algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Congestion(Comm);

impl Congestion {
    /// Returns the name that prints as `text`.
    pub fn new(text: &str) -> Self {
        Self(Comm::from_text(text))
    }
}

/// Displays the name, with U+FFFD for what is not UTF-8.
impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_bytes().utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

impl Serialize for Congestion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Congestion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(CongestionVisitor)
    }
}

/// Takes the name from the parser's own buffer, without an allocation.
struct CongestionVisitor;

impl Visitor<'_> for CongestionVisitor {
    type Value = Congestion;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a congestion control algorithm")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Congestion, E> {
        Ok(Congestion::new(text))
    }
}

impl JsonSchema for Congestion {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "congestion".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        String::json_schema(generator)
    }
}

pub fn rto_us(snapshot: &Snapshot) -> Option<u64> {
    present(snapshot.icsk_rto).map(|ticks| microseconds(snapshot, ticks.into()))
}

pub fn pmtu(snapshot: &Snapshot) -> Option<u32> {
    present(snapshot.icsk_pmtu_cookie)
}

pub fn congestion(snapshot: &Snapshot) -> Option<Congestion> {
    (snapshot.congestion[0] != 0).then_some(Congestion(Comm(snapshot.congestion)))
}

pub fn total_rto(snapshot: &Snapshot) -> Option<u16> {
    <Nullable as Unit<u16>>::value(snapshot.total_rto)
}

pub fn total_rto_ms(snapshot: &Snapshot) -> Option<u32> {
    let (ended_ms, since_ms) = (present(snapshot.total_rto_time)?, present(snapshot.rto_stamp)?);
    if since_ms == 0 {
        return Some(ended_ms);
    }
    let now_ms = (snapshot.time_ns / 1_000_000) as u32;
    Some(ended_ms.wrapping_add(now_ms.wrapping_sub(since_ms)))
}

pub fn busy_us(snapshot: &Snapshot) -> Option<u64> {
    let [busy, rwnd, sndbuf] = activity_us(snapshot)?;
    Some(busy + rwnd + sndbuf)
}

pub fn rwnd_limited_us(snapshot: &Snapshot) -> Option<u64> {
    activity_us(snapshot).map(|[_, rwnd, _]| rwnd)
}

pub fn sndbuf_limited_us(snapshot: &Snapshot) -> Option<u64> {
    activity_us(snapshot).map(|[.., sndbuf]| sndbuf)
}

pub fn last_send_ms(snapshot: &Snapshot) -> Option<u32> {
    age_ms(snapshot, snapshot.lsndtime)
}

pub fn last_receive_ms(snapshot: &Snapshot) -> Option<u32> {
    age_ms(snapshot, snapshot.lrcvtime)
}

/// Returns the number, or `None` if the kernel has no such member.
fn present(raw: u32) -> Option<u32> {
    <Nullable as Unit<u32>>::value(raw)
}

/// Returns the time in which this end had data to send, by its limit: none, the peer's window, the send buffer.
fn activity_us(snapshot: &Snapshot) -> Option<[u64; 3]> {
    present(snapshot.chrono_start)?;
    let current = snapshot.jiffies.wrapping_sub(snapshot.chrono_start);
    let mut ticks = [0; 3];
    for ((ticks, &ended), limit) in ticks.iter_mut().zip(&snapshot.chrono_stat).zip(1..) {
        let current = if snapshot.chrono_type == limit { current } else { 0 };
        *ticks = u64::from(present(ended)?) + u64::from(current);
    }
    Some(ticks.map(|ticks| microseconds(snapshot, ticks)))
}

/// Returns the time since an event at the tick `then`. Without a connection the kernel has set no such tick. At the
/// client's end it sets them after the change to ESTABLISHED, so an `open` event has a tick from before the connection.
fn age_ms(snapshot: &Snapshot, then: u32) -> Option<u32> {
    /// The kernel's counter of ticks may be late, the more so in a virtual machine.
    const TOLERANCE_US: u64 = 1_000_000;
    if snapshot.established_ns == 0 && snapshot.flags & kmesh_trace_common::FLAG_PREEXISTING == 0 {
        return None;
    }
    let ticks = u64::from(snapshot.jiffies.wrapping_sub(present(then)?));
    let age_us = microseconds(snapshot, ticks);
    let most_us = snapshot.time_ns.saturating_sub(snapshot.start_ns) / 1_000 + TOLERANCE_US;
    let is_older = snapshot.start_ns != 0 && age_us > most_us;
    (!is_older).then_some((age_us / 1_000) as u32)
}

/// Converts ticks to microseconds. Only the numbers of a damaged record are too large.
fn microseconds(snapshot: &Snapshot, ticks: u64) -> u64 {
    ticks.saturating_mul(snapshot.tick_ns.into()) / 1_000
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            time_ns: 9_000_000_000,
            established_ns: 1,
            jiffies: 5,
            tick_ns: 4_000_000,
            ..Snapshot::zeroed()
        }
    }

    #[test]
    fn current_period_of_activity_counts_by_its_limit() {
        let cases = [
            (0, [20_000, 8_000, 4_000]),
            (1, [36_000, 8_000, 4_000]),
            (2, [36_000, 24_000, 4_000]),
            (3, [36_000, 8_000, 20_000]),
        ];
        for (chrono_type, [busy, rwnd, sndbuf]) in cases {
            let snapshot = Snapshot {
                chrono_stat: [2, 2, 1],
                chrono_start: 1,
                chrono_type,
                ..snapshot()
            };
            let expected = [busy, rwnd, sndbuf].map(Some);
            let found = [
                busy_us(&snapshot),
                rwnd_limited_us(&snapshot),
                sndbuf_limited_us(&snapshot),
            ];
            assert_eq!(found, expected, "{chrono_type}");
        }
    }

    #[test]
    fn damaged_record_is_no_panic() {
        let snapshot = Snapshot {
            chrono_stat: [u32::MAX - 1; 3],
            chrono_start: 6,
            chrono_type: 1,
            tick_ns: u32::MAX,
            ..snapshot()
        };
        assert!(busy_us(&snapshot).is_some());
    }

    #[test]
    fn counter_of_ticks_may_wrap() {
        let snapshot = Snapshot {
            lsndtime: u32::MAX - 4,
            lrcvtime: 5,
            ..snapshot()
        };
        assert_eq!(
            (last_send_ms(&snapshot), last_receive_ms(&snapshot)),
            (Some(40), Some(0))
        );
    }

    #[test]
    fn tick_from_before_the_connection_is_null() {
        let at_open = |lsndtime| {
            last_send_ms(&Snapshot {
                start_ns: 8_990_000_000,
                lsndtime,
                ..snapshot()
            })
        };
        assert_eq!((at_open(3), at_open(5_u32.wrapping_sub(1_000))), (Some(8), None));
    }

    #[test]
    fn timeout_that_is_not_over_counts() {
        let of = |total_rto_time, rto_stamp| {
            total_rto_ms(&Snapshot {
                total_rto_time,
                rto_stamp,
                ..snapshot()
            })
        };
        assert_eq!((of(7, 0), of(7, 8_900), of(7, u32::MAX)), (Some(7), Some(107), None));
    }

    #[test]
    fn members_that_the_kernel_lacks_are_null() {
        let absent = Snapshot {
            icsk_rto: u32::MAX,
            icsk_pmtu_cookie: u32::MAX,
            total_rto: u16::MAX,
            total_rto_time: u32::MAX,
            chrono_start: u32::MAX,
            lsndtime: u32::MAX,
            ..snapshot()
        };
        assert_eq!(
            (rto_us(&absent), pmtu(&absent), congestion(&absent)),
            (None, None, None)
        );
        assert_eq!((total_rto(&absent), total_rto_ms(&absent)), (None, None));
        assert_eq!((busy_us(&absent), last_send_ms(&absent)), (None, None));
    }
}
