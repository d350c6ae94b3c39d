//! How long each answer took (`--turns`), and what limited the sender. The truth is the clock of the scripted client
//! and server, which are threads of this process, and TCP_INFO.

mod aggregates;
mod network;
mod programs;

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::SockRef;

use crate::Topic;
use crate::support::expect::is_address;
use crate::support::net;
use crate::support::probe::Need;
use crate::support::sock::{IpVersion, Pair, drain, listen, pair, pair_with, recv, send, wait_until};
use crate::support::tcp_info::TcpInfo;
use crate::support::tracer::{Tracer, binary};

pub fn topic() -> Topic {
    Topic::new("turns")
        .standalone_both_versions("server_that_answers_at_once", &[Need::Turns], |version| {
            keep_alive(version, Duration::ZERO, 200);
        })
        .standalone_both_versions("server_that_thinks_5_ms", &[Need::Turns], |version| {
            keep_alive(version, Duration::from_millis(5), 20);
        })
        .standalone_both_versions("server_that_thinks_50_ms", &[Need::Turns], |version| {
            keep_alive(version, Duration::from_millis(50), 5);
        })
        .standalone("requests_in_pieces_are_one_turn_each", &[Need::Turns], pieces)
        .standalone("pipelined_requests_overlap", &[Need::Turns], pipelined)
        .standalone("streams_in_both_directions_overlap", &[Need::Turns], streams)
        .standalone("answer_larger_than_the_send_buffer", &[Need::Turns], large_answer)
        .standalone("greeting_is_no_turn", &[Need::Turns], greeting)
        .standalone("open_connections_report_turns", &[Need::Turns], open_connections)
        .standalone("older_connections_report_turns", &[Need::Turns], older_connections)
        .standalone("turns_need_their_tracepoints", &[Need::NoTurns], need_tracepoints)
        .standalone_both_versions("reader_that_stops_limits_the_sender", &[], stopped_reader)
        .standalone(
            "network_delays_the_client_alone",
            &[Need::Turns, Need::Tun],
            network::round_trips,
        )
        .standalone(
            "small_send_buffer_limits_the_sender",
            &[Need::Tun],
            network::small_send_buffer,
        )
        .standalone(
            "rollup_table_and_metrics_have_the_answers",
            &[Need::Turns],
            aggregates::all_outputs,
        )
        .standalone("http_keep_alive", &[Need::Turns, Need::Python], programs::http)
        .standalone(
            "http2_overlaps",
            &[Need::Turns, Need::Http2, Need::Tun],
            programs::http2,
        )
        .standalone("redis", &[Need::Turns, Need::Redis], programs::redis)
        .standalone("postgresql", &[Need::Turns, Need::Postgres], programs::postgres)
}

fn start_tracer(args: &[&str]) -> Tracer {
    let tracer = Tracer::json(&[&["--turns", "--interval", "200ms"], args].concat());
    tracer.output.watch(net::current_netns());
    tracer
}

/// Waits for an event of an end of the connection from this client.
fn event_of(
    tracer: &Tracer,
    event: &str,
    direction: &str,
    client: SocketAddr,
    matches: impl Fn(&Value) -> bool,
) -> Value {
    event_in(net::current_netns(), tracer, event, direction, client, matches)
}

/// Waits for an event of an end of the connection from this client, in this namespace.
fn event_in(
    netns: u64,
    tracer: &Tracer,
    event: &str,
    direction: &str,
    client: SocketAddr,
    matches: impl Fn(&Value) -> bool,
) -> Value {
    let is_it = |value: &Value| {
        value["event"] == event
            && value["direction"] == direction
            && is_address(&value["src"], client)
            && matches(value)
    };
    tracer.output.wait_matching(netns, 1, is_it).remove(0)
}

/// Closes both ends, and returns the turns of the client's and of the server's record.
fn close(tracer: Tracer, pair: Pair) -> [Value; 2] {
    let turns = close_records(&tracer, pair, net::current_netns()).map(|record| record["turns"].clone());
    tracer.interrupt().check_lossless();
    turns
}

