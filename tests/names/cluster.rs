//! An API server, with a kubelet that is registered there.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use kmesh_trace::names::update::{ControllerRef, Owner, TargetPort};

use crate::Row;
use crate::components::{self, Right};
use crate::listener::{Listener, listen, try_listen};
use crate::node::{a_kubelet_that_hangs, is_as_it_runs, write};
use crate::stage::{self, Killed, Stopped, api_server, kubectl, kubelet, value};

/// Leave the API server and the kubelet as they are.
pub const BESIDE_OTHERS: &[Row] = &[
    ("cluster::pods_and_owners", pods_and_owners),
    ("cluster::services_and_endpoints", services_and_endpoints),
    ("cluster::nodes", nodes),
    (
        "cluster::a_token_in_place_of_a_certificate",
        a_token_in_place_of_a_certificate,
    ),
    (
        "cluster::missing_permissions_degrade_their_kind_alone",
        missing_permissions_degrade_their_kind_alone,
    ),
    ("cluster::no_permission_at_all", no_permission_at_all),
    ("cluster::a_token_that_is_not_accepted", a_token_that_is_not_accepted),
    (
        "cluster::a_certificate_of_another_authority",
        a_certificate_of_another_authority,
    ),
    ("cluster::a_nodes_own_credentials", a_nodes_own_credentials),
    ("cluster::a_file_as_kubectl_prints_it", a_file_as_kubectl_prints_it),
    (
        "cluster::kubeconfigs_that_cannot_be_used",
        kubeconfigs_that_cannot_be_used,
    ),
    ("cluster::exec_plugins", exec_plugins),
    ("cluster::changes_are_watched", changes_are_watched),
    ("cluster::kubelet_with_a_token", kubelet_with_a_token),
    ("cluster::kubelet_refuses", kubelet_refuses),
    (
        "cluster::each_verb_of_its_role_is_needed",
        each_verb_of_its_role_is_needed,
    ),
    (
        "cluster::the_opt_in_role_is_for_this_kubelet",
        the_opt_in_role_is_for_this_kubelet,
    ),
];

/// Stop one of the two, and no other.
pub const HANGING: &[Row] = &[
    ("cluster::an_api_server_that_hangs", an_api_server_that_hangs),
    ("node::a_kubelet_that_hangs", a_kubelet_that_hangs),
];

/// Start the API server anew.
pub const BY_ITSELF: &[Row] = &[
    ("cluster::a_watch_that_is_cut", a_watch_that_is_cut),
    (
        "cluster::kubelet_without_its_api_server",
        kubelet_without_its_api_server,
    ),
];

fn as_admin() -> Listener {
    stage::cluster();
    listen(&format!("--kubeconfig={}", api_server().join("kubeconfig").display()))
}

/// The token of a user, as the script has made it.
fn token(user: &str) -> String {
    let tokens = fs::read_to_string(api_server().join("pki/tokens.csv")).unwrap();
    let line = tokens
        .lines()
        .find(|line| line.split(',').nth(1) == Some(user))
        .unwrap();
    line.split(',').next().unwrap().to_owned()
}

fn names(owner: &ControllerRef) -> (&str, &str) {
    (&owner.kind, &owner.name)
}

