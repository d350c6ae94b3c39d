//! The timeouts of connection tracking, which say when the last packet of an ended TCP connection came.

use std::fs;
use std::time::Duration;

use super::message::ConntrackEntry;

/// The folder with the timeouts of the calling thread's network namespace.
const FOLDER: &str = "/proc/sys/net/netfilter";
/// The states of a connection that is ending or has ended (`enum tcp_conntrack`), their timeouts' names, and the
/// kernel's defaults in seconds. In other states a connection may be silent for any time.
const STATES: [(u8, &str, u64); 5] = [
    (4, "fin_wait", 120),
    (5, "close_wait", 60),
    (6, "last_ack", 30),
    (7, "time_wait", 120),
    (8, "close", 10),
];

#[derive(Debug)]
pub struct Timeouts([Duration; STATES.len()]);

impl Timeouts {
    pub fn read() -> Self {
        Self(STATES.map(|(_, name, default)| {
            let text = fs::read_to_string(format!("{FOLDER}/nf_conntrack_tcp_timeout_{name}")).unwrap_or_default();
            Duration::from_secs(text.trim().parse().unwrap_or(default))
        }))
    }

    /// Returns whether the last packet of an ended connection came more than `since_start` ago: before the start of the
    /// connection in question, which is therefore another one.
    pub fn ended_before(&self, entry: &ConntrackEntry, since_start: Duration) -> bool {
        let (Some(state), Some(left)) = (entry.state, entry.expires_in) else {
            return false;
        };
        let timeout = STATES.iter().zip(&self.0).find(|((number, ..), _)| *number == state);
        // The kernel counts whole seconds.
        let precision = Duration::from_secs(1);
        timeout.is_some_and(|(_, timeout)| timeout.saturating_sub(left) > since_start + precision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_packet_dates_the_entry_of_an_earlier_connection() {
        let timeouts = Timeouts(STATES.map(|(_, _, default)| Duration::from_secs(default)));
        let (time_wait, close, established) = (Some(7), Some(8), Some(3));
        // (state, seconds until it expires, milliseconds since the start, whether it is an earlier connection's)
        let cases = [
            (time_wait, Some(119), 5, false),
            (time_wait, Some(119), 0, false),
            (time_wait, Some(118), 5, true),
            (time_wait, Some(90), 28_000, true),
            (time_wait, Some(90), 30_000, false),
            (time_wait, Some(500), 5, false),
            (close, Some(9), 5, false),
            (close, Some(3), 5, true),
            (established, Some(3), 5, false),
            (time_wait, None, 5, false),
            (None, Some(3), 5, false),
        ];
        for (state, expires_in, since_start, expected) in cases {
            let entry = ConntrackEntry {
                backend: "10.1.0.7:8080".parse().unwrap(),
                state,
                expires_in: expires_in.map(Duration::from_secs),
            };
            let found = timeouts.ended_before(&entry, Duration::from_millis(since_start));
            assert_eq!(found, expected, "{entry:?} {since_start} ms");
        }
    }
}
