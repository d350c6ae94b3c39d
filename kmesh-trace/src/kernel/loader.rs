//! Loads and attaches the eBPF programs. Only this module names aya.

mod counts;
mod error;
mod programs;
mod scan_programs;
mod typed_sockets;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

use aya::maps::{Array, Map};
use aya::programs::{BtfTracePoint, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use bytemuck::Zeroable as _;
use kmesh_trace_common::{ABSENT, FilterRules, Prefix, ProgramConfig, Reset, TurnsSnapshot};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::error::{failed, missing_program, refused, with_causes};
use self::typed_sockets::has_typed_sockets;
use super::btf;
use super::offsets::{self, Layout};
use super::reasons::{self, Reasons};
use crate::clocks::{monotonic_ns, tick_ns};

pub use self::counts::{ReasonCounts, RejectCounts};
pub use self::error::StartError;
pub use self::programs::Programs;
pub use self::scan_programs::{ScanMode, ScanPrograms, Take};

/// The file with the kernel's type information.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The types of conntrack, in kernels where it is a loaded module.
const CONNTRACK_BTF_PATH: &str = "/sys/kernel/btf/nf_conntrack";

/// An eBPF program and the hook that it is attached to.
#[derive(Clone, Copy)]
struct ProgramSpec {
    name: &'static str,
    hook: &'static str,
}

impl ProgramSpec {
    const fn backup(self, name: &'static str) -> Self {
        Self { name, ..self }
    }
}

const STATE: ProgramSpec = ProgramSpec {
    name: "kmesh_state",
    hook: "inet_sock_set_state",
};
const DESTROY: ProgramSpec = ProgramSpec {
    name: "kmesh_destroy",
    hook: "tcp_destroy_sock",
};
const RESET: ProgramSpec = ProgramSpec {
    name: "kmesh_reset",
    hook: "tcp_send_reset",
};
/// Reports errors for which the kernel skips `kmesh_state`. For kernels that have the tracepoint (5.15) and do not
/// preempt programs.
const ERROR: ProgramSpec = ProgramSpec {
    name: "kmesh_error",
    hook: "inet_sk_error_report",
};
/// The programs of every kernel, in the order of attaching: the destroy fallback is in place before the kernel can skip
/// `kmesh_state`.
const TRACEPOINTS: [ProgramSpec; 3] = [DESTROY, RESET, STATE];
/// The backup programs, for kernels that preempt programs. Each handles the events at its tracepoint for which the
/// kernel skipped the programs before it. The kernel calls the programs of a tracepoint in the order of attaching.
const BACKUPS: [ProgramSpec; 6] = [
    DESTROY.backup("kmesh_destroy_2"),
    RESET.backup("kmesh_reset_2"),
    STATE.backup("kmesh_state_2"),
    DESTROY.backup("kmesh_destroy_3"),
    RESET.backup("kmesh_reset_3"),
    STATE.backup("kmesh_state_3"),
];
/// Counts dropped packets, if the user asks for it.
const DROP: ProgramSpec = ProgramSpec {
    name: "kmesh_drop",
    hook: "kfree_skb",
};
/// The programs that measure turns, if the user asks for it.
const TURNS: [ProgramSpec; 2] = [
    ProgramSpec {
        name: "kmesh_data_ready",
        hook: "sk_data_ready",
    },
    ProgramSpec {
        name: "kmesh_send",
        hook: "sock_send_length",
    },
];
const SCAN_FDS: ProgramSpec = ProgramSpec {
    name: "kmesh_scan_fds",
    hook: "task_file",
};
/// Finds the processes that hold sockets, in [`ScanMode::Namespaces`].
const HOLDERS: ProgramSpec = ProgramSpec {
    name: "kmesh_holders",
    hook: "task_file",
};
const SCAN_NETNS: ProgramSpec = ProgramSpec {
    name: "kmesh_scan_netns",
    hook: "tcp",
};
/// The names of the hooks in the kernel's BTF.
const BTF_HOOKS: &[&str] = &[
    "btf_trace_tcp_destroy_sock",
    reasons::RESET_HOOK,
    reasons::DROP_HOOK,
    "btf_trace_inet_sock_set_state",
    "btf_trace_inet_sk_error_report",
    DATA_READY_HOOK,
    SEND_HOOK,
    TASK_FILE_HOOK,
    "bpf_iter_tcp",
];

const TASK_FILE_HOOK: &str = "bpf_iter_task_file";
const DATA_READY_HOOK: &str = "btf_trace_sk_data_ready";
const SEND_HOOK: &str = "btf_trace_sock_send_length";

const EVENTS_MAP: &str = "KMESH_EVENTS";
const COUNTERS_MAP: &str = "KMESH_COUNTERS";
const FILTER_MAP: &str = "KMESH_FILTER";
const NETWORKS_MAP: &str = "KMESH_NETWORKS";
const SCAN_MAP: &str = "KMESH_SCAN";
const HOLDERS_MAP: &str = "KMESH_HOLDERS";
const ATTACHED_MAP: &str = "KMESH_ATTACHED";
const DROPS_MAP: &str = "KMESH_DROPS";
const DROPS_MADE_MAP: &str = "KMESH_DROPS_MADE";
const DROPS_TOTAL_MAP: &str = "KMESH_DROPS_TOTAL";
const REJECTS_MAP: &str = "KMESH_REJECTS";
const REJECT_REPORT_MAP: &str = "KMESH_REJECT_REPORT";
const REJECTS_TOTAL_MAP: &str = "KMESH_REJECTS_TOTAL";

/// The number of connections whose dropped packets are counted: 4 MiB.
const MAX_DROP_TUPLES: u32 = 16_384;
/// The number of sockets whose holders a scan finds, in [`ScanMode::Namespaces`]. 2 MiB, and 128 bytes for each socket.
const MAX_HOLDERS: u32 = 131_072;
/// The number of clients and ports for which RSTs without a socket are counted between two reports.
const MAX_REJECTS: u32 = 32_768;

const OPEN_OBJECT: &str = "open the embedded eBPF object";

static OBJECT: &[u8] = include_bytes_aligned!(env!("KMESH_TRACE_EBPF_OBJECT"));

/// The types of the running kernel that attaching and records need.
pub struct KernelTypes {
    /// BTF that has only the hooks.
    hooks: Btf,
    layout: Layout,
    /// The id of the function [`TASK_FILE_HOOK`].
    task_file_id: Option<u32>,
    preempts_programs: bool,
    /// Whether the iterator over a network namespace's TCP sockets locks each socket (5.15).
    locks_listed_sockets: bool,
    /// Whether the kernel has what measuring turns needs (6.3).
    pub has_turns: bool,
    /// The kernel's names of reasons.
    pub reasons: Reasons,
}

impl KernelTypes {
    pub fn read() -> Result<Self, StartError> {
        let mut vmlinux = fs::read(BTF_PATH).map_err(StartError::NoBtf)?;
        // Without this module, no packet has a conntrack entry.
        if let Ok(module) = fs::read(CONNTRACK_BTF_PATH) {
            vmlinux.extend(module);
        }
        let wanted = btf::Wanted {
            structures: offsets::STRUCTURES,
            variables: offsets::VARIABLES,
            enumerators: offsets::ENUMERATORS,
            enums: reasons::ENUMS,
            hooks: BTF_HOOKS,
        };
        let types = btf::Btf::parse(&vmlinux, wanted)?;
        Ok(Self {
            hooks: Btf::parse(&types.of_hooks(), aya::Endianness::default()).map_err(|error| StartError::Failed {
                action: "read the kernel's type information",
                reason: with_causes(&error),
            })?,
            layout: offsets::find(&types)?,
            task_file_id: types.hook_id(TASK_FILE_HOOK),
            preempts_programs: offsets::preempts_programs(&types),
            has_turns: [DATA_READY_HOOK, SEND_HOOK]
                .iter()
                .all(|hook| types.argument_count(hook).is_some()),
            locks_listed_sockets: offsets::locks_listed_sockets(&types),
            reasons: Reasons::find(&types),
        })
    }

    /// Returns whether the programs can read the conntrack entry of each packet that has one. The entry has the
    /// addresses before and after a translation.
    pub fn describes_conntrack(&self) -> bool {
        let offsets = &self.layout.offsets;
        offsets.conntrack_family != ABSENT || offsets.skb_nfct == ABSENT
    }

    /// Returns how scans find sockets on this kernel.
    fn scan_mode(&self) -> ScanMode {
        let has_typed_sockets = |id| has_typed_sockets(id, self.layout.offsets.socket_sk);
        match self.task_file_id {
            Some(id) if self.locks_listed_sockets && !has_typed_sockets(id) => ScanMode::Namespaces,
            _ => ScanMode::Descriptors,
        }
    }

    /// Returns the programs at tracepoints that every run on this kernel needs.
    fn tracepoints(&self) -> impl Iterator<Item = ProgramSpec> {
        let backups = self.preempts_programs.then_some(BACKUPS);
        TRACEPOINTS.into_iter().chain(backups.into_iter().flatten())
    }

    /// Returns descriptors of the programs at the hook of `spec`.
    fn descriptors(&self, ebpf: &Ebpf, spec: ProgramSpec) -> Result<Vec<OwnedFd>, StartError> {
        self.tracepoints()
            .filter(|program| program.hook == spec.hook)
            .map(|program| descriptor(ebpf, program.name))
            .collect()
    }
}

/// The options of the programs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The size of the ring: a power of two and a multiple of the page size.
    pub ring_bytes: u32,
    /// Whether the programs report established connections.
    pub opens: bool,
    /// The enabled checks of `rules`, as bits `CHECK_*`.
    pub checks: u32,
    /// The rules of the kernel filter.
    pub rules: Box<FilterRules>,
    /// The networks of the kernel filter, each with bits of [`kmesh_trace_common::term`].
    pub networks: Vec<(Prefix, u32)>,
    /// Whether the programs count dropped packets.
    pub drops: bool,
    /// Whether the programs measure turns.
    pub turns: bool,
    /// Whether the programs count RSTs that the kernel sends without a socket.
    pub rejects: bool,
    /// Whether socket scans report listeners.
    pub listeners: bool,
}