fn pods_and_owners() {
    let listener = as_admin();
    let running = |pod: &str| listener.wait(pod, |known| known.pod(pod).filter(|pod| is_as_it_runs(pod)).cloned());
    let owner = |pod: &str| {
        let found = running(pod);
        let Owner::By(owner) = found.owner else {
            panic!("{pod} has an owner, not {:?}", found.owner)
        };
        owner
    };
    let replica_set = owner("web-9");
    assert_eq!(replica_set.kind, "ReplicaSet");
    let deployment = listener.wait("the ReplicaSet", |known| {
        known.controller(&replica_set.uid)?.owner.clone()
    });
    assert_eq!(names(&deployment), ("Deployment", "web"));
    assert_eq!(
        deployment.uid,
        value(&["-n", "shop", "deployment/web"], "{.metadata.uid}")
    );
    assert_eq!(names(&owner("db-0")), ("StatefulSet", "db"));
    assert_eq!(names(&owner("agent-")), ("DaemonSet", "agent"));
    let once = listener.wait("the Job's pod", |known| known.pod("once-").filter(|pod| pod.terminal).cloned());
    assert!(
        matches!(&once.owner, Owner::By(owner) if names(owner) == ("Job", "once")),
        "{once:?}"
    );
    let bare = running("bare");
    assert_eq!(
        (bare.owner.clone(), bare.service_account.as_deref()),
        (Owner::Nobody, Some("default"))
    );
    // A static pod's mirror has its own UID; its hash annotation is the UID in the cgroup's name.
    let hostnet = running("hostnet-");
    assert_ne!(hostnet.static_uid.as_ref(), Some(&hostnet.uid));
    assert_eq!(
        (hostnet.owner.clone(), hostnet.host_network),
        (Owner::Nobody, Some(true))
    );
    let agent = running("agent-");
    assert_eq!(
        (agent.host_network, agent.ips == hostnet.ips),
        (Some(true), true),
        "both have the node's address"
    );
}

fn services_and_endpoints() {
    let listener = as_admin();
    let service = |name: &str| listener.wait(name, |known| known.service(name).cloned());
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
    // This server has slices of v1beta1 only: the older kind is what both have.
    let pods: Vec<_> = value(&["-n", "shop", "pod", "-l", "app=web"], "{.items[*].status.podIP}")
        .split(' ')
        .map(|ip| format!("{ip}:8080"))
        .collect();
    for service in ["web", "web-headless", "web-nodeport"] {
        listener.wait(service, |known| {
            let told = known
                .endpoints(service)?
                .addresses
                .iter()
                .map(|address| address.to_string());
            let told: std::collections::BTreeSet<_> = told.collect();
            // The standalone pod `web` has the same label, in another node's eyes.
            pods.iter().all(|pod| told.contains(pod)).then_some(())
        });
    }
    assert!(
        listener.lines().iter().all(|line| !line.contains("warning")),
        "{:?}",
        listener.lines()
    );
}

fn nodes() {
    let listener = as_admin();
    let ip = value(
        &["nodes"],
        "{.items[0].status.addresses[?(@.type=='InternalIP')].address}",
    );
    listener.wait("the node", |known| {
        let nodes = known.nodes();
        (nodes.len() == 1 && nodes[0].ips == [ip.parse::<IpAddr>().ok()?]).then_some(())
    });
}

fn a_token_in_place_of_a_certificate() {
    stage::cluster();
    let listener = listen(&format!(
        "--kubeconfig={}",
        api_server().join("kubeconfig-token").display()
    ));
    listener.wait("db-0", |known| known.pod("db-0").map(drop));
}

fn missing_permissions_degrade_their_kind_alone() {
    stage::cluster();
    // Whoever this is may see neither Jobs nor Endpoints.
    let listener = listen(&format!(
        "--kubeconfig={}",
        api_server().join("kubeconfig-viewer").display()
    ));
    listener.wait("pods and Services", |known| {
        known.pod("db-0").and(known.service("web")).map(drop)
    });
    for resource in ["jobs.batch", "endpoints"] {
        let line = listener.line(&format!("list and watch {resource}"));
        assert!(
            line.contains("403 Forbidden: kmesh-viewer lacks the permission") && line.contains("ClusterRole"),
            "{line}"
        );
    }
    let lines = listener.lines();
    assert_eq!(
        lines.iter().filter(|line| line.contains("403")).count(),
        2,
        "each once: {lines:?}"
    );
    assert!(!listener.has_failed());
}

fn no_permission_at_all() {
    stage::cluster();
    let listener = listen(&format!(
        "--kubeconfig={}",
        api_server().join("kubeconfig-nobody").display()
    ));
    let line = listener.line("warning: no names yet from the API server at https://127.0.0.1:6443");
    assert!(
        line.contains("403 Forbidden: kmesh-nobody lacks the permission to list and watch pods"),
        "{line}"
    );
    assert!(listener.has_failed());
    assert_eq!(listener.lines().len(), 1, "{:?}", listener.lines());
}

