//! Tokens and keys go to nobody whom they are not for: not into messages, and not to whoever listens.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::cluster::Cluster;
use super::node::{Driver, Node, SHOP};
use super::traffic::Call;
use crate::support::tracer::{TracerCommand, binary};

/// A part of each secret of these tests.
const SECRET: &str = "c2VjcmV0LXRva2Vu";

/// Kubeconfigs that cannot be parsed, or whose parts cannot be used, with secrets close to what is wrong.
fn broken_kubeconfigs() -> Vec<String> {
    let whole = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters:\n- name: c\n  cluster:\n    server: https://127.0.0.1:1\n\
         users:\n- name: u\n  user:\n    token: {SECRET}.token\n    client-key-data: {SECRET}a2V5\n    password: {SECRET}.password\n    username: u\n\
         contexts:\n- name: c\n  context: {{cluster: c, user: u}}\n"
    );
    let token = format!("    token: {SECRET}.token\n");
    let with = |more: &str| whole.replace(&token, &format!("{token}{more}"));
    vec![
        with("   badly: indented\n"),
        with("    token: twice\n"),
        with("\tx: a tab\n"),
        with("    exec: 7\n"),
        with("    \"never closed: x\n"),
        with("    client-certificate-data: '%%%'\n"),
        whole.replace(&token, &format!("    token: [{SECRET}.token]\n")),
        whole.replace(&token, &format!("    token: {SECRET}.token: {SECRET}\n")),
        whole.replace("contexts:", "contexts: 7\nx:"),
        // Base64 that is none, as a key and as a certificate.
        whole.replace("a2V5\n", "%%%\n"),
        format!(r#"{{"apiVersion":"v1","kind":"Config","users":[{{"name":"u","user":{{"token":"{SECRET}"}},}}]}}"#),
        format!(r#"{{"apiVersion":"v1","kind":"Config","users":[{{"name":"u","user":{{"token":{SECRET}}}}}]}}"#),
    ]
}

/// Runs the tool with this kubeconfig, and `check`. Returns all that it printed.
fn printed_with(node: &Node, kubeconfig: &str) -> String {
    let file = node.folder.join("kubeconfig");
    fs::write(&file, kubeconfig).unwrap();
    let flag = format!("--kubeconfig={}", file.display());
    let mut all = String::new();
    for args in [&[&*flag, "-v", "--duration", "2s", "-o", "none"][..], &["check", &flag]] {
        let output = Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap();
        all.push_str(&String::from_utf8_lossy(&output.stdout));
        all.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    all
}

pub fn kubeconfig_error_prints_no_secret() {
    let node = Node::new("kubeconfig");
    for kubeconfig in broken_kubeconfigs() {
        let printed = printed_with(&node, &kubeconfig);
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
        let printed = printed_with(&node, &kubeconfig.to_string());
        assert!(!printed.contains(SECRET), "{script}\nprints\n{printed}");
    }
}

/// Traces in a mount namespace where this service account is the pod's, until a kubelet without TLS was asked.
fn asked_of_kubelet(node: &Node, args: &[&str]) -> Vec<String> {
    const AS_IN_A_POD: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
        printf %s \"$0\" >/run/secrets/kubernetes.io/serviceaccount/token && exec \"$@\"";
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let cluster: Arc<Cluster> = Cluster::of([web.object()]);
    let flag = format!("--kubelet={}", cluster.kubelet());
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_IN_A_POD, SECRET]).arg(binary());
    let network = node.pod_network();
    let args = [&["-o", "json", "--ip", &network, &*flag], args].concat();
    let tracer = TracerCommand::from_command(command, &args).start();
    tracer.output.watch(web.netns);
    web.listen();
    // Its pod is not in any list until then: the kubelet has answered.
    super::node::until("the name of a pod", || {
        let call = Call::open(&web, &web);
        call.close();
        (!call.outbound(&tracer)["src"]["pod"].is_null()).then_some(())
    });
    cluster.end();
    tracer.interrupt();
    cluster.questions()
}

pub fn service_accounts_token_is_not_sent_without_tls() {
    let node = Node::new("token");
    let questions = asked_of_kubelet(&node, &[]);
    assert!(!questions.is_empty());
    let leaked = questions.iter().find(|question| question.contains(SECRET));
    assert_eq!(leaked, None);
    // Who names a token wants it sent.
    let token = node.folder.join("token");
    fs::write(&token, SECRET).unwrap();
    let questions = asked_of_kubelet(&node, &["--kubelet-token", token.to_str().unwrap()]);
    let sent = format!("Bearer {SECRET}").to_lowercase();
    let is_sent = |question: &String| question.to_lowercase().contains(&sent);
    assert!(questions.iter().any(is_sent), "{questions:?}");
}
