//! A node with two pods of the victim, and tracers that get their names from a source.

use std::sync::Arc;

use serde_json::Value;

use super::cluster::Cluster;
use super::connection::{NO_DOUBT, PodConnection, check_names};
use super::node::{ATTACKER_NAMESPACE, CgroupDriver, Node, NodeTracer, Pod, VICTIM_NAMESPACE, retry_until};

/// The source of the tracer's names.
#[derive(Clone, Copy, Debug)]
pub enum NameSource {
    /// A file, with `--pods-file`.
    File,
    /// A kubelet, with `--kubelet`.
    Kubelet,
    /// An API server, with `--kubeconfig`.
    ApiServer,
}

/// The victim's pods, which the cluster lists.
pub struct Fixture {
    /// Connects to `db`, and listens on no port.
    pub web: Pod,
    /// Listens on the port [`PORT`](super::node::PORT).
    pub db: Pod,
    pub cluster: Arc<Cluster>,
    // The last field, because its drop removes the cgroups of the pods' processes.
    pub node: Node,
}

impl Fixture {
    pub fn new(name: &str) -> Self {
        let node = Node::new(name);
        let web = node.pod(CgroupDriver::Cgroupfs, VICTIM_NAMESPACE, "web");
        let db = node.pod(CgroupDriver::Systemd, VICTIM_NAMESPACE, "db");
        db.listen();
        let cluster = Cluster::with([web.object(), db.object()]);
        Self { web, db, cluster, node }
    }

    /// Adds the node and the victim's Service to the cluster, and redirects the Service to `db`.
    pub fn add_service(&self) {
        self.node.add_service_rules(&self.db);
        self.cluster.put(self.node.object());
        self.cluster.put(self.node.service());
    }

    /// Starts a pod of the attacker that the cluster lists.
    pub fn attacker_pod(&self, name: &str) -> Pod {
        let pod = self.unknown_pod(name);
        self.cluster.put(pod.object());
        pod
    }

    /// Starts a pod of the attacker that the cluster does not list.
    pub fn unknown_pod(&self, name: &str) -> Pod {
        self.node.pod(CgroupDriver::Cgroupfs, ATTACKER_NAMESPACE, name)
    }

    /// Starts a tracer, collects the records of the victim's pods and of these others, and waits until the victim's
    /// pods have their names.
    pub fn trace(&self, source: NameSource, others: &[&Pod]) -> NodeTracer {
        let tracer = start_tracer(&self.node, &self.cluster, source, &[]);
        watch(&tracer, &[&self.web, &self.db]);
        watch(&tracer, others);
        wait_for_names(&tracer, &self.web, &self.db);
        tracer
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.cluster.stop();
    }
}

/// Starts a tracer that gets the names of the cluster's pods from this source, and waits until the source has answered.
/// Before that, a filter by names selects no connection.
pub fn start_tracer(node: &Node, cluster: &Arc<Cluster>, source: NameSource, args: &[&str]) -> NodeTracer {
    let file = node.folder.join(format!("{source:?}"));
    let flag = match source {
        NameSource::File => {
            cluster.save(&file);
            format!("--pods-file={}", file.display())
        }
        NameSource::Kubelet => format!("--kubelet={}", cluster.serve_kubelet()),
        NameSource::ApiServer => {
            cluster.serve_api_server(&file);
            format!("--kubeconfig={}", file.display())
        }
    };
    let tracer = node.trace(&[&[&*flag], args].concat());
    tracer.wait_stderr("kmesh-trace: names come from");
    tracer
}

/// Starts to collect the records of these pods.
pub fn watch(tracer: &NodeTracer, pods: &[&Pod]) {
    pods.iter().for_each(|pod| tracer.output.watch(pod.netns));
}

/// Makes connections until their records name both pods, because the source has answered.
pub fn wait_for_names(tracer: &NodeTracer, client: &Pod, server: &Pod) {
    retry_until("the first names", || {
        let connection = PodConnection::make(client, server);
        let records = [connection.outbound(tracer), connection.inbound(tracer)];
        // A name may be absent until then, but it must never be another pod's.
        for record in &records {
            check_names(record, "src", client, true);
            check_names(record, "dst", server, true);
        }
        let is_named = |record: &Value| !record["src"]["pod"].is_null() && !record["dst"]["pod"].is_null();
        records.iter().all(is_named).then(|| connection.check(tracer, NO_DOUBT))
    });
}
