//! What a tenant can do to another tenant's names, one random thing at a time.

use std::env;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::addresses::{attempt, connect_within};
use super::cgroups::{Empty, delegate};
use super::cluster::{Cluster, NODE_NAME};
use super::identity::claims;
use super::node::{Driver, MALL, NODE_PORT, Node, PORT, Pod, SERVICE_PORT, new_ids};
use super::objects::{ODD, large_pod, many_labels};
use super::rounds::{Doubts, Victim};
use super::services::{service, slice};
use super::traffic::Call;
use crate::support::actor::Actor;
use crate::support::node as support;
use crate::support::random::Random;

/// An object lasts for up to this many rounds.
const MAX_ROUNDS: u64 = 8;

/// The attacker's processes, and what it has made so far.
pub struct Attacker {
    /// A pod that the sources know.
    thief: Pod,
    /// A pod that the sources know, to connect to.
    shop: Pod,
    /// A process that becomes one unknown pod after the other.
    stranger: Pod,
    /// A process in a user namespace of its own.
    within: Actor,
    /// The objects that it has made: resource, key, and for how many rounds yet.
    made: Vec<(&'static str, String, u64)>,
    count: u64,
    /// What it may do.
    actions: Vec<Action>,
    /// What it has done, the present action last.
    pub done: Vec<&'static str>,
}

/// All that an action may touch.
struct Scene<'a> {
    node: &'a Node,
    cluster: &'a Cluster,
    victim: &'a Victim,
    doubts: &'a mut Doubts,
    random: &'a mut Random,
}

type Action = (&'static str, fn(&mut Attacker, &mut Scene<'_>));

const ACTIONS: &[Action] = &[
    ("claim an identity", Attacker::claim_identity),
    ("claim an identity by its own pod", Attacker::claim_identity_of_own_pod),
    ("send from an address", Attacker::send_from_address),
    (
        "send from an address in an unknown pod",
        Attacker::send_from_address_unknown,
    ),
    ("have an address in a user namespace", Attacker::have_address),
    ("have an address in no pod", Attacker::have_address_in_no_pod),
    ("have an address in an unknown pod", Attacker::have_address_unknown),
    ("claim a Service's address", Attacker::claim_service_address),
    ("claim an endpoint", Attacker::claim_endpoint),
    ("make an ExternalName with a selector", Attacker::make_external_name),
    ("make many Services", Attacker::make_services),
    ("nest cgroups", Attacker::nest_cgroups),
    ("make empty cgroups", Attacker::make_cgroups),
    ("make a large object", Attacker::make_large_object),
    ("make an odd object", Attacker::make_odd_object),
    ("reuse an address", Attacker::reuse_address),
];

/// All actions, or only those that `KMESH_TRACE_TENANT_ACTION` is a part of the name of.
fn actions() -> Vec<Action> {
    let only = env::var("KMESH_TRACE_TENANT_ACTION").unwrap_or_default();
    let actions: Vec<Action> = ACTIONS
        .iter()
        .copied()
        .filter(|(name, _)| name.contains(&only))
        .collect();
    assert!(!actions.is_empty(), "no action has {only:?} in its name");
    actions
}

impl Attacker {
    pub fn new(node: &Node) -> Self {
        let shop = node.pod(Driver::Cgroupfs, MALL, "aaa-shop");
        shop.listen();
        Self {
            thief: node.pod(Driver::Cgroupfs, MALL, "aaa-thief"),
            shop,
            stranger: node.pod(Driver::Cgroupfs, MALL, "stranger"),
            within: Actor::in_user_namespace(),
            made: Vec::new(),
            count: 0,
            actions: actions(),
            done: Vec::new(),
        }
    }

    /// The pods that the sources list from the start.
    pub fn known_pods(&self) -> [&Pod; 2] {
        [&self.thief, &self.shop]
    }

    /// The network namespaces of its processes.
    pub fn namespaces(&self) -> [u64; 4] {
        let within = support::netns_of(&self.within);
        [self.thief.netns, self.shop.netns, self.stranger.netns, within]
    }

    /// Does one thing, and undoes what is old.
    pub fn act(&mut self, node: &Node, cluster: &Cluster, victim: &Victim, doubts: &mut Doubts, random: &mut Random) {
        self.made.retain_mut(|(resource, key, rounds)| {
            *rounds -= 1;
            if *rounds == 0 {
                cluster.delete_item(resource, key);
            }
            *rounds > 0
        });
        self.count += 1;
        let (name, act) = *random.pick(&self.actions);
        self.done.push(name);
        act(
            self,
            &mut Scene {
                node,
                cluster,
                victim,
                doubts,
                random,
            },
        );
    }

