//! The inner half of the format, to be read: blocks to items. Whatever a block says, memory stays bounded.

use std::sync::Arc;

use super::row::{self, FIELDS, Row};
use super::varint::{take, take_signed};
use super::{MAX_DEFINITIONS, MAX_ENTRIES, MAX_LABELS, MAX_SHAPES, shape, tag};
use crate::record::{Called, Comm, ContainerId, Labels, Lost, Pod, Record, Service, Summary, WallTime, Workload};

/// What stands in a block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A record: [`Decoder::record`] has it.
    Record(usize),
    /// A record with names that stood in a damaged part.
    Orphan,
    Lost(Lost),
    Summary(Summary),
    Complete(WallTime),
    End {
        goes_on: bool,
    },
    BlockEnds,
}

/// The block says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unsound;

/// What the chapter has defined. None where the definition was lost.
#[derive(Default)]
struct Tables {
    chapter: Option<u64>,
    strings: Table<Arc<str>>,
    comms: Table<Comm>,
    pods: Table<Arc<Pod>>,
    services: Table<Arc<Service>>,
    bytes: usize,
    labels: usize,
}

struct Table<T>(Vec<Option<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// What a number refers to.
enum Found<T> {
    Nothing,
    This(T),
    /// It was defined in a damaged part.
    Gone,
}

impl<T> Found<T> {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Gone)
    }
}

impl<T> From<Found<T>> for Option<T> {
    fn from(found: Found<T>) -> Self {
        match found {
            Found::This(value) => Some(value),
            Found::Nothing | Found::Gone => None,
        }
    }
}

impl<T: Clone> Table<T> {
    fn add(&mut self, value: Option<T>) -> Result<(), Unsound> {
        if self.0.len() == MAX_ENTRIES {
            return Err(Unsound);
        }
        self.0.push(value);
        Ok(())
    }

    /// So many have been defined, whether they were seen or not.
    fn defined(&mut self, count: u64) -> Result<(), Unsound> {
        if count < self.0.len() as u64 || count > MAX_ENTRIES as u64 {
            return Err(Unsound);
        }
        self.0.resize(count as usize, None);
        Ok(())
    }

    fn get(&self, number: u64) -> Result<Found<T>, Unsound> {
        if number == 0 {
            return Ok(Found::Nothing);
        }
        let entry = usize::try_from(number - 1).ok().and_then(|index| self.0.get(index));
        match entry {
            Some(Some(value)) => Ok(Found::This(value.clone())),
            Some(None) => Ok(Found::Gone),
            None => Err(Unsound),
        }
    }
}

impl Tables {
    fn string(&mut self, bytes: &mut &[u8]) -> Result<(), Unsound> {
        let text = str::from_utf8(take_bytes(bytes)?).map_err(|_| Unsound)?;
        self.strings.add(Some(text.into()))
    }

    fn comm(&mut self, bytes: &mut &[u8]) -> Result<(), Unsound> {
        let text = take_bytes(bytes)?;
        let mut comm = [0; 16];
        comm.get_mut(..text.len()).ok_or(Unsound)?.copy_from_slice(text);
        self.comms.add(Some(Comm(comm)))
    }

    fn pod(&mut self, bytes: &mut &[u8]) -> Result<(), Unsound> {
        let mut next = || self.strings.get(number(bytes)?);
        let [uid, namespace, name] = [next()?, next()?, next()?];
        let [workload_kind, workload_name, service_account, node] = [next()?, next()?, next()?, next()?];
        let host_network = match number(bytes)? {
            0 => None,
            1 => Some(false),
            2 => Some(true),
            _ => return Err(Unsound),
        };
        let mut gone = [
            &uid,
            &namespace,
            &name,
            &workload_kind,
            &workload_name,
            &service_account,
            &node,
        ]
        .into_iter()
        .any(Found::is_gone);
        let labels = match number(bytes)? {
            0 => None,
            count => {
                let count = usize::try_from(count - 1).map_err(|_| Unsound)?;
                self.labels = self.labels.saturating_add(count);
                // A label is two bytes at the least: what is claimed must be there.
                if count > bytes.len() / 2 || self.labels > MAX_LABELS {
                    return Err(Unsound);
                }
                let mut labels = Vec::with_capacity(count);
                for _ in 0..count {
                    let key = self.strings.get(number(bytes)?)?;
                    let value = self.strings.get(number(bytes)?)?;
                    match (key, value) {
                        (Found::This(key), Found::This(value)) => labels.push((key, value)),
                        (Found::Nothing, _) | (_, Found::Nothing) => return Err(Unsound),
                        _ => gone = true,
                    }
                }
                Some(labels.into_iter().collect::<Labels>())
            }
        };
        if gone {
            return self.pods.add(None);
        }
        let (Found::This(uid), Found::This(namespace), Found::This(name)) = (uid, namespace, name) else {
            return Err(Unsound);
        };
        let workload = match (workload_kind, workload_name) {
            (Found::This(kind), Found::This(name)) => Some(Workload { kind, name }),
            (Found::Nothing, Found::Nothing) => None,
            _ => return Err(Unsound),
        };
        self.pods.add(Some(Arc::new(Pod {
            uid,
            namespace,
            name,
            workload,
            service_account: service_account.into(),
            node: node.into(),
            host_network,
            labels,
        })))
    }

