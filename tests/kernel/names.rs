//! Names of real sockets: processes in cgroups as a kubelet and a runtime make them, in network namespaces as a network plugin
//! makes them, their traffic translated as kube-proxy does.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::Table;
use crate::support::actor::Actor;
use crate::support::probe::Need;
use crate::support::sock::wait_until;
use crate::support::tracer::{Start, Tracer};
use crate::support::{net, node};

/// The trials.
pub fn table() -> Table {
    let needs = &[Need::Nft, Need::Veth, Need::Cgroup2, Need::Unshare];
    Table::new("names")
        .own("pods_services_and_translations", needs, pods_services_and_translations)
        .own("a_container_that_is_gone", needs, a_container_that_is_gone)
        .own("filters_by_pod_and_container", needs, filters_by_pod_and_container)
        .own(
            "translation_of_another_namespace",
            needs,
            translation_of_another_namespace,
        )
}

const WEB: &str = "10.1.0.5";
const DB: &str = "10.1.0.6";
const CLUSTER_IP: &str = "10.96.0.1";
const NODE_IP: &str = "10.9.0.1";

/// A node in the calling thread's namespace.
struct Node {
    cgroups: PathBuf,
    pods_file: PathBuf,
    objects: Vec<Value>,
}

/// A pod of one container of one process.
struct Pod {
    actor: Actor,
    uid: String,
    id: String,
    cgroup: PathBuf,
    netns: u64,
}

