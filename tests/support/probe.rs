//! Checks whether this machine can run a scenario, by trying each requirement.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::sock::{self, IpVersion};
use super::{delay, net};

/// Something that a scenario cannot run without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// nftables: packet filter rules.
    Nft,
    /// nftables rules that redirect connections to a transparent listener.
    Tproxy,
    /// `ss -K`: iproute2, and a kernel with CONFIG_INET_DIAG_DESTROY.
    SocketDestroy,
    /// Token buckets, which limit the rate of a device, with iproute2.
    Tbf,
    /// Virtual Ethernet devices, with iproute2.
    Veth,
    /// TUN devices, with iproute2.
    Tun,
    /// Writable cgroups of version 2.
    Cgroup2,
    /// Writable cgroups, of either version, that limit memory.
    MemoryCgroup,
    Mptcp,
    /// `unshare`, which creates a pid namespace.
    Unshare,
    /// `unshare` that creates a time namespace, with clocks that are behind.
    TimeNamespace,
    /// `setpriv` that knows CAP_BPF and CAP_PERFMON.
    Setpriv,
    /// A kernel that gives the reason for each RST that it sends (Linux 6.10).
    ResetReasons,
    /// A kernel that does not give the reason for a RST.
    NoResetReasons,
    /// A kernel with the tracepoints `sk_data_ready` and `sock_send_length` (Linux 6.3).
    Turns,
    /// A kernel without these tracepoints.
    NoTurns,
    /// A kernel on which a socket that has listened may connect, and one that has connected may listen. Some refuse
    /// both.
    RoleChange,
    /// A kernel whose programs may use the socket behind a descriptor, so that scans find sockets by descriptors.
    DescriptorScan,
    /// A kernel where scans enter each network namespace instead.
    NamespaceScan,
    IoUring,
    /// tmux, as a terminal.
    Tmux,
    /// Python's HTTP server and client.
    Python,
    /// The programs redis-server and redis-cli.
    Redis,
    /// nghttpd and nghttp, an HTTP/2 server and client.
    Http2,
    /// PostgreSQL's server and client, and `setpriv`, since the server refuses to run as root.
    Postgres,
    /// The speed and memory of a real machine.
    FullSize,
    /// A wall clock that the test may set: a dedicated machine.
    StepClock,
    /// A kernel that preempts eBPF programs, and a scheduler that the test may configure: a dedicated machine.
    Preemption,
    /// No other scenario at the same time, since this one needs the machine's processors or its global state.
    Exclusive,
}

type Probe = LazyLock<Result<(), String>>;

/// Root and network namespaces: no scenario runs without them.
pub static NAMESPACES: Probe = LazyLock::new(|| {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    net::in_namespace("probe", || ()).map_err(|_| "no network namespaces, or no ip command".to_owned())
});

static NFT: Probe = LazyLock::new(|| {
    in_namespace(|| {
        net::try_set_packet_filter(&[
            "tcp dport 9 numgen random mod 100 < 20 drop",
            "tcp dport 9 reject with icmp type host-unreachable",
            "tcp dport 9 reject with icmpv6 type port-unreachable",
        ])
    })
});

static TPROXY: Probe =
    LazyLock::new(|| in_namespace(|| net::transparent_proxy(9, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10))));

static SOCKET_DESTROY: Probe = LazyLock::new(|| {
    in_namespace(|| {
        let pair = sock::pair(IpVersion::V4);
        net::try_run(
            "ss",
            &["-K", "-t", "-n", "-a", &format!("dport = :{}", pair.truth.dst.port())],
        )?;
        // When ss returns, the kernel has destroyed the socket.
        match pair.client.take_error() {
            Ok(Some(error)) if error.kind() == std::io::ErrorKind::ConnectionAborted => Ok(()),
            other => Err(format!("ss -K destroys no socket here ({other:?})")),
        }
    })
});

static TBF: Probe = LazyLock::new(|| {
    let args = "qdisc add dev lo root tbf rate 1mbit burst 65550 latency 1s";
    in_namespace(|| net::try_run("tc", &args.split(' ').collect::<Vec<_>>()).map(drop))
});

static VETH: Probe = LazyLock::new(|| in_namespace(|| net::try_run("ip", &["link", "add", "type", "veth"]).map(drop)));

static TUN: Probe = LazyLock::new(|| {
    let [address, peer] = [1, 2].map(|number| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number));
    in_namespace(|| delay::open_tun(address, peer).map(drop))
});

static CGROUP2: Probe = LazyLock::new(|| {
    let mount = cgroup2_mount().ok_or("cgroups of version 2 are not mounted")?;
    with_new_cgroup(&mount, |_| ())
});

/// Returns the mount point of cgroup v2.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    let mut mount = mounts.find(|mount| mount.clone().nth(2) == Some("cgroup2"))?;
    mount.nth(1).map(PathBuf::from)
}

