//! How the tool starts and fails, and where its output goes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::support::actor::Actor;
use crate::support::expect::own_comm;
use crate::support::net;
use crate::support::record_view::RecordView;
use crate::support::sock::{IpVersion, drain, exchanged_pair, wait_until};
use crate::support::tracer::{BinaryCopy, Tracer, TracerCommand, binary};
use crate::support::traffic::make_traffic;
use crate::{Topic, shared_tracer};

pub fn topic() -> Topic {
    Topic::new("lifecycle")
        .standalone("closed_pipe_ends_the_log", &[], || closed_pipe_ends_the_tracer("log"))
        .standalone("closed_pipe_ends_the_json", &[], || closed_pipe_ends_the_tracer("json"))
        .standalone("full_disk_is_an_error", &[], full_disk_is_an_error)
        .standalone(
            "missing_capabilities_are_reported",
            &[],
            missing_capabilities_are_reported,
        )
        .standalone("missing_btf_is_reported", &[], missing_btf_is_reported)
        .standalone("invalid_arguments_exit_with_2", &[], invalid_arguments_exit_with_2)
        .standalone("two_tracers_print_the_same", &[], two_tracers_print_the_same)
        .standalone(
            "log_lines_are_complete_and_escaped",
            &[],
            log_lines_are_complete_and_escaped,
        )
        .standalone("no_output_prints_a_summary_text", &[], no_output_prints_a_summary_text)
        .standalone("quiet_prints_no_messages", &[], quiet_prints_no_messages)
        .standalone("verbose_prints_more_messages", &[], verbose_prints_more_messages)
        .standalone("summary_describes_the_node", &[], summary_describes_the_node)
}

/// As in `kmesh-trace | head -1`: status 0 and no error.
fn closed_pipe_ends_the_tracer(format: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    let tracer = TracerCommand::new(&["-o", format]).stdout(writer).start();
    make_traffic(1);
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    assert!(
        reader.read_line(&mut line).unwrap() > 0 && line.ends_with('\n'),
        "{line:?}"
    );
    drop(reader);
    make_traffic(1);
    let exit = tracer.wait();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    let is_error = |line: &String| ["rror", "anic", "ipe"].iter().any(|part| line.contains(part));
    assert!(!exit.stderr.iter().any(is_error), "{:?}", exit.stderr);
}

