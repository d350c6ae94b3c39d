//! The configurations of log shippers in `deploy/shippers`, in the real programs. They send 100,000 lines to an OTLP
//! receiver of the test, which counts each line.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

use crate::support::net;
use crate::support::sock::wait_until;
use crate::support::tracer::binary;

const LINES: usize = 100_000;
/// The start of the IDs of the lines.
const ID: &[u8] = b"line-";
const DIGITS: usize = 6;
/// The number of requests whose attributes are compared.
const MAX_BODIES: usize = 3;

/// A log shipper with its configuration in `deploy/shippers`: Collector, Fluent Bit or Vector.
struct Shipper {
    /// The environment variable that names the program, and the program's names in the search path.
    variable: &'static str,
    programs: &'static [&'static str],
    config: &'static str,
    /// The arguments before the path of the configuration.
    arguments: &'static [&'static str],
}

const COLLECTOR: Shipper = Shipper {
    variable: "OTELCOL",
    programs: &["otelcol-contrib", "otelcol"],
    config: "otel-collector.yaml",
    arguments: &["--config"],
};
const FLUENT_BIT: Shipper = Shipper {
    variable: "FLUENT_BIT",
    programs: &["fluent-bit"],
    config: "fluent-bit.yaml",
    arguments: &["--config"],
};
const VECTOR: Shipper = Shipper {
    variable: "VECTOR",
    programs: &["vector"],
    config: "vector.yaml",
    arguments: &["--config"],
};

/// Checks that the Collector is there.
pub fn has_collector() -> Result<(), String> {
    COLLECTOR.find().map(drop)
}

/// Checks that Fluent Bit is there.
pub fn has_fluent_bit() -> Result<(), String> {
    FLUENT_BIT.find().map(drop)
}

/// Checks that Vector is there.
pub fn has_vector() -> Result<(), String> {
    VECTOR.find().map(drop)
}

/// The Collector delivers each line once, with the attributes that the documentation lists.
pub fn collector_delivers_each_line_once() {
    let bodies = COLLECTOR.ship();
    check_json(&bodies);
}

/// Fluent Bit delivers each line once. It encodes OTLP as protobuf, in which names and texts are readable.
pub fn fluent_bit_delivers_each_line_once() {
    let bodies = FLUENT_BIT.ship();
    for name in expected_attributes(&lines()[0]).keys() {
        let has_name = |body: &Vec<u8>| memchr::memmem::find(body, name.as_bytes()).is_some();
        assert!(bodies.iter().any(has_name), "{name}");
    }
}

/// Vector delivers each line once, with the attributes that the documentation lists.
pub fn vector_delivers_each_line_once() {
    let bodies = VECTOR.ship();
    check_json(&bodies);
}

