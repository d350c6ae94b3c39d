//! Which sources report an object, and when they did so last.

use crate::names::update::SourceId;
use crate::record::WallTime;

/// The number of sources of one run: the runtime, the kubelet, the API server and a file, or three that are found.
const MAX_SOURCES: usize = 4;

const NEVER: i64 = i64::MIN;

/// A source, and the time at which its report was true.
#[derive(Clone, Copy, Debug)]
pub struct ReportedBy {
    pub source: SourceId,
    pub at: WallTime,
}

/// The time that a look-up is about, and the sources whose reports count.
#[derive(Clone, Copy, Debug)]
pub struct AsOf {
    pub time: WallTime,
    pub sources: SourceSet,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceSet(u8);

impl SourceSet {
    pub const ALL: Self = Self(u8::MAX);

    pub fn of(source: SourceId) -> Self {
        Self(1 << index(source))
    }

    pub fn insert(&mut self, source: SourceId) {
        self.0 |= 1 << index(source);
    }

    pub fn remove(&mut self, source: SourceId) {
        self.0 &= !(1 << index(source));
    }

    pub fn extend(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The time of each source's last report of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports([i64; MAX_SOURCES]);

impl Default for Reports {
    fn default() -> Self {
        Self([NEVER; MAX_SOURCES])
    }
}

impl Reports {
    pub fn add(&mut self, report: ReportedBy) {
        let last = &mut self.0[index(report.source)];
        *last = (*last).max(report.at.0.max(NEVER + 1));
    }

    pub fn remove(&mut self, source: SourceId) {
        self.0[index(source)] = NEVER;
    }

    /// Returns whether a complete list lacked the object although the source had reported it before the request.
    pub fn is_missing(&self, list: ReportedBy) -> bool {
        let last = self.0[index(list.source)];
        last != NEVER && last < list.at.0
    }

    pub fn any(&self) -> bool {
        self.0.iter().any(|&last| last != NEVER)
    }

    pub fn sources(&self) -> SourceSet {
        let reporting = self.0.iter().enumerate().filter(|&(_, &last)| last != NEVER);
        SourceSet(reporting.fold(0, |set, (source, _)| set | 1 << source))
    }
}

fn index(source: SourceId) -> usize {
    usize::from(source.0) % MAX_SOURCES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_misses_what_was_reported_before_its_request_only() {
        let [api, kubelet] = [SourceId(0), SourceId(1)];
        let by = |source, at| ReportedBy {
            source,
            at: WallTime(at),
        };
        let mut reports = Reports::default();
        reports.add(by(api, 10));
        reports.add(by(kubelet, 30));
        let cases = [
            (api, 10, false),
            (api, 11, true),
            (kubelet, 30, false),
            (SourceId(2), 50, false),
        ];
        for (source, at, missing) in cases {
            assert_eq!(reports.is_missing(by(source, at)), missing, "{source:?} {at}");
        }
        reports.add(by(api, 5));
        assert!(!reports.is_missing(by(api, 10)), "an older report changes nothing");
        reports.remove(api);
        assert!(reports.any() && !reports.sources().contains(SourceSet(1)));
        reports.remove(kubelet);
        assert!(!reports.any() && reports.sources().is_empty());
    }
}
