//! Random rounds: in each round, the attacker does something, and the victim's connections must keep their names.
//!
//! `KMESH_TRACE_TENANT_ROUNDS` sets the number of rounds. All random choices follow from `KMESH_TRACE_TENANT_SEED`.

use std::collections::HashMap;
use std::env;
use std::sync::Arc;
use std::time::Instant;

use super::addresses::MAX_DOUBT;
use super::attacker::Attacker;
use super::cluster::Cluster;
use super::connection::{Doubt, NO_DOUBT, PodConnection, catch_failure, check_not_named};
use super::fixture::{NameSource, start_tracer, wait_for_names, watch};
use super::node::{CgroupDriver, Node, NodeTracer, Pod, VICTIM_NAMESPACE};
use super::services::endpoint_slice;
use crate::support::output::ReceivedRecord;
use crate::support::random::Random;

const DEFAULT_ROUNDS: u64 = 50;
const DEFAULT_SEED: u64 = 20_260_102;
/// The number of rounds after which the test waits until no address is in doubt.
const ROUNDS_BETWEEN_PAUSES: u64 = 25;

/// The victim's pods, of which `db` and `pay` are servers.
pub struct Victim {
    /// Connects to `db`, by its address and by its Service.
    pub web: Pod,
    pub db: Pod,
    /// Connects to `pay` by its address.
    pub cart: Pod,
    pub pay: Pod,
    /// Connects to `pay`. One process becomes one pod after another, all with the same address.
    pub batch: Pod,
}

impl Victim {
    fn new(node: &Node) -> Self {
        use CgroupDriver::{Cgroupfs, Systemd};
        let pod = |driver, name| node.pod(driver, VICTIM_NAMESPACE, name);
        let victim = Self {
            web: pod(Cgroupfs, "web"),
            db: pod(Systemd, "db"),
            cart: pod(Systemd, "cart"),
            pay: pod(Cgroupfs, "pay"),
            batch: pod(Cgroupfs, "batch-0"),
        };
        victim.db.listen();
        victim.pay.listen();
        node.add_service_rules(&victim.db);
        victim
    }

    pub fn pods(&self) -> [&Pod; 5] {
        [&self.web, &self.db, &self.cart, &self.pay, &self.batch]
    }

    /// Replaces the pod `batch` by a new pod with the same address, which the sources list at once.
    fn replace_batch(&mut self, node: &Node, cluster: &Cluster, number: u64) {
        let old = self.batch.object();
        self.batch.name = format!("batch-{number}");
        self.batch.become_new_pod(node, |new| {
            cluster.delete(&old);
            cluster.put(new.object());
        });
    }
}

/// The addresses that may be in doubt because an unknown pod has used them, and the addresses of new pods that the
/// sources may not list yet. Each has the time since when.
#[derive(Default)]
pub struct ActiveDoubts {
    addresses: HashMap<String, Instant>,
    new_pods: HashMap<String, Instant>,
}

impl ActiveDoubts {
    /// A pod that no source knows uses this address now.
    pub fn add(&mut self, ip: &str) {
        self.addresses.insert(ip.to_owned(), Instant::now());
    }

    /// A new pod has the address of a pod that ended.
    fn add_new_pod(&mut self, pod: &Pod) {
        self.add(&pod.ip);
        self.new_pods.insert(pod.ip.clone(), Instant::now());
    }

    fn of(&self, connection: &PodConnection<'_>) -> Doubt {
        let contains = |times: &HashMap<String, Instant>, pod: &Pod| {
            times
                .get(&pod.ip)
                .is_some_and(|since| connection.opened < *since + MAX_DOUBT)
        };
        Doubt {
            client: contains(&self.addresses, connection.client),
            server: contains(&self.addresses, connection.server),
            client_is_new: contains(&self.new_pods, connection.client),
        }
    }

    /// Sleeps until no address is in doubt.
    fn wait_until_over(&self) {
        let end = self.addresses.values().map(|since| *since + MAX_DOUBT).max();
        if let Some(left) = end.and_then(|end| end.checked_duration_since(Instant::now())) {
            std::thread::sleep(left);
        }
    }
}

struct Tracers {
    kubelet: NodeTracer,
    api_server: NodeTracer,
    /// Filters by the victim's namespace. Its source is the API server.
    filtered: NodeTracer,
}

impl Tracers {
    fn start(node: &Node, cluster: &Arc<Cluster>) -> Self {
        let filter = ["--from-namespace", VICTIM_NAMESPACE];
        Self {
            kubelet: start_tracer(node, cluster, NameSource::Kubelet, &[]),
            api_server: start_tracer(node, cluster, NameSource::ApiServer, &[]),
            filtered: start_tracer(node, cluster, NameSource::ApiServer, &filter),
        }
    }

    fn all(&self) -> [&NodeTracer; 3] {
        [&self.kubelet, &self.api_server, &self.filtered]
    }

