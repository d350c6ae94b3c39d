//! An API server with a registered kubelet.

use std::collections::BTreeSet;
use std::net::IpAddr;

use kmesh_trace::names::update::{ControllerRef, Owner, TargetPort};

use crate::Row;
use crate::credentials::token;
use crate::fixture::{self, KilledProcess, StoppedProcess, api_server, kubectl, kubelet, value};
use crate::listener::{SourceListener, start_sources};
use crate::node::{hanging_kubelet_is_an_error, is_current, write_file};

/// Do not change the API server or the kubelet.
pub const PARALLEL: &[Row] = &[
    ("cluster::pods_and_owners", pods_and_owners),
    ("cluster::services_and_endpoints", services_and_endpoints),
    ("cluster::nodes", nodes),
    ("cluster::pods_file_printed_by_kubectl", pods_file_printed_by_kubectl),
    ("cluster::changes_are_watched", changes_are_watched),
];

/// Each stops another server.
pub const HANGING_SERVERS: &[Row] = &[
    (
        "cluster::hanging_api_server_is_an_error",
        hanging_api_server_is_an_error,
    ),
    ("node::hanging_kubelet_is_an_error", hanging_kubelet_is_an_error),
];

/// Restart the API server.
pub const SEQUENTIAL: &[Row] = &[
    (
        "cluster::restarted_api_server_is_listed_again",
        restarted_api_server_is_listed_again,
    ),
    (
        "cluster::kubelet_without_its_api_server",
        kubelet_without_its_api_server,
    ),
];

/// Starts an API server source with the administrator's kubeconfig.
fn start_as_admin() -> SourceListener {
    fixture::start_cluster();
    start_sources(&format!("--kubeconfig={}", api_server().join("kubeconfig").display()))
}

fn kind_and_name(owner: &ControllerRef) -> (&str, &str) {
    (&owner.kind, &owner.name)
}

fn pods_and_owners() {
    let sources = start_as_admin();
    let running = |pod: &str| sources.wait(pod, |objects| objects.pod(pod).filter(|pod| is_current(pod)).cloned());
    let owner = |pod: &str| {
        let found = running(pod);
        let Owner::By(owner) = found.owner else {
            panic!("{pod} should have an owner, not {:?}", found.owner)
        };
        owner
    };
    let replica_set = owner("web-9");
    assert_eq!(replica_set.kind, "ReplicaSet");
    let deployment = sources.wait("the ReplicaSet", |objects| {
        objects.controller(&replica_set.uid)?.owner.clone()
    });
    assert_eq!(kind_and_name(&deployment), ("Deployment", "web"));
    assert_eq!(
        deployment.uid,
        value(&["-n", "shop", "deployment/web"], "{.metadata.uid}")
    );
    assert_eq!(kind_and_name(&owner("db-0")), ("StatefulSet", "db"));
    assert_eq!(kind_and_name(&owner("agent-")), ("DaemonSet", "agent"));
    let once = sources.wait("the Job's pod", |objects| {
        objects.pod("once-").filter(|pod| pod.terminal).cloned()
    });
    assert!(
        matches!(&once.owner, Owner::By(owner) if kind_and_name(owner) == ("Job", "once")),
        "{once:?}"
    );
    let bare = running("bare");
    assert_eq!(
        (bare.owner.clone(), bare.service_account.as_deref()),
        (Owner::Nobody, Some("default"))
    );
    // The mirror of a static pod has its own UID. Its hash annotation is the UID in the cgroup's name.
    let on_host = |pod: &str| {
        sources.wait(pod, |objects| {
            let found = objects.pod(pod).filter(|pod| is_current(pod))?;
            (!found.ips.is_empty()).then(|| found.clone())
        })
    };
    let hostnet = on_host("hostnet-");
    assert_ne!(hostnet.static_uid.as_ref(), Some(&hostnet.uid));
    assert_eq!(
        (hostnet.owner.clone(), hostnet.host_network),
        (Owner::Nobody, Some(true))
    );
    let agent = on_host("agent-");
    assert_eq!(
        (agent.host_network, agent.ips == hostnet.ips),
        (Some(true), true),
        "both have the node's address"
    );
}

fn services_and_endpoints() {
    let sources = start_as_admin();
    let service = |name: &str| sources.wait(name, |objects| objects.service(name).cloned());
    let web = service("web");
    assert_eq!(
        web.cluster_ips,
        [value(&["-n", "shop", "svc/web"], "{.spec.clusterIP}")
            .parse::<IpAddr>()
            .unwrap()]
    );
    assert_eq!(web.selector, [("app".to_owned(), "web".to_owned())]);
    assert_eq!(
        (web.ports[0].port, &web.ports[0].target),
        (80, &TargetPort::Name("http".to_owned()))
    );
    let headless = service("web-headless");
    assert!(headless.headless && headless.cluster_ips.is_empty());
    let node_port = service("web-nodeport");
    let port = value(&["-n", "shop", "svc/web-nodeport"], "{.spec.ports[0].nodePort}");
    assert_eq!(node_port.ports[0].node_port.map(|port| port.to_string()), Some(port));
    // The API server may have EndpointSlices or only Endpoints.
    let pods: Vec<_> = value(&["-n", "shop", "pod", "-l", "app=web"], "{.items[*].status.podIP}")
        .split(' ')
        .map(|ip| format!("{ip}:8080"))
        .collect();
    for service in ["web", "web-headless", "web-nodeport"] {
        sources.wait(service, |objects| {
            let addresses = objects
                .endpoints(service)?
                .addresses
                .iter()
                .map(|address| address.to_string());
            let addresses: BTreeSet<_> = addresses.collect();
            // The static pod `web` may have the same label.
            pods.iter().all(|pod| addresses.contains(pod)).then_some(())
        });
    }
    assert!(
        sources.lines().iter().all(|line| !line.contains("warning")),
        "{:?}",
        sources.lines()
    );
}

