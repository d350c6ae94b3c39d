//! The tracer in the kernel: loading, attaching, seeding, draining, counting. The one file that knows aya.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::{BtfTracePoint, Iter, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use bytemuck::Zeroable as _;
use kmesh_trace_common::{Counters, FilterRules, Prefix, Reset, ProgramConfig, Snapshot, ScanRecord};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{MembarrierCommand, membarrier};
use thiserror::Error;

use super::btf::{self, BtfError};
use super::offsets::Layout;
use super::{monotonic_ns, offsets};

/// Where the kernel shows the types of its structures.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Where a connection's life shows, and where its socket goes.
const CHANGE: &str = "inet_sock_set_state";
const DESTRUCTION: &str = "tcp_destroy_sock";
/// The programs at tracepoints, with the tracepoint's name. In the order of attaching: the second chance is in place
/// before there is anything to miss.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("kmesh_destroy", DESTRUCTION),
    ("kmesh_reset", "tcp_send_reset"),
    ("kmesh_state", CHANGE),
];
/// Do what those at the same tracepoints were skipped for, on kernels that preempt programs. The kernel calls them in the order of
/// attaching.
const AGAIN: [(&str, &str); 2] = [("kmesh_destroy_backup", DESTRUCTION), ("kmesh_state_backup", CHANGE)];
/// Reports errors that the program at the change of state was skipped for, on kernels that do not preempt programs and have the
/// tracepoint (5.15).
const ERROR: (&str, &str) = ("kmesh_error", "inet_sk_error_report");
const WALK: (&str, &str) = ("kmesh_scan_fds", "task_file");
/// The program that scans the sockets of a network namespace.
const NETNS: (&str, &str) = ("kmesh_scan_netns", "tcp");
/// What the kernel's types name those hooks.
const HOOKS: &[&str] = &[
    "btf_trace_tcp_destroy_sock",
    "btf_trace_tcp_send_reset",
    "btf_trace_inet_sock_set_state",
    "btf_trace_inet_sk_error_report",
    "bpf_iter_task_file",
    "bpf_iter_tcp",
];
/// Bytes read of a walk at once.
const WALK_BUFFER: usize = 64 << 10;
const EVENTS: &str = "KMESH_EVENTS";
const COUNTS: &str = "KMESH_COUNTERS";
const FILTER: &str = "KMESH_FILTER";
const NETWORKS: &str = "KMESH_NETWORKS";
const WALKS: &str = "KMESH_SCAN";
const BEGAN: &str = "KMESH_ATTACHED";

static OBJECT: &[u8] = include_bytes_aligned!(env!("KMESH_TRACE_EBPF_OBJECT"));

/// Why this system cannot trace.
#[derive(Debug, Error)]
pub enum StartError {
    /// No BTF to be read.
    #[error("cannot read the kernel's type information ({BTF_PATH}): {0}")]
    NoBtf(#[source] io::Error),
    /// BTF without what records need.
    #[error("{0}")]
    Btf(#[from] BtfError),
    /// EPERM.
    #[error("the kernel does not permit loading eBPF programs")]
    NotPermitted,
    /// The verifier, or the system call, refused a program.
    #[error("the kernel refuses the program at {hook}: {why}")]
    Refused {
        /// What the program is for.
        hook: String,
        /// The verifier's last words, or the error.
        why: String,
    },
    /// Anything else.
    #[error("{doing}: {why}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// The error.
        why: String,
    },
}

/// One program's counters on one CPU, as aya wants them.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Slot(Counters);

// SAFETY: plain numbers, without padding.
unsafe impl aya::Pod for Slot {}

/// The filter, likewise.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Filter(FilterRules);

// SAFETY: plain numbers, without padding.
unsafe impl aya::Pod for Filter {}

/// What of the running kernel's types attaching and records need.
pub struct Types {
    /// The hooks alone.
    btf: Btf,
    layout: Layout,
    preempts_programs: bool,
    /// Whether the kernel locks each socket that it lists of a network namespace (5.15).
    locks_listed_sockets: bool,
}

impl Types {
    /// Reads [`BTF_PATH`].
    pub fn read() -> Result<Self, StartError> {
        let vmlinux = fs::read(BTF_PATH).map_err(StartError::NoBtf)?;
        let wanted = btf::Wanted {
            structures: offsets::STRUCTURES,
            variables: offsets::VARIABLES,
            enumerators: offsets::ENUMERATORS,
            hooks: HOOKS,
        };
        let types = btf::Btf::parse(&vmlinux, wanted)?;
        let (layout, preempts_programs) = (offsets::find(&types)?, offsets::preempts_programs(&types));
        let locks_listed_sockets = offsets::locks_listed_sockets(&types);
        let btf = Btf::parse(&types.of_hooks(), aya::Endianness::default()).map_err(|error| StartError::Failed {
            doing: "reading the kernel's type information",
            why: with_causes(&error),
        })?;
        Ok(Self {
            btf,
            layout,
            preempts_programs,
            locks_listed_sockets,
        })
    }