    fn service(&mut self, bytes: &mut &[u8]) -> Result<(), Unsound> {
        let mut next = || self.strings.get(number(bytes)?);
        match (next()?, next()?, next()?) {
            (Found::This(namespace), Found::This(name), Found::This(host)) => {
                self.services.add(Some(Arc::new(Service { namespace, name, host })))
            }
            (Found::Nothing, ..) | (_, Found::Nothing, _) | (.., Found::Nothing) => Err(Unsound),
            _ => self.services.add(None),
        }
    }
}

fn number(bytes: &mut &[u8]) -> Result<u64, Unsound> {
    take(bytes).ok_or(Unsound)
}

fn signed(bytes: &mut &[u8]) -> Result<i64, Unsound> {
    take_signed(bytes).ok_or(Unsound)
}

fn take_bytes<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Unsound> {
    let length = usize::try_from(number(bytes)?).map_err(|_| Unsound)?;
    let (taken, rest) = bytes.split_at_checked(length).ok_or(Unsound)?;
    *bytes = rest;
    Ok(taken)
}

/// The last of a shape.
struct Last {
    row: Row,
    record: Record,
    /// The references of the row stand in the record.
    named: bool,
}

/// Takes blocks apart.
#[derive(Default)]
pub(super) struct Decoder {
    tables: Tables,
    /// By the shapes of the block.
    last: Vec<Last>,
    time: i64,
    cookie: u64,
}

impl Decoder {
    /// A block begins.
    pub(super) fn block(&mut self, bytes: &mut &[u8]) -> Result<(), Unsound> {
        self.last.clear();
        (self.time, self.cookie) = (0, 0);
        let chapter = Some(number(bytes)?);
        if self.tables.chapter != chapter {
            self.tables = Tables {
                chapter,
                ..Tables::default()
            };
        }
        self.tables.strings.defined(number(bytes)?)?;
        self.tables.comms.defined(number(bytes)?)?;
        self.tables.pods.defined(number(bytes)?)?;
        self.tables.services.defined(number(bytes)?)
    }

    /// The record of a [`Step::Record`].
    pub(super) fn record(&self, index: usize) -> &Record {
        &self.last[index].record
    }

