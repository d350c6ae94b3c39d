//! Listeners whose accept queue is full.

use crate::findings::subject::{self, Flags};
use crate::findings::text::{clock, plural};
use crate::findings::watch::{Listener, Watch};
use crate::findings::{Finding, Rule, Severity};

pub const RULE: Rule = Rule {
    name: "accept_queue",
    looks_for: "full accept queues",
    find,
    basis,
};

/// The minimum number of drops that shows an overflow of the queue between two scans, if the scans saw it half full. A
/// listener also drops a packet for other reasons, such as a lack of memory.
const MIN_DROPS: u64 = 3;

fn basis(watch: &Watch) -> Result<u64, &'static str> {
    match (watch.abilities.listeners, watch.listeners.is_empty()) {
        (Some(false), _) => Err("listening sockets were not scanned"),
        (None, true) => Err(
            "no line about a listener: nothing listened, or the trace lacked --events listener or was shorter than \
             --interval",
        ),
        _ => Ok(watch.attempts),
    }
}

fn find(watch: &Watch) -> Vec<Finding> {
    let mut full: Vec<_> = watch
        .listeners
        .iter()
        .filter(|(_, listener)| is_full(listener))
        .collect();
    full.sort_unstable_by_key(|(id, _)| **id);
    full.into_iter().map(|(_, listener)| of_listener(listener)).collect()
}

fn is_full(listener: &Listener) -> bool {
    let has_overflowed = listener.dropped >= MIN_DROPS && u64::from(listener.peak) * 2 >= u64::from(listener.limit);
    listener.full > 0 || has_overflowed
}

fn of_listener(listener: &Listener) -> Finding {
    let (first, last) = listener
        .first
        .zip(listener.last)
        .unwrap_or((crate::record::WallTime(0), crate::record::WallTime(0)));
    let process = listener.process.map(subject::process);
    let name = subject::listener(listener);
    let mut evidence = vec![format!(
        "{} connections wait for accept(), the limit is {}: {} does not accept fast enough.",
        listener.peak,
        listener.limit,
        process.unwrap_or_else(|| "the process".to_owned())
    )];
    match listener.dropped {
        0 => evidence.push("It has dropped nothing so far.".to_owned()),
        dropped => evidence.push(format!(
            "The kernel dropped {} of this listener: clients send their SYN again after 1 s, 3 s, 7 s.",
            plural(dropped, "packet")
        )),
    }
    Finding {
        rule: RULE.name,
        severity: Severity::Critical,
        subject: subject::server_group(&listener.end, listener.address),
        server: Some(listener.address),
        count: listener.full.max(1),
        of: listener.scans.max(1),
        first,
        last,
        title: format!(
            "the accept queue of {name} is full: {} of {} since {}",
            listener.full,
            plural(listener.scans, "scan"),
            clock(first)
        ),
        evidence,
        flags: Flags::default()
            .with("events", "listener")
            .with("to-port", listener.address.port()),
    }
}