/// The administrator's kubeconfig with something else in it.
fn kubeconfig(name: &str, from: &str, change: impl Fn(&str) -> String) -> String {
    let text = fs::read_to_string(api_server().join(from)).unwrap();
    let changed = change(&text);
    assert_ne!(text, changed);
    format!("--kubeconfig={}", write(name, &changed))
}

/// The kubeconfig of a user without rights, with another user's token.
fn kubeconfig_of(user: &str) -> String {
    kubeconfig("kubeconfig-user", "kubeconfig-nobody", |text| {
        text.replace(&token("kmesh-nobody"), &token(user))
    })
}

fn a_token_that_is_not_accepted() {
    stage::cluster();
    let known = token("kmesh-admin");
    let listener = listen(&kubeconfig("kubeconfig-expired", "kubeconfig-token", |text| {
        text.replace(&known, "expired")
    }));
    let line = listener.line("warning: no names yet from");
    assert!(line.contains("401") && line.contains("expired"), "{line}");
    assert!(listener.line("error: no names from").contains("401"));
    assert!(listener.has_failed());
}

fn a_certificate_of_another_authority() {
    stage::cluster();
    let other = write("other-ca.key", "");
    let certificate = other.replace(".key", ".crt");
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=other",
        ])
        .args(["-keyout", &other, "-out", &certificate])
        .output();
    assert!(made.unwrap().status.success());
    let listener = listen(&kubeconfig("kubeconfig-other", "kubeconfig", |text| {
        let start = text.find("certificate-authority-data: ").unwrap();
        let end = start + text[start..].find('}').unwrap();
        text.replace(&text[start..end], &format!("certificate-authority: {certificate}"))
    }));
    let line = listener.line("warning: no names yet from");
    assert!(line.contains("signed by an unknown authority"), "{line}");
    let arguments = format!("--kubelet --kubelet-ca {certificate}");
    let line = listen(&arguments).line("warning: no names yet from");
    assert!(
        line.contains("signed by an unknown authority") && line.contains("--kubelet-insecure"),
        "{line}"
    );
}

fn a_nodes_own_credentials() {
    stage::cluster();
    let node_conf = kubelet().join("node.conf").display().to_string();
    let listener = listen(&format!("--kubeconfig={node_conf} --this-node"));
    listener.wait("this node's pods", |known| {
        known.pod("db-0").and(known.pod("agent-")).map(drop)
    });
    listener.wait("Services", |known| known.service("web").map(drop));
    listener.line("names come from");
    assert_eq!(listener.lines().len(), 1, "{:?}", listener.lines());
    // Without the flag it asks for more than it may have: of other nodes' pods in newer clusters, of other kinds in all.
    let line = listen(&format!("--kubeconfig={node_conf}")).line("403 Forbidden: system:node:");
    assert!(line.contains("--this-node"), "{line}");
}

fn a_file_as_kubectl_prints_it() {
    stage::cluster();
    for format in ["json", "yaml"] {
        let printed = kubectl(&[
            "get",
            "-A",
            "-o",
            format,
            "pods,services,endpoints,replicasets,deployments,nodes",
        ]);
        let listener = listen(&format!("--pods-file {}", write(&format!("saved.{format}"), &printed)));
        let web = listener.wait("web", |known| known.pod("web-9").cloned());
        assert!(is_as_it_runs(&web), "{web:?}");
        listener.wait("the rest", |known| {
            let Owner::By(replica_set) = &web.owner else {
                panic!("{web:?}")
            };
            known.controller(&replica_set.uid)?.owner.as_ref()?;
            known.service("web").and(known.endpoints("web").map(drop))
        });
    }
}

fn kubeconfigs_that_cannot_be_used() {
    stage::cluster();
    let good = api_server().join("kubeconfig").display().to_string();
    let broken = write("broken", "clusters: [\n");
    for (arguments, part) in [
        ("--kubeconfig=/nonexistent".to_owned(), "No such file"),
        (format!("--kubeconfig={broken}"), "--kubeconfig"),
        (format!("--kubeconfig={good} --context other"), "other"),
    ] {
        let error = try_listen(&arguments).err().unwrap();
        assert!(error.contains(part), "{arguments}: {error}");
    }
}

