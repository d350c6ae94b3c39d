//! All attacks on the tracer's memory, time and slots at once, with default settings and the memory limit of the
//! manifests.
//!
//! `KMESH_TRACE_TENANT_SECONDS` sets the duration.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::cgroups::{EmptyCgroups, delegate_child};
use super::cluster::Cluster;
use super::connection::{NO_DOUBT, PodConnection};
use super::fixture::{Fixture, wait_for_names, watch};
use super::node::{ATTACKER_NAMESPACE, NodeTracer, PORT, Pod, VICTIM_NAMESPACE, new_ids, pod_object, retry_until};
use super::objects::{check_memory, memory_limit};
use super::rounds::env_number;
use super::services::{endpoint_slice, service};
use crate::support::actor::Actor;
use crate::support::net;
use crate::support::node as support;
use crate::support::scrape::{address, scrape};

const DEFAULT_SECONDS: u64 = 20;
/// The number of the attacker's client pods. The connection of each pod creates its own metric series.
const CLIENTS: u32 = 4_000;
/// The addresses of the client pods.
const CLIENT_NETWORK: &str = "10.200.0.0/16";
/// The veth address of the process that has the addresses of all client pods.
const CLIENTS_VETH_IP: &str = "10.201.0.1";
const SERVICES: u32 = 20_000;
/// The number of empty cgroups in a short run and in a long one. The kernel needs minutes to create the latter.
const EMPTY_CGROUPS: [usize; 2] = [5_000, 66_000];
const LONG_RUN: Duration = Duration::from_secs(300);
/// The number of concurrent scrapes whose client does not read the answer.
const UNREAD_SCRAPES: usize = 40;

fn client_ip(number: u32) -> String {
    format!("10.200.{}.{}", number / 250, 1 + number % 250)
}

/// Adds the client pods. Each is a workload of its own.
fn add_client_pods(cluster: &Cluster) {
    for number in 0..CLIENTS {
        let metadata = json!({"name": format!("client-{number}"), "namespace": ATTACKER_NAMESPACE, "uid": new_ids().0});
        cluster.put(pod_object(&metadata, &client_ip(number)));
    }
}

/// Adds Services that select the attacker's server.
fn add_services(cluster: &Cluster) {
    let spec = json!({"clusterIP": "None", "selector": {"app": "server"},
        "ports": [{"port": PORT, "targetPort": PORT}]});
    for number in 0..SERVICES {
        cluster.put(service(ATTACKER_NAMESPACE, &format!("s{number:05}"), &spec));
    }
}

/// Requests the metrics without reading the answers, until `is_done`.
fn scrape_without_reading(metrics: SocketAddr, is_done: &AtomicBool) {
    let mut streams = VecDeque::new();
    while !is_done.load(Ordering::Relaxed) {
        // The other checks notice a tracer that has ended.
        if let Ok(mut stream) = TcpStream::connect(metrics) {
            let request = format!("GET /metrics HTTP/1.1\r\nHost: {metrics}\r\n\r\n");
            _ = stream.write_all(request.as_bytes());
            streams.push_back(stream);
        }
        if streams.len() > UNREAD_SCRAPES {
            streams.pop_front();
        }
        // The rate of the scrapes: the tool formats the metrics at most once a second.
        thread::sleep(Duration::from_millis(250));
    }
}

/// The processes of the attacker.
struct Attacker {
    client: Pod,
    server: Pod,
    /// Has the addresses of all client pods, and is in a cgroup that names no pod.
    clients: Actor,
}

impl Attacker {
    fn start(fixture: &Fixture) -> Self {
        let node = &fixture.node;
        let attacker = Self {
            client: fixture.attacker_pod("client"),
            server: fixture.attacker_pod("server"),
            clients: node.actor_with_address(CLIENTS_VETH_IP),
        };
        support::move_into(&node.cgroups.join("clients"), &attacker.clients);
        attacker.server.listen();
        net::run("ip", &["route", "add", CLIENT_NETWORK, "via", CLIENTS_VETH_IP]);
        let route = format!("route add local {CLIENT_NETWORK} dev lo");
        support::run_ip(&attacker.clients, &route);
        attacker
    }

