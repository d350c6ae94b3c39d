//! The tracer in the kernel: loading, attaching, seeding, draining, counting. The one file that knows aya.

use std::borrow::Cow;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLink;
use aya::programs::{BtfTracePoint, Iter, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, include_bytes_aligned};
use kmesh_trace_common::{Counters, Offsets};
use rustix::thread::{MembarrierCommand, membarrier};
use thiserror::Error;

use super::btf::BtfError;
use super::{monotonic_ns, offsets};

/// Where the kernel shows the types of its structures.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The programs at tracepoints, with the tracepoint's name. In the order of attaching: the second chance is in place
/// before there is anything to miss.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("kmesh_destroy", "tcp_destroy_sock"),
    ("kmesh_reset", "tcp_send_reset"),
    ("kmesh_state", "inet_sock_set_state"),
];
const WALK: (&str, &str) = ("kmesh_seed", "task_file");
const EVENTS: &str = "KMESH_EVENTS";
const COUNTS: &str = "KMESH_COUNTS";

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

/// The running kernel's types and where they have what records need.
pub struct Types {
    btf: Btf,
    offsets: Offsets,
}

impl Types {
    /// Reads [`BTF_PATH`].
    pub fn read() -> Result<Self, StartError> {
        let vmlinux = fs::read(BTF_PATH).map_err(StartError::NoBtf)?;
        let offsets = offsets::find(&vmlinux)?;
        let btf = Btf::parse(&vmlinux, aya::Endianness::default()).map_err(|error| StartError::Failed {
            doing: "reading the kernel's type information",
            why: with_causes(&error),
        })?;
        Ok(Self { btf, offsets })
    }
}

/// The programs in the kernel, attached until dropped.
pub struct Kernel {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
    counts: PerCpuArray<MapData, Slot>,
    links: Vec<BtfTracePointLink>,
    /// Since when it traces: CLOCK_MONOTONIC, ns.
    pub began_ns: u64,
}

impl Kernel {
    /// Loads the programs, attached to nothing yet. `ring_bytes` is a power of two and a multiple of the page size.
    pub fn load(types: &Types, ring_bytes: u32) -> Result<Self, StartError> {
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&types.btf))
            .override_global("OFFSETS", bytemuck::bytes_of(&types.offsets), true)
            .map_max_entries(EVENTS, ring_bytes)
            .load(OBJECT)
            .map_err(|error| failed("loading the maps", &error))?;
        for (program, tracepoint) in TRACEPOINTS {
            program_mut::<BtfTracePoint>(&mut ebpf, program)?
                .load(tracepoint, &types.btf)
                .map_err(|error| refused(tracepoint, &error))?;
        }
        let (program, walk) = WALK;
        program_mut::<Iter>(&mut ebpf, program)?
            .load(walk, &types.btf)
            .map_err(|error| refused(walk, &error))?;
        let ring =
            RingBuf::try_from(take_map(&mut ebpf, EVENTS)?).map_err(|error| failed("mapping the ring", &error))?;
        let counts = PerCpuArray::try_from(take_map(&mut ebpf, COUNTS)?)
            .map_err(|error| failed("opening the counters", &error))?;
        Ok(Self {
            ebpf,
            ring,
            counts,
            links: Vec::new(),
            began_ns: 0,
        })
    }

    /// Begins to trace: first attaches, then seeds what was open before; a socket's storage decides which came first.
    pub fn attach(&mut self) -> Result<(), StartError> {
        for (program, tracepoint) in TRACEPOINTS {
            let program = program_mut::<BtfTracePoint>(&mut self.ebpf, program)?;
            let link = program.attach().and_then(|id| program.take_link(id));
            self.links.push(link.map_err(|error| refused(tracepoint, &error))?);
        }
        self.began_ns = monotonic_ns();
        self.seed()
    }

    /// One walk over the descriptors of all processes.
    fn seed(&mut self) -> Result<(), StartError> {
        let (name, walk) = WALK;
        let program = program_mut::<Iter>(&mut self.ebpf, name)?;
        let link = program.attach().map_err(|error| refused(walk, &error))?;
        let mut file = program
            .take_link(link)
            .map_err(|error| refused(walk, &error))?
            .into_file()
            .map_err(|error| failed("walking the open sockets", &error))?;
        // The program writes nothing: one read walks to the end, or asks to be called again after a million objects.
        let mut nothing = [0; 8];
        loop {
            match file.read(&mut nothing) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(failed("walking the open sockets", &error)),
            }
        }
    }

    /// Hands the records on the ring to `take` until there is none, or `take` says to stop; true when there is none.
    pub fn drain(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> bool {
        while let Some(record) = self.ring.next() {
            if !take(&record) {
                return false;
            }
        }
        true
    }

    /// Readable when there are records.
    pub fn ring_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// What all programs counted on all CPUs.
    pub fn counters(&self) -> io::Result<Counters> {
        let mut sum = Counters::default();
        for values in self.counts.iter() {
            let values = values.map_err(|error| io::Error::other(with_causes(&error)))?;
            for Slot(slot) in values.iter() {
                add(&mut sum, slot);
            }
        }
        Ok(sum)
    }

    /// Closes that may have been missed without a trace, at most: the kernel skipped the program at the change of state,
    /// and the second chance too. `counted`: the counters of the same moment.
    pub fn closes_skipped(&self, counted: &Counters) -> u64 {
        let made_good = counted.second_chances + counted.lost_overtaken;
        self.skipped("kmesh_state")
            .saturating_sub(made_good)
            .min(self.skipped("kmesh_destroy"))
    }

    /// How often the kernel skipped a program because it was running on that CPU already.
    fn skipped(&self, program: &str) -> u64 {
        let fd = match self.ebpf.program(program).map(|program| program.fd()) {
            Some(Ok(fd)) => fd.as_fd().as_raw_fd(),
            _ => return 0,
        };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
        let line = info.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
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

fn add(sum: &mut Counters, other: &Counters) {
    // Every field, or this does not compile.
    let Counters {
        closes,
        submitted,
        lost_ring,
        lost_storage,
        lost_overtaken,
        second_chances,
        resets,
        lost_resets,
        open,
    } = other;
    sum.closes += closes;
    sum.submitted += submitted;
    sum.lost_ring += lost_ring;
    sum.lost_storage += lost_storage;
    sum.lost_overtaken += lost_overtaken;
    sum.second_chances += second_chances;
    sum.resets += resets;
    sum.lost_resets += lost_resets;
    sum.open += open;
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
    let program = ebpf.program_mut(name).ok_or_else(|| StartError::Failed {
        doing: "opening the embedded object",
        why: format!("no program {name}"),
    })?;
    program
        .try_into()
        .map_err(|error| failed("opening the embedded object", &error))
}

fn refused(hook: &str, error: &ProgramError) -> StartError {
    if is_not_permitted(error) {
        return StartError::NotPermitted;
    }
    let why = match error {
        ProgramError::LoadError { verifier_log, io_error } => {
            let log = verifier_log.to_string();
            let last = |wanted: fn(&&str) -> bool| log.lines().rev().map(str::trim).find(wanted).map(str::to_owned);
            // The last line but the statistics is the verifier's reason.
            last(|line| !line.is_empty() && !line.starts_with("processed ") && !line.starts_with("verification time"))
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
    if is_not_permitted(error) {
        StartError::NotPermitted
    } else {
        StartError::Failed {
            doing,
            why: with_causes(error),
        }
    }
}

/// Whether EPERM is the cause.
fn is_not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    causes(error).any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(EPERM))
    })
}

const EPERM: i32 = 1;

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
