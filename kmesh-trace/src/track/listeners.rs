//! Listening sockets between two scans: what they dropped since, and whether there is anything to report.

use std::collections::HashMap;

use kmesh_trace_common::Listener;

use crate::record::AcceptQueue;

/// The maximum number of listeners. Further ones are not reported.
const MAX_LISTENERS: usize = 1 << 16;

/// The listening sockets that the last scan found.
#[derive(Debug, Default)]
pub struct Listeners {
    by_cookie: HashMap<u64, Known>,
    /// Whether a scan has found any since the last call of [`Self::end_scan`].
    has_found: bool,
}

#[derive(Debug)]
struct Known {
    queue: AcceptQueue,
    /// Whether the current scan has found it.
    is_found: bool,
}

impl Listeners {
    /// Takes a listener that a scan found. Returns its queue if there is something to report: it is new, it has
    /// connections that wait, it dropped packets, or it changed.
    pub fn take(&mut self, listener: &Listener) -> Option<AcceptQueue> {
        let known = self.by_cookie.get(&listener.cookie).map(|known| known.queue);
        let queue = AcceptQueue {
            backlog: listener.backlog,
            max_backlog: listener.max_backlog,
            half_open: listener.half_open,
            dropped: listener
                .drops
                .wrapping_sub(known.map_or(0, |known| known.dropped_total)),
            dropped_total: listener.drops,
        };
        // The total alone includes the drops from before the tracer found the listener.
        let queue = match known {
            Some(_) => queue,
            None => AcceptQueue { dropped: 0, ..queue },
        };
        self.has_found = true;
        if known.is_none() && self.by_cookie.len() >= MAX_LISTENERS {
            return None;
        }
        self.by_cookie.insert(listener.cookie, Known { queue, is_found: true });
        let is_quiet = |known: AcceptQueue| {
            queue.backlog == 0
                && queue.dropped == 0
                && (known.backlog, known.max_backlog, known.half_open)
                    == (queue.backlog, queue.max_backlog, queue.half_open)
        };
        (!known.is_some_and(is_quiet)).then_some(queue)
    }

    /// Forgets the listeners that the scan did not find, if there was a scan, and returns their cookies. The next scan
    /// begins.
    pub fn end_scan(&mut self) -> Vec<u64> {
        if !std::mem::take(&mut self.has_found) {
            return Vec::new();
        }
        let gone = self
            .by_cookie
            .extract_if(|_, known| !std::mem::take(&mut known.is_found));
        gone.map(|(cookie, _)| cookie).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn listener(backlog: u32, drops: u32) -> Listener {
        Listener {
            cookie: 7,
            backlog,
            max_backlog: 128,
            drops,
            ..Listener::zeroed()
        }
    }

    #[test]
    fn listener_is_reported_when_new_or_busy_or_changed() {
        let mut listeners = Listeners::default();
        // (backlog, drops in all, drops since the last report if reported)
        let scans = [
            (0, 3, Some(0)),
            (0, 3, None),
            (2, 3, Some(0)),
            (2, 3, Some(0)),
            (0, 3, Some(0)),
            (0, 5, Some(2)),
            (0, 5, None),
        ];
        for (index, (backlog, drops, expected)) in scans.into_iter().enumerate() {
            let queue = listeners.take(&listener(backlog, drops));
            assert_eq!(queue.map(|queue| queue.dropped), expected, "scan {index}");
            listeners.end_scan();
        }
    }

    #[test]
    fn listener_that_a_scan_does_not_find_is_forgotten() {
        let mut listeners = Listeners::default();
        let other = Listener {
            cookie: 8,
            ..listener(0, 0)
        };
        listeners.take(&listener(0, 0));
        // An interval may end without a scan.
        assert_eq!([listeners.end_scan(), listeners.end_scan()], [[0; 0]; 2]);
        assert_eq!(listeners.take(&listener(0, 0)), None);
        listeners.end_scan();
        listeners.take(&other);
        assert_eq!(listeners.end_scan(), [7]);
        assert!(listeners.take(&listener(0, 0)).is_some());
    }

    #[test]
    fn listeners_beyond_the_limit_are_not_reported() {
        let mut listeners = Listeners::default();
        let with_cookie = |cookie| Listener {
            cookie,
            ..listener(1, 0)
        };
        for cookie in 0..MAX_LISTENERS as u64 {
            assert!(listeners.take(&with_cookie(cookie)).is_some());
        }
        assert!(listeners.take(&with_cookie(u64::MAX)).is_none());
        assert!(listeners.take(&with_cookie(0)).is_some());
    }
}