impl Options {
    fn turn_programs(&self) -> impl Iterator<Item = ProgramSpec> {
        self.turns.then_some(TURNS).into_iter().flatten()
    }
}

/// The programs in the kernel, verified and not attached yet. Only loading needs more than CAP_BPF.
pub struct LoadedPrograms {
    ebpf: Ebpf,
    programs: Programs,
    /// The counts of dropped packets and of rejected connections.
    reason_counts: ReasonCounts,
    tracepoints: Vec<ProgramSpec>,
    scans_netns: bool,
    scan_mode: ScanMode,
}

/// Loads the programs and opens their maps.
pub fn load(types: &KernelTypes, options: &Options) -> Result<LoadedPrograms, StartError> {
    if options.drops && !types.reasons.has_drops() {
        return Err(StartError::NoDropReasons);
    }
    if options.turns && !types.has_turns {
        return Err(StartError::NoTurnTracepoints);
    }
    if options.rejects && !types.reasons.has_resets() {
        return Err(StartError::NoResetReasons);
    }
    let scan_mode = types.scan_mode();
    let mut ebpf = create_maps(types, options, scan_mode)?;
    let began_ns = monotonic_ns();
    let optional = verify(&mut ebpf, types, options, scan_mode)?;
    let verifier_ns = monotonic_ns() - began_ns;
    let mut programs = Programs::open(&mut ebpf, types, verifier_ns)?;
    programs.set_filter(&options.rules, &options.networks)?;
    programs.rejects = options.rejects.then(|| RejectCounts::open(&mut ebpf)).transpose()?;
    Ok(LoadedPrograms {
        reason_counts: ReasonCounts::open(&mut ebpf, &types.reasons, options.drops)?,
        ebpf,
        programs,
        tracepoints: optional
            .error
            .into_iter()
            .chain(options.drops.then_some(DROP))
            .chain(options.turn_programs())
            .chain(types.tracepoints())
            .collect(),
        scans_netns: optional.scans_netns,
        scan_mode,
    })
}

