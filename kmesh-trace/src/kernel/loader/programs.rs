//! The attached programs: their ring, their filter and their counters.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLink;
use kmesh_trace_common::{Counters, FilterRules, Prefix};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{MembarrierCommand, membarrier};

use super::counts::RejectCounts;
use super::error::{StartError, failed, with_causes};
use super::{COUNTERS_MAP, DESTROY, EVENTS_MAP, FILTER_MAP, KernelTypes, NETWORKS_MAP, STATE, take_map};

/// [`Counters`] of one program on one CPU, as a type that aya can read.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct PodCounters(Counters);

// SAFETY: plain numbers, without padding.
unsafe impl aya::Pod for PodCounters {}

/// [`FilterRules`] as a type that aya can write.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodRules(FilterRules);

// SAFETY: plain numbers, without padding.
unsafe impl aya::Pod for PodRules {}

/// The counters of all programs on all CPUs.
pub type CounterMap = PerCpuArray<MapData, PodCounters>;

/// The programs in the kernel, attached until dropped.
pub struct Programs {
    ring: RingBuf<MapData>,
    counters: Arc<CounterMap>,
    rules: Array<MapData, PodRules>,
    networks: LpmTrie<MapData, [u8; 16], u32>,
    links: Vec<BtfTracePointLink>,
    /// Descriptors of the state program and its backups.
    state_programs: Vec<OwnedFd>,
    /// Descriptors of the destroy fallback and its backups.
    destroy_programs: Vec<OwnedFd>,
    /// The counts of RSTs sent without a socket, if the programs count them.
    pub rejects: Option<RejectCounts>,
    /// The time when tracing began: CLOCK_MONOTONIC, ns.
    pub began_ns: u64,
    /// The time that the kernel took to verify and compile the programs, ns.
    pub verifier_ns: u64,
}

impl Programs {
    /// Opens the maps of the loaded programs.
    pub(super) fn open(ebpf: &mut Ebpf, types: &KernelTypes, verifier_ns: u64) -> Result<Self, StartError> {
        Ok(Self {
            ring: RingBuf::try_from(take_map(ebpf, EVENTS_MAP)?).map_err(|error| failed("map the ring", &error))?,
            counters: PerCpuArray::try_from(take_map(ebpf, COUNTERS_MAP)?)
                .map(Arc::new)
                .map_err(|error| failed("open the counters", &error))?,
            rules: Array::try_from(take_map(ebpf, FILTER_MAP)?)
                .map_err(|error| failed("open the kernel filter", &error))?,
            networks: LpmTrie::try_from(take_map(ebpf, NETWORKS_MAP)?)
                .map_err(|error| failed("open the networks of the kernel filter", &error))?,
            links: Vec::new(),
            state_programs: types.descriptors(ebpf, STATE)?,
            destroy_programs: types.descriptors(ebpf, DESTROY)?,
            rejects: None,
            began_ns: 0,
            verifier_ns,
        })
    }

    pub(super) fn add_link(&mut self, link: BtfTracePointLink) {
        self.links.push(link);
    }

    pub(super) fn shared_counters(&self) -> Arc<CounterMap> {
        Arc::clone(&self.counters)
    }

    /// Replaces the rules of the kernel filter. The enabled checks stay, and there may be no more networks than at the
    /// start.
    pub fn set_filter(&mut self, rules: &FilterRules, networks: &[(Prefix, u32)]) -> Result<(), StartError> {
        const ACTION: &str = "set the kernel filter";
        self.rules
            .set(0, PodRules(*rules), 0)
            .map_err(|error| failed(ACTION, &error))?;
        let old: Result<Vec<_>, _> = self.networks.keys().collect();
        for key in old.map_err(|error| failed(ACTION, &error))? {
            self.networks.remove(&key).map_err(|error| failed(ACTION, &error))?;
        }
        for (prefix, terms) in networks {
            let key = Key::new(prefix.bits, prefix.address);
            self.networks
                .insert(&key, *terms, 0)
                .map_err(|error| failed(ACTION, &error))?;
        }
        Ok(())
    }

    /// Passes the records of the ring to `take` until the ring is empty or `take` returns false. Returns whether the
    /// ring is empty, and no program is writing a record.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> bool {
        while let Some(record) = self.ring.next() {
            if !take(&record) {
                return false;
            }
        }
        // A record that a program is writing ends the loop too. It may stay unfinished for long, if the kernel preempts
        // the program or its CPU stands still. Its event has happened, so the ring must not count as empty.
        let mut ring = [PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN)];
        poll(&mut ring, Some(&Timespec::default())).is_ok_and(|readable| readable == 0)
    }

    /// Returns a descriptor that is readable while the ring has records.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// Returns the sum of the counters of all programs on all CPUs.
    pub fn counters(&self) -> io::Result<Counters> {
        sum(&self.counters)
    }

    /// Returns an upper bound on the closes that all state programs and all destroy fallbacks missed without a trace.
    /// Such a connection still counts as open. (A connection that never counted as open is found when its socket is
    /// destroyed.) `counters`: the counters at the same time.
    pub fn closes_skipped(&self, counters: &Counters) -> u64 {
        let found = counters.fallback_closes + counters.lost_skipped;
        let skipped_by_all = |programs: &[OwnedFd]| programs.iter().map(skipped_runs).min().unwrap_or(0);
        skipped_by_all(&self.state_programs)
            .saturating_sub(found)
            .min(skipped_by_all(&self.destroy_programs))
            .min(counters.open.try_into().unwrap_or(0))
    }

    /// Detaches the programs. No program runs on any CPU when this returns.
    pub fn detach(&mut self) {
        // In the order of attaching: closes that only the destroy fallback would report from now on are not missing.
        self.links.clear();
        // Waits until every CPU has passed a point where no program runs. A kernel that isolates CPUs refuses; then the
        // reader relies on the counters alone.
        _ = membarrier(MembarrierCommand::Global);
    }
}

/// Returns how often the kernel skipped a program because the program was running on that CPU already.
fn skipped_runs(program: &OwnedFd) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Returns the sum of the counters of all programs on all CPUs.
pub fn sum(counters: &CounterMap) -> io::Result<Counters> {
    let mut sum = Counters::default();
    for values in counters.iter() {
        let values = values.map_err(|error| io::Error::other(with_causes(&error)))?;
        for PodCounters(values) in values.iter() {
            add(&mut sum, values);
        }
    }
    Ok(sum)
}

fn add(sum: &mut Counters, other: &Counters) {
    // Names every field, so that a new one does not compile without its line here.
    let Counters {
        closes,
        submitted,
        lost_ring,
        lost_storage,
        lost_skipped,
        fallback_closes,
        filtered,
        opens,
        lost_opens,
        resets,
        open,
        visited,
    } = other;
    sum.closes += closes;
    sum.submitted += submitted;
    sum.lost_ring += lost_ring;
    sum.lost_storage += lost_storage;
    sum.lost_skipped += lost_skipped;
    sum.fallback_closes += fallback_closes;
    sum.filtered += filtered;
    sum.opens += opens;
    sum.lost_opens += lost_opens;
    sum.resets += resets;
    sum.open += open;
    sum.visited += visited;
}
