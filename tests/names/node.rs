//! A kubelet with static pods and without an API server.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kmesh_trace::names::update::{Owner, PodObject};

use crate::Row;
use crate::fixture::{self, KilledProcess, StoppedProcess, folder, kubelet, wait_until};
use crate::listener::{Objects, SourceListener, start_sources, try_start_sources};

/// The tests that need no kubelet.
pub const WITHOUT_KUBELET: &[Row] = &[("node::connection_refused_is_an_error", connection_refused_is_an_error)];

/// Do not change the kubelet.
pub const PARALLEL: &[Row] = &[
    (
        "node::kubelet_with_a_client_certificate",
        kubelet_with_a_client_certificate,
    ),
    ("node::read_only_port", read_only_port),
    ("node::container_runtime", container_runtime),
    ("node::log_folders_by_default", log_folders_by_default),
    ("node::pod_is_created_and_deleted", pod_is_created_and_deleted),
    (
        "node::self_signed_certificate_is_rejected",
        self_signed_certificate_is_rejected,
    ),
    (
        "node::self_signed_certificate_can_be_trusted",
        self_signed_certificate_can_be_trusted,
    ),
    (
        "node::missing_credentials_are_reported",
        missing_credentials_are_reported,
    ),
    ("node::http_to_https_port_is_reported", http_to_https_port_is_reported),
    ("node::other_responses_are_reported", other_responses_are_reported),
];

/// The tests that stop the kubelet, so they run one after another.
pub const SEQUENTIAL: &[Row] = &[("node::killed_kubelet_is_reported", killed_kubelet_is_reported)];

/// Returns the flags for the kubelet with the client certificate of the script.
pub fn kubelet_flags() -> String {
    let pki = kubelet().join("pki").display().to_string();
    format!("--kubelet --kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key --kubelet-insecure")
}

/// Returns the UID of the pod and the ID of each container that has a cgroup.
fn cgroups() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let names: Vec<_> = path
                .iter()
                .rev()
                .take(2)
                .map(|name| name.to_string_lossy().into_owned())
                .collect();
            if let [container, pod] = &names[..]
                && let Some(uid) = pod.strip_prefix("pod").filter(|_| container.len() == 64)
            {
                found.push((uid.to_owned(), container.clone()));
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(path);
            }
        }
    }
    found
}

/// Returns the address that the network plugin assigned to each pod.
pub fn addresses() -> BTreeMap<String, String> {
    let cgroups = cgroups();
    let assigned = fs::read_dir(kubelet().join("cni/ipam/kmesh")).unwrap().flatten();
    assigned
        .filter_map(|entry| {
            let sandbox = fs::read_to_string(entry.path()).ok()?;
            let sandbox = sandbox.lines().next()?.trim();
            let (uid, _) = cgroups.iter().find(|(_, container)| container == sandbox)?;
            Some((uid.clone(), entry.file_name().to_string_lossy().into_owned()))
        })
        .collect()
}

/// Whether the object describes the pod as it runs: it has the address that the network plugin assigned, if there is
/// one, and each container of the pod's cgroup except the sandbox. A new pod's object has neither at first.
pub fn is_current(pod: &PodObject) -> bool {
    let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
    let ids: Vec<_> = pod.containers.iter().filter_map(|container| container.id).collect();
    let uid = pod.static_uid.as_ref().unwrap_or(&pod.uid);
    let in_cgroup: BTreeSet<_> = cgroups()
        .into_iter()
        .filter(|(pod, _)| pod == uid)
        .map(|(_, id)| id)
        .collect();
    let described = in_cgroup
        .iter()
        .filter(|id| ids.iter().any(|one| one.as_str() == id.as_str()))
        .count();
    described > 0
        && in_cgroup.len() == described + 1
        && match pod.host_network {
            // A kubelet without an API server gives these pods no address.
            Some(true) => true,
            _ => addresses().get(uid).is_some_and(|ip| ips == [ip.as_str()]),
        }
}

/// Waits until the object of a pod describes it as it runs.
pub fn wait_running(sources: &SourceListener, name: &str) -> PodObject {
    sources.wait(name, |objects: &Objects| {
        sources.refresh();
        objects.pod(name).filter(|pod| is_current(pod)).cloned()
    })
}