    /// The programs at tracepoints that this kernel needs.
    fn tracepoints(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let again = self.preempts_programs.then_some(AGAIN);
        TRACEPOINTS.into_iter().chain(again.into_iter().flatten())
    }

    /// Descriptors of those at this one.
    fn descriptors(&self, ebpf: &Ebpf, tracepoint: &str) -> Result<Vec<OwnedFd>, StartError> {
        let there = self.tracepoints().filter(|&(_, at)| at == tracepoint);
        there.map(|(program, _)| descriptor(ebpf, program)).collect()
    }
}

/// What the programs are to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the ring: a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Whether to tell that associations were established.
    pub opens: bool,
    /// Which checks of `rules` count: `CHECK_*`.
    pub checks: u32,
    /// The kernel half of the filters.
    pub rules: Box<FilterRules>,
    /// What its networks say: bits of [`kmesh_trace_common::term`].
    pub networks: Vec<(Prefix, u32)>,
}

/// The programs in the kernel, attached until dropped: what is drained and counted.
pub struct Kernel {
    ring: RingBuf<MapData>,
    counts: Arc<PerCpuArray<MapData, Slot>>,
    filter: Array<MapData, Filter>,
    networks: LpmTrie<MapData, [u8; 16], u32>,
    links: Vec<BtfTracePointLink>,
    /// Descriptors of the programs that must all be skipped for an end to be missed. Those at a change of state: what they were
    /// skipped for may have been made good later.
    at_change: Vec<OwnedFd>,
    at_destruction: Vec<OwnedFd>,
    /// Since when it traces: CLOCK_MONOTONIC, ns.
    pub began_ns: u64,
    /// How long the kernel took to verify and compile the programs, ns.
    pub verifier_ns: u64,
}

/// Walks over the sockets that are open. Apart from [`Kernel`], so that draining does not wait for a walk.
pub struct Walker {
    ebpf: Ebpf,
    number: Array<MapData, u32>,
    walks: u32,
    counts: Arc<PerCpuArray<MapData, Slot>>,
    /// Visits before the present scan.
    visited_before: u64,
    lists_netns: bool,
}

/// The programs in the kernel, verified and not attached yet. Only to load them takes more than CAP_BPF.
pub struct Loaded {
    ebpf: Ebpf,
    kernel: Kernel,
    tracepoints: Vec<(&'static str, &'static str)>,
    lists_netns: bool,
}

