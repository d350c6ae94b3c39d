//! What runs meanwhile: nothing, a kubelet by itself, or an API server with a kubelet.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long to wait for what must come. Only a failing test ever waits this long.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Which of them run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Running {
    Nothing,
    Node,
    Cluster,
}

static RUNNING: Mutex<Running> = Mutex::new(Running::Nothing);

/// Where the components are; or why they cannot be had.
pub fn components() -> Result<&'static Path, &'static str> {
    static FOUND: LazyLock<Result<PathBuf, String>> = LazyLock::new(find);
    FOUND.as_ref().map(PathBuf::as_path).map_err(String::as_str)
}

fn find() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".to_owned());
    }
    let found = match std::env::var_os("K8S_BIN") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/k8s/prepare.sh");
            if !shared.exists() {
                return Err("no kubelet and no API server here: K8S_BIN names a folder with them".to_owned());
            }
            run(Command::new(shared))?;
            let root = std::env::var_os("K8S_ROOT").map_or_else(|| PathBuf::from("/tmp/k8s-root"), PathBuf::from);
            root.join("bin")
        }
    };
    let lacking = ["kubelet", "kube-apiserver", "containerd", "runc", "etcd"].map(|program| found.join(program));
    match lacking.iter().find(|program| !program.exists()) {
        Some(program) => Err(format!("no {}", program.display())),
        None => Ok(found),
    }
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
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/support/k8s")
        .join(name);
    let mut command = Command::new(path);
    command.env("K8S_BIN", components().unwrap());
    command
}

/// Runs a command; its output on both streams when it fails.
fn run(mut command: Command) -> Result<String, String> {
    // What it starts in the background would hold a pipe open: a file is read when the command has ended.
    let path = std::env::temp_dir().join(format!("kmn{}.out", std::process::id()));
    let output = fs::File::create(&path).map_err(|error| error.to_string())?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status();
    let text = fs::read_to_string(&path).unwrap_or_default();
    match status {
        Ok(status) if status.success() => Ok(text),
        other => Err(format!("{command:?}: {other:?}: {text}")),
    }
}

/// A kubelet without an API server, and its static pods.
pub fn node() {
    change(Running::Node, || {
        let mut up = script("kubelet-up.sh");
        up.arg(kubelet());
        run(up).unwrap();
    });
}

/// An API server, a kubelet that is registered there, and the pods of both.
pub fn cluster() {
    change(Running::Cluster, || {
        let mut up = script("apiserver-up.sh");
        up.arg(api_server());
        run(up).unwrap();
        let mut up = script("kubelet-up.sh");
        up.args([kubelet(), api_server()])
            .env("KUBELET_AUTH", "webhook")
            .env("KUBELET_TLS", "ca");
        run(up).unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/support/k8s/demo.yaml");
        kubectl(&["apply", "-f", demo.to_str().unwrap()]);
        for running in [
            "deployment/web",
            "deployment/client",
            "daemonset/agent",
            "statefulset/db",
        ] {
            let namespace = if running == "daemonset/agent" {
                "kube-system"
            } else {
                "shop"
            };
            kubectl(&["-n", namespace, "rollout", "status", "--timeout=90s", running]);
        }
        kubectl(&[
            "-n",
            "shop",
            "wait",
            "--timeout=90s",
            "--for=condition=complete",
            "job/once",
        ]);
        kubectl(&["wait", "--timeout=90s", "--for=condition=ready", "pod/bare"]);
    });
}

/// Stops all that runs.
pub fn clear() {
    change(Running::Nothing, || ());
    _ = fs::remove_dir_all(folder(""));
}

fn change(to: Running, start: impl FnOnce()) {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if *running == to {
        return;
    }
    if *running != Running::Nothing {
        let mut down = script("kubelet-down.sh");
        down.arg(kubelet()).env("PURGE", "1");
        _ = run(down);
    }
    if *running == Running::Cluster {
        let mut down = script("apiserver-down.sh");
        down.arg(api_server()).env("PURGE", "1");
        _ = run(down);
    }
    fs::create_dir_all(folder("")).unwrap();
    // What has begun to start must be stopped as well.
    *running = to;
    start();
}

/// What kubectl says, as an administrator.
pub fn kubectl(arguments: &[&str]) -> String {
    try_kubectl(arguments).unwrap()
}

/// What kubectl says, or why it fails.
pub fn try_kubectl(arguments: &[&str]) -> Result<String, String> {
    let mut kubectl = Command::new(components().unwrap().join("kubectl"));
    kubectl
        .arg("--kubeconfig")
        .arg(api_server().join("kubeconfig"))
        .args(arguments);
    run(kubectl)
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