/// The mount point of cgroups that limit memory.
pub static MEMORY_CGROUP: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|error| error.to_string())?;
    let fields = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let hierarchies = mounts.lines().map(fields).filter(|mount| match &*mount[2] {
        "cgroup" => mount[3].split(',').any(|controller| controller == "memory"),
        kind => kind == "cgroup2",
    });
    let mut problem = "no cgroups are mounted".to_owned();
    for hierarchy in hierarchies {
        let hierarchy = PathBuf::from(&hierarchy[1]);
        let limits = |cgroup: &Path| {
            let mut files = ["memory.max", "memory.limit_in_bytes"].iter();
            files.any(|name| cgroup.join(name).exists())
        };
        match with_new_cgroup(&hierarchy, limits) {
            Ok(true) => return Ok(hierarchy),
            Ok(false) => problem = format!("cgroups in {} do not limit memory", hierarchy.display()),
            Err(error) => problem = error,
        }
    }
    Err(problem)
});

/// Creates a cgroup, calls `inspect` with its path, and removes it.
fn with_new_cgroup<T>(hierarchy: &Path, inspect: impl FnOnce(&Path) -> T) -> Result<T, String> {
    let cgroup = hierarchy.join(format!("kmesh-trace-probe-{}", std::process::id()));
    std::fs::create_dir(&cgroup)
        .map_err(|error| format!("cannot create a cgroup in {}: {error}", hierarchy.display()))?;
    let result = inspect(&cgroup);
    std::fs::remove_dir(&cgroup).map_err(|error| error.to_string())?;
    Ok(result)
}

static MPTCP: Probe = LazyLock::new(|| {
    in_namespace(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
        socket.map(drop).map_err(|error| format!("no MPTCP: {error}"))
    })
});

static ROLE_CHANGE: Probe = LazyLock::new(|| {
    in_namespace(|| {
        let socket = IpVersion::V4.socket();
        let closed_port = IpVersion::V4.at(9).into();
        _ = socket.connect(&closed_port);
        let listening = socket.listen(1);
        listening.map_err(|error| format!("a socket that has connected cannot listen: {error}"))
    })
});

/// How the tool says that it scans sockets.
static SCANS: LazyLock<Result<String, String>> = LazyLock::new(|| {
    let findings = net::try_run(&super::tracer::binary().to_string_lossy(), &["check"])?;
    let line = findings.lines().find(|line| line.contains(" open sockets "));
    line.map(str::to_owned)
        .ok_or_else(|| format!("no open sockets in: {findings}"))
});

static SETPRIV: Probe = LazyLock::new(|| {
    let set = "-all,+bpf,+perfmon";
    let args = ["--inh-caps", set, "--ambient-caps", set, "--bounding-set", set, "true"];
    net::try_run("setpriv", &args).map(drop)
});

static UNSHARE: Probe = LazyLock::new(|| {
    let args = ["--pid", "--fork", "--kill-child", "--mount-proc", "true"];
    net::try_run("unshare", &args).map(drop)
});

static TIME_NAMESPACE: Probe = LazyLock::new(|| {
    let args = "--time --monotonic=60 --boottime=60 --fork --kill-child true";
    net::try_run("unshare", &args.split(' ').collect::<Vec<_>>()).map(drop)
});

static IO_URING: Probe = LazyLock::new(|| {
    let ring = io_uring_setup().map_err(|error| format!("no io_uring: {error}"))?;
    set_io_uring_file(&ring, Some(0)).map_err(|error| format!("no files in io_uring: {error}"))
});

/// Creates an io_uring instance.
pub fn io_uring_setup() -> std::io::Result<OwnedFd> {
    // `struct io_uring_params`, all zero.
    let mut parameters = [0_u64; 15];
    // SAFETY: the kernel reads and writes 120 bytes of `parameters`.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
    if ring < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just added this descriptor to the table, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(ring).expect("a descriptor")) })
}

/// Registers a file as the only one of a ring, or unregisters all.
pub fn set_io_uring_file(ring: &OwnedFd, file: Option<RawFd>) -> std::io::Result<()> {
    const IORING_REGISTER_FILES: u32 = 2;
    const IORING_UNREGISTER_FILES: u32 = 3;
    let (operation, count) = if file.is_some() {
        (IORING_REGISTER_FILES, 1)
    } else {
        (IORING_UNREGISTER_FILES, 0)
    };
    let first = file.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the kernel reads `count` descriptors at `first`.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), operation, first, count) };
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

static TMUX: Probe = LazyLock::new(|| {
    net::try_run("bash", &["--version"])?;
    let server = format!("kmesh-trace-probe-{}", std::process::id());
    let tmux = |args: &[&str]| net::try_run("tmux", &[&["-L", &server, "-f", "/dev/null"], args].concat());
    tmux(&["new-session", "-d", "exec bash --norc -i"])?;
    tmux(&["kill-server"]).map(drop)
});