/// Loads the programs and opens their maps.
pub fn load(types: &Types, options: &Options) -> Result<Loaded, StartError> {
    let (mut ebpf, optional, verifier_ns) = load_object(types, options)?;
    let mut kernel = Kernel {
        ring: RingBuf::try_from(take_map(&mut ebpf, EVENTS)?).map_err(|error| failed("mapping the ring", &error))?,
        counts: PerCpuArray::try_from(take_map(&mut ebpf, COUNTS)?)
            .map(Arc::new)
            .map_err(|error| failed("opening the counters", &error))?,
        filter: Array::try_from(take_map(&mut ebpf, FILTER)?).map_err(|error| failed("opening the filter", &error))?,
        networks: LpmTrie::try_from(take_map(&mut ebpf, NETWORKS)?)
            .map_err(|error| failed("opening the networks", &error))?,
        links: Vec::new(),
        at_change: types.descriptors(&ebpf, CHANGE)?,
        at_destruction: types.descriptors(&ebpf, DESTRUCTION)?,
        began_ns: 0,
        verifier_ns,
    };
    kernel.set_filter(&options.rules, &options.networks)?;
    Ok(Loaded {
        ebpf,
        kernel,
        tracepoints: optional.tracepoint.into_iter().chain(types.tracepoints()).collect(),
        lists_netns: optional.lists_netns,
    })
}

impl Loaded {
    /// Attaches the programs. The first scan then finds the sockets that were open before; a socket's storage decides which of
    /// the two came first.
    pub fn attach(self) -> Result<(Kernel, Walker), StartError> {
        let Self {
            mut ebpf,
            mut kernel,
            tracepoints,
            lists_netns,
        } = self;
        for (program, tracepoint) in tracepoints {
            let program = program_mut::<BtfTracePoint>(&mut ebpf, program)?;
            let link = program.attach().and_then(|id| program.take_link(id));
            kernel.links.push(link.map_err(|error| refused(tracepoint, &error))?);
        }
        kernel.began_ns = monotonic_ns();
        Array::try_from(take_map(&mut ebpf, BEGAN)?)
            .and_then(|mut began| began.set(0, kernel.began_ns, 0))
            .map_err(|error| failed("telling the programs when they began", &error))?;
        let number = Array::try_from(take_map(&mut ebpf, WALKS)?)
            .map_err(|error| failed("opening the walk's number", &error))?;
        let walker = Walker {
            ebpf,
            number,
            walks: 0,
            counts: Arc::clone(&kernel.counts),
            visited_before: 0,
            lists_netns,
        };
        Ok((kernel, walker))
    }
}

/// Loads the programs and attaches them.
pub fn start(types: &Types, options: &Options) -> Result<(Kernel, Walker), StartError> {
    load(types, options)?.attach()
}

/// The programs that a kernel may lack the hook for.
#[derive(Default)]
struct OptionalPrograms {
    /// The program at a tracepoint, if it was loaded.
    tracepoint: Option<(&'static str, &'static str)>,
    /// Whether the program that scans the sockets of a network namespace was loaded.
    lists_netns: bool,
}

/// Makes the maps and loads the programs. Also returns which optional programs there are, and how long it took to load the
/// programs, ns.
fn load_object(types: &Types, options: &Options) -> Result<(Ebpf, OptionalPrograms, u64), StartError> {
    let mut config = ProgramConfig {
        reports_opens: options.opens.into(),
        filter_checks: options.checks,
        preempts_programs: types.preempts_programs.into(),
        snapshot_limit: snapshot_limit(options.ring_bytes),
        ..ProgramConfig::zeroed()
    };
    types.layout.complete(&mut config);
    let mut ebpf = loader()
        // The offsets are found already.
        .btf(None)
        .override_global("OFFSETS", bytemuck::bytes_of(&types.layout.offsets), true)
        .override_global("CONFIG", bytemuck::bytes_of(&config), true)
        .map_max_entries(EVENTS, options.ring_bytes)
        .map_max_entries(
            NETWORKS,
            u32::try_from(options.networks.len()).unwrap_or(u32::MAX).max(1),
        )
        .load(OBJECT)
        .map_err(|error| failed("loading the maps", &error))?;
    let began_ns = monotonic_ns();
    let optional = verify(&mut ebpf, types)?;
    Ok((ebpf, optional, monotonic_ns() - began_ns))
}