    /// A name that no other object of it has, and that comes before the victim's.
    fn name(&self) -> String {
        format!("aaa-{}", self.count)
    }

    fn put(&mut self, scene: &mut Scene<'_>, object: Value) {
        let resource = match object["kind"].as_str() {
            Some("Pod") => "pods",
            Some("Service") => "services",
            _ => "endpointslices",
        };
        let name = object["metadata"]["name"].as_str().unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        let key = format!("{namespace}/{name}");
        self.made.push((resource, key, 1 + scene.random.below(MAX_ROUNDS)));
        scene.cluster.put(object);
    }

    fn claim_identity(&mut self, scene: &mut Scene<'_>) {
        let victim = scene.random.pick(&scene.victim.all()).uid.clone();
        let annotations = scene.random.pick(&claims(&victim)).clone();
        let mut metadata =
            json!({"name": self.name(), "namespace": MALL, "uid": new_ids().0, "annotations": annotations});
        if scene.random.one_in(2) {
            metadata["ownerReferences"] = json!([{"kind": "Node", "name": NODE_NAME, "uid": "n", "controller": true}]);
        }
        let ip = scene.node.pod_ip(100 + scene.random.below(100) as u32);
        let object = json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata,
            "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        self.put(scene, object);
        self.connect_unknown(scene);
    }

    fn claim_identity_of_own_pod(&mut self, scene: &mut Scene<'_>) {
        let victim = scene.random.pick(&scene.victim.all()).uid.clone();
        let annotations = scene.random.pick(&claims(&victim)).clone();
        scene.cluster.put(self.thief.annotated(annotations));
        self.call(&self.thief);
        if scene.random.one_in(2) {
            scene.cluster.put(self.thief.object());
        }
    }

    /// Makes a connection between its own pods.
    fn call(&self, client: &Pod) {
        Call::open(client, &self.shop).close();
    }

    /// Puts the stranger into the cgroup of a pod that no source knows.
    fn become_unknown(&mut self, node: &Node) {
        (self.stranger.uid, self.stranger.id) = new_ids();
        let cgroup = node
            .cgroups
            .join(Driver::Cgroupfs.container(&self.stranger.uid, &self.stranger.id));
        let left = std::mem::replace(&mut self.stranger.cgroup, cgroup);
        self.stranger.start();
        support::remove_cgroup(left.parent().unwrap());
    }

    /// Makes a connection from a pod that no source knows: the sources of this node are asked again.
    fn connect_unknown(&mut self, scene: &mut Scene<'_>) {
        self.become_unknown(scene.node);
        self.call(&self.stranger);
    }

    fn send_from_address(&mut self, scene: &mut Scene<'_>) {
        let victim = *scene.random.pick(&scene.victim.all());
        attempt(&self.thief.actor, &victim.ip, &self.shop);
    }

    fn send_from_address_unknown(&mut self, scene: &mut Scene<'_>) {
        let victim = self.victim_in_doubt(scene);
        self.become_unknown(scene.node);
        attempt(&self.stranger.actor, &victim.ip, &self.shop);
        scene.doubts.add(&victim.ip);
    }

