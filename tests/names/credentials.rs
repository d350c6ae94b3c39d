//! Tokens, certificates, kubeconfigs and permissions.

use std::fs;
use std::path::Path;
use std::process::Command;

use kmesh_trace::names::update::Owner;
use serde_json::{Value, json};

use crate::Row;
use crate::components::{self, Right};
use crate::fixture::{self, api_server, kubectl, kubelet};
use crate::listener::{start_sources, try_start_sources};
use crate::node::{is_current, write_file};

/// Do not change the API server or the kubelet.
pub const PARALLEL: &[Row] = &[
    ("credentials::kubeconfig_with_token", kubeconfig_with_token),
    (
        "credentials::missing_permission_affects_its_kind_alone",
        missing_permission_affects_its_kind_alone,
    ),
    ("credentials::no_permission_is_an_error", no_permission_is_an_error),
    ("credentials::rejected_token_is_an_error", rejected_token_is_an_error),
    ("credentials::unknown_ca_is_an_error", unknown_ca_is_an_error),
    ("credentials::kubelets_credentials", kubelets_credentials),
    (
        "credentials::invalid_kubeconfigs_are_errors",
        invalid_kubeconfigs_are_errors,
    ),
    ("credentials::exec_plugins", exec_plugins),
    ("credentials::kubelet_with_token", kubelet_with_token),
    (
        "credentials::kubelet_reports_rejected_credentials",
        kubelet_reports_rejected_credentials,
    ),
    (
        "credentials::each_verb_of_the_role_is_needed",
        each_verb_of_the_role_is_needed,
    ),
    (
        "credentials::nodes_proxy_role_is_enough_for_the_kubelet",
        nodes_proxy_role_is_enough_for_the_kubelet,
    ),
];

/// Returns the token that the script created for a user.
pub fn token(user: &str) -> String {
    let tokens = fs::read_to_string(api_server().join("pki/tokens.csv")).unwrap();
    let line = tokens
        .lines()
        .find(|line| line.split(',').nth(1) == Some(user))
        .unwrap();
    line.split(',').next().unwrap().to_owned()
}

fn kubeconfig_with_token() {
    fixture::start_cluster();
    let sources = start_sources(&format!(
        "--kubeconfig={}",
        api_server().join("kubeconfig-token").display()
    ));
    sources.wait("db-0", |objects| objects.pod("db-0").map(drop));
}

fn missing_permission_affects_its_kind_alone() {
    fixture::start_cluster();
    // This user has no permission for Jobs and Endpoints.
    let sources = start_sources(&format!(
        "--kubeconfig={}",
        api_server().join("kubeconfig-viewer").display()
    ));
    sources.wait("pods and Services", |objects| {
        objects.pod("db-0").and(objects.service("web")).map(drop)
    });
    for resource in ["jobs.batch", "endpoints"] {
        let line = sources.wait_line(&format!("list and watch {resource}"));
        assert!(
            line.contains("403 Forbidden: kmesh-viewer lacks the permission") && line.contains("ClusterRole"),
            "{line}"
        );
    }
    let lines = sources.lines();
    assert_eq!(
        lines.iter().filter(|line| line.contains("403")).count(),
        2,
        "one message for each: {lines:?}"
    );
    assert!(!sources.has_failed());
}

fn no_permission_is_an_error() {
    fixture::start_cluster();
    let sources = start_sources(&format!(
        "--kubeconfig={}",
        api_server().join("kubeconfig-nobody").display()
    ));
    let line = sources.wait_line("warning: no names yet from the API server at https://127.0.0.1:6443");
    assert!(
        line.contains("403 Forbidden: kmesh-nobody lacks the permission to list and watch pods"),
        "{line}"
    );
    assert!(sources.has_failed());
    assert_eq!(sources.lines().len(), 1, "{:?}", sources.lines());
}

/// Writes a changed copy of a kubeconfig, and returns the flag that names it.
fn kubeconfig(name: &str, from: &str, change: impl Fn(&str) -> String) -> String {
    let text = fs::read_to_string(api_server().join(from)).unwrap();
    let changed = change(&text);
    assert_ne!(text, changed);
    format!("--kubeconfig={}", write_file(name, &changed))
}

/// Returns the flag for a kubeconfig of this user.
fn kubeconfig_of(user: &str) -> String {
    kubeconfig("kubeconfig-user", "kubeconfig-nobody", |text| {
        text.replace(&token("kmesh-nobody"), &token(user))
    })
}

fn rejected_token_is_an_error() {
    fixture::start_cluster();
    let valid = token("kmesh-admin");
    let sources = start_sources(&kubeconfig("kubeconfig-expired", "kubeconfig-token", |text| {
        text.replace(&valid, "expired")
    }));
    let line = sources.wait_line("warning: no names yet from");
    assert!(line.contains("401") && line.contains("expired"), "{line}");
    assert!(sources.wait_line("error: no names from").contains("401"));
    assert!(sources.has_failed());
}

