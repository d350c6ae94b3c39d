//! Parts of a node: cgroups of version 2, and network namespaces that are wired to the calling thread's namespace.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

use super::actor::Actor;
use super::net;

/// The node's address on each wire to a pod.
pub const GATEWAY: &str = "10.1.0.1";

/// Returns where cgroups of version 2 are mounted.
pub fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let path = mount.and_then(|line| line.split(' ').nth(1));
    path.expect("a mount of cgroup v2").into()
}

/// Removes a cgroup and all cgroups below it. The kernel takes a process out of its cgroup a moment after the process ends.
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

/// Moves a process into a cgroup, which is made if it does not exist.
pub fn move_into(cgroup: &Path, process: &Actor) {
    fs::create_dir_all(cgroup).expect("make a cgroup");
    fs::write(cgroup.join("cgroup.procs"), process.pid().to_string()).expect("move a process into a cgroup");
}

/// Starts a process in a new network namespace with the address `ip`, which the calling thread's namespace routes to.
pub fn wired_actor(name: &str, ip: &str) -> Actor {
    // With this thread's table of descriptors, which the actor's socket pair is in.
    let start = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        Actor::start()
    };
    let actor = std::thread::scope(|scope| scope.spawn(start).join()).expect("a thread that starts an actor");
    let pid = actor.pid().to_string();
    let wire = format!("v-{name}");
    net::run(
        "ip",
        &[
            "link", "add", &wire, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ],
    );
    net::run("ip", &["addr", "add", &format!("{GATEWAY}/32"), "dev", &wire]);
    net::run("ip", &["link", "set", &wire, "up"]);
    net::run("ip", &["route", "add", &format!("{ip}/32"), "dev", &wire]);
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