fn exec_plugins() {
    stage::cluster();
    let token = token("kmesh-admin");
    let answer = format!(
        r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{token}"}}}}"#
    );
    let plugin = |command: &str| {
        let exec = format!(
            "exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}, interactiveMode: Never}}"
        );
        kubeconfig("kubeconfig-exec", "kubeconfig-token", |text| {
            text.replace(&format!("token: \"{token}\""), &exec)
        })
    };
    let script = write("plugin", &format!("#!/bin/sh\necho '{answer}'\n"));
    assert!(Command::new("chmod").args(["+x", &script]).status().unwrap().success());
    listen(&plugin(&script)).wait("db-0", |known| known.pod("db-0").map(drop));
    let line = listen(&plugin("/nonexistent-plugin")).line("warning: no names yet from");
    assert!(
        line.contains("nonexistent-plugin") || line.contains("No such file"),
        "{line}"
    );
}

const LATE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: shop, labels: {a: \"1\"}}\nspec:\n  \
                    terminationGracePeriodSeconds: 1\n  containers:\n  \
                    - {name: main, image: \"kmesh.local/busybox:1\", imagePullPolicy: Never, command: [/bin/sh, -c, \"sleep 3600\"]}\n";

fn changes_are_watched() {
    let listener = as_admin();
    listener.wait("all pods", |known| known.pod("db-0").map(drop));
    kubectl(&["apply", "-f", &write("late.yaml", LATE)]);
    listener.wait("a new pod", |known| {
        known.pod("late").filter(|pod| is_as_it_runs(pod)).map(drop)
    });
    kubectl(&["-n", "shop", "label", "--overwrite", "pod", "late", "a=2"]);
    listener.wait("a new label", |known| {
        let labels = known.pod("late")?.labels.clone()?;
        labels.contains(&("a".to_owned(), "2".to_owned())).then_some(())
    });
    kubectl(&["-n", "shop", "delete", "pod", "late"]);
    listener.wait("its end", |known| known.pod("late").is_none().then_some(()));
}

fn kubelet_with_a_token() {
    stage::cluster();
    let token = write("token", &token("kmesh-viewer"));
    let ca = kubelet().join("pki/ca.crt").display().to_string();
    let listener = listen(&format!("--kubelet --kubelet-token {token} --kubelet-ca {ca}"));
    let web = listener.wait("web", |known| known.pod("web-9").cloned());
    assert!(is_as_it_runs(&web), "{web:?}");
    assert!(
        matches!(&web.owner, Owner::By(owner) if owner.kind == "ReplicaSet"),
        "{web:?}"
    );
}

fn kubelet_refuses() {
    stage::cluster();
    let ca = kubelet().join("pki/ca.crt").display().to_string();
    let pki = kubelet().join("pki").display().to_string();
    let nobody = write("nobody", &token("kmesh-nobody"));
    let wrong = write("wrong", "wrong");
    for (credentials, parts) in [
        (
            format!("--kubelet-token {nobody}"),
            [
                "403 Forbidden: kmesh-nobody lacks the permission to get nodes/pods",
                "nodes/proxy",
            ],
        ),
        (format!("--kubelet-token {wrong}"), ["401", "--kubelet-token"]),
        (
            format!("--kubelet-cert {pki}/node.crt --kubelet-key {pki}/node.key"),
            [
                "403 Forbidden: system:node:",
                "--kubeconfig=/etc/kubernetes/kubelet.conf --this-node",
            ],
        ),
    ] {
        let listener = listen(&format!("--kubelet --kubelet-ca {ca} {credentials}"));
        let line = listener.line("warning: no names yet from");
        assert!(parts.iter().all(|part| line.contains(part)), "{credentials}: {line}");
    }
}

/// What the role in this file of `deploy/` grants.
fn rules_of(file: &str) -> serde_json::Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/kubernetes")
        .join(file);
    let text = kubectl(&["create", "--dry-run=client", "-o", "json", "-f", path.to_str().unwrap()]);
    // One object after another, or a list of them.
    let objects = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
    let mut objects: Vec<_> = objects.map(Result::unwrap).collect();
    if let Some(items) = objects[0]["items"].as_array() {
        objects = items.clone();
    }
    let role = objects.into_iter().find(|object| object["kind"] == "ClusterRole");
    role.unwrap()["rules"].take()
}