    /// Makes a connection from the address of a client pod.
    fn connect_from(&self, number: u32) {
        let (client, server) = (&self.clients, &self.server);
        let (ip, destination) = (client_ip(number), server.server());
        client.run(&format!("connect_from c {ip}:0 {destination}"));
        server.actor.run("accept l s");
        client.run("close c");
        server.actor.run("eof s");
        server.actor.run("close s");
    }

    /// Makes a connection from a new cgroup, and removes the cgroup.
    fn connect_from_new_cgroup(&self, delegated: &Path, number: u32) {
        let cgroup = delegated.join(format!("churn-{number}"));
        support::move_into(&cgroup, &self.client.actor);
        PodConnection::make(&self.client, &self.server);
        support::move_into(&self.client.cgroup, &self.client.actor);
        support::remove_cgroup(&cgroup);
    }
}

/// Makes connections of the attacker and of the victim, and checks the victim's. Returns the number of rounds.
fn connect_and_check(
    fixture: &Fixture,
    attacker: &Attacker,
    tracer: &NodeTracer,
    delegated: &Path,
    duration: Duration,
) -> u32 {
    const CLIENTS_EACH_ROUND: u32 = 20;
    let (web, db) = (&fixture.web, &fixture.db);
    let started = Instant::now();
    let mut rounds = 0;
    while started.elapsed() < duration {
        for client in 0..CLIENTS_EACH_ROUND {
            attacker.connect_from((rounds * CLIENTS_EACH_ROUND + client) % CLIENTS);
        }
        attacker.connect_from_new_cgroup(delegated, rounds);
        let direct = PodConnection::make(web, db).expect_service("database", "target_port");
        let by_service = PodConnection::open_service(&fixture.node, web, db);
        by_service.close();
        direct.check(tracer, NO_DOUBT);
        by_service.check(tracer, NO_DOUBT);
        rounds += 1;
    }
    rounds
}

pub fn all_attacks_at_once() {
    let duration = Duration::from_secs(env_number("KMESH_TRACE_TENANT_SECONDS", DEFAULT_SECONDS));
    let fixture = Fixture::new("all");
    fixture.add_service();
    let (web, db, cluster) = (&fixture.web, &fixture.db, &fixture.cluster);
    cluster.put(endpoint_slice(VICTIM_NAMESPACE, "database", &db.ip));
    let attacker = Attacker::start(&fixture);
    let delegated = delegate_child(&attacker.client.cgroup);
    let count = EMPTY_CGROUPS[usize::from(duration >= LONG_RUN)];
    let empty_cgroups = EmptyCgroups::create(&delegated, count);
    fixture.put_large_pods(46);
    fixture.put_pods_with_labels();
    add_services(cluster);
    add_client_pods(cluster);
    let kubeconfig = fixture.node.folder.join("kubeconfig");
    cluster.serve_api_server(&kubeconfig);
    let limit = memory_limit();
    let tracer = fixture.node.trace_with_limit(
        limit.as_ref(),
        &[
            &format!("--kubelet={}", cluster.serve_kubelet()),
            &format!("--kubeconfig={}", kubeconfig.display()),
            "--ip",
            CLIENT_NETWORK,
            "--metrics",
            "0",
        ],
    );
    let metrics = address(&tracer);
    watch(&tracer, &[web, db]);
    wait_for_names(&tracer, web, db);
    // The tool lists Services separately, and the victim's Service is the last in the list. The server's record names
    // the Service only when the API server has also listed the server's pod.
    retry_until("the victim's Service", || {
        let connection = PodConnection::make(web, db);
        let records = [connection.outbound(&tracer), connection.inbound(&tracer)];
        records.iter().all(|record| !record["service"].is_null()).then_some(())
    });
    let is_done = AtomicBool::new(false);
    let rounds = thread::scope(|scope| {
        scope.spawn(|| scrape_without_reading(metrics, &is_done));
        let connect = || connect_and_check(&fixture, &attacker, &tracer, &delegated, duration);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(connect));
        is_done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    println!("{rounds} rounds of all attacks; {} series", scrape(metrics).0.len());
    check_memory(&tracer);
    cluster.stop();
    tracer.stop();
    drop(empty_cgroups);
}