impl LoadedPrograms {
    pub fn scan_mode(&self) -> ScanMode {
        self.scan_mode
    }

    /// Attaches the programs. The first socket scan then finds the sockets that are older. If a program and the scan
    /// find the same socket, its storage shows which one came first.
    pub fn attach(self) -> Result<(Programs, ScanPrograms, ReasonCounts), StartError> {
        let Self {
            mut ebpf,
            mut programs,
            reason_counts,
            tracepoints,
            scans_netns,
            scan_mode,
        } = self;
        for ProgramSpec { name, hook } in tracepoints {
            let program = program_mut::<BtfTracePoint>(&mut ebpf, name)?;
            let link = program.attach().and_then(|id| program.take_link(id));
            programs.add_link(link.map_err(|error| refused(hook, &error))?);
        }
        programs.began_ns = monotonic_ns();
        Array::try_from(take_map(&mut ebpf, ATTACHED_MAP)?)
            .and_then(|mut attached| attached.set(0, programs.began_ns, 0))
            .map_err(|error| failed("store the time of the start in the eBPF programs", &error))?;
        let scan_programs = ScanPrograms::open(ebpf, programs.shared_counters(), scans_netns, scan_mode)?;
        Ok((programs, scan_programs, reason_counts))
    }
}

/// Loads the programs and attaches them.
pub fn start(types: &KernelTypes, options: &Options) -> Result<(Programs, ScanPrograms, ReasonCounts), StartError> {
    load(types, options)?.attach()
}