fn full_disk_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let tracer = TracerCommand::new(&["-o", "json"]).stdout(full).start();
    make_traffic(1);
    let exit = tracer.wait();
    assert_eq!(exit.status.code(), Some(1), "{:?}", exit.stderr);
    let errors: Vec<_> = exit
        .stderr
        .iter()
        .filter(|line| line.contains("standard output"))
        .collect();
    assert_eq!(errors.len(), 1, "one clear error: {:?}", exit.stderr);
    assert!(errors[0].to_lowercase().contains("no space left"), "{errors:?}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn missing_capabilities_are_reported() {
    let binary = BinaryCopy::new();
    let output = binary.run_as_nobody(&[]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(
        stderr.contains("CAP_BPF") && stderr.contains("CAP_PERFMON"),
        "what is missing: {stderr}"
    );
    assert!(stderr.contains("sudo"), "what to do: {stderr}");
    assert!(
        stderr.lines().count() <= 3 && stderr.starts_with("kmesh-trace: "),
        "short: {stderr}"
    );
    let check = binary.run_as_nobody(&["check"]);
    assert_eq!(
        check.status.code(),
        Some(3),
        "{}{}",
        text(&check.stdout),
        text(&check.stderr)
    );
    for args in [&["schema"][..], &["-h"], &["--help"], &["--version"]] {
        let output = binary.run_as_nobody(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        assert!(!output.stdout.is_empty(), "{args:?}");
    }
}

/// A tmpfs hides the kernel's BTF, as if the kernel was built without it.
fn missing_btf_is_reported() {
    for (arguments, status) in [("", 3), ("check", 3), ("schema", 0)] {
        let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" $1";
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", hide])
            .arg(binary())
            .arg(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("unshare");
        let all = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments}: {all}");
        if status == 3 {
            assert!(all.contains("/sys/kernel/btf/vmlinux"), "what is missing: {all}");
            assert!(all.contains("CONFIG_DEBUG_INFO_BTF"), "what to do: {all}");
        }
    }
}

/// Also for a user without capabilities: arguments are checked before everything else.
fn invalid_arguments_exit_with_2() {
    let binary = BinaryCopy::new();
    for args in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["-o", "xml"],
        &["-o"],
        &["--count", "many"],
        &["--count", "-1"],
        &["--duration", "5 parsecs"],
        &["--buffer", "big"],
        &["--color", "blue"],
    ] {
        let output = binary.run_as_nobody(args);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty() && !stderr.is_empty(), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

fn two_tracers_print_the_same() {
    let of_shared = RecordView::of_new_namespace(&shared_tracer().output);
    let tracer = Tracer::json(&[]);
    let view = RecordView::new(&tracer.output);
    let truth = exchanged_pair(IpVersion::V4).close_client_first();
    let expected = [
        truth.outbound().bytes(1000, 300).ok("local"),
        truth.inbound().bytes(300, 1000).ok("peer"),
    ];
    view.expect(&expected);
    // The other view's marker also has records.
    of_shared.expect_among_others(&expected);
    drop(view);
    tracer.interrupt().check_lossless();
}

/// Each record is one complete line with the right fields, whatever the name of its process.
fn log_lines_are_complete_and_escaped() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let tracer = TracerCommand::new(&[])
        .on_line({
            let lines = Arc::clone(&lines);
            move |line| lines.lock().unwrap().push(line.to_vec())
        })
        .start();
    let actor = Actor::start();
    let hostile = b"x\n\x1b[2J, \"y=z";
    actor.set_comm(hostile);
    let listener = TcpListener::bind((net::loopback_v4(0), 0)).unwrap();
    let dst = listener.local_addr().unwrap();
    let src = actor.connect("s", dst);
    let (server, _) = listener.accept().unwrap();
    actor.run("write s 7");
    actor.run("close s");
    assert_eq!(drain(&server), 7);
    drop(server);
    let ours = || {
        let all = lines.lock().unwrap();
        let is_ours = |line: &&Vec<u8>| text(line).contains(&format!("dst.addr={dst},"));
        all.iter().filter(is_ours).cloned().collect::<Vec<_>>()
    };
    wait_until("both lines are printed", || ours().len() >= 2);
    let pid = actor.pid();
    let own_process = format!("{}/{}", own_comm(), std::process::id());
    let exit = tracer.interrupt();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    for line in lines.lock().unwrap().iter() {
        let line = std::str::from_utf8(line).expect("UTF-8");
        assert!(line.starts_with("accesslog: ") && line.ends_with('\n'), "{line:?}");
        assert!(
            !line.trim_end_matches('\n').contains(|c: char| c.is_control()),
            "{line:?}"
        );
    }
    let ours = ours();
    assert_eq!(ours.len(), 2);
    for line in &ours {
        let line = text(line);
        let start = format!(
            " +0000 UTC src.addr={src}, src.workload=-, src.namespace=-, dst.addr={dst}, dst.service=-, \
             dst.workload=-, dst.namespace=-, direction="
        );
        assert!(line.contains(&start), "{line}");
        let (bytes, process) = if line.contains("direction=OUTBOUND") {
            (
                "sent_bytes=7, received_bytes=0, duration=",
                format!(r#"process="x\u000a\u001b[2J, \"y=z/{pid}""#),
            )
        } else {
            (
                "sent_bytes=0, received_bytes=7, duration=",
                format!("process={own_process}"),
            )
        };
        // JSON has two ways to escape a newline.
        let line = line.replace(r"\n", r"\u000a").replace(r"\u001B", r"\u001b");
        assert!(line.contains(bytes), "{bytes} in {line}");
        assert!(line.contains(&process), "{process} in {line}");
        assert!(
            line.contains(", outcome=ok, closed_by=") && line.contains("errno=-, established=true"),
            "{line}"
        );
        assert!(
            line.contains("undelivered_bytes=0") && line.contains("preexisting=false"),
            "{line}"
        );
    }
}

/// Without JSON, the summary goes to standard error as text.
fn no_output_prints_a_summary_text() {
    let output = Arc::new(Mutex::new(Vec::new()));
    let tracer = TracerCommand::new(&["-o", "none"])
        .on_line({
            let output = Arc::clone(&output);
            move |line| output.lock().unwrap().extend_from_slice(line)
        })
        .start();
    let before = tracer.stderr_lines().len();
    make_traffic(3);
    let exit = tracer.interrupt();
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    assert_eq!(text(&output.lock().unwrap()), "");
    let summary = exit.stderr[before..].join("\n");
    assert!(
        summary.contains("delivered") && summary.contains("lost"),
        "the summary as text: {:?}",
        exit.stderr
    );
}

/// With -q, standard error has errors alone.
fn quiet_prints_no_messages() {
    for format in ["json", "log"] {
        let mut command = Command::new(binary());
        command
            .args(["-q", "-o", format])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // The tool does not report that it traces, so the test makes connections until one is printed.
        let (printed, wait) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut first = String::new();
            lines.read_line(&mut first).unwrap();
            printed.send(()).unwrap();
            let mut rest = String::new();
            lines.read_to_string(&mut rest).unwrap();
        });
        wait_until("a connection is printed", || {
            make_traffic(1);
            wait.try_recv().is_ok()
        });
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id().cast_signed()),
            nix::sys::signal::SIGINT,
        )
        .unwrap();
        let output = child.wait_with_output().unwrap();
        reader.join().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr), "", "-q -o {format}");
    }
}

fn verbose_prints_more_messages() {
    let plain = Tracer::json(&[]);
    let verbose = Tracer::json(&["-v"]);
    let (plain, verbose) = (plain.interrupt(), verbose.interrupt());
    plain.check_lossless();
    verbose.check_lossless();
    assert!(
        verbose.stderr.len() > plain.stderr.len(),
        "{:?} and {:?}",
        verbose.stderr,
        plain.stderr
    );
}

fn summary_describes_the_node() {
    let tracer = Tracer::json(&[]);
    make_traffic(1);
    let exit = tracer.interrupt();
    exit.check_lossless();
    let summary = &exit.output.summaries()[0];
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(summary["kernel"], kernel.trim());
    assert!(
        summary["node"].as_str().is_some_and(|node| !node.is_empty()),
        "{summary}"
    );
    assert_eq!(summary["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(summary["unresolved"], 0, "no pods here: {summary}");
}
