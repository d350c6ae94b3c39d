//! Random rounds: in each, the other tenant does something, and the fixed traffic of the victim must not show it.
//!
//! `KMESH_TRACE_TENANT_ROUNDS` is the number of rounds, `KMESH_TRACE_TENANT_SEED` what all random choices follow from.

use std::collections::HashMap;
use std::env;
use std::sync::Arc;
use std::time::Instant;

use super::addresses::DOUBT;
use super::attacker::Attacker;
use super::cluster::Cluster;
use super::identity::{Source, keep, traced, wait_for_names};
use super::node::{Driver, Node, NodeTracer, Pod, SHOP};
use super::services::slice;
use super::traffic::{CERTAIN, Call, Doubt, failure};
use crate::support::node as support;
use crate::support::output::ReceivedRecord;
use crate::support::random::Random;

const DEFAULT_ROUNDS: u64 = 50;
const DEFAULT_SEED: u64 = 20_260_102;
/// After this many rounds the test waits until no address is in doubt any more.
const ROUNDS_BETWEEN_PAUSES: u64 = 25;

/// The victim's pods. Each client has a server that the other tenant knows the address of.
pub struct Victim {
    /// Connects to `db`, by its address and by its Service.
    pub web: Pod,
    /// Serves.
    pub db: Pod,
    /// Connects to `pay`.
    pub cart: Pod,
    /// Serves.
    pub pay: Pod,
    /// One process that becomes one pod after the other, all with the same address.
    pub batch: Pod,
}

impl Victim {
    fn new(node: &Node) -> Self {
        let victim = Self {
            web: node.pod(Driver::Cgroupfs, SHOP, "web"),
            db: node.pod(Driver::Systemd, SHOP, "db"),
            cart: node.pod(Driver::Systemd, SHOP, "cart"),
            pay: node.pod(Driver::Cgroupfs, SHOP, "pay"),
            batch: node.pod(Driver::Cgroupfs, SHOP, "batch-0"),
        };
        victim.db.listen();
        victim.pay.listen();
        node.translate(&victim.db);
        victim
    }

    /// All pods of it.
    pub fn all(&self) -> [&Pod; 5] {
        [&self.web, &self.db, &self.cart, &self.pay, &self.batch]
    }

    /// Replaces the pod that comes and goes: a new pod with the address of the last one, which the sources learn of at once.
    fn replace_batch(&mut self, node: &Node, cluster: &Cluster, number: u64) {
        let before = self.batch.object();
        let batch = &mut self.batch;
        (batch.uid, batch.id) = super::node::new_ids();
        batch.name = format!("batch-{number}");
        cluster.delete(&before);
        let cgroup = node.cgroups.join(Driver::Cgroupfs.container(&batch.uid, &batch.id));
        let left = std::mem::replace(&mut batch.cgroup, cgroup);
        cluster.put(batch.object());
        batch.start();
        support::remove_cgroup(left.parent().unwrap());
    }
}

/// Since when an address may be in doubt, because a pod that no source knew has used it; and since when a pod may be unknown.
#[derive(Default)]
pub struct Doubts {
    addresses: HashMap<String, Instant>,
    new_pods: HashMap<String, Instant>,
}

impl Doubts {
    /// A pod that no source knows uses this address now.
    pub fn add(&mut self, ip: &str) {
        self.addresses.insert(ip.to_owned(), Instant::now());
    }

    /// A new pod begins, with an address that another pod had.
    fn add_pod(&mut self, pod: &Pod) {
        self.add(&pod.ip);
        self.new_pods.insert(pod.ip.clone(), Instant::now());
    }

    fn of(&self, call: &Call<'_>) -> Doubt {
        let is_in = |since: &HashMap<String, Instant>, pod: &Pod| {
            since.get(&pod.ip).is_some_and(|since| call.opened < *since + DOUBT)
        };
        Doubt {
            client: is_in(&self.addresses, call.client),
            server: is_in(&self.addresses, call.server),
            client_is_new: is_in(&self.new_pods, call.client),
        }
    }

    fn wait_until_over(&self) {
        let over = self.addresses.values().map(|since| *since + DOUBT).max();
        if let Some(left) = over.and_then(|over| over.checked_duration_since(Instant::now())) {
            // That doubt ends by itself is what is tested.
            std::thread::sleep(left);
        }
    }
}

/// The tracers of the run.
struct Tracers {
    of_kubelet: NodeTracer,
    of_api_server: NodeTracer,
    of_shop: NodeTracer,
}

impl Tracers {
    fn start(node: &Node, cluster: &Arc<Cluster>) -> Self {
        Self {
            of_kubelet: traced(node, cluster, Source::Kubelet, &[]),
            of_api_server: traced(node, cluster, Source::ApiServer, &[]),
            of_shop: traced(node, cluster, Source::ApiServer, &["--from-namespace", SHOP]),
        }
    }

    fn all(&self) -> [&NodeTracer; 3] {
        [&self.of_kubelet, &self.of_api_server, &self.of_shop]
    }

