//! `kmesh-trace nodes` with a real API server and kubelet, as a user who has only the rights of `deploy/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::Row;
use crate::components;
use crate::fixture::{self, api_server, kubectl, kubelet, value};
use crate::node::write_file;
use crate::support::tracer::{Tracer, TracerCommand, binary};

/// Each starts a pod on the node. They run one after another, so that a test knows which tracers are its own.
pub const SEQUENTIAL: &[Row] = &[
    ("nodes::traffic_of_pods_has_both_names", traffic_of_pods_has_both_names),
    ("nodes::both_ends_are_joined", both_ends_are_joined),
    ("nodes::table_shows_the_workloads", table_shows_the_workloads),
    (
        "nodes::program_is_copied_into_any_image",
        program_is_copied_into_any_image,
    ),
    ("nodes::limits_end_the_run", limits_end_the_run),
    ("nodes::each_missing_right_is_named", each_missing_right_is_named),
    (
        "nodes::node_that_cannot_be_traced_is_one_line",
        node_that_cannot_be_traced_is_one_line,
    ),
    ("nodes::node_that_dies_is_one_line", node_that_dies_is_one_line),
    (
        "nodes::command_without_heartbeats_leaves_no_tracer",
        command_without_heartbeats_leaves_no_tracer,
    ),
    (
        "nodes::killed_command_leaves_no_tracer",
        killed_command_leaves_no_tracer,
    ),
];

const NAMESPACE: &str = "kmesh-trace";
const IMAGE: &str = "kmesh.local/kmesh-trace:1";
/// The longest time that a tracer may run after its command was killed.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(15);
/// The time after which a tracer ends without a heartbeat, and the time between heartbeats.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(15);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// Starts the cluster with the roles of `deploy/` and the images, and returns the kubeconfig of a user who has only
/// these roles.
fn kubeconfig() -> &'static str {
    static READY: LazyLock<String> = LazyLock::new(|| {
        fixture::start_cluster();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes");
        kubectl(&["create", "namespace", NAMESPACE]);
        for file in ["rbac-cluster.yaml", "rbac-nodes.yaml"] {
            kubectl(&["apply", "-f", deploy.join(file).to_str().unwrap()]);
        }
        let folder = fixture::folder("image");
        let mut image = components::script("tool-image.sh", fixture::components().unwrap());
        image.arg(&folder).arg(binary());
        components::run(image).unwrap();
        let mut import = Command::new(fixture::components().unwrap().join("ctr"));
        import.arg("-a").arg(kubelet().join("containerd.sock"));
        import
            .args(["-n", "k8s.io", "images", "import"])
            .arg(folder.join("tool-image.tar"));
        components::run(import).unwrap();
        kubeconfig_as("alice", "[kmesh-trace-users, system:authenticated]")
    });
    &READY
}

/// Writes a kubeconfig that impersonates a user with these groups.
fn kubeconfig_as(user: &str, groups: &str) -> String {
    let admin = fs::read_to_string(api_server().join("kubeconfig")).unwrap();
    let with_user = format!("user: {{as: {user}, as-groups: {groups}, ");
    assert!(admin.contains("user: {"), "{admin}");
    write_file(&format!("kubeconfig-{user}"), &admin.replace("user: {", &with_user))
}