fn unknown_ca_is_an_error() {
    fixture::start_cluster();
    let other = write_file("other-ca.key", "");
    let certificate = other.replace(".key", ".crt");
    let openssl = Command::new("openssl")
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
    assert!(openssl.unwrap().status.success());
    let sources = start_sources(&kubeconfig("kubeconfig-other", "kubeconfig", |text| {
        let start = text.find("certificate-authority-data: ").unwrap();
        let end = start + text[start..].find('}').unwrap();
        text.replace(&text[start..end], &format!("certificate-authority: {certificate}"))
    }));
    let line = sources.wait_line("warning: no names yet from");
    assert!(line.contains("signed by an unknown authority"), "{line}");
    let arguments = format!("--kubelet --kubelet-ca {certificate}");
    let line = start_sources(&arguments).wait_line("warning: no names yet from");
    assert!(
        line.contains("signed by an unknown authority") && line.contains("--kubelet-insecure"),
        "{line}"
    );
}

fn kubelets_credentials() {
    fixture::start_cluster();
    let node_conf = kubelet().join("node.conf").display().to_string();
    let sources = start_sources(&format!("--kubeconfig={node_conf} --this-node"));
    sources.wait("this node's pods", |objects| {
        objects.pod("db-0").and(objects.pod("agent-")).map(drop)
    });
    sources.wait("Services", |objects| objects.service("web").map(drop));
    sources.wait_line("names come from");
    assert_eq!(sources.lines().len(), 1, "{:?}", sources.lines());
    // Without the flag, the tool requests more than the kubelet is permitted: pods of other nodes in newer clusters,
    // and other kinds.
    let line = start_sources(&format!("--kubeconfig={node_conf}")).wait_line("403 Forbidden: system:node:");
    assert!(line.contains("--this-node"), "{line}");
}

fn invalid_kubeconfigs_are_errors() {
    fixture::start_cluster();
    let valid = api_server().join("kubeconfig").display().to_string();
    let broken = write_file("broken", "clusters: [\n");
    for (arguments, part) in [
        ("--kubeconfig=/nonexistent".to_owned(), "No such file"),
        (format!("--kubeconfig={broken}"), "--kubeconfig"),
        (format!("--kubeconfig={valid} --context other"), "other"),
    ] {
        let error = try_start_sources(&arguments).err().unwrap();
        assert!(error.contains(part), "{arguments}: {error}");
    }
}

fn exec_plugins() {
    fixture::start_cluster();
    let token = token("kmesh-admin");
    let credential = format!(
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
    let script = write_file("plugin", &format!("#!/bin/sh\necho '{credential}'\n"));
    assert!(Command::new("chmod").args(["+x", &script]).status().unwrap().success());
    start_sources(&plugin(&script)).wait("db-0", |objects| objects.pod("db-0").map(drop));
    let line = start_sources(&plugin("/nonexistent-plugin")).wait_line("warning: no names yet from");
    assert!(
        line.contains("nonexistent-plugin") || line.contains("No such file"),
        "{line}"
    );
}

fn kubelet_with_token() {
    fixture::start_cluster();
    let token = write_file("token", &token("kmesh-viewer"));
    let ca = kubelet().join("pki/ca.crt").display().to_string();
    let sources = start_sources(&format!("--kubelet --kubelet-token {token} --kubelet-ca {ca}"));
    let web = sources.wait("web", |objects| objects.pod("web-9").cloned());
    assert!(is_current(&web), "{web:?}");
    assert!(
        matches!(&web.owner, Owner::By(owner) if owner.kind == "ReplicaSet"),
        "{web:?}"
    );
}

fn kubelet_reports_rejected_credentials() {
    fixture::start_cluster();
    let ca = kubelet().join("pki/ca.crt").display().to_string();
    let pki = kubelet().join("pki").display().to_string();
    let nobody = write_file("nobody", &token("kmesh-nobody"));
    let wrong = write_file("wrong", "wrong");
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
        let sources = start_sources(&format!("--kubelet --kubelet-ca {ca} {credentials}"));
        let line = sources.wait_line("warning: no names yet from");
        assert!(parts.iter().all(|part| line.contains(part)), "{credentials}: {line}");
    }
}

/// Returns the rules of the ClusterRole in a file of `deploy/`.
fn rules_of(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/kubernetes")
        .join(file);
    let text = kubectl(&["create", "--dry-run=client", "-o", "json", "-f", path.to_str().unwrap()]);
    // kubectl prints objects one after another, or a list.
    let objects = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let mut objects: Vec<_> = objects.map(Result::unwrap).collect();
    if let Some(items) = objects[0]["items"].as_array() {
        objects = items.clone();
    }
    let role = objects.into_iter().find(|object| object["kind"] == "ClusterRole");
    role.unwrap()["rules"].take()
}

