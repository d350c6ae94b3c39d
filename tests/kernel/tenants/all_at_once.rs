//! All that a tenant can use up, at once, in a tracer with the memory limit of the manifests and its default settings.
//!
//! `KMESH_TRACE_TENANT_SECONDS` is how long it lasts.

use std::collections::VecDeque;
use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cgroups::{Empty, delegate};
use super::cluster::{Cluster, NODE_NAME};
use super::identity::{keep, wait_for_names};
use super::node::{Driver, MALL, Node, NodeTracer, PORT, Pod, SHOP, new_ids, until};
use super::objects::{check_memory, large_pod, limit, many_labels};
use super::rounds::number;
use super::services::{service, slice};
use super::traffic::{CERTAIN, Call};
use crate::support::actor::Actor;
use crate::support::net;
use crate::support::node as support;
use crate::support::scrape::{address, scrape};

const DEFAULT_SECONDS: u64 = 20;
/// Pods of the attacker, each of which makes some series of metrics by a connection of its own.
const CLIENTS: u32 = 4_000;
/// The attacker's addresses.
const CLIENT_NETWORK: &str = "10.200.0.0/16";
/// The crowd's own address, which no pod has.
const CROWD_IP: &str = "10.201.0.1";
const SERVICES: u32 = 20_000;
/// Empty cgroups in a short run and in a long one: it takes some minutes to make them.
const EMPTY: [usize; 2] = [5_000, 66_000];
/// From this on a run is long.
const LONG: Duration = Duration::from_secs(300);
/// Scrapers that ask and do not read, at a time.
const SCRAPERS: usize = 40;

fn client_ip(number: u32) -> String {
    format!("10.200.{}.{}", number / 250, 1 + number % 250)
}

