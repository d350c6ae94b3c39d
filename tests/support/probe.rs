//! What can run here, found out beforehand by trying it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::LazyLock;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::net;
use super::sock::{self, V};

/// Something that a scenario cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Packet filter rules.
    Nft,
    /// Packet filter rules that hand connections to a transparent listener.
    Tproxy,
    /// `ss -K`: CONFIG_INET_DIAG_DESTROY and iproute2.
    Kill,
    /// Virtual Ethernet.
    Veth,
    /// Cgroups of version 2, to make some in.
    Cgroup2,
    /// Cgroups that limit memory, of either version, to make some in.
    MemoryCgroup,
    /// MPTCP sockets.
    Mptcp,
    /// `unshare`, which makes a namespace of processes.
    Unshare,
    /// `unshare` that makes a time namespace with clocks that are behind.
    TimeNamespace,
    /// `setpriv`, which knows the capabilities that are needed.
    Setpriv,
    /// io_uring.
    IoUring,
    /// A terminal: tmux.
    Tmux,
    /// Time and memory of a real machine.
    Big,
    /// A wall clock that may be stepped: that of a machine of its own.
    StepClock,
    /// A kernel that preempts eBPF programs, with a scheduler that may be changed: that of a machine of its own.
    PutAside,
    /// No other scenario at the same time: it needs the machine's processors.
    Alone,
}

/// Root, and namespaces: without these nothing runs.
pub static NAMESPACES: LazyLock<Result<(), String>> = LazyLock::new(|| {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    net::in_namespace("probe", || ()).map_err(|_| "no network namespaces, or no ip command".to_owned())
});

static NFT: LazyLock<Result<(), String>> = LazyLock::new(|| {
    inside(|| {
        net::try_rules(&[
            "tcp dport 9 numgen random mod 100 < 20 drop",
            "tcp dport 9 reject with icmp type host-unreachable",
            "tcp dport 9 reject with icmpv6 type port-unreachable",
        ])
    })
});

static TPROXY: LazyLock<Result<(), String>> =
    LazyLock::new(|| inside(|| net::transparent_proxy(9, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10))));

static KILL: LazyLock<Result<(), String>> = LazyLock::new(|| {
    inside(|| {
        let pair = sock::pair(V::Four);
        net::try_run(
            "ss",
            &["-K", "-t", "-n", "-a", &format!("dport = :{}", pair.truth.dst.port())],
        )?;
        // The kernel has destroyed the socket by the time it answers ss.
        match pair.client.take_error() {
            Ok(Some(error)) if error.kind() == std::io::ErrorKind::ConnectionAborted => Ok(()),
            other => Err(format!("ss -K kills nothing here ({other:?})")),
        }
    })
});

static VETH: LazyLock<Result<(), String>> =
    LazyLock::new(|| inside(|| net::try_run("ip", &["link", "add", "type", "veth"]).map(drop)));

static CGROUP2: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let mount = mount
        .and_then(|line| line.split(' ').nth(1))
        .ok_or("cgroups of version 2 are not mounted")?;
    let probe = std::path::Path::new(mount).join(format!("kmesh-trace-probe-{}", std::process::id()));
    std::fs::create_dir(&probe)
        .and_then(|()| std::fs::remove_dir(&probe))
        .map_err(|error| format!("cannot make a cgroup below {mount}: {error}"))
});

/// Where cgroups that limit memory can be made.
pub static MEMORY_CGROUP: LazyLock<Result<std::path::PathBuf, String>> = LazyLock::new(|| {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let places = mounts.lines().map(fields).filter(|mount| match &*mount[2] {
        "cgroup" => mount[3].split(',').any(|controller| controller == "memory"),
        kind => kind == "cgroup2",
    });
    let mut problem = "no cgroups are mounted".to_owned();
    for place in places {
        let place = std::path::PathBuf::from(&place[1]);
        let probe = place.join(format!("kmesh-trace-memory-{}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&probe) {
            problem = format!("cannot make a cgroup in {}: {error}", place.display());
            continue;
        }
        let limits = ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .any(|name| probe.join(name).exists());
        std::fs::remove_dir(&probe).map_err(|error| error.to_string())?;
        if limits {
            return Ok(place);
        }
        problem = format!("cgroups in {} do not limit memory", place.display());
    }
    Err(problem)
});

static MPTCP: LazyLock<Result<(), String>> = LazyLock::new(|| {
    inside(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
        socket.map(drop).map_err(|error| format!("no MPTCP: {error}"))
    })
});

