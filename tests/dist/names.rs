//! Names of hosts in the file: found by `/etc/hosts` and by DNS, whatever modules the system has for that.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use libtest_mimic::Trial;

use crate::roots::{SYSTEMS, enter, missing, only_the_file, told};
use crate::support::test_timeout;
use crate::support::tracer::TracerCommand;
use crate::trial;

/// The name in the kubeconfig, its one address, and the API server's port.
const NAME: &str = "api.cluster.example";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 7, 7, 7);
const PORT: u16 = 8001;

/// Modules that exist nowhere, and what glibc does by default when they do not answer: nothing more.
const NSSWITCH: &str = "hosts: nowhere [!UNAVAIL=return]\npasswd: nowhere\n";

/// The trials.
pub fn trials() -> Vec<Trial> {
    let debian = &SYSTEMS[2];
    let debian_root = || missing().and_then(|()| (debian.root)());
    vec![
        trial("only_the_file::finds_hosts_in_a_file", missing, || {
            let root = with_names("hosts-file");
            fs::write(root.join("etc/hosts"), format!("{ADDRESS} {NAME}\n")).unwrap();
            is_asked(&root);
        }),
        trial("only_the_file::finds_hosts_by_dns", missing, || {
            let root = with_names("hosts-dns");
            fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
            let asked = answer_dns();
            is_asked(&root);
            assert_eq!(asked.try_recv().as_deref(), Ok(NAME));
        }),
        trial("only_the_file::finds_hosts_whatever_nsswitch_says", missing, || {
            let root = with_names("hosts-nsswitch");
            fs::write(root.join("etc/nsswitch.conf"), NSSWITCH).unwrap();
            fs::write(root.join("etc/hosts"), format!("{ADDRESS} {NAME}\n")).unwrap();
            is_asked(&root);
        }),
        trial("only_the_file::finds_the_home_folder", missing, || {
            let root = with_names("home");
            fs::write(root.join("etc/nsswitch.conf"), NSSWITCH).unwrap();
            fs::write(root.join("etc/passwd"), "root:x:0:0::/elsewhere:/none\n").unwrap();
            fs::create_dir_all(root.join("elsewhere/.kube")).unwrap();
            fs::write(root.join("elsewhere/.kube/config"), "").unwrap();
            let told = told(&root, &["proc", "sys"], &["/kmesh-trace", "check"]);
            assert!(told.contains("/elsewhere/.kube/config exists"), "{told}");
        }),
        trial(
            "debian_11::finds_hosts_by_dns",
            move || debian_root().map(drop),
            move || {
                let root = debian_root().unwrap();
                kubeconfig(&root);
                fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.53\n").unwrap();
                let asked = answer_dns();
                is_asked(&root);
                assert_eq!(asked.try_recv().as_deref(), Ok(NAME));
            },
        ),
    ]
}

fn with_names(name: &str) -> std::path::PathBuf {
    let root = only_the_file(name);
    fs::create_dir(root.join("etc")).unwrap();
    kubeconfig(&root);
    root
}

fn kubeconfig(root: &Path) {
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

/// The tool in this root finds the API server and asks it for pods.
fn is_asked(root: &Path) {
    let asked = api_server();
    let mut command = enter(root, &["proc", "sys"]);
    command.args(["/kmesh-trace", "--kubeconfig=/kubeconfig"]);
    // The filter keeps out what else this machine does.
    let tracer = TracerCommand::from_command(command, &["-o", "json", "--ip", &ADDRESS.to_string()]).start();
    let (path, host) = asked
        .recv_timeout(test_timeout())
        .unwrap_or_else(|_| panic!("nobody asked; the tool said {:?}", tracer.stderr_lines()));
    assert!(path.starts_with("/api"), "{path}");
    assert_eq!(host, format!("{NAME}:{PORT}"));
    tracer.interrupt().check();
}

/// Tells of each request: its path, and the server's name in it. It has no objects of any kind.
fn api_server() -> mpsc::Receiver<(String, String)> {
    let (tell, told) = mpsc::channel();
    let listener = TcpListener::bind((ADDRESS, PORT)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, tell) = (stream.unwrap(), tell.clone());
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
                    _ = tell.send((path, host.unwrap_or_default()));
                    let body = r#"{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
                    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length";
                    if write!(stream, "{head}: {}\r\n\r\n{body}", body.len()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    told
}

/// A name server of this network namespace that knows [`NAME`] and nothing else. Tells of each name that it is asked
/// for.
fn answer_dns() -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    let socket = UdpSocket::bind("127.0.0.53:53").unwrap();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let question = &query[12..length];
            // Labels with their lengths before them, an empty one, type and class.
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
            let known = name == NAME;
            // A response, recursion available; the code is 3 for a name that there is not.
            let mut answer = query[..2].to_vec();
            answer.extend([0x85, if known { 0x80 } else { 0x83 }, 0, 1]);
            answer.extend([0, u8::from(known && is_address), 0, 0, 0, 0]);
            answer.extend(question);
            if known && is_address {
                // The same name, type A, class IN, for a minute, four bytes.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(ADDRESS.octets());
            }
            // Before the answer: whoever sees what follows from that looks for the name.
            _ = tell.send(name);
            socket.send_to(&answer, from).unwrap();
        }
    });
    told
}
