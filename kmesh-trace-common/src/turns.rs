//! Changes of direction on a connection, and how long the answers took.

use bytemuck::{Pod, Zeroable};

/// The number of buckets of [`Turns::histogram`]. The last one has all waits from 67 s on.
pub const TURN_BUCKETS: usize = 28;

/// The turns of one connection so far, and the state from which the programs measure the next one.
///
/// The program at `sk_data_ready` runs under the socket's lock, and writes all fields but those that start with `send`.
/// The program at `sock_send_length` runs when a system call has sent, without the lock, and writes those.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Turns {
    /// The sum of all waits, ns.
    pub wait_ns: u64,
    /// The longest wait, ns.
    pub max_wait_ns: u64,
    /// At the server's end: the time when the last data of the request arrived: CLOCK_MONOTONIC, ns; 0 before any.
    pub arrival_ns: u64,
    /// The time when the program sent, CLOCK_MONOTONIC, ns. At the client's end its last data, at the server's the
    /// first data of its answer.
    pub send_ns: u64,
    /// The turns so far, overlapped ones included.
    pub count: u32,
    /// The turns without a wait, since both directions moved at once.
    pub overlapped: u32,
    /// The sequence number after the data that had arrived at the last arrival.
    pub arrival_seq: u32,
    /// The sequence number after the data that this end had sent at the last arrival.
    pub sent_seq: u32,
    /// At the client's end: the sequence number after the data of the last send. At the server's: `arrival_seq` of the
    /// request that the send answers.
    pub send_seq: u32,
    /// 1 if data that had arrived was unread at the send of `send_ns`.
    pub send_before_read: u32,
    /// 1 if this end called connect().
    pub is_client: u32,
    /// At the server's end: 1 if the client sent the request before it had received the whole answer to the last one.
    pub request_overlaps: u32,
    /// At the server's end: the time in which it had had data to send at the last arrival, ticks.
    pub busy_ticks: u32,
    /// Padding that is always 0.
    pub pad: u32,
    /// The number of waits by [`bucket`].
    pub histogram: [u32; TURN_BUCKETS],
}

impl Turns {
    /// Returns the wait of a turn that only the next arrival would count: at the server's end, the process has begun to
    /// answer the last request. `Some(None)` if it overlaps.
    pub fn pending(&self) -> Option<Option<u64>> {
        if self.is_client != 0 || self.arrival_ns == 0 || self.send_seq != self.arrival_seq {
            return None;
        }
        let overlaps = self.request_overlaps | self.send_before_read != 0;
        Some((!overlaps).then_some(self.send_ns.saturating_sub(self.arrival_ns)))
    }
}

/// Returns the bucket of a wait: 0 below 1 µs, else 1 plus the logarithm of its whole microseconds to the base of 2.
#[inline(always)]
pub fn bucket(wait_ns: u64) -> usize {
    let mut rest = wait_ns / 1000;
    let mut bucket = 0;
    // By halves, since the programs have no instruction for it.
    let mut bits = 16;
    while bits != 0 {
        if rest >> bits != 0 {
            rest >>= bits;
            bucket += bits;
        }
        bits /= 2;
    }
    bucket += (rest != 0) as usize;
    if bucket < TURN_BUCKETS {
        bucket
    } else {
        TURN_BUCKETS - 1
    }
}

const _: () = assert!(size_of::<Turns>() == 72 + 4 * TURN_BUCKETS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_powers_of_two_of_microseconds() {
        let us = 1_000;
        let cases = [
            (0, 0),
            (us - 1, 0),
            (us, 1),
            (2 * us - 1, 1),
            (2 * us, 2),
            (1023 * us, 10),
            (1024 * us, 11),
            ((1 << 26) * us - 1, 26),
            ((1 << 26) * us, 27),
            (u64::MAX, 27),
        ];
        for (wait_ns, expected) in cases {
            assert_eq!(bucket(wait_ns), expected, "{wait_ns} ns");
        }
    }

    #[test]
    fn answer_that_has_begun_is_a_turn() {
        let answered = Turns {
            arrival_ns: 1_000,
            send_ns: 6_000,
            arrival_seq: 7,
            send_seq: 7,
            ..Turns::zeroed()
        };
        assert_eq!(answered.pending(), Some(Some(5_000)));
        let cases = [
            (
                Turns {
                    is_client: 1,
                    ..answered
                },
                None,
            ),
            (
                Turns {
                    arrival_ns: 0,
                    ..answered
                },
                None,
            ),
            (
                Turns {
                    send_seq: 6,
                    ..answered
                },
                None,
            ),
            (
                Turns {
                    request_overlaps: 1,
                    ..answered
                },
                Some(None),
            ),
            (
                Turns {
                    send_before_read: 1,
                    ..answered
                },
                Some(None),
            ),
        ];
        for (turns, expected) in cases {
            assert_eq!(turns.pending(), expected, "{turns:?}");
        }
    }
}
