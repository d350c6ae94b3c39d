//! Reading a capture: item by item, and what is wrong with it in between.

use std::fmt;
use std::io::{self, Read};

use super::decode::{self, Decoder};
use super::frame::{self, Frames, Header, NotACapture};
use crate::record::{Lost, Record, Summary, WallTime};

/// What a capture tells, in the order in which the run told it.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A record.
    Record(&'a Record),
    /// Records were lost.
    Lost(Lost),
    /// Sums, at the end or so far.
    Summary(Summary),
    /// All that happened before has been told.
    Complete(WallTime),
    /// The capture ends as its writer meant it to. Nothing should follow.
    End {
        /// It goes on in the next file of those that were rotated.
        goes_on: bool,
    },
    /// Something is wrong here. What comes next is sound again.
    Damage(Damage),
}

/// Something is wrong with a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Bytes that are no sound block.
    Bytes {
        /// The first of them in the file, from 0.
        at: u64,
        /// How many.
        length: u64,
    },
    /// The file ends within a block.
    CutOff {
        /// Where that block begins.
        at: u64,
    },
    /// Blocks are not there.
    Missing {
        /// Where they should be.
        at: u64,
        /// How many.
        blocks: u64,
    },
    /// A block whose checksum is right says what makes no sense: kmesh-trace did not write it.
    Senseless {
        /// Where it begins.
        at: u64,
    },
    /// Records whose names stood in a damaged block.
    Orphans {
        /// Where their block begins.
        at: u64,
        /// How many.
        records: u64,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { at, length } => write!(f, "damaged at byte {at}: {length} bytes are skipped"),
            Self::CutOff { at } => write!(f, "cut off: the block that begins at byte {at} is not whole"),
            Self::Missing { at, blocks } => write!(f, "damaged at byte {at}: {blocks} blocks are missing before it"),
            Self::Senseless { at } => write!(f, "the block at byte {at} makes no sense, and is skipped"),
            Self::Orphans { at, records } => write!(
                f,
                "{records} records of the block at byte {at} are skipped: what names them is damaged"
            ),
        }
    }
}

/// Reads a capture. However it is damaged and whatever lengths it claims, memory is bounded.
pub struct Reader<R> {
    /// What is the same for the whole file.
    pub header: Header,
    frames: Frames<R>,
    decoder: Decoder,
    block: Vec<u8>,
    /// Taken of the block.
    taken: usize,
    /// Of the block.
    at: u64,
    /// The number of the next block.
    number: u32,
    /// Damage has been told of since the last sound block.
    told: bool,
    orphans: u64,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub fn new(from: R) -> Result<Self, NotACapture> {
        let (frames, header) = Frames::new(from)?;
        Ok(Self {
            header,
            frames,
            decoder: Decoder::default(),
            block: Vec::new(),
            taken: 0,
            at: 0,
            number: 0,
            told: false,
            orphans: 0,
        })
    }

    /// The next item; none at the end of the file. Errors are those of reading the file.
    pub fn next_item(&mut self) -> io::Result<Option<Item<'_>>> {
        loop {
            if self.taken < self.block.len() {
                let mut rest = &self.block[self.taken..];
                let step = self.decoder.next(&mut rest);
                self.taken = self.block.len() - rest.len();
                match step {
                    Ok(decode::Step::Record(index)) => return Ok(Some(Item::Record(self.decoder.record(index)))),
                    Ok(decode::Step::Orphan) => self.orphans += 1,
                    Ok(decode::Step::Lost(lost)) => return Ok(Some(Item::Lost(lost))),
                    Ok(decode::Step::Summary(summary)) => return Ok(Some(Item::Summary(summary))),
                    Ok(decode::Step::Complete(until)) => return Ok(Some(Item::Complete(until))),
                    Ok(decode::Step::End { goes_on }) => return Ok(Some(Item::End { goes_on })),
                    Ok(decode::Step::BlockEnds) => {}
                    Err(decode::Unsound) => return Ok(Some(self.senseless())),
                }
            } else if self.orphans > 0 {
                let damage = Damage::Orphans {
                    at: self.at,
                    records: std::mem::take(&mut self.orphans),
                };
                return Ok(Some(Item::Damage(damage)));
            } else {
                match self.frames.next(&mut self.block)? {
                    frame::Step::End => return Ok(None),
                    frame::Step::Damage { at, length, cut_off } => {
                        // A block may have been made of it.
                        self.block.clear();
                        self.taken = 0;
                        self.told = true;
                        return Ok(Some(Item::Damage(if cut_off {
                            Damage::CutOff { at }
                        } else {
                            Damage::Bytes { at, length }
                        })));
                    }
                    frame::Step::Block { number, at } => {
                        if let Some(damage) = self.begin(number, at) {
                            return Ok(Some(Item::Damage(damage)));
                        }
                    }
                }
            }
        }
    }

    fn begin(&mut self, number: u32, at: u64) -> Option<Damage> {
        self.at = at;
        let (expected, told) = (self.number, std::mem::take(&mut self.told));
        let mut rest = &self.block[..];
        // A block that was told already is not told again.
        let sound = number >= expected && self.decoder.block(&mut rest).is_ok();
        self.taken = self.block.len() - rest.len();
        if !sound {
            self.taken = self.block.len();
            return Some(Damage::Senseless { at });
        }
        self.number = number.saturating_add(1);
        (number > expected && !told).then(|| Damage::Missing {
            at,
            blocks: u64::from(number - expected),
        })
    }

    fn senseless(&mut self) -> Item<'_> {
        self.taken = self.block.len();
        Item::Damage(Damage::Senseless { at: self.at })
    }
}
