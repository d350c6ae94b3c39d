//! The JSON lines that a tracer prints on standard output: checked as they come, and stored by network namespace.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::{schema, test_timeout};

/// A `conn` line of the tracer's output.
#[derive(Clone)]
pub struct ReceivedRecord {
    pub value: Value,
    /// When the test read the line: an upper bound of the record's time.
    pub received_at: SystemTime,
}

/// What to do with the records of a namespace.
enum Watch {
    Store(Vec<ReceivedRecord>),
    /// For scenarios with too many records to store.
    Call(Box<dyn FnMut(&Value) + Send>),
}

#[derive(Default)]
struct State {
    /// The number of lines that were checked.
    checked: u64,
    watched: HashMap<u64, Watch>,
    closed_ids: HashSet<String>,
    closes: u64,
    last_time: String,
    /// How many times the time of a record may still be earlier than the time of the record before.
    allowed_steps_back: u32,
    lost_lines: Vec<Value>,
    summaries: Vec<Value>,
    /// The `reject` and `listener` lines.
    reports: Vec<Value>,
    stream_errors: Vec<String>,
    ended: bool,
}

/// Everything that a tracer has printed on standard output.
#[derive(Default)]
pub struct TracerOutput {
    state: Mutex<State>,
    /// The number of lines that the tracer has printed. They are checked later.
    printed: AtomicU64,
    changed: Condvar,
}

impl TracerOutput {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stores the records of this namespace from now on.
    pub fn watch(&self, netns: u64) {
        self.lock().watched.insert(netns, Watch::Store(Vec::new()));
    }

    /// Calls `callback` with each record of this namespace from now on.
    pub fn watch_with(&self, netns: u64, callback: impl FnMut(&Value) + Send + 'static) {
        self.lock().watched.insert(netns, Watch::Call(Box::new(callback)));
    }

    /// Stops to watch a namespace. The kernel may soon give its number to another namespace.
    pub fn unwatch(&self, netns: u64) {
        self.lock().watched.remove(&netns);
    }

    /// Allows the times of records to go back once, since the test is about to set the wall clock back.
    pub fn allow_clock_step_back(&self) {
        self.lock().allowed_steps_back += 1;
    }

