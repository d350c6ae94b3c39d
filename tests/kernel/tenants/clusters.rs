//! Two clusters on one host, as kind, k3d and minikube create them: their nodes are containers, and their pods have the
//! same addresses.

use std::thread;

use nix::sched::{CloneFlags, unshare};

use super::cluster::Cluster;
use super::connection::{NO_DOUBT, PodConnection};
use super::fixture::{NameSource, start_tracer, wait_for_names, watch};
use super::node::{CgroupDriver, Node, Pod, VICTIM_NAMESPACE, new_ids};
use crate::support::actor::Actor;
use crate::support::net;

/// The number of connections in each cluster.
const CONNECTIONS: usize = 12;

/// The pods of one cluster: a client and a server.
struct Pods {
    web: Pod,
    db: Pod,
}

impl Pods {
    /// Starts pods of the kubelet with this root cgroup. Their addresses are the same in both clusters.
    fn start(node: &Node, kubelet: &str) -> Self {
        let pod = |name: &str, last: u32| {
            let ip = node.pod_ip(last);
            let actor = node.actor_with_address(&ip);
            let mut pod = node.describe_pod(actor, CgroupDriver::Cgroupfs, VICTIM_NAMESPACE, name, &ip);
            let container = CgroupDriver::Cgroupfs.container(&pod.uid, &pod.container_id);
            pod.cgroup = node.cgroups.join(kubelet).join(container);
            pod.start();
            pod
        };
        let pods = Self {
            web: pod("web", 10),
            db: pod("db", 11),
        };
        pods.db.listen();
        pods
    }
}

/// Runs `create` in a new network namespace, which exists as long as a process that `create` starts in it.
fn in_new_netns<T: Send>(create: impl FnOnce() -> T + Send) -> T {
    // The new thread shares this thread's table of descriptors, which has the actors' socket pairs.
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        create()
    };
    let created = thread::scope(|scope| scope.spawn(body).join());
    created.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Checks that a tracer names the pods of its source's cluster, and no pod of the other cluster. The arguments are the
/// root cgroups of the two clusters' kubelets.
fn only_the_sources_cluster_is_named(name: &str, source: NameSource, kubelet: &str, other_kubelet: &str) {
    let node = Node::new(name);
    let pods = Pods::start(&node, kubelet);
    // The other cluster's node is a network namespace, with other routes to the same addresses.
    let (other_pods, _router) = in_new_netns(|| {
        net::set_sysctl("net.ipv4.ip_forward", "1");
        (Pods::start(&node, other_kubelet), Actor::start())
    });
    let cluster = Cluster::with([pods.web.object(), pods.db.object()]);
    let tracer = start_tracer(&node, &cluster, source, &[]);
    watch(&tracer, &[&pods.web, &pods.db, &other_pods.web, &other_pods.db]);
    wait_for_names(&tracer, &pods.web, &pods.db);
    for _ in 0..CONNECTIONS {
        let connection = PodConnection::open(&pods.web, &pods.db);
        let other = PodConnection::make(&other_pods.web, &other_pods.db);
        connection.close();
        connection.check(&tracer, NO_DOUBT);
        for record in [other.outbound(&tracer), other.inbound(&tracer)] {
            for end in ["src", "dst"] {
                assert!(record[end]["pod"].is_null(), "{end} of the other cluster's {record}");
            }
        }
    }
    cluster.stop();
    tracer.stop();
}

/// Returns the root cgroup of a kubelet in a container.
fn nested_kubelet() -> String {
    format!("docker/{}/kubelet", new_ids().1)
}

pub fn two_clusters_with_the_same_addresses() {
    only_the_sources_cluster_is_named("cluster-f", NameSource::File, "", &nested_kubelet());
    only_the_sources_cluster_is_named("cluster-k", NameSource::Kubelet, "", &nested_kubelet());
}

pub fn cluster_in_a_container_beside_the_hosts_cluster() {
    only_the_sources_cluster_is_named("cluster-c", NameSource::ApiServer, &nested_kubelet(), "");
    only_the_sources_cluster_is_named("cluster-n", NameSource::ApiServer, &nested_kubelet(), &nested_kubelet());
}
