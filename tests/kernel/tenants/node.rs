//! A node with pods of two tenants, in the calling thread's network namespace, and tracers of the node.

use std::fs;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::cluster::NODE_NAME;
use crate::support::actor::Actor;
use crate::support::memory_limit::MemoryLimit;
use crate::support::tracer::{Totals, Tracer, TracerCommand, binary};
use crate::support::{net, node, scratch_dir, test_timeout};

/// The namespace of the tenant whose records and names must stay right.
pub const VICTIM_NAMESPACE: &str = "shop";
/// The namespace of the tenant that attacks. It sorts before the victim's.
pub const ATTACKER_NAMESPACE: &str = "mall";
/// The port of each server.
pub const PORT: u16 = 8080;
/// The port of each Service.
pub const SERVICE_PORT: u16 = 80;
/// The node port of the victim's Service.
pub const NODE_PORT: u16 = 30080;

/// The cgroup driver of a kubelet, which decides the names of its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Container cgroups are `kubepods/burstable/pod<uid>/<id>`.
    Cgroupfs,
    /// Container cgroups are `kubepods.slice/kubepods-burstable.slice/…`.
    Systemd,
}

impl CgroupDriver {
    /// Returns the path of a container's cgroup, relative to the kubelet's root cgroup.
    pub fn container(self, uid: &str, container_id: &str) -> PathBuf {
        match self {
            Self::Cgroupfs => format!("kubepods/burstable/pod{uid}/{container_id}").into(),
            Self::Systemd => {
                let escaped = uid.replace('-', "_");
                let pod = format!("kubepods-burstable-pod{escaped}.slice");
                let container = format!("cri-containerd-{container_id}.scope");
                format!("kubepods.slice/kubepods-burstable.slice/{pod}/{container}").into()
            }
        }
    }
}

/// The node. No two nodes of a run share an address.
pub struct Node {
    /// The cgroup that contains the kubelets' root cgroups.
    pub cgroups: PathBuf,
    /// The directory for the test's files.
    pub folder: PathBuf,
    number: u32,
    pods: AtomicU32,
}

/// A pod with one container that runs one process.
pub struct Pod {
    pub actor: Actor,
    /// The namespace in Kubernetes.
    pub namespace: String,
    pub name: String,
    pub ip: String,
    pub uid: String,
    pub container_id: String,
    /// The cgroup of the container.
    pub cgroup: PathBuf,
    /// The inode of the network namespace.
    pub netns: u64,
}

impl Node {
    /// Creates a node in the calling thread's network namespace.
    pub fn new(name: &str) -> Self {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let number = CREATED.fetch_add(1, Ordering::Relaxed);
        let unique = format!("kmesh-trace-test-{}-{name}", std::process::id());
        let node = Self {
            cgroups: node::cgroup2().join(&unique),
            folder: scratch_dir().join(&unique),
            number,
            pods: AtomicU32::new(0),
        };
        fs::create_dir_all(&node.folder).unwrap();
        fs::create_dir_all(&node.cgroups).unwrap();
        net::set_sysctl("net.ipv4.ip_forward", "1");
        // By default, a Kubernetes node forwards packets with a spoofed source address.
        net::set_sysctl("net.ipv4.conf.all.rp_filter", "0");
        net::set_sysctl("net.ipv4.conf.default.rp_filter", "0");
        net::run("ip", &["addr", "add", &format!("{}/32", node.ip()), "dev", "lo"]);
        node
    }

    /// Returns the node's own address.
    pub fn ip(&self) -> String {
        format!("10.9.{}.1", self.number)
    }

    /// Returns the cluster IP of the victim's Service.
    pub fn cluster_ip(&self) -> String {
        format!("10.96.{}.1", self.number)
    }

    /// Returns the address of the node's pod network with this last byte.
    pub fn pod_ip(&self, last: u32) -> String {
        format!("10.{}.{}.{last}", 32 + self.number / 256, self.number % 256)
    }

    /// Returns the network of the node's pods.
    pub fn pod_network(&self) -> String {
        format!("{}/24", self.pod_ip(0))
    }

