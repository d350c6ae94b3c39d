//! An object that is too large or odd costs only itself.

use std::sync::Arc;

use serde_json::json;

use super::cluster::{Cluster, NODE_NAME};
use super::identity::{keep, wait_for_names};
use super::node::{Driver, MALL, Node, NodeTracer, Pod, SHOP, new_ids};
use crate::support::memory_limit::MemoryLimit;
use crate::support::peak_memory_kib;
use crate::support::probe::MEMORY_CGROUP;

/// The memory limit of the manifests in `deploy/`.
pub const LIMIT: u64 = 256 << 20;

/// A cgroup with the manifests' limit, where one can be made.
pub fn limit() -> Option<MemoryLimit> {
    MEMORY_CGROUP.is_ok().then(|| MemoryLimit::new(LIMIT))
}

/// Checks that the tracer runs, and has never had more memory than the limit.
pub fn check_memory(tracer: &NodeTracer) {
    let kib = peak_memory_kib(tracer.tool());
    println!("{kib} KiB at most");
    assert!(kib < LIMIT >> 10, "{kib} KiB");
}

/// The text of a pending pod that is about as large as an API server takes: 1.5 MiB.
pub fn large_pod(name: &str) -> String {
    let padding = "x".repeat(1_500_000);
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": MALL, "uid": new_ids().0, "resourceVersion": "1"},
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main", "args": [padding]}]},
        "status": {"phase": "Pending"}})
    .to_string()
}

/// The text of a pod with this many labels, each as short as can be.
pub fn many_labels(name: &str, count: usize) -> String {
    let labels: Vec<String> = (0..count).map(|number| format!(r#""{number:05x}":"""#)).collect();
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": MALL, "uid": new_ids().0, "resourceVersion": "1", "labels": 0},
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": "10.255.0.1"}})
    .to_string();
    let at = pod.find(r#""labels":0"#).unwrap();
    pod.replace_range(
        at..at + r#""labels":0"#.len(),
        &format!(r#""labels":{{{}}}"#, labels.join(",")),
    );
    pod
}

/// Items of lists that make no sense, one way each.
pub const ODD: [&str; 8] = [
    "{}",
    r#"{"metadata":null}"#,
    r#"{"metadata":7}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":["u"]}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u","labels":{"a":{"b":1}}}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u","annotations":"none"}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u"},"spec":{"hostNetwork":"yes","containers":{}}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u"},"spec":{},"status":{"podIPs":{"ip":"10.0.0.1"}}}"#,
];

/// A node with the victim's pods, and the cluster that knows them.
struct Stage {
    web: Pod,
    db: Pod,
    cluster: Arc<Cluster>,
    // Last, since it removes the cgroups that the pods' processes are in.
    node: Node,
}

impl Stage {
    fn new(name: &str) -> Self {
        let node = Node::new(name);
        let web = node.pod(Driver::Cgroupfs, SHOP, "web");
        let db = node.pod(Driver::Systemd, SHOP, "db");
        db.listen();
        let cluster = Cluster::of([web.object(), db.object()]);
        Self { node, web, db, cluster }
    }

    /// The victim's names come from this source, within the limit.
    fn check(&self, flag: &str) {
        let limit = limit();
        let tracer = self.node.trace_within(limit.as_ref(), &[flag]);
        keep(&tracer, &[&self.web, &self.db]);
        wait_for_names(&tracer, &self.web, &self.db);
        check_memory(&tracer);
        tracer.stop();
    }

    fn check_kubelet(&self) {
        self.check(&format!("--kubelet={}", self.cluster.kubelet()));
    }

    fn check_api_server(&self) {
        let kubeconfig = self.node.folder.join("kubeconfig");
        self.cluster.api_server(&kubeconfig);
        self.check(&format!("--kubeconfig={}", kubeconfig.display()));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.cluster.end();
    }
}

fn large_pods(name: &str, count: usize) -> Stage {
    let stage = Stage::new(name);
    for number in 0..count {
        let name = format!("large-{number}");
        let key = format!("{MALL}/{name}");
        stage.cluster.put_item("pods", &key, large_pod(&name));
    }
    stage
}

pub fn large_pods_do_not_end_the_names_of_an_api_server() {
    large_pods("large-a", 25).check_api_server();
}

pub fn large_pods_do_not_end_the_names_of_a_kubelet() {
    large_pods("large-k", 46).check_kubelet();
}

fn labelled_pods(name: &str) -> Stage {
    let stage = Stage::new(name);
    for number in 0..15 {
        let name = format!("labels-{number}");
        let key = format!("{MALL}/{name}");
        stage.cluster.put_item("pods", &key, many_labels(&name, 130_000));
    }
    stage
}

pub fn labels_of_an_api_servers_pods_are_bounded() {
    labelled_pods("labels-a").check_api_server();
}

pub fn labels_of_a_kubelets_pods_are_bounded() {
    labelled_pods("labels-k").check_kubelet();
}

/// Sixteen MiB of items that are nothing, as one answer, behind the pods that there are.
pub fn items_that_are_nothing_are_not_stored() {
    let stage = Stage::new("nothing");
    let items = vec!["{}"; (16 << 20) / 3].join(",");
    stage.cluster.put_item("pods", "zzz/nothing", items);
    stage.check_kubelet();
}

/// Items of other types than they should have, before and behind the pods.
pub fn odd_item_costs_only_itself() {
    let stage = Stage::new("odd");
    for (number, item) in ODD.iter().enumerate() {
        for place in ["aaa", "zzz"] {
            stage.cluster.put_item("pods", &format!("{place}/odd-{number}"), *item);
        }
    }
    stage.check_kubelet();
    stage.check_api_server();
    let file = stage.node.folder.join("pods");
    stage.cluster.save(&file);
    stage.check(&format!("--pods-file={}", file.display()));
}

/// An event of a stream may be as odd as an item of a list.
pub fn odd_event_costs_only_itself() {
    let stage = Stage::new("odd-event");
    let kubeconfig = stage.node.folder.join("kubeconfig");
    stage.cluster.api_server(&kubeconfig);
    let tracer = stage.node.trace(&[&format!("--kubeconfig={}", kubeconfig.display())]);
    keep(&tracer, &[&stage.web, &stage.db]);
    wait_for_names(&tracer, &stage.web, &stage.db);
    for (number, item) in ODD.iter().enumerate() {
        stage.cluster.put_item("pods", &format!("aaa/odd-{number}"), *item);
    }
    // What comes behind them.
    let pay = stage.node.pod(Driver::Cgroupfs, SHOP, "pay");
    pay.listen();
    keep(&tracer, &[&pay]);
    stage.cluster.put(pay.object());
    wait_for_names(&tracer, &stage.web, &pay);
    tracer.stop();
}