/// Returns the arguments that trace the node, and those of the trace.
fn arguments<'a>(more: &[&'a str], trace: &[&'a str]) -> Vec<&'a str> {
    let nodes = ["nodes", "--kubeconfig", kubeconfig(), "--pod-namespace", NAMESPACE];
    [&nodes[..], more, &["--"], trace].concat()
}

fn tool_image() -> [&'static str; 4] {
    ["--image", IMAGE, "--image-pull-policy", "Never"]
}

fn start(more: &[&str], trace: &[&str]) -> (Tracer, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let command = TracerCommand::from_command(Command::new(binary()), &arguments(more, trace));
    let tracer = command
        .on_line({
            let lines = Arc::clone(&lines);
            move |line| lines.lock().unwrap().push(String::from_utf8_lossy(line).into_owned())
        })
        .spawn();
    (tracer, lines)
}

fn records(lines: &Mutex<Vec<String>>) -> Vec<Value> {
    let lines = lines.lock().unwrap();
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn node_name() -> String {
    value(&["nodes"], "{.items[0].metadata.name}")
}

/// A pod of the Deployment `client` requests a page from a pod of the Deployment `web`. Returns the address of the
/// latter.
fn request_page() -> String {
    let ip = value(&["-n", "shop", "pod", "-l", "app=web"], "{.items[0].status.podIP}");
    let url = format!("http://{ip}:8080/");
    let wget = ["-n", "shop", "exec", "deploy/client", "--", "wget", "-q", "-O-", &url];
    assert_eq!(kubectl(&wget).trim(), "ok");
    ip
}

/// Returns the tracers that pods run.
fn tracers() -> Vec<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_tracer = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).nth(1) == Some(b"node-trace")
    };
    pids.filter(is_tracer).map(Pid::from_raw).collect()
}

fn pods() -> String {
    kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "name"])
}

/// Interrupts the command, which must succeed and leave nothing.
fn interrupt(tracer: Tracer) -> Vec<String> {
    tracer.signal(Signal::SIGINT);
    let exit = tracer.wait_within(fixture::TEST_TIMEOUT);
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    assert_eq!(pods(), "", "{:?}", exit.stderr);
    assert_eq!(tracers(), []);
    exit.stderr
}

fn traffic_of_pods_has_both_names() {
    let (tracer, lines) = start(&tool_image(), &["-o", "json", "--to-port", "8080"]);
    tracer.wait_stderr(&format!("kmesh-trace: tracing {}", node_name()));
    let ip = request_page();
    let is_named = |record: &Value, direction: &str| {
        let name = |end: &str| record[end]["pod"].as_str().unwrap_or_default().to_owned();
        record["direction"] == direction
            && record["dst"]["ip"] == *ip
            && name("src").starts_with("client-")
            && name("dst").starts_with("web-")
    };
    fixture::wait_until("both ends have both names", || {
        let records = records(&lines);
        ["outbound", "inbound"]
            .iter()
            .all(|direction| records.iter().any(|record| is_named(record, direction)))
    });
    for record in records(&lines) {
        assert_eq!(record["node"], node_name(), "{record}");
        assert_eq!(record["dst"]["port"], 8080, "the filter acts: {record}");
    }
    interrupt(tracer);
    let summary = records(&lines).pop().unwrap();
    assert_eq!(
        (&summary["type"], &summary["lost_records"]),
        (&"summary".into(), &0.into()),
        "{summary}"
    );
}

fn both_ends_are_joined() {
    let (tracer, lines) = start(&tool_image(), &["-o", "json", "--join", "--to-port", "8080"]);
    tracer.wait_stderr("kmesh-trace: tracing");
    request_page();
    fixture::wait_until("both ends are one line", || {
        let is_pair = |line: &Value| {
            let pod = |end: &str, of: &str| line[end][of]["pod"].as_str().unwrap_or_default().to_owned();
            line["type"] == "pair"
                && pod("client", "src").starts_with("client-")
                && pod("server", "dst").starts_with("web-")
                && line["undelivered"]["sent"] == 0
        };
        records(&lines).iter().any(is_pair)
    });
    interrupt(tracer);
}

fn table_shows_the_workloads() {
    let (tracer, lines) = start(&tool_image(), &["-o", "table", "--by", "workload", "--interval", "1s"]);
    tracer.wait_stderr("kmesh-trace: tracing");
    request_page();
    fixture::wait_until("a block of the table has the request", || {
        let lines = lines.lock().unwrap();
        lines
            .iter()
            .any(|line| line.contains("shop/client") && line.contains("shop/web"))
    });
    interrupt(tracer);
}

fn program_is_copied_into_any_image() {
    let image = [
        "--copy-binary",
        "--image",
        "kmesh.local/shell:1",
        "--image-pull-policy",
        "Never",
    ];
    let (tracer, lines) = start(&image, &["-o", "json", "--to-port", "8080"]);
    tracer.wait_stderr("kmesh-trace: tracing");
    request_page();
    fixture::wait_until("the request has its records", || records(&lines).len() >= 2);
    interrupt(tracer);
}

