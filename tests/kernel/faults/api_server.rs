//! API servers that fail or send wrong data, kubeconfigs that kubectl accepts, and exec plugins that hang.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::sources::{MAX_KIB, TemporaryFile, check_still_traces, kubelet, respond};
use crate::Topic;
use crate::support::sock::wait_until;
use crate::support::tracer::TracerCommand;
use crate::support::{net, peak_memory_kib};

pub fn add(topic: Topic) -> Topic {
    topic
        .standalone("watch_with_wrong_events_goes_on", &[], watch_with_wrong_events_goes_on)
        .standalone("endless_list_is_an_error", &[], endless_list_is_an_error)
        .standalone(
            "kubeconfigs_that_kubectl_accepts",
            &[],
            kubeconfigs_that_kubectl_accepts,
        )
        .standalone("invalid_server_is_an_error", &[], invalid_server_is_an_error)
        .standalone("hanging_exec_plugin_is_an_error", &[], hanging_exec_plugin_is_an_error)
}

/// The event that the API server sends on the first watch of pods. On later watches it sends a valid `MODIFIED` event.
struct FirstEvent {
    name: &'static str,
    /// Text of the warning. Empty if the tool does not warn.
    warning: &'static str,
    event: &'static [u8],
    /// The number of times that the tool lists all pods.
    lists: usize,
}

const WRONG_EVENTS: [FirstEvent; 9] = [
    FirstEvent {
        name: "without end",
        warning: "an invalid watch event",
        event: &[b'x'; 65536],
        lists: 1,
    },
    FirstEvent {
        name: "cut",
        warning: "",
        event: br#"{"type":"MODIFIED","object":{"kind":"Pod","metada"#,
        lists: 1,
    },
    FirstEvent {
        name: "garbage",
        warning: "an invalid watch event",
        event: b"}{ is this a pod?\n",
        lists: 1,
    },
    FirstEvent {
        name: "no UTF-8",
        warning: "an invalid watch event",
        event: b"\xff\xfe\x00\x80\n",
        lists: 1,
    },
    FirstEvent {
        name: "an event of no type",
        warning: "an invalid watch event",
        event: b"{\"type\":\"EXPLODED\",\"object\":{}}\n",
        lists: 1,
    },
    FirstEvent {
        name: "a bookmark without an object",
        warning: "an invalid watch event",
        event: b"{\"type\":\"BOOKMARK\"}\n",
        lists: 1,
    },
    FirstEvent {
        name: "an error without a status",
        warning: "an invalid watch event",
        event: b"{\"type\":\"ERROR\",\"object\":[]}\n",
        lists: 1,
    },
    FirstEvent {
        name: "410 Gone",
        warning: "",
        event: b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n",
        lists: 2,
    },
    FirstEvent {
        name: "500",
        warning: "500 Internal Server Error: the store is [2Jgone",
        event: b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"the store is \\u001b[2Jgone\",\"reason\":\"InternalError\",\"code\":500}}\n",
        lists: 1,
    },
];

/// The number of requests for pods.
#[derive(Default)]
struct Requests {
    lists: AtomicUsize,
    watches: AtomicUsize,
}

const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-1","namespace":"shop","uid":"u1","resourceVersion":"7"}}"#;

/// Starts an API server, and returns a kubeconfig for it.
fn api_server(serve: impl Fn(&TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> TemporaryFile {
    let address = start_server("127.0.0.1", serve);
    kubeconfig(&format!("http://{address}"), "")
}

/// Starts a server that calls `serve` with each connection, in a thread for each. Returns its address.
fn start_server(ip: &str, serve: impl Fn(&TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || _ = serve(&stream));
        }
    });
    address
}

