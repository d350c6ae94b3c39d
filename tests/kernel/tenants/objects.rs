//! A large or malformed object of one tenant does not affect the names of others.

use serde_json::json;

use super::cluster::NODE_NAME;
use super::fixture::{Fixture, NameSource, wait_for_names, watch};
use super::node::{ATTACKER_NAMESPACE, CgroupDriver, NodeTracer, VICTIM_NAMESPACE, new_ids};
use crate::support::memory_limit::MemoryLimit;
use crate::support::peak_memory_kib;
use crate::support::probe::MEMORY_CGROUP;

/// The memory limit of the manifests in `deploy/`.
const MEMORY_LIMIT: u64 = 256 << 20;

/// Returns a cgroup with the manifests' memory limit, if the system can create one.
pub fn memory_limit() -> Option<MemoryLimit> {
    MEMORY_CGROUP.is_ok().then(|| MemoryLimit::new(MEMORY_LIMIT))
}

/// Checks that the tracer runs, and has never used more memory than the limit.
pub fn check_memory(tracer: &NodeTracer) {
    let kib = peak_memory_kib(tracer.tool_pid());
    println!("{kib} KiB at most");
    assert!(kib < MEMORY_LIMIT >> 10, "{kib} KiB");
}

/// Returns a pending pod of 1.5 MB, which is about the maximum that an API server accepts.
pub fn large_pod(name: &str) -> String {
    let padding = "x".repeat(1_500_000);
    json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": ATTACKER_NAMESPACE, "uid": new_ids().0, "resourceVersion": "1"},
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main", "args": [padding]}]},
        "status": {"phase": "Pending"}})
    .to_string()
}

/// Returns a pod with this number of labels, which are as short as possible.
pub fn pod_with_labels(name: &str, count: usize) -> String {
    const PLACEHOLDER: &str = r#""labels":0"#;
    let labels: Vec<String> = (0..count).map(|number| format!(r#""{number:05x}":"""#)).collect();
    let mut pod = json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": ATTACKER_NAMESPACE, "uid": new_ids().0, "resourceVersion": "1",
            "labels": 0},
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": "10.255.0.1"}})
    .to_string();
    let at = pod.find(PLACEHOLDER).unwrap();
    let labels = format!(r#""labels":{{{}}}"#, labels.join(","));
    pod.replace_range(at..at + PLACEHOLDER.len(), &labels);
    pod
}

/// List items that are malformed in different ways.
pub const MALFORMED_ITEMS: [&str; 8] = [
    "{}",
    r#"{"metadata":null}"#,
    r#"{"metadata":7}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":["u"]}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u","labels":{"a":{"b":1}}}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u","annotations":"none"}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u"},"spec":{"hostNetwork":"yes","containers":{}}}"#,
    r#"{"metadata":{"name":"odd","namespace":"mall","uid":"u"},"spec":{},"status":{"podIPs":{"ip":"10.0.0.1"}}}"#,
];

impl Fixture {
    /// Adds an item to the attacker's pods.
    fn put_attacker_pod(&self, name: &str, item: String) {
        self.cluster
            .put_item("pods", &format!("{ATTACKER_NAMESPACE}/{name}"), item);
    }

    /// Adds large pods of the attacker.
    pub fn put_large_pods(&self, count: usize) {
        for number in 0..count {
            let name = format!("large-{number}");
            self.put_attacker_pod(&name, large_pod(&name));
        }
    }

    /// Adds pods of the attacker with about two million labels in total.
    pub fn put_pods_with_labels(&self) {
        for number in 0..15 {
            let name = format!("labels-{number}");
            self.put_attacker_pod(&name, pod_with_labels(&name, 130_000));
        }
    }

    /// Checks that a tracer with the memory limit gets the victim's names from the source of this flag.
    fn check_names_from(&self, flag: &str) {
        let limit = memory_limit();
        let tracer = self.node.trace_with_limit(limit.as_ref(), &[flag]);
        watch(&tracer, &[&self.web, &self.db]);
        wait_for_names(&tracer, &self.web, &self.db);
        check_memory(&tracer);
        tracer.stop();
    }

    fn check_names_from_kubelet(&self) {
        self.check_names_from(&format!("--kubelet={}", self.cluster.serve_kubelet()));
    }

    fn check_names_from_api_server(&self) {
        let kubeconfig = self.node.folder.join("kubeconfig");
        self.cluster.serve_api_server(&kubeconfig);
        self.check_names_from(&format!("--kubeconfig={}", kubeconfig.display()));
    }
}

pub fn large_pods_do_not_stop_names_from_the_api_server() {
    let fixture = Fixture::new("large-a");
    fixture.put_large_pods(25);
    fixture.check_names_from_api_server();
}

pub fn large_pods_do_not_stop_names_from_the_kubelet() {
    let fixture = Fixture::new("large-k");
    fixture.put_large_pods(46);
    fixture.check_names_from_kubelet();
}

pub fn memory_for_labels_from_the_api_server_is_limited() {
    let fixture = Fixture::new("labels-a");
    fixture.put_pods_with_labels();
    fixture.check_names_from_api_server();
}

pub fn memory_for_labels_from_the_kubelet_is_limited() {
    let fixture = Fixture::new("labels-k");
    fixture.put_pods_with_labels();
    fixture.check_names_from_kubelet();
}

/// One answer contains 16 MiB of empty items, after the victim's pods.
pub fn empty_items_are_not_stored() {
    let fixture = Fixture::new("empty-items");
    let items = vec!["{}"; (16 << 20) / 3].join(",");
    fixture.cluster.put_item("pods", "zzz/empty", items);
    fixture.check_names_from_kubelet();
}

/// The malformed items are in the list before and after the victim's pods.
pub fn malformed_item_does_not_affect_other_items() {
    let fixture = Fixture::new("malformed");
    for (number, item) in MALFORMED_ITEMS.iter().enumerate() {
        for namespace in ["aaa", "zzz"] {
            let key = format!("{namespace}/malformed-{number}");
            fixture.cluster.put_item("pods", &key, *item);
        }
    }
    fixture.check_names_from_kubelet();
    fixture.check_names_from_api_server();
    let file = fixture.node.folder.join("pods");
    fixture.cluster.save(&file);
    fixture.check_names_from(&format!("--pods-file={}", file.display()));
}

/// The malformed items are events of a watch stream.
pub fn malformed_event_does_not_affect_other_events() {
    let fixture = Fixture::new("malformed-event");
    let tracer = fixture.trace(NameSource::ApiServer, &[]);
    for (number, item) in MALFORMED_ITEMS.iter().enumerate() {
        let key = format!("aaa/malformed-{number}");
        fixture.cluster.put_item("pods", &key, *item);
    }
    // This pod's event comes after the malformed events.
    let pay = fixture.node.pod(CgroupDriver::Cgroupfs, VICTIM_NAMESPACE, "pay");
    pay.listen();
    watch(&tracer, &[&pay]);
    fixture.cluster.put(pay.object());
    wait_for_names(&tracer, &fixture.web, &pay);
    tracer.stop();
}
