//! Tokens and keys appear in no message, and the tracer sends them only to the server that they are for.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::cluster::Cluster;
use super::connection::PodConnection;
use super::node::{CgroupDriver, Node, VICTIM_NAMESPACE, retry_until};
use crate::support::tracer::{TracerCommand, binary};

/// Each secret of these tests contains this text.
const SECRET: &str = "c2VjcmV0LXRva2Vu";

/// Returns kubeconfigs that cannot be parsed or used, with secrets near the errors.
fn broken_kubeconfigs() -> Vec<String> {
    let valid = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters:\n- name: c\n  cluster:\n    server: https://127.0.0.1:1\n\
         users:\n- name: u\n  user:\n    token: {SECRET}.token\n    client-key-data: {SECRET}a2V5\n    password: {SECRET}.password\n    username: u\n\
         contexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
    );
    let token = format!("    token: {SECRET}.token\n");
    let with_line = |line: &str| valid.replace(&token, &format!("{token}{line}"));
    vec![
        with_line("   badly: indented\n"),
        with_line("    token: twice\n"),
        with_line("\tx: a tab\n"),
        with_line("    exec: 7\n"),
        with_line("    \"never closed: x\n"),
        with_line("    client-certificate-data: '%%%'\n"),
        valid.replace(&token, &format!("    token: [{SECRET}.token]\n")),
        valid.replace(&token, &format!("    token: {SECRET}.token: {SECRET}\n")),
        valid.replace("contexts:", "contexts: 7\nx:"),
        // Invalid base64, as a key and as a certificate.
        valid.replace("a2V5\n", "%%%\n"),
        format!(r#"{{"apiVersion":"v1","kind":"Config","users":[{{"name":"u","user":{{"token":"{SECRET}"}},}}]}}"#),
        format!(r#"{{"apiVersion":"v1","kind":"Config","users":[{{"name":"u","user":{{"token":{SECRET}}}}}]}}"#),
    ]
}

/// Runs the tool and its `check` command with this kubeconfig. Returns everything that they print.
fn run_with_kubeconfig(node: &Node, kubeconfig: &str) -> String {
    let file = node.folder.join("kubeconfig");
    fs::write(&file, kubeconfig).unwrap();
    let flag = format!("--kubeconfig={}", file.display());
    let mut printed = String::new();
    for args in [&[&*flag, "-v", "--duration", "2s", "-o", "none"][..], &["check", &flag]] {
        let output = Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap();
        printed.push_str(&String::from_utf8_lossy(&output.stdout));
        printed.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    printed
}

pub fn kubeconfig_error_prints_no_secret() {
    let node = Node::new("kubeconfig");
    for kubeconfig in broken_kubeconfigs() {
        let printed = run_with_kubeconfig(&node, &kubeconfig);
        assert!(!printed.contains(SECRET), "{kubeconfig}\nprints\n{printed}");
        assert!(printed.contains("kubeconfig"), "{kubeconfig}\nprints\n{printed}");
    }
}

pub fn output_of_an_exec_plugin_is_not_printed() {
    let node = Node::new("plugin");
    let credential = |status: &str| {
        format!(r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{status}}}"#)
    };
    for script in [
        format!("echo {SECRET}; exit 1"),
        format!("echo '{}'; exit 3", credential(&format!(r#"{{"token":"{SECRET}"}}"#))),
        format!("echo '{}'", credential(&format!(r#"{{"token":["{SECRET}"]}}"#))),
        format!("echo '{}'", credential(&format!(r#"{{"token":"{SECRET}""#))),
        format!("echo {SECRET}"),
        format!("printf '{SECRET}\\n\\377'; kill -9 $$"),
    ] {
        let kubeconfig = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"exec": {"apiVersion": "client.authentication.k8s.io/v1",
                "command": "sh", "args": ["-c", script], "interactiveMode": "Never"}}}]});
        let printed = run_with_kubeconfig(&node, &kubeconfig.to_string());
        assert!(!printed.contains(SECRET), "{script}\nprints\n{printed}");
    }
}

/// Runs a tracer in a mount namespace with a service account's token, until it has the answer of a kubelet without TLS.
/// Returns the kubelet's requests.
fn requests_to_kubelet(node: &Node, args: &[&str]) -> Vec<String> {
    const WITH_SERVICE_ACCOUNT: &str = "mount -t tmpfs none /run && \
        mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
        printf %s \"$0\" >/run/secrets/kubernetes.io/serviceaccount/token && exec \"$@\"";
    let web = node.pod(CgroupDriver::Cgroupfs, VICTIM_NAMESPACE, "web");
    let cluster: Arc<Cluster> = Cluster::with([web.object()]);
    let flag = format!("--kubelet={}", cluster.serve_kubelet());
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", WITH_SERVICE_ACCOUNT, SECRET])
        .arg(binary());
    let network = node.pod_network();
    let args = [&["-o", "json", "--ip", &network, &*flag], args].concat();
    let tracer = TracerCommand::from_command(command, &args).start();
    tracer.output.watch(web.netns);
    web.listen();
    // The kubelet is the only source, so it has answered when the pod has a name.
    retry_until("the name of a pod", || {
        let connection = PodConnection::make(&web, &web);
        (!connection.outbound(&tracer)["src"]["pod"].is_null()).then_some(())
    });
    cluster.stop();
    tracer.interrupt();
    cluster.requests()
}

pub fn service_accounts_token_is_not_sent_without_tls() {
    let node = Node::new("token");
    let requests = requests_to_kubelet(&node, &[]);
    assert!(!requests.is_empty());
    let leaked = requests.iter().find(|request| request.contains(SECRET));
    assert_eq!(leaked, None);
    // The tracer sends a token that a flag names.
    let token = node.folder.join("token");
    fs::write(&token, SECRET).unwrap();
    let requests = requests_to_kubelet(&node, &["--kubelet-token", token.to_str().unwrap()]);
    let header = format!("Bearer {SECRET}").to_lowercase();
    let is_sent = |request: &String| request.to_lowercase().contains(&header);
    assert!(requests.iter().any(is_sent), "{requests:?}");
}