/// Closes both ends, and returns the record of the client and that of the server, which is in another namespace.
fn close_records(tracer: &Tracer, pair: Pair, server_netns: u64) -> [Value; 2] {
    let client = pair.truth.src;
    pair.close_client_first();
    let ends = [("outbound", net::current_netns()), ("inbound", server_netns)];
    ends.map(|(direction, netns)| {
        let record = event_in(netns, tracer, "close", direction, client, |_| true);
        assert_eq!(record["outcome"], "ok", "{record}");
        record
    })
}

/// The bounds of the waits of one end, by the clocks of the programs.
#[derive(Default)]
struct Bounds {
    least: Duration,
    most: Duration,
    longest: Duration,
}

impl Bounds {
    fn add(&mut self, least: Duration, most: Duration) {
        self.least += least;
        self.most += most;
        self.longest = self.longest.max(most);
    }

    /// Checks the waits of `count` turns that do not overlap.
    fn check(&self, turns: &Value, count: u64) {
        assert_eq!(
            (&turns["count"], &turns["overlapped"]),
            (&count.into(), &0.into()),
            "{turns}"
        );
        let ns = |name: &str| Duration::from_nanos(turns[name].as_u64().unwrap());
        let (wait, longest) = (ns("wait_ns"), ns("max_wait_ns"));
        assert!(
            self.least <= wait && wait <= self.most,
            "{wait:?}, not {:?} to {:?}: {turns}",
            self.least,
            self.most
        );
        assert!(
            longest <= self.longest && longest * u32::try_from(count).unwrap() >= wait,
            "{turns}"
        );
        let histogram: Vec<u64> = serde_json::from_value(turns["histogram"].clone()).unwrap();
        assert_eq!(histogram.iter().sum::<u64>(), count, "{turns}");
        // The longest wait is in the last bucket.
        let us = u64::try_from(longest.as_micros()).unwrap();
        assert_eq!(histogram.len() as u32, u64::BITS - us.leading_zeros() + 1, "{turns}");
    }
}

/// The times of a turn at one end: of the request and of the answer.
#[derive(Clone, Copy)]
struct Times {
    /// Before the client sends; after the server has received.
    request: Instant,
    /// After the client has sent; before the server sends.
    answer: Instant,
    /// After the client has received; after the server has sent.
    end: Instant,
}

/// Makes requests on one connection, each after the last answer. Returns the bounds of the waits of both ends.
fn serve(pair: &Pair, think: Duration, rounds: usize) -> [Bounds; 2] {
    serve_delayed(pair, think, rounds, Duration::ZERO)
}

/// Makes requests over a network that holds each packet for at least `delay`.
fn serve_delayed(pair: &Pair, think: Duration, rounds: usize, delay: Duration) -> [Bounds; 2] {
    let (client, server) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            let serve = |_| {
                recv(&pair.server, 100);
                let request = Instant::now();
                if think > Duration::ZERO {
                    thread::sleep(think);
                }
                let answer = Instant::now();
                send(&pair.server, 300);
                Times {
                    request,
                    answer,
                    end: Instant::now(),
                }
            };
            (0..rounds).map(serve).collect::<Vec<_>>()
        });
        let ask = |_| {
            let request = Instant::now();
            send(&pair.client, 100);
            let answer = Instant::now();
            recv(&pair.client, 300);
            Times {
                request,
                answer,
                end: Instant::now(),
            }
        };
        let client: Vec<_> = (0..rounds).map(ask).collect();
        (client, server.join().unwrap())
    });
    let mut bounds = [Bounds::default(), Bounds::default()];
    for (client, server) in client.into_iter().zip(server) {
        // The kernel notes a send after it, and an arrival before the program runs.
        bounds[0].add(
            (server.answer + delay).saturating_duration_since(client.answer),
            client.end - client.request,
        );
        bounds[1].add(server.answer - server.request, server.end - (client.request + delay));
    }
    bounds
}

fn keep_alive(version: IpVersion, think: Duration, rounds: usize) {
    let tracer = start_tracer(&[]);
    let pair = pair(version);
    let bounds = serve(&pair, think, rounds);
    let turns = close(tracer, pair);
    for (bounds, turns) in bounds.iter().zip(&turns) {
        println!(
            "think {think:?}: {} turns, wait {} ns, server's clock {:?}, client's clock {:?}",
            turns["count"], turns["wait_ns"], bounds.least, bounds.most
        );
        bounds.check(turns, rounds as u64);
    }
}

