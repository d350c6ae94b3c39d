//! The iterator programs of a socket scan.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};
use aya::programs::Iter;
use kmesh_trace_common::{Counters, FoundHolder, FoundNamespace};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;

use super::error::{StartError, failed, refused};
use super::programs::{CounterMap, sum};
use super::{HOLDERS, HOLDERS_MAP, ProgramSpec, SCAN_FDS, SCAN_MAP, SCAN_NETNS, program_mut, take_map};
use crate::kernel::message::{records, unfinished};

const SCAN: &str = "scan the open sockets";

/// The maximum number of bytes of one read from an iterator.
const READ_BYTES: usize = 64 << 10;

/// The function that takes the records of a scan: whole records in the form of [`crate::kernel::message::records`]. It
/// may end the scan.
pub type Take<'a> = &'a mut dyn FnMut(Vec<u8>) -> ControlFlow<()>;

/// How a scan finds the sockets that processes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanMode {
    /// By the descriptors of all processes, whatever their network namespace.
    Descriptors,
    /// By the TCP sockets of each network namespace, because the kernel gives no typed pointer to the socket behind a
    /// descriptor.
    Namespaces,
}

/// [`FoundHolder`] as a type that aya can read.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PodHolder(FoundHolder);

// SAFETY: plain numbers, without padding.
unsafe impl aya::Pod for PodHolder {}

/// The programs that scan the open sockets. Separate from [`super::Programs`], so that draining the ring does not wait
/// for a scan.
pub struct ScanPrograms {
    ebpf: Ebpf,
    number_map: Array<MapData, u32>,
    /// The number of the current scan, from 1.
    number: u32,
    counters: Arc<CounterMap>,
    /// The number of visits by all earlier scans.
    visited_before: u64,
    scans_netns: bool,
    /// The holders of sockets by the addresses of the sockets, in [`ScanMode::Namespaces`].
    holders: Option<HashMap<MapData, u64, PodHolder>>,
}

impl ScanPrograms {
    /// Opens the maps of the loaded programs.
    pub(super) fn open(
        mut ebpf: Ebpf,
        counters: Arc<CounterMap>,
        scans_netns: bool,
        mode: ScanMode,
    ) -> Result<Self, StartError> {
        let number_map = Array::try_from(take_map(&mut ebpf, SCAN_MAP)?)
            .map_err(|error| failed("open the number of the socket scan", &error))?;
        let holders = match mode {
            ScanMode::Descriptors => None,
            ScanMode::Namespaces => {
                let map = HashMap::try_from(take_map(&mut ebpf, HOLDERS_MAP)?);
                Some(map.map_err(|error| failed("open the holders of sockets", &error))?)
            }
        };
        Ok(Self {
            ebpf,
            number_map,
            number: 0,
            counters,
            visited_before: 0,
            scans_netns,
            holders,
        })
    }

    pub fn mode(&self) -> ScanMode {
        match self.holders {
            None => ScanMode::Descriptors,
            Some(_) => ScanMode::Namespaces,
        }
    }

    /// Begins a scan. Until the next call, each connection is visited at most once, however many iterators run.
    pub fn begin(&mut self) -> Result<(), StartError> {
        self.number += 1;
        self.number_map
            .set(0, self.number, 0)
            .map_err(|error| failed(SCAN, &error))?;
        self.visited_before = self.counters()?.visited;
        Ok(())
    }

    /// Scans the descriptors of all processes.
    pub fn scan_descriptors(&mut self, take: Take<'_>) -> Result<ControlFlow<()>, StartError> {
        self.scan(SCAN_FDS, take)
    }

    /// Finds the processes that hold sockets, in [`ScanMode::Namespaces`]. Returns the network namespaces that the scan
    /// must enter.
    pub fn find_holders(&mut self) -> Result<Vec<FoundNamespace>, StartError> {
        let mut found = BTreeMap::new();
        _ = self.scan(HOLDERS, &mut |bytes| {
            for record in records(&bytes) {
                let number = |at: usize| record.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                if let (Some(netns), Some(pid)) = (number(0), number(4)) {
                    let netns = u32::from_ne_bytes(netns);
                    found.entry(netns).or_insert(FoundNamespace {
                        length: record.len() as u64,
                        netns,
                        pid: u32::from_ne_bytes(pid),
                    });
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(found.into_values().collect())
    }

    /// Removes the holders of sockets that are gone.
    pub fn remove_old_holders(&mut self) -> Result<(), StartError> {
        let Some(holders) = &mut self.holders else {
            return Ok(());
        };
        let is_old = |PodHolder(holder): &PodHolder| holder.scan != self.number;
        let all: Result<Vec<_>, _> = holders.iter().collect();
        let all = all.map_err(|error| failed(SCAN, &error))?;
        for (socket, _) in all.into_iter().filter(|(_, holder)| is_old(holder)) {
            holders.remove(&socket).map_err(|error| failed(SCAN, &error))?;
        }
        Ok(())
    }

    /// Scans the TCP sockets of the calling thread's network namespace.
    pub fn scan_netns(&mut self, take: Take<'_>) -> Result<ControlFlow<()>, StartError> {
        self.scan(SCAN_NETNS, take)
    }

    /// Returns whether [`Self::scan_netns`] works on this kernel.
    pub fn scans_netns(&self) -> bool {
        self.scans_netns
    }

    /// Returns whether the current scan is the first, which only stores the connections that it finds.
    pub fn is_first_scan(&self) -> bool {
        self.number == 1
    }

    /// Returns the number of connections that the current scan has visited so far.
    pub fn visited(&self) -> Result<u64, StartError> {
        Ok(self.counters()?.visited.saturating_sub(self.visited_before))
    }

    /// Returns the number of open connections that the current scan has not visited. Connections that begin or end
    /// during the scan make it slightly inexact.
    pub fn unvisited(&self) -> Result<u64, StartError> {
        let Counters { open, visited, .. } = self.counters()?;
        let open = u64::try_from(open).unwrap_or(0);
        Ok(open.saturating_sub(visited.saturating_sub(self.visited_before)))
    }

    fn counters(&self) -> Result<Counters, StartError> {
        sum(&self.counters).map_err(|error| failed(SCAN, &error))
    }

    /// Runs an iterator to its end.
    fn scan(&mut self, ProgramSpec { name, hook }: ProgramSpec, take: Take<'_>) -> Result<ControlFlow<()>, StartError> {
        let program = program_mut::<Iter>(&mut self.ebpf, name)?;
        let link = program.attach().map_err(|error| refused(hook, &error))?;
        let file = program
            .take_link(link)
            .map_err(|error| refused(hook, &error))?
            .into_file()
            .map_err(|error| failed(SCAN, &error))?;
        let mut bytes = Vec::with_capacity(READ_BYTES);
        loop {
            match rustix::io::read(&file, spare_capacity(&mut bytes)) {
                Ok(0) => return Ok(ControlFlow::Continue(())),
                Ok(_) => {}
                // The kernel returns EAGAIN after a million objects without output.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(failed(SCAN, &error)),
            }
            let mut rest = Vec::with_capacity(READ_BYTES);
            let whole = bytes.len() - unfinished(&bytes);
            rest.extend_from_slice(&bytes[whole..]);
            bytes.truncate(whole);
            if !bytes.is_empty() && take(bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            bytes = rest;
        }
    }
}
