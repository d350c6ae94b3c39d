//! Traces connections with `--drops` while the kernel drops many other packets. Counts the ends without a record, and
//! prints the cost of a dropped packet and the memory.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket};

use super::traced::{self, Stats, Traced};
use super::traffic::Exchanges;
use crate::host::{self, Need};

#[derive(clap::Args)]
pub struct Args {
    /// The duration of the traffic beside the drops, in seconds
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

const NEEDS: &[Need] = &[
    Need {
        program: "nft",
        package: "nftables",
    },
    Need {
        program: "ip",
        package: "iproute2",
    },
];
/// The connections of one round. The time is checked after each round.
const BATCH: Exchanges = Exchanges {
    count: 10_000,
    refused: 100,
};
/// The port whose segments the packet filter drops.
const DROPPED: u16 = 9;
const TARGET: Ipv4Addr = Ipv4Addr::new(127, 98, 0, 1);

/// Prints the cost of a dropped packet, the rates, and the memory.
pub fn run(args: &Args) -> Result<()> {
    host::ensure(NEEDS)?;
    let tool = traced::build()?;
    // The packet filter and the traffic are in a namespace of their own.
    let measure = || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot create a network namespace")?;
        host::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        for command in [
            "add table inet t".to_owned(),
            "add chain inet t c { type filter hook input priority 0; }".to_owned(),
            format!("add rule inet t c tcp dport {DROPPED} counter drop"),
        ] {
            host::run(Command::new("nft").arg(command).stdin(Stdio::null()))?;
        }
        trace(args, &tool)
    };
    thread::scope(|scope| scope.spawn(measure).join()).map_err(|_| anyhow!("the benchmark panicked"))?
}

fn trace(args: &Args, tool: &Path) -> Result<()> {
    let _stats = Stats::on()?;
    let traced = Traced::start(tool, &["--no-resolve", "--drops"])?;
    let mut addresses = 0;
    let calm_rate = BATCH.run(&mut addresses)?;
    let calm_memory = traced.memory_mib()?;

    // Measure dropped packets without connections.
    let (before, ns) = (dropped()?, traced.programs_ns()?);
    let flood = Flood::start();
    thread::sleep(Duration::from_secs(args.seconds) / 4);
    flood.end()?;
    let each = (traced.programs_ns()? - ns) / (dropped()? - before).max(1);

    // Measure connections with dropped packets.
    let (before, began) = (dropped()?, Instant::now());
    let flood = Flood::start();
    let mut rates = Vec::new();
    while began.elapsed() < Duration::from_secs(args.seconds) {
        rates.push(BATCH.run(&mut addresses)?);
    }
    let rate = (dropped()? - before) as f64 / began.elapsed().as_secs_f64();
    flood.end()?;
    let memory = traced.memory_mib()?;
    let summary = traced.finish()?;
    let made = (rates.len() + 1) * (2 * BATCH.count + BATCH.refused);
    let missing = traced::missing(&summary, made);
    println!("a dropped packet takes {each} ns of BPF time");
    println!(
        "beside {rate:.0} dropped packets/s: {:.0} connections/s ({calm_rate:.0} without), {made} ends, {missing} \
         without a record",
        super::median(&mut rates)
    );
    println!(
        "memory: {calm_memory:.1} MiB before, {memory:.1} MiB after; {} counts evicted",
        summary["drops_evicted"]
    );
    println!("{}", super::peers::machine());
    Ok(())
}

/// A thread that sends SYNs until the benchmark ends it.
struct Flood {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Flood {
    fn start() -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let over = Arc::clone(&over);
            move || flood(&over)
        });
        Self {
            over,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the flood has ended")?;
        thread.join().map_err(|_| anyhow!("the flood panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Sends SYNs from all ports in turn.
fn flood(over: &AtomicBool) -> Result<()> {
    let wire = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw);
    let wire = wire.context("cannot open a raw socket")?;
    // An IPv4 header, whose length and checksum the kernel sets, and a TCP header.
    let mut packet = [0; 40];
    (packet[0], packet[8], packet[9]) = (0x45, 64, 6);
    packet[12..16].copy_from_slice(&TARGET.octets());
    packet[16..20].copy_from_slice(&TARGET.octets());
    packet[22..24].copy_from_slice(&DROPPED.to_be_bytes());
    (packet[32], packet[33]) = (5 << 4, 2);
    let to = SockaddrIn::from(SocketAddrV4::new(TARGET, DROPPED));
    let mut port: u16 = 0;
    while !over.load(Ordering::Relaxed) {
        for _ in 0..1000 {
            port = port.wrapping_add(1);
            packet[20..22].copy_from_slice(&port.to_be_bytes());
            // The packet filter drops what arrives, not what is sent, so the call succeeds.
            sendto(wire.as_raw_fd(), &packet, &to, MsgFlags::empty()).context("cannot send a SYN")?;
        }
    }
    Ok(())
}

/// Returns the number of packets that the packet filter dropped.
fn dropped() -> Result<u64> {
    let chain = host::text(Command::new("nft").args(["list", "chain", "inet", "t", "c"]))?;
    let (_, rest) = chain
        .split_once("counter packets ")
        .context("no counter in the chain")?;
    let count = rest.split(' ').next().context("no count in the chain")?;
    count.parse().context("the count is not a number")
}