impl Node {
    fn new(name: &str) -> Self {
        net::sysctl("net.ipv4.ip_forward", "1");
        net::run("ip", &["addr", "add", &format!("{NODE_IP}/32"), "dev", "lo"]);
        // A node has a route to anywhere; that is looked up before the translation.
        net::run(
            "ip",
            &["route", "add", &format!("{CLUSTER_IP}/32"), "dev", "lo", "src", NODE_IP],
        );
        let unique = format!("kmesh-trace-test-{}-{name}", std::process::id());
        let root = node::cgroup2().join(&unique);
        fs::create_dir_all(root.join("kubepods/besteffort")).unwrap();
        Self {
            cgroups: root,
            pods_file: std::env::temp_dir().join(format!("{unique}.json")),
            objects: vec![json!({"kind": "Node", "metadata": {"name": "worker-1"},
                "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}]}})],
        }
    }

    /// A pod with a network namespace of its own, wired to the node's.
    fn pod(&mut self, name: &str, ip: &str) -> Pod {
        let actor = node::wired_actor(name, ip);
        let number = self.objects.len();
        let uid = format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id());
        let id = format!("{:056x}{number:08x}", std::process::id());
        self.objects.push(json!({"kind": "Pod",
            "metadata": {"name": format!("{name}-0"), "namespace": "shop", "uid": uid, "labels": {"app": name},
                "ownerReferences": [{"kind": "StatefulSet", "name": name, "uid": "s", "controller": true}]},
            "spec": {"nodeName": "worker-1", "serviceAccountName": "default", "containers": [
                {"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "startTime": "2020-01-01T00:00:00Z",
                "containerStatuses": [{"name": "main", "containerID": format!("containerd://{id}")}]}}));
        Pod {
            cgroup: self.cgroups.join(format!("kubepods/besteffort/pod{uid}")),
            netns: node::netns_of(&actor),
            actor,
            uid,
            id,
        }
    }

    /// What sources would tell, and a tracer that has been told.
    fn traced(&mut self, args: &[&str]) -> Tracer {
        self.objects.push(
            json!({"kind": "Service", "metadata": {"name": "database", "namespace": "shop"},
            "spec": {"clusterIP": CLUSTER_IP, "selector": {"app": "db"},
                "ports": [{"port": 80, "targetPort": "http", "nodePort": 30080}]}}),
        );
        let list = json!({"kind": "List", "apiVersion": "v1", "items": self.objects});
        fs::write(&self.pods_file, list.to_string()).unwrap();
        let file = self.pods_file.to_str().unwrap();
        let tracer = Start::on_node(&[&["-o", "json", "--pods-file", file], args].concat()).tracing();
        tracer.wait_said("kmesh-trace: names come from");
        tracer
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.pods_file);
        node::remove_cgroup(&self.cgroups);
    }
}

impl Pod {
    /// Puts its process into its container's cgroup, as a runtime does, before it makes any socket.
    fn start(&self) {
        node::move_into(&self.container(), &self.actor);
    }

    fn container(&self) -> PathBuf {
        self.cgroup.join(&self.id)
    }
}

/// Whether the tracer, a node's, watches the directory with this inode number.
fn is_watched_by(tracer: &Tracer, inode: u64) -> bool {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.pid)).unwrap();
    let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", children.trim())).unwrap();
    descriptors.flatten().any(|descriptor| {
        let told = fs::read_to_string(descriptor.path()).unwrap_or_default();
        told.lines()
            .filter(|line| line.starts_with("inotify "))
            .any(|line| line.contains(&format!(" ino:{inode:x} ")))
    })
}

fn translate() {
    let rules = [
        format!("ip daddr {CLUSTER_IP} tcp dport 80 dnat to {DB}:8080"),
        format!("ip daddr {NODE_IP} tcp dport 30080 dnat to {DB}:8080"),
    ];
    net::run("nft", &["add table ip kube-proxy"]);
    for hook in ["prerouting", "output"] {
        net::run(
            "nft",
            &[&format!(
                "add chain ip kube-proxy {hook} {{ type nat hook {hook} priority -100; }}"
            )],
        );
        for rule in &rules {
            net::run("nft", &[&format!("add rule ip kube-proxy {hook} {rule}")]);
        }
    }
}

/// One short connection, the server's end accepted by `server`: the client's own address.
fn call(client: &Actor, server: &Actor, to: &str) -> String {
    let from = client.connect("c", to.parse().unwrap());
    server.ask("accept l s");
    client.ask("write c 3");
    server.ask("read s 3");
    client.ask("close c");
    server.ask("eof s");
    server.ask("close s");
    from.to_string()
}

/// The record of the end whose client has this address.
fn record(tracer: &Tracer, netns: u64, direction: &str, client: &str) -> Value {
    let is_it = |value: &Value| {
        let src = &value["src"];
        let address = format!("{}:{}", src["ip"].as_str().unwrap_or_default(), src["port"]);
        value["direction"] == direction && address == client
    };
    tracer
        .store
        .wait(netns, |records| {
            records
                .iter()
                .map(|record| &record.value)
                .find(|value| is_it(value))
                .cloned()
        })
        .unwrap_or_else(|error| panic!("{direction} of {client}: {error}"))
}

#[track_caller]
fn check(record: &Value, expected: &[(&str, Value)]) {
    for (path, expected) in expected {
        assert_eq!(
            record.pointer(path).unwrap_or(&Value::Null),
            expected,
            "{path} of {record}"
        );
    }
}

fn pods_services_and_translations() {
    let mut node = Node::new("pods");
    let (web, db) = (node.pod("web", WEB), node.pod("db", DB));
    let tracer = node.traced(&[]);
    let own = Actor::start();
    let nodes = net::inode();
    for netns in [web.netns, db.netns, nodes] {
        tracer.store.keep(netns);
    }
    // Only now, so that the tracer must have watched.
    web.start();
    db.start();
    translate();
    db.actor.listen("l", format!("{DB}:8080").parse().unwrap());

    let server = |by: &str| {
        [
            ("/dst/ip", json!(DB)),
            ("/dst/port", json!(8080)),
            ("/dst/pod", json!("db-0")),
            ("/dst/pod_uid", json!(db.uid)),
            ("/dst/workload", json!("db")),
            ("/dst/workload_kind", json!("StatefulSet")),
            ("/service/name", json!("database")),
            ("/service/by", json!(by)),
        ]
    };
    let client = [
        ("/src/pod", json!("web-0")),
        ("/src/namespace", json!("shop")),
        ("/local/container", json!("main")),
        ("/local/container_id", json!(web.id)),
    ];
    let dialled = |to: &str| match to.split_once(':') {
        Some((ip, port)) if ip != DB => json!({"ip": ip, "port": port.parse::<u16>().unwrap()}),
        _ => Value::Null,
    };
    for (to, by) in [
        (format!("{DB}:8080"), "target_port"),
        (format!("{CLUSTER_IP}:80"), "vip"),
        (format!("{NODE_IP}:30080"), "vip"),
    ] {
        let from = call(&web.actor, &db.actor, &to);
        let outbound = record(&tracer, web.netns, "outbound", &from);
        check(&outbound, &server(by));
        check(&outbound, &client);
        check(&outbound, &[("/original_dst", dialled(&to))]);
        let inbound = record(&tracer, db.netns, "inbound", &from);
        check(&inbound, &server("target_port"));
        check(
            &inbound,
            &[
                ("/src/pod", json!("web-0")),
                ("/local/container_id", json!(db.id)),
                ("/original_dst", Value::Null),
            ],
        );

        // The same from the node itself, which is no pod.
        let from = call(&own, &db.actor, &to);
        let outbound = record(&tracer, nodes, "outbound", &from);
        check(&outbound, &server(by));
        check(
            &outbound,
            &[
                ("/src/pod", Value::Null),
                ("/local/container", Value::Null),
                ("/original_dst", dialled(&to)),
            ],
        );
    }
    tracer.signal(nix::sys::signal::Signal::SIGTERM);
    drop((web, db, own));
}

/// Its process is killed with its connection open, and its cgroup removed at once.
fn a_container_that_is_gone() {
    let mut node = Node::new("gone");
    let (web, db) = (node.pod("web", WEB), node.pod("db", DB));
    let tracer = node.traced(&[]);
    tracer.store.keep(web.netns);
    web.start();
    db.start();
    // The tracer takes in directories in the order in which they are made, and watches pods, not containers.
    let later_pod = node.cgroups.join(format!(
        "kubepods/besteffort/pod{}",
        web.uid.replace("-0000-", "-ffff-")
    ));
    fs::create_dir(&later_pod).unwrap();
    let later_pod = fs::metadata(later_pod).unwrap().st_ino();
    wait_until("the tracer watches the cgroup of a later pod", || {
        is_watched_by(&tracer, later_pod)
    });
    db.actor.listen("l", format!("{DB}:8080").parse().unwrap());
    let from = web
        .actor
        .connect("c", format!("{DB}:8080").parse().unwrap())
        .to_string();
    db.actor.ask("accept l s");
    let Pod { actor, cgroup, .. } = web;
    actor.kill();
    node::remove_cgroup(&cgroup);
    assert!(!cgroup.exists(), "the cgroup stays");
    db.actor.ask("eof s");
    db.actor.ask("close s");
    let outbound = record(&tracer, web.netns, "outbound", &from);
    check(
        &outbound,
        &[
            ("/src/pod", json!("web-0")),
            ("/local/container_id", json!(web.id)),
            ("/dst/pod", json!("db-0")),
        ],
    );
    drop(db);
}

/// Filters by pod, namespace and container pass the right ends of every connection, the first one included.
fn filters_by_pod_and_container() {
    const CALLS: u64 = 10;
    let mut node = Node::new("own");
    let (web, db) = (node.pod("web", WEB), node.pod("db", DB));
    web.start();
    db.start();
    web.actor.listen("l", format!("{WEB}:8080").parse().unwrap());
    db.actor.listen("l", format!("{DB}:8080").parse().unwrap());
    let (to_web, to_db) = (format!("{WEB}:8080"), format!("{DB}:8080"));
    // The flags, and how many ends of a connection web → db and db → web pass.
    type Case<'a> = (&'a [&'a str], u64, u64);
    let cases: [Case; 6] = [
        (&["--from-pod", "web-0"], 2, 0),
        (&["--to-pod", "web-0"], 0, 2),
        (&["--from-pod", "!shop/db-0"], 2, 0),
        (&["--pod", "web-0"], 2, 2),
        (&["--from-namespace", "bank,shop"], 2, 2),
        (&["--container", &web.id], 1, 1),
    ];
    for (args, from_web, from_db) in cases {
        let tracer = node.traced(args);
        tracer.store.keep(web.netns);
        tracer.store.keep(db.netns);
        for _ in 0..CALLS {
            call(&db.actor, &web.actor, &to_web);
            call(&web.actor, &db.actor, &to_db);
        }
        let count = (from_web + from_db) * CALLS;
        let records = || tracer.store.records(web.netns).len() + tracer.store.records(db.netns).len();
        wait_until("records that pass", || records() as u64 >= count);
        assert_eq!(records() as u64, count, "{args:?}");
        tracer.signal(nix::sys::signal::Signal::SIGTERM);
    }
}

/// The node's namespace remembers a translated connection. A namespace that is no pod's uses the same four numbers, and nothing
/// translates there.
fn translation_of_another_namespace() {
    let mut node = Node::new("elsewhere");
    let db = node.pod("db", DB);
    let tracer = node.traced(&[]);
    let (own, elsewhere) = (Actor::start(), node::wired_actor("elsewhere", "10.1.0.9"));
    let (nodes, others) = (net::inode(), node::netns_of(&elsewhere));
    for netns in [nodes, others, db.netns] {
        tracer.store.keep(netns);
    }
    db.start();
    translate();
    db.actor.listen("l", format!("{DB}:8080").parse().unwrap());
    let (from, to) = (format!("{NODE_IP}:40123"), format!("{CLUSTER_IP}:80"));
    let once = |server: &Actor, client: &Actor| {
        client.ask(&format!("connect_from c {from} {to}"));
        server.ask("accept l s");
        client.ask("close c");
        server.ask("eof s");
        server.ask("close s");
    };
    once(&db.actor, &own);
    let translated = record(&tracer, nodes, "outbound", &from);
    check(
        &translated,
        &[
            ("/dst/ip", json!(DB)),
            ("/original_dst", json!({"ip": CLUSTER_IP, "port": 80})),
        ],
    );
    // The same numbers, served on the spot.
    for ip in [NODE_IP, CLUSTER_IP] {
        node::run_ip(&elsewhere, &format!("addr add {ip}/32 dev lo"));
    }
    elsewhere.listen("l", to.parse().unwrap());
    once(&elsewhere, &elsewhere);
    let direct = record(&tracer, others, "outbound", &from);
    check(
        &direct,
        &[
            ("/dst/ip", json!(CLUSTER_IP)),
            ("/dst/port", json!(80)),
            ("/dst/pod", Value::Null),
            ("/original_dst", Value::Null),
        ],
    );
    tracer.signal(nix::sys::signal::Signal::SIGTERM);
    drop((db, own, elsewhere));
}
