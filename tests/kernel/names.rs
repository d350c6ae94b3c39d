//! Names of real sockets. The test creates cgroups as a kubelet and a runtime do, network namespaces as a network
//! plugin does, and address translations as kube-proxy does.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::Topic;
use crate::support::actor::Actor;
use crate::support::probe::Need;
use crate::support::sock::wait_until;
use crate::support::tracer::{Tracer, TracerCommand};
use crate::support::{net, node};

pub fn topic() -> Topic {
    let needs = &[Need::Nft, Need::Veth, Need::Cgroup2, Need::Unshare];
    Topic::new("names")
        .standalone(
            "pods_and_services_behind_translations",
            needs,
            pods_and_services_behind_translations,
        )
        .standalone(
            "removed_container_still_has_its_name",
            needs,
            removed_container_still_has_its_name,
        )
        .standalone(
            "pod_and_container_filters_pass_every_connection",
            needs,
            pod_and_container_filters_pass_every_connection,
        )
        .standalone(
            "translation_applies_to_its_namespace_alone",
            needs,
            translation_applies_to_its_namespace_alone,
        )
}

const WEB: &str = "10.1.0.5";
const DB: &str = "10.1.0.6";
const CLUSTER_IP: &str = "10.96.0.1";
const NODE_IP: &str = "10.9.0.1";

/// A node whose network namespace is the calling thread's.
struct Node {
    cgroups: PathBuf,
    pods_file: PathBuf,
    objects: Vec<Value>,
}

/// A pod with one container and one process.
struct Pod {
    actor: Actor,
    uid: String,
    id: String,
    cgroup: PathBuf,
    netns: u64,
}