/// How full snapshots may make a ring of this size, bytes. On each CPU a task and an interrupt may both have just found room for a
/// snapshot, whose reset needs room as well.
fn snapshot_limit(ring_bytes: u32) -> u32 {
    /// What the kernel adds to each record of a ring.
    const HEADER: usize = 8;
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let snapshot = size_of::<Snapshot>() + HEADER;
    let kept_free = snapshot + 2 * cpus * (snapshot + size_of::<Reset>() + HEADER);
    ring_bytes.saturating_sub(kept_free as u32).max(ring_bytes / 2)
}

/// Loads the programs, each in a thread of its own: the kernel verifies them side by side, and one takes as long as all others.
/// Returns the optional programs that the kernel accepted.
fn verify(ebpf: &mut Ebpf, types: &Types) -> Result<OptionalPrograms, StartError> {
    let mut programs: BTreeMap<_, _> = ebpf.programs_mut().collect();
    thread::scope(|scope| {
        let netns = types.locks_listed_sockets.then_some(NETNS);
        let error = (!types.preempts_programs).then_some(ERROR);
        let loads: Vec<_> = types
            .tracepoints()
            .chain([WALK])
            .chain(netns)
            .chain(error)
            .map(|(name, hook)| {
                let program = programs.remove(name).ok_or_else(|| no_program(name))?;
                let load = thread::Builder::new()
                    .spawn_scoped(scope, move || verify_one(program, hook, &types.btf))
                    .map_err(|error| failed("starting a thread", &error))?;
                Ok::<_, StartError>((name, load))
            })
            .collect();
        let mut optional = OptionalPrograms::default();
        for load in loads {
            let (name, load) = load?;
            let loaded = load.join().unwrap_or_else(|panic| resume_unwind(panic));
            if name == NETNS.0 {
                // Where the kernel refuses it, tracing goes on: these sockets have no updates.
                optional.lists_netns = loaded.is_ok();
            } else if name == ERROR.0 {
                optional.tracepoint = loaded.is_ok().then_some(ERROR);
            } else {
                loaded?;
            }
        }
        Ok(optional)
    })
}

fn verify_one(program: &mut Program, hook: &str, btf: &Btf) -> Result<(), StartError> {
    match program {
        Program::BtfTracePoint(program) => program.load(hook, btf),
        Program::Iter(program) => program.load(hook, btf),
        _ => return Err(no_program(hook)),
    }
    .map_err(|error| refused(hook, &error))
}

/// aya's loader begins by reading all of the kernel's types into a model of its own, which nothing here needs: a quarter of
/// the start, and 16 MiB. Where it cannot open the file it goes without. There is no other thread yet that could miss the
/// descriptors meanwhile.
fn loader<'a>() -> EbpfLoader<'a> {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    let limited = setrlimit(Resource::Nofile, none);
    let loader = EbpfLoader::new();
    if limited.is_ok() {
        // Back to what it was, which is always permitted.
        _ = setrlimit(Resource::Nofile, limit);
    }
    loader
}

impl Kernel {
    /// Sets the kernel half of the filters. The checks stay those it was loaded with, and there can be no more networks
    /// than there were then.
    pub fn set_filter(&mut self, rules: &FilterRules, networks: &[(Prefix, u32)]) -> Result<(), StartError> {
        const DOING: &str = "setting the filter";
        self.filter
            .set(0, Filter(*rules), 0)
            .map_err(|error| failed(DOING, &error))?;
        let old: Result<Vec<_>, _> = self.networks.keys().collect();
        for key in old.map_err(|error| failed(DOING, &error))? {
            self.networks.remove(&key).map_err(|error| failed(DOING, &error))?;
        }
        for (prefix, terms) in networks {
            let key = Key::new(prefix.bits, prefix.address);
            self.networks
                .insert(&key, *terms, 0)
                .map_err(|error| failed(DOING, &error))?;
        }
        Ok(())
    }