/// Compares the pods with their manifests.
fn check_pods(sources: &SourceListener) {
    // The containers start one after the other.
    let web = sources.wait("web with both containers", |objects| {
        sources.refresh();
        let web = objects.pod("web").filter(|pod| is_current(pod))?;
        let ids = web.containers.iter().filter_map(|container| container.id);
        (ids.count() == 2).then(|| web.clone())
    });
    assert_eq!((&*web.namespace, web.host_network), ("shop", Some(false)));
    let labels = web.labels.clone().unwrap();
    for label in [("app", "web"), ("tier", "front")] {
        assert!(labels.contains(&(label.0.to_owned(), label.1.to_owned())), "{labels:?}");
    }
    let mut containers: Vec<_> = web.containers.iter().map(|container| container.name.as_str()).collect();
    containers.sort_unstable();
    assert_eq!(containers, ["httpd", "sidecar"]);
    assert_eq!(web.static_uid.as_ref(), Some(&web.uid));
    let client = wait_running(sources, "client");
    assert!(
        client.containers.iter().any(|container| container.name == "init"),
        "{client:?}"
    );
    let hostnet = wait_running(sources, "hostnet");
    assert_eq!((&*hostnet.namespace, hostnet.host_network), ("kube-system", Some(true)));
    assert!(web.started < Some(kmesh_trace::record::WallTime(i64::MAX)) && web.started.is_some());
}

fn check_kubelet(sources: &SourceListener) {
    check_pods(sources);
    let web = wait_running(sources, "web");
    let httpd = web
        .containers
        .iter()
        .find(|container| container.name == "httpd")
        .unwrap();
    assert_eq!(httpd.ports, [("http".to_owned(), 8080)]);
    assert_eq!((web.owner, web.terminal), (Owner::Nobody, false));
    let job = sources.wait("the end of the pod job", |objects| {
        sources.refresh();
        objects.pod("job").filter(|pod| pod.terminal).cloned()
    });
    assert_eq!(job.namespace, "default");
    let noimage = sources.wait("noimage", |objects| objects.pod("noimage").cloned());
    assert_eq!(
        noimage.containers.iter().filter_map(|container| container.id).count(),
        0
    );
}

fn kubelet_with_a_client_certificate() {
    fixture::start_node();
    let sources = start_sources(&kubelet_flags());
    check_kubelet(&sources);
    sources.wait_line("names come from");
    assert_eq!(
        sources.lines_without_delays(),
        ["names come from the kubelet at https://127.0.0.1:10250/pods"]
    );
    assert!(!sources.has_failed());
}

fn read_only_port() {
    fixture::start_node();
    check_kubelet(&start_sources("--kubelet=http://127.0.0.1:10255"));
}

fn container_runtime() {
    fixture::start_node();
    let socket = kubelet().join("containerd.sock");
    let sources = start_sources(&format!("--cri={}", socket.display()));
    check_pods(&sources);
    assert_eq!(wait_running(&sources, "web").owner, Owner::Unknown);
    sources.wait_line("names come from");
    assert_eq!(
        sources.lines_without_delays(),
        [format!("names come from the container runtime at {}", socket.display())]
    );
}

fn log_folders_by_default() {
    fixture::start_node();
    let sources = start_sources("");
    // Folders of deleted pods, also of earlier runs, may still exist.
    let web = sources.wait("web", |objects| {
        sources.refresh();
        let cgroups = cgroups();
        let runs = |pod: &&PodObject| cgroups.iter().any(|(uid, _)| *uid == pod.uid);
        objects
            .pods()
            .filter(|pod| pod.name.starts_with("web"))
            .find(runs)
            .cloned()
    });
    assert_eq!((&*web.namespace, web.host_network), ("shop", None));
    // The kubelet has a self-signed certificate, so the tool sends it no credentials and uses no response.
    let line = sources.wait_line("names come from");
    assert!(
        line.contains("the log folders in /var/log/pods") && line.contains("not from"),
        "{line}"
    );
    assert!(!sources.has_failed(), "no source was requested");
}