    /// The records of a call are there, by the right names.
    fn check(&self, call: &Call<'_>, doubt: Doubt) {
        // The kubelet knows no Services.
        call.without_service().check(&self.of_kubelet.tracer, doubt);
        call.check(&self.of_api_server.tracer, doubt);
        // A client without a name is in no namespace.
        let of_shop = &self.of_shop.tracer;
        if !doubt.client_is_new {
            call.check_outbound(&call.outbound(of_shop), doubt);
            if !doubt.client {
                call.check_inbound(&call.inbound(of_shop), doubt);
            }
        }
    }

    /// No record of an attacker's socket has a name of the victim at its local end.
    fn check_attacker(&self, netns: u64, victim: &Victim) {
        for tracer in self.all() {
            for ReceivedRecord { value, .. } in tracer.tracer.output.records(netns) {
                let local = if value["direction"] == "outbound" { "src" } else { "dst" };
                for pod in victim.all() {
                    super::traffic::check_is_not(&value, local, pod);
                }
            }
        }
    }
}

/// Returns the number in this environment variable.
pub fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{variable}={value}"))
    })
}

/// What stays the same through all rounds.
struct Run {
    cluster: Arc<Cluster>,
    tracers: Tracers,
    victim: Victim,
    attacker: Attacker,
    doubts: Doubts,
    random: Random,
    // Last, since it removes the cgroups that the processes are in.
    node: Node,
}

impl Run {
    fn new(seed: u64) -> Self {
        let node = Node::new("rounds");
        let victim = Victim::new(&node);
        let attacker = Attacker::new(&node);
        let cluster = Cluster::of(victim.all().map(Pod::object));
        for object in [node.object(), node.service(), slice(SHOP, "database", &victim.db.ip)] {
            cluster.put(object);
        }
        attacker.known_pods().iter().for_each(|pod| cluster.put(pod.object()));
        let tracers = Tracers::start(&node, &cluster);
        for tracer in tracers.all() {
            keep(tracer, &victim.all());
            attacker
                .namespaces()
                .iter()
                .for_each(|netns| tracer.tracer.output.watch(*netns));
            wait_for_names(tracer, &victim.web, &victim.db);
        }
        Self {
            node,
            cluster,
            tracers,
            victim,
            attacker,
            doubts: Doubts::default(),
            random: Random::new(seed),
        }
    }

    /// One round: the attacker does something while the victim has a connection open, and before it makes others.
    fn round(&mut self, round: u64) {
        if self.random.one_in(4) {
            self.victim.replace_batch(&self.node, &self.cluster, round + 1);
            self.doubts.add_pod(&self.victim.batch);
        }
        let held = Call::open(&self.victim.web, &self.victim.db).with_service("database", "target_port");
        self.attacker.act(
            &self.node,
            &self.cluster,
            &self.victim,
            &mut self.doubts,
            &mut self.random,
        );
        held.close();
        let victim = &self.victim;
        let mut calls = vec![held];
        for open in 0..3 {
            let call = match open {
                0 => Call::open_service(&self.node, &victim.web, &victim.db),
                1 => Call::open(&victim.cart, &victim.pay),
                _ => Call::open(&victim.batch, &victim.pay),
            };
            call.close();
            calls.push(call);
        }
        for call in &calls {
            self.tracers.check(call, self.doubts.of(call));
        }
    }

    /// With all claims still there but no doubt left, each name is there.
    fn check_certain(&self) {
        self.doubts.wait_until_over();
        let victim = &self.victim;
        for (client, server) in [
            (&victim.web, &victim.db),
            (&victim.cart, &victim.pay),
            (&victim.batch, &victim.pay),
        ] {
            let call = Call::open(client, server);
            call.close();
            self.tracers.check(&call, CERTAIN);
        }
        for netns in self.attacker.namespaces() {
            self.tracers.check_attacker(netns, victim);
        }
    }
}

pub fn random_rounds() {
    let rounds = number("KMESH_TRACE_TENANT_ROUNDS", DEFAULT_ROUNDS);
    let seed = number("KMESH_TRACE_TENANT_SEED", DEFAULT_SEED);
    let mut run = Run::new(seed);
    let began = Instant::now();
    for round in 0..rounds {
        let body = || {
            run.round(round);
            if (round + 1) % ROUNDS_BETWEEN_PAUSES == 0 || round + 1 == rounds {
                run.check_certain();
            }
        };
        if let Some(why) = failure(body) {
            let done = &run.attacker.done;
            let last = &done[done.len().saturating_sub(12)..];
            panic!("seed {seed}, round {round}, the last actions {last:?}: {why}");
        }
    }
    println!("{rounds} rounds of seed {seed} in {:?}", began.elapsed());
    run.cluster.end();
    for tracer in run.tracers.all() {
        tracer.stop();
    }
    // So that the check of waits is one: sources that have just started know no pod.
    let waited = [&run.tracers.of_kubelet, &run.tracers.of_api_server];
    assert!(
        waited.iter().any(|tracer| tracer.has_waited()),
        "no record waited for a name"
    );
}
