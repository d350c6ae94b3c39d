//! The inner half of the format, to be written: items to blocks.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;

use super::row::{self, FIELDS, Row};
use super::varint::{put, put_signed};
use super::{MAX_DEFINITIONS, MAX_ENTRIES, MAX_LABELS, shape, tag};
use crate::record::{Comm, Lost, Pod, Record, Service, Summary, WallTime};

/// A chapter ends after so many bytes: what the loss of a block that defines much may cost at the most.
const CHAPTER: usize = 8 << 20;

/// Numbers for what is written once a chapter, from 1.
struct Numbers<K>(HashMap<K, u64>);

impl<K> Default for Numbers<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Numbers<K> {
    /// The number of `key`, and whether it is a new one.
    fn of(&mut self, key: K) -> (u64, bool) {
        let next = self.0.len() as u64 + 1;
        match self.0.entry(key) {
            Entry::Occupied(known) => (*known.get(), false),
            Entry::Vacant(new) => (*new.insert(next), true),
        }
    }

    fn known(&self) -> u64 {
        self.0.len() as u64
    }
}

/// A shared value by its address, which is nobody else's for as long as it is kept here.
struct ByAddress<T>(Arc<T>);

impl<T> PartialEq for ByAddress<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Eq for ByAddress<T> {}

impl<T> Hash for ByAddress<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).hash(state);
    }
}

/// What the chapter has defined.
#[derive(Default)]
struct Tables {
    strings: Numbers<Arc<str>>,
    comms: Numbers<[u8; 16]>,
    pods: Numbers<ByAddress<Pod>>,
    services: Numbers<ByAddress<Service>>,
    /// Bytes of definitions.
    bytes: usize,
    /// Labels of all pods.
    labels: usize,
}

impl Tables {
    fn known(&self) -> [u64; 4] {
        [
            self.strings.known(),
            self.comms.known(),
            self.pods.known(),
            self.services.known(),
        ]
    }

    /// Whether there is more than one in `parts` of what a reader accepts.
    fn exceed(&self, parts: usize) -> bool {
        self.bytes > MAX_DEFINITIONS / parts
            || self.labels > MAX_LABELS / parts
            || self.known().iter().any(|&known| known > (MAX_ENTRIES / parts) as u64)
    }

    fn string(&mut self, out: &mut Vec<u8>, text: &Arc<str>) -> u64 {
        // Looked up before it is cloned: nearly always it is known.
        if let Some(&number) = self.strings.0.get(text) {
            return number;
        }
        let (number, _) = self.strings.of(Arc::clone(text));
        self.define(out, tag::STRING, |out| bytes(out, text.as_bytes()));
        number
    }

    fn text(&mut self, out: &mut Vec<u8>, text: &str) -> u64 {
        match self.strings.0.get(text) {
            Some(&number) => number,
            None => self.string(out, &Arc::from(text)),
        }
    }

    fn maybe(&mut self, out: &mut Vec<u8>, text: Option<&Arc<str>>) -> u64 {
        text.map_or(0, |text| self.string(out, text))
    }

    fn comm(&mut self, out: &mut Vec<u8>, comm: Comm) -> u64 {
        let (number, new) = self.comms.of(comm.0);
        if new {
            let length = comm.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            self.define(out, tag::COMM, |out| bytes(out, &comm.0[..length]));
        }
        number
    }

    fn pod(&mut self, out: &mut Vec<u8>, pod: &Arc<Pod>) -> u64 {
        let (number, new) = self.pods.of(ByAddress(Arc::clone(pod)));
        if new {
            let workload = pod.workload.as_ref();
            let parts = [
                self.string(out, &pod.uid),
                self.string(out, &pod.namespace),
                self.string(out, &pod.name),
                self.maybe(out, workload.map(|workload| &workload.kind)),
                self.maybe(out, workload.map(|workload| &workload.name)),
                self.maybe(out, pod.service_account.as_ref()),
                self.maybe(out, pod.node.as_ref()),
                pod.host_network.map_or(0, |host_network| 1 + u64::from(host_network)),
                pod.labels.as_ref().map_or(0, |labels| 1 + labels.iter().len() as u64),
            ];
            let labels: Vec<u64> = pod
                .labels
                .iter()
                .flat_map(|labels| labels.iter())
                .flat_map(|(key, value)| [self.text(out, key), self.text(out, value)])
                .collect();
            self.labels += labels.len() / 2;
            self.define(out, tag::POD, |out| {
                parts.into_iter().chain(labels).for_each(|part| put(out, part));
            });
        }
        number
    }

    fn service(&mut self, out: &mut Vec<u8>, service: &Arc<Service>) -> u64 {
        let (number, new) = self.services.of(ByAddress(Arc::clone(service)));
        if new {
            let parts = [&service.namespace, &service.name, &service.host].map(|text| self.string(out, text));
            self.define(out, tag::SERVICE, |out| {
                parts.into_iter().for_each(|part| put(out, part))
            });
        }
        number
    }

