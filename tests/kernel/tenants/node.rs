//! A node with pods of two tenants in the calling thread's network namespace, and tracers of it.

use std::fs;
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

/// The tenant whose records and names nobody else may touch.
pub const SHOP: &str = "shop";
/// The tenant that tries it. Its names come first in the alphabet.
pub const MALL: &str = "mall";
/// The port of each server.
pub const PORT: u16 = 8080;
/// The port of each Service.
pub const SERVICE_PORT: u16 = 80;
/// The node port of the victim's Service.
pub const NODE_PORT: u16 = 30080;

/// How a kubelet names its cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `kubepods/burstable/pod<uid>/<id>`
    Cgroupfs,
    /// `kubepods.slice/kubepods-burstable.slice/…`
    Systemd,
}

impl Driver {
    /// The path of a container's cgroup below the cgroup that the kubelet starts in.
    pub fn container(self, uid: &str, id: &str) -> PathBuf {
        match self {
            Self::Cgroupfs => format!("kubepods/burstable/pod{uid}/{id}").into(),
            Self::Systemd => {
                let escaped = uid.replace('-', "_");
                format!(
                    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-{id}.scope"
                )
                .into()
            }
        }
    }
}

/// The node. No two nodes of a run have an address in common.
pub struct Node {
    /// A cgroup that holds those of all its kubelets.
    pub cgroups: PathBuf,
    /// Holds the files of the test.
    pub folder: PathBuf,
    /// Its number among the nodes of this run.
    number: u32,
    pods: AtomicU32,
}

/// A pod of one container with one process.
pub struct Pod {
    /// Its process.
    pub actor: Actor,
    /// Its namespace, as Kubernetes has them.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// Its UID.
    pub uid: String,
    /// The id of its container.
    pub id: String,
    /// The cgroup of its container.
    pub cgroup: PathBuf,
    /// The inode number of its network namespace.
    pub netns: u64,
}

impl Node {
    /// Makes the calling thread's network namespace a node's.
    pub fn new(name: &str) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
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
        // A kubelet's node lets through what claims another address unless somebody set this.
        net::set_sysctl("net.ipv4.conf.all.rp_filter", "0");
        net::set_sysctl("net.ipv4.conf.default.rp_filter", "0");
        net::run("ip", &["addr", "add", &format!("{}/32", node.ip()), "dev", "lo"]);
        node
    }

    /// The node's own address.
    pub fn ip(&self) -> String {
        format!("10.9.{}.1", self.number)
    }

    /// The cluster IP of the victim's Service.
    pub fn cluster_ip(&self) -> String {
        format!("10.96.{}.1", self.number)
    }

    /// An address of its pods.
    pub fn pod_ip(&self, last: u32) -> String {
        format!("10.{}.{}.{last}", 32 + self.number / 256, self.number % 256)
    }

    /// All addresses of its pods.
    pub fn pod_network(&self) -> String {
        format!("{}/24", self.pod_ip(0))
    }

    /// Starts a pod in a network namespace with an address of its own, and in a cgroup as a kubelet makes it.
    pub fn pod(&self, driver: Driver, namespace: &str, name: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let ip = self.pod_ip(number);
        let pod = self.unplaced_pod(self.wired_actor(&ip), driver, namespace, name, &ip);
        pod.start();
        pod
    }

    /// Starts a process in a network namespace with this address, which the node routes to.
    pub fn wired_actor(&self, ip: &str) -> Actor {
        static MADE: AtomicU32 = AtomicU32::new(0);
        // A wire goes a while after its pod.
        node::actor_with_veth(&MADE.fetch_add(1, Ordering::Relaxed).to_string(), ip)
    }

    /// Describes a pod of this process, which stays in its cgroup.
    pub fn unplaced_pod(&self, actor: Actor, driver: Driver, namespace: &str, name: &str, ip: &str) -> Pod {
        let (uid, id) = new_ids();
        Pod {
            cgroup: self.cgroups.join(driver.container(&uid, &id)),
            netns: node::netns_of(&actor),
            actor,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ip: ip.to_owned(),
            uid,
            id,
        }
    }

    /// The node as the API server has it.
    pub fn object(&self) -> Value {
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": NODE_NAME},
            "status": {"addresses": [{"type": "InternalIP", "address": self.ip()}]}})
    }

    /// The victim's Service, which is in front of pods with the label `app: db`.
    pub fn service(&self) -> Value {
        json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "database", "namespace": SHOP},
            "spec": {"clusterIP": self.cluster_ip(), "clusterIPs": [self.cluster_ip()], "selector": {"app": "db"},
                "ports": [{"port": SERVICE_PORT, "targetPort": PORT, "nodePort": NODE_PORT}]}})
    }

    /// Translates the victim's Service as kube-proxy does.
    pub fn translate(&self, server: &Pod) {
        let ip = self.cluster_ip();
        // A node has a route to anywhere; the kernel looks it up before the translation.
        net::run(
            "ip",
            &["route", "add", &format!("{ip}/32"), "dev", "lo", "src", &self.ip()],
        );
        net::run("nft", &["add table ip kube-proxy"]);
        for hook in ["prerouting", "output"] {
            let chain = format!("add chain ip kube-proxy {hook} {{ type nat hook {hook} priority -100; }}");
            net::run("nft", &[&chain]);
            for (dialled, port) in [(ip.clone(), SERVICE_PORT), (self.ip(), NODE_PORT)] {
                let to = format!("{}:{PORT}", server.ip);
                let rule = format!("add rule ip kube-proxy {hook} ip daddr {dialled} tcp dport {port} dnat to {to}");
                net::run("nft", &[&rule]);
            }
        }
    }

    /// Starts a tracer as on a node, of the connections of these pods.
    pub fn trace(&self, args: &[&str]) -> NodeTracer {
        self.trace_within(None, args)
    }

    /// Starts a tracer that may have this much memory.
    pub fn trace_within(&self, limit: Option<&MemoryLimit>, args: &[&str]) -> NodeTracer {
        let unshare = PathBuf::from("unshare");
        let mut command = limit.map_or_else(|| Command::new(&unshare), |limit| limit.command(&unshare));
        command
            .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(binary())
            .env("NODE_NAME", NODE_NAME);
        let network = self.pod_network();
        let tracer =
            TracerCommand::from_command(command, &[&["-v", "-o", "json", "--ip", &network], args].concat()).start();
        NodeTracer { tracer }
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
    static MADE: AtomicU32 = AtomicU32::new(1);
    let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    (
        format!("{process:08x}-0000-4000-8000-{number:012x}"),
        format!("{process:056x}{number:08x}"),
    )
}

