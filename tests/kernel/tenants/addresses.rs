//! A socket takes nobody's address: whoever can write any address into a packet, or make a network namespace, cannot change the
//! name of the pod that has the address.

use std::fs;
use std::os::unix::fs::chown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::Cluster;
use super::identity::{Source, keep, traced, wait_for_names};
use super::node::{Driver, MALL, Node, NodeTracer, Pod, SHOP, new_ids};
use super::traffic::{CERTAIN, Call, Doubt, check_call, check_end, check_is_not, record};
use crate::support::actor::Actor;
use crate::support::node as support;

/// How long an address may be in doubt: until the answer of the source, which is due after 1 s, and 2 s more.
pub const DOUBT: Duration = Duration::from_secs(3);

/// A port that nobody needs.
const ANY_PORT: u16 = 9000;

/// Sends a SYN to `server` with the address `victim` as its source, and gives up. Returns the address and port.
pub fn attempt(actor: &Actor, victim: &str, server: &Pod) -> String {
    let from = actor.run(&format!("connect_nonblocking t {victim}:0 {}", server.server()));
    actor.run("close t");
    from
}

/// Connects a process in a user namespace of its own to itself, at the address `victim`. Returns the client's address and port.
pub fn connect_within(actor: &Actor, victim: &str) -> String {
    support::run_ip(actor, "link set lo up");
    support::run_ip(actor, &format!("addr replace {victim}/32 dev lo"));
    let at = format!("{victim}:{ANY_PORT}").parse().unwrap();
    actor.listen("ul", at);
    let from = actor.connect("uc", at).to_string();
    actor.run("accept ul us");
    for socket in ["uc", "us", "ul"] {
        actor.run(&format!("close {socket}"));
    }
    support::run_ip(actor, &format!("addr del {victim}/32 dev lo"));
    from
}

/// Two pods of the victim, and one of the attacker, which a source knows.
struct Stage {
    web: Pod,
    db: Pod,
    thief: Pod,
    cluster: Arc<Cluster>,
    // Last, since it removes the cgroups that the pods' processes are in.
    node: Node,
}

impl Stage {
    fn new(name: &str) -> Self {
        let node = Node::new(name);
        let web = node.pod(Driver::Cgroupfs, SHOP, "web");
        let db = node.pod(Driver::Systemd, SHOP, "db");
        let thief = node.pod(Driver::Cgroupfs, MALL, "thief");
        db.listen();
        let cluster = Cluster::of([web.object(), db.object(), thief.object()]);
        Self {
            node,
            web,
            db,
            thief,
            cluster,
        }
    }

    fn traced(&self, source: Source) -> NodeTracer {
        let tracer = traced(&self.node, &self.cluster, source, &[]);
        keep(&tracer, &[&self.web, &self.db, &self.thief]);
        wait_for_names(&tracer, &self.web, &self.db);
        tracer
    }

    /// A pod of the same kubelet that no source knows yet.
    fn unknown_pod(&self, name: &str) -> Pod {
        self.node.pod(Driver::Cgroupfs, MALL, name)
    }

    /// The victim's names after a pod that no source knows has used its address: they may be absent, and soon they are back.
    fn check_doubt(&self, tracer: &NodeTracer, since: Instant) {
        let doubt = Doubt {
            client: true,
            ..CERTAIN
        };
        while since.elapsed() < DOUBT {
            let call = Call::open(&self.web, &self.db);
            call.close();
            call.check(&tracer.tracer, doubt);
        }
        (0..3).for_each(|_| check_call(&tracer.tracer, &self.web, &self.db));
    }

    fn end(self, tracer: &NodeTracer) {
        self.cluster.end();
        tracer.stop();
    }
}

pub fn transparent_socket_does_not_take_an_address() {
    let stage = Stage::new("transparent");
    let tracer = stage.traced(Source::ApiServer);
    for victim in [&stage.web, &stage.db] {
        let from = attempt(&stage.thief.actor, &victim.ip, &stage.db);
        // The socket is the thief's, whatever address it has.
        let outbound = record(&tracer.tracer, stage.thief.netns, "outbound", &from);
        check_end(&outbound, "src", &stage.thief, false);
        check_call(&tracer.tracer, &stage.web, &stage.db);
    }
    stage.end(&tracer);
}

fn unknown_pod_puts_an_address_in_doubt(name: &str, source: Source, is_asked_again: impl Fn(&str) -> bool) {
    let stage = Stage::new(name);
    let tracer = stage.traced(source);
    let unknown = stage.unknown_pod("unknown");
    keep(&tracer, &[&unknown]);
    let asked = |cluster: &Cluster| {
        cluster
            .questions()
            .iter()
            .filter(|question| is_asked_again(question))
            .count()
    };
    let before = asked(&stage.cluster);
    let from = attempt(&unknown.actor, &stage.web.ip, &stage.db);
    let outbound = record(&tracer.tracer, unknown.netns, "outbound", &from);
    check_is_not(&outbound, "src", &stage.web);
    stage.check_doubt(&tracer, Instant::now());
    assert!(
        asked(&stage.cluster) > before,
        "the source was asked for the pods of this node: {:?}",
        stage.cluster.questions()
    );
    // A pod that the source knows by then has its own name.
    stage.cluster.put(unknown.object());
    wait_for_names(&tracer, &unknown, &stage.db);
    stage.end(&tracer);
}

