//! A kubelet by itself, with static pods alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kmesh_trace::names::update::{Owner, PodObject};

use crate::Row;
use crate::listener::{Known, Listener, listen, try_listen};
use crate::stage::{self, Stopped, folder, kubelet, wait_until};

/// Want nothing that is started for them.
pub const ALONE: &[Row] = &[("node::nobody_listens", nobody_listens)];

/// Leave the kubelet as it is.
pub const BESIDE_OTHERS: &[Row] = &[
    (
        "node::kubelet_with_a_client_certificate",
        kubelet_with_a_client_certificate,
    ),
    ("node::read_only_port", read_only_port),
    ("node::container_runtime", container_runtime),
    ("node::log_folders", log_folders),
    ("node::a_pod_that_comes_and_goes", a_pod_that_comes_and_goes),
    ("node::self_made_certificate", self_made_certificate),
    (
        "node::self_made_certificate_that_is_trusted",
        self_made_certificate_that_is_trusted,
    ),
    ("node::no_credentials", no_credentials),
    (
        "node::plain_http_where_https_is_spoken",
        plain_http_where_https_is_spoken,
    ),
    ("node::no_pod_list", no_pod_list),
];

/// Stop the kubelet.
pub const BY_ITSELF: &[Row] = &[("node::a_kubelet_that_goes_away", a_kubelet_that_goes_away)];

/// With the certificate that the script has made.
pub fn by_certificate() -> String {
    let pki = kubelet().join("pki").display().to_string();
    format!("--kubelet --kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key --kubelet-insecure")
}

/// The cgroups of pods: the container's directory, below the pod's.
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

/// By pod, the address that the network plugin gave its sandbox.
pub fn addresses() -> BTreeMap<String, String> {
    let cgroups = cgroups();
    let given = fs::read_dir(kubelet().join("cni/ipam/kmesh")).unwrap().flatten();
    given
        .filter_map(|entry| {
            let sandbox = fs::read_to_string(entry.path()).ok()?;
            let sandbox = sandbox.lines().next()?.trim();
            let (uid, _) = cgroups.iter().find(|(_, container)| container == sandbox)?;
            Some((uid.clone(), entry.file_name().to_string_lossy().into_owned()))
        })
        .collect()
}

/// Returns whether the object shows the pod as it runs: its address (the one that the network plugin gave it, or the
/// node's), and each container in its cgroup, where the sandbox is one more. A new pod's object has neither at first.
pub fn is_as_it_runs(pod: &PodObject) -> bool {
    let ips: Vec<_> = pod.ips.iter().map(ToString::to_string).collect();
    let ids: Vec<_> = pod.containers.iter().filter_map(|container| container.id).collect();
    let uid = pod.static_uid.as_ref().unwrap_or(&pod.uid);
    let in_its_cgroup: BTreeSet<_> = cgroups()
        .into_iter()
        .filter(|(pod, _)| pod == uid)
        .map(|(_, id)| id)
        .collect();
    let known = in_its_cgroup
        .iter()
        .filter(|id| ids.iter().any(|one| one.as_str() == id.as_str()))
        .count();
    known > 0
        && in_its_cgroup.len() == known + 1
        && match pod.host_network {
            Some(true) => !ips.is_empty(),
            _ => addresses().get(uid).is_some_and(|ip| ips == [ip.as_str()]),
        }
}

/// Waits for the pod, as it runs.
pub fn running(listener: &Listener, name: &str) -> PodObject {
    listener.wait(name, |known: &Known| {
        listener.refresh();
        known.pod(name).filter(|pod| is_as_it_runs(pod)).cloned()
    })
}

