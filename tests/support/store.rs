//! What the tool prints: its lines as they come, checked, and kept by network namespace.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Instant, SystemTime};

use serde::Deserialize;
use serde_json::Value;

use super::{patience, schema};

/// One `conn` line, and when the test had it in hand.
#[derive(Clone)]
pub struct Rec {
    /// The object.
    pub value: Value,
    /// An upper bound of when it happened.
    pub seen: SystemTime,
}

/// What to do with a namespace's records.
enum Watch {
    Keep(Vec<Rec>),
    /// For the crowds: looked at and dropped.
    Fold(Box<dyn FnMut(&Value) + Send>),
}

#[derive(Default)]
struct State {
    watched: HashMap<u64, Watch>,
    ids: HashSet<String>,
    conns: u64,
    last_time: String,
    /// How often a time may be earlier than the one before.
    set_back: u32,
    lost: Vec<Value>,
    summaries: Vec<Value>,
    /// What is wrong with the stream itself, whoever's record it was.
    faults: Vec<String>,
    ended: bool,
}

/// All that the tool has printed on standard output.
#[derive(Default)]
pub struct Store {
    state: Mutex<State>,
    news: Condvar,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Keeps the records of this namespace from now on.
    pub fn keep(&self, netns: u64) {
        self.lock().watched.insert(netns, Watch::Keep(Vec::new()));
    }

    /// Hands the records of this namespace to `look`.
    pub fn fold(&self, netns: u64, look: impl FnMut(&Value) + Send + 'static) {
        self.lock().watched.insert(netns, Watch::Fold(Box::new(look)));
    }

    /// Forgets a namespace. Its number may be another's soon.
    pub fn forget(&self, netns: u64) {
        self.lock().watched.remove(&netns);
    }

    /// The wall clock is about to be set back, once.
    pub fn set_back(&self) {
        self.lock().set_back += 1;
    }

    /// The namespace's records so far.
    pub fn records(&self, netns: u64) -> Vec<Rec> {
        match self.lock().watched.get(&netns) {
            Some(Watch::Keep(records)) => records.clone(),
            _ => Vec::new(),
        }
    }

    /// How many `conn` lines of closes there were in all.
    pub fn conns(&self) -> u64 {
        self.lock().conns
    }

    /// The `lost` lines so far.
    pub fn lost(&self) -> Vec<Value> {
        self.lock().lost.clone()
    }

    /// The `summary` lines so far.
    pub fn summaries(&self) -> Vec<Value> {
        self.lock().summaries.clone()
    }

    /// What was wrong with the stream: torn lines, lines that break the schema, ids used twice, time running backwards.
    pub fn faults(&self) -> Vec<String> {
        self.lock().faults.clone()
    }

    /// Waits until `found` finds what it looks for among the namespace's records.
    pub fn wait<T>(&self, netns: u64, mut found: impl FnMut(&[Rec]) -> Option<T>) -> Result<T, String> {
        self.wait_for(|state| match state.watched.get(&netns) {
            Some(Watch::Keep(records)) => found(records),
            _ => found(&[]),
        })
    }

    /// Waits until this many summaries have been printed.
    pub fn wait_summaries(&self, count: usize) -> Result<Vec<Value>, String> {
        self.wait_for(|state| (state.summaries.len() >= count).then(|| state.summaries.clone()))
    }

    fn wait_for<T>(&self, mut found: impl FnMut(&State) -> Option<T>) -> Result<T, String> {
        let deadline = Instant::now() + patience();
        let mut state = self.lock();
        loop {
            if let Some(value) = found(&state) {
                return Ok(value);
            }
            if state.ended {
                return Err("the tracer's output ended".to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("not within {} s", patience().as_secs()));
            }
            state = self
                .news
                .wait_timeout(state, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
    }

    /// Takes one line of standard output. A record of a namespace that no test watches is another program's: only its part in
    /// the stream is checked, so that a busy machine's connections cost the tests little.
    pub fn ingest(&self, line: &[u8], seen: SystemTime) {
        if let Ok(head) = serde_json::from_slice::<Head<'_>>(line)
            && line.ends_with(b"}\n")
        {
            let mut state = self.lock();
            if !state.watched.contains_key(&head.local.netns) {
                return state.place(&head);
            }
        }
        let checked = check_line(line);
        self.lock().take(line, checked, seen);
        self.news.notify_all();
    }

    /// Nothing more will come.
    pub fn end(&self) {
        self.lock().ended = true;
        self.news.notify_all();
    }
}

/// The part of a `conn` line that shows its place in the stream.
#[derive(Deserialize)]
struct Head<'a> {
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
    fn take(&mut self, line: &[u8], checked: Result<Value, String>, seen: SystemTime) {
        match checked {
            Err(fault) => self.faults.push(format!("{fault}: {}", String::from_utf8_lossy(line))),
            Ok(value) => match value["type"].as_str() {
                Some("conn") => self.conn(value, seen),
                Some("lost") => self.lost.push(value),
                Some("summary") => self.summaries.push(value),
                other => self.faults.push(format!("a line of type {other:?}")),
            },
        }
    }

    fn conn(&mut self, value: Value, seen: SystemTime) {
        let text = |field: &str| Cow::from(value[field].as_str().unwrap_or_default());
        let netns = value["local"]["netns"].as_u64().unwrap_or_default();
        self.place(&Head {
            id: text("id"),
            event: text("event"),
            time: text("time"),
            local: Local { netns },
        });
        match self.watched.get_mut(&netns) {
            Some(Watch::Keep(records)) => records.push(Rec { value, seen }),
            Some(Watch::Fold(look)) => look(&value),
            None => {}
        }
    }

    /// Counts a record and checks its place in the stream: its id and its time.
    fn place(&mut self, head: &Head<'_>) {
        if head.event == "close" {
            self.conns += 1;
            if !self.ids.insert(head.id.to_string()) {
                self.faults.push(format!("id {} closed twice", head.id));
            }
        }
        // Fixed width, so text order is time order.
        if *head.time < *self.last_time && self.set_back > 0 {
            self.set_back -= 1;
        } else if *head.time < *self.last_time {
            self.faults
                .push(format!("{} printed after {}", head.time, self.last_time));
        }
        self.last_time.clear();
        self.last_time.push_str(&head.time);
    }
}

/// One whole line, UTF-8, one JSON object, as the schema has it.
fn check_line(line: &[u8]) -> Result<Value, String> {
    let Some(text) = line.strip_suffix(b"\n") else {
        return Err("a line without an end".to_owned());
    };
    let text = std::str::from_utf8(text).map_err(|error| error.to_string())?;
    let value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    schema::check(&value)?;
    Ok(value)
}