/// A request of two writes, and an answer of two writes. The wait is from the last write to the first byte.
fn pieces() {
    const PAUSE: Duration = Duration::from_millis(20);
    let tracer = start_tracer(&[]);
    let pair = pair(IpVersion::V4);
    for _ in 0..3 {
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            send(from, 10);
            recv(to, 10);
            // The pause is part of the script, so it must not count as a wait.
            thread::sleep(PAUSE);
            send(from, 10);
            recv(to, 10);
        }
    }
    for turns in close(tracer, pair) {
        assert_eq!(
            (&turns["count"], &turns["overlapped"]),
            (&3.into(), &0.into()),
            "{turns}"
        );
    }
}

/// The client sends each request before it has read the last answer, and the server answers while a request is unread.
fn pipelined() {
    const ROUNDS: u64 = 20;
    let tracer = start_tracer(&[]);
    let pair = pair(IpVersion::V4);
    let unread = |stream: &TcpStream, bytes: usize| {
        let mut buffer = [0; 4096];
        wait_until("the data has arrived", || stream.peek(&mut buffer).unwrap() >= bytes);
    };
    send(&pair.client, 100);
    recv(&pair.server, 100);
    for _ in 0..ROUNDS {
        send(&pair.client, 100);
        unread(&pair.server, 100);
        send(&pair.server, 300);
        recv(&pair.server, 100);
        unread(&pair.client, 300);
        send(&pair.client, 100);
        unread(&pair.server, 100);
        send(&pair.server, 300);
        recv(&pair.server, 100);
        recv(&pair.client, 600);
    }
    let [client, server] = close(tracer, pair);
    let number = |turns: &Value, name: &str| turns[name].as_u64().unwrap();
    assert_eq!(number(&server, "overlapped"), number(&server, "count"), "{server}");
    assert_eq!(number(&server, "wait_ns"), 0, "{server}");
    assert!(number(&client, "overlapped") >= ROUNDS, "{client}");
}

/// Each end sends as fast as it can, and reads meanwhile.
fn streams() {
    const BYTES: usize = 16 << 20;
    let tracer = start_tracer(&[]);
    let listener = listen(IpVersion::V4);
    // Small buffers, so that neither end can send all before the other begins.
    SockRef::from(&listener).set_recv_buffer_size(32 << 10).unwrap();
    let pair = pair_with(&listener);
    for end in [&pair.client, &pair.server] {
        SockRef::from(end).set_send_buffer_size(32 << 10).unwrap();
        SockRef::from(end).set_recv_buffer_size(32 << 10).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| send(&pair.client, BYTES));
        scope.spawn(|| send(&pair.server, BYTES));
        // Neither direction may end before the other begins.
        for end in [&pair.client, &pair.server] {
            wait_until("both directions move", || end.peek(&mut [0]).unwrap() > 0);
        }
        scope.spawn(|| recv(&pair.client, BYTES));
        recv(&pair.server, BYTES);
    });
    for turns in close(tracer, pair) {
        println!("streams: {turns}");
        assert!(turns["overlapped"].as_u64() > Some(0), "{turns}");
    }
}

/// One call of the server sends more than the buffers hold, and the client reads it late. The call takes long, but the
/// wait for the answer's first byte does not.
fn large_answer() {
    const BYTES: usize = 4 << 20;
    const READ_LATE: Duration = Duration::from_millis(500);
    let tracer = start_tracer(&[]);
    let pair = pair(IpVersion::V4);
    SockRef::from(&pair.client).set_recv_buffer_size(32 << 10).unwrap();
    SockRef::from(&pair.server).set_send_buffer_size(32 << 10).unwrap();
    let request = Instant::now();
    send(&pair.client, 100);
    let (answered, took) = thread::scope(|scope| {
        let server = &pair.server;
        let call = scope.spawn(move || {
            recv(server, 100);
            let data = vec![7; BYTES];
            let before = Instant::now();
            (&*server).write_all(&data).unwrap();
            before.elapsed()
        });
        // The call has begun when its first byte is there.
        pair.client.peek(&mut [0]).unwrap();
        let answered = Instant::now();
        thread::sleep(READ_LATE);
        recv(&pair.client, BYTES);
        (answered, call.join().unwrap())
    });
    let [_, turns] = close(tracer, pair);
    assert!(took >= READ_LATE, "the call did not wait: {took:?}");
    assert_eq!(
        (&turns["count"], &turns["overlapped"]),
        (&1.into(), &0.into()),
        "{turns}"
    );
    // The kernel's clock may differ by two ticks, and the call takes far longer.
    let most = answered - request + READ_LATE / 2;
    assert!(
        turns["wait_ns"].as_u64().unwrap() < most.as_nanos() as u64,
        "{most:?}: {turns}"
    );
}

