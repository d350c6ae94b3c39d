//! Two clusters on one machine, as kind, k3d and minikube make them: several nodes as containers, with the same addresses.

use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::cluster::Cluster;
use super::identity::{Source, keep, traced, wait_for_names};
use super::node::{Driver, Node, Pod, SHOP, new_ids};
use super::traffic::{CERTAIN, Call};
use crate::support::actor::Actor;
use crate::support::net;

/// Connections in each of the clusters.
const CALLS: usize = 12;

/// The pods of one cluster: a client and a server.
struct Pods {
    web: Pod,
    db: Pod,
}

impl Pods {
    /// Pods with addresses that the other cluster has, too, below this directory of cgroups.
    fn new(node: &Node, kubelet: &str) -> Self {
        let pod = |name: &str, last: u32| {
            let ip = node.pod_ip(last);
            let actor = node.wired_actor(&ip);
            let mut pod = node.unplaced_pod(actor, Driver::Cgroupfs, SHOP, name, &ip);
            pod.cgroup = node
                .cgroups
                .join(kubelet)
                .join(Driver::Cgroupfs.container(&pod.uid, &pod.id));
            pod.start();
            pod
        };
        Self {
            web: pod("web", 10),
            db: pod("db", 11),
        }
    }
}

/// Runs `make` in a new network namespace, which lasts as long as a process that `make` starts in it.
fn in_another_namespace<T: Send>(make: impl FnOnce() -> T + Send) -> T {
    // The thread shares this thread's table of descriptors: an actor's socket pair is in it.
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        make()
    };
    let made = thread::scope(|scope| scope.spawn(body).join());
    made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The source knows the pods of one kubelet of the machine.
fn only_the_sources_cluster_is_named(name: &str, source: Source, of_source: &str, of_other: &str) {
    let node = Node::new(name);
    let ours = Pods::new(&node, of_source);
    // The other node is a network namespace of its own, with its own routes to the same addresses.
    let (others, _router) = in_another_namespace(|| {
        net::set_sysctl("net.ipv4.ip_forward", "1");
        (Pods::new(&node, of_other), Actor::start())
    });
    ours.db.listen();
    others.db.listen();
    let cluster = Cluster::of([ours.web.object(), ours.db.object()]);
    let tracer = traced(&node, &cluster, source, &[]);
    keep(&tracer, &[&ours.web, &ours.db, &others.web, &others.db]);
    wait_for_names(&tracer, &ours.web, &ours.db);
    for _ in 0..CALLS {
        let of_ours = Call::open(&ours.web, &ours.db);
        let of_others = Call::open(&others.web, &others.db);
        of_others.close();
        of_ours.close();
        of_ours.check(&tracer.tracer, CERTAIN);
        for record in [of_others.outbound(&tracer.tracer), of_others.inbound(&tracer.tracer)] {
            for end in ["src", "dst"] {
                assert!(record[end]["pod"].is_null(), "{end} of the other cluster's {record}");
            }
        }
    }
    cluster.end();
    tracer.stop();
}

/// Where the other cluster is below another root: a node that is a container.
fn nested() -> String {
    format!("docker/{}/kubelet", new_ids().1)
}

pub fn two_clusters_with_the_same_addresses() {
    only_the_sources_cluster_is_named("cluster-f", Source::File, "", &nested());
    only_the_sources_cluster_is_named("cluster-k", Source::Kubelet, "", &nested());
}

pub fn cluster_in_a_container_beside_the_machines_own() {
    only_the_sources_cluster_is_named("cluster-c", Source::ApiServer, &nested(), "");
    only_the_sources_cluster_is_named("cluster-n", Source::ApiServer, &nested(), &nested());
}
