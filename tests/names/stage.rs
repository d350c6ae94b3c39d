//! The kubelet and the API server that trials ask: started when the first trial wants them, and stopped at the end.

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

/// How long to wait for what must come. Only a failing test ever waits this long.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// Every program that this suite starts.
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

/// Where the components are; or why they cannot be had.
pub fn components() -> Result<&'static Path, &'static str> {
    static FOUND: LazyLock<Result<PathBuf, String>> = LazyLock::new(|| components::find(PROGRAMS));
    FOUND.as_ref().map(PathBuf::as_path).map_err(String::as_str)
}

/// A folder of this run, with a short name: sockets are in it.
pub fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("kmn{}/{name}", std::process::id()))
}

/// The kubelet's.
pub fn kubelet() -> PathBuf {
    folder("k")
}

/// The API server's.
pub fn api_server() -> PathBuf {
    folder("a")
}

fn script(name: &str) -> Command {
    components::script(name, components().unwrap())
}

/// Starts a kubelet without an API server, with its static pods. No trial wants it once there is a cluster.
pub fn node() {
    static NODE: LazyLock<Result<String, String>> = LazyLock::new(|| {
        let mut up = script("kubelet-up.sh");
        up.arg(kubelet());
        run(up)
    });
    NODE.as_ref().unwrap();
}

/// Starts an API server, to which no kubelet has come yet.
fn start_api_server() {
    static API_SERVER: LazyLock<Result<String, String>> = LazyLock::new(|| {
        let mut up = script("apiserver-up.sh");
        up.arg(api_server());
        run(up)
    });
    API_SERVER.as_ref().unwrap();
}

/// Starts what a whole run wants sooner or later, while trials run that want none of it.
pub fn start_all() {
    thread::scope(|scope| {
        scope.spawn(node);
        scope.spawn(start_api_server);
    });
}

/// Starts an API server and a kubelet that is registered there, and waits for the pods of both.
pub fn cluster() {
    static CLUSTER: LazyLock<Result<String, String>> = LazyLock::new(|| {
        start_api_server();
        register_kubelet()?;
        // A scheduler that has found no node tries again only after seconds.
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

/// Starts a kubelet for the API server. The pods of the one before go on.
fn register_kubelet() -> Result<String, String> {
    let pid_file = kubelet().join("kubelet.pid");
    if pid_file.exists() {
        Killed::process(&kubelet(), "kubelet");
        fs::remove_file(pid_file).unwrap();
    }
    let mut up = script("kubelet-up.sh");
    up.args([kubelet(), api_server()])
        .env("KUBELET_AUTH", "webhook")
        .env("KUBELET_TLS", "ca");
    run(up)
}

/// Stops all that runs.
pub fn clear() {
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

/// What kubectl says, as an administrator.
pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments).unwrap()
}

/// What kubectl says, or why it fails.
pub fn try_kubectl(arguments: &[&str]) -> Result<String, String> {
    let mut kubectl = kubectl_command();
    kubectl.args(arguments);
    run(kubectl)
}

/// A kubectl of the administrator's that knows of no other server.
pub fn kubectl_command() -> Command {
    let mut kubectl = Command::new(components().unwrap().join("kubectl"));
    kubectl
        .arg("--kubeconfig")
        .arg(api_server().join("kubeconfig"))
        .arg("--cache-dir")
        .arg(folder("cache"));
    kubectl
}

/// A value of one object.
pub fn value(object: &[&str], path: &str) -> String {
    let path = format!("jsonpath={path}");
    kubectl(&[&["get", "-o", &path], object].concat())
}

/// A process that a script started.
fn pid(of: &Path, name: &str) -> Pid {
    let text = fs::read_to_string(of.join(format!("{name}.pid"))).unwrap();
    Pid::from_raw(text.trim().parse().unwrap())
}

/// Stands still as long as this lives.
pub struct Stopped(Pid);

impl Stopped {
    /// One that the script started in that folder.
    pub fn process(of: &Path, name: &str) -> Self {
        let pid = pid(of, name);
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A process that was killed, and can be started again as it was.
pub struct Killed {
    of: PathBuf,
    name: String,
    arguments: Vec<String>,
}

impl Killed {
    /// One that the script started in that folder.
    pub fn process(of: &Path, name: &str) -> Self {
        let pid = pid(of, name);
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let arguments = line.split(|&byte| byte == 0).filter(|argument| !argument.is_empty());
        let arguments = arguments
            .map(|argument| String::from_utf8(argument.to_vec()).unwrap())
            .collect();
        kill(pid, Signal::SIGKILL).unwrap();
        wait_until("the killed process to be gone", || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            state.is_empty() || state.contains(") Z ")
        });
        Self {
            of: of.to_owned(),
            name: name.to_owned(),
            arguments,
        }
    }

    /// Starts it again.
    #[expect(
        clippy::zombie_processes,
        reason = "it goes on as the one before did, until the script that ends both"
    )]
    pub fn revive(self) {
        let log = fs::OpenOptions::new()
            .append(true)
            .open(self.of.join(format!("{}.log", self.name)));
        let log = log.unwrap();
        let mut command = Command::new(&self.arguments[0]);
        command
            .args(&self.arguments[1..])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.process_group(0).spawn().unwrap();
        fs::write(self.of.join(format!("{}.pid", self.name)), child.id().to_string()).unwrap();
    }
}

/// Looks time and again until it is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "waited for {what} for {} s",
            PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_millis(50));
    }
}