/// What the manifests say, whoever tells it.
fn check_pods(listener: &Listener) {
    // Its containers start one after the other.
    let web = listener.wait("web with both containers", |known| {
        listener.refresh();
        let web = known.pod("web").filter(|pod| is_as_it_runs(pod))?;
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
    let client = running(listener, "client");
    assert!(
        client.containers.iter().any(|container| container.name == "init"),
        "{client:?}"
    );
    let hostnet = running(listener, "hostnet");
    assert_eq!((&*hostnet.namespace, hostnet.host_network), ("kube-system", Some(true)));
    assert!(web.started < Some(kmesh_trace::record::WallTime(i64::MAX)) && web.started.is_some());
}

fn check_kubelet(listener: &Listener) {
    check_pods(listener);
    let web = running(listener, "web");
    let httpd = web
        .containers
        .iter()
        .find(|container| container.name == "httpd")
        .unwrap();
    assert_eq!(httpd.ports, [("http".to_owned(), 8080)]);
    assert_eq!((web.owner, web.terminal), (Owner::Nobody, false));
    let job = listener.wait("the end of the pod job", |known| {
        listener.refresh();
        known.pod("job").filter(|pod| pod.terminal).cloned()
    });
    assert_eq!(job.namespace, "default");
    let noimage = listener.wait("noimage", |known| known.pod("noimage").cloned());
    assert_eq!(
        noimage.containers.iter().filter_map(|container| container.id).count(),
        0
    );
}

fn kubelet_with_a_client_certificate() {
    stage::node();
    let listener = listen(&by_certificate());
    check_kubelet(&listener);
    listener.line("names come from");
    assert_eq!(
        listener.lines_without_delays(),
        ["names come from the kubelet at https://127.0.0.1:10250/pods"]
    );
    assert!(!listener.has_failed());
}

fn read_only_port() {
    stage::node();
    check_kubelet(&listen("--kubelet=http://127.0.0.1:10255"));
}

fn container_runtime() {
    stage::node();
    let socket = kubelet().join("containerd.sock");
    let listener = listen(&format!("--cri={}", socket.display()));
    check_pods(&listener);
    assert_eq!(running(&listener, "web").owner, Owner::Unknown);
    listener.line("names come from");
    assert_eq!(
        listener.lines_without_delays(),
        [format!("names come from the container runtime at {}", socket.display())]
    );
}

fn log_folders() {
    stage::node();
    let listener = listen("");
    // Folders of pods that have gone may be there as well, of earlier runs too.
    let web = listener.wait("web", |known| {
        listener.refresh();
        let cgroups = cgroups();
        let runs = |pod: &&PodObject| cgroups.iter().any(|(uid, _)| *uid == pod.uid);
        known
            .pods()
            .filter(|pod| pod.name.starts_with("web"))
            .find(runs)
            .cloned()
    });
    assert_eq!((&*web.namespace, web.host_network), ("shop", None));
    // Of the kubelet, which has a certificate of its own making, nothing is taken, and nothing is given to it.
    let line = listener.line("names come from");
    assert!(
        line.contains("the log folders in /var/log/pods") && line.contains("not from"),
        "{line}"
    );
    assert!(!listener.has_failed(), "none was named");
}

fn a_pod_that_comes_and_goes() {
    stage::node();
    let manifest = kubelet().join("manifests/late.yaml");
    let by_runtime = listen(&format!("--cri={}", kubelet().join("containerd.sock").display()));
    let by_kubelet = listen(&by_certificate());
    running(&by_runtime, "web");
    running(&by_kubelet, "web");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop}\nspec:\n  \
               terminationGracePeriodSeconds: 1\n  containers:\n  \
               - {name: main, image: \"kmesh.local/busybox:1\", imagePullPolicy: Never, command: [/bin/sh, -c, \"sleep 3600\"]}\n";
    fs::write(&manifest, pod).unwrap();
    let late = running(&by_runtime, "late");
    assert_eq!(running(&by_kubelet, "late").ips, late.ips);
    fs::remove_file(&manifest).unwrap();
    for listener in [&by_runtime, &by_kubelet] {
        listener.wait("the late pod to have gone", |known| {
            listener.refresh();
            known
                .pod("late")
                .is_none_or(|pod| pod.ips.is_empty() || pod.terminal)
                .then_some(())
        });
    }
}

/// A named source that is refused: why, at once; and that it is an error after ten seconds.
fn refused(arguments: &str, parts: &[&str]) {
    let listener = listen(arguments);
    let line = listener.line("warning: no names yet from");
    assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    assert!(listener.has_failed(), "a run that ended now");
}

fn self_made_certificate() {
    stage::node();
    let pki = kubelet().join("pki").display().to_string();
    refused(
        &format!("--kubelet --kubelet-ca {pki}/ca.crt --kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key"),
        &["the server's certificate", "--kubelet-insecure"],
    );
}

fn self_made_certificate_that_is_trusted() {
    stage::node();
    let pki = kubelet().join("pki").display().to_string();
    // It is for the node's name, and is asked for at 127.0.0.1.
    let arguments = format!(
        "--kubelet --kubelet-ca {pki}/kubelet/kubelet.crt --kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key"
    );
    running(&listen(&arguments), "web");
}

fn no_credentials() {
    stage::node();
    refused("--kubelet --kubelet-insecure", &["401", "--kubelet-token"]);
}

fn plain_http_where_https_is_spoken() {
    stage::node();
    refused("--kubelet=http://127.0.0.1:10250", &["https"]);
}

fn no_pod_list() {
    const STATISTICS: &str = "http://127.0.0.1:10255/stats/summary";
    stage::node();
    // A kubelet that has just started has none, and answers 500.
    wait_until("the kubelet has statistics", || {
        let asked = Command::new("curl").args(["-sf", STATISTICS]).output();
        asked.unwrap().status.success()
    });
    refused(&format!("--kubelet={STATISTICS}"), &["no PodList"]);
    refused("--kubelet=http://127.0.0.1:10255/nothing", &["404"]);
}

fn nobody_listens() {
    let listener = listen("--kubelet=https://127.0.0.1:1");
    let line = listener.line("warning: no names yet from");
    assert!(line.contains("Connection refused"), "{line}");
    let line = listener.line("error: no names from");
    assert!(
        line.contains("in the first 10 s") && line.contains("Connection refused"),
        "{line}"
    );
    let listener = listen("--cri=/nonexistent.sock");
    let line = listener.line("warning: no names yet from");
    assert!(
        line.contains("/nonexistent.sock") && line.contains("No such file"),
        "{line}"
    );
    let missing = try_listen("--kubelet --kubelet-token /nonexistent --kubelet-insecure");
    assert!(missing.is_err_and(|error| error.contains("--kubelet-token")));
}

/// In a cluster, where the API server hangs at the same time: each costs ten seconds.
pub fn a_kubelet_that_hangs() {
    stage::cluster();
    let stopped = Stopped::process(&kubelet(), "kubelet");
    let listener = listen(&by_certificate());
    let line = listener.line("error: no names from");
    assert!(line.contains("in the first 10 s"), "{line}");
    assert!(listener.has_failed());
    drop(stopped);
    listener.wait("web", |known| known.pod("web").map(drop));
    assert!(listener.has_failed(), "it was late all the same");
}

fn a_kubelet_that_goes_away() {
    stage::node();
    let listener = listen(&by_certificate());
    running(&listener, "web");
    let killed = stage::Killed::process(&kubelet(), "kubelet");
    wait_until("the kubelet to be missed", || {
        listener.refresh();
        listener
            .lines()
            .iter()
            .any(|line| line.contains("no updates from") && line.contains("Connection refused"))
    });
    assert!(
        listener.wait("what was known", |known| Some(known.pod("web").is_some())),
        "it is still true"
    );
    killed.revive();
    listener.line("names come again from");
    running(&listener, "web");
    assert!(!listener.has_failed(), "it had answered in time");
}

/// Makes a new file of this run, whose name ends so.
pub fn write(name: &str, text: &str) -> String {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = folder(&format!("{number}-{name}"));
    fs::create_dir_all(folder("")).unwrap();
    fs::write(&path, text).unwrap();
    Path::to_str(&path).unwrap().to_owned()
}
