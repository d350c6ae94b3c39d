//! What the network adds to an answer, and which buffer limits a sender, over a network that delays every packet.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::SockRef;

use super::{close_records, event_of, serve_delayed, start_tracer};
use crate::rollups::start_rollup;
use crate::support::delay::DelayedNetwork;
use crate::support::net;
use crate::support::sock::{
    Pair, SEGMENT, pair_with, recv, send, send_segments, set_option, set_small_send_buffer, wait_acknowledged,
    wait_until,
};
use crate::support::tcp_info::TcpInfo;
use crate::support::tracer::Tracer;

/// The time for which the network holds a packet, in each direction.
const DELAY: Duration = Duration::from_millis(5);

/// Servers that think for 0, 5 and 50 ms, behind a network with a round trip of 10 ms. The client waits for both, and
/// the server's end measures its own time alone.
pub fn round_trips() {
    let network = DelayedNetwork::new(DELAY);
    let tracer = start_tracer(&[]);
    tracer.output.watch(network.server_netns);
    for (think_ms, rounds) in [(0, 50), (5, 30), (50, 10)] {
        let think = Duration::from_millis(think_ms);
        let connect = Instant::now();
        let pair = pair_with(&network.listener);
        let connect = connect.elapsed();
        let bounds = serve_delayed(&pair, think, rounds, DELAY);
        let records = close_records(&tracer, pair, network.server_netns);
        for (end, (record, bounds)) in ["client", "server"].iter().zip(records.iter().zip(&bounds)) {
            println!(
                "network of {:?}, think {think:?}: {end} {} ns by {:?} to {:?} of its clock, srtt {} us, rtt_min {} us",
                2 * DELAY,
                record["turns"]["wait_ns"],
                bounds.least,
                bounds.most,
                record["tcp"]["srtt_us"],
                record["tcp"]["rtt_min_us"],
            );
            bounds.check(&record["turns"], rounds as u64);
            assert!(us(record, "srtt_us") >= 2 * DELAY, "{record}");
            assert!(us(record, "rtt_min_us") >= 2 * DELAY, "{record}");
        }
        // The handshake is the first sample of the client's round-trip time.
        assert!(us(&records[0], "rtt_min_us") <= connect, "{connect:?}: {}", records[0]);
        let [client, server] = records.map(|record| wait(&record));
        let round_trips = 2 * DELAY * u32::try_from(rounds).unwrap();
        assert!(client >= server + round_trips, "{client:?}, {server:?}");
    }
    tracer.interrupt().check_lossless();
}

fn wait(record: &Value) -> Duration {
    Duration::from_nanos(record["turns"]["wait_ns"].as_u64().unwrap())
}

/// Returns a member of `tcp` in microseconds.
fn us(record: &Value, name: &str) -> Duration {
    let value = record["tcp"][name].as_u64();
    Duration::from_micros(value.unwrap_or_else(|| panic!("no {name}: {record}")))
}

/// What a transfer shows of its sender.
struct Sender {
    port: u16,
    record: Value,
}

impl Sender {
    /// Returns the parts of the busy time in which the peer's window and the send buffer were the limit.
    fn shares(&self) -> [f64; 2] {
        let busy = us(&self.record, "busy_us").as_secs_f64();
        ["rwnd_limited_us", "sndbuf_limited_us"].map(|name| us(&self.record, name).as_secs_f64() / busy)
    }
}

/// Sends over the network, and compares the record's counters with TCP_INFO. `write` sends from the client's
/// end, and `read` receives at the other.
fn transfer(
    network: &DelayedNetwork,
    tracer: &Tracer,
    write: impl Fn(&TcpStream) + Sync,
    read: impl Fn(&Pair),
) -> Sender {
    let pair = pair_with(&network.listener);
    thread::scope(|scope| {
        scope.spawn(|| write(&pair.client));
        read(&pair);
    });
    wait_acknowledged(&pair.client);
    let counted = TcpInfo::read(&pair.client).reported();
    let client = pair.truth.src;
    pair.close_client_first();
    let record = event_of(tracer, "close", "outbound", client, |_| true);
    for (name, value) in counted {
        if name.ends_with("_limited_us") {
            assert_eq!(record["tcp"][name], value, "{name}: {record}");
        }
    }
    Sender {
        port: client.port(),
        record,
    }
}

