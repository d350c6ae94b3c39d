//! Kubelets and container runtimes that hang, fail, or send wrong or too much data.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::Value;

use crate::Topic;
use crate::support::tracer::{Totals, Tracer, TracerCommand};
use crate::support::traffic::make_traffic;
use crate::support::{net, peak_memory_kib};

pub fn add(topic: Topic) -> Topic {
    topic
        .standalone("kubelet_sends_100_mib", &[], kubelet_sends_100_mib)
        .standalone("kubelet_stops_within_an_object", &[], kubelet_stops_within_an_object)
        .standalone("kubelet_sends_no_pod_list", &[], kubelet_sends_no_pod_list)
        .standalone("kubelet_error_is_escaped", &[], kubelet_error_is_escaped)
        .standalone("runtime_hangs", &[], runtime_hangs)
        .standalone("runtime_sends_no_cri", &[], runtime_sends_no_cri)
}

/// Starts a kubelet that passes each connection with a request to `answer`. Returns the flag that names it.
pub fn kubelet(answer: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The request comes in one segment.
            if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                answer(stream);
            }
        }
    });
    format!("--kubelet=http://{address}/pods")
}

/// Traces with this kubelet until the tool warns about it. Returns the warning.
fn wait_warning(kubelet: &str) -> (Tracer, String) {
    let tracer = TracerCommand::with_names(&["-o", "json", kubelet]).start();
    let line = tracer.wait_stderr("kmesh-trace: warning: no names yet from the kubelet");
    make_traffic(1);
    (tracer, line)
}

/// 100 MiB of the same pod.
fn kubelet_sends_100_mib() {
    let url = kubelet(|mut stream| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[";
        _ = stream.write_all(head.as_bytes());
        let item = format!(
            r#"{{"metadata":{{"name":"p","namespace":"n","uid":"{}"}}}},"#,
            "u".repeat(1000)
        );
        let items = item.repeat(100);
        // Then the connection ends, but not the list.
        for _ in 0..(100 << 20) / items.len() {
            if stream.write_all(items.as_bytes()).is_err() {
                return;
            }
        }
    });
    let tracer = TracerCommand::with_names(&["-o", "json", &url]).start();
    // On a busy machine the response may take more than its ten seconds. The tool then warns about that and asks again.
    tracer.wait_stderr_containing("the middle of an object");
    make_traffic(1);
    let kib = peak_memory_kib(tracer.pid);
    assert!(kib < MAX_KIB, "{kib} KiB");
    tracer.interrupt();
}

