//! The live streams of a replay. A thread for each pipe reads and parses lines, so that a silent pipe stops no other
//! stream.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::capture::lines::{Damage, Limits, Lines, Step};
use crate::capture::parse::{Line, Parser};

/// The maximum time that a live stream holds the others back.
pub const MAX_HOLD: Duration = Duration::from_secs(2);

/// The size of all queued lines, in bytes, at which the threads stop reading. A stream may always queue one batch.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// The maximum number of lines that a thread queues at once.
const MAX_BATCH: usize = 64;
/// The memory of a parsed line beyond the length of its text: about the size of a record.
const PARSED_BYTES: usize = 1024;

/// What a thread read.
#[derive(Debug)]
pub enum Item {
    Line(Line),
    Damage(Damage),
    /// The stream has ended in order.
    End,
    /// Reading failed, which ends the stream.
    Failed(io::Error),
}

/// An item in the queue of its stream.
#[derive(Debug)]
pub struct Arrival {
    pub item: Item,
    pub at: Instant,
    /// The time that the merging thread had waited for lines when the item arrived.
    waited: Duration,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    arrivals: VecDeque<Arrival>,
    /// The time since which the thread waits for its pipe. `None` while the thread has something to queue.
    reading_since: Option<Instant>,
    /// Whether [`State::filled`] has this queue.
    is_listed: bool,
}

#[derive(Debug, Default)]
struct State {
    queues: Vec<Queue>,
    /// The queues that were empty and are not any more.
    filled: Vec<usize>,
    /// The size of all queued lines in bytes.
    bytes: usize,
    /// The time that the merging thread has waited for lines.
    waited: Duration,
    waiting_since: Option<Instant>,
}

impl State {
    fn waited(&self, now: Instant) -> Duration {
        let current = self.waiting_since.map(|since| now.saturating_duration_since(since));
        self.waited + current.unwrap_or_default()
    }
}

/// The queues of all live streams.
#[derive(Debug, Default)]
pub struct LiveStreams {
    state: Mutex<State>,
    /// Notified when a queue gets items.
    arrived: Condvar,
    /// Notified when there is space for more lines.
    space: Condvar,
}