/// Creates the maps, and sets the globals of the programs.
fn create_maps(types: &KernelTypes, options: &Options, scan_mode: ScanMode) -> Result<Ebpf, StartError> {
    let mut config = ProgramConfig {
        reports_opens: options.opens.into(),
        filter_checks: options.checks,
        preempts_programs: types.preempts_programs.into(),
        snapshot_limit: snapshot_limit(types, options.ring_bytes),
        has_reset_reasons: types.reasons.has_resets().into(),
        counts_rejects: options.rejects.into(),
        counts_drops: options.drops.into(),
        counts_turns: options.turns.into(),
        reports_listeners: options.listeners.into(),
        tick_ns: tick_ns(),
        drop_reasons: types.reasons.counted_drops(),
        ..ProgramConfig::zeroed()
    };
    types.layout.complete(&mut config);
    let networks = u32::try_from(options.networks.len()).unwrap_or(u32::MAX).max(1);
    loader_without_btf()
        .btf(None)
        .override_global("OFFSETS", bytemuck::bytes_of(&types.layout.offsets), true)
        .override_global("CONFIG", bytemuck::bytes_of(&config), true)
        .map_max_entries(EVENTS_MAP, options.ring_bytes)
        .map_max_entries(NETWORKS_MAP, networks)
        .map_max_entries(DROPS_MAP, if options.drops { MAX_DROP_TUPLES } else { 1 })
        .map_max_entries(
            HOLDERS_MAP,
            if scan_mode == ScanMode::Namespaces {
                MAX_HOLDERS
            } else {
                1
            },
        )
        .map_max_entries(REJECTS_MAP, if options.rejects { MAX_REJECTS } else { 1 })
        .load(OBJECT)
        .map_err(|error| failed("create the eBPF maps", &error))
}

/// Returns the number of bytes that snapshots may fill in a ring of this size. On each CPU, a task and an interrupt may
/// both have just found capacity for a snapshot, whose reset needs capacity as well. If the kernel preempts programs,
/// each program that reports closes may have.
fn snapshot_limit(types: &KernelTypes, ring_bytes: u32) -> u32 {
    /// The bytes that the kernel adds to each record of a ring.
    const HEADER: usize = 8;
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let snapshot = size_of::<TurnsSnapshot>() + HEADER;
    let reporting = if types.preempts_programs { 6 } else { 2 };
    let reserved = snapshot + reporting * cpus * (snapshot + size_of::<Reset>() + HEADER);
    ring_bytes.saturating_sub(reserved as u32).max(ring_bytes / 2)
}

/// The programs whose hooks a kernel may lack.
#[derive(Default)]
struct OptionalPrograms {
    /// [`ERROR`], if it was loaded.
    error: Option<ProgramSpec>,
    /// Whether [`SCAN_NETNS`] was loaded.
    scans_netns: bool,
}

