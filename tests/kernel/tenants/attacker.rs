//! The random actions of the attacker: what a tenant can do to another tenant's names.

use std::env;
use std::fs;

use serde_json::{Value, json};

use super::addresses::{connect_inside, send_syn_from};
use super::cgroups::{EmptyCgroups, delegate, delegate_child};
use super::cluster::Cluster;
use super::connection::PodConnection;
use super::identity::{identity_claims, node_owner};
use super::node::{ATTACKER_NAMESPACE, CgroupDriver, Node, PORT, Pod, new_ids, pod_object};
use super::objects::{MALFORMED_ITEMS, large_pod, pod_with_labels};
use super::rounds::{ActiveDoubts, Victim};
use super::services::{all_ports, endpoint_slice, service};
use crate::support::actor::Actor;
use crate::support::node as support;
use crate::support::random::Random;

/// The largest number of rounds for which an object exists.
const MAX_ROUNDS: u64 = 8;

/// The attacker's processes and objects.
pub struct Attacker {
    /// A pod that the sources list. Its name sorts before the victim's names.
    client: Pod,
    /// A pod that the sources list. Its name sorts before the victim's names.
    server: Pod,
    /// A process that becomes one unknown pod after another.
    unknown: Pod,
    /// A process in its own user namespace.
    user_namespace: Actor,
    objects: Vec<TemporaryObject>,
    /// The number of actions so far.
    count: u64,
    actions: Vec<Action>,
    /// The names of the actions so far.
    done: Vec<&'static str>,
}

/// An object that the attacker has created.
struct TemporaryObject {
    resource: &'static str,
    key: String,
    /// The number of rounds until the attacker deletes it.
    rounds_left: u64,
}

/// What an action may change.
struct Context<'a> {
    node: &'a Node,
    cluster: &'a Cluster,
    victim: &'a Victim,
    doubts: &'a mut ActiveDoubts,
    random: &'a mut Random,
}

/// An action's name and function.
type Action = (&'static str, fn(&mut Attacker, &mut Context<'_>));

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
    ("create an ExternalName with a selector", Attacker::create_external_name),
    ("create many Services", Attacker::create_services),
    ("nest cgroups", Attacker::nest_cgroups),
    ("create empty cgroups", Attacker::create_cgroups),
    ("create a large object", Attacker::create_large_object),
    ("create a malformed object", Attacker::create_malformed_object),
    ("reuse an address", Attacker::reuse_address),
];

/// Returns the actions whose name contains `KMESH_TRACE_TENANT_ACTION`, or all if it is not set.
fn selected_actions() -> Vec<Action> {
    let filter = env::var("KMESH_TRACE_TENANT_ACTION").unwrap_or_default();
    let actions: Vec<Action> = ACTIONS
        .iter()
        .copied()
        .filter(|(name, _)| name.contains(&filter))
        .collect();
    assert!(!actions.is_empty(), "no action has {filter:?} in its name");
    actions
}

impl Attacker {
    pub fn new(node: &Node) -> Self {
        let pod = |name| node.pod(CgroupDriver::Cgroupfs, ATTACKER_NAMESPACE, name);
        let server = pod("aaa-server");
        server.listen();
        Self {
            client: pod("aaa-client"),
            server,
            unknown: pod("unknown"),
            user_namespace: Actor::in_user_namespace(),
            objects: Vec::new(),
            count: 0,
            actions: selected_actions(),
            done: Vec::new(),
        }
    }

    /// Returns the pods that the sources list from the start.
    pub fn known_pods(&self) -> [&Pod; 2] {
        [&self.client, &self.server]
    }

    /// Returns the network namespaces of its processes.
    pub fn namespaces(&self) -> [u64; 4] {
        let user_namespace = support::netns_of(&self.user_namespace);
        [self.client.netns, self.server.netns, self.unknown.netns, user_namespace]
    }

    /// Returns the names of the last actions.
    pub fn last_actions(&self, count: usize) -> &[&'static str] {
        &self.done[self.done.len().saturating_sub(count)..]
    }

    /// Runs a random action, and deletes the objects that have existed long enough.
    pub fn act(
        &mut self,
        node: &Node,
        cluster: &Cluster,
        victim: &Victim,
        doubts: &mut ActiveDoubts,
        random: &mut Random,
    ) {
        self.objects.retain_mut(|object| {
            object.rounds_left -= 1;
            if object.rounds_left == 0 {
                cluster.delete_item(object.resource, &object.key);
            }
            object.rounds_left > 0
        });
        self.count += 1;
        let (name, action) = *random.pick(&self.actions);
        self.done.push(name);
        let mut context = Context {
            node,
            cluster,
            victim,
            doubts,
            random,
        };
        action(self, &mut context);
    }