fn pod_is_created_and_deleted() {
    fixture::start_node();
    let manifest = kubelet().join("manifests/late.yaml");
    let by_runtime = start_sources(&format!("--cri={}", kubelet().join("containerd.sock").display()));
    let by_kubelet = start_sources(&kubelet_flags());
    wait_running(&by_runtime, "web");
    wait_running(&by_kubelet, "web");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\nspec:\n  \
               terminationGracePeriodSeconds: 1\n  containers:\n  \
               - {name: main, image: \"kmesh.local/busybox:1\", imagePullPolicy: Never, command: [/bin/sh, -c, \"sleep 3600\"]}\n";
    fs::write(&manifest, pod).unwrap();
    let late = wait_running(&by_runtime, "late");
    assert_eq!(wait_running(&by_kubelet, "late").ips, late.ips);
    fs::remove_file(&manifest).unwrap();
    for sources in [&by_runtime, &by_kubelet] {
        sources.wait("the end of the late pod", |objects| {
            sources.refresh();
            objects
                .pod("late")
                .is_none_or(|pod| pod.ips.is_empty() || pod.terminal)
                .then_some(())
        });
    }
}

/// Checks that a source fails with these texts.
fn check_fails(arguments: &str, parts: &[&str]) {
    let sources = start_sources(arguments);
    let line = sources.wait_line("warning: no names yet from");
    assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    assert!(sources.has_failed(), "the exit status would be 1");
}

fn self_signed_certificate_is_rejected() {
    fixture::start_node();
    let pki = kubelet().join("pki").display().to_string();
    check_fails(
        &format!("--kubelet --kubelet-ca {pki}/ca.crt --kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key"),
        &["the server's certificate", "--kubelet-insecure"],
    );
}

fn self_signed_certificate_can_be_trusted() {
    fixture::start_node();
    let pki = kubelet().join("pki").display().to_string();
    // The certificate has the node's name, and the URL has 127.0.0.1.
    let arguments = format!(
        "--kubelet --kubelet-ca {pki}/kubelet/kubelet.crt --kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key"
    );
    wait_running(&start_sources(&arguments), "web");
}

fn missing_credentials_are_reported() {
    fixture::start_node();
    check_fails("--kubelet --kubelet-insecure", &["401", "--kubelet-token"]);
}

fn http_to_https_port_is_reported() {
    fixture::start_node();
    check_fails("--kubelet=http://127.0.0.1:10250", &["https"]);
}

fn other_responses_are_reported() {
    const STATISTICS: &str = "http://127.0.0.1:10255/stats/summary";
    fixture::start_node();
    // A new kubelet has none and answers 500.
    wait_until("the kubelet has statistics", || {
        let response = Command::new("curl").args(["-sf", STATISTICS]).output();
        response.unwrap().status.success()
    });
    check_fails(&format!("--kubelet={STATISTICS}"), &["no PodList"]);
    check_fails("--kubelet=http://127.0.0.1:10255/nothing", &["404"]);
}

fn connection_refused_is_an_error() {
    let sources = start_sources("--kubelet=https://127.0.0.1:1");
    let line = sources.wait_line("warning: no names yet from");
    assert!(line.contains("Connection refused"), "{line}");
    let line = sources.wait_line("error: no names from");
    assert!(
        line.contains("in the first 10 s") && line.contains("Connection refused"),
        "{line}"
    );
    let sources = start_sources("--cri=/nonexistent.sock");
    let line = sources.wait_line("warning: no names yet from");
    assert!(
        line.contains("/nonexistent.sock") && line.contains("No such file"),
        "{line}"
    );
    let missing = try_start_sources("--kubelet --kubelet-token /nonexistent --kubelet-insecure");
    assert!(missing.is_err_and(|error| error.contains("--kubelet-token")));
}

/// Runs in the cluster, in parallel with the hanging API server: each takes ten seconds.
pub fn hanging_kubelet_is_an_error() {
    fixture::start_cluster();
    let stopped = StoppedProcess::new(&kubelet(), "kubelet");
    let sources = start_sources(&kubelet_flags());
    let line = sources.wait_line("error: no names from");
    assert!(line.contains("in the first 10 s"), "{line}");
    assert!(sources.has_failed());
    drop(stopped);
    sources.wait("web", |objects| objects.pod("web").map(drop));
    assert!(sources.has_failed(), "the kubelet answered too late");
}

fn killed_kubelet_is_reported() {
    fixture::start_node();
    let sources = start_sources(&kubelet_flags());
    wait_running(&sources, "web");
    let killed = KilledProcess::new(&kubelet(), "kubelet");
    wait_until("the failed requests are reported", || {
        sources.refresh();
        sources
            .lines()
            .iter()
            .any(|line| line.contains("no updates from") && line.contains("Connection refused"))
    });
    assert!(
        sources.wait("the pods", |objects| Some(objects.pod("web").is_some())),
        "the pods are still known"
    );
    killed.restart();
    sources.wait_line("names come again from");
    wait_running(&sources, "web");
    assert!(!sources.has_failed(), "the kubelet had answered in time");
}

/// Writes a new file whose name ends with `name`, and returns its path.
pub fn write_file(name: &str, text: &str) -> String {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = folder(&format!("{number}-{name}"));
    fs::create_dir_all(folder("")).unwrap();
    fs::write(&path, text).unwrap();
    Path::to_str(&path).unwrap().to_owned()
}