static SETPRIV: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let set = "-all,+bpf,+perfmon";
    let args = ["--inh-caps", set, "--ambient-caps", set, "--bounding-set", set, "true"];
    net::try_run("setpriv", &args).map(drop)
});

static UNSHARE: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let args = ["--pid", "--fork", "--kill-child", "--mount-proc", "true"];
    net::try_run("unshare", &args).map(drop)
});

static TIME_NAMESPACE: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let args = [
        "--time",
        "--monotonic=-60",
        "--boottime=-60",
        "--fork",
        "--kill-child",
        "true",
    ];
    net::try_run("unshare", &args).map(drop)
});

static IO_URING: LazyLock<Result<(), String>> = LazyLock::new(|| {
    let ring = io_uring_setup().map_err(|error| format!("no io_uring: {error}"))?;
    set_io_uring_file(&ring, Some(0)).map_err(|error| format!("no files in io_uring: {error}"))
});

/// Makes a ring of io_uring.
pub fn io_uring_setup() -> std::io::Result<OwnedFd> {
    // `struct io_uring_params`, all zero.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes of `parameters`.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just put this descriptor into our table, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(ring).expect("a descriptor")) })
}

/// Makes this the only file of a ring, or takes the file out.
pub fn set_io_uring_file(ring: &OwnedFd, file: Option<RawFd>) -> std::io::Result<()> {
    /// `IORING_REGISTER_FILES`.
    const REGISTER_FILES: u32 = 2;
    /// `IORING_UNREGISTER_FILES`.
    const UNREGISTER_FILES: u32 = 3;
    let (operation, count) = if file.is_some() {
        (REGISTER_FILES, 1)
    } else {
        (UNREGISTER_FILES, 0)
    };
    let first = file.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads as many descriptors as it is told.
    let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), operation, first, count) };
    if done < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

static TMUX: LazyLock<Result<(), String>> = LazyLock::new(|| {
    net::try_run("bash", &["--version"])?;
    let server = format!("kmesh-trace-probe-{}", std::process::id());
    let tmux = |args: &[&str]| net::try_run("tmux", &[&["-L", &server, "-f", "/dev/null"], args].concat());
    tmux(&["new-session", "-d", "exec bash --norc -i"])?;
    tmux(&["kill-server"]).map(drop)
});

fn inside(probe: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    net::in_namespace("probe", probe).unwrap_or_else(|_| Err("the probe itself failed".to_owned()))
}

/// Checks that this variable permits a scenario to change the whole machine's state.
fn allowed(variable: &str) -> Result<(), String> {
    super::is_set(variable)
        .then_some(())
        .ok_or_else(|| format!("{variable} is not set"))
}

/// Before Linux 7.0 an eBPF program at a tracepoint runs to its end once it has begun.
fn preempts_programs() -> Result<(), String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let preempts = major.is_some_and(|major| major >= 7);
    preempts
        .then_some(())
        .ok_or_else(|| format!("Linux {} does not preempt eBPF programs", release.trim()))
}

/// Why a scenario with these needs cannot run here.
pub fn missing(needs: &[Need]) -> Result<(), String> {
    NAMESPACES.clone()?;
    for need in needs {
        match need {
            Need::Nft => NFT.clone()?,
            Need::Tproxy => TPROXY.clone()?,
            Need::Kill => KILL.clone()?,
            Need::Veth => VETH.clone()?,
            Need::Cgroup2 => CGROUP2.clone()?,
            Need::MemoryCgroup => MEMORY_CGROUP.clone().map(drop)?,
            Need::Mptcp => MPTCP.clone()?,
            Need::Unshare => UNSHARE.clone()?,
            Need::TimeNamespace => TIME_NAMESPACE.clone()?,
            Need::Setpriv => SETPRIV.clone()?,
            Need::IoUring => IO_URING.clone()?,
            Need::Tmux => TMUX.clone()?,
            Need::Big if super::small() => return Err("KMESH_TRACE_TEST_SMALL is set".to_owned()),
            Need::StepClock => allowed("KMESH_TRACE_TEST_STEP_CLOCK")?,
            Need::PutAside => {
                allowed("KMESH_TRACE_TEST_PUT_ASIDE")?;
                preempts_programs()?;
            }
            Need::Big | Need::Alone => {}
        }
    }
    Ok(())
}