/// The server sends first. Nobody has asked, so nobody has waited.
fn greeting() {
    let tracer = start_tracer(&[]);
    let pair = pair(IpVersion::V4);
    send(&pair.server, 50);
    recv(&pair.client, 50);
    let bounds = serve(&pair, Duration::from_millis(1), 3);
    let turns = close(tracer, pair);
    bounds
        .iter()
        .zip(&turns)
        .for_each(|(bounds, turns)| bounds.check(turns, 3));
}

/// Updates and rollups have the turns of a connection that stays open.
fn open_connections() {
    let tracer = start_tracer(&["--events", "update,close"]);
    let pair = pair(IpVersion::V4);
    let bounds = serve(&pair, Duration::from_millis(5), 10);
    for (direction, bounds) in ["outbound", "inbound"].into_iter().zip(&bounds) {
        let has_all = |record: &Value| record["turns"]["count"] == 10;
        let update = event_of(&tracer, "update", direction, pair.truth.src, has_all);
        bounds.check(&update["turns"], 10);
    }
    close(tracer, pair);
}

/// Turns of a connection from before the start count from the first scan on.
fn older_connections() {
    let pair = pair(IpVersion::V4);
    serve(&pair, Duration::ZERO, 3);
    let tracer = start_tracer(&[]);
    let bounds = serve(&pair, Duration::from_millis(5), 4);
    let turns = close(tracer, pair);
    bounds
        .iter()
        .zip(&turns)
        .for_each(|(bounds, turns)| bounds.check(turns, 4));
}

fn need_tracepoints() {
    let output = Command::new(binary())
        .args(["--no-resolve", "--turns"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("--turns needs a kernel with the tracepoints sk_data_ready and sock_send_length"),
        "{stderr}"
    );
}

/// The receiver stops reading, so that its window limits the sender, whose own buffer is large enough.
fn stopped_reader(version: IpVersion) {
    const STOP: Duration = Duration::from_millis(400);
    let tracer = Tracer::json(&[]);
    tracer.output.watch(net::current_netns());
    let listener: TcpListener = listen(version);
    SockRef::from(&listener).set_recv_buffer_size(8 << 10).unwrap();
    let pair = pair_with(&listener);
    SockRef::from(&pair.client).set_send_buffer_size(4 << 20).unwrap();
    let (full, is_full) = mpsc::channel();
    let stopped = thread::scope(|scope| {
        scope.spawn(|| {
            (&pair.client).write_all(&vec![7; 256 << 10]).unwrap();
            full.send(()).unwrap();
        });
        is_full.recv().unwrap();
        let before = Instant::now();
        thread::sleep(STOP);
        let stopped = before.elapsed();
        recv(&pair.server, 256 << 10);
        stopped
    });
    wait_until("everything is acknowledged", || {
        TcpInfo::read(&pair.client).unacked() == 0
    });
    let client = pair.truth.src;
    let Pair {
        client: socket, server, ..
    } = pair;
    drop(socket);
    drain(&server);
    drop(server);
    let record = event_of(&tracer, "close", "outbound", client, |_| true);
    let us = |name: &str| u128::from(record["tcp"][name].as_u64().unwrap());
    // The kernel counts in ticks of up to 10 ms.
    assert!(
        us("rwnd_limited_us") + 20_000 >= stopped.as_micros(),
        "{stopped:?}: {record}"
    );
    assert!(
        us("busy_us") >= us("rwnd_limited_us") + us("sndbuf_limited_us"),
        "{record}"
    );
    assert!(us("sndbuf_limited_us") * 10 <= us("busy_us"), "{record}");
    tracer.interrupt().check_lossless();
}
