//! How the tool starts, where its output goes, and how it says no.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use crate::signals::traffic;
use crate::support::actor::Actor;
use crate::support::expect::{Scene, own_comm};
use crate::support::net;
use crate::support::sock::{V, drain, exchange, pair, wait_until};
use crate::support::tracer::{Start, Tracer, binary};
use crate::{Table, shared};

/// The trials.
pub fn table() -> Table {
    Table::new("lifecycle")
        .own("closed_pipe_log", &[], || closed_pipe("log"))
        .own("closed_pipe_json", &[], || closed_pipe("json"))
        .own("full_disk", &[], full_disk)
        .own("ordinary_user", &[], ordinary_user)
        .own("without_btf", &[], without_btf)
        .own("wrong_arguments", &[], wrong_arguments)
        .own("two_tracers", &[], two_tracers)
        .own("log_lines", &[], log_lines)
        .own("no_output", &[], no_output)
        .own("quiet", &[], quiet)
        .own("verbose", &[], verbose)
        .own("summary", &[], summary)
}

/// `kmesh-trace | head -1`
fn closed_pipe(format: &str) {
    let (reader, writer) = std::io::pipe().unwrap();
    let tracer = Start::new(&["-o", format]).stdout(writer).tracing();
    traffic(1);
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    assert!(
        reader.read_line(&mut line).unwrap() > 0 && line.ends_with('\n'),
        "{line:?}"
    );
    drop(reader);
    traffic(1);
    let end = tracer.wait();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.stderr);
    let noise = |line: &String| ["rror", "anic", "ipe"].iter().any(|word| line.contains(word));
    assert!(!end.stderr.iter().any(noise), "{:?}", end.stderr);
}

fn full_disk() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let tracer = Start::new(&["-o", "json"]).stdout(full).tracing();
    traffic(1);
    let end = tracer.wait();
    assert_eq!(end.status.code(), Some(1), "{:?}", end.stderr);
    let errors: Vec<_> = end
        .stderr
        .iter()
        .filter(|line| line.contains("standard output"))
        .collect();
    assert_eq!(errors.len(), 1, "one clear error: {:?}", end.stderr);
    assert!(errors[0].to_lowercase().contains("no space left"), "{errors:?}");
}

/// A copy of the binary where anybody can run it.
struct Copy(PathBuf);