fn kubelet_stops_within_an_object() {
    let url = kubelet(|mut stream| {
        let half = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n\
                    {\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[{\"metadata\":{\"name\":\"half\",\"names";
        _ = stream.write_all(half.as_bytes());
    });
    let (tracer, line) = wait_warning(&url);
    assert!(!line.contains("PodList"), "the connection ended, not the list: {line}");
    tracer.interrupt();
}

/// Sends an HTTP response with this body.
pub fn respond(mut stream: &TcpStream, status: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    _ = stream.write_all((head + body).as_bytes());
}

fn kubelet_sends_no_pod_list() {
    for body in [
        "\"pods\"",
        "{\"kind\":\"NodeList\",\"apiVersion\":\"v1\",\"items\":[]}",
        "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":{\"a\":1}}",
        "\u{0}\u{0}\u{0}",
    ] {
        let url = kubelet(move |stream| respond(&stream, "200 OK", body));
        let (tracer, line) = wait_warning(&url);
        assert!(line.contains("no PodList"), "{body}: {line}");
        tracer.interrupt();
    }
}

/// Control characters of a kubelet's response are escaped on standard error.
fn kubelet_error_is_escaped() {
    let url = kubelet(|stream| {
        let body = "Forbidden (user=\u{1b}[2J\u{202e}mallory\u{7}, verb=get)";
        respond(&stream, "403 Forbidden", body);
    });
    let (tracer, line) = wait_warning(&url);
    assert!(
        line.contains(r"\u001b[2J\u202emallory\u0007") && !line.contains('\u{1b}') && !line.contains('\u{202e}'),
        "{line:?}"
    );
    tracer.interrupt();
}

/// Checks that the tracer still traces, exactly and without loss, and that it exits with this status.
pub fn check_still_traces(tracer: &Tracer, status: i32) {
    tracer.output.watch(net::current_netns());
    make_traffic(5);
    let exit = tracer.interrupt();
    assert_eq!(exit.status.code(), Some(status), "{:?}", exit.stderr);
    assert_eq!(exit.output.stream_errors(), Vec::<String>::new());
    let totals = Totals::from_summary(exit.output.summaries().last().expect("a summary"));
    totals.check();
    // The tool's connections to the source have records, too.
    let records = exit.output.records(net::current_netns());
    let is_traffic = |record: &Value| {
        let bytes = (record["sent_bytes"].as_u64(), record["received_bytes"].as_u64());
        [(Some(10), Some(20)), (Some(20), Some(10))].contains(&bytes)
    };
    let count = records.iter().filter(|record| is_traffic(&record.value)).count();
    assert_eq!((totals.lost, count), (0, 10), "{totals:?}");
    let panicked = exit.stderr.iter().any(|line| line.contains("panicked"));
    assert!(!panicked, "{:?}", exit.stderr);
}

/// The maximum memory of a tracer whose source sends wrong data. Without sources it takes 4 MiB, and while an event of
/// 8 MiB grows, two copies of it exist.
pub const MAX_KIB: u64 = 24 << 10;

/// A temporary file. Dropping it removes the file.
pub struct TemporaryFile(pub PathBuf);

impl TemporaryFile {
    /// A unique path that ends with `name`.
    pub fn new(name: &str) -> Self {
        static CREATED: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), CREATED.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("kmesh-trace-{process}-{number}-{name}"));
        _ = fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

/// Starts a container runtime that passes each connection to `answer`. Returns its socket and the flag that names it.
fn runtime(name: &str, answer: impl Fn(UnixStream) + Send + Sync + 'static) -> (TemporaryFile, String) {
    let socket = TemporaryFile::new(name);
    let listener = UnixListener::bind(&socket.0).unwrap();
    let flag = format!("--cri={}", socket.0.display());
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || answer(stream));
        }
    });
    (socket, flag)
}

/// The runtime reads everything and never answers.
fn runtime_hangs() {
    let (_socket, flag) = runtime("hangs.sock", |mut stream| {
        while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
    });
    let tracer = TracerCommand::with_names(&["-o", "json", &flag]).start();
    let line = tracer.wait_stderr("kmesh-trace: error: no names from the container runtime at");
    assert!(line.contains("answer"), "{line}");
    assert!(peak_memory_kib(tracer.pid) < MAX_KIB);
    check_still_traces(&tracer, 1);
}

/// Another protocol, a huge frame, and bytes without end.
fn runtime_sends_no_cri() {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let http = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec();
    let huge = [&SETTINGS[..], &[0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 1], &[0x5a; 4096]].concat();
    let cases: [(&str, Vec<u8>, bool); 5] = [
        ("http.sock", http, false),
        ("huge.sock", huge, false),
        ("zeros.sock", vec![0; 65536], true),
        ("noise.sock", (0..=255).cycle().take(65536).collect(), true),
        ("settings.sock", SETTINGS.repeat(7000), true),
    ];
    for (name, bytes, is_endless) in cases {
        let (_socket, flag) = runtime(
            name,
            move |mut stream| while stream.write_all(&bytes).is_ok() && is_endless {},
        );
        let tracer = TracerCommand::with_names(&["-o", "json", &flag]).start();
        let line = tracer.wait_stderr("kmesh-trace: warning: no names yet from the container runtime at");
        let (_, why) = line.split_once(".sock: ").unwrap_or_else(|| panic!("{name}: {line}"));
        assert!(!why.is_empty() && !why.contains('\u{1b}'), "{name}: {line}");
        let kib = peak_memory_kib(tracer.pid);
        assert!(kib < MAX_KIB, "{name}: {kib} KiB");
        check_still_traces(&tracer, 1);
    }
}
