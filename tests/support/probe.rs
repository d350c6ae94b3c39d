//! What can run here, found out beforehand by trying it.

use std::io::Read as _;
use std::sync::LazyLock;

use socket2::{Domain, Protocol, Socket, Type};

use super::net;
use super::sock::{self, V};

/// Something that a scenario cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Packet filter rules.
    Nft,
    /// `ss -K`: CONFIG_INET_DIAG_DESTROY and iproute2.
    Kill,
    /// Virtual Ethernet.
    Veth,
    /// MPTCP sockets.
    Mptcp,
    /// `setpriv`, which knows the capabilities that are needed.
    Setpriv,
    /// Time and memory of a real machine.
    Big,
    /// No other scenario at the same time: it counts all that happens on the machine.
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

static KILL: LazyLock<Result<(), String>> = LazyLock::new(|| {
    inside(|| {
        let pair = sock::pair(V::Four);
        net::try_run(
            "ss",
            &["-K", "-t", "-n", "-a", &format!("dport = :{}", pair.truth.dst.port())],
        )?;
        pair.client
            .set_read_timeout(Some(std::time::Duration::from_millis(200)))
            .map_err(|error| error.to_string())?;
        match (&pair.client).read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => Ok(()),
            other => Err(format!("ss -K kills nothing here ({other:?})")),
        }
    })
});

static VETH: LazyLock<Result<(), String>> =
    LazyLock::new(|| inside(|| net::try_run("ip", &["link", "add", "type", "veth"]).map(drop)));

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

fn inside(probe: impl FnOnce() -> Result<(), String> + Send) -> Result<(), String> {
    net::in_namespace("probe", probe).unwrap_or_else(|_| Err("the probe itself failed".to_owned()))
}

/// Why a scenario with these needs cannot run here.
pub fn missing(needs: &[Need]) -> Result<(), String> {
    NAMESPACES.clone()?;
    for need in needs {
        match need {
            Need::Nft => NFT.clone()?,
            Need::Kill => KILL.clone()?,
            Need::Veth => VETH.clone()?,
            Need::Mptcp => MPTCP.clone()?,
            Need::Setpriv => SETPRIV.clone()?,
            Need::Big if super::small() => return Err("KMESH_TRACE_TEST_SMALL is set".to_owned()),
            Need::Big | Need::Alone => {}
        }
    }
    Ok(())
}