fn nodes() {
    let sources = start_as_admin();
    let ip = value(
        &["nodes"],
        "{.items[0].status.addresses[?(@.type=='InternalIP')].address}",
    );
    sources.wait("the node", |objects| {
        let nodes = objects.nodes();
        (nodes.len() == 1 && nodes[0].ips == [ip.parse::<IpAddr>().ok()?]).then_some(())
    });
}

fn pods_file_printed_by_kubectl() {
    fixture::start_cluster();
    for format in ["json", "yaml"] {
        let printed = kubectl(&[
            "get",
            "-A",
            "-o",
            format,
            "pods,services,endpoints,replicasets,deployments,nodes",
        ]);
        let sources = start_sources(&format!(
            "--pods-file {}",
            write_file(&format!("saved.{format}"), &printed)
        ));
        let web = sources.wait("web", |objects| objects.pod("web-9").cloned());
        assert!(is_current(&web), "{web:?}");
        sources.wait("the other kinds", |objects| {
            let Owner::By(replica_set) = &web.owner else {
                panic!("{web:?}")
            };
            objects.controller(&replica_set.uid)?.owner.as_ref()?;
            objects.service("web").and(objects.endpoints("web").map(drop))
        });
    }
}

const LATE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop, labels: {a: \"1\"}}\nspec:\n  \
                    terminationGracePeriodSeconds: 1\n  containers:\n  \
                    - {name: main, image: \"kmesh.local/busybox:1\", imagePullPolicy: Never, command: [/bin/sh, -c, \"sleep 3600\"]}\n";

fn changes_are_watched() {
    let sources = start_as_admin();
    sources.wait("all pods", |objects| objects.pod("db-0").map(drop));
    kubectl(&["apply", "-f", &write_file("late.yaml", LATE)]);
    sources.wait("a new pod", |objects| {
        objects.pod("late").filter(|pod| is_current(pod)).map(drop)
    });
    kubectl(&["-n", "shop", "label", "--overwrite", "pod", "late", "a=2"]);
    sources.wait("a new label", |objects| {
        let labels = objects.pod("late")?.labels.clone()?;
        labels.contains(&("a".to_owned(), "2".to_owned())).then_some(())
    });
    kubectl(&["-n", "shop", "delete", "pod", "late"]);
    sources.wait("the deletion", |objects| objects.pod("late").is_none().then_some(()));
}

fn hanging_api_server_is_an_error() {
    fixture::start_cluster();
    let stopped = StoppedProcess::new(&api_server(), "kube-apiserver");
    let sources = start_sources(&format!("--kubeconfig={}", api_server().join("kubeconfig").display()));
    assert!(sources.wait_line("error: no names from").contains("in the first 10 s"));
    assert!(sources.has_failed());
    drop(stopped);
    sources.wait("db-0", |objects| objects.pod("db-0").map(drop));
}

/// Writes a pod that no scheduler assigns to a node, so that its deletion needs no kubelet.
fn unscheduled_pod(name: &str) -> String {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main", "image": "kmesh.local/busybox:1"}]},
    });
    write_file("unscheduled.json", &pod.to_string())
}

/// The tool lists again when the API server restarts: its resource version is too old for the new one.
fn restarted_api_server_is_listed_again() {
    let sources = start_as_admin();
    kubectl(&["apply", "-f", &unscheduled_pod("going")]);
    sources.wait("the pod that will be deleted", |objects| objects.pod("going").map(drop));
    let killed = KilledProcess::new(&api_server(), "kube-apiserver");
    sources.wait_line("warning: no updates from the API server");
    killed.restart();
    fixture::wait_until("the API server is ready", || {
        fixture::try_kubectl(&["get", "--raw", "/readyz"]).is_ok()
    });
    kubectl(&["-n", "shop", "delete", "pod", "going"]);
    kubectl(&["apply", "-f", &unscheduled_pod("coming")]);
    sources.wait("both changes", |objects| {
        (objects.pod("going").is_none() && objects.pod("coming").is_some()).then_some(())
    });
    sources.wait_line("names come again from the API server");
    assert!(!sources.has_failed());
    kubectl(&["-n", "shop", "delete", "pod", "coming"]);
    sources.wait("the deletion of the new pod", |objects| {
        objects.pod("coming").is_none().then_some(())
    });
}

fn kubelet_without_its_api_server() {
    fixture::start_cluster();
    let pki = kubelet().join("pki").display().to_string();
    let token = write_file("token", &token("kmesh-viewer"));
    let by_token = format!("--kubelet --kubelet-ca {pki}/ca.crt --kubelet-token {token}");
    let has_db = |sources: &SourceListener| sources.wait("db-0", |objects| objects.pod("db-0").map(drop));
    has_db(&start_sources(&by_token));
    let killed = KilledProcess::new(&api_server(), "kube-apiserver");
    let by_certificate = format!("--kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key");
    has_db(&start_sources(&format!(
        "--kubelet --kubelet-ca {pki}/ca.crt {by_certificate}"
    )));
    // The kubelet caches authorizations for a while. It cannot authenticate a new token.
    has_db(&start_sources(&by_token));
    let new_token = write_file("new", "unknown-token");
    let line = start_sources(&format!(
        "--kubelet --kubelet-ca {pki}/ca.crt --kubelet-token {new_token}"
    ))
    .wait_line("no names yet");
    assert!(line.contains("401") || line.contains("500"), "{line}");
    killed.restart();
}