impl Shipper {
    fn find(&self) -> Result<PathBuf, String> {
        if let Some(program) = std::env::var_os(self.variable) {
            return Ok(program.into());
        }
        let folders = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&folders)
            .flat_map(|folder| self.programs.iter().map(move |program| folder.join(program)))
            .find(|program| program.is_file())
            .ok_or_else(|| format!("no {}, which {} may name", self.programs[0], self.variable))
    }

    /// Starts the program, which sends the lines of a file that grows. Returns the bodies of the first
    /// requests.
    fn ship(&self) -> Vec<Vec<u8>> {
        let receiver = Receiver::start();
        let folder = std::env::temp_dir().join(format!(
            "kmesh-trace-shipper-{}-{}",
            std::process::id(),
            net::current_netns()
        ));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("lines.jsonl");
        let lines = lines();
        let (before, after) = lines.split_at(LINES / 2);
        fs::write(&file, before.concat()).unwrap();

        let log = File::create(folder.join("log")).unwrap();
        let mut shipper = Command::new(self.find().unwrap())
            .args(self.arguments)
            .arg(crate::folder().join("shippers").join(self.config))
            .env("KMESH_TRACE_LINES", &file)
            .env("KMESH_TRACE_OFFSETS", folder.join("offsets.db"))
            .env("KMESH_TRACE_STATE", &folder)
            .env("OTLP_ENDPOINT", format!("http://{}", receiver.address))
            .env("OTLP_HOST", receiver.address.ip().to_string())
            .env("OTLP_PORT", receiver.address.port().to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_until("the first line arrives", || receiver.count() > 0);
        // A tracer writes line by line. This also splits lines.
        let text = after.concat();
        let mut growing = OpenOptions::new().append(true).open(&file).unwrap();
        for part in text.as_bytes().chunks(100_003) {
            growing.write_all(part).unwrap();
        }
        wait_until("all lines arrive", || receiver.count() >= LINES);
        // The end flushes what the program still has.
        let pid = nix::unistd::Pid::from_raw(shipper.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        shipper.wait().unwrap();

        let received = std::mem::take(&mut *receiver.received.lock().unwrap());
        let counts = &received.counts;
        let wrong: Vec<_> = (0..LINES).filter(|&number| counts[number] != 1).collect();
        let first = wrong.first().map(|&number| (number, counts[number]));
        assert_eq!(wrong.len(), 0, "{first:?}; the log is in {}", folder.display());
        fs::remove_dir_all(folder).unwrap();
        received.bodies
    }
}

/// Returns the lines: the connections of the recorded incident over and over, each with another ID.
fn lines() -> Vec<String> {
    let incident = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/incident.jsonl.zst");
    let output = Command::new(binary())
        .args(["--read", incident, "-o", "json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let records: Vec<_> = text.lines().filter(|line| line.contains(r#""type":"conn""#)).collect();
    assert!(records.len() > 100, "{text}");
    let lines = records.iter().cycle().take(LINES).enumerate().map(|(number, record)| {
        let (head, rest) = record.split_once(r#""id":""#).unwrap();
        let (_, tail) = rest.split_once('"').unwrap();
        format!("{head}\"id\":\"line-{number:0DIGITS$}\"{tail}\n")
    });
    lines.collect()
}

/// Returns the number of each line in the body of a request.
fn numbers(body: &[u8]) -> impl Iterator<Item = usize> {
    memchr::memmem::find_iter(body, ID).map(|at| {
        let digits = &body[at + ID.len()..at + ID.len() + DIGITS];
        std::str::from_utf8(digits).unwrap().parse().unwrap()
    })
}

/// Compares the attributes of the records of some requests with the lines.
fn check_json(bodies: &[Vec<u8>]) {
    let lines = lines();
    let mut checked = 0;
    for body in bodies {
        let request: Value = serde_json::from_slice(body).unwrap();
        for record in request
            .pointer("/resourceLogs/0/scopeLogs/0/logRecords")
            .unwrap()
            .as_array()
            .unwrap()
        {
            let number = numbers(record.to_string().as_bytes()).next().unwrap();
            let expected = expected_attributes(&lines[number]);
            let attributes = record["attributes"].as_array().unwrap().iter();
            let attributes: HashMap<_, _> = attributes
                .map(|one| {
                    let value = &one["value"];
                    let text = value["stringValue"].as_str().or_else(|| value["intValue"].as_str());
                    (
                        one["key"].as_str().unwrap().to_owned(),
                        text.unwrap_or_default().to_owned(),
                    )
                })
                .filter(|(name, _)| name != "log.file.name")
                .collect();
            assert_eq!(attributes, expected, "{record}");
            let line: Value = serde_json::from_str(&lines[number]).unwrap();
            let severity = if line["outcome"] == "ok" { 9 } else { 17 };
            assert_eq!(record["severityNumber"], json!(severity), "{record}");
            let time = chrono::DateTime::parse_from_rfc3339(line["time"].as_str().unwrap()).unwrap();
            let nanoseconds = time.timestamp_nanos_opt().unwrap().to_string();
            assert_eq!(record["timeUnixNano"], nanoseconds, "{record}");
            checked += 1;
        }
    }
    assert!(checked > 0, "{} requests", bodies.len());
}

/// Returns the attributes of a line, by the table in `docs/opentelemetry.md`.
fn expected_attributes(line: &str) -> HashMap<String, String> {
    let line: Value = serde_json::from_str(line).unwrap();
    let is_outbound = line["direction"] == "outbound";
    let (here, peer) = if is_outbound {
        ("/src", "/dst")
    } else {
        ("/dst", "/src")
    };
    let mut attributes = vec![
        ("network.transport", "/protocol".to_owned()),
        ("network.type", "/family".to_owned()),
        ("process.pid", "/process/pid".to_owned()),
        ("container.id", "/local/container_id".to_owned()),
    ];
    if line["outcome"] != "ok" {
        attributes.push(("error.type", "/outcome".to_owned()));
    }
    for (address, port, end) in [
        ("client.address", "client.port", "/src"),
        ("source.address", "source.port", "/src"),
        ("server.address", "server.port", "/dst"),
        ("destination.address", "destination.port", "/dst"),
        ("network.local.address", "network.local.port", here),
        ("network.peer.address", "network.peer.port", peer),
    ] {
        attributes.push((address, format!("{end}/ip")));
        attributes.push((port, format!("{end}/port")));
    }
    let values = attributes.into_iter().filter_map(|(name, pointer)| {
        let text = match line.pointer(&pointer)? {
            Value::Null => return None,
            Value::String(text) => text.clone(),
            number => number.to_string(),
        };
        Some((name.to_owned(), text))
    });
    values.collect()
}

/// What a receiver got.
#[derive(Default)]
struct Received {
    /// The bodies of the first requests.
    bodies: Vec<Vec<u8>>,
    /// The number of times that each line arrived, and the sum of these.
    counts: Vec<u32>,
    total: usize,
}

impl Received {
    fn add(&mut self, body: Vec<u8>) {
        for number in numbers(&body) {
            self.counts[number] += 1;
            self.total += 1;
        }
        if self.bodies.len() < MAX_BODIES {
            self.bodies.push(body);
        }
    }
}

/// An HTTP server that takes what shippers send.
struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Received>>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Received {
            counts: vec![0; LINES],
            ..Received::default()
        }));
        let stored = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, stored) = (stream.unwrap(), stored.clone());
                thread::spawn(move || serve(stream, &stored));
            }
        });
        Self { address, received }
    }

    /// Returns the number of lines that have arrived.
    fn count(&self) -> usize {
        self.received.lock().unwrap().total
    }
}

/// Reads the requests of a connection, and decompresses their bodies.
fn serve(stream: TcpStream, received: &Mutex<Received>) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    loop {
        let mut headers = HashMap::new();
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
            if let Some((name, value)) = line.trim_end().split_once(": ") {
                headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
            line.clear();
        }
        let Some(length) = headers.get("content-length").and_then(|length| length.parse().ok()) else {
            return;
        };
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        if headers
            .get("content-encoding")
            .is_some_and(|encoding| encoding == "gzip")
        {
            let mut text = Vec::new();
            flate2::read::GzDecoder::new(&*body).read_to_end(&mut text).unwrap();
            body = text;
        }
        received.lock().unwrap().add(body);
        let kind = headers.get("content-type").map_or("text/plain", String::as_str);
        let answer = if kind.contains("json") { "{}" } else { "" };
        let length = answer.len();
        let response = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{answer}");
        if writer.write_all(response.as_bytes()).is_err() {
            return;
        }
    }
}
