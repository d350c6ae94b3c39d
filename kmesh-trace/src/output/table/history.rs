//! The windows that the table can show: the last ones, and the totals since the start.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::quiet::{RowState, TableRow};
use super::{Frame, Span};
use crate::rollup::{Totals, Window};

/// The maximum number of rows in all windows together. They take up to 30 MiB.
const MAX_ROWS: usize = 30_000;

/// The history of a table. The sink adds windows, and the screen shows them.
#[derive(Debug)]
pub struct History {
    frames: VecDeque<Arc<Frame>>,
    /// The number of rows in `frames`.
    rows: usize,
    max_groups: usize,
    totals: Totals,
    /// The first instant of `totals`, with the first window.
    totals_from: Option<Span>,
    /// The number of the next frame.
    next_number: u64,
    is_complete: bool,
}

/// A history that the sink and the screen share. Neither holds the lock while it waits.
#[derive(Clone, Debug)]
pub struct SharedHistory(Arc<Mutex<History>>);

impl SharedHistory {
    pub fn new(max_groups: usize) -> Self {
        Self(Arc::new(Mutex::new(History::new(max_groups))))
    }

    pub fn lock(&self) -> MutexGuard<'_, History> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl History {
    fn new(max_groups: usize) -> Self {
        Self {
            frames: VecDeque::new(),
            rows: 0,
            max_groups,
            totals: Totals::new(max_groups),
            totals_from: None,
            next_number: 0,
            is_complete: false,
        }
    }

    /// Adds a window to the totals.
    pub fn add_to_totals(&mut self, window: &Window) {
        self.totals.add(window);
        self.totals_from.get_or_insert(Span::of(window));
    }

    /// Adds a frame. Removes the oldest frames beyond the limit.
    pub fn push(&mut self, mut frame: Frame) {
        frame.number = self.next_number;
        self.next_number += 1;
        self.rows += frame.len();
        self.frames.push_back(Arc::new(frame));
        while self.frames.len() > 1 && self.rows > MAX_ROWS {
            if let Some(oldest) = self.frames.pop_front() {
                self.rows -= oldest.len();
            }
        }
    }

    /// Removes all windows, because other groups or another filter follow.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.rows = 0;
        self.totals = Totals::new(self.max_groups);
        self.totals_from = None;
        self.is_complete = false;
    }

    /// Ends the history: no window follows.
    pub fn complete(&mut self) {
        self.is_complete = true;
    }

    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    pub fn latest(&self) -> Option<&Arc<Frame>> {
        self.frames.back()
    }

    /// Returns the frame before frame `number`.
    pub fn before(&self, number: u64) -> Option<&Arc<Frame>> {
        self.frames.iter().rev().find(|frame| frame.number < number)
    }

    /// Returns the frame after frame `number`.
    pub fn after(&self, number: u64) -> Option<&Arc<Frame>> {
        self.frames.iter().find(|frame| frame.number > number)
    }

    /// Returns the position of frame `number` among the frames, from 1, and the number of frames.
    pub fn position(&self, number: u64) -> (usize, usize) {
        let before = self.frames.iter().filter(|frame| frame.number < number).count();
        (before + 1, self.frames.len())
    }

    /// Returns the latest frame up to frame `number` that `is_wanted`.
    pub fn latest_with(&self, number: u64, is_wanted: impl Fn(&Frame) -> bool) -> Option<&Arc<Frame>> {
        let frames = self.frames.iter().rev().filter(|frame| frame.number <= number);
        frames.into_iter().find(|frame| is_wanted(frame))
    }

    /// Returns the totals since the start as a frame.
    pub fn totals(&self) -> Option<Frame> {
        let (latest, from) = (self.latest()?, self.totals_from.as_ref()?);
        let rows = self.totals.rows().iter().map(|row| TableRow {
            row: row.clone(),
            state: RowState::Active,
        });
        Some(Frame {
            span: Span {
                from: from.from,
                is_partial: false,
                ..latest.span
            },
            rows: rows.collect(),
            connections: Vec::new(),
            ..Frame::clone(latest)
        })
    }
}