    /// Hands the records on the ring to `take` until there is none, or `take` says to stop; true when there is none, nor one
    /// that a program is still writing.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> bool {
        while let Some(record) = self.ring.next() {
            if !take(&record) {
                return false;
            }
        }
        // One that a program has begun ends the loop as well: for long where the kernel preempts it, or its CPU stands still.
        // What it will tell of has happened, though, so nothing later may pass for all there was.
        let mut ring = [PollFd::from_borrowed_fd(self.ring.as_fd(), PollFlags::IN)];
        poll(&mut ring, Some(&Timespec::default())).is_ok_and(|readable| readable == 0)
    }

    /// Readable when there are records.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// What all programs counted on all CPUs.
    pub fn counters(&self) -> io::Result<Counters> {
        sum(&self.counts)
    }

    /// Closes that may have been missed without a trace, at most: the kernel skipped the program at the change of state,
    /// and the second chance too. The connection still counts as open then. (One that was never counted as open is found when
    /// its socket goes.) `counted`: the counters of the same moment.
    pub fn closes_skipped(&self, counted: &Counters) -> u64 {
        let made_good = counted.fallback_closes + counted.lost_skipped;
        let least = |programs: &[OwnedFd]| programs.iter().map(skipped_runs).min().unwrap_or(0);
        least(&self.at_change)
            .saturating_sub(made_good)
            .min(least(&self.at_destruction))
            .min(counted.open.try_into().unwrap_or(0))
    }

    /// Detaches. Programs still running on other CPUs have ended when this returns.
    pub fn detach(&mut self) {
        // In the order of attaching: what the second chance would tell of from now on is not missing.
        self.links.clear();
        // Waits for all CPUs to pass a point where no program runs. A kernel that isolates CPUs refuses; then the reader's
        // own count of what is still to come is all there is.
        _ = membarrier(MembarrierCommand::Global);
    }
}

const WALKING: &str = "walking the open sockets";

/// What takes the records of a scan, whole ones one after another as [`super::reader::records`] wants them. It may end the scan.
pub type Take<'a> = &'a mut dyn FnMut(Vec<u8>) -> ControlFlow<()>;

impl Walker {
    /// Begins a scan. It visits each connection once, whatever it goes through.
    pub fn begin(&mut self) -> Result<(), StartError> {
        self.walks += 1;
        self.number
            .set(0, self.walks, 0)
            .map_err(|error| failed(WALKING, &error))?;
        self.visited_before = self.counters()?.visited;
        Ok(())
    }

    /// Goes through the descriptors of all processes.
    pub fn scan_descriptors(&mut self, take: Take<'_>) -> Result<ControlFlow<()>, StartError> {
        self.read(WALK, take)
    }

    /// Goes through the TCP sockets of the calling thread's network namespace.
    pub fn scan_netns(&mut self, take: Take<'_>) -> Result<ControlFlow<()>, StartError> {
        self.read(NETNS, take)
    }

    /// Returns whether [`Self::scan_netns`] works on this kernel.
    pub fn lists_netns(&self) -> bool {
        self.lists_netns
    }

    /// Returns whether the present scan is the first, which only stores what it finds.
    pub fn is_first_scan(&self) -> bool {
        self.walks == 1
    }

    /// Returns how many connections the present scan has visited so far.
    pub fn visited(&self) -> Result<u64, StartError> {
        Ok(self.counters()?.visited.saturating_sub(self.visited_before))
    }

    /// Returns how many of the connections that count as open the present scan has not visited. Those that begin or end meanwhile
    /// make the number a little too large or too small.
    pub fn unvisited(&self) -> Result<u64, StartError> {
        let Counters { open, visited, .. } = self.counters()?;
        let open = u64::try_from(open).unwrap_or(0);
        Ok(open.saturating_sub(visited.saturating_sub(self.visited_before)))
    }

    fn counters(&self) -> Result<Counters, StartError> {
        sum(&self.counts).map_err(|error| failed(WALKING, &error))
    }

