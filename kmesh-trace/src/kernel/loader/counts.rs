//! The maps in which the programs count dropped packets, and RSTs sent without a socket.

use std::io;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use kmesh_trace_common::{Drops, RejectKey, Tuple};

use super::error::{StartError, failed, with_causes};
use crate::kernel::reasons::Reasons;
use crate::record::ReasonNames;

use super::{DROPS_MADE_MAP, DROPS_MAP, DROPS_TOTAL_MAP, REJECTS_MAP, REJECTS_TOTAL_MAP, take_map};

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

    /// Returns the number of counts that the map had no room for: connections whose counts it dropped for newer ones,
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
pub struct RejectCounts(HashMap<MapData, PodReject, u64>);

impl RejectCounts {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, StartError> {
        HashMap::try_from(take_map(ebpf, REJECTS_MAP)?)
            .map(Self)
            .map_err(|error| failed("open the counts of rejected connections", &error))
    }

    /// Takes all counts out of the map.
    pub fn take(&mut self) -> io::Result<Vec<(RejectKey, u64)>> {
        let keys: Vec<_> = self.0.keys().filter_map(Result::ok).collect();
        let mut counts = Vec::with_capacity(keys.len());
        for key in keys {
            // The programs may drop an entry meanwhile, and may count between the two calls: at most one RST each is
            // missed.
            let Ok(count) = self.0.get(&key, 0) else { continue };
            match self.0.remove(&key) {
                Ok(()) | Err(MapError::KeyNotFound) => counts.push((key.0, count)),
                Err(error) => return Err(io::Error::other(with_causes(&error))),
            }
        }
        Ok(counts)
    }
}
