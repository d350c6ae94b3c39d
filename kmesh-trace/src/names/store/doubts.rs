//! Addresses in doubt: a local socket of a pod that no source knows yet uses an address that a source lists for
//! another pod.
//!
//! The source may be late, so the address names no pod until each source has answered a request for this node's pods
//! that was made afterwards, and for [`MAX_NS`] at most. A pods file never answers: with nothing else, doubt does not
//! end. A pod raises doubt only for [`MAX_NS`] after its first socket: a source may never report it, for example
//! because its object is too large.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::reports::{ReportedBy, SourceSet};
use crate::record::WallTime;

/// The longest doubt, ns: a request may be due a second later, and its answer may take two more.
pub const MAX_NS: i64 = 3_000_000_000;
/// The number of unknown pods that are remembered.
const MAX_PODS: usize = 1_024;
/// The tolerance for connections that started shortly before the one that raised the doubt, ns.
const SLACK_NS: i64 = 2_000_000_000;

#[derive(Debug)]
struct Doubt {
    /// The start of the first connection that raised it.
    since: i64,
    raised: WallTime,
    answered: SourceSet,
}

/// The addresses that are in doubt.
#[derive(Debug, Default)]
pub struct Doubts {
    by_ip: HashMap<IpAddr, Doubt>,
    /// When each unknown pod first raised a doubt, by UID.
    raised_by: HashMap<Arc<str>, WallTime>,
    /// The sources that have listed pods.
    listed: SourceSet,
    /// The sources that have listed pods more than once: a file lists them once.
    answering: SourceSet,
}

impl Doubts {
    /// Raises a doubt: a connection of the pod `uid` that started at `start` used the address at time `used`.
    pub fn raise(&mut self, ip: IpAddr, uid: &Arc<str>, start: WallTime, used: WallTime) {
        if self.raised_by.len() >= MAX_PODS && !self.raised_by.contains_key(uid) {
            self.raised_by.clear();
        }
        let raised = *self.raised_by.entry(Arc::clone(uid)).or_insert(used);
        if !self.answering.is_empty() && used.0.saturating_sub(raised.0) >= MAX_NS {
            return;
        }
        let doubt = self.by_ip.entry(ip).or_insert(Doubt {
            since: start.0,
            raised,
            answered: SourceSet::default(),
        });
        doubt.since = doubt.since.min(start.0);
    }

    /// Returns whether the owner of `ip` at `start` is in doubt.
    pub fn is_in_doubt(&self, ip: IpAddr, start: WallTime) -> bool {
        !self.by_ip.is_empty()
            && self
                .by_ip
                .get(&ip)
                .is_some_and(|doubt| start.0 >= doubt.since.saturating_sub(SLACK_NS))
    }

    /// Takes note that a source listed this node's pods, by a request made at `at`.
    pub fn answered(&mut self, ReportedBy { source, at }: ReportedBy) {
        if !self.listed.contains(SourceSet::of(source)) {
            self.listed.insert(source);
            return;
        }
        self.answering.insert(source);
        let answering = self.answering;
        self.by_ip.retain(|_, doubt| {
            if doubt.raised <= at {
                doubt.answered.insert(source);
            }
            !doubt.answered.contains(answering)
        });
    }

    /// Ends the doubts that have lasted too long.
    pub fn expire(&mut self, now: WallTime) {
        if !self.answering.is_empty() && !self.by_ip.is_empty() {
            self.by_ip
                .retain(|_, doubt| now.0.saturating_sub(doubt.raised.0) < MAX_NS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::update::SourceId;

    const SECOND: i64 = 1_000_000_000;
    const API: SourceId = SourceId(0);
    const KUBELET: SourceId = SourceId(1);
    const FILE: SourceId = SourceId(2);

    fn at(seconds: i64) -> WallTime {
        WallTime(seconds * SECOND)
    }

    fn by(source: SourceId, seconds: i64) -> ReportedBy {
        let at = at(seconds);
        ReportedBy { source, at }
    }

    fn uid() -> Arc<str> {
        "11111111-1111-1111-1111-111111111111".into()
    }

    fn ip() -> IpAddr {
        "10.1.0.5".parse().unwrap()
    }

    #[test]
    fn doubt_ends_when_every_source_has_answered_a_later_request() {
        let mut doubts = Doubts::default();
        for seconds in [1, 2] {
            doubts.answered(by(API, seconds));
            doubts.answered(by(KUBELET, seconds));
        }
        doubts.raise(ip(), &uid(), at(100), at(101));
        assert!(doubts.is_in_doubt(ip(), at(100)) && doubts.is_in_doubt(ip(), at(200)));
        assert!(
            !doubts.is_in_doubt(ip(), at(97)),
            "older connections were to the former owner"
        );
        doubts.answered(by(API, 100));
        doubts.answered(by(KUBELET, 102));
        assert!(
            doubts.is_in_doubt(ip(), at(103)),
            "the API server answered an earlier request"
        );
        doubts.answered(by(API, 102));
        assert!(!doubts.is_in_doubt(ip(), at(103)));
    }

    #[test]
    fn doubt_ends_after_its_longest_time_unless_no_source_can_answer() {
        let mut doubts = Doubts::default();
        doubts.answered(by(FILE, 1));
        doubts.raise(ip(), &uid(), at(100), at(100));
        doubts.expire(at(1_000_000));
        assert!(doubts.is_in_doubt(ip(), at(1_000_000)), "only a file");
        doubts.answered(by(API, 98));
        doubts.answered(by(API, 99));
        doubts.expire(at(102));
        assert!(doubts.is_in_doubt(ip(), at(102)));
        doubts.expire(at(103));
        assert!(!doubts.is_in_doubt(ip(), at(103)));
    }

    #[test]
    fn pod_that_no_source_reports_raises_doubt_only_for_the_longest_time() {
        let mut doubts = Doubts::default();
        for seconds in [1, 2] {
            doubts.answered(by(API, seconds));
        }
        let other: IpAddr = "10.1.0.6".parse().unwrap();
        doubts.raise(ip(), &uid(), at(100), at(100));
        doubts.raise(other, &uid(), at(102), at(102));
        assert!(doubts.is_in_doubt(other, at(102)));
        doubts.expire(at(103));
        for ip in [ip(), other] {
            assert!(!doubts.is_in_doubt(ip, at(103)), "{ip}");
            doubts.raise(ip, &uid(), at(103), at(103));
            assert!(!doubts.is_in_doubt(ip, at(103)), "{ip}");
        }
        doubts.raise(other, &"22222222-2222-2222-2222-222222222222".into(), at(103), at(103));
        assert!(doubts.is_in_doubt(other, at(103)), "another pod");
        for number in 0..2 * MAX_PODS {
            doubts.raise(ip(), &number.to_string().into(), at(104), at(104));
        }
        assert!(doubts.raised_by.len() <= MAX_PODS);
    }
}