    fn read(&mut self, (name, walk): (&str, &str), take: Take<'_>) -> Result<ControlFlow<()>, StartError> {
        let program = program_mut::<Iter>(&mut self.ebpf, name)?;
        let link = program.attach().map_err(|error| refused(walk, &error))?;
        let file = program
            .take_link(link)
            .map_err(|error| refused(walk, &error))?
            .into_file()
            .map_err(|error| failed(WALKING, &error))?;
        let mut bytes = Vec::with_capacity(WALK_BUFFER);
        loop {
            match rustix::io::read(&file, spare_capacity(&mut bytes)) {
                Ok(0) => return Ok(ControlFlow::Continue(())),
                Ok(_) => {}
                // After a million objects without output the kernel asks to be called again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(failed(WALKING, &error)),
            }
            let mut rest = Vec::with_capacity(WALK_BUFFER);
            let whole = bytes.len() - bytes.len() % size_of::<ScanRecord>();
            rest.extend_from_slice(&bytes[whole..]);
            bytes.truncate(whole);
            if !bytes.is_empty() && take(bytes).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            bytes = rest;
        }
    }
}

/// How often the kernel skipped a program because it was running on that CPU already.
fn skipped_runs(program: &OwnedFd) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

fn descriptor(ebpf: &Ebpf, program: &'static str) -> Result<OwnedFd, StartError> {
    let none = || StartError::Failed {
        doing: "opening the embedded object",
        why: format!("no program {program}"),
    };
    let fd = ebpf
        .program(program)
        .ok_or_else(none)?
        .fd()
        .map_err(|error| failed("finding a program", &error))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| failed("keeping a program", &error))
}

fn sum(counts: &PerCpuArray<MapData, Slot>) -> io::Result<Counters> {
    let mut sum = Counters::default();
    for values in counts.iter() {
        let values = values.map_err(|error| io::Error::other(with_causes(&error)))?;
        for Slot(slot) in values.iter() {
            add(&mut sum, slot);
        }
    }
    Ok(sum)
}

fn add(sum: &mut Counters, other: &Counters) {
    // Every field, or this does not compile.
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

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::maps::Map, StartError> {
    ebpf.take_map(name).ok_or(StartError::Failed {
        doing: "opening the embedded object",
        why: format!("no map {name}"),
    })
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, StartError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| no_program(name))?;
    program
        .try_into()
        .map_err(|error| failed("opening the embedded object", &error))
}

fn no_program(name: &str) -> StartError {
    StartError::Failed {
        doing: "opening the embedded object",
        why: format!("no program {name}"),
    }
}

fn refused(hook: &str, error: &ProgramError) -> StartError {
    if is_because(error, &[Errno::PERM]) {
        return StartError::NotPermitted;
    }
    if is_because(error, &[Errno::MFILE, Errno::NFILE, Errno::NOMEM]) {
        // No fault of the program's.
        return failed("loading and attaching the programs", error);
    }
    let why = match error {
        ProgramError::LoadError { verifier_log, io_error } => {
            let log = verifier_log.to_string();
            let last = |wanted: fn(&&str) -> bool| log.lines().rev().map(str::trim).find(wanted).map(str::to_owned);
            // The last line but the statistics is the verifier's reason.
            last(|line| {
                !line.is_empty()
                    && !line.starts_with("stack depth")
                    && !line.starts_with("processed ")
                    && !line.starts_with("verification time")
            })
            .unwrap_or_else(|| io_error.to_string())
        }
        other => with_causes(other),
    };
    StartError::Refused {
        hook: hook.to_owned(),
        why,
    }
}

fn failed(doing: &'static str, error: &(dyn std::error::Error + 'static)) -> StartError {
    if is_because(error, &[Errno::PERM]) {
        StartError::NotPermitted
    } else {
        StartError::Failed {
            doing,
            why: with_causes(error),
        }
    }
}

/// Whether one of these is the cause.
fn is_because(error: &(dyn std::error::Error + 'static), numbers: &[Errno]) -> bool {
    causes(error)
        .filter_map(|cause| Errno::from_io_error(cause.downcast_ref()?))
        .any(|number| numbers.contains(&number))
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// An error with its causes, each once.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        let cause = Cow::from(cause.to_string());
        if !text.ends_with(&*cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}