    /// Starts a pod in a network namespace with its own address, and in a cgroup as a kubelet names it.
    pub fn pod(&self, driver: CgroupDriver, namespace: &str, name: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let ip = self.pod_ip(number);
        let pod = self.describe_pod(self.actor_with_address(&ip), driver, namespace, name, &ip);
        pod.start();
        pod
    }

    /// Starts a process in a network namespace with this address, to which the node has a route.
    pub fn actor_with_address(&self, ip: &str) -> Actor {
        // Each veth has another name, because the kernel removes the veth of an ended pod later.
        static CREATED: AtomicU32 = AtomicU32::new(0);
        node::actor_with_veth(&CREATED.fetch_add(1, Ordering::Relaxed).to_string(), ip)
    }

    /// Returns a pod of this process. [`Pod::start`] moves the process into the pod's cgroup.
    pub fn describe_pod(&self, actor: Actor, driver: CgroupDriver, namespace: &str, name: &str, ip: &str) -> Pod {
        let (uid, container_id) = new_ids();
        Pod {
            cgroup: self.cgroups.join(driver.container(&uid, &container_id)),
            netns: node::netns_of(&actor),
            actor,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ip: ip.to_owned(),
            uid,
            container_id,
        }
    }

    /// Returns the node's object of the API server.
    pub fn object(&self) -> Value {
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE_NAME},
            "status": {"addresses": [{"type": "InternalIP", "address": self.ip()}]}})
    }

    /// Returns the victim's Service, which selects the pods with the label `app: db`.
    pub fn service(&self) -> Value {
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "database", "namespace": VICTIM_NAMESPACE},
            "spec": {"clusterIP": self.cluster_ip(), "clusterIPs": [self.cluster_ip()], "selector": {"app": "db"},
                "ports": [{"port": SERVICE_PORT, "targetPort": PORT, "nodePort": NODE_PORT}]}})
    }

    /// Redirects the victim's Service and its node port to `server`, with DNAT rules like kube-proxy's.
    pub fn add_service_rules(&self, server: &Pod) {
        let ip = self.cluster_ip();
        // The kernel looks up a route before DNAT, so it needs a route to the cluster IP.
        net::run(
            "ip",
            &["route", "add", &format!("{ip}/32"), "dev", "lo", "src", &self.ip()],
        );
        net::run("nft", &["add table ip kube-proxy"]);
        for hook in ["prerouting", "output"] {
            let chain = format!("add chain ip kube-proxy {hook} {{ type nat hook {hook} priority -100; }}");
            net::run("nft", &[&chain]);
            for (destination, port) in [(ip.clone(), SERVICE_PORT), (self.ip(), NODE_PORT)] {
                let to = format!("{}:{PORT}", server.ip);
                let rule =
                    format!("add rule ip kube-proxy {hook} ip daddr {destination} tcp dport {port} dnat to {to}");
                net::run("nft", &[&rule]);
            }
        }
    }

    /// Starts a tracer of the connections of the node's pods.
    pub fn trace(&self, args: &[&str]) -> NodeTracer {
        self.trace_with_limit(None, args)
    }

    /// Starts a tracer of the connections of the node's pods, with a memory limit if there is one.
    pub fn trace_with_limit(&self, limit: Option<&MemoryLimit>, args: &[&str]) -> NodeTracer {
        let unshare = PathBuf::from("unshare");
        let mut command = limit.map_or_else(|| Command::new(&unshare), |limit| limit.command(&unshare));
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(binary())
            .env("NODE_NAME", NODE_NAME);
        let network = self.pod_network();
        let args = [&["-v", "-o", "json", "--ip", &network], args].concat();
        NodeTracer(TracerCommand::from_command(command, &args).start())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.folder);
        node::remove_cgroup(&self.cgroups);
    }
}

/// Returns the UID of a new pod, and the id of its container.
pub fn new_ids() -> (String, String) {
    static CREATED: AtomicU32 = AtomicU32::new(1);
    let (process, number) = (std::process::id(), CREATED.fetch_add(1, Ordering::Relaxed));
    (
        format!("{process:08x}-0000-4000-8000-{number:012x}"),
        format!("{process:056x}{number:08x}"),
    )
}

