//! Parts of a node: cgroups (version 2), and network namespaces with a veth to the calling thread's namespace.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

use super::actor::Actor;
use super::net;

/// The node's address on the veth of each pod.
pub const GATEWAY: &str = "10.1.0.1";

/// Returns the mount point of cgroup v2.
pub fn cgroup2() -> PathBuf {
    super::probe::cgroup2_mount().expect("a mount of cgroup v2")
}

/// Removes a cgroup and its descendants. Retries, since a process leaves its cgroup only some time after it has ended.
pub fn remove_cgroup(cgroup: &Path) {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&child.path());
        }
    }
    let mut tries = 0;
    while fs::remove_dir(cgroup).is_err() && cgroup.exists() && tries < 1000 {
        tries += 1;
        std::thread::yield_now();
    }
}

/// Moves a process into a cgroup, which is created if it does not exist.
pub fn move_into(cgroup: &Path, process: &Actor) {
    fs::create_dir_all(cgroup).expect("create a cgroup");
    fs::write(cgroup.join("cgroup.procs"), process.pid().to_string()).expect("move a process into a cgroup");
}

/// Starts a process in a new network namespace that has the address `ip` and a veth to the calling thread's namespace.
pub fn actor_with_veth(name: &str, ip: &str) -> Actor {
    // The new thread shares this thread's table of descriptors, which has the actor's socket pair.
    let start = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        Actor::start()
    };
    let actor = std::thread::scope(|scope| scope.spawn(start).join()).expect("a thread that starts an actor");
    let pid = actor.pid().to_string();
    let veth = format!("v-{name}");
    net::run(
        "ip",
        &[
            "link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ],
    );
    net::run("ip", &["addr", "add", &format!("{GATEWAY}/32"), "dev", &veth]);
    net::run("ip", &["link", "set", &veth, "up"]);
    net::run("ip", &["route", "add", &format!("{ip}/32"), "dev", &veth]);
    for command in [
        "link set lo up".to_owned(),
        format!("addr add {ip}/32 dev eth0"),
        "link set eth0 up".to_owned(),
        format!("route add {GATEWAY} dev eth0"),
        format!("route add default via {GATEWAY}"),
    ] {
        run_ip(&actor, &command);
    }
    actor
}

/// Runs `ip` in the network namespace of a process.
pub fn run_ip(actor: &Actor, command: &str) {
    let pid = actor.pid().to_string();
    let words = ["-t", &pid, "-n", "ip"].into_iter().chain(command.split(' '));
    net::run("nsenter", &words.collect::<Vec<_>>());
}

/// Returns the inode number of a process's network namespace.
pub fn netns_of(actor: &Actor) -> u64 {
    let path = format!("/proc/{}/ns/net", actor.pid());
    fs::metadata(path).expect("a network namespace").st_ino()
}
