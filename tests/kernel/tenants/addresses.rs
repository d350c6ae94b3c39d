//! A socket cannot take another pod's address: a tenant that can send packets with any source address, or create
//! network namespaces, cannot change the name of the pod that has the address.

use std::fs;
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::connection::{CLIENT_DOUBT, PodConnection, check_connection, check_names, check_not_named, record};
use super::fixture::{Fixture, NameSource, wait_for_names, watch};
use super::node::{CgroupDriver, NodeTracer, Pod, new_ids};
use crate::support::actor::Actor;
use crate::support::node as support;

/// The longest time that an address may be in doubt: the tool asks the source after 1 s, and waits up to 2 s for the
/// answer.
pub const MAX_DOUBT: Duration = Duration::from_secs(3);

/// Sends a SYN from the address `source` to a pod's server, and closes the socket. Returns the client's address and
/// port.
pub fn send_syn_from(actor: &Actor, source: &str, server: &Pod) -> String {
    let from = actor.run(&format!("connect_nonblocking t {source}:0 {}", server.server()));
    actor.run("close t");
    from
}

/// Gives the address to the loopback device of a process in its own user namespace, and makes a connection from the
/// address to itself there. Returns the client's address and port.
pub fn connect_inside(actor: &Actor, address: &str) -> String {
    const PORT: u16 = 9000;
    support::run_ip(actor, "link set lo up");
    support::run_ip(actor, &format!("addr replace {address}/32 dev lo"));
    let server = format!("{address}:{PORT}").parse().unwrap();
    actor.listen("ul", server);
    let from = actor.connect("uc", server).to_string();
    actor.run("accept ul us");
    for socket in ["uc", "us", "ul"] {
        actor.run(&format!("close {socket}"));
    }
    support::run_ip(actor, &format!("addr del {address}/32 dev lo"));
    from
}

/// Starts a process in its own user namespace and in this cgroup, and collects its records. Returns the process and the
/// inode of its network namespace.
fn start_in_user_namespace(tracer: &NodeTracer, cgroup: &std::path::Path) -> (Actor, u64) {
    let process = Actor::in_user_namespace();
    support::move_into(cgroup, &process);
    let netns = support::netns_of(&process);
    tracer.output.watch(netns);
    (process, netns)
}

/// Checks the victim's names after a pod that no source knows has used the client's address: the names may be absent
/// for [`MAX_DOUBT`], and are back afterwards.
fn check_doubt_ends(fixture: &Fixture, tracer: &NodeTracer, since: Instant) {
    let (web, db) = (&fixture.web, &fixture.db);
    while since.elapsed() < MAX_DOUBT {
        PodConnection::make(web, db).check(tracer, CLIENT_DOUBT);
    }
    (0..3).for_each(|_| check_connection(tracer, web, db));
}

pub fn transparent_socket_does_not_take_an_address() {
    let fixture = Fixture::new("transparent");
    let attacker = fixture.attacker_pod("attacker");
    let tracer = fixture.trace(NameSource::ApiServer, &[&attacker]);
    let (web, db) = (&fixture.web, &fixture.db);
    for victim in [web, db] {
        let from = send_syn_from(&attacker.actor, &victim.ip, db);
        // The record names the pod of the socket, whatever the socket's address.
        let outbound = record(&tracer, attacker.netns, "outbound", &from);
        check_names(&outbound, "src", &attacker, false);
        check_connection(&tracer, web, db);
    }
    tracer.stop();
}

fn unknown_pod_puts_an_address_in_doubt(name: &str, source: NameSource, asks_for_pods: impl Fn(&str) -> bool) {
    let fixture = Fixture::new(name);
    let tracer = fixture.trace(source, &[]);
    let unknown = fixture.unknown_pod("unknown");
    watch(&tracer, &[&unknown]);
    let pod_requests = || {
        let requests = fixture.cluster.requests();
        requests.iter().filter(|request| asks_for_pods(request)).count()
    };
    let before = pod_requests();
    let from = send_syn_from(&unknown.actor, &fixture.web.ip, &fixture.db);
    let outbound = record(&tracer, unknown.netns, "outbound", &from);
    check_not_named(&outbound, "src", &fixture.web);
    check_doubt_ends(&fixture, &tracer, Instant::now());
    assert!(
        pod_requests() > before,
        "the tool asked the source for the node's pods again: {:?}",
        fixture.cluster.requests()
    );
    // When the source lists the pod, the pod has its own name.
    fixture.cluster.put(unknown.object());
    wait_for_names(&tracer, &unknown, &fixture.db);
    tracer.stop();
}

