//! The kubelet and the API server that tests use. They start when the first test needs them, and stop at the end.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::components::{self, run};

/// How long to wait for an event that must come. Only a failing test waits this long.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(600);

/// The programs that this suite starts.
const PROGRAMS: &[&str] = &[
    "busybox",
    "containerd",
    "ctr",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
    "runc",
];

/// Returns the folder with the programs, or why there is none.
pub fn components() -> Result<&'static Path, &'static str> {
    static FOUND: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| components::find(PROGRAMS));
    FOUND.as_ref().map(PathBuf::as_path).map_err(String::as_str)
}

/// Returns the path of a file or folder of this run. It is short, since sockets are in it.
pub fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kmn{}/{name}", std::process::id()))
}

/// Returns the kubelet's folder.
pub fn kubelet() -> PathBuf {
    folder("k")
}

/// Returns the API server's folder.
pub fn api_server() -> PathBuf {
    folder("a")
}

fn script(name: &str) -> Command {
    components::script(name, components().unwrap())
}

/// Starts a kubelet with static pods and without an API server. No test needs it after [`start_cluster`].
pub fn start_node() {
    static NODE: LazyLock<Result<String, String>> = LazyLock::new(|| {
        let mut up = script("kubelet-up.sh");
        up.arg(kubelet());
        run(up)
    });
    NODE.as_ref().unwrap();
}

/// Starts an API server without a kubelet.
fn start_api_server() {
    static API_SERVER: LazyLock<Result<String, String>> = LazyLock::new(|| {
        let mut up = script("apiserver-up.sh");
        up.arg(api_server());
        run(up)
    });
    API_SERVER.as_ref().unwrap();
}

/// Starts the kubelet and the API server in the background of the tests that need neither.
pub fn start_all() {
    thread::scope(|scope| {
        scope.spawn(start_node);
        scope.spawn(start_api_server);
    });
}

/// Starts an API server and a kubelet that is registered there, and waits for all pods.
pub fn start_cluster() {
    static CLUSTER: LazyLock<Result<String, String>> = LazyLock::new(|| {
        start_api_server();
        register_kubelet()?;
        // A scheduler that finds no node retries only after seconds.
        try_kubectl(&["wait", "--timeout=600s", "--for=condition=ready", "node", "--all"])?;
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/k8s/demo.yaml");
        try_kubectl(&["create", "-f", demo.to_str().unwrap()])?;
        for (namespace, workload) in [
            ("shop", "deployment/web"),
            ("shop", "deployment/client"),
            ("shop", "statefulset/db"),
            ("kube-system", "daemonset/agent"),
        ] {
            try_kubectl(&["-n", namespace, "rollout", "status", "--timeout=600s", workload])?;
        }
        let wait = ["wait", "--timeout=600s"];
        try_kubectl(&[&["-n", "shop"], &wait[..], &["--for=condition=complete", "job/once"]].concat())?;
        try_kubectl(&[&wait[..], &["--for=condition=ready", "pod/bare"]].concat())
    });
    CLUSTER.as_ref().unwrap();
}

/// Restarts the kubelet with the API server. Its static pods go on.
fn register_kubelet() -> Result<String, String> {
    let pid_file = kubelet().join("kubelet.pid");
    if pid_file.exists() {
        KilledProcess::new(&kubelet(), "kubelet");
        fs::remove_file(pid_file).unwrap();
    }
    let mut up = script("kubelet-up.sh");
    up.args([kubelet(), api_server()])
        .env("KUBELET_AUTH", "webhook")
        // The API server connects to the node's address for an exec.
        .env("KUBELET_ADDRESS", "0.0.0.0")
        .env("KUBELET_TLS", "ca");
    run(up)
}

/// Stops all programs and removes their files.
pub fn stop_all() {
    for (name, folder) in [("kubelet-down.sh", kubelet()), ("apiserver-down.sh", api_server())] {
        if folder.exists() {
            let mut down = script(name);
            down.arg(folder).env("PURGE", "1");
            if let Err(error) = run(down) {
                println!("{error}");
            }
        }
    }
    _ = fs::remove_dir_all(folder(""));
}

/// Runs kubectl as the administrator, which must succeed.
pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments).unwrap()
}

/// Runs kubectl as the administrator. Returns its output, or why it failed.
pub fn try_kubectl(arguments: &[&str]) -> Result<String, String> {
    let mut kubectl = kubectl_command();
    kubectl.args(arguments);
    run(kubectl)
}

/// Returns a kubectl command with the administrator's kubeconfig alone.
pub fn kubectl_command() -> Command {
    let mut kubectl = Command::new(components().unwrap().join("kubectl"));
    kubectl
        .arg("--kubeconfig")
        .arg(api_server().join("kubeconfig"))
        .arg("--cache-dir")
        .arg(folder("cache"));
    kubectl
}

/// Returns the value of an object at this JSONPath.
pub fn value(object: &[&str], path: &str) -> String {
    let path = format!("jsonpath={path}");
    kubectl(&[&["get", "-o", &path], object].concat())
}

/// Returns the pid of a process that a script started in this folder.
fn pid(folder: &Path, name: &str) -> Pid {
    let text = fs::read_to_string(folder.join(format!("{name}.pid"))).unwrap();
    Pid::from_raw(text.trim().parse().unwrap())
}

/// A process that is stopped (SIGSTOP). Dropping this continues it.
pub struct StoppedProcess(Pid);

impl StoppedProcess {
    /// Stops a process that a script started in this folder.
    pub fn new(folder: &Path, name: &str) -> Self {
        let pid = pid(folder, name);
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for StoppedProcess {
    fn drop(&mut self) {
        _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A process that was killed, and can be restarted.
pub struct KilledProcess {
    folder: PathBuf,
    name: String,
    arguments: Vec<String>,
}

impl KilledProcess {
    /// Kills a process that a script started in this folder.
    pub fn new(folder: &Path, name: &str) -> Self {
        let pid = pid(folder, name);
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let arguments = line.split(|&byte| byte == 0).filter(|argument| !argument.is_empty());
        let arguments = arguments
            .map(|argument| String::from_utf8(argument.to_vec()).unwrap())
            .collect();
        kill(pid, Signal::SIGKILL).unwrap();
        wait_until("the killed process has ended", || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        });
        Self {
            folder: folder.to_owned(),
            name: name.to_owned(),
            arguments,
        }
    }

    /// Starts the process again with the same arguments.
    #[expect(clippy::zombie_processes, reason = "the script that stops the program ends it")]
    pub fn restart(self) {
        let log = fs::OpenOptions::new()
            .append(true)
            .open(self.folder.join(format!("{}.log", self.name)));
        let log = log.unwrap();
        let mut command = Command::new(&self.arguments[0]);
        command
            .args(&self.arguments[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.process_group(0).spawn().unwrap();
        fs::write(self.folder.join(format!("{}.pid", self.name)), child.id().to_string()).unwrap();
    }
}

/// Polls a condition until it is met.
pub fn wait_until(condition: &str, mut is_met: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !is_met() {
        assert!(
            Instant::now() < deadline,
            "timeout: waited {} s until {condition}",
            TEST_TIMEOUT.as_secs()
        );
        thread::sleep(Duration::from_millis(50));
    }
}
