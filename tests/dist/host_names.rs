//! The static binary resolves host names by `/etc/hosts` and DNS, without the NSS modules of the system.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use libtest_mimic::Trial;

use crate::roots::{SYSTEMS, check_requirements, empty_root, enter, run_in};
use crate::support::test_timeout;
use crate::support::tracer::TracerCommand;
use crate::trial;

/// The host name in the kubeconfig.
const NAME: &str = "api.cluster.example";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 7, 7, 7);
const PORT: u16 = 8001;

/// An NSS configuration with modules that do not exist.
const NSSWITCH: &str = "hosts: nowhere [!UNAVAIL=return]\npasswd: nowhere\n";

pub fn trials() -> Vec<Trial> {
    let debian = &SYSTEMS[2];
    let debian_root = || check_requirements().and_then(|()| (debian.root)());
    vec![
        trial("empty_root::resolves_by_etc_hosts", check_requirements, || {
            let root = root_with_kubeconfig("hosts-file");
            fs::write(root.join("etc/hosts"), format!("{ADDRESS} {NAME}\n")).unwrap();
            check_resolves(&root);
        }),
        trial("empty_root::resolves_by_dns", check_requirements, || {
            let root = root_with_kubeconfig("hosts-dns");
            fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
            let queries = start_name_server();
            check_resolves(&root);
            assert_eq!(queries.try_recv().as_deref(), Ok(NAME));
        }),
        trial("empty_root::ignores_nsswitch_conf", check_requirements, || {
            let root = root_with_kubeconfig("hosts-nsswitch");
            fs::write(root.join("etc/nsswitch.conf"), NSSWITCH).unwrap();
            fs::write(root.join("etc/hosts"), format!("{ADDRESS} {NAME}\n")).unwrap();
            check_resolves(&root);
        }),
        trial("empty_root::finds_the_home_folder", check_requirements, || {
            let root = root_with_kubeconfig("home");
            fs::write(root.join("etc/nsswitch.conf"), NSSWITCH).unwrap();
            fs::write(root.join("etc/passwd"), "root:x:0:0::/elsewhere:/none\n").unwrap();
            fs::create_dir_all(root.join("elsewhere/.kube")).unwrap();
            fs::write(root.join("elsewhere/.kube/config"), "").unwrap();
            let output = run_in(&root, &["proc", "sys"], &["/kmesh-trace", "check"]);
            assert!(output.contains("/elsewhere/.kube/config exists"), "{output}");
        }),
        trial(
            "debian_11::resolves_by_dns",
            move || debian_root().map(drop),
            move || {
                let root = debian_root().unwrap();
                write_kubeconfig(&root);
                fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
                let queries = start_name_server();
                check_resolves(&root);
                assert_eq!(queries.try_recv().as_deref(), Ok(NAME));
            },
        ),
    ]
}

/// Creates a root with the binary, and a kubeconfig with a host name.
fn root_with_kubeconfig(name: &str) -> std::path::PathBuf {
    let root = empty_root(name);
    fs::create_dir(root.join("etc")).unwrap();
    write_kubeconfig(&root);
    root
}

fn write_kubeconfig(root: &Path) {
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: \"http://{NAME}:{PORT}\"}}}}]
users: [{{name: u, user: {{}}}}]
"
    );
    fs::write(root.join("kubeconfig"), text).unwrap();
}

/// Checks that the tool in this root resolves the API server's name and sends it requests.
fn check_resolves(root: &Path) {
    let requests = start_api_server();
    let mut command = enter(root, &["proc", "sys"]);
    command.args(["/kmesh-trace", "--kubeconfig=/kubeconfig"]);
    // The filter rejects other programs' connections.
    let tracer = TracerCommand::from_command(command, &["-o", "json", "--ip", &ADDRESS.to_string()]).start();
    let (path, host) = requests
        .recv_timeout(test_timeout())
        .unwrap_or_else(|_| panic!("no request; standard error: {:?}", tracer.stderr_lines()));
    assert!(path.starts_with("/api"), "{path}");
    assert_eq!(host, format!("{NAME}:{PORT}"));
    tracer.interrupt().check();
}

/// Starts an API server without objects. The receiver gets the path and the Host header of each request.
fn start_api_server() -> mpsc::Receiver<(String, String)> {
    let (sender, receiver) = mpsc::channel();
    let listener = TcpListener::bind((ADDRESS, PORT)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sender) = (stream.unwrap(), sender.clone());
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while let Some(Ok(request)) = lines.next() {
                    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                    let header = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty());
                    let host = header
                        .filter_map(|line| {
                            let (name, value) = line.split_once(": ")?;
                            name.eq_ignore_ascii_case("host").then(|| value.to_owned())
                        })
                        .last();
                    _ = sender.send((path, host.unwrap_or_default()));
                    let body = r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length";
                    if write!(stream, "{head}: {}\r\n\r\n{body}", body.len()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    receiver
}

/// Starts a name server for [`NAME`] alone in this network namespace. The receiver gets the name of each query.
fn start_name_server() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let socket = UdpSocket::bind("127.0.0.53:53").unwrap();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let question = &query[12..length];
            // Each label after its length, an empty label, type and class.
            let mut name = Vec::new();
            let mut at = 0;
            while question[at] != 0 {
                let end = at + 1 + usize::from(question[at]);
                name.push(String::from_utf8_lossy(&question[at + 1..end]).into_owned());
                at = end;
            }
            let question = &question[..at + 5];
            let is_address = question[at + 1..at + 3] == [0, 1];
            let name = name.join(".");
            let exists = name == NAME;
            // A response, recursion available, and code 3 for a name that does not exist.
            let mut response = query[..2].to_vec();
            response.extend([0x85, if exists { 0x80 } else { 0x83 }, 0, 1]);
            response.extend([0, u8::from(exists && is_address), 0, 0, 0, 0]);
            response.extend(question);
            if exists && is_address {
                // The same name, type A, class IN, a TTL of a minute, four bytes.
                response.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                response.extend(ADDRESS.octets());
            }
            // Before the response, after whose effects the test expects the name.
            _ = sender.send(name);
            socket.send_to(&response, from).unwrap();
        }
    });
    receiver
}
