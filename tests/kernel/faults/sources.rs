//! Sources of names that hang, lie, and send too much.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::Signal;

use crate::Table;
use crate::signals::traffic;
use crate::support::sock::wait_until;
use crate::support::store::Rec;
use crate::support::tracer::{Start, Sums, Tracer};
use crate::support::{net, peak_kib};

/// Adds the trials.
pub fn add(table: Table) -> Table {
    table
        .own("a_kubelet_that_sends_too_much", &[], a_kubelet_that_sends_too_much)
        .own(
            "a_kubelet_that_stops_in_the_middle",
            &[],
            a_kubelet_that_stops_in_the_middle,
        )
        .own(
            "a_kubelet_that_sends_something_else",
            &[],
            a_kubelet_that_sends_something_else,
        )
        .own("a_kubelet_that_sends_escapes", &[], a_kubelet_that_sends_escapes)
        .own("a_runtime_that_hangs", &[], a_runtime_that_hangs)
        .own(
            "a_runtime_that_sends_something_else",
            &[],
            a_runtime_that_sends_something_else,
        )
        .own("a_watch_that_lies", &[], a_watch_that_lies)
        .own("a_list_without_end", &[], a_list_without_end)
        .own("kubeconfigs_that_kubectl_takes", &[], kubeconfigs_that_kubectl_takes)
        .own(
            "servers_that_make_no_sense_end_the_tool_with_a_message",
            &[],
            servers_that_make_no_sense_end_the_tool_with_a_message,
        )
        .own("an_exec_plugin_that_hangs", &[], an_exec_plugin_that_hangs)
}

/// Answers each question with what `answer` writes, on an address of its own. The flag that names it.
fn kubelet(answer: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The question's end is not looked for: it comes in one segment.
            if stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                answer(stream);
            }
        }
    });
    format!("--kubelet=http://{address}/pods")
}

/// Traces with this source; what is said of it.
fn told_of(url: &str) -> (Tracer, String) {
    let tracer = Start::resolving(&["-o", "json", url]).tracing();
    let line = tracer.wait_said("kmesh-trace: warning: no names yet from the kubelet");
    traffic(1);
    (tracer, line)
}

fn a_kubelet_that_sends_too_much() {
    let url = kubelet(|mut stream| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[";
        _ = stream.write_all(head.as_bytes());
        let item = format!(
            r#"{{"metadata":{{"name":"p","namespace":"n","uid":"{}"}}}},"#,
            "u".repeat(1000)
        );
        let items = item.repeat(100);
        // 100 MiB, and then the connection ends, but not the list.
        for _ in 0..(100 << 20) / items.len() {
            if stream.write_all(items.as_bytes()).is_err() {
                return;
            }
        }
    });
    let tracer = Start::resolving(&["-o", "json", &url]).tracing();
    // A machine too busy to send so much within the ten seconds that an answer may take is told that first, and asked again.
    tracer.wait_said_with("the middle of an object");
    traffic(1);
    let kib = peak_kib(tracer.pid);
    // It is one pod, named a million times.
    assert!(kib < LITTLE, "{kib} KiB");
    tracer.signal(Signal::SIGINT);
    tracer.wait();
}