/// Loads the programs, in as many threads as there are processors, because the kernel verifies them in parallel. The
/// kernel's memory for each verification counts as this process's. Returns the optional programs that the kernel
/// accepted.
fn verify(
    ebpf: &mut Ebpf,
    types: &KernelTypes,
    options: &Options,
    scan_mode: ScanMode,
) -> Result<OptionalPrograms, StartError> {
    let mut programs: BTreeMap<_, _> = ebpf.programs_mut().collect();
    let scan_held = match scan_mode {
        ScanMode::Descriptors => SCAN_FDS,
        ScanMode::Namespaces => HOLDERS,
    };
    // The verification of a scan takes longest, so it begins first.
    let specs = (types.locks_listed_sockets.then_some(SCAN_NETNS).into_iter())
        .chain([scan_held])
        .chain(types.tracepoints())
        .chain(options.drops.then_some(DROP))
        .chain(options.turn_programs())
        .chain((!types.preempts_programs).then_some(ERROR));
    let loads = specs.map(|spec| {
        Ok((
            spec,
            programs.remove(spec.name).ok_or_else(|| missing_program(spec.name))?,
        ))
    });
    let loads = Mutex::new(loads.collect::<Result<Vec<_>, StartError>>()?.into_iter());
    let verify_some = || {
        let mut results = Vec::new();
        loop {
            // In the condition of a `while let`, the lock would live as long as the verification.
            let next = loads.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((ProgramSpec { name, hook }, program)) = next else {
                return results;
            };
            results.push((name, verify_one(program, hook, &types.hooks)));
        }
    };
    let results = thread::scope(|scope| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..processors)
            .map(|_| thread::Builder::new().spawn_scoped(scope, verify_some))
            .collect();
        let mut results = Vec::new();
        for thread in threads {
            let thread = thread.map_err(|error| failed("start a thread", &error))?;
            results.extend(thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        Ok::<_, StartError>(results)
    })?;
    let mut optional = OptionalPrograms::default();
    for (name, result) in results {
        if name == SCAN_NETNS.name && scan_mode == ScanMode::Descriptors {
            // Without this program, sockets without a descriptor have no updates.
            optional.scans_netns = result.is_ok();
        } else if name == ERROR.name {
            optional.error = result.is_ok().then_some(ERROR);
        } else {
            optional.scans_netns |= name == SCAN_NETNS.name;
            result?;
        }
    }
    Ok(optional)
}

fn verify_one(program: &mut Program, hook: &str, btf: &Btf) -> Result<(), StartError> {
    match program {
        Program::BtfTracePoint(program) => program.load(hook, btf),
        Program::Iter(program) => program.load(hook, btf),
        _ => return Err(missing_program(hook)),
    }
    .map_err(|error| refused(hook, &error))
}

/// Returns aya's loader without the kernel's BTF, which costs 16 MiB and a quarter of the start, and which nothing here
/// uses. aya skips the BTF if it cannot open the file, so this function takes all descriptors away for a moment. No
/// other thread runs yet that could miss them.
fn loader_without_btf<'a>() -> EbpfLoader<'a> {
    let limit = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..limit
    };
    let limited = setrlimit(Resource::Nofile, none);
    let loader = EbpfLoader::new();
    if limited.is_ok() {
        // Raising the limit to its old value is always permitted.
        _ = setrlimit(Resource::Nofile, limit);
    }
    loader
}

/// Duplicates the descriptor of a program.
fn descriptor(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, StartError> {
    let program = ebpf.program(name).ok_or_else(|| missing_program(name))?;
    let fd = program.fd().map_err(|error| failed(OPEN_OBJECT, &error))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| failed("duplicate a descriptor", &error))
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, StartError> {
    ebpf.take_map(name).ok_or_else(|| StartError::Failed {
        action: OPEN_OBJECT,
        reason: format!("it has no map {name}"),
    })
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, StartError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| missing_program(name))?;
    program.try_into().map_err(|error| failed(OPEN_OBJECT, &error))
}