    fn define(&mut self, out: &mut Vec<u8>, tag: u64, body: impl FnOnce(&mut Vec<u8>)) {
        let before = out.len();
        put(out, tag);
        body(out);
        self.bytes += out.len() - before;
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Makes blocks.
#[derive(Default)]
pub(super) struct Encoder {
    chapter: u64,
    /// Bytes in the chapter's blocks so far.
    told: usize,
    tables: Tables,
    shapes: HashMap<u64, usize>,
    /// The last row of each shape of the block.
    last: Vec<Row>,
    /// Of the last record in the block.
    time: i64,
    cookie: u64,
    block: Vec<u8>,
}

impl Encoder {
    /// The block so far; empty when there is nothing in it.
    pub(super) fn block(&self) -> &[u8] {
        &self.block
    }

    /// The block has been written.
    pub(super) fn next_block(&mut self) {
        self.told += self.block.len();
        self.block.clear();
        self.shapes.clear();
        self.last.clear();
        (self.time, self.cookie) = (0, 0);
        if self.told > CHAPTER || self.tables.exceed(2) {
            self.next_chapter();
        }
    }

    /// What comes stands alone. Only between blocks.
    pub(super) fn next_chapter(&mut self) {
        self.chapter += 1;
        self.told = 0;
        self.tables = Tables::default();
    }

    /// Whether more has been defined than a reader accepts.
    pub(super) fn is_too_much(&self) -> bool {
        self.tables.exceed(1)
    }

    fn item(&mut self, tag: u64) -> &mut Vec<u8> {
        self.begin();
        put(&mut self.block, tag);
        &mut self.block
    }

    fn begin(&mut self) {
        if self.block.is_empty() {
            put(&mut self.block, self.chapter);
            self.tables
                .known()
                .into_iter()
                .for_each(|known| put(&mut self.block, known));
        }
    }

    pub(super) fn record(&mut self, record: &Record) {
        self.begin();
        let row = self.row(record);
        let shape = shape::of(record);
        let next = self.last.len();
        let index = *self.shapes.entry(shape).or_insert(next);
        if index == next {
            self.last.push([0; FIELDS]);
            put(&mut self.block, tag::SHAPE);
            put(&mut self.block, shape);
        }
        let last = &mut self.last[index];
        let mask = (0..FIELDS)
            .filter(|&field| row[field] != last[field])
            .fold(0_u64, |mask, field| mask | 1 << field);
        let out = &mut self.block;
        put(out, tag::RECORD + index as u64);
        put_signed(out, record.time.0.wrapping_sub(self.time));
        put_signed(out, record.id.cookie.wrapping_sub(self.cookie) as i64);
        put(out, mask);
        for field in (0..FIELDS).filter(|field| mask >> field & 1 == 1) {
            put_signed(out, row[field].wrapping_sub(last[field]) as i64);
        }
        *last = row;
        (self.time, self.cookie) = (record.time.0, record.id.cookie);
    }

    fn row(&mut self, record: &Record) -> Row {
        let mut row = row::of(record);
        let (out, tables, names) = (&mut self.block, &mut self.tables, &record.names);
        row[row::COMM] = record.process.map_or(0, |process| tables.comm(out, process.comm));
        row[row::CONTAINER] = tables.maybe(out, names.container.as_ref());
        row[row::CONTAINER_ID] = record.container_id.map_or(0, |id| tables.text(out, id.as_str()));
        row[row::SRC_POD] = names.src.pod.as_ref().map_or(0, |pod| tables.pod(out, pod));
        row[row::DST_POD] = names.dst.pod.as_ref().map_or(0, |pod| tables.pod(out, pod));
        row[row::SRC_NODE] = tables.maybe(out, names.src.node.as_ref());
        row[row::DST_NODE] = tables.maybe(out, names.dst.node.as_ref());
        let called = names.service.as_ref();
        row[row::SERVICE] = called.map_or(0, |called| tables.service(out, &called.service));
        row
    }

    pub(super) fn lost(&mut self, lost: &Lost) {
        let out = self.item(tag::LOST);
        put_signed(out, lost.time.0);
        put(out, lost.lost_records);
        put(out, lost.lost_records_total);
        put(out, shape::reasons_put(&lost.reasons));
    }

    pub(super) fn summary(&mut self, summary: &Summary) {
        let out = self.item(tag::SUMMARY);
        put_signed(out, summary.time.0);
        for number in [
            summary.closes,
            summary.delivered,
            summary.filtered,
            summary.lost_records,
            summary.lost_at_most,
            summary.after_limit,
            summary.unresolved,
            summary.open,
            summary.elapsed_ns,
            shape::reasons_put(&summary.reasons),
        ] {
            put(out, number);
        }
    }

    pub(super) fn complete(&mut self, until: WallTime) {
        put_signed(self.item(tag::COMPLETE), until.0);
    }

    pub(super) fn end(&mut self, goes_on: bool) {
        put(self.item(tag::END), goes_on.into());
    }
}