impl LiveStreams {
    /// Starts a thread that reads the pipe that `open` opens. Returns the index of the queue.
    pub fn start<R: Read>(
        self: &Arc<Self>,
        limits: Limits,
        open: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> io::Result<usize> {
        let index = {
            let mut state = self.lock();
            state.queues.push(Queue {
                reading_since: Some(Instant::now()),
                ..Queue::default()
            });
            state.queues.len() - 1
        };
        let this = Arc::clone(self);
        thread::Builder::new()
            .name("stream".to_owned())
            .stack_size(256 << 10)
            .spawn(move || this.read(index, limits, open))?;
        Ok(index)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state invalid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<R: Read>(&self, index: usize, limits: Limits, open: impl FnOnce() -> io::Result<R>) {
        let mut lines = match open().and_then(|pipe| Lines::with_limits(pipe, limits)) {
            Ok(lines) => lines,
            Err(error) => return self.push(index, vec![(Item::Failed(error), 0)], false),
        };
        let mut parser = Parser::default();
        let mut batch = Vec::new();
        loop {
            let (item, bytes) = next_item(&mut lines, &mut parser);
            let has_ended = matches!(item, Item::End | Item::Failed(_));
            batch.push((item, bytes));
            let must_read = !lines.has_line();
            if has_ended || must_read || batch.len() >= MAX_BATCH {
                self.push(index, std::mem::take(&mut batch), must_read && !has_ended);
            }
            if has_ended {
                return;
            }
        }
    }

    /// Queues items, after waiting for space. `must_read` is true if the thread reads its pipe next.
    fn push(&self, index: usize, batch: Vec<(Item, usize)>, must_read: bool) {
        let mut state = self.lock();
        state.queues[index].reading_since = None;
        while state.bytes > MAX_QUEUED_BYTES && !state.queues[index].arrivals.is_empty() {
            state = self.space.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let now = Instant::now();
        let waited = state.waited(now);
        if !std::mem::replace(&mut state.queues[index].is_listed, true) {
            state.filled.push(index);
            self.arrived.notify_one();
        }
        for (item, bytes) in batch {
            state.bytes += bytes;
            state.queues[index].arrivals.push_back(Arrival {
                item,
                at: now,
                waited,
                bytes,
            });
        }
        state.queues[index].reading_since = must_read.then_some(now);
    }

    /// Takes the next item of a stream.
    pub fn take(&self, index: usize) -> Option<Arrival> {
        let mut state = self.lock();
        let arrival = state.queues[index].arrivals.pop_front()?;
        let was_full = state.bytes > MAX_QUEUED_BYTES;
        state.bytes -= arrival.bytes;
        if state.queues[index].arrivals.is_empty() || was_full && state.bytes <= MAX_QUEUED_BYTES {
            self.space.notify_all();
        }
        Some(arrival)
    }

    /// Takes the list of the queues that got items since the last call.
    pub fn take_filled(&self) -> Vec<usize> {
        let mut state = self.lock();
        let filled = std::mem::take(&mut state.filled);
        for &index in &filled {
            state.queues[index].is_listed = false;
        }
        filled
    }

    /// Waits until a queue gets items, for at most `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let began = Instant::now();
        let mut state = self.lock();
        state.waiting_since = Some(began);
        let waiting = self
            .arrived
            .wait_timeout_while(state, timeout, |state| state.filled.is_empty());
        state = waiting.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting_since = None;
        state.waited += began.elapsed();
    }

    /// Returns whether a line that arrived like `line` has been held back long enough by streams with empty queues.
    pub fn is_held_enough(&self, line: &Held, empty: impl IntoIterator<Item = usize>, now: Instant) -> bool {
        let state = self.lock();
        // The streams with empty queues send lines, but late ones. The time in which the merging thread had other work
        // does not count.
        if state.waited(now).saturating_sub(line.waited) >= MAX_HOLD {
            return true;
        }
        let is_full = state.bytes > MAX_QUEUED_BYTES;
        if now.saturating_duration_since(line.at) < MAX_HOLD && !is_full {
            return false;
        }
        let is_silent = |since: Instant| now.saturating_duration_since(since) >= MAX_HOLD;
        empty
            .into_iter()
            .all(|index| state.queues[index].reading_since.is_some_and(is_silent))
    }
}

/// The time since which a line is held back.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    at: Instant,
    waited: Duration,
}

impl Held {
    /// Returns the time for the lines of files, which are there from the start.
    pub fn from_start(start: Instant) -> Self {
        Self {
            at: start,
            waited: Duration::ZERO,
        }
    }

    pub fn since(self) -> Instant {
        self.at
    }

    /// Returns the time until which the line may be held back. The merging thread may take it later if it is busy.
    pub fn until(self) -> Instant {
        self.at + MAX_HOLD
    }
}

impl From<&Arrival> for Held {
    fn from(arrival: &Arrival) -> Self {
        Self {
            at: arrival.at,
            waited: arrival.waited,
        }
    }
}

/// Returns the next item and the memory that it takes, in bytes.
pub fn next_item<R: Read>(lines: &mut Lines<R>, parser: &mut Parser) -> (Item, usize) {
    let (parsed, bytes) = match lines.next_line() {
        Ok(Step::Line(line)) => (parser.parse(line), line.len() + PARSED_BYTES),
        Ok(Step::Damage(damage)) => return (Item::Damage(damage), PARSED_BYTES),
        Ok(Step::End) => return (Item::End, 0),
        Err(error) => return (Item::Failed(error), 0),
    };
    let item = match parsed {
        Ok(line) => Item::Line(line),
        Err(problem) => Item::Damage(Damage::Line {
            number: lines.number(),
            problem,
        }),
    };
    (item, bytes)
}
