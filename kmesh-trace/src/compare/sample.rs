//! What one capture shows of each group, in bounded memory.

use std::collections::HashMap;

use super::Metric;
use crate::record::{Event, Outcome, Record, WallTime};
use crate::rollup::{By, Group};
use crate::track::delta::Delta;

/// The maximum number of groups. Connections of further groups count in the group `other`.
const MAX_GROUPS: usize = 4_096;
/// The number of values of a group that are stored. If there are more, each has the same chance to be among them.
const MAX_VALUES: usize = 1_000;
/// The maximum number of time windows. Then two become one.
const MAX_WINDOWS: usize = 64;
/// The minimum number of time windows for a comparison of rates.
const MIN_WINDOWS: usize = 20;
/// The length of a time window at first.
const MIN_WINDOW_NS: u64 = 1_000_000_000;

/// The figures of a capture.
#[derive(Debug)]
pub struct Sample {
    by: By,
    groups: HashMap<Group, Figures>,
    began: Option<WallTime>,
    ended: WallTime,
    window_ns: u64,
    /// The number of connections that ended.
    pub connections: u64,
    /// The connections of groups beyond the maximum.
    pub beyond_groups: u64,
}

/// The figures of one group.
#[derive(Debug, Default)]
struct Figures {
    connections: u64,
    failed: u64,
    connects: Reservoir,
    durations: Reservoir,
    responses: Reservoir,
    /// The ended connections and the payload of each time window.
    windows: Vec<(u64, u64)>,
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub enum Values {
    /// The connections of a group, and the length of the capture.
    Count {
        count: u64,
        ns: u64,
    },
    Share {
        count: u64,
        of: u64,
    },
    Quantile {
        sorted: Vec<f64>,
        part: f64,
    },
}

impl Sample {
    /// Returns an empty sample of groups by these keys.
    pub fn new(by: By) -> Self {
        Self {
            by,
            groups: HashMap::new(),
            began: None,
            ended: WallTime(i64::MIN),
            window_ns: MIN_WINDOW_NS,
            connections: 0,
            beyond_groups: 0,
        }
    }

    /// Notes that everything before `time` is known.
    pub fn cover(&mut self, time: WallTime) {
        if time != WallTime::MAX {
            self.began = Some(self.began.map_or(time, |began| began.min(time)));
            self.ended = self.ended.max(time);
        }
    }

    /// Takes a record, and what it adds to the last one of its connection.
    pub fn record(&mut self, record: &Record, delta: &Delta) {
        self.cover(record.time);
        let window = self.window(record.time);
        let mut group = self.by.group(record);
        if self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group) {
            self.beyond_groups += 1;
            group = Group::other();
        }
        let figures = self.groups.entry(group).or_default();
        if !delta.has_no_baseline {
            let bytes = delta.sent_bytes.saturating_add(delta.received_bytes);
            figures.window(window).1 += bytes;
        }
        if record.event == Event::Close {
            self.connections += 1;
            figures.window(window).0 += 1;
            figures.close(record);
        }
    }

    /// Returns the time window of `time`. Makes windows longer until it is one of the first 64.
    fn window(&mut self, time: WallTime) -> usize {
        let began = self.began.unwrap_or(time);
        let since = u64::try_from(time.0.saturating_sub(began.0)).unwrap_or(0);
        while since / self.window_ns >= MAX_WINDOWS as u64 {
            self.double_windows();
        }
        (since / self.window_ns) as usize
    }

    fn double_windows(&mut self) {
        self.window_ns *= 2;
        for figures in self.groups.values_mut() {
            let pairs = figures.windows.chunks(2);
            let sums = pairs.map(|pair| pair.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)));
            figures.windows = sums.collect();
        }
    }

    /// Returns the last time that the capture covers.
    pub fn ended(&self) -> WallTime {
        self.ended.max(WallTime(0))
    }

    /// Returns the length of the capture in ns.
    pub fn length_ns(&self) -> u64 {
        let began = self.began.unwrap_or(self.ended);
        u64::try_from(self.ended.0.saturating_sub(began.0)).unwrap_or(0)
    }

    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.keys().filter(|group| !group.is_other())
    }

    pub fn connections(&self, group: &Group) -> u64 {
        self.groups.get(group).map_or(0, |figures| figures.connections)
    }

    /// Returns the values of a metric. `None`: there are none to compare.
    pub fn values(&self, group: &Group, metric: Metric) -> Option<Values> {
        if metric == Metric::Connections {
            let (count, ns) = (self.connections(group), self.length_ns());
            return Some(Values::Count { count, ns });
        }
        let figures = self.groups.get(group)?;
        let of = |reservoir: &Reservoir, part| reservoir.quantile(part);
        match metric {
            Metric::Connections => None,
            Metric::FailedShare => Some(Values::Share {
                count: figures.failed,
                of: figures.connections,
            }),
            Metric::ConnectP50 => of(&figures.connects, 0.5),
            Metric::ConnectP95 => of(&figures.connects, 0.95),
            Metric::ResponseP50 => of(&figures.responses, 0.5),
            Metric::ResponseP95 => of(&figures.responses, 0.95),
            Metric::DurationP50 => of(&figures.durations, 0.5),
            Metric::DurationP95 => of(&figures.durations, 0.95),
            Metric::Rate => self.rates(figures, |window| window.0),
            Metric::ByteRate => self.rates(figures, |window| window.1),
        }
    }

    /// Returns the rates of the time windows. The last one is not whole.
    fn rates(&self, figures: &Figures, of: impl Fn(&(u64, u64)) -> u64) -> Option<Values> {
        let count = (self.length_ns() / self.window_ns) as usize;
        if count < MIN_WINDOWS {
            return None;
        }
        let seconds = self.window_ns as f64 / 1e9;
        let windows = (0..count).map(|at| figures.windows.get(at).map_or(0, &of));
        let mut sorted: Vec<_> = windows.map(|value| value as f64 / seconds).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Values::Quantile { sorted, part: 0.5 })
    }
}

/// Makes the time windows of both samples equally long, since the spread of rates depends on their length.
pub(super) fn align(one: &mut Sample, two: &mut Sample) {
    let window_ns = one.window_ns.max(two.window_ns);
    for sample in [one, two] {
        while sample.window_ns < window_ns {
            sample.double_windows();
        }
    }
}

impl Figures {
    fn window(&mut self, at: usize) -> &mut (u64, u64) {
        if self.windows.len() <= at {
            self.windows.resize(at + 1, (0, 0));
        }
        &mut self.windows[at]
    }

    fn close(&mut self, record: &Record) {
        self.connections += 1;
        self.failed += u64::from(record.outcome != Some(Outcome::Ok));
        if record.established {
            if let Some(duration) = record.duration_ns {
                self.durations.add(duration);
            }
            if let Some(connect) = record.connect_ns {
                self.connects.add(connect);
            }
        }
    }
}

/// A uniform random choice of values, the same in each run.
#[derive(Debug, Default)]
struct Reservoir {
    values: Vec<u64>,
    seen: u64,
    state: u64,
}

impl Reservoir {
    fn add(&mut self, value: u64) {
        self.seen += 1;
        if self.values.len() < MAX_VALUES {
            self.values.push(value);
            return;
        }
        let at = self.random() % self.seen;
        if let Some(replaced) = self.values.get_mut(at as usize) {
            *replaced = value;
        }
    }

    /// Returns a random number (SplitMix64).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn quantile(&self, part: f64) -> Option<Values> {
        if self.values.is_empty() {
            return None;
        }
        let mut sorted: Vec<_> = self.values.iter().map(|&value| value as f64).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Values::Quantile { sorted, part })
    }
}
