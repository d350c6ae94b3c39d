//! Signals, `--duration` and `--count`, and losses when nothing reads the ring buffer or standard output.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::Topic;
use crate::support::record_view::RecordView;
use crate::support::sock::{IpVersion, pair, wait_until};
use crate::support::tracer::{Totals, Tracer, TracerCommand, binary};
use crate::support::traffic::make_traffic;
use crate::support::{bpf, is_small_vm, net, test_timeout};

pub fn topic() -> Topic {
    Topic::new("signals")
        .standalone("interrupt_prints_all_records", &[], || {
            signal_prints_all_records(Tracer::json(&[]), Signal::SIGINT);
        })
        .standalone("terminate_prints_all_records", &[], || {
            signal_prints_all_records(Tracer::json(&[]), Signal::SIGTERM);
        })
        .standalone("hangup_prints_all_records", &[], || {
            signal_prints_all_records(start_with_hangup(SigHandler::SigDfl), Signal::SIGHUP);
        })
        .standalone("ignored_hangup_ends_no_trace", &[], ignored_hangup_ends_no_trace)
        .standalone(
            "second_interrupt_ends_a_blocked_tracer",
            &[],
            second_interrupt_ends_a_blocked_tracer,
        )
        .standalone("sigkill_leaves_no_bpf_objects", &[], sigkill_leaves_no_bpf_objects)
        .standalone("sigusr1_prints_a_summary", &[], sigusr1_prints_a_summary)
        .standalone("duration", &[], duration)
        .standalone("count", &[], count)
        .standalone("ring_overflow_with_4096_bytes", &[], || {
            ring_overflow_is_counted("4096")
        })
        .standalone("ring_overflow_with_64_kib", &[], || ring_overflow_is_counted("64Ki"))
        .standalone("blocked_stdout_is_counted", &[], blocked_stdout_is_counted)
}

/// After the signal the tracer prints all records that the kernel had before, then one summary.
fn signal_prints_all_records(tracer: Tracer, signal: Signal) {
    tracer.output.watch(net::current_netns());
    let objects = bpf::objects_of(tracer.pid);
    make_traffic(50);
    tracer.signal(signal);
    let exit = tracer.wait();
    exit.check_lossless();
    assert_eq!(exit.output.summaries().len(), 1);
    assert_eq!(exit.output.records(net::current_netns()).len(), 100);
    wait_until("the kernel has removed all objects", || {
        bpf::existing(&objects).is_empty()
    });
}

/// Starts a tracer that inherits this disposition of SIGHUP. That of the tests depends on how they were started.
fn start_with_hangup(disposition: SigHandler) -> Tracer {
    let mut command = Command::new(binary());
    let action = SigAction::new(disposition, SaFlags::empty(), SigSet::empty());
    // SAFETY: sigaction() is async-signal-safe, and the action is no function.
    unsafe { command.pre_exec(move || Ok(_ = sigaction(Signal::SIGHUP, &action)?)) };
    TracerCommand::wrapped_by(command, &["-o", "json"]).start()
}

/// A tracer that nohup(1) starts goes on after SIGHUP.
fn ignored_hangup_ends_no_trace() {
    let tracer = start_with_hangup(SigHandler::SigIgn);
    tracer.output.watch(net::current_netns());
    tracer.signal(Signal::SIGHUP);
    make_traffic(50);
    let exit = tracer.interrupt();
    exit.check_lossless();
    assert_eq!(exit.output.records(net::current_netns()).len(), 100);
}

/// Nothing reads standard output, so the first interrupt cannot print all records. Another interrupt ends the tracer.
fn second_interrupt_ends_a_blocked_tracer() {
    let (reader, writer) = std::io::pipe().unwrap();
    let tracer = TracerCommand::new(&["-o", "json"]).stdout(writer).start();
    make_traffic(300);
    tracer.signal(Signal::SIGINT);
    let deadline = Instant::now() + test_timeout();
    // The tracer may see the first signal late, and two that are pending at once are one. So a user sends it again.
    while !tracer.ended_within(Duration::from_millis(200)) {
        assert!(Instant::now() < deadline, "the tracer hangs");
        tracer.signal(Signal::SIGINT);
    }
    drop(reader);
    let exit = tracer.wait();
    let panicked = exit.stderr.iter().any(|line| line.contains("panicked"));
    assert!(!panicked, "{:?}", exit.stderr);
}