fn a_kubelet_that_stops_in_the_middle() {
    let url = kubelet(|mut stream| {
        let half = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n\
                    {\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":[{\"metadata\":{\"name\":\"half\",\"names";
        _ = stream.write_all(half.as_bytes());
    });
    let (tracer, line) = told_of(&url);
    assert!(!line.contains("PodList"), "the connection ended, not the list: {line}");
    tracer.signal(Signal::SIGINT);
    tracer.wait();
}

fn answer(mut stream: TcpStream, status: &str, body: &str) {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    _ = stream.write_all((head + body).as_bytes());
}

fn a_kubelet_that_sends_something_else() {
    for body in [
        "\"pods\"",
        "{\"kind\":\"NodeList\",\"apiVersion\":\"v1\",\"items\":[]}",
        "{\"kind\":\"PodList\",\"apiVersion\":\"v1\",\"items\":{\"a\":1}}",
        "\u{0}\u{0}\u{0}",
    ] {
        let url = kubelet(move |stream| answer(stream, "200 OK", body));
        let (tracer, line) = told_of(&url);
        assert!(line.contains("no PodList"), "{body}: {line}");
        tracer.signal(Signal::SIGINT);
        tracer.wait();
    }
}

fn a_kubelet_that_sends_escapes() {
    let url = kubelet(|stream| {
        let user = "Forbidden (user=\u{1b}[2J\u{202e}mallory\u{7}, verb=get)";
        answer(stream, "403 Forbidden", user);
    });
    let (tracer, line) = told_of(&url);
    assert!(
        line.contains(r"\u001b[2J\u202emallory\u0007") && !line.contains('\u{1b}') && !line.contains('\u{202e}'),
        "{line:?}"
    );
    tracer.signal(Signal::SIGINT);
    tracer.wait();
}

/// Traces on, to the byte and without loss, and ends with this status.
fn traces_on(tracer: &Tracer, status: i32) {
    tracer.store.keep(net::inode());
    traffic(5);
    let end = tracer.interrupt();
    assert_eq!(end.status.code(), Some(status), "{:?}", end.stderr);
    assert_eq!(end.store.faults(), Vec::<String>::new());
    let sums = Sums::of(end.store.summaries().last().expect("a summary"));
    sums.check();
    // What talks to the source is traced, too.
    let records = end.store.records(net::inode());
    let bytes = |rec: &&Rec| (rec.value["sent_bytes"].as_u64(), rec.value["received_bytes"].as_u64());
    let of_traffic = |rec: &&Rec| [(Some(10), Some(20)), (Some(20), Some(10))].contains(&bytes(rec));
    assert_eq!(
        (sums.lost, records.iter().filter(of_traffic).count()),
        (0, 10),
        "{sums:?}"
    );
    assert!(
        !end.stderr.iter().any(|line| line.contains("panicked")),
        "{:?}",
        end.stderr
    );
}

/// What a source that lies may make of the tracer's memory, KiB: it takes 4 MiB without, and an event of 8 MiB may be there
/// twice while it grows.
const LITTLE: u64 = 24 << 10;

/// A file of this test, removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    /// Scenarios run beside each other, and several may want one name.
    fn new(name: &str) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("kmesh-trace-{process}-{number}-{name}"));
        _ = fs::remove_file(&path);
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.0);
    }
}

