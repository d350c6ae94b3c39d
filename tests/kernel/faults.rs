//! Faults around a tracer: it is stopped or killed, lacks memory or descriptors, restarts many times, has more load
//! than it can handle, and has name sources that fail or send wrong data.

mod api_server;
mod clock;
mod load;
mod many_sockets;
mod sources;

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::Topic;
use crate::support::expect::{CLOCK_ERROR, parse_time};
use crate::support::memory_limit::MemoryLimit;
use crate::support::output::ReceivedRecord;
use crate::support::probe::Need;
use crate::support::sock::{IpVersion, listen, pair_with, send, take_error, wait_until};
use crate::support::tracer::{Tracer, TracerCommand, binary};
use crate::support::traffic::{make_traffic_to, random_traffic};
use crate::support::{bpf, net};

pub fn topic() -> Topic {
    // First hundreds of thousands of sockets, before the shared tracer starts: the schema is checked for each of its
    // records.
    let topic = many_sockets::add(Topic::new("faults"))
        .standalone("sigstop_loses_no_record", &[Need::FullSize], sigstop_loses_no_record)
        .standalone(
            "full_ring_loses_whole_records",
            &[Need::Nft],
            full_ring_loses_whole_records,
        )
        .standalone("many_restarts", &[Need::FullSize], many_restarts)
        .standalone("killed_during_startup", &[], killed_during_startup)
        .standalone("descriptor_limit_is_reported", &[], descriptor_limit_is_reported)
        .standalone("memory_limit", &[Need::MemoryCgroup, Need::FullSize], memory_limit);
    api_server::add(sources::add(clock::add(load::add(topic))))
}

/// Connections that close while the tracer is stopped have records with the right times. (The kernel filters out other
/// programs' connections, which could fill the ring buffer.)
fn sigstop_loses_no_record() {
    /// Longer than each period of a tracer without name sources. The longest is an interval of 5 s.
    const STOPPED: Duration = Duration::from_secs(15);
    let server = net::loopback_v4(0);
    let tracer = Tracer::json(&["--to-ip", &server.to_string()]);
    tracer.output.watch(net::current_netns());
    tracer.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    let ends = random_traffic(server, 200).len();
    let closed_by = SystemTime::now();
    // The test is about this time.
    thread::sleep(STOPPED.saturating_sub(stopped.elapsed()));
    tracer.signal(Signal::SIGCONT);
    let exit = tracer.interrupt();
    exit.check_lossless();
    let records = exit.output.records(net::current_netns());
    assert_eq!((ends, records.len()), (400, 400));
    let times = records.iter().filter_map(|record| parse_time(&record.value["time"]));
    let latest = times.max();
    assert!(
        latest.is_some_and(|time| time <= closed_by + CLOCK_ERROR),
        "{latest:?} {closed_by:?}"
    );
}

/// The ring buffer of a stopped tracer fills up. Some outcomes depend on a RST, which the kernel sends after the close.
/// The buffer takes both events or neither: each printed record is right, and the others count as lost.
fn full_ring_loses_whole_records() {
    /// More than the smallest ring buffer holds.
    const CONNECTIONS: usize = 260;
    let tracer = Tracer::json(&["--direction", "outbound", "--buffer", "64KiB"]);
    tracer.output.watch(net::current_netns());
    let (clean, reset) = (listen(IpVersion::V4), listen(IpVersion::V4));
    let port = reset.local_addr().unwrap().port();
    net::set_packet_filter(&[&format!("tcp dport {port} tcp flags & fin == fin drop")]);
    // A close has 256 bytes in the buffer, with a RST 280. After 0 to 11 clean ones, the buffer is full at each offset
    // of a pair.
    for clean_count in 0..12 {
        tracer.signal(Signal::SIGSTOP);
        for _ in 0..clean_count {
            pair_with(&clean).close_client_first();
        }
        for _ in clean_count..CONNECTIONS {
            let pair = pair_with(&reset);
            drop(pair.client);
            // The FIN is lost, and the kernel resets when this data arrives.
            send(&pair.server, 1);
            assert_eq!(take_error(&pair.server), Errno::ECONNRESET);
        }
        tracer.signal(Signal::SIGCONT);
        // The tracer prints the summary after all records that were in the buffer.
        tracer.request_summary();
    }
    let exit = tracer.interrupt();
    let totals = exit.check();
    assert!(totals.lost > 0, "the ring buffer was never full");
    let records = exit.output.records(net::current_netns());
    // At least half of what the buffer holds, on any number of processors.
    assert!(records.len() > 12 * 100, "{} records", records.len());
    for ReceivedRecord { value, .. } in records {
        let is_reset = value["dst"]["port"] == port;
        let outcome = if is_reset { "reset_by_local" } else { "ok" };
        assert_eq!(value["outcome"], outcome, "{value}");
    }
}