    /// Returns the name of this action's object. It sorts before the victim's names.
    fn object_name(&self) -> String {
        format!("aaa-{}", self.count)
    }

    /// Creates an object that is deleted some rounds later.
    fn put(&mut self, context: &mut Context<'_>, object: Value) {
        let resource = match object["kind"].as_str() {
            Some("Pod") => "pods",
            Some("Service") => "services",
            _ => "endpointslices",
        };
        let name = object["metadata"]["name"].as_str().unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap();
        self.delete_later(context, resource, format!("{namespace}/{name}"));
        context.cluster.put(object);
    }

    fn delete_later(&mut self, context: &mut Context<'_>, resource: &'static str, key: String) {
        self.objects.push(TemporaryObject {
            resource,
            key,
            rounds_left: 1 + context.random.below(MAX_ROUNDS),
        });
    }

    /// Creates an item of the pod list, and lets the node's sources list the pods again.
    fn put_pod_item(&mut self, context: &mut Context<'_>, name: &str, item: String) {
        let key = format!("{ATTACKER_NAMESPACE}/{name}");
        context.cluster.put_item("pods", &key, item);
        self.delete_later(context, "pods", key);
        self.connect_unknown(context);
    }

    /// Makes a connection between its own pods.
    fn connect(&self, client: &Pod) {
        PodConnection::make(client, &self.server);
    }

    /// Makes a connection from a pod that no source knows, so that the tool asks the node's sources again.
    fn connect_unknown(&mut self, context: &mut Context<'_>) {
        self.become_unknown(context.node);
        self.connect(&self.unknown);
    }

    /// Moves the process of the unknown pod into the cgroup of a new pod.
    fn become_unknown(&mut self, node: &Node) {
        self.unknown.become_new_pod(node, |_| {});
    }

    fn claim_identity(&mut self, context: &mut Context<'_>) {
        let uid = context.random.pick(&context.victim.pods()).uid.clone();
        let annotations = context.random.pick(&identity_claims(&uid)).clone();
        let mut metadata = json!({"name": self.object_name(), "namespace": ATTACKER_NAMESPACE, "uid": new_ids().0,
            "annotations": annotations});
        if context.random.one_in(2) {
            metadata["ownerReferences"] = node_owner();
        }
        let ip = context.node.pod_ip(100 + context.random.below(100) as u32);
        self.put(context, pod_object(&metadata, &ip));
        self.connect_unknown(context);
    }

    fn claim_identity_of_own_pod(&mut self, context: &mut Context<'_>) {
        let uid = context.random.pick(&context.victim.pods()).uid.clone();
        let annotations = context.random.pick(&identity_claims(&uid)).clone();
        context.cluster.put(self.client.annotated(annotations));
        self.connect(&self.client);
        if context.random.one_in(2) {
            context.cluster.put(self.client.object());
        }
    }

    fn send_from_address(&mut self, context: &mut Context<'_>) {
        let victim = *context.random.pick(&context.victim.pods());
        send_syn_from(&self.client.actor, &victim.ip, &self.server);
    }

    fn send_from_address_unknown(&mut self, context: &mut Context<'_>) {
        let victim = pod_to_put_in_doubt(context);
        self.become_unknown(context.node);
        send_syn_from(&self.unknown.actor, &victim.ip, &self.server);
        context.doubts.add(&victim.ip);
    }

    fn have_address(&mut self, context: &mut Context<'_>) {
        let victim = *context.random.pick(&context.victim.pods());
        support::move_into(&self.client.cgroup, &self.user_namespace);
        connect_inside(&self.user_namespace, &victim.ip);
    }

    fn have_address_in_no_pod(&mut self, context: &mut Context<'_>) {
        let victim = *context.random.pick(&context.victim.pods());
        let users = context.node.cgroups.join("user.slice/user-1000.slice");
        let cgroup = match context.random.one_in(2) {
            true => users.join("session-1.scope"),
            false => users.join(CgroupDriver::Cgroupfs.container(&victim.uid, &new_ids().1)),
        };
        support::move_into(&cgroup, &self.user_namespace);
        delegate(&users);
        connect_inside(&self.user_namespace, &victim.ip);
    }

    fn have_address_unknown(&mut self, context: &mut Context<'_>) {
        let victim = pod_to_put_in_doubt(context);
        self.become_unknown(context.node);
        support::move_into(&self.unknown.cgroup, &self.user_namespace);
        connect_inside(&self.user_namespace, &victim.ip);
        context.doubts.add(&victim.ip);
        support::move_into(&self.client.cgroup, &self.user_namespace);
    }