    /// One of the victim's pods whose names may be absent for a while. The others are never in doubt.
    fn victim_in_doubt<'a>(&self, scene: &mut Scene<'a>) -> &'a Pod {
        let victims = [&scene.victim.cart, &scene.victim.batch];
        victims[scene.random.below(2) as usize]
    }

    fn have_address(&mut self, scene: &mut Scene<'_>) {
        let victim = *scene.random.pick(&scene.victim.all());
        support::move_into(&self.thief.cgroup, &self.within);
        connect_within(&self.within, &victim.ip);
    }

    fn have_address_in_no_pod(&mut self, scene: &mut Scene<'_>) {
        let victim = *scene.random.pick(&scene.victim.all());
        let users = scene.node.cgroups.join("user.slice/user-1000.slice");
        let cgroup = match scene.random.one_in(2) {
            true => users.join("session-1.scope"),
            false => users.join(Driver::Cgroupfs.container(&victim.uid, &new_ids().1)),
        };
        support::move_into(&cgroup, &self.within);
        delegate(&users);
        connect_within(&self.within, &victim.ip);
    }

    fn have_address_unknown(&mut self, scene: &mut Scene<'_>) {
        let victim = self.victim_in_doubt(scene);
        self.become_unknown(scene.node);
        support::move_into(&self.stranger.cgroup, &self.within);
        connect_within(&self.within, &victim.ip);
        scene.doubts.add(&victim.ip);
        support::move_into(&self.thief.cgroup, &self.within);
    }

    fn claim_service_address(&mut self, scene: &mut Scene<'_>) {
        let node = scene.node;
        let addresses = [
            node.cluster_ip(),
            node.ip(),
            scene.victim.db.ip.clone(),
            scene.victim.pay.ip.clone(),
        ];
        let address = scene.random.pick(&addresses).clone();
        let port = |name: &str, port: u16| json!({"name": name, "port": port, "targetPort": PORT});
        let ports = json!([port("a", SERVICE_PORT), port("b", PORT), port("c", NODE_PORT)]);
        let mut spec = json!({"clusterIP": format!("10.96.254.{}", 1 + self.count % 250), "ports": ports});
        let is_external = scene.random.one_in(2);
        if is_external {
            spec["externalIPs"] = json!([address]);
        }
        let mut object = service(MALL, &self.name(), &spec);
        if !is_external {
            object["status"]["loadBalancer"]["ingress"] = json!([{"ip": address}]);
        }
        self.put(scene, object);
    }

    fn claim_endpoint(&mut self, scene: &mut Scene<'_>) {
        let name = self.name();
        let spec = json!({"clusterIP": "None", "ports": [{"port": PORT, "targetPort": PORT}]});
        self.put(scene, service(MALL, &name, &spec));
        let ip = scene.victim.db.ip.clone();
        self.put(scene, slice(MALL, &name, &ip));
    }

    fn make_external_name(&mut self, scene: &mut Scene<'_>) {
        let app = *scene.random.pick(&["db", "aaa-shop", "pay"]);
        let spec = json!({"type": "ExternalName", "externalName": "elsewhere.example", "selector": {"app": app},
            "ports": [{"port": PORT, "targetPort": PORT}]});
        let object = service(MALL, &self.name(), &spec);
        self.put(scene, object);
    }

    fn make_services(&mut self, scene: &mut Scene<'_>) {
        let spec = json!({"clusterIP": "None", "selector": {"app": "aaa-shop"},
            "ports": [{"port": PORT, "targetPort": PORT}]});
        for number in 0..200 {
            let object = service(MALL, &format!("{}-{number}", self.name()), &spec);
            self.put(scene, object);
        }
        self.call(&self.thief);
    }

    fn nest_cgroups(&mut self, scene: &mut Scene<'_>) {
        let victim = *scene.random.pick(&scene.victim.all());
        let driver = *scene.random.pick(&[Driver::Cgroupfs, Driver::Systemd]);
        let lookalike = self.thief.cgroup.join(driver.container(&victim.uid, &victim.id));
        fs::create_dir_all(&lookalike).unwrap();
        delegate(&self.thief.cgroup);
        support::move_into(&lookalike, &self.thief.actor);
        self.call(&self.thief);
        support::move_into(&self.thief.cgroup, &self.thief.actor);
    }

    fn make_cgroups(&mut self, _: &mut Scene<'_>) {
        let given: PathBuf = self.thief.cgroup.join("given");
        fs::create_dir_all(&given).unwrap();
        delegate(&given);
        let empty = Empty::make(&given, 200);
        self.call(&self.thief);
        drop(empty);
    }

    fn make_large_object(&mut self, scene: &mut Scene<'_>) {
        let name = self.name();
        let text = match scene.random.one_in(2) {
            true => large_pod(&name),
            false => many_labels(&name, 20_000),
        };
        self.put_item(scene, &name, text);
    }

    fn make_odd_object(&mut self, scene: &mut Scene<'_>) {
        let name = self.name();
        let text = (*scene.random.pick(&ODD)).to_owned();
        self.put_item(scene, &name, text);
    }

    /// Adds an item to the list of pods, and lets the sources of this node list them.
    fn put_item(&mut self, scene: &mut Scene<'_>, name: &str, text: String) {
        let key = format!("{MALL}/{name}");
        scene.cluster.put_item("pods", &key, text);
        self.made.push(("pods", key, 1 + scene.random.below(MAX_ROUNDS)));
        self.connect_unknown(scene);
    }

    /// Replaces its pod by another one with the same address, and for a moment has both.
    fn reuse_address(&mut self, scene: &mut Scene<'_>) {
        let ip = scene.node.pod_ip(200 + scene.random.below(3) as u32);
        let object = json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": self.name(), "namespace": MALL, "uid": new_ids().0, "labels": {"app": "aaa-shop"}},
            "spec": {"nodeName": NODE_NAME, "containers": [{"name": "main"}]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        self.put(scene, object);
        self.call(&self.thief);
    }
}