    /// Returns the namespace's records so far.
    pub fn records(&self, netns: u64) -> Vec<ReceivedRecord> {
        match self.lock().watched.get(&netns) {
            Some(Watch::Store(records)) => records.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns the number of `close` records, of all namespaces.
    pub fn close_count(&self) -> u64 {
        self.lock().closes
    }

    /// Returns the `lost` lines so far.
    pub fn lost_lines(&self) -> Vec<Value> {
        self.lock().lost_lines.clone()
    }

    /// Returns the `summary` lines so far.
    pub fn summaries(&self) -> Vec<Value> {
        self.lock().summaries.clone()
    }

    /// Returns what is wrong with the stream: lines that are cut off or violate the schema, duplicate closes of an id,
    /// records that are not in the order of time.
    pub fn stream_errors(&self) -> Vec<String> {
        self.lock().stream_errors.clone()
    }

    /// Waits until `find` returns something for the namespace's records.
    pub fn wait<T>(&self, netns: u64, mut find: impl FnMut(&[ReceivedRecord]) -> Option<T>) -> Result<T, String> {
        self.wait_for(|state| match state.watched.get(&netns) {
            Some(Watch::Store(records)) => find(records),
            _ => find(&[]),
        })
    }

    /// Waits until at least `count` records of the namespace match, and returns all that match.
    #[track_caller]
    pub fn wait_matching(&self, netns: u64, count: usize, matches: impl Fn(&Value) -> bool) -> Vec<Value> {
        let found = self.wait(netns, |records| {
            let values = records.iter().map(|record| &record.value);
            let matching: Vec<&Value> = values.filter(|value| matches(value)).collect();
            (matching.len() >= count).then(|| matching.into_iter().cloned().collect())
        });
        found.unwrap_or_else(|why| panic!("waited for {count} records: {why}"))
    }

    /// Returns the `reject` or `listener` lines so far.
    pub fn reports(&self, kind: &str) -> Vec<Value> {
        let reports = self.lock().reports.clone();
        reports.into_iter().filter(|report| report["type"] == kind).collect()
    }

    /// Waits until `find` returns something for a `reject` or `listener` line.
    pub fn wait_report<T>(&self, kind: &str, mut find: impl FnMut(&Value) -> Option<T>) -> T {
        let found = self.wait_for(|state| {
            let mut reports = state.reports.iter().filter(|report| report["type"] == kind);
            reports.find_map(&mut find)
        });
        found.unwrap_or_else(|why| panic!("waited for a {kind} line: {why}"))
    }

    /// Waits until this number of summaries has been printed.
    pub fn wait_summaries(&self, count: usize) -> Result<Vec<Value>, String> {
        self.wait_for(|state| (state.summaries.len() >= count).then(|| state.summaries.clone()))
    }

    /// Waits until `find` returns something. What the tracer printed before the deadline counts, however late the test
    /// checks it.
    fn wait_for<T>(&self, mut find: impl FnMut(&State) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + test_timeout();
        let mut printed_in_time = None;
        let mut state = self.lock();
        loop {
            if let Some(value) = find(&state) {
                return Ok(value);
            }
            if state.ended {
                return Err("the tracer's output ended".to_owned());
            }
            let mut left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let printed = *printed_in_time.get_or_insert_with(|| self.printed.load(Ordering::Acquire));
                if state.checked >= printed {
                    return Err(format!("timeout after {} s", test_timeout().as_secs()));
                }
                left = Duration::from_secs(1);
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
    }

    /// Counts a line that the tracer has printed, and that [`Self::add_line`] will check.
    pub fn count_line(&self) {
        self.printed.fetch_add(1, Ordering::Release);
    }

    /// Adds a line of standard output. Of a record in a namespace that no test watches, only the id and the order are
    /// checked, so that other programs' connections cost the tests little.
    pub fn add_line(&self, line: &[u8], received_at: SystemTime) {
        if let Ok(header) = serde_json::from_slice::<Header<'_>>(line)
            && line.ends_with(b"}\n")
        {
            let mut state = self.lock();
            if !state.watched.contains_key(&header.local.netns) {
                state.checked += 1;
                return state.check_order(&header);
            }
        }
        let parsed = parse_line(line);
        let mut state = self.lock();
        state.add(line, parsed, received_at);
        state.checked += 1;
        drop(state);
        self.changed.notify_all();
    }

    /// Marks the output as complete.
    pub fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// The members of a `conn` line that are checked across lines.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
    local: Local,
}

#[derive(Deserialize)]
struct Local {
    netns: u64,
}

impl State {
    fn add(&mut self, line: &[u8], parsed: Result<Value, String>, received_at: SystemTime) {
        match parsed {
            Err(error) => {
                self.stream_errors
                    .push(format!("{error}: {}", String::from_utf8_lossy(line)));
            }
            Ok(value) => match value["type"].as_str() {
                Some("conn") => self.add_record(value, received_at),
                Some("lost") => self.lost_lines.push(value),
                Some("summary") => self.summaries.push(value),
                Some("reject" | "listener") => self.reports.push(value),
                other => self.stream_errors.push(format!("a line of type {other:?}")),
            },
        }
    }

    fn add_record(&mut self, value: Value, received_at: SystemTime) {
        let text = |member: &str| Cow::from(value[member].as_str().unwrap_or_default());
        let netns = value["local"]["netns"].as_u64().unwrap_or_default();
        self.check_order(&Header {
            id: text("id"),
            event: text("event"),
            time: text("time"),
            local: Local { netns },
        });
        match self.watched.get_mut(&netns) {
            Some(Watch::Store(records)) => records.push(ReceivedRecord { value, received_at }),
            Some(Watch::Call(callback)) => callback(&value),
            None => {}
        }
    }

    /// Counts a record, and checks that its id closes once and that its time is not before the last record's.
    fn check_order(&mut self, header: &Header<'_>) {
        if header.event == "close" {
            self.closes += 1;
            if !self.closed_ids.insert(header.id.to_string()) {
                self.stream_errors.push(format!("id {} closed twice", header.id));
            }
        }
        // The times have a fixed width, so the order of the texts is the order of time.
        if *header.time < *self.last_time {
            if self.allowed_steps_back > 0 {
                self.allowed_steps_back -= 1;
            } else {
                let error = format!("{} printed after {}", header.time, self.last_time);
                self.stream_errors.push(error);
            }
        }
        self.last_time.clear();
        self.last_time.push_str(&header.time);
    }
}

/// Parses a line, which must be complete, UTF-8, and one JSON object that conforms to the schema.
fn parse_line(line: &[u8]) -> Result<Value, String> {
    let Some(text) = line.strip_suffix(b"\n") else {
        return Err("a line without a newline".to_owned());
    };
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    schema::check(&value)?;
    Ok(value)
}