/// A socket on which each question is answered by `answer`, and the flag that names it.
fn runtime(name: &str, answer: impl Fn(UnixStream) + Send + Sync + 'static) -> (Temporary, String) {
    let socket = Temporary::new(name);
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

/// It takes all and says nothing.
fn a_runtime_that_hangs() {
    let (_socket, flag) = runtime("hangs.sock", |mut stream| {
        while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
    });
    let tracer = Start::resolving(&["-o", "json", &flag]).tracing();
    let line = tracer.wait_said("kmesh-trace: error: no names from the container runtime at");
    assert!(line.contains("answer"), "{line}");
    assert!(peak_kib(tracer.pid) < LITTLE);
    traces_on(&tracer, 1);
}

/// Other protocols, frames that claim to be huge, and bytes without end.
fn a_runtime_that_sends_something_else() {
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
    for (name, bytes, without_end) in cases {
        let (_socket, flag) = runtime(
            name,
            move |mut stream| while stream.write_all(&bytes).is_ok() && without_end {},
        );
        let tracer = Start::resolving(&["-o", "json", &flag]).tracing();
        let line = tracer.wait_said("kmesh-trace: warning: no names yet from the container runtime at");
        let (_, why) = line.split_once(".sock: ").unwrap_or_else(|| panic!("{name}: {line}"));
        assert!(!why.is_empty() && !why.contains('\u{1b}'), "{name}: {line}");
        let kib = peak_kib(tracer.pid);
        assert!(kib < LITTLE, "{name}: {kib} KiB");
        traces_on(&tracer, 1);
    }
}

/// What a pods watch is told the first time; the second one is well.
struct Lie {
    name: &'static str,
    /// Said of it; nothing, where there is nothing to say.
    said: &'static str,
    event: &'static [u8],
    /// Whether all is listed again.
    lists: usize,
}

const LIES: [Lie; 9] = [
    Lie {
        name: "without end",
        said: "makes no sense",
        event: &[b'x'; 65536],
        lists: 1,
    },
    Lie {
        name: "cut",
        said: "",
        event: br#"{"type":"MODIFIED","object":{"kind":"Pod","metada"#,
        lists: 1,
    },
    Lie {
        name: "garbage",
        said: "makes no sense",
        event: b"}{ is this a pod?\n",
        lists: 1,
    },
    Lie {
        name: "no UTF-8",
        said: "makes no sense",
        event: b"\xff\xfe\x00\x80\n",
        lists: 1,
    },
    Lie {
        name: "an event of no type",
        said: "makes no sense",
        event: b"{\"type\":\"EXPLODED\",\"object\":{}}\n",
        lists: 1,
    },
    Lie {
        name: "a bookmark without an object",
        said: "makes no sense",
        event: b"{\"type\":\"BOOKMARK\"}\n",
        lists: 1,
    },
    Lie {
        name: "an error without a status",
        said: "makes no sense",
        event: b"{\"type\":\"ERROR\",\"object\":[]}\n",
        lists: 1,
    },
    Lie {
        name: "410 Gone",
        said: "",
        event: b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"too old resource version\",\"reason\":\"Expired\",\"code\":410}}\n",
        lists: 2,
    },
    Lie {
        name: "500",
        said: "500 Internal Server Error: the store is [2Jgone",
        event: b"{\"type\":\"ERROR\",\"object\":{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\"message\":\"the store is \\u001b[2Jgone\",\"reason\":\"InternalError\",\"code\":500}}\n",
        lists: 1,
    },
];

/// How often an API server was asked for pods.
#[derive(Default)]
struct Asked {
    lists: AtomicUsize,
    watches: AtomicUsize,
}

const POD: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-1","namespace":"shop","uid":"u1","resourceVersion":"7"}}"#;

/// An API server that deals with each connection so, until that ends when the tracer does. Its kubeconfig.
fn api_server(serve: impl Fn(&TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Temporary {
    let address = served("127.0.0.1", serve);
    kubeconfig(&format!("http://{address}"), "")
}

/// Deals with each connection to a port of this address so; the whole address.
fn served(ip: &str, serve: impl Fn(&TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> std::net::SocketAddr {
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

/// A kubeconfig with this server, and with these members of the user.
fn kubeconfig(server: &str, user: &str) -> Temporary {
    let kubeconfig = Temporary::new("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: '{server}'}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(&kubeconfig.0, text).unwrap();
    kubeconfig
}

/// It has one pod, and tells a lie.
fn serve(stream: &TcpStream, lie: &Lie, asked: &Asked) -> std::io::Result<()> {
    let (mut questions, mut answers) = (BufReader::new(stream), stream);
    loop {
        let mut question = String::new();
        questions.read_line(&mut question)?;
        let mut header = String::new();
        while questions.read_line(&mut header)? > 2 {
            header.clear();
        }
        if question.is_empty() {
            return Ok(());
        }
        let of_pods = question.contains("/pods?");
        let chunk = |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
        if !question.contains("watch=true") {
            let items = if of_pods { POD } else { "" };
            asked.lists.fetch_add(of_pods.into(), Ordering::Relaxed);
            let list = format!(
                r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"7"}},"items":[{items}]}}"#
            );
            answer(stream.try_clone()?, "200 OK", &list);
            continue;
        }
        answers
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        if of_pods && asked.watches.fetch_add(1, Ordering::Relaxed) == 0 {
            answers.write_all(&chunk(lie.event))?;
            // Events end.
            while lie.event.len() > 4096 {
                answers.write_all(&chunk(lie.event))?;
            }
            // In the middle of it all.
            return Ok(());
        }
        if of_pods {
            let event = format!("{{\"type\":\"MODIFIED\",\"object\":{POD}}}\n");
            answers.write_all(&chunk(event.as_bytes()))?;
        }
        // Nothing happens any more.
        while questions.read(&mut [0; 4096])? > 0 {}
        return Ok(());
    }
}

/// It says what is wrong, asks again, and has names again.
fn a_watch_that_lies() {
    for lie in &LIES {
        let asked = Arc::new(Asked::default());
        let kubeconfig = api_server({
            let asked = Arc::clone(&asked);
            move |stream| serve(stream, lie, &asked)
        });
        let flag = format!("--kubeconfig={}", kubeconfig.0.display());
        let tracer = Start::resolving(&["-o", "json", &flag]).tracing();
        tracer.wait_said("kmesh-trace: names come from the API server at");
        if lie.said.is_empty() {
            wait_until(lie.name, || asked.watches.load(Ordering::Relaxed) > 1);
        } else {
            let line = tracer.wait_said("kmesh-trace: warning: no updates from the API server at");
            assert!(line.contains(lie.said), "{}: {line}", lie.name);
            tracer.wait_said("kmesh-trace: names come again from the API server at");
        }
        assert_eq!(asked.lists.load(Ordering::Relaxed), lie.lists, "{}", lie.name);
        let kib = peak_kib(tracer.pid);
        assert!(kib < LITTLE, "{}: {kib} KiB", lie.name);
        let silent = !tracer.said().iter().any(|line| line.contains("warning"));
        assert_eq!(silent, lie.said.is_empty(), "{}: {:?}", lie.name, tracer.said());
        traces_on(&tracer, 0);
    }
}

/// It has one pod, and lists it again and again: nothing of what came is held.
fn a_list_without_end() {
    let kubeconfig = api_server(|mut stream| {
        _ = stream.read(&mut [0; 4096])?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"kind\":\"List\",\"items\":[")?;
        let items = format!("{POD},").repeat(500);
        loop {
            stream.write_all(items.as_bytes())?;
            thread::sleep(std::time::Duration::from_millis(10));
        }
    });
    let flag = format!("--kubeconfig={}", kubeconfig.0.display());
    let tracer = Start::resolving(&["-o", "json", &flag]).tracing();
    let line = tracer.wait_said("kmesh-trace: error: no names from the API server at");
    assert!(line.contains("it has not answered"), "{line}");
    let kib = peak_kib(tracer.pid);
    assert!(kib < LITTLE, "{kib} KiB");
    traces_on(&tracer, 1);
}

/// Each gives names: the server is asked, and nobody else.
fn kubeconfigs_that_kubectl_takes() {
    const SERVER: &str = "10.9.0.1";
    net::run("ip", &["addr", "add", &format!("{SERVER}/32"), "dev", "lo"]);
    // It tells the truth.
    let truth = Lie {
        name: "",
        said: "",
        event: b"{\"type\":\"BOOKMARK\",\"object\":{\"metadata\":{\"resourceVersion\":\"8\"}}}\n",
        lists: 1,
    };
    let truth: &'static Lie = Box::leak(Box::new(truth));
    let address = served(SERVER, move |stream| serve(stream, truth, &Asked::default()));
    // A proxy that refuses every connection.
    let proxy = format!("http://{}:1", net::address(9));
    let good = |server: &str| kubeconfig(server, "");
    let [with_scheme, without_scheme] = [format!("http://{address}"), address.to_string()].map(|server| good(&server));
    let path = |file: &Temporary| file.0.display().to_string();
    let missing_first = format!("/nonexistent/kubeconfig:{}", path(&with_scheme));
    // What it is, the flag, and variables of the environment.
    type Case<'a> = (&'a str, String, &'a [(&'a str, &'a str)]);
    let cases: [Case; 4] = [
        (
            "a file that does not exist before one that does",
            "--kubeconfig".to_owned(),
            &[("KUBECONFIG", &missing_first)],
        ),
        (
            "a server without a scheme",
            format!("--kubeconfig={}", path(&without_scheme)),
            &[],
        ),
        (
            "a proxy for all servers but this one",
            format!("--kubeconfig={}", path(&with_scheme)),
            &[("HTTP_PROXY", &proxy), ("NO_PROXY", SERVER)],
        ),
        (
            "a proxy for all servers but those of this network, by the other spelling",
            format!("--kubeconfig={}", path(&with_scheme)),
            &[("http_proxy", &proxy), ("no_proxy", "192.0.2.1, 10.9.0.0/24")],
        ),
    ];
    for (name, flag, environment) in &cases {
        let mut start = Start::resolving(&["-o", "json", flag]);
        for (variable, value) in *environment {
            start = start.env(variable, value);
        }
        let tracer = start.tracing();
        tracer.wait_said(&format!(
            "kmesh-trace: names come from the API server at http://{address}"
        ));
        let end = tracer.interrupt();
        assert_eq!(end.status.code(), Some(0), "{name}: {:?}", end.stderr);
    }
    // Without the exception the proxy is asked, so the exception is what the cases above are about.
    let flag = format!("--kubeconfig={}", path(&with_scheme));
    let tracer = Start::resolving(&["-o", "json", &flag])
        .env("HTTP_PROXY", &proxy)
        .tracing();
    let line = tracer.wait_said("kmesh-trace: warning: no names yet from the API server at");
    assert!(line.contains("proxy"), "{line}");
    tracer.interrupt();
}

/// A message, status 1, no backtrace and no other thread's words.
fn servers_that_make_no_sense_end_the_tool_with_a_message() {
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
        let flag = format!("--kubeconfig={}", kubeconfig.0.display());
        let end = Start::resolving(&["-o", "json", &flag]).spawn().wait();
        let said = end.stderr.join("\n");
        assert_eq!(end.status.code(), Some(1), "{server}: {said}");
        assert!(
            said.contains("(--kubeconfig)") && said.contains("server") && !said.contains("panicked"),
            "{server}: {said}"
        );
    }
}

/// The ids of the processes with this argument.
fn processes_with(argument: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let with = processes.filter(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|one| one == argument.as_bytes())
    });
    with.map(|process| process.file_name().to_string_lossy().into_owned())
        .collect()
}

/// It holds up no other source, is an error after ten seconds, and is gone with the tool, even if the tool is killed.
fn an_exec_plugin_that_hangs() {
    let url = kubelet(|stream| {
        let list = format!(r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{}},"items":[{POD}]}}"#);
        answer(stream, "200 OK", &list);
    });
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let seconds = format!("{}{:03}", std::process::id(), signal as i32);
        let user = format!(
            "exec: {{command: /bin/sleep, args: ['{seconds}'], apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never}}"
        );
        let kubeconfig = kubeconfig("http://127.0.0.1:1", &user);
        let flag = format!("--kubeconfig={}", kubeconfig.0.display());
        let tracer = Start::resolving(&["-o", "json", &url, &flag]).tracing();
        tracer.wait_said("kmesh-trace: names come from the kubelet at");
        wait_until("the plugin runs", || processes_with(&seconds).len() == 1);
        if signal == Signal::SIGINT {
            let line = tracer.wait_said("kmesh-trace: error: no names from the API server at");
            assert!(line.contains("in the first 10 s"), "{line}");
            traces_on(&tracer, 1);
        } else {
            tracer.signal(signal);
            tracer.wait();
        }
        wait_until("the plugin ends", || processes_with(&seconds).is_empty());
    }
}
