//! Collects what the rules examine: pairs of client and server, listeners, rejected SYNs and open connections. All
//! tables are bounded.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::stats::{Counters, Processes, Sent, Stats};
use crate::record::{
    AcceptQueue, Comm, ConnId, Direction, End, Event, Lost, Pod, Record, Subject, Summary, TcpState, WallTime,
};
use crate::rollup::{By, Group, GroupEnd, Key};

/// The maximum number of pairs. The connections of further pairs are counted, and the report says how many.
const MAX_PAIRS: usize = 4_096;
/// The number of pairs above which clients without a name count together.
const MAX_PAIRS_BY_ADDRESS: usize = MAX_PAIRS / 2;
/// The maximum number of pods of each end of a pair.
const MAX_MEMBERS: usize = 64;
/// The maximum number of open connections.
const MAX_OPEN: usize = 1 << 18;
/// The maximum number of listeners, and of rejected clients and ports.
const MAX_REPORTS: usize = 4_096;
/// The time after which an attempt that still waits counts as unanswered. The SYN was then sent three times.
const WAITING_NS: i64 = 3_500_000_000;

/// What a run can see, apart from what its records show. `None`: unknown, since a capture does not say it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abilities {
    /// Whether RSTs without a socket are reported.
    pub rejects: Option<bool>,
    /// Whether listening sockets are reported.
    pub listeners: Option<bool>,
}

/// Everything that was seen during the watch.
#[derive(Debug, Default)]
pub struct Watch {
    pub pairs: Vec<Pair>,
    index: HashMap<Group, usize>,
    pub open: HashMap<ConnId, OpenConnection>,
    pub listeners: HashMap<ConnId, Listener>,
    pub rejects: HashMap<(IpAddr, SocketAddr), Reject>,
    pub abilities: Abilities,
    /// The first and the last time that is known to be covered.
    pub began: Option<WallTime>,
    pub ended: Option<WallTime>,
    /// The connections and attempts that ended.
    pub attempts: u64,
    /// The ended connections with a name of a pod on any end, and those that counted drops.
    pub named: u64,
    pub with_drops: u64,
    /// The ended connections of pairs beyond the maximum.
    pub beyond_pairs: u64,
    pub lost_records: u64,
    /// Whether a socket scan reported a connection.
    pub has_updates: bool,
}

/// The connections of one client and one server, as one end saw them.
#[derive(Debug)]
pub struct Pair {
    /// The workload, pod or address of each end; the Service; and the port that the client dialled.
    pub group: Group,
    /// The server's address of the first record, after translation.
    pub server: SocketAddr,
    /// The network namespace of the first record.
    pub netns: u32,
    pub stats: Stats,
    pub clients: Members,
    pub servers: Members,
    pub processes: Processes,
    /// The servers that refused attempts, and how many.
    pub refusing: Vec<Refusing>,
}

/// A server that refused attempts.
#[derive(Clone, Debug)]
pub struct Refusing {
    pub server: SocketAddr,
    pub pod: Option<Arc<Pod>>,
    pub count: u64,
}

/// The pods of one end of a pair.
#[derive(Debug, Default)]
pub struct Members(HashMap<GroupEnd, Stats>);

impl Members {
    fn get(&mut self, end: &End) -> Option<&mut Stats> {
        let pod = end.pod.as_ref()?;
        let key = GroupEnd {
            namespace: Some(Arc::clone(&pod.namespace)),
            pod: Some(Arc::clone(&pod.name)),
            ..GroupEnd::default()
        };
        if self.0.len() >= MAX_MEMBERS && !self.0.contains_key(&key) {
            return None;
        }
        Some(self.0.entry(key).or_default())
    }

    /// Iterates over the pods in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&GroupEnd, &Stats)> {
        let mut members: Vec<_> = self.0.iter().collect();
        members.sort_unstable_by_key(|(end, _)| *end);
        members.into_iter()
    }
}

/// A connection that has not ended.
#[derive(Clone, Debug)]
pub struct OpenConnection {
    /// The index of its pair.
    pub pair: Option<usize>,
    counters: Counters,
    /// Whether its first record was an update from before the watch.
    pub preexisting: bool,
    pub established: bool,
    /// The time of connect(), else of its first record.
    pub start: WallTime,
    /// The time since when its peer has closed and its process has not.
    pub close_wait_since: Option<WallTime>,
    /// The payload so far, and when it last changed.
    bytes: u64,
    pub moved: WallTime,
    pub last: WallTime,
    pub process: Option<(u32, Comm)>,
}