/// Gives each of these users, who have no other rights, a role with these rules.
fn grant(roles: &[(&str, serde_json::Value)]) {
    const API: &str = "rbac.authorization.k8s.io";
    let objects = roles.iter().flat_map(|(user, rules)| {
        let version = format!("{API}/v1");
        let role = serde_json::json!({
            "apiVersion": version, "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules,
        });
        let binding = serde_json::json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": user},
            "roleRef": {"apiGroup": API, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": API, "kind": "User", "name": user}],
        });
        [role, binding]
    });
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects.collect::<Vec<_>>()});
    kubectl(&["apply", "-f", &write("roles.json", &list.to_string())]);
}

/// Waits until the API server answers these questions so. It takes a moment to see a new role.
fn wait_for_rights(questions: &[(serde_json::Value, bool)]) {
    let (questions, expected): (Vec<_>, Vec<_>) = questions.iter().cloned().unzip();
    stage::wait_until("the roles to hold", || {
        components::answers(&api_server(), &questions).unwrap() == expected
    });
}

/// The question whether this user has a right.
fn may(user: &str, right: Right<'_>) -> serde_json::Value {
    components::review(user, &["system:authenticated"], right)
}

fn texts(list: &serde_json::Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap())
}

/// Each verb of a role, with the API group and the resource that it is for.
fn verbs_of(rules: &serde_json::Value) -> Vec<(&str, &str, &str)> {
    let mut verbs = Vec::new();
    for rule in rules.as_array().unwrap() {
        let group = rule["apiGroups"][0].as_str().unwrap();
        for resource in texts(&rule["resources"]) {
            verbs.extend(texts(&rule["verbs"]).map(|verb| (group, resource, verb)));
        }
    }
    verbs
}

/// The role in `deploy/` without one of its verbs, for each verb: the tool names that kind in one line, and the others come.
fn each_verb_of_its_role_is_needed() {
    stage::cluster();
    let rules = rules_of("rbac-cluster.yaml");
    let verbs = verbs_of(&rules);
    assert_eq!(verbs.len(), 14, "{verbs:?}");
    // Only where there are no EndpointSlices does the tool ask for Endpoints.
    let slices = kubectl(&["api-versions"])
        .lines()
        .any(|line| line == "discovery.k8s.io/v1");
    let (used, idle) = match slices {
        true => ("endpointslices", "endpoints"),
        false => ("endpoints", "endpointslices"),
    };
    let resources: Vec<_> = verbs
        .iter()
        .map(|(group, resource, _)| [resource, *group].join("."))
        .collect();
    let rights = verbs.iter().zip(&resources);
    let rights: Vec<Right<'_>> = rights
        .map(|((_, _, verb), resource)| (*verb, resource.trim_end_matches('.')))
        .collect();
    let users: Vec<_> = (0..verbs.len()).map(|number| format!("kmesh-user-{number}")).collect();

    let without = |removed: usize| {
        let left = verbs.iter().enumerate().filter(move |(number, _)| *number != removed);
        left.map(|(_, (group, resource, verb))| {
            serde_json::json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]})
        })
    };
    let roles = users.iter().enumerate();
    grant(
        &roles
            .map(|(removed, user)| (user.as_str(), without(removed).collect()))
            .collect::<Vec<_>>(),
    );
    let questions = users.iter().enumerate().flat_map(|(removed, user)| {
        let rights = rights.iter().enumerate();
        rights.map(move |(number, right)| (may(user, *right), number != removed))
    });
    wait_for_rights(&questions.collect::<Vec<_>>());

    let cases = verbs
        .iter()
        .zip(&users)
        .filter(|((_, resource, _), _)| *resource != idle);
    let listeners: Vec<_> = cases
        .map(|(verb, user)| (verb, user, listen(&kubeconfig_of(user))))
        .collect();
    for ((_, resource, verb), user, listener) in listeners {
        let line = listener.line(&format!("403 Forbidden: {user} lacks the permission"));
        assert!(line.contains(resource), "{verb} {resource}: {line}");
        if *resource != "pods" {
            listener.wait("the other kinds", |known| {
                let is_there = |kind, is_known| *resource == kind || is_known;
                (known.pod("db-0").is_some()
                    && is_there("services", known.service("web").is_some())
                    && is_there("nodes", !known.nodes().is_empty())
                    && is_there(used, known.endpoints("web").is_some()))
                .then_some(())
            });
        }
        let refused = listener.lines().iter().filter(|line| line.contains("403")).count();
        assert_eq!(refused, 1, "{verb} {resource}: {:?}", listener.lines());
    }
}