    /// Checks that each tracer has the records of a connection, with the right names.
    fn check(&self, connection: &PodConnection<'_>, doubt: Doubt) {
        // A kubelet lists no Services.
        connection.without_service().check(&self.kubelet, doubt);
        connection.check(&self.api_server, doubt);
        // A client without a name is in no namespace, so the filter does not select its connection.
        if !doubt.client_is_new {
            connection.check_outbound(&connection.outbound(&self.filtered), doubt);
            if !doubt.client {
                connection.check_inbound(&connection.inbound(&self.filtered), doubt);
            }
        }
    }

    /// Checks that no record of an attacker's socket names a pod of the victim at its local end.
    fn check_attacker(&self, netns: u64, victim: &Victim) {
        for tracer in self.all() {
            for ReceivedRecord { value, .. } in tracer.output.records(netns) {
                let local = if value["direction"] == "outbound" { "src" } else { "dst" };
                for pod in victim.pods() {
                    check_not_named(&value, local, pod);
                }
            }
        }
    }
}

/// Returns the number in an environment variable, or the default if it is not set.
pub fn env_number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{variable}={value}"))
    })
}

/// The state of a run.
struct Run {
    cluster: Arc<Cluster>,
    tracers: Tracers,
    victim: Victim,
    attacker: Attacker,
    doubts: ActiveDoubts,
    random: Random,
    // The last field, because its drop removes the cgroups of the processes.
    node: Node,
}

impl Run {
    fn new(seed: u64) -> Self {
        let node = Node::new("rounds");
        let victim = Victim::new(&node);
        let attacker = Attacker::new(&node);
        let pods = victim.pods().into_iter().chain(attacker.known_pods());
        let cluster = Cluster::with(pods.map(Pod::object));
        let slice = endpoint_slice(VICTIM_NAMESPACE, "database", &victim.db.ip);
        for object in [node.object(), node.service(), slice] {
            cluster.put(object);
        }
        let tracers = Tracers::start(&node, &cluster);
        for tracer in tracers.all() {
            watch(tracer, &victim.pods());
            for netns in attacker.namespaces() {
                tracer.output.watch(netns);
            }
            wait_for_names(tracer, &victim.web, &victim.db);
        }
        Self {
            node,
            cluster,
            tracers,
            victim,
            attacker,
            doubts: ActiveDoubts::default(),
            random: Random::new(seed),
        }
    }

    /// Runs a round: the attacker acts while the victim has an open connection, and before the victim makes others.
    fn round(&mut self, round: u64) {
        if self.random.one_in(4) {
            self.victim.replace_batch(&self.node, &self.cluster, round + 1);
            self.doubts.add_new_pod(&self.victim.batch);
        }
        let open = PodConnection::open(&self.victim.web, &self.victim.db).expect_service("database", "target_port");
        self.attacker.act(
            &self.node,
            &self.cluster,
            &self.victim,
            &mut self.doubts,
            &mut self.random,
        );
        open.close();
        let victim = &self.victim;
        let by_service = PodConnection::open_service(&self.node, &victim.web, &victim.db);
        by_service.close();
        let connections = [
            open,
            by_service,
            PodConnection::make(&victim.cart, &victim.pay),
            PodConnection::make(&victim.batch, &victim.pay),
        ];
        for connection in &connections {
            self.tracers.check(connection, self.doubts.of(connection));
        }
    }

    /// Waits until no address is in doubt. Then checks that each record has its names, although the attacker's objects
    /// still exist.
    fn check_without_doubt(&self) {
        self.doubts.wait_until_over();
        let victim = &self.victim;
        for (client, server) in [
            (&victim.web, &victim.db),
            (&victim.cart, &victim.pay),
            (&victim.batch, &victim.pay),
        ] {
            self.tracers.check(&PodConnection::make(client, server), NO_DOUBT);
        }
        for netns in self.attacker.namespaces() {
            self.tracers.check_attacker(netns, victim);
        }
    }
}

pub fn random_rounds() {
    let rounds = env_number("KMESH_TRACE_TENANT_ROUNDS", DEFAULT_ROUNDS);
    let seed = env_number("KMESH_TRACE_TENANT_SEED", DEFAULT_SEED);
    let mut run = Run::new(seed);
    let started = Instant::now();
    for round in 0..rounds {
        let body = || {
            run.round(round);
            if (round + 1) % ROUNDS_BETWEEN_PAUSES == 0 || round + 1 == rounds {
                run.check_without_doubt();
            }
        };
        if let Some(error) = catch_failure(body) {
            let actions = run.attacker.last_actions(12);
            panic!("seed {seed}, round {round}, the last actions {actions:?}: {error}");
        }
    }
    println!("{rounds} rounds of seed {seed} in {:?}", started.elapsed());
    run.cluster.stop();
    for tracer in run.tracers.all() {
        tracer.stop();
    }
    // Some records must have waited for names, because a new source lists no pod yet. Otherwise, the limit of the wait
    // was not tested.
    let tracers = [&run.tracers.kubelet, &run.tracers.api_server];
    assert!(
        tracers.iter().any(|tracer| tracer.has_delayed_records()),
        "no record waited for a name"
    );
}