fn limits_end_the_run() {
    let (tracer, _) = start(&tool_image(), &["-o", "json", "--duration", "1s"]);
    assert_eq!(tracer.wait_within(fixture::TEST_TIMEOUT).status.code(), Some(0));
    let (tracer, lines) = start(&tool_image(), &["-o", "json", "--to-port", "8080", "--count", "1"]);
    tracer.wait_stderr("kmesh-trace: tracing");
    request_page();
    assert_eq!(tracer.wait_within(fixture::TEST_TIMEOUT).status.code(), Some(0));
    let records = records(&lines);
    let connections = records.iter().filter(|line| line["type"] == "conn");
    assert_eq!(connections.count(), 1, "{records:?}");
    assert_eq!((pods(), tracers()), (String::new(), Vec::new()));
}

/// Runs `nodes` until it exits. Returns its status and standard error.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut tool = Command::new(binary());
    let output = tool.args(arguments).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn each_missing_right_is_named() {
    kubeconfig();
    let run_as = |user: &str| {
        let kubeconfig = kubeconfig_as(user, "[system:authenticated]");
        let arguments = ["nodes", "--kubeconfig", &kubeconfig, "--pod-namespace", NAMESPACE];
        let (status, error) = run(&[&arguments[..], &tool_image()].concat());
        assert_eq!(status, Some(1), "{error}");
        error
    };
    let error = run_as("nobody");
    let in_namespace = |right: &str| format!("{right} in namespace {NAMESPACE}");
    for right in [
        "create pods",
        "get pods",
        "list pods",
        "delete pods",
        "get pods/exec",
        "create pods/exec",
    ] {
        assert!(error.contains(&in_namespace(right)), "{right}: {error}");
    }
    assert!(error.contains("list nodes in the whole cluster"), "{error}");
    assert!(error.contains("rbac-nodes.yaml"), "{error}");
    // Everything except one right.
    let role = [
        "-n",
        NAMESPACE,
        "create",
        "role",
        "no-delete",
        "--verb=create,get,list",
        "--resource=pods,pods/exec",
    ];
    kubectl(&role);
    kubectl(&[
        "-n",
        NAMESPACE,
        "create",
        "rolebinding",
        "no-delete",
        "--role=no-delete",
        "--user=bob",
    ]);
    kubectl(&[
        "create",
        "clusterrolebinding",
        "bob",
        "--clusterrole=kmesh-trace-cluster",
        "--user=bob",
    ]);
    let expected = format!("kmesh-trace: missing permissions: {}\n", in_namespace("delete pods"));
    // The server applies a new role with a delay.
    fixture::wait_until("only one right is missing", || run_as("bob").starts_with(&expected));
    assert_eq!(pods(), "", "nothing was created");
}

/// Runs a node that has no kubelet beside the real one.
struct GhostNode;

impl GhostNode {
    fn new() -> Self {
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: ghost, labels: {kubernetes.io/os: linux}}\n";
        kubectl(&["apply", "-f", &write_file("ghost.yaml", node)]);
        Self
    }
}

impl Drop for GhostNode {
    fn drop(&mut self) {
        _ = fixture::try_kubectl(&["delete", "node", "ghost"]);
        _ = fixture::try_kubectl(&[
            "-n",
            NAMESPACE,
            "delete",
            "pods",
            "--all",
            "--force",
            "--grace-period=0",
        ]);
    }
}