pub fn unknown_pod_puts_an_address_in_doubt_until_the_kubelet_answers() {
    unknown_pod_puts_an_address_in_doubt("doubt-k", Source::Kubelet, |question| question.starts_with("GET /pods"));
}

pub fn unknown_pod_puts_an_address_in_doubt_until_the_api_server_answers() {
    unknown_pod_puts_an_address_in_doubt("doubt-a", Source::ApiServer, |question| {
        question.contains("spec.nodeName")
    });
}

/// A file cannot answer: the address stays in doubt to the end.
pub fn unknown_pod_puts_an_address_in_doubt_for_good_where_a_file_is_the_source() {
    let stage = Stage::new("doubt-f");
    let tracer = stage.traced(Source::File);
    let unknown = stage.unknown_pod("unknown");
    keep(&tracer, &[&unknown]);
    let from = attempt(&unknown.actor, &stage.web.ip, &stage.db);
    let outbound = record(&tracer.tracer, unknown.netns, "outbound", &from);
    check_is_not(&outbound, "src", &stage.web);
    let since = Instant::now();
    let doubt = Doubt {
        client: true,
        ..CERTAIN
    };
    let mut last = Value::Null;
    while since.elapsed() < DOUBT {
        let call = Call::open(&stage.web, &stage.db);
        call.close();
        call.check(&tracer.tracer, doubt);
        last = call.inbound(&tracer.tracer);
    }
    assert_eq!(last["src"]["pod"], Value::Null, "the remote end of {last}");
    stage.end(&tracer);
}

/// A process of a pod that the source knows, without any capability.
pub fn user_namespace_of_a_known_pod_does_not_take_an_address() {
    let stage = Stage::new("userns-known");
    let tracer = stage.traced(Source::ApiServer);
    let within = Actor::in_user_namespace();
    support::move_into(&stage.thief.cgroup, &within);
    let netns = support::netns_of(&within);
    tracer.tracer.output.watch(netns);
    for victim in [&stage.web, &stage.db] {
        let from = connect_within(&within, &victim.ip);
        check_end(
            &record(&tracer.tracer, netns, "outbound", &from),
            "src",
            &stage.thief,
            false,
        );
        check_end(
            &record(&tracer.tracer, netns, "inbound", &from),
            "dst",
            &stage.thief,
            false,
        );
        check_call(&tracer.tracer, &stage.web, &stage.db);
    }
    stage.end(&tracer);
}

pub fn user_namespace_of_an_unknown_pod_puts_an_address_in_doubt() {
    let stage = Stage::new("userns-unknown");
    let tracer = stage.traced(Source::Kubelet);
    let unknown = stage.unknown_pod("unknown");
    let within = Actor::in_user_namespace();
    support::move_into(&unknown.cgroup, &within);
    let netns = support::netns_of(&within);
    tracer.tracer.output.watch(netns);
    let from = connect_within(&within, &stage.web.ip);
    check_is_not(&record(&tracer.tracer, netns, "outbound", &from), "src", &stage.web);
    check_is_not(&record(&tracer.tracer, netns, "inbound", &from), "dst", &stage.web);
    stage.check_doubt(&tracer, Instant::now());
    stage.end(&tracer);
}

/// Processes of no pod: of a login session, and of a directory that a user made to look like the victim's.
pub fn user_namespace_outside_of_pods_does_not_take_an_address() {
    let stage = Stage::new("userns-none");
    let tracer = stage.traced(Source::ApiServer);
    let users = stage.node.cgroups.join("user.slice/user-1000.slice");
    let lookalike = users.join(Driver::Cgroupfs.container(&stage.web.uid, &new_ids().1));
    for cgroup in [users.join("session-1.scope"), lookalike] {
        fs::create_dir_all(&cgroup).unwrap();
        for directory in cgroup.ancestors().take_while(|directory| directory.starts_with(&users)) {
            chown(directory, Some(1000), Some(1000)).unwrap();
        }
        let within = Actor::in_user_namespace();
        support::move_into(&cgroup, &within);
        let netns = support::netns_of(&within);
        tracer.tracer.output.watch(netns);
        for victim in [&stage.web, &stage.db] {
            let from = connect_within(&within, &victim.ip);
            let records = ["outbound", "inbound"].map(|direction| record(&tracer.tracer, netns, direction, &from));
            for (record, local) in records.iter().zip(["src", "dst"]) {
                assert_eq!(record[local]["pod"], Value::Null, "{local}, the local end, of {record}");
            }
            check_call(&tracer.tracer, &stage.web, &stage.db);
        }
    }
    stage.end(&tracer);
}