impl Pod {
    /// Moves the process into its container's cgroup, as a container runtime does.
    pub fn start(&self) {
        node::move_into(&self.cgroup, &self.actor);
    }

    /// Makes the pod's process the process of another pod, whose UID and container id are new. `announce` runs before
    /// the process moves into the cgroup of the new pod.
    pub fn become_new_pod(&mut self, node: &Node, announce: impl FnOnce(&Self)) {
        (self.uid, self.container_id) = new_ids();
        let container = CgroupDriver::Cgroupfs.container(&self.uid, &self.container_id);
        let old_cgroup = std::mem::replace(&mut self.cgroup, node.cgroups.join(container));
        announce(self);
        self.start();
        node::remove_cgroup(old_cgroup.parent().unwrap());
    }

    /// Returns the pod's object, as sources list it.
    pub fn object(&self) -> Value {
        let app = self.name.trim_end_matches("-0");
        json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": {"app": app}},
            "spec": {"nodeName": NODE_NAME, "serviceAccountName": "default", "containers": [
                {"name": "main", "ports": [{"name": "http", "containerPort": PORT}]}]},
            "status": {"phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}],
                "startTime": "2020-01-01T00:00:00Z",
                "containerStatuses": [{"name": "main", "containerID": format!("containerd://{}", self.container_id)}]}})
    }

    /// Returns the pod's object with these annotations.
    pub fn annotated(&self, annotations: Value) -> Value {
        let mut object = self.object();
        object["metadata"]["annotations"] = annotations;
        object
    }

    /// Returns the address and port of the pod's server.
    pub fn server(&self) -> String {
        format!("{}:{PORT}", self.ip)
    }

    /// Starts the pod's server.
    pub fn listen(&self) {
        self.actor.listen("l", self.server().parse().unwrap());
    }
}

/// Returns the object of a running pod that has no process in the test.
pub fn pod_object(metadata: &Value, ip: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata,
        "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}})
}

/// A tracer that is the first process of a pid namespace. It sees the node's processes as a tracer with `hostPID` does.
pub struct NodeTracer(Tracer);

impl Deref for NodeTracer {
    type Target = Tracer;

    fn deref(&self) -> &Tracer {
        &self.0
    }
}

impl NodeTracer {
    /// Returns the pid of the tool, which is the only child of `unshare`.
    pub fn tool_pid(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.pid);
        let child = fs::read_to_string(children).unwrap_or_default();
        let pid = child.trim().parse();
        Pid::from_raw(pid.unwrap_or_else(|_| panic!("the tool has ended: {:?}", self.stderr_lines())))
    }

    /// Returns the processor time that the tool has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.tool_pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    }

    /// Whether a record has waited for names. The tool reports it when it stops.
    pub fn has_delayed_records(&self) -> bool {
        longest_wait_ms(&self.stderr_lines()) > 0.0
    }

    /// Stops the tool, and checks that it ended well, lost nothing, and let no record wait too long for names.
    pub fn stop(&self) -> Totals {
        kill(self.tool_pid(), Signal::SIGINT).unwrap();
        let exit = self.wait();
        let wait_ms = longest_wait_ms(&exit.stderr);
        assert!(wait_ms <= MAX_WAIT_MS, "{wait_ms} ms");
        exit.check_lossless()
    }
}

/// The longest time that a record may wait for names.
const MAX_WAIT_MS: f64 = 200.0;

/// Returns the longest time that a record has waited for names, as the tool measured it, or 0 if no record has waited.
fn longest_wait_ms(stderr: &[String]) -> f64 {
    let wait = stderr.iter().find_map(|line| {
        let (_, rest) = line.split_once("records waited up to ")?;
        rest.strip_suffix(" ms for names")
    });
    wait.map_or(0.0, |wait| wait.parse().expect("a number"))
}

/// Repeats `attempt` until it returns a value. Panics after the test timeout.
pub fn retry_until<T>(condition: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + test_timeout();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "timeout: {condition}");
    }
}