fn node_that_cannot_be_traced_is_one_line() {
    // busybox has no tool: the container cannot start.
    let image = ["--image", "kmesh.local/busybox:1", "--image-pull-policy", "Never"];
    let (status, error) = run(&arguments(&image, &["-o", "json"]));
    assert_eq!(status, Some(1), "{error}");
    let of_node = |error: &str| {
        let prefix = format!("kmesh-trace: node {}: ", node_name());
        error
            .lines()
            .filter(|line| line.starts_with(&prefix))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(of_node(&error).len(), 1, "{error}");
    assert!(of_node(&error)[0].contains("the pod"), "{error}");
    assert_eq!(pods(), "");
    // A slow node does not hold the others back.
    let ghost = GhostNode::new();
    let (tracer, lines) = start(&tool_image(), &["-o", "json", "--to-port", "8080"]);
    tracer.wait_stderr("kmesh-trace: node ghost: still waiting for the pod");
    fixture::wait_until("the other node is traced", || {
        request_page();
        records(&lines).len() >= 2
    });
    tracer.signal(Signal::SIGINT);
    let exit = tracer.wait_within(fixture::TEST_TIMEOUT);
    assert_eq!(exit.status.code(), Some(0), "{:?}", exit.stderr);
    drop(ghost);
}

/// SIGTERM ends the tracer in order, but the command did not ask for it.
fn node_that_dies_is_one_line() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (tracer, _) = start(&tool_image(), &["-o", "json"]);
        tracer.wait_stderr("kmesh-trace: tracing");
        let tracers = tracers();
        assert_eq!(tracers.len(), 1);
        kill(tracers[0], signal).unwrap();
        check_ended_stream(tracer);
    }
}

/// The command fails with one line about the stream of its node.
fn check_ended_stream(tracer: Tracer) {
    let exit = tracer.wait_within(fixture::TEST_TIMEOUT);
    assert_eq!(exit.status.code(), Some(1), "{:?}", exit.stderr);
    let ended = format!("kmesh-trace: node {}: the stream ended: ", node_name());
    let lines = exit.stderr.iter().filter(|line| line.starts_with(&ended));
    assert_eq!(lines.count(), 1, "{:?}", exit.stderr);
    assert_eq!(pods(), "");
}

/// A command that is stopped holds its connections open and sends no heartbeat, as one behind a broken network does.
fn command_without_heartbeats_leaves_no_tracer() {
    let (tracer, _) = start(&tool_image(), &["-o", "json"]);
    tracer.wait_stderr("kmesh-trace: tracing");
    assert_eq!(tracers().len(), 1);
    tracer.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    fixture::wait_until("no tracer runs", || tracers().is_empty());
    // The last heartbeat was up to five seconds ago.
    let elapsed = stopped.elapsed();
    assert!(
        elapsed > HEARTBEAT_TIMEOUT - HEARTBEAT_INTERVAL,
        "the tracer ended after {elapsed:?}"
    );
    println!(
        "the tracer ended {} ms after its command was stopped",
        elapsed.as_millis()
    );
    tracer.signal(Signal::SIGCONT);
    check_ended_stream(tracer);
}

fn killed_command_leaves_no_tracer() {
    let (tracer, _) = start(&tool_image(), &["-o", "json"]);
    tracer.wait_stderr("kmesh-trace: tracing");
    assert_eq!(tracers().len(), 1);
    tracer.signal(Signal::SIGKILL);
    let killed = Instant::now();
    tracer.wait_within(fixture::TEST_TIMEOUT);
    fixture::wait_until("no tracer runs", || tracers().is_empty());
    let elapsed = killed.elapsed();
    assert!(elapsed < ORPHAN_TIMEOUT, "a tracer ran for {elapsed:?}");
    println!(
        "the tracer ended {} ms after its command was killed",
        elapsed.as_millis()
    );
    // The pod waits until its deadline, unless its process ends before.
    let pod = pods().trim().to_owned();
    assert!(pod.starts_with("pod/kmesh-trace-"), "{pod}");
    let clean = || {
        run(&[
            "nodes",
            "--clean",
            "--kubeconfig",
            kubeconfig(),
            "--pod-namespace",
            NAMESPACE,
        ])
    };
    assert_eq!(clean().0, Some(0));
    assert_eq!(pods().trim(), pod, "a pod that runs stays");
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let folder: PathBuf = process.path();
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        if line == b"/kmesh-trace\0node-wait\0" {
            let pid = process.file_name().to_str().unwrap().parse().unwrap();
            kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        }
    }
    let phase = || value(&["-n", NAMESPACE, &pod], "{.status.phase}");
    fixture::wait_until("the pod has finished", || phase() == "Succeeded");
    let (status, text) = clean();
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("deleted 1 finished pod"), "{text}");
    fixture::wait_until("the pod is gone", || pods().is_empty());
}