/// Grants each of these users, who have no other rights, a ClusterRole with these rules.
fn grant(roles: &[(&str, Value)]) {
    const API: &str = "rbac.authorization.k8s.io";
    let objects = roles.iter().flat_map(|(user, rules)| {
        let version = format!("{API}/v1");
        let role = json!({
            "apiVersion": version, "kind": "ClusterRole", "metadata": {"name": user}, "rules": rules,
        });
        let binding = json!({
            "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": user},
            "roleRef": {"apiGroup": API, "kind": "ClusterRole", "name": user},
            "subjects": [{"apiGroup": API, "kind": "User", "name": user}],
        });
        [role, binding]
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects.collect::<Vec<_>>()});
    kubectl(&["apply", "-f", &write_file("roles.json", &list.to_string())]);
}

/// Waits until the API server answers these reviews as expected. It applies a new role with a delay.
fn wait_for_rights(reviews: &[(Value, bool)]) {
    let (reviews, expected): (Vec<_>, Vec<_>) = reviews.iter().cloned().unzip();
    fixture::wait_until("the roles apply", || {
        components::are_allowed(&api_server(), &reviews).unwrap() == expected
    });
}

/// Returns a review of whether this user has a right.
fn review(user: &str, right: Right<'_>) -> Value {
    components::review(user, &["system:authenticated"], right)
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap())
}

/// Returns the API group, the resource and the verb of each right of a role.
fn verbs_of(rules: &Value) -> Vec<(&str, &str, &str)> {
    let mut verbs = Vec::new();
    for rule in rules.as_array().unwrap() {
        let group = rule["apiGroups"][0].as_str().unwrap();
        for resource in texts(&rule["resources"]) {
            verbs.extend(texts(&rule["verbs"]).map(|verb| (group, resource, verb)));
        }
    }
    verbs
}

/// For each verb, a user has the role of `deploy/` without this verb. The tool reports the kind in one message, and
/// gets the others.
fn each_verb_of_the_role_is_needed() {
    fixture::start_cluster();
    let rules = rules_of("rbac-cluster.yaml");
    let verbs = verbs_of(&rules);
    assert_eq!(verbs.len(), 14, "{verbs:?}");
    // The tool lists Endpoints only if the API server has no EndpointSlices.
    let has_slices = kubectl(&["api-versions"])
        .lines()
        .any(|line| line == "discovery.k8s.io/v1");
    let (used, unused) = if has_slices {
        ("endpointslices", "endpoints")
    } else {
        ("endpoints", "endpointslices")
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
        let others = verbs.iter().enumerate().filter(move |(number, _)| *number != removed);
        others
            .map(|(_, (group, resource, verb))| json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]}))
    };
    let roles = users.iter().enumerate();
    grant(
        &roles
            .map(|(removed, user)| (user.as_str(), without(removed).collect()))
            .collect::<Vec<_>>(),
    );
    let reviews = users.iter().enumerate().flat_map(|(removed, user)| {
        let rights = rights.iter().enumerate();
        rights.map(move |(number, right)| (review(user, *right), number != removed))
    });
    wait_for_rights(&reviews.collect::<Vec<_>>());

    let cases = verbs
        .iter()
        .zip(&users)
        .filter(|((_, resource, _), _)| *resource != unused);
    let all_sources: Vec<_> = cases
        .map(|(verb, user)| (verb, user, start_sources(&kubeconfig_of(user))))
        .collect();
    for ((_, resource, verb), user, sources) in all_sources {
        let line = sources.wait_line(&format!("403 Forbidden: {user} lacks the permission"));
        assert!(line.contains(resource), "{verb} {resource}: {line}");
        if *resource != "pods" {
            sources.wait("the other kinds", |objects| {
                let is_there = |kind, is_known| *resource == kind || is_known;
                (objects.pod("db-0").is_some()
                    && is_there("services", objects.service("web").is_some())
                    && is_there("nodes", !objects.nodes().is_empty())
                    && is_there(used, objects.endpoints("web").is_some()))
                .then_some(())
            });
        }
        let rejected = sources.lines().iter().filter(|line| line.contains("403")).count();
        assert_eq!(rejected, 1, "{verb} {resource}: {:?}", sources.lines());
    }
}

/// This kubelet checks nodes/proxy alone: a user with this right and no other gets the pods.
fn nodes_proxy_role_is_enough_for_the_kubelet() {
    const USER: &str = "kmesh-user-14";
    fixture::start_cluster();
    grant(&[(USER, rules_of("rbac-nodes-proxy.yaml"))]);
    wait_for_rights(&[
        (review(USER, ("get", "nodes/proxy")), true),
        (review(USER, ("list", "pods")), false),
    ]);
    let token = write_file("token", &token(USER));
    let ca = kubelet().join("pki/ca.crt").display().to_string();
    let sources = start_sources(&format!("--kubelet --kubelet-token {token} --kubelet-ca {ca}"));
    sources.wait("web", |objects| objects.pod("web-9").map(drop));
}