fn sigkill_leaves_no_bpf_objects() {
    let tracer = Tracer::json(&[]);
    let objects = bpf::objects_of(tracer.pid);
    let count = |kind| objects.iter().filter(|object| object.kind == kind).count();
    assert!(
        count(bpf::Kind::Program) > 0 && count(bpf::Kind::Map) > 0,
        "the tracer has {objects:?}"
    );
    assert_eq!(bpf::existing(&objects).len(), objects.len(), "the IDs are right");
    tracer.signal(Signal::SIGKILL);
    assert!(!tracer.wait().status.success());
    // A kernel worker removes them later.
    wait_until("the kernel has removed all objects", || {
        bpf::existing(&objects).is_empty()
    });
}

/// SIGUSR1 prints a summary of the records so far, and tracing goes on.
fn sigusr1_prints_a_summary() {
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    for round in 1..=2 {
        view.expect_clean_close(pair(IpVersion::V4), 0, 0);
        let totals = Totals::from_summary(&tracer.request_summary());
        totals.check();
        // With the view's markers, four ends a round.
        assert!(totals.delivered >= 4 * round, "{totals:?}");
    }
    let exit = tracer.interrupt();
    exit.check_lossless();
    assert_eq!(exit.output.summaries().len(), 3);
}

fn duration() {
    let started = Instant::now();
    let tracer = Tracer::json(&["--duration", "1500ms"]);
    make_traffic(1);
    let exit = tracer.wait();
    assert!(started.elapsed() >= Duration::from_millis(1500));
    exit.check_lossless();
    let elapsed = exit.output.summaries()[0]["elapsed_ns"].as_u64().unwrap();
    assert!(elapsed >= 1_500_000_000, "{elapsed}");
}

/// Exactly five records, although more connections end before the tracer stops.
fn count() {
    let server = net::loopback_v4(0);
    let tracer = Tracer::json(&["--count", "5", "--to-ip", &server.to_string()]);
    tracer.signal(Signal::SIGSTOP);
    make_traffic(20);
    tracer.signal(Signal::SIGCONT);
    let totals = tracer.wait().check_lossless();
    assert_eq!(totals.delivered, 5);
    assert!(totals.closes >= 40 && totals.after_limit >= 35, "{totals:?}");
}

/// Checks that each of the `made` ends that pass the filter is delivered or counted as lost. Other programs'
/// connections count as filtered.
pub fn check_all_counted(totals: &Totals, made: usize, delivered: usize) {
    assert_eq!(totals.delivered, delivered as u64, "{totals:?}");
    assert_eq!(
        totals.delivered + totals.lost,
        made as u64,
        "{made} ends made: {totals:?}"
    );
}

/// While the tracer is stopped, nothing reads the ring buffer.
fn ring_overflow_is_counted(buffer: &str) {
    let made = if is_small_vm() { 600 } else { 5000 };
    let server = net::loopback_v4(0);
    let tracer = Tracer::json(&["--buffer", buffer, "--to-ip", &server.to_string()]);
    tracer.output.watch(net::current_netns());
    tracer.signal(Signal::SIGSTOP);
    make_traffic(made);
    tracer.signal(Signal::SIGCONT);
    let exit = tracer.interrupt();
    let totals = exit.check();
    assert!(totals.lost > 0, "nothing lost with --buffer {buffer}: {totals:?}");
    let lines = exit.output.lost_lines();
    let last = lines.last().expect("a lost line");
    let sum: u64 = lines.iter().map(|line| line["lost_records"].as_u64().unwrap()).sum();
    assert_eq!(last["lost_records_total"], sum, "the sum of the lost lines");
    let has_reason = |line: &serde_json::Value| line["reason"].as_str().is_some_and(|reason| !reason.is_empty());
    assert!(lines.iter().all(has_reason), "{lines:?}");
    check_all_counted(&totals, 2 * made, exit.output.records(net::current_netns()).len());
}

/// Nothing reads standard output while more connections end than the ring buffer, the queue and the pipe can hold. The
/// tracer goes on, and counts the records that it lost.
fn blocked_stdout_is_counted() {
    // 16,000 records of at least 360 bytes. The queue holds 4 MiB.
    const MADE: usize = 8_000;
    let server = net::loopback_v4(0);
    let (open, gate) = mpsc::channel();
    let args = ["-o", "json", "--buffer", "64Ki", "--to-ip", &server.to_string()];
    let tracer = TracerCommand::new(&args).read_after(gate).start();
    tracer.output.watch(net::current_netns());
    make_traffic(MADE);
    assert!(!tracer.ended_within(Duration::ZERO), "the tracer has exited");
    open.send(()).unwrap();
    // The tracer now prints again: new records come, unless they are lost.
    make_traffic(10);
    let exit = tracer.interrupt();
    let totals = exit.check();
    assert!(totals.lost > 0, "{totals:?}");
    let delivered = exit.output.records(net::current_netns()).len();
    check_all_counted(&totals, 2 * (MADE + 10), delivered);
}
