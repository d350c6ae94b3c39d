//! Real clients and servers: HTTP/1.1 and HTTP/2, PostgreSQL and Redis. The truth is the server's own log of how long
//! it worked, and the time from the test's line to the client until the client's answer.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::start_tracer;
use crate::support::delay::DelayedNetwork;
use crate::support::probe::postgres_folder;
use crate::support::sock::{IpVersion, free_port};
use crate::support::tracer::Tracer;
use crate::support::{net, scratch_dir, test_timeout};

/// How long the servers think, and for how many requests. Each has its own connection.
const ROUNDS: [(Duration, usize); 3] = [
    (Duration::ZERO, 40),
    (Duration::from_millis(5), 20),
    (Duration::from_millis(50), 10),
];

/// A program in the scenario's namespace. Dropping it kills it.
struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    /// The lines of the stream that was chosen.
    lines: Receiver<String>,
}

impl Program {
    /// Starts a program, and reads the lines of its standard output or error.
    fn start(command: &mut Command, reads_stderr: bool) -> Self {
        let null_or_pipe = |is_read| if is_read { Stdio::piped() } else { Stdio::null() };
        command
            .stdin(Stdio::piped())
            .stdout(null_or_pipe(!reads_stderr))
            .stderr(null_or_pipe(reads_stderr));
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (send, lines) = channel();
        let forward = move |stream: &mut dyn std::io::Read| {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { break };
                if send.send(line).is_err() {
                    break;
                }
            }
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        thread::spawn(move || match (stdout, stderr) {
            (Some(mut stdout), _) => forward(&mut stdout),
            (_, Some(mut stderr)) => forward(&mut stderr),
            _ => {}
        });
        Self {
            stdin: child.stdin.take(),
            child,
            lines,
        }
    }

    fn line(&self) -> String {
        self.lines
            .recv_timeout(test_timeout())
            .unwrap_or_else(|error| panic!("no line of a program: {error}"))
    }

    /// Returns the next line that contains this text.
    fn line_with(&self, text: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Writes a line to the program, and waits for the line that answers it. Returns how long that took.
    fn ask(&self, question: &str) -> Duration {
        let asked = Instant::now();
        let mut stdin = self.stdin.as_ref().expect("an open pipe");
        writeln!(stdin, "{question}").expect("write to a program");
        self.line();
        asked.elapsed()
    }

    /// Asks a server to end, so that it removes what it has shared with others, and waits for that.
    fn interrupt(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("interrupt a program");
        self.child.wait().expect("wait for a program");
    }

    /// Closes standard input, at whose end a client ends, and waits for that.
    fn end(mut self) {
        drop(self.stdin.take());
        self.child.wait().expect("wait for a program");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A protocol: its server, and how to talk to it.
struct Protocol<'a> {
    name: &'static str,
    server: &'a Program,
    start_client: &'a dyn Fn() -> Program,
    /// A question that the server answers at once, and one for which it thinks.
    greeting: &'a str,
    question: &'a dyn Fn(Duration) -> String,
    /// Returns the time that the server took for the last question, by its own clock.
    thought: &'a dyn Fn(&Program) -> Duration,
}

impl Protocol<'_> {
    /// Talks to the server, and compares the turns of both ends with the clocks of both programs.
    fn check(&self) {
        // Both programs have exchanged their first messages before the tracer counts turns.
        let clients = ROUNDS.map(|_| {
            let client = (self.start_client)();
            client.ask(self.greeting);
            (self.thought)(self.server);
            client
        });
        let tracer = start_tracer(&[]);
        for (client, (think, rounds)) in clients.into_iter().zip(ROUNDS) {
            let pid = client.child.id();
            let (mut own, mut asked) = (Duration::ZERO, Duration::ZERO);
            for _ in 0..rounds {
                asked += client.ask(&(self.question)(think));
                own += (self.thought)(self.server);
            }
            client.end();
            let outbound = close_of(&tracer, |record| {
                record["direction"] == "outbound" && record["process"]["pid"] == pid
            });
            let inbound = close_of(&tracer, |record| {
                record["direction"] == "inbound" && record["src"]["port"] == outbound["src"]["port"]
            });
            for (end, record) in [("client", outbound), ("server", inbound)] {
                self.check_end(end, &record["turns"], think, rounds, [own, asked]);
            }
        }
        tracer.interrupt().check_lossless();
    }

    fn check_end(&self, end: &str, turns: &Value, think: Duration, rounds: usize, [own, asked]: [Duration; 2]) {
        let name = self.name;
        let wait = Duration::from_nanos(turns["wait_ns"].as_u64().unwrap());
        println!(
            "{name}, think {think:?}, {end}: {} turns, wait {wait:?}, {own:?} by the server's clock, {asked:?} by the \
             client's",
            turns["count"]
        );
        assert_eq!(
            (&turns["count"], &turns["overlapped"]),
            (&rounds.into(), &0.into()),
            "{name}: {turns}"
        );
        // The kernel notes a send when the call has returned, which is after the client's answer if another thread gets
        // the processor meanwhile.
        let late = (asked / 10).max(u32::try_from(rounds).unwrap() * Duration::from_millis(1));
        assert!(
            own <= wait && wait <= asked + late,
            "{name}, {end}: {wait:?}, not {own:?} to {asked:?}"
        );
    }
}

fn close_of(tracer: &Tracer, matches: impl Fn(&Value) -> bool) -> Value {
    let is_it = |record: &Value| record["event"] == "close" && matches(record);
    tracer.output.wait_matching(net::current_netns(), 1, is_it).remove(0)
}

/// Returns the scenario's address and a free port.
fn address() -> (String, String) {
    let (address, port) = (IpVersion::V4.loopback(), free_port(IpVersion::V4));
    (address.to_string(), port.to_string())
}

fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.trim().parse().unwrap_or_else(|error| panic!("{text:?}: {error}")))
}