/// The attacker's pods, each with a workload of its own.
fn clients(cluster: &Cluster) {
    for number in 0..CLIENTS {
        let (uid, ip) = (new_ids().0, client_ip(number));
        cluster.put(json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": format!("client-{number}"), "namespace": MALL, "uid": uid},
            "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}));
    }
}

/// Objects that are large, or many.
fn objects(cluster: &Cluster) {
    for number in 0..46 {
        let name = format!("large-{number}");
        cluster.put_item("pods", &format!("{MALL}/{name}"), large_pod(&name));
    }
    for number in 0..15 {
        let name = format!("labels-{number}");
        cluster.put_item("pods", &format!("{MALL}/{name}"), many_labels(&name, 130_000));
    }
    let spec = json!({"clusterIP": "None", "selector": {"app": "server"},
        "ports": [{"port": PORT, "targetPort": PORT}]});
    for number in 0..SERVICES {
        cluster.put(service(MALL, &format!("s{number:05}"), &spec));
    }
}

/// Scrapes without reading the answers, until `is_over`.
fn scrape_slowly(from: SocketAddr, is_over: &AtomicBool) {
    let mut open = VecDeque::new();
    while !is_over.load(Ordering::Relaxed) {
        // A tracer that is gone shows elsewhere.
        if let Ok(mut stream) = TcpStream::connect(from) {
            _ = stream.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {from}\r\n\r\n").as_bytes());
            open.push_back(stream);
        }
        if open.len() > SCRAPERS {
            open.pop_front();
        }
        // Texts are made once a second: this is how fast scrapers come, not a wait for anything.
        thread::sleep(Duration::from_millis(250));
    }
}

/// The victim's pods and the attacker's.
struct Pods {
    web: Pod,
    db: Pod,
    thief: Pod,
    server: Pod,
    /// Stands for the processes of all clients: it has their addresses, and a cgroup that names no pod.
    crowd: Actor,
}

impl Pods {
    fn new(node: &Node) -> Self {
        let pods = Self {
            web: node.pod(Driver::Cgroupfs, SHOP, "web"),
            db: node.pod(Driver::Systemd, SHOP, "db"),
            thief: node.pod(Driver::Cgroupfs, MALL, "thief"),
            server: node.pod(Driver::Cgroupfs, MALL, "server"),
            crowd: node.wired_actor(CROWD_IP),
        };
        support::move_into(&node.cgroups.join("crowd"), &pods.crowd);
        pods.db.listen();
        pods.server.listen();
        node.translate(&pods.db);
        net::run("ip", &["route", "add", CLIENT_NETWORK, "via", CROWD_IP]);
        support::run_ip(&pods.crowd, &format!("route add local {CLIENT_NETWORK} dev lo"));
        pods
    }

    fn cluster(&self, node: &Node) -> Arc<Cluster> {
        let cluster = Cluster::of([&self.web, &self.db, &self.thief, &self.server].map(Pod::object));
        for object in [node.object(), node.service(), slice(SHOP, "database", &self.db.ip)] {
            cluster.put(object);
        }
        objects(&cluster);
        clients(&cluster);
        cluster
    }

    /// One connection of the attacker from the address of the next of its pods.
    fn call_from(&self, number: u32) {
        let (client, server) = (&self.crowd, &self.server.actor);
        client.run(&format!(
            "connect_from c {}:0 {}",
            client_ip(number),
            self.server.server()
        ));
        server.run("accept l s");
        client.run("close c");
        server.run("eof s");
        server.run("close s");
    }

    /// One connection of the attacker from a cgroup that comes and goes.
    fn call_from_new_cgroup(&self, given: &std::path::Path, number: u32) {
        let cgroup = given.join(format!("churn-{number}"));
        support::move_into(&cgroup, &self.thief.actor);
        Call::open(&self.thief, &self.server).close();
        support::move_into(&self.thief.cgroup, &self.thief.actor);
        support::remove_cgroup(&cgroup);
    }
}

/// The victim's connections beside the attacker's, each of them checked.
fn trade(node: &Node, pods: &Pods, tracer: &NodeTracer, given: &std::path::Path, duration: Duration) -> u32 {
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < duration {
        (0..20).for_each(|client| pods.call_from((number * 20 + client) % CLIENTS));
        pods.call_from_new_cgroup(given, number);
        let direct = Call::open(&pods.web, &pods.db).with_service("database", "target_port");
        direct.close();
        let by_service = Call::open_service(node, &pods.web, &pods.db);
        by_service.close();
        direct.check(&tracer.tracer, CERTAIN);
        by_service.check(&tracer.tracer, CERTAIN);
        number += 1;
    }
    number
}

pub fn all_at_once() {
    let duration = Duration::from_secs(number("KMESH_TRACE_TENANT_SECONDS", DEFAULT_SECONDS));
    let node = Node::new("all");
    let pods = Pods::new(&node);
    let given = pods.thief.cgroup.join("given");
    fs::create_dir(&given).unwrap();
    delegate(&given);
    let empty = Empty::make(&given, EMPTY[usize::from(duration >= LONG)]);
    let cluster = pods.cluster(&node);
    let kubeconfig = node.folder.join("kubeconfig");
    cluster.api_server(&kubeconfig);
    let limit = limit();
    let tracer = node.trace_within(
        limit.as_ref(),
        &[
            &format!("--kubelet={}", cluster.kubelet()),
            &format!("--kubeconfig={}", kubeconfig.display()),
            "--ip",
            CLIENT_NETWORK,
            "--metrics",
            "0",
        ],
    );
    let metrics = address(&tracer.tracer);
    keep(&tracer, &[&pods.web, &pods.db]);
    wait_for_names(&tracer, &pods.web, &pods.db);
    // The Services are a list of their own, in which the victim's comes last.
    until("the victim's Service", || {
        let call = Call::open(&pods.web, &pods.db);
        call.close();
        (!call.outbound(&tracer.tracer)["service"].is_null()).then_some(())
    });
    let is_over = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        scope.spawn(|| scrape_slowly(metrics, &is_over));
        let trade = || trade(&node, &pods, &tracer, &given, duration);
        let traded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(trade));
        is_over.store(true, Ordering::Relaxed);
        traded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    println!("{rounds} rounds of all at once; {} series", scrape(metrics).0.len());
    check_memory(&tracer);
    cluster.end();
    tracer.stop();
    drop(empty);
}