    fn claim_service_address(&mut self, context: &mut Context<'_>) {
        let (node, victim) = (context.node, context.victim);
        let addresses = [
            node.cluster_ip(),
            node.ip(),
            victim.db.ip.clone(),
            victim.pay.ip.clone(),
        ];
        let address = context.random.pick(&addresses).clone();
        let cluster_ip = format!("10.96.254.{}", 1 + self.count % 250);
        let mut spec = json!({"clusterIP": cluster_ip, "ports": all_ports()});
        let is_external = context.random.one_in(2);
        if is_external {
            spec["externalIPs"] = json!([address]);
        }
        let mut object = service(ATTACKER_NAMESPACE, &self.object_name(), &spec);
        if !is_external {
            object["status"]["loadBalancer"]["ingress"] = json!([{"ip": address}]);
        }
        self.put(context, object);
    }

    fn claim_endpoint(&mut self, context: &mut Context<'_>) {
        let name = self.object_name();
        let spec = json!({"clusterIP": "None", "ports": [{"port": PORT, "targetPort": PORT}]});
        self.put(context, service(ATTACKER_NAMESPACE, &name, &spec));
        let ip = context.victim.db.ip.clone();
        self.put(context, endpoint_slice(ATTACKER_NAMESPACE, &name, &ip));
    }

    fn create_external_name(&mut self, context: &mut Context<'_>) {
        let app = *context.random.pick(&["db", "aaa-server", "pay"]);
        let spec = json!({"type": "ExternalName", "externalName": "elsewhere.example", "selector": {"app": app},
            "ports": [{"port": PORT, "targetPort": PORT}]});
        let object = service(ATTACKER_NAMESPACE, &self.object_name(), &spec);
        self.put(context, object);
    }

    fn create_services(&mut self, context: &mut Context<'_>) {
        let spec = json!({"clusterIP": "None", "selector": {"app": "aaa-server"},
            "ports": [{"port": PORT, "targetPort": PORT}]});
        for number in 0..200 {
            let name = format!("{}-{number}", self.object_name());
            self.put(context, service(ATTACKER_NAMESPACE, &name, &spec));
        }
        self.connect(&self.client);
    }

    fn nest_cgroups(&mut self, context: &mut Context<'_>) {
        let victim = *context.random.pick(&context.victim.pods());
        let driver = *context.random.pick(&[CgroupDriver::Cgroupfs, CgroupDriver::Systemd]);
        let container = driver.container(&victim.uid, &victim.container_id);
        let lookalike = self.client.cgroup.join(container);
        fs::create_dir_all(&lookalike).unwrap();
        delegate(&self.client.cgroup);
        support::move_into(&lookalike, &self.client.actor);
        self.connect(&self.client);
        support::move_into(&self.client.cgroup, &self.client.actor);
    }

    fn create_cgroups(&mut self, _: &mut Context<'_>) {
        let delegated = delegate_child(&self.client.cgroup);
        let _empty_cgroups = EmptyCgroups::create(&delegated, 200);
        self.connect(&self.client);
    }

    fn create_large_object(&mut self, context: &mut Context<'_>) {
        let name = self.object_name();
        let item = match context.random.one_in(2) {
            true => large_pod(&name),
            false => pod_with_labels(&name, 20_000),
        };
        self.put_pod_item(context, &name, item);
    }

    fn create_malformed_object(&mut self, context: &mut Context<'_>) {
        let name = self.object_name();
        let item = (*context.random.pick(&MALFORMED_ITEMS)).to_owned();
        self.put_pod_item(context, &name, item);
    }

    /// Creates a pod with an address that an earlier pod may still have.
    fn reuse_address(&mut self, context: &mut Context<'_>) {
        let ip = context.node.pod_ip(200 + context.random.below(3) as u32);
        let metadata = json!({"name": self.object_name(), "namespace": ATTACKER_NAMESPACE, "uid": new_ids().0,
            "labels": {"app": "aaa-server"}});
        self.put(context, pod_object(&metadata, &ip));
        self.connect(&self.client);
    }
}

/// Chooses one of the victim's pods whose address an action may put in doubt. The addresses of the other pods are never
/// in doubt.
fn pod_to_put_in_doubt<'a>(context: &mut Context<'a>) -> &'a Pod {
    let pods = [&context.victim.cart, &context.victim.batch];
    pods[context.random.below(2) as usize]
}