/// Writes a kubeconfig with this server and these members of the user.
fn kubeconfig(server: &str, user: &str) -> TemporaryFile {
    let kubeconfig = TemporaryFile::new("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(&kubeconfig.0, text).unwrap();
    kubeconfig
}

fn kubeconfig_flag(kubeconfig: &TemporaryFile) -> String {
    format!("--kubeconfig={}", kubeconfig.0.display())
}

/// Serves an API with one pod, whose first watch sends this event and ends.
fn serve(stream: &TcpStream, first: &FirstEvent, requests: &Requests) -> std::io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        if request.is_empty() {
            return Ok(());
        }
        let is_for_pods = request.contains("/pods?");
        let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        if !request.contains("watch=true") {
            let items = if is_for_pods { POD } else { "" };
            requests.lists.fetch_add(is_for_pods.into(), Ordering::Relaxed);
            let list = format!(
                r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"7"}},"items":[{items}]}}"#
            );
            respond(stream, "200 OK", &list);
            continue;
        }
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        if is_for_pods && requests.watches.fetch_add(1, Ordering::Relaxed) == 0 {
            writer.write_all(&chunk(first.event))?;
            // Until the tool closes the connection to an endless event.
            while first.event.len() > 4096 {
                writer.write_all(&chunk(first.event))?;
            }
            return Ok(());
        }
        if is_for_pods {
            let event = format!("{{\"type\":\"MODIFIED\",\"object\":{POD}}}\n");
            writer.write_all(&chunk(event.as_bytes()))?;
        }
        // No more events.
        while reader.read(&mut [0; 4096])? > 0 {}
        return Ok(());
    }
}

/// The tool warns, watches again, and has names again.
fn watch_with_wrong_events_goes_on() {
    for wrong in &WRONG_EVENTS {
        let requests = Arc::new(Requests::default());
        let kubeconfig = api_server({
            let requests = Arc::clone(&requests);
            move |stream| serve(stream, wrong, &requests)
        });
        let flag = kubeconfig_flag(&kubeconfig);
        let tracer = TracerCommand::with_names(&["-o", "json", &flag]).start();
        tracer.wait_stderr("kmesh-trace: names come from the API server at");
        if wrong.warning.is_empty() {
            wait_until(wrong.name, || requests.watches.load(Ordering::Relaxed) > 1);
        } else {
            let line = tracer.wait_stderr("kmesh-trace: warning: no updates from the API server at");
            assert!(line.contains(wrong.warning), "{}: {line}", wrong.name);
            tracer.wait_stderr("kmesh-trace: names come again from the API server at");
        }
        assert_eq!(requests.lists.load(Ordering::Relaxed), wrong.lists, "{}", wrong.name);
        let kib = peak_memory_kib(tracer.pid);
        assert!(kib < MAX_KIB, "{}: {kib} KiB", wrong.name);
        let is_silent = !tracer.stderr_lines().iter().any(|line| line.contains("warning"));
        assert_eq!(
            is_silent,
            wrong.warning.is_empty(),
            "{}: {:?}",
            wrong.name,
            tracer.stderr_lines()
        );
        check_still_traces(&tracer, 0);
    }
}

/// The API server lists the same pod without end. The tool stores none of it.
fn endless_list_is_an_error() {
    let kubeconfig = api_server(|mut stream| {
        _ = stream.read(&mut [0; 4096])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"kind\":\"List\",\"items\":[")?;
        let items = format!("{POD},").repeat(500);
        loop {
            stream.write_all(items.as_bytes())?;
            thread::sleep(Duration::from_millis(10));
        }
    });
    let flag = kubeconfig_flag(&kubeconfig);
    let tracer = TracerCommand::with_names(&["-o", "json", &flag]).start();
    let line = tracer.wait_stderr("kmesh-trace: error: no names from the API server at");
    assert!(
        line.contains("in the first 60 s: its list of pods has not ended"),
        "{line}"
    );
    let kib = peak_memory_kib(tracer.pid);
    assert!(kib < MAX_KIB, "{kib} KiB");
    check_still_traces(&tracer, 1);
}

/// An event that changes nothing.
const BOOKMARK: FirstEvent = FirstEvent {
    name: "a bookmark",
    warning: "",
    event: b"{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"8\"}}}\n",
    lists: 1,
};