/// A listening socket, and what its accept queue did during the watch.
#[derive(Clone, Debug)]
pub struct Listener {
    pub address: SocketAddr,
    pub end: End,
    pub process: Option<(u32, Comm)>,
    pub netns: u32,
    pub limit: u32,
    /// The largest number of connections that waited for accept().
    pub peak: u32,
    pub scans: u64,
    /// The scans that found more connections than the limit.
    pub full: u64,
    /// The packets that it dropped during the watch.
    pub dropped: u64,
    /// The times of the first and the last scan that found it full, or with new drops.
    pub first: Option<WallTime>,
    pub last: Option<WallTime>,
}

/// The RSTs that one port of this node sent to one client because no socket was there.
#[derive(Clone, Debug)]
pub struct Reject {
    pub client: End,
    pub server: End,
    pub reason: Option<Arc<str>>,
    pub count: u64,
    pub first: WallTime,
    pub last: WallTime,
}

impl Watch {
    pub fn new(abilities: Abilities) -> Self {
        Self {
            abilities,
            ..Self::default()
        }
    }

    /// Notes that everything before `time` is known.
    pub fn cover(&mut self, time: WallTime) {
        if time == WallTime::MAX {
            return;
        }
        self.began = Some(self.began.map_or(time, |began| began.min(time)));
        self.ended = self.ended.max(Some(time));
    }

    /// Returns whether no connection, listener or reject was seen.
    pub fn is_empty(&self) -> bool {
        self.attempts == 0 && self.open.is_empty() && self.listeners.is_empty() && self.rejects.is_empty()
    }

    /// Returns the length of the watch in ns, at least 1.
    pub fn length_ns(&self) -> u64 {
        let length = self.began.zip(self.ended).map(|(began, ended)| ended.0 - began.0);
        length.and_then(|length| u64::try_from(length).ok()).unwrap_or(0).max(1)
    }

    /// Takes the counters of a connection that was open when the watch began.
    pub fn baseline(&mut self, record: &Record) {
        self.cover(record.time);
        let pair = self.pair(record);
        self.update(record, pair);
    }

    pub fn record(&mut self, record: &Record) {
        self.cover(record.time);
        let at = self.pair(record);
        self.has_updates |= record.event == Event::Update;
        if record.event != Event::Close {
            let sent = self.update(record, at);
            self.count_sent(record, at, sent);
            return;
        }
        self.attempts += 1;
        self.named += u64::from(record.names.src.pod.is_some() || record.names.dst.pod.is_some());
        self.with_drops += u64::from(record.drops.is_some());
        let before = self.open.remove(&record.id).map(|open| open.counters);
        let sent = match before {
            None if record.preexisting => Sent::default(),
            before => Counters::of(record).since(before.unwrap_or_default()),
        };
        match at {
            None => self.beyond_pairs += 1,
            Some(at) => self.pairs[at].close(record, sent),
        }
    }

    /// Takes a record whose subject is no connection.
    pub fn report(&mut self, record: &Record) {
        self.cover(record.time);
        match record.subject {
            Subject::Connection => {}
            Subject::Reject(count) => self.reject(record, count),
            Subject::Listener(queue) => self.listener(record, queue),
        }
    }

    pub fn exclude(&mut self, id: ConnId) {
        self.open.remove(&id);
    }

    pub fn lost(&mut self, lost: &Lost) {
        self.lost_records = self.lost_records.max(lost.lost_records_total);
    }

    pub fn summary(&mut self, summary: &Summary) {
        self.cover(summary.time);
        self.lost_records = self.lost_records.max(summary.lost_records);
    }

    /// Ends the watch. Attempts that have waited for long count as unanswered.
    pub fn end(&mut self) {
        let waiting = self.open.values().filter(|open| !open.established);
        let mut waiting: Vec<_> = waiting
            .filter(|open| open.last.0.saturating_sub(open.start.0) >= WAITING_NS)
            .filter_map(|open| Some((open.start, open.pair?)))
            .collect();
        waiting.sort_unstable();
        for (start, pair) in waiting {
            self.pairs[pair].stats.add_waiting(start);
            self.attempts += 1;
        }
    }

    /// Returns the index of the record's pair. `None` beyond the maximum.
    fn pair(&mut self, record: &Record) -> Option<usize> {
        let mut group = group_of(record);
        if let Some(at) = self.index.get(&group) {
            return Some(*at);
        }
        let is_unnamed = group.src.workload.is_none() && group.src.pod.is_none();
        if self.pairs.len() >= MAX_PAIRS_BY_ADDRESS && is_unnamed {
            group.src = GroupEnd::default();
            if let Some(at) = self.index.get(&group) {
                return Some(*at);
            }
        }
        if self.pairs.len() >= MAX_PAIRS {
            return None;
        }
        let at = self.pairs.len();
        self.pairs.push(Pair {
            group: group.clone(),
            server: record.dst,
            netns: record.netns,
            stats: Stats::default(),
            clients: Members::default(),
            servers: Members::default(),
            processes: Processes::default(),
            refusing: Vec::new(),
        });
        self.index.insert(group, at);
        Some(at)
    }

