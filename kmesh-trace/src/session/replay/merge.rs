//! Merges the streams of a replay by time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::live::{Held, LiveStreams, MAX_HOLD};
use super::stream::Stream;
use crate::record::WallTime;

/// The maximum time of one wait.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// The time of a wait for a line that is held back although its time is over.
const LATE_WAIT: Duration = Duration::from_millis(10);

/// The result of [`Merge::next`].
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The stream with this index has the next line.
    Line(usize),
    /// All lines so far are processed, or are held back by a live stream.
    Idle,
    End,
}

/// Merges streams by time. A live stream without a line holds the lines of the others back for at most [`MAX_HOLD`].
pub struct Merge {
    pub streams: Vec<Stream>,
    live: Arc<LiveStreams>,
    /// The streams with a line, the earliest line first.
    ready: BinaryHeap<Reverse<(WallTime, usize)>>,
    /// The live streams without a line.
    empty: BTreeSet<usize>,
    /// The stream of each queue.
    queues: Vec<usize>,
    /// The stream of the last line.
    current: Option<usize>,
    /// The latest time that was returned. An earlier line is late.
    latest: WallTime,
    /// The arrival of the line with the smallest delay, which shows how the clocks of the streams progress.
    clock: Option<(Instant, WallTime)>,
}

impl Merge {
    /// Reads the first line of each stream. Waits for live streams for at most `max_wait`.
    pub fn new(streams: Vec<Stream>, live: Arc<LiveStreams>, max_wait: Duration) -> Self {
        let is_live = |index: &usize| streams[*index].is_live();
        let mut merge = Self {
            queues: (0..streams.len()).filter(is_live).collect(),
            ready: BinaryHeap::new(),
            empty: BTreeSet::new(),
            current: None,
            latest: WallTime(i64::MIN),
            clock: None,
            streams,
            live,
        };
        for index in 0..merge.streams.len() {
            merge.advance(index);
        }
        let deadline = Instant::now() + max_wait;
        while !merge.empty.is_empty() {
            merge.take_arrivals();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || merge.empty.is_empty() {
                break;
            }
            merge.live.wait(left);
        }
        merge
    }

    /// Returns the stream with the next line. The caller takes the line before the next call.
    pub fn next(&mut self) -> Next {
        self.settle();
        self.take_arrivals();
        let Some(&Reverse((time, index))) = self.ready.peek() else {
            return if self.empty.is_empty() { Next::End } else { Next::Idle };
        };
        if !self.empty.is_empty() && time > self.latest && !self.is_held_enough(index) {
            return Next::Idle;
        }
        self.ready.pop();
        self.latest = self.latest.max(time);
        self.current = Some(index);
        Next::Line(index)
    }

    /// Reads the line after the one that was taken.
    pub fn settle(&mut self) {
        if let Some(current) = self.current.take() {
            self.advance(current);
        }
    }

    /// Waits until a live stream has a line, or the next line is held back no longer.
    pub fn wait(&self) {
        let now = Instant::now();
        let held = self
            .ready
            .peek()
            .and_then(|Reverse((_, index))| self.streams[*index].held());
        let left = held.map(|held| held.until().saturating_duration_since(now));
        self.live
            .wait(left.map_or(MAX_WAIT, |left| left.clamp(LATE_WAIT, MAX_WAIT)));
    }

    /// Returns the time before which live streams have no more lines, unless they are late. `None` if there is no live
    /// stream.
    pub fn watermark(&self) -> Option<WallTime> {
        let (at, time) = self.clock.filter(|_| !self.empty.is_empty())?;
        let since = at.elapsed().checked_sub(MAX_HOLD)?;
        let until = time
            .0
            .saturating_add(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
        let next = self.ready.peek().map_or(WallTime::MAX, |Reverse((time, _))| *time);
        Some(WallTime(until).min(next)).filter(|until| *until > self.latest)
    }

    /// Ignores the rest of all streams.
    pub fn stop(&mut self) {
        self.streams.iter_mut().for_each(Stream::stop);
        self.ready.clear();
        self.empty.clear();
        self.current = None;
    }

    /// Reads the next line of a stream.
    fn advance(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        stream.advance();
        if stream.has_line() {
            self.empty.remove(&index);
            self.ready.push(Reverse((stream.time(), index)));
            self.set_clock(index);
        } else if stream.has_ended() {
            self.empty.remove(&index);
        } else {
            self.empty.insert(index);
        }
    }

    /// Sets the clock to the line of a live stream, if the line has a smaller delay than the one before.
    fn set_clock(&mut self, index: usize) {
        let stream = &self.streams[index];
        let Some(at) = stream.held().filter(|_| stream.is_live()).map(Held::since) else {
            return;
        };
        let is_ahead = |(before, time): (Instant, WallTime)| {
            let arrival = at.saturating_duration_since(before).as_nanos();
            i128::from(stream.time().0) - i128::from(time.0) > arrival as i128
        };
        if self.clock.is_none_or(is_ahead) {
            self.clock = Some((at, stream.time()));
        }
    }

    fn take_arrivals(&mut self) {
        if self.empty.is_empty() {
            return;
        }
        for queue in self.live.take_filled() {
            let index = self.queues[queue];
            if self.empty.contains(&index) {
                self.advance(index);
            }
        }
    }

    fn is_held_enough(&self, index: usize) -> bool {
        let empty = self.empty.iter().filter_map(|&index| self.streams[index].queue());
        let held = self.streams[index].held();
        held.is_none_or(|held| self.live.is_held_enough(&held, empty, Instant::now()))
    }
}