impl Node {
    fn new(name: &str) -> Self {
        net::set_sysctl("net.ipv4.ip_forward", "1");
        net::run("ip", &["addr", "add", &format!("{NODE_IP}/32"), "dev", "lo"]);
        // As on a node, which has a default route: the kernel looks up the route before the translation.
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

    /// Creates a pod with its own network namespace, which has a veth to the node's.
    fn pod(&mut self, name: &str, ip: &str) -> Pod {
        let actor = node::actor_with_veth(name, ip);
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

    /// Writes a pods file with all objects, and starts a tracer that has read it.
    fn start_tracer(&mut self, args: &[&str]) -> Tracer {
        self.objects.push(
            json!({"kind": "Service", "metadata": {"name": "database", "namespace": "shop"},
            "spec": {"clusterIP": CLUSTER_IP, "selector": {"app": "db"},
                "ports": [{"port": 80, "targetPort": "http", "nodePort": 30080}]}}),
        );
        let list = json!({"kind": "List", "apiVersion": "v1", "items": self.objects});
        fs::write(&self.pods_file, list.to_string()).unwrap();
        let file = self.pods_file.to_str().unwrap();
        let tracer = TracerCommand::on_node(&[&["-o", "json", "--pods-file", file], args].concat()).start();
        tracer.wait_stderr("kmesh-trace: names come from");
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
    /// Moves the process into the container's cgroup, as a runtime does, before it creates a socket.
    fn start(&self) {
        node::move_into(&self.container(), &self.actor);
    }

    fn container(&self) -> PathBuf {
        self.cgroup.join(&self.id)
    }
}

/// Whether the tracer of a node watches the directory with this inode number.
fn is_watched_by(tracer: &Tracer, inode: u64) -> bool {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", tracer.pid)).unwrap();
    let descriptors = fs::read_dir(format!("/proc/{}/fdinfo", children.trim())).unwrap();
    descriptors.flatten().any(|descriptor| {
        let info = fs::read_to_string(descriptor.path()).unwrap_or_default();
        info.lines()
            .filter(|line| line.starts_with("inotify "))
            .any(|line| line.contains(&format!(" ino:{inode:x} ")))
    })
}

/// Adds the translations of the Service, as kube-proxy does.
fn add_translations() {
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

/// Makes a short connection from `client` to `server`, and returns the client's address.
fn connect(client: &Actor, server: &Actor, to: &str) -> String {
    let from = client.connect("c", to.parse().unwrap());
    server.run("accept l s");
    client.run("write c 3");
    server.run("read s 3");
    client.run("close c");
    server.run("eof s");
    server.run("close s");
    from.to_string()
}

/// Waits for the record of this direction whose client has this address.
fn wait_record(tracer: &Tracer, netns: u64, direction: &str, client: &str) -> Value {
    let is_it = |value: &Value| {
        let src = &value["src"];
        let address = format!("{}:{}", src["ip"].as_str().unwrap_or_default(), src["port"]);
        value["direction"] == direction && address == client
    };
    tracer.output.wait_matching(netns, 1, is_it).remove(0)
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

fn pods_and_services_behind_translations() {
    let mut node = Node::new("pods");
    let (web, db) = (node.pod("web", WEB), node.pod("db", DB));
    let tracer = node.start_tracer(&[]);
    let node_process = Actor::start();
    let node_netns = net::current_netns();
    for netns in [web.netns, db.netns, node_netns] {
        tracer.output.watch(netns);
    }
    // After the tracer has started, so that it must watch cgroups.
    web.start();
    db.start();
    add_translations();
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
    let original_dst = |to: &str| match to.split_once(':') {
        Some((ip, port)) if ip != DB => json!({"ip": ip, "port": port.parse::<u16>().unwrap()}),
        _ => Value::Null,
    };
    for (to, by) in [
        (format!("{DB}:8080"), "target_port"),
        (format!("{CLUSTER_IP}:80"), "vip"),
        (format!("{NODE_IP}:30080"), "vip"),
    ] {
        let from = connect(&web.actor, &db.actor, &to);
        let outbound = wait_record(&tracer, web.netns, "outbound", &from);
        check(&outbound, &server(by));
        check(&outbound, &client);
        check(&outbound, &[("/original_dst", original_dst(&to))]);
        let inbound = wait_record(&tracer, db.netns, "inbound", &from);
        check(&inbound, &server("target_port"));
        check(
            &inbound,
            &[
                ("/src/pod", json!("web-0")),
                ("/local/container_id", json!(db.id)),
                ("/original_dst", Value::Null),
            ],
        );

        // A process of the node itself, which is in no pod.
        let from = connect(&node_process, &db.actor, &to);
        let outbound = wait_record(&tracer, node_netns, "outbound", &from);
        check(&outbound, &server(by));
        check(
            &outbound,
            &[
                ("/src/pod", Value::Null),
                ("/local/container", Value::Null),
                ("/original_dst", original_dst(&to)),
            ],
        );
    }
    tracer.signal(nix::sys::signal::Signal::SIGTERM);
    drop((web, db, node_process));
}

/// The process is killed with an open connection, and its cgroup is removed immediately.
fn removed_container_still_has_its_name() {
    let mut node = Node::new("gone");
    let (web, db) = (node.pod("web", WEB), node.pod("db", DB));
    let tracer = node.start_tracer(&[]);
    tracer.output.watch(web.netns);
    web.start();
    db.start();
    // The tracer reads directories in the order of their creation, and watches the cgroups of pods, not of containers.
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
    db.actor.run("accept l s");
    let Pod { actor, cgroup, .. } = web;
    actor.kill();
    node::remove_cgroup(&cgroup);
    assert!(!cgroup.exists(), "the cgroup still exists");
    db.actor.run("eof s");
    db.actor.run("close s");
    let outbound = wait_record(&tracer, web.netns, "outbound", &from);
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
fn pod_and_container_filters_pass_every_connection() {
    const CONNECTIONS: u64 = 10;
    let mut node = Node::new("own");
    let (web, db) = (node.pod("web", WEB), node.pod("db", DB));
    web.start();
    db.start();
    web.actor.listen("l", format!("{WEB}:8080").parse().unwrap());
    db.actor.listen("l", format!("{DB}:8080").parse().unwrap());
    let (to_web, to_db) = (format!("{WEB}:8080"), format!("{DB}:8080"));
    // The flags, and the number of ends that pass of a connection web → db and of db → web.
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
        let tracer = node.start_tracer(args);
        tracer.output.watch(web.netns);
        tracer.output.watch(db.netns);
        let connect_both = || {
            [
                connect(&db.actor, &web.actor, &to_web),
                connect(&web.actor, &db.actor, &to_db),
            ]
        };
        let records = || [web.netns, db.netns].map(|netns| tracer.output.records(netns)).concat();
        // Until the tracer knows both pods, it has no names to filter by.
        wait_until("both pods are known", || {
            connect_both();
            let has_names = |value: &Value| !value["src"]["pod"].is_null() && !value["dst"]["pod"].is_null();
            records().iter().any(|record| has_names(&record.value))
        });
        let clients: Vec<_> = (0..CONNECTIONS).flat_map(|_| connect_both()).collect();
        let passing = || {
            let is_one = |value: &Value| {
                let src = &value["src"];
                clients.contains(&format!("{}:{}", src["ip"].as_str().unwrap_or_default(), src["port"]))
            };
            records().iter().filter(|record| is_one(&record.value)).count() as u64
        };
        let count = (from_web + from_db) * CONNECTIONS;
        wait_until("the records that pass are printed", || passing() >= count);
        assert_eq!(passing(), count, "{args:?}");
        tracer.signal(nix::sys::signal::Signal::SIGTERM);
    }
}

/// The node's namespace tracks a translated connection. Another namespace, which is of no pod, has a connection with
/// the same addresses and ports, and no translation.
fn translation_applies_to_its_namespace_alone() {
    let mut node = Node::new("elsewhere");
    let db = node.pod("db", DB);
    let tracer = node.start_tracer(&[]);
    let (node_process, elsewhere) = (Actor::start(), node::actor_with_veth("elsewhere", "10.1.0.9"));
    let (node_netns, other_netns) = (net::current_netns(), node::netns_of(&elsewhere));
    for netns in [node_netns, other_netns, db.netns] {
        tracer.output.watch(netns);
    }
    db.start();
    add_translations();
    db.actor.listen("l", format!("{DB}:8080").parse().unwrap());
    let (from, to) = (format!("{NODE_IP}:40123"), format!("{CLUSTER_IP}:80"));
    let connect_once = |server: &Actor, client: &Actor| {
        client.run(&format!("connect_from c {from} {to}"));
        server.run("accept l s");
        client.run("close c");
        server.run("eof s");
        server.run("close s");
    };
    connect_once(&db.actor, &node_process);
    let translated = wait_record(&tracer, node_netns, "outbound", &from);
    check(
        &translated,
        &[
            ("/dst/ip", json!(DB)),
            ("/original_dst", json!({"ip": CLUSTER_IP, "port": 80})),
        ],
    );
    // The same addresses and ports, without a translation.
    for ip in [NODE_IP, CLUSTER_IP] {
        node::run_ip(&elsewhere, &format!("addr add {ip}/32 dev lo"));
    }
    elsewhere.listen("l", to.parse().unwrap());
    connect_once(&elsewhere, &elsewhere);
    let direct = wait_record(&tracer, other_netns, "outbound", &from);
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
    drop((db, node_process, elsewhere));
}