    /// Stores the state of a connection that is open or connecting. Returns what it sent since its last record.
    fn update(&mut self, record: &Record, pair: Option<usize>) -> Sent {
        let counters = Counters::of(record);
        let bytes = record.sent_bytes.saturating_add(record.received_bytes);
        let close_wait = (record.tcp.state == TcpState::CloseWait).then_some(record.time);
        let process = record.process.map(|process| (process.pid, process.comm));
        if let Some(open) = self.open.get_mut(&record.id) {
            let sent = counters.since(open.counters);
            if open.bytes != bytes {
                open.moved = record.time;
            }
            open.close_wait_since = close_wait.and(open.close_wait_since.or(close_wait));
            open.established |= record.established;
            open.process = process.or(open.process);
            open.last = record.time;
            (open.pair, open.counters, open.bytes) = (pair, counters, bytes);
            return sent;
        }
        if self.open.len() < MAX_OPEN {
            let open = OpenConnection {
                pair,
                counters,
                preexisting: record.preexisting,
                established: record.established,
                start: record.start.unwrap_or(record.time),
                close_wait_since: close_wait,
                bytes,
                moved: record.time,
                last: record.time,
                process,
            };
            self.open.insert(record.id, open);
        }
        if record.preexisting {
            return Sent::default();
        }
        counters.since(Counters::default())
    }

    fn count_sent(&mut self, record: &Record, at: Option<usize>, sent: Sent) {
        let Some(at) = at else { return };
        let pair = &mut self.pairs[at];
        pair.stats.send(sent);
        let members = [pair.clients.get(&record.names.src), pair.servers.get(&record.names.dst)];
        members.into_iter().flatten().for_each(|stats| stats.send(sent));
    }

    fn reject(&mut self, record: &Record, count: u64) {
        let key = (record.src.ip(), record.dst);
        if self.rejects.len() >= MAX_REPORTS && !self.rejects.contains_key(&key) {
            return;
        }
        let reject = self.rejects.entry(key).or_insert_with(|| Reject {
            client: record.names.src.clone(),
            server: record.names.dst.clone(),
            reason: record.reset_reason.clone(),
            count: 0,
            first: record.time,
            last: record.time,
        });
        reject.count += count;
        reject.last = record.time;
    }

    fn listener(&mut self, record: &Record, queue: AcceptQueue) {
        if self.listeners.len() >= MAX_REPORTS && !self.listeners.contains_key(&record.id) {
            return;
        }
        let listener = self.listeners.entry(record.id).or_insert_with(|| Listener {
            address: record.dst,
            end: record.names.dst.clone(),
            process: None,
            netns: record.netns,
            limit: 0,
            peak: 0,
            scans: 0,
            full: 0,
            dropped: 0,
            first: None,
            last: None,
        });
        let process = record.process.map(|process| (process.pid, process.comm));
        listener.process = process.or(listener.process);
        listener.limit = queue.max_backlog;
        listener.peak = listener.peak.max(queue.backlog);
        listener.scans += 1;
        let is_full = queue.backlog > queue.max_backlog;
        listener.full += u64::from(is_full);
        listener.dropped += u64::from(queue.dropped);
        if is_full || queue.dropped > 0 {
            listener.first.get_or_insert(record.time);
            listener.last = Some(record.time);
        }
    }
}

impl Pair {
    fn close(&mut self, record: &Record, sent: Sent) {
        self.stats.close(record, sent);
        self.processes.add(record);
        if let Some(stats) = self.clients.get(&record.names.src) {
            stats.close(record, sent);
        }
        if let Some(stats) = self.servers.get(&record.names.dst) {
            stats.close(record, sent);
        }
        if record.outcome == Some(crate::record::Outcome::Refused) {
            self.refuse(record);
        }
    }

    fn refuse(&mut self, record: &Record) {
        match self.refusing.iter().position(|known| known.server == record.dst) {
            Some(at) => self.refusing[at].count += 1,
            None if self.refusing.len() < MAX_MEMBERS => self.refusing.push(Refusing {
                server: record.dst,
                pod: record.names.dst.pod.clone(),
                count: 1,
            }),
            None => {}
        }
    }

    /// Returns whether the client's end was traced.
    pub fn is_outbound(&self) -> bool {
        self.group.direction == Some(Direction::Outbound)
    }
}

/// Returns the group of a record. Its addresses and its port are those that filters match: what the client dialled.
fn group_of(record: &Record) -> Group {
    let keys = By::new(&[Key::Workload, Key::Service, Key::Port]);
    let mut group = keys.group(record);
    let dialled = record.socket_dst();
    group.dst.port = Some(dialled.port());
    for (end, ip) in [(&mut group.src, record.src.ip()), (&mut group.dst, dialled.ip())] {
        if end.workload.is_none() && end.pod.is_none() {
            end.ip = Some(ip);
        }
    }
    group
}