/// Each restart removes all BPF objects. `KMESH_TRACE_TEST_STARTS` sets the number of restarts.
fn many_restarts() {
    let starts = std::env::var("KMESH_TRACE_TEST_STARTS").map_or(20, |starts| starts.parse().unwrap());
    let mut objects = Vec::new();
    for _ in 0..starts {
        let tracer = TracerCommand::new(&["-o", "none"]).start();
        objects.extend(bpf::objects_of(tracer.pid));
        let exit = tracer.interrupt();
        assert!(exit.status.success(), "{:?}", exit.stderr);
    }
    assert!(
        objects.len() > 10 * starts,
        "{} objects in {starts} runs",
        objects.len()
    );
    wait_until("the kernel has removed all objects", || {
        bpf::existing(&objects).is_empty()
    });
}

/// SIGKILL before the tracer has any BPF object, and after it has created each of them.
fn killed_during_startup() {
    let tracer = TracerCommand::new(&["-o", "none"]).start();
    let all = bpf::objects_of(tracer.pid).len();
    assert!(all > 10, "{all} objects");
    tracer.interrupt();
    let mut created = Vec::new();
    for count in 0..=all {
        let mut child = Command::new(binary())
            .args(["--no-resolve", "-o", "none"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id() as i32);
        let mut objects = Vec::new();
        wait_until(&format!("{count} of {all} objects exist"), || {
            objects = bpf::objects_of(pid);
            objects.len() >= count
        });
        child.kill().unwrap();
        child.wait().unwrap();
        created.extend(objects);
    }
    wait_until("the kernel has removed all objects", || {
        bpf::existing(&created).is_empty()
    });
}

/// With each limit the tool either reports that it lacks descriptors, or traces. Above some limit it always traces.
fn descriptor_limit_is_reported() {
    let mut traced = Vec::new();
    for limit in (4..=64_u64).step_by(4) {
        let mut command = Command::new(binary());
        command
            .args(["--no-resolve", "-o", "json", "--duration", "100ms"])
            .stdin(Stdio::null());
        // SAFETY: one system call, which is allowed between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?)) };
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            Some(0) => traced.push(limit),
            Some(1 | 3) => {
                assert!(traced.is_empty(), "{limit} is too low, but {traced:?} were enough");
                let is_reported =
                    stderr.contains("Too many open files") || stderr.contains("No file descriptors available");
                assert!(is_reported && !stderr.contains("5.12"), "{limit}: {stderr}");
            }
            // The dynamic loader fails below its own needs.
            Some(127) if limit == 4 => {}
            other => panic!("{limit}: {other:?}: {stderr}"),
        }
    }
    let min = traced.first().copied().unwrap_or(u64::MAX);
    assert!(min > 4 && min <= 64, "the lowest limit with which it traces: {min}");
}

/// With 40 MiB the tool traces 5,000 connections with all events. With less than its ring buffer it reports that memory
/// is lacking.
fn memory_limit() {
    // On some kernels the verifier takes up to 14 MiB for a moment, which count.
    let enough = MemoryLimit::new(40 << 20);
    let binary = PathBuf::from(binary());
    let listener = listen(IpVersion::V4);
    // The kernel's state of a connection counts, too, unless the filter rejects its port.
    let port = listener.local_addr().unwrap().port().to_string();
    let args = ["-o", "json", "--events", "open,update,close", "--interval", "1s"];
    let args = [&args[..], &["--port", &port]].concat();
    let tracer = TracerCommand::wrapped_by(enough.command(&binary), &args).start();
    make_traffic_to(&listener, 5_000);
    let totals = tracer.interrupt().check_lossless();
    assert!(totals.delivered >= 10_000, "{totals:?}");
    let peak = enough.peak_bytes();
    assert!(peak <= 40 << 20, "{peak}");

    let too_little = MemoryLimit::new(24 << 20);
    let output = too_little
        .command(&binary)
        .args(["--no-resolve", "-o", "none", "--buffer", "64Mi", "--duration", "1s"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("memory") && stderr.contains("--buffer"), "{stderr}");
}