impl Copy {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kmesh-trace-{name}-{}", std::process::id()));
        std::fs::copy(binary(), &path).expect("copy the binary");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    /// Runs it to its end as nobody.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.0);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .uid(65534)
            .gid(65534)
            .current_dir("/");
        command.output().expect("run as nobody")
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ordinary_user() {
    let binary = Copy::new("user");
    let output = binary.run(&[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    assert!(
        said.contains("CAP_BPF") && said.contains("CAP_PERFMON"),
        "what is missing: {said}"
    );
    assert!(said.contains("sudo"), "what to do: {said}");
    assert!(
        said.lines().count() <= 3 && said.starts_with("kmesh-trace: "),
        "short: {said}"
    );
    let check = binary.run(&["check"]);
    assert_eq!(
        check.status.code(),
        Some(3),
        "{}{}",
        text(&check.stdout),
        text(&check.stderr)
    );
    for fine in [&["schema"][..], &["-h"], &["--help"], &["--version"]] {
        let output = binary.run(fine);
        assert_eq!(output.status.code(), Some(0), "{fine:?}: {}", text(&output.stderr));
        assert!(!output.stdout.is_empty(), "{fine:?}");
    }
}

/// The kernel's types are hidden, as on a kernel built without them.
fn without_btf() {
    for (arguments, status) in [("", 3), ("check", 3), ("schema", 0)] {
        let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" $1";
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", hide])
            .arg(binary())
            .arg(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("unshare");
        let (told, said) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{arguments}: {told}{said}");
        if status == 3 {
            let all = told + &said;
            assert!(all.contains("/sys/kernel/btf/vmlinux"), "what is missing: {all}");
            assert!(all.contains("CONFIG_DEBUG_INFO_BTF"), "what to do: {all}");
        }
    }
}

/// Refused before anything else is looked at: nobody, who may load nothing, is told the same.
fn wrong_arguments() {
    let binary = Copy::new("arguments");
    for wrong in [
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
        let output = binary.run(wrong);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {said}");
        assert!(output.stdout.is_empty() && !said.is_empty(), "{wrong:?}: {said}");
        assert!(!said.contains("panicked"), "{wrong:?}: {said}");
    }
}

fn two_tracers() {
    let beside = Scene::of_new_namespace(&shared().store);
    let own = Tracer::json(&[]);
    let scene = Scene::new(&own.store);
    let pair = pair(V::Four);
    exchange(&pair, 1000, 300);
    drop(pair.client);
    assert_eq!(drain(&pair.server), 0);
    drop(pair.server);
    let wants = [
        pair.truth.outbound().bytes(1000, 300).ok("local"),
        pair.truth.inbound().bytes(300, 1000).ok("peer"),
    ];
    scene.expect(&wants);
    // Such as the other scene's marker.
    beside.expect_among_others(&wants);
    drop(scene);
    own.interrupt().check_whole();
}

/// The log is one whole line a record, whatever a process calls itself, and its fields are the record's.
fn log_lines() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let tracer = Start::new(&[])
        .lines({
            let lines = Arc::clone(&lines);
            move |line| lines.lock().unwrap().push(line.to_vec())
        })
        .tracing();
    let actor = Actor::start();
    let hostile = b"x\n\x1b[2J, \"y=z";
    actor.ask(&format!(
        "name {}",
        hostile.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    ));
    let listener = std::net::TcpListener::bind((net::address(0), 0)).unwrap();
    let dst = listener.local_addr().unwrap();
    let src = actor.connect("s", dst);
    let (server, _) = listener.accept().unwrap();
    actor.ask("write s 7");
    actor.ask("close s");
    assert_eq!(drain(&server), 7);
    drop(server);
    let ours = || {
        let all = lines.lock().unwrap();
        let mine = |line: &&Vec<u8>| text(line).contains(&format!("dst.addr={dst},"));
        all.iter().filter(mine).cloned().collect::<Vec<_>>()
    };
    wait_until("both lines are there", || ours().len() >= 2);
    let pid = actor.pid();
    let me = format!("{}/{}", own_comm(), std::process::id());
    let end = tracer.interrupt();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.stderr);
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
        let (ours, process) = if line.contains("direction=OUTBOUND") {
            (
                "sent_bytes=7, received_bytes=0, duration=",
                format!(r#"process="x\u000a\u001b[2J, \"y=z/{pid}""#),
            )
        } else {
            ("sent_bytes=0, received_bytes=7, duration=", format!("process={me}"))
        };
        // Either spelling of a newline is JSON.
        let line = line.replace(r"\n", r"\u000a").replace(r"\u001B", r"\u001b");
        assert!(line.contains(ours), "{ours} in {line}");
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

/// The words of the summary go to standard error when standard output is not JSON.
fn no_output() {
    let printed = Arc::new(Mutex::new(Vec::new()));
    let tracer = Start::new(&["-o", "none"])
        .lines({
            let printed = Arc::clone(&printed);
            move |line| printed.lock().unwrap().extend_from_slice(line)
        })
        .tracing();
    let before = tracer.said().len();
    traffic(3);
    let end = tracer.interrupt();
    assert_eq!(end.status.code(), Some(0), "{:?}", end.stderr);
    assert_eq!(text(&printed.lock().unwrap()), "");
    let words = end.stderr[before..].join("\n");
    assert!(
        words.contains("delivered") && words.contains("lost"),
        "the summary in words: {:?}",
        end.stderr
    );
}

/// Nothing on standard error when all is well.
fn quiet() {
    for format in ["json", "log"] {
        let mut command = Command::new(binary());
        command
            .args(["-q", "-o", format])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        // It does not say when it is ready, so connections are made until it shows one.
        let (shown, wait) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let mut first = String::new();
            lines.read_line(&mut first).unwrap();
            shown.send(()).unwrap();
            let mut rest = String::new();
            lines.read_to_string(&mut rest).unwrap();
        });
        wait_until("a connection shows", || {
            traffic(1);
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

fn verbose() {
    let plain = Tracer::json(&[]);
    let verbose = Tracer::json(&["-v"]);
    let (plain, verbose) = (plain.interrupt(), verbose.interrupt());
    plain.check_whole();
    verbose.check_whole();
    assert!(
        verbose.stderr.len() > plain.stderr.len(),
        "{:?} and {:?}",
        verbose.stderr,
        plain.stderr
    );
}

/// What the summary says of where it ran.
fn summary() {
    let tracer = Tracer::json(&[]);
    traffic(1);
    let end = tracer.interrupt();
    end.check_whole();
    let summary = &end.store.summaries()[0];
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(summary["kernel"], kernel.trim());
    assert!(
        summary["node"].as_str().is_some_and(|node| !node.is_empty()),
        "{summary}"
    );
    assert_eq!(summary["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(summary["unresolved"], 0, "no pods here: {summary}");
}