/// Python's HTTP server and client.
pub fn http() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/kernel/turns/keep_alive.py");
    let (address, port) = address();
    let python = |side: &str| {
        let mut command = Command::new("python3");
        command.args([script, side, &address, &port]);
        Program::start(&mut command, false)
    };
    let server = python("server");
    server.line_with("listening");
    Protocol {
        name: "HTTP/1.1",
        server: &server,
        start_client: &|| python("client"),
        greeting: "/0",
        question: &|think| format!("/{}", think.as_secs_f64()),
        thought: &|server| seconds(&server.line()),
    }
    .check();
}

/// redis-server and redis-cli. The server's clock is its slow log, which a second client reads.
pub fn redis() {
    let (address, port) = address();
    let mut command = Command::new("redis-server");
    command.args([
        "--bind",
        &address,
        "--port",
        &port,
        "--save",
        "",
        "--enable-debug-command",
        "yes",
    ]);
    command.args([
        "--slowlog-log-slower-than",
        "0",
        "--slowlog-max-len",
        "1",
        "--daemonize",
        "no",
    ]);
    let server = Program::start(&mut command, false);
    server.line_with("Ready to accept connections");
    let start_client = || {
        let mut command = Command::new("redis-cli");
        Program::start(command.args(["-h", &address, "-p", &port]), false)
    };
    let log = start_client();
    // A client's first command comes after its own question for the list of all commands.
    log.ask("PING");
    Protocol {
        name: "Redis",
        server: &server,
        start_client: &start_client,
        greeting: "PING",
        question: &|think| format!("DEBUG SLEEP {}", think.as_secs_f64()),
        thought: &|_| {
            log.ask("SLOWLOG GET 1");
            // The number and the time of the entry, its microseconds, the command's words, the client and its name.
            let line = log.line();
            let us: u64 = log
                .line()
                .trim()
                .parse()
                .unwrap_or_else(|error| panic!("{line}: {error}"));
            while !log.line().starts_with("127.") {}
            log.line();
            Duration::from_micros(us)
        },
    }
    .check();
}