    /// The next item that is of interest outside.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Result<Step, Unsound> {
        while !bytes.is_empty() {
            let before = bytes.len();
            match number(bytes)? {
                tag::STRING => self.tables.string(bytes)?,
                tag::COMM => self.tables.comm(bytes)?,
                tag::POD => self.tables.pod(bytes)?,
                tag::SERVICE => self.tables.service(bytes)?,
                tag::SHAPE => {
                    self.shape(bytes)?;
                    continue;
                }
                tag::LOST => return lost(bytes).map(Step::Lost),
                tag::SUMMARY => return summary(bytes).map(Step::Summary),
                tag::COMPLETE => return Ok(Step::Complete(WallTime(signed(bytes)?))),
                tag::END => {
                    return match number(bytes)? {
                        0 => Ok(Step::End { goes_on: false }),
                        1 => Ok(Step::End { goes_on: true }),
                        _ => Err(Unsound),
                    };
                }
                shape => return self.decode_record(shape.checked_sub(tag::RECORD).ok_or(Unsound)?, bytes),
            }
            self.tables.bytes += before - bytes.len();
            if self.tables.bytes > MAX_DEFINITIONS {
                return Err(Unsound);
            }
        }
        Ok(Step::BlockEnds)
    }

    fn shape(&mut self, bytes: &mut &[u8]) -> Result<(), Unsound> {
        if self.last.len() == MAX_SHAPES {
            return Err(Unsound);
        }
        let record = shape::skeleton(number(bytes)?).ok_or(Unsound)?;
        self.last.push(Last {
            row: [0; FIELDS],
            record,
            named: false,
        });
        Ok(())
    }

    fn decode_record(&mut self, index: u64, bytes: &mut &[u8]) -> Result<Step, Unsound> {
        let index = usize::try_from(index).map_err(|_| Unsound)?;
        let last = self.last.get_mut(index).ok_or(Unsound)?;
        self.time = self.time.wrapping_add(signed(bytes)?);
        self.cookie = self.cookie.wrapping_add(signed(bytes)? as u64);
        let mask = number(bytes)?;
        if mask >> FIELDS != 0 {
            return Err(Unsound);
        }
        let mut left = mask;
        while left != 0 {
            let field = left.trailing_zeros() as usize;
            last.row[field] = last.row[field].wrapping_add(signed(bytes)? as u64);
            left &= left - 1;
        }
        last.record.time = WallTime(self.time);
        last.record.id.cookie = self.cookie;
        row::fill(&mut last.record, &last.row);
        if !last.named || mask & row::REFERENCES != 0 {
            last.named = name(&mut last.record, &last.row, &self.tables)?;
        }
        Ok(if last.named { Step::Record(index) } else { Step::Orphan })
    }
}

/// Puts in what the row refers to. False if some of it is gone.
fn name(record: &mut Record, row: &Row, tables: &Tables) -> Result<bool, Unsound> {
    let comm = tables.comms.get(row[row::COMM])?;
    let container = tables.strings.get(row[row::CONTAINER])?;
    let container_id = tables.strings.get(row[row::CONTAINER_ID])?;
    let src_pod = tables.pods.get(row[row::SRC_POD])?;
    let dst_pod = tables.pods.get(row[row::DST_POD])?;
    let src_node = tables.strings.get(row[row::SRC_NODE])?;
    let dst_node = tables.strings.get(row[row::DST_NODE])?;
    let service = tables.services.get(row[row::SERVICE])?;
    let gone = [&container, &container_id, &src_node, &dst_node]
        .into_iter()
        .any(Found::is_gone)
        || src_pod.is_gone()
        || dst_pod.is_gone()
        || comm.is_gone()
        || service.is_gone();
    if gone {
        return Ok(false);
    }
    match (&mut record.process, comm) {
        (Some(process), Found::This(comm)) => process.comm = comm,
        (None, Found::Nothing) => {}
        _ => return Err(Unsound),
    }
    match (&mut record.names.service, service) {
        (Some(Called { service, .. }), Found::This(found)) => *service = found,
        (None, Found::Nothing) => {}
        _ => return Err(Unsound),
    }
    record.container_id = match container_id {
        Found::This(id) => Some(ContainerId::new(&id).ok_or(Unsound)?),
        _ => None,
    };
    record.names.container = container.into();
    record.names.src.pod = src_pod.into();
    record.names.dst.pod = dst_pod.into();
    record.names.src.node = src_node.into();
    record.names.dst.node = dst_node.into();
    Ok(true)
}

fn lost(bytes: &mut &[u8]) -> Result<Lost, Unsound> {
    Ok(Lost {
        time: WallTime(signed(bytes)?),
        lost_records: number(bytes)?,
        lost_records_total: number(bytes)?,
        reasons: shape::reasons(number(bytes)?).ok_or(Unsound)?,
    })
}

fn summary(bytes: &mut &[u8]) -> Result<Summary, Unsound> {
    let time = WallTime(signed(bytes)?);
    let mut next = || number(bytes);
    Ok(Summary {
        time,
        closes: next()?,
        delivered: next()?,
        filtered: next()?,
        lost_records: next()?,
        lost_at_most: next()?,
        after_limit: next()?,
        unresolved: next()?,
        open: next()?,
        elapsed_ns: next()?,
        reasons: shape::reasons(next()?).ok_or(Unsound)?,
    })
}