/// Sends with a buffer that holds all bytes.
fn send_with_large_buffer(client: &TcpStream, bytes: usize) {
    // SO_SNDBUF cannot exceed net.core.wmem_max.
    set_option(client, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 4 << 20);
    // Nothing but windows and buffers may limit the sender: BBR also has a rate.
    SockRef::from(client).set_tcp_congestion(b"reno").unwrap();
    send(client, bytes);
}

/// A small send buffer, a large one, and a reader that stops: three senders that the records and the rollup tell apart.
pub fn small_send_buffer() {
    const SMALL_SEGMENTS: usize = 100;
    const LARGE_BYTES: usize = 1 << 20;
    // More than the window of the reader that stops.
    const STOPPED_BYTES: usize = 128 << 10;
    // Much longer than a slow machine needs to send a buffer: while the sender waits for a processor, its buffer limits
    // nothing.
    const DELAY: Duration = Duration::from_millis(25);
    const STOP: Duration = Duration::from_millis(400);
    let network = DelayedNetwork::new(DELAY);
    let (rollup, lines) = start_rollup(&["--by", "connection", "--direction", "outbound", "--interval", "all"]);
    let tracer = Tracer::json(&[]);
    tracer.output.watch(net::current_netns());
    let send_small = |client: &TcpStream| {
        set_small_send_buffer(client);
        send_segments(client, SMALL_SEGMENTS);
    };
    let small = transfer(&network, &tracer, send_small, |pair| {
        recv(&pair.server, SMALL_SEGMENTS * SEGMENT);
    });
    let send_large = |client: &TcpStream| send_with_large_buffer(client, LARGE_BYTES);
    let large = transfer(&network, &tracer, send_large, |pair| recv(&pair.server, LARGE_BYTES));
    SockRef::from(&network.listener).set_recv_buffer_size(8 << 10).unwrap();
    let send_to_stopped = |client: &TcpStream| send_with_large_buffer(client, STOPPED_BYTES);
    let stopped = transfer(&network, &tracer, send_to_stopped, |pair| {
        wait_until("the window limits the sender", || {
            let reported = TcpInfo::read(&pair.client).reported();
            reported.iter().any(|(name, us)| *name == "rwnd_limited_us" && *us > 0)
        });
        thread::sleep(STOP);
        recv(&pair.server, STOPPED_BYTES);
    });
    for (name, sender) in [
        ("small buffer", &small),
        ("large buffer", &large),
        ("stopped reader", &stopped),
    ] {
        let [window, buffer] = sender.shares();
        let busy = us(&sender.record, "busy_us");
        println!("{name}: busy {busy:?}, window {window:.2}, send buffer {buffer:.2}");
    }
    let ([small_window, small_buffer], [_, large_buffer]) = (small.shares(), large.shares());
    let [_, stopped_buffer] = stopped.shares();
    assert!(small_buffer > 0.5 && small_window < 0.05, "{}", small.record);
    // A buffer that holds all bytes limits nothing.
    assert_eq!(large_buffer, 0.0, "{}", large.record);
    let window = us(&stopped.record, "rwnd_limited_us");
    assert!(window >= STOP && stopped_buffer == 0.0, "{}", stopped.record);
    assert!(rollup.interrupt().status.success());
    lines.wait(|lines| {
        let of = |sender: &Sender| lines.iter().find(|line| line["group"]["src"]["port"] == sender.port);
        for sender in [&small, &large, &stopped] {
            let line = of(sender)?;
            let shares = ["rwnd_limited", "sndbuf_limited"].map(|name| line[name].as_f64().unwrap());
            let differs = shares
                .iter()
                .zip(sender.shares())
                .any(|(one, other)| (one - other).abs() > 0.001);
            assert!(!differs, "{:?}: {line}", sender.shares());
        }
        Some(())
    });
    tracer.interrupt().check_lossless();
}