/// A cluster of PostgreSQL in a folder, as a user without rights. Dropping it removes the folder.
struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    /// The user and group `nobody` of Debian, and of others.
    const NOBODY: u32 = 65_534;

    fn command(program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(program)
            // A folder that the user may read.
            .current_dir("/")
            .env("LC_ALL", "C");
        command
    }

    fn create(programs: &Path) -> Self {
        let folder = std::env::temp_dir().join(format!("kmesh-trace-test-postgres-{}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).expect("a folder for PostgreSQL");
        let cluster = Self { folder };
        chown(&cluster.folder, Some(Self::NOBODY), Some(Self::NOBODY)).expect("chown");
        let output = Self::command(&programs.join("initdb"))
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D"])
            .arg(&cluster.folder)
            .output()
            .expect("run initdb");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.folder);
    }
}

/// PostgreSQL and psql. The server's clock is its log of statements.
pub fn postgres() {
    let programs = postgres_folder().expect("the probe has found PostgreSQL");
    let cluster = Cluster::create(&programs);
    let (address, port) = address();
    let mut command = Cluster::command(&programs.join("postgres"));
    command.arg("-D").arg(&cluster.folder);
    for setting in [
        &format!("listen_addresses={address}"),
        &format!("port={port}"),
        "unix_socket_directories=",
        "log_min_duration_statement=0",
        "fsync=off",
        "ssl=off",
    ] {
        command.args(["-c", setting]);
    }
    let server = Program::start(&mut command, true);
    server.line_with("ready to accept connections");
    let start_client = || {
        let mut command = Command::new(programs.join("psql"));
        command
            .args([
                "-X", "-q", "-A", "-t", "-h", &address, "-p", &port, "-U", "postgres", "postgres",
            ])
            // Otherwise the client asks for TLS first.
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable");
        Program::start(&mut command, false)
    };
    Protocol {
        name: "PostgreSQL",
        server: &server,
        start_client: &start_client,
        greeting: "select 1;",
        question: &|think| format!("select 1 from pg_sleep({});", think.as_secs_f64()),
        thought: &|server| {
            // LOG:  duration: 50.123 ms  statement: select …
            let line = server.line_with("duration: ");
            let ms = line.split("duration: ").nth(1).and_then(|rest| rest.split(' ').next());
            seconds(ms.unwrap_or_else(|| panic!("{line}"))) / 1_000
        },
    }
    .check();
    server.interrupt();
}

/// nghttp2's server and client: ten responses at once, over a network on which they are on their way while the client
/// sends.
pub fn http2() {
    const RESPONSE: usize = 2 << 20;
    let network = DelayedNetwork::new(Duration::from_millis(5));
    let folder = scratch_dir().join(format!("http2-{}", std::process::id()));
    _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("large"), vec![7; RESPONSE]).unwrap();
    let port = network.in_server_namespace(|| {
        let listener = TcpListener::bind((network.server_address, 0)).unwrap();
        listener.local_addr().unwrap().port()
    });
    let address = network.server_address.to_string();
    let server = network.in_server_namespace(|| {
        let mut command = Command::new("nghttpd");
        command
            .args(["--no-tls", "-v", "-a", &address, "-d"])
            .arg(&folder)
            .arg(port.to_string());
        Program::start(&mut command, false)
    });
    server.line_with("listen");
    let tracer = start_tracer(&[]);
    tracer.output.watch(network.server_netns);
    let url = format!("http://[{address}]:{port}/large");
    net::run("nghttp", &["--null-out", "--multiply=10", &url]);
    for (direction, netns) in [("outbound", net::current_netns()), ("inbound", network.server_netns)] {
        let is_it = |record: &Value| record["event"] == "close" && record["direction"] == direction;
        let record = tracer.output.wait_matching(netns, 1, is_it).remove(0);
        let turns = &record["turns"];
        println!("HTTP/2, {direction}: {turns}");
        let [count, overlapped] = ["count", "overlapped"].map(|name| turns[name].as_u64().unwrap());
        assert!(overlapped > 0 && overlapped * 2 > count, "{direction}: {turns}");
    }
    tracer.interrupt().check_lossless();
    fs::remove_dir_all(&folder).unwrap();
}