/// With each kubeconfig and environment the tool gets names from the server, without the proxy.
fn kubeconfigs_that_kubectl_accepts() {
    const SERVER: &str = "10.9.0.1";
    net::run("ip", &["addr", "add", &format!("{SERVER}/32"), "dev", "lo"]);
    let address = start_server(SERVER, |stream| serve(stream, &BOOKMARK, &Requests::default()));
    // No proxy listens there.
    let proxy = format!("http://{}:1", net::loopback_v4(9));
    let servers = [format!("http://{address}"), address.to_string()];
    let [with_scheme, without_scheme] = servers.map(|server| kubeconfig(&server, ""));
    let missing_first = format!("/nonexistent/kubeconfig:{}", with_scheme.0.display());
    // The name, the flag, and environment variables.
    type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str)]);
    let cases: [Case; 4] = [
        (
            "a file that does not exist before one that does",
            "--kubeconfig".to_owned(),
            &[("KUBECONFIG", &missing_first)],
        ),
        ("a server without a scheme", kubeconfig_flag(&without_scheme), &[]),
        (
            "a proxy for all servers but this one",
            kubeconfig_flag(&with_scheme),
            &[("HTTP_PROXY", &proxy), ("NO_PROXY", SERVER)],
        ),
        (
            "a proxy for all servers but those of this network, in lower case",
            kubeconfig_flag(&with_scheme),
            &[("http_proxy", &proxy), ("no_proxy", "192.0.2.1, 10.9.0.0/24")],
        ),
    ];
    for (name, flag, environment) in &cases {
        let mut command = TracerCommand::with_names(&["-o", "json", flag]);
        for (variable, value) in *environment {
            command = command.env(variable, value);
        }
        let tracer = command.start();
        tracer.wait_stderr(&format!(
            "kmesh-trace: names come from the API server at http://{address}"
        ));
        let exit = tracer.interrupt();
        assert_eq!(exit.status.code(), Some(0), "{name}: {:?}", exit.stderr);
    }
    // Without the exception the tool uses the proxy.
    let flag = kubeconfig_flag(&with_scheme);
    let tracer = TracerCommand::with_names(&["-o", "json", &flag])
        .env("HTTP_PROXY", &proxy)
        .start();
    let line = tracer.wait_stderr("kmesh-trace: warning: no names yet from the API server at");
    assert!(line.contains("proxy"), "{line}");
    tracer.interrupt();
}

/// An invalid server URL ends the tool with status 1 and a message.
fn invalid_server_is_an_error() {
    for server in [
        "127.0.0.1:7701:80",
        "127.0.0.1:port",
        "http://[::1",
        "http://",
        "//a b",
        "://",
        "unix:///run/x.sock",
    ] {
        let kubeconfig = kubeconfig(server, "");
        let flag = kubeconfig_flag(&kubeconfig);
        let exit = TracerCommand::with_names(&["-o", "json", &flag]).spawn().wait();
        let stderr = exit.stderr.join("\n");
        assert_eq!(exit.status.code(), Some(1), "{server}: {stderr}");
        assert!(
            stderr.contains("(--kubeconfig)") && stderr.contains("server") && !stderr.contains("panicked"),
            "{server}: {stderr}"
        );
    }
}

/// Returns the pids of the processes with this argument.
fn processes_with(argument: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let found = processes.filter(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes())
    });
    found
        .map(|process| process.file_name().to_string_lossy().into_owned())
        .collect()
}

/// The plugin delays no other source, is an error after ten seconds, and ends with the tool, even after SIGKILL.
fn hanging_exec_plugin_is_an_error() {
    let url = kubelet(|stream| {
        let list = format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{}},"items":[{POD}]}}"#);
        respond(&stream, "200 OK", &list);
    });
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let seconds = format!("{}{:03}", std::process::id(), signal as i32);
        let user = format!(
            "exec: {{command: /bin/sleep, args: ['{seconds}'], apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never}}"
        );
        let kubeconfig = kubeconfig("http://127.0.0.1:1", &user);
        let flag = kubeconfig_flag(&kubeconfig);
        let tracer = TracerCommand::with_names(&["-o", "json", &url, &flag]).start();
        tracer.wait_stderr("kmesh-trace: names come from the kubelet at");
        wait_until("the plugin runs", || processes_with(&seconds).len() == 1);
        if signal == Signal::SIGINT {
            let line = tracer.wait_stderr("kmesh-trace: error: no names from the API server at");
            assert!(line.contains("in the first 10 s"), "{line}");
            check_still_traces(&tracer, 1);
        } else {
            tracer.signal(signal);
            tracer.wait();
        }
        wait_until("the plugin ends", || processes_with(&seconds).is_empty());
    }
}
