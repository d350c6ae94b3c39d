//! Network namespaces, one for each test, and the commands that configure them.

use std::cell::Cell;
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::os::linux::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `body` on a new thread in a new network namespace whose loopback is up. The namespace exists until its last
/// socket and thread are gone. Threads and processes that `body` starts are in the same namespace.
///
/// The thread also has its own table of file descriptors. A new process inherits all descriptors until it calls exec:
/// with one table for all scenarios, a command of one scenario could be the last to close the socket of another.
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

/// Returns the inode number of the calling thread's network namespace: `local.netns` in records.
pub fn current_netns() -> u64 {
    std::fs::metadata("/proc/thread-self/ns/net")
        .expect("/proc/thread-self/ns/net")
        .st_ino()
}

thread_local! {
    /// The number of the scenario that this thread runs.
    static SCENARIO: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Gives the calling thread addresses that no other scenario and no other run of the suite uses, so that a tracer that
/// traces only [`scenario_networks`] sees this scenario's connections alone. A thread without claimed addresses uses
/// 127.0.0.1 and ::1.
pub fn claim_addresses(scenario: u32) {
    assert!(scenario < 512, "too many scenarios");
    SCENARIO.set(Some(scenario));
}

/// Adds an IPv6 address to the loopback, and waits until the kernel has added the route to it.
pub fn add_to_loopback(address: Ipv6Addr) {
    run("ip", &["addr", "add", &format!("{address}/128"), "dev", "lo", "nodad"]);
    wait_local_route(&address.to_string(), "lo");
}

/// Waits until the kernel has added the route to an IPv6 address of this device.
pub fn wait_local_route(address: &str, device: &str) {
    super::sock::wait_until("the address has a route", || {
        let routes = run("ip", &["-6", "route", "show", "table", "local"]);
        routes.contains(&format!("local {address} dev {device}"))
    });
}

/// Returns the scenario's address on the IPv6 loopback, or `::1` if the thread has claimed no addresses.
pub fn loopback_v6() -> Ipv6Addr {
    claimed_numbers().map_or(Ipv6Addr::LOCALHOST, |_| scenario_v6(0x100))
}

/// Whether the calling thread has claimed addresses.
pub fn has_claimed_addresses() -> bool {
    claimed_numbers().is_some()
}

/// The number of the run and of the scenario.
fn claimed_numbers() -> Option<(u32, u32)> {
    // Never zero, which would be the network of 127.0.0.1.
    SCENARIO.get().map(|scenario| (1 + std::process::id() % 2047, scenario))
}

/// Returns one of the scenario's sixteen IPv4 loopback addresses. [`super::sock::IpVersion`] uses number 0.
pub fn loopback_v4(number: u8) -> Ipv4Addr {
    assert!(number < 16, "a scenario has sixteen addresses");
    match claimed_numbers() {
        None => Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + u32::from(number)),
        Some((run, scenario)) => Ipv4Addr::from(127 << 24 | run << 13 | scenario << 4 | u32::from(number)),
    }
}

/// Returns an IPv6 address of the scenario, which [`add_to_loopback`] configures.
pub fn scenario_v6(number: u16) -> Ipv6Addr {
    let (run, scenario) = claimed_numbers().expect("a scenario");
    Ipv6Addr::new(0xfd77, run as u16, scenario as u16, 0, 0, 0, 0, number)
}

/// Returns the two networks that contain all addresses of the scenario and no others.
pub fn scenario_networks() -> [String; 2] {
    [format!("{}/28", loopback_v4(0)), format!("{}/48", scenario_v6(0))]
}

/// Joins addresses with commas, as flags take them.
pub fn comma_separated(addresses: &[Ipv4Addr]) -> String {
    addresses.iter().map(Ipv4Addr::to_string).collect::<Vec<_>>().join(",")
}

/// Runs a command in the calling thread's namespace and returns its standard output. Panics if the command fails.
pub fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a command in the calling thread's namespace and returns its standard output, or why it failed.
pub fn try_run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {}: {}", args.join(" "), stderr.trim()))
    }
}

/// Sets a `net.*` sysctl of the calling thread's namespace.
pub fn set_sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
}

/// Replaces the rules of the namespace's packet filter, which sees every packet that arrives, also on the loopback.
pub fn set_packet_filter(rules: &[&str]) {
    try_set_packet_filter(rules).unwrap_or_else(|error| panic!("{error}"));
}

/// Replaces the rules of the namespace's packet filter, or returns why that failed.
pub fn try_set_packet_filter(rules: &[&str]) -> Result<(), String> {
    let script = format!(
        "add table inet t\nadd chain inet t c {{ type filter hook input priority 0; }}\nflush chain inet t c\n{}",
        rules
            .iter()
            .map(|rule| format!("add rule inet t c {rule}\n"))
            .collect::<String>()
    );
    nft(&script)
}

/// Replaces the rules of the chain at this hook of the packet filter: `input`, `output` or `forward`.
pub fn set_packet_filter_at(hook: &str, rules: &[&str]) {
    let rules: String = rules
        .iter()
        .map(|rule| format!("add rule inet at {hook} {rule}\n"))
        .collect();
    nft(&format!(
        "add table inet at\nadd chain inet at {hook} {{ type filter hook {hook} priority 0; }}\nflush chain inet at {hook}\n{rules}"
    ))
    .unwrap_or_else(|error| panic!("{error}"));
}

/// Returns the number of packets that the counters of these chains have counted.
pub fn packet_filter_count(hook: &str) -> u64 {
    let chain = run("nft", &["list", "chain", "inet", "at", hook]);
    let counts = chain.split("counter packets ").skip(1);
    counts
        .map(|rest| {
            rest.split(' ')
                .next()
                .and_then(|count| count.parse::<u64>().ok())
                .expect("a count")
        })
        .sum()
}

/// Redirects connections to `port`, on any address, to a transparent listener (TPROXY).
pub fn transparent_proxy(port: u16, listener: SocketAddrV4) -> Result<(), String> {
    let chain = "add table ip proxy\nadd chain ip proxy c { type filter hook prerouting priority mangle; }";
    nft(&format!(
        "{chain}\nadd rule ip proxy c tcp dport {port} tproxy to {listener} accept\n"
    ))
}

fn nft(script: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("nft: {error}");
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = nft.stdin.take().expect("nft's stdin");
    stdin.write_all(script.as_bytes()).map_err(failed)?;
    drop(stdin);
    let output = nft.wait_with_output().map_err(failed)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}

/// Creates a veth pair in the calling thread's namespace with addresses on one end only, so that no neighbour answers
/// on it.
pub fn unanswered_veth() {
    run("ip", &["link", "add", "wire0", "type", "veth", "peer", "name", "wire1"]);
    run("ip", &["addr", "add", "10.9.0.1/24", "dev", "wire0"]);
    run("ip", &["addr", "add", "fd09::1/64", "dev", "wire0", "nodad"]);
    run("ip", &["link", "set", "wire1", "up"]);
    run("ip", &["link", "set", "wire0", "up"]);
}
