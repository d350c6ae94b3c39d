//! The maps in which the programs count dropped packets, and RSTs sent without a socket.

use std::io;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use kmesh_trace_common::{Drops, RejectKey, Tuple};

use super::error::{StartError, failed, with_causes};
use crate::kernel::reasons::Reasons;
use crate::record::ReasonNames;

use super::{DROPS_MADE_MAP, DROPS_MAP, DROPS_TOTAL_MAP, REJECT_REPORT_MAP, REJECTS_MAP, REJECTS_TOTAL_MAP, take_map};

/// Defines a type that aya can read, of plain numbers.
macro_rules! pod {
    ($name:ident($type:ty)) => {
        #[repr(transparent)]
        #[derive(Clone, Copy)]
        struct $name($type);

        // SAFETY: plain numbers, without implicit padding.
        unsafe impl aya::Pod for $name {}
    };
}

pod!(PodTuple(Tuple));
pod!(PodDrops(Drops));
pod!(PodReject(RejectKey));

/// The counts of dropped packets and of RSTs sent without a socket, by the kernel's reason.
pub struct ReasonCounts {
    /// The kernel's names of the reasons.
    pub reasons: Reasons,
    drops: HashMap<MapData, PodTuple, PodDrops>,
    drops_made: PerCpuArray<MapData, u64>,
    drops_total: PerCpuArray<MapData, u64>,
    rejects_total: PerCpuArray<MapData, u64>,
    counts_drops: bool,
}

impl ReasonCounts {
    /// Opens the maps. `counts_drops`: whether the programs count dropped packets.
    pub(super) fn open(ebpf: &mut Ebpf, reasons: &Reasons, counts_drops: bool) -> Result<Self, StartError> {
        const ACTION: &str = "open the counts by reason";
        let mut open = |name| PerCpuArray::try_from(take_map(ebpf, name)?).map_err(|error| failed(ACTION, &error));
        Ok(Self {
            reasons: reasons.clone(),
            drops_made: open(DROPS_MADE_MAP)?,
            drops_total: open(DROPS_TOTAL_MAP)?,
            rejects_total: open(REJECTS_TOTAL_MAP)?,
            drops: HashMap::try_from(take_map(ebpf, DROPS_MAP)?).map_err(|error| failed(ACTION, &error))?,
            counts_drops,
        })
    }

    /// Returns whether the programs count dropped packets.
    pub fn counts_drops(&self) -> bool {
        self.counts_drops
    }

    /// Returns the dropped packets of a connection; `None` if none were counted.
    pub fn drops(&self, tuple: &Tuple) -> Option<Drops> {
        self.drops.get(&PodTuple(*tuple), 0).ok().map(|PodDrops(drops)| drops)
    }

    /// Returns the number of counts that did not fit into the map: connections whose counts it evicted for newer ones,
    /// and packets whose connection had too many kinds of drops.
    pub fn drops_evicted(&self) -> u64 {
        let entries = self.drops.keys().filter(Result::is_ok).count() as u64;
        total(&self.drops_made, 0).saturating_sub(entries) + total(&self.drops_made, 1)
    }

    /// Returns the number of TCP packets that the kernel dropped, by reason.
    pub fn drop_totals(&self) -> Vec<(Arc<str>, u64)> {
        totals(&self.reasons.drop, &self.drops_total)
    }

    /// Returns the number of RSTs that the kernel sent without a socket, by reason.
    pub fn reject_totals(&self) -> Vec<(Arc<str>, u64)> {
        totals(&self.reasons.reset, &self.rejects_total)
    }
}

/// Returns the totals of all reasons that occurred.
fn totals(names: &ReasonNames, map: &PerCpuArray<MapData, u64>) -> Vec<(Arc<str>, u64)> {
    let totals = names
        .iter()
        .map(|(reason, name)| (Arc::clone(name), total(map, reason)));
    totals.filter(|&(_, total)| total > 0).collect()
}

fn total(map: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    map.get(&index, 0).map_or(0, |values| values.iter().sum())
}

/// The counts of RSTs sent without a socket.
pub struct RejectCounts {
    counts: HashMap<MapData, PodReject, u64>,
    report_map: Array<MapData, u32>,
    /// The number of the current report.
    report: u32,
}

impl RejectCounts {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, StartError> {
        const ACTION: &str = "open the counts of rejected connections";
        Ok(Self {
            counts: HashMap::try_from(take_map(ebpf, REJECTS_MAP)?).map_err(|error| failed(ACTION, &error))?,
            report_map: Array::try_from(take_map(ebpf, REJECT_REPORT_MAP)?).map_err(|error| failed(ACTION, &error))?,
            report: 0,
        })
    }

    /// Takes the counts of all reports but the last two: a program may still add to these.
    pub fn take(&mut self) -> io::Result<Vec<(RejectKey, u64)>> {
        self.report += 1;
        self.report_map.set(0, self.report, 0).map_err(io::Error::other)?;
        let report = self.report;
        self.take_if(|key| key.report + 1 < report)
    }

    /// Takes all counts, after the programs are detached.
    pub fn take_all(&mut self) -> io::Result<Vec<(RejectKey, u64)>> {
        self.take_if(|_| true)
    }

    fn take_if(&mut self, is_due: impl Fn(&RejectKey) -> bool) -> io::Result<Vec<(RejectKey, u64)>> {
        let keys = self.counts.keys().filter_map(Result::ok);
        let keys: Vec<_> = keys.filter(|PodReject(key)| is_due(key)).collect();
        let mut counts = Vec::with_capacity(keys.len());
        for key in keys {
            // The programs may drop an entry of a full map.
            let Ok(count) = self.counts.get(&key, 0) else { continue };
            match self.counts.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => counts.push((key.0, count)),
                Err(error) => return Err(io::Error::other(with_causes(&error))),
            }
        }
        Ok(counts)
    }
}
