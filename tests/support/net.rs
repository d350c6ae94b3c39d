//! Network namespaces, one a test, and the commands that shape them.

use std::cell::Cell;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::linux::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `body` on a thread of its own in a new network namespace with its loopback up. The namespace goes with the last
/// socket and thread in it. Threads and processes started from `body` are born into it.
///
/// The thread has a table of descriptors of its own too. A process that is started inherits all descriptors of the table until
/// it has called exec, so with one table for all, a command of one scenario could be the last to close the socket of another.
pub fn in_namespace<T: Send>(name: &str, body: impl FnOnce() -> T + Send) -> thread::Result<T> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FILES).expect("unshare");
                run("ip", &["link", "set", "lo", "up"]);
                body()
            })
            .expect("spawn a thread")
            .join()
    })
}

/// The inode number of the calling thread's network namespace: what records call `local.netns`.
pub fn inode() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net")
        .expect("/proc/thread-self/ns/net")
        .st_ino()
}

thread_local! {
    /// The number of the scenario that this thread runs.
    static SCENARIO: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Gives the calling thread addresses that nobody else on this machine has: no other scenario, and no other run of the suite. A
/// tracer whose filter passes only [`networks`] traces this scenario's connections alone. Until then the addresses are those that
/// everybody has.
pub fn claim_addresses(scenario: u32) {
    assert!(scenario < 512, "too many scenarios");
    SCENARIO.set(Some(scenario));
}

/// Gives the loopback an IPv6 address, and waits until the kernel has added the route to it.
pub fn add_to_loopback(address: Ipv6Addr) {
    run("ip", &["addr", "add", &format!("{address}/128"), "dev", "lo", "nodad"]);
    super::sock::wait_until("the address has a route", || {
        let routes = run("ip", &["-6", "route", "show", "table", "local"]);
        routes.contains(&format!("local {address} dev lo"))
    });
}

/// The scenario's address of the IPv6 loopback, which has one address where IPv4 has a network. `::1` for who claimed none.
pub fn loopback_v6() -> Ipv6Addr {
    claimed().map_or(Ipv6Addr::LOCALHOST, |_| address_v6(0x100))
}

/// Whether the calling thread's scenario has addresses of its own.
pub fn has_own_addresses() -> bool {
    claimed().is_some()
}

/// The run's number and the scenario's.
fn claimed() -> Option<(u32, u32)> {
    // Never zero, which is the network of 127.0.0.1.
    SCENARIO.get().map(|scenario| (1 + std::process::id() % 2047, scenario))
}

/// The scenario's loopback address of this number, below 16. Address 0 is the one that [`super::sock::V`] means.
pub fn address(number: u8) -> Ipv4Addr {
    assert!(number < 16, "a scenario has sixteen addresses");
    match claimed() {
        None => Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + u32::from(number)),
        Some((run, scenario)) => Ipv4Addr::from(127 << 24 | run << 13 | scenario << 4 | u32::from(number)),
    }
}

/// The scenario's IPv6 address of this number, for [`add_to_loopback`].
pub fn address_v6(number: u16) -> Ipv6Addr {
    let (run, scenario) = claimed().expect("a scenario");
    Ipv6Addr::new(0xfd77, run as u16, scenario as u16, 0, 0, 0, 0, number)
}

/// The two networks that hold all addresses of the scenario and nothing else.
pub fn networks() -> [String; 2] {
    [format!("{}/28", address(0)), format!("{}/48", address_v6(0))]
}

/// These addresses as the value of a flag.
pub fn list(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(",")
}

/// Runs a command in the calling thread's namespace and returns what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args).unwrap_or_else(|error| panic!("{error}"))
}

/// As [`run`], for probing.
pub fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{program} {}: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

/// Sets a `net.*` sysctl of the calling thread's namespace.
pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
}

/// Replaces the rules of the namespace's only chain, which sees every packet that arrives (loopback's too).
pub fn rules(rules: &[&str]) {
    try_rules(rules).unwrap_or_else(|error| panic!("{error}"));
}

/// Hands connections to `port`, of whatever address, to a transparent listener (TPROXY).
pub fn transparent_proxy(port: u16, listener: SocketAddrV4) -> Result<(), String> {
    let chain = "add table ip proxy\nadd chain ip proxy c { type filter hook prerouting priority mangle; }";
    nft(&format!(
        "{chain}\nadd rule ip proxy c tcp dport {port} tproxy to {listener} accept\n"
    ))
}

/// As [`rules`], for probing.
pub fn try_rules(rules: &[&str]) -> Result<(), String> {
    let script = format!(
        "add table inet t\nadd chain inet t c {{ type filter hook input priority 0; }}\nflush chain inet t c\n{}",
        rules
            .iter()
            .map(|rule| format!("add rule inet t c {rule}\n"))
            .collect::<String>()
    );
    nft(&script)
}

fn nft(script: &str) -> Result<(), String> {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("nft: {error}"))?;
    nft.stdin
        .take()
        .expect("nft's stdin")
        .write_all(script.as_bytes())
        .map_err(|error| format!("nft: {error}"))?;
    let output = nft.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// A veth pair with both ends up in the calling thread's namespace, addresses on the first only: the second end is a wire
/// with nobody at it.
pub fn dead_wire() {
    run("ip", &["link", "add", "wire0", "type", "veth", "peer", "name", "wire1"]);
    run("ip", &["addr", "add", "10.9.0.1/24", "dev", "wire0"]);
    run("ip", &["addr", "add", "fd09::1/64", "dev", "wire0", "nodad"]);
    run("ip", &["link", "set", "wire1", "up"]);
    run("ip", &["link", "set", "wire0", "up"]);
}