pub fn unknown_pod_puts_an_address_in_doubt_until_the_kubelet_answers() {
    unknown_pod_puts_an_address_in_doubt("doubt-k", NameSource::Kubelet, |request| {
        request.starts_with("GET /pods")
    });
}

pub fn unknown_pod_puts_an_address_in_doubt_until_the_api_server_answers() {
    unknown_pod_puts_an_address_in_doubt("doubt-a", NameSource::ApiServer, |request| {
        request.contains("spec.nodeName")
    });
}

/// A file cannot answer, so the address stays in doubt for the rest of the run.
pub fn unknown_pod_puts_an_address_in_doubt_forever_with_a_pods_file() {
    let fixture = Fixture::new("doubt-f");
    let tracer = fixture.trace(NameSource::File, &[]);
    let unknown = fixture.unknown_pod("unknown");
    watch(&tracer, &[&unknown]);
    let (web, db) = (&fixture.web, &fixture.db);
    let from = send_syn_from(&unknown.actor, &web.ip, db);
    let outbound = record(&tracer, unknown.netns, "outbound", &from);
    check_not_named(&outbound, "src", web);
    let since = Instant::now();
    let mut last = Value::Null;
    while since.elapsed() < MAX_DOUBT {
        let connection = PodConnection::make(web, db);
        connection.check(&tracer, CLIENT_DOUBT);
        last = connection.inbound(&tracer);
    }
    assert_eq!(last["src"]["pod"], Value::Null, "the remote end of {last}");
    tracer.stop();
}

/// A process without any capability in a pod that the source lists.
pub fn user_namespace_of_a_known_pod_does_not_take_an_address() {
    let fixture = Fixture::new("userns-known");
    let attacker = fixture.attacker_pod("attacker");
    let tracer = fixture.trace(NameSource::ApiServer, &[&attacker]);
    let (process, netns) = start_in_user_namespace(&tracer, &attacker.cgroup);
    for victim in [&fixture.web, &fixture.db] {
        let from = connect_inside(&process, &victim.ip);
        for (direction, local) in [("outbound", "src"), ("inbound", "dst")] {
            let record = record(&tracer, netns, direction, &from);
            check_names(&record, local, &attacker, false);
        }
        check_connection(&tracer, &fixture.web, &fixture.db);
    }
    tracer.stop();
}

pub fn user_namespace_of_an_unknown_pod_puts_an_address_in_doubt() {
    let fixture = Fixture::new("userns-unknown");
    let tracer = fixture.trace(NameSource::Kubelet, &[]);
    let unknown = fixture.unknown_pod("unknown");
    let (process, netns) = start_in_user_namespace(&tracer, &unknown.cgroup);
    let from = connect_inside(&process, &fixture.web.ip);
    for (direction, local) in [("outbound", "src"), ("inbound", "dst")] {
        let record = record(&tracer, netns, direction, &from);
        check_not_named(&record, local, &fixture.web);
    }
    check_doubt_ends(&fixture, &tracer, Instant::now());
    tracer.stop();
}

/// Processes outside of pods: one in a login session, and one in a user's cgroup that looks like the victim's.
pub fn user_namespace_outside_of_pods_does_not_take_an_address() {
    let fixture = Fixture::new("userns-none");
    let tracer = fixture.trace(NameSource::ApiServer, &[]);
    let (web, db) = (&fixture.web, &fixture.db);
    let users = fixture.node.cgroups.join("user.slice/user-1000.slice");
    let lookalike = users.join(CgroupDriver::Cgroupfs.container(&web.uid, &new_ids().1));
    for cgroup in [users.join("session-1.scope"), lookalike] {
        fs::create_dir_all(&cgroup).unwrap();
        for directory in cgroup.ancestors().take_while(|directory| directory.starts_with(&users)) {
            chown(directory, Some(1000), Some(1000)).unwrap();
        }
        let (process, netns) = start_in_user_namespace(&tracer, &cgroup);
        for victim in [web, db] {
            let from = connect_inside(&process, &victim.ip);
            for (direction, local) in [("outbound", "src"), ("inbound", "dst")] {
                let record = record(&tracer, netns, direction, &from);
                assert_eq!(record[local]["pod"], Value::Null, "{local}, the local end, of {record}");
            }
            check_connection(&tracer, web, db);
        }
    }
    tracer.stop();
}