/// It knows nothing finer than nodes/proxy: who has that, and nothing else, is answered.
fn the_opt_in_role_is_for_this_kubelet() {
    const USER: &str = "kmesh-user-14";
    stage::cluster();
    grant(&[(USER, rules_of("rbac-nodes-proxy.yaml"))]);
    wait_for_rights(&[
        (may(USER, ("get", "nodes/proxy")), true),
        (may(USER, ("list", "pods")), false),
    ]);
    let token = write("token", &token(USER));
    let ca = kubelet().join("pki/ca.crt").display().to_string();
    let listener = listen(&format!("--kubelet --kubelet-token {token} --kubelet-ca {ca}"));
    listener.wait("web", |known| known.pod("web-9").map(drop));
}

fn an_api_server_that_hangs() {
    stage::cluster();
    let stopped = Stopped::process(&api_server(), "kube-apiserver");
    let listener = listen(&format!("--kubeconfig={}", api_server().join("kubeconfig").display()));
    assert!(listener.line("error: no names from").contains("in the first 10 s"));
    assert!(listener.has_failed());
    drop(stopped);
    listener.wait("db-0", |known| known.pod("db-0").map(drop));
}

/// A pod that no scheduler places, so that the API server alone decides when it comes and goes.
fn unplaced(name: &str) -> String {
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"schedulerName": "nobody", "containers": [{"name": "main", "image": "kmesh.local/busybox:1"}]},
    });
    write("unplaced.json", &pod.to_string())
}

fn a_watch_that_is_cut() {
    let listener = as_admin();
    kubectl(&["apply", "-f", &unplaced("going")]);
    listener.wait("the pod that will go", |known| known.pod("going").map(drop));
    let killed = Killed::process(&api_server(), "kube-apiserver");
    listener.line("warning: no updates from the API server");
    killed.revive();
    stage::wait_until("the API server", || {
        stage::try_kubectl(&["get", "--raw", "/readyz"]).is_ok()
    });
    // What was remembered of it is too old for the new one: it is listed anew.
    kubectl(&["-n", "shop", "delete", "pod", "going"]);
    kubectl(&["apply", "-f", &unplaced("coming")]);
    listener.wait("what changed meanwhile", |known| {
        (known.pod("going").is_none() && known.pod("coming").is_some()).then_some(())
    });
    listener.line("names come again from the API server");
    assert!(!listener.has_failed());
    kubectl(&["-n", "shop", "delete", "pod", "coming"]);
    listener.wait("the new pod to go", |known| known.pod("coming").is_none().then_some(()));
}

fn kubelet_without_its_api_server() {
    stage::cluster();
    let pki = kubelet().join("pki").display().to_string();
    let token = write("token", &token("kmesh-viewer"));
    let by_token = format!("--kubelet --kubelet-ca {pki}/ca.crt --kubelet-token {token}");
    let has_db = |listener: &Listener| listener.wait("db-0", |known| known.pod("db-0").map(drop));
    has_db(&listen(&by_token));
    let killed = Killed::process(&api_server(), "kube-apiserver");
    let by_certificate = format!("--kubelet-cert {pki}/client.crt --kubelet-key {pki}/client.key");
    has_db(&listen(&format!(
        "--kubelet --kubelet-ca {pki}/ca.crt {by_certificate}"
    )));
    // The kubelet remembers for a while who may ask; of whom it has not heard it can find out nothing.
    has_db(&listen(&by_token));
    let unheard = write("unheard", "unheard-of");
    let line = listen(&format!(
        "--kubelet --kubelet-ca {pki}/ca.crt --kubelet-token {unheard}"
    ))
    .line("no names yet");
    assert!(line.contains("401") || line.contains("500"), "{line}");
    killed.revive();
}