/// Returns the folder of PostgreSQL's programs, which Debian does not add to the path.
pub fn postgres_folder() -> Result<PathBuf, String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let folders = versions.map(|version| version.path().join("bin"));
    let complete = |folder: &PathBuf| {
        ["initdb", "postgres", "psql"]
            .iter()
            .all(|name| folder.join(name).exists())
    };
    folders
        .filter(complete)
        .max()
        .ok_or_else(|| "PostgreSQL is not installed".to_owned())
}

static RESET_REASONS: Probe = LazyLock::new(|| {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").map_err(|error| error.to_string())?;
    let name = b"\0SK_RST_REASON_NO_SOCKET\0";
    if types.windows(name.len()).any(|window| window == name) {
        Ok(())
    } else {
        Err("this kernel does not say why it sends a RST".to_owned())
    }
});

static TURNS: Probe = LazyLock::new(|| {
    let types = std::fs::read("/sys/kernel/btf/vmlinux").map_err(|error| error.to_string())?;
    let has = |name: &[u8]| types.windows(name.len()).any(|window| window == name);
    if has(b"\0btf_trace_sk_data_ready\0") && has(b"\0btf_trace_sock_send_length\0") {
        Ok(())
    } else {
        Err("this kernel has no tracepoints sk_data_ready and sock_send_length".to_owned())
    }
});

fn in_namespace(probe: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    net::in_namespace("probe", probe).unwrap_or_else(|_| Err("the probe panicked".to_owned()))
}

/// Whether the tool scans sockets by network namespaces on this kernel.
fn scans_namespaces() -> Result<bool, String> {
    Ok(SCANS.clone()?.contains("in each network namespace"))
}

/// Checks that an environment variable permits a scenario to change the state of the whole machine.
fn check_permission(variable: &str) -> Result<(), String> {
    super::is_set(variable)
        .then_some(())
        .ok_or_else(|| format!("{variable} is not set"))
}

/// Checks that the kernel preempts eBPF programs at tracepoints, as Linux does since 7.0.
fn check_preemption() -> Result<(), String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    let major = release.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let preempts = major.is_some_and(|major| major >= 7);
    preempts
        .then_some(())
        .ok_or_else(|| format!("Linux {} does not preempt eBPF programs", release.trim()))
}

/// Checks that this machine has everything that a scenario needs. Returns what is missing.
pub fn check(needs: &[Need]) -> Result<(), String> {
    NAMESPACES.clone()?;
    for need in needs {
        match need {
            Need::Nft => NFT.clone()?,
            Need::Tproxy => TPROXY.clone()?,
            Need::SocketDestroy => SOCKET_DESTROY.clone()?,
            Need::Tbf => TBF.clone()?,
            Need::Veth => VETH.clone()?,
            Need::Tun => TUN.clone()?,
            Need::Cgroup2 => CGROUP2.clone()?,
            Need::MemoryCgroup => MEMORY_CGROUP.clone().map(drop)?,
            Need::Mptcp => MPTCP.clone()?,
            Need::Unshare => UNSHARE.clone()?,
            Need::TimeNamespace => TIME_NAMESPACE.clone()?,
            Need::Setpriv => SETPRIV.clone()?,
            Need::ResetReasons => RESET_REASONS.clone()?,
            Need::NoResetReasons if RESET_REASONS.is_ok() => {
                return Err("this kernel says why it sends a RST".to_owned());
            }
            Need::Turns => TURNS.clone()?,
            Need::NoTurns if TURNS.is_ok() => return Err("this kernel has the tracepoints of --turns".to_owned()),
            Need::RoleChange => ROLE_CHANGE.clone()?,
            Need::DescriptorScan if scans_namespaces()? => {
                return Err("this kernel gives no typed pointer to the socket behind a descriptor".to_owned());
            }
            Need::NamespaceScan if !scans_namespaces()? => {
                return Err("this kernel gives a typed pointer to the socket behind a descriptor".to_owned());
            }
            Need::IoUring => IO_URING.clone()?,
            Need::Tmux => TMUX.clone()?,
            Need::Python => net::try_run("python3", &["-c", "import http.client, http.server"]).map(drop)?,
            Need::Redis => {
                net::try_run("redis-server", &["--version"])?;
                net::try_run("redis-cli", &["--version"])?;
            }
            Need::Http2 => {
                net::try_run("nghttpd", &["--version"])?;
                net::try_run("nghttp", &["--version"])?;
            }
            Need::Postgres => {
                postgres_folder()?;
                net::try_run("setpriv", &["--version"])?;
            }
            Need::FullSize if super::is_small_vm() => return Err("KMESH_TRACE_TEST_SMALL is set".to_owned()),
            Need::StepClock => check_permission("KMESH_TRACE_TEST_STEP_CLOCK")?,
            Need::Preemption => {
                check_permission("KMESH_TRACE_TEST_PREEMPT")?;
                check_preemption()?;
            }
            Need::FullSize
            | Need::Exclusive
            | Need::NoResetReasons
            | Need::NoTurns
            | Need::DescriptorScan
            | Need::NamespaceScan => {}
        }
    }
    Ok(())
}