impl Pod {
    /// Puts its process into its container's cgroup, as a runtime does.
    pub fn start(&self) {
        node::move_into(&self.cgroup, &self.actor);
    }

    /// The pod as a source lists it.
    pub fn object(&self) -> Value {
        let app = self.name.trim_end_matches("-0");
        json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": self.name, "namespace": self.namespace, "uid": self.uid, "labels": {"app": app}},
            "spec": {"nodeName": NODE_NAME, "serviceAccountName": "default", "containers": [
                {"name": "main", "ports": [{"name": "http", "containerPort": PORT}]}]},
            "status": {"phase": "Running", "podIP": self.ip, "podIPs": [{"ip": self.ip}],
                "startTime": "2020-01-01T00:00:00Z",
                "containerStatuses": [{"name": "main", "containerID": format!("containerd://{}", self.id)}]}})
    }

    /// The pod with these annotations.
    pub fn annotated(&self, annotations: Value) -> Value {
        let mut object = self.object();
        object["metadata"]["annotations"] = annotations;
        object
    }

    /// Its server's address.
    pub fn server(&self) -> String {
        format!("{}:{PORT}", self.ip)
    }

    /// Starts its server.
    pub fn listen(&self) {
        self.actor.listen("l", self.server().parse().unwrap());
    }
}

/// A tracer that is the first process of a pid namespace, as a node's tracer with `hostPID` sees a node's processes.
pub struct NodeTracer {
    /// The tracer.
    pub tracer: Tracer,
}

impl NodeTracer {
    /// The tool itself, which is the only child of `unshare`.
    pub fn tool(&self) -> Pid {
        let children = format!("/proc/{0}/task/{0}/children", self.tracer.pid);
        let child = fs::read_to_string(children).unwrap_or_default();
        let pid = child.trim().parse();
        Pid::from_raw(pid.unwrap_or_else(|_| panic!("the tool has ended: {:?}", self.tracer.stderr_lines())))
    }

    /// The processor time that the tool has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.tool())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(10 * ticks)
    }

    /// Whether any record has waited for names. Known once it has ended.
    pub fn has_waited(&self) -> bool {
        longest_wait_ms(&self.tracer.stderr_lines()) > 0.0
    }

    /// Asks it to stop, and checks that it ended well, lost nothing, and let no record wait for names longer than it may.
    pub fn stop(&self) -> Totals {
        kill(self.tool(), Signal::SIGINT).unwrap();
        let end = self.tracer.wait();
        let wait_ms = longest_wait_ms(&end.stderr);
        assert!(wait_ms <= MAX_WAIT_MS, "{wait_ms} ms");
        end.check_lossless()
    }
}

/// The longest time that a record may wait for names.
const MAX_WAIT_MS: f64 = 200.0;

/// The longest time that a record has waited for names, by the tracer's own clock; 0 if none has.
fn longest_wait_ms(said: &[String]) -> f64 {
    let wait = said.iter().find_map(|line| {
        let (_, rest) = line.split_once("records waited up to ")?;
        rest.strip_suffix(" ms for names")
    });
    wait.map_or(0.0, |wait| wait.parse().expect("a number"))
}

/// Repeats `attempt` until it succeeds. Only a failing test ever waits to the end.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + test_timeout();
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
    }
}
