//! Cgroups that a tenant creates in a cgroup that was delegated to it do not change names, and cost nobody else
//! anything.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::connection::{NO_DOUBT, PodConnection, check_connection, check_names, check_not_named};
use super::fixture::{Fixture, NameSource, start_tracer, wait_for_names, watch};
use super::node::{CgroupDriver, new_ids};
use crate::support::{is_small_vm, net, node as support, peak_memory_kib};

/// Gives a cgroup and its descendants to a user, as a container runtime gives a container its cgroup.
pub fn delegate(cgroup: &Path) {
    net::run("chown", &["-R", "1000:1000", cgroup.to_str().unwrap()]);
}

/// Creates a cgroup below a pod's, and delegates it to the pod.
pub fn delegate_child(pod_cgroup: &Path) -> PathBuf {
    let child = pod_cgroup.join("delegated");
    fs::create_dir_all(&child).unwrap();
    delegate(&child);
    child
}

/// Empty cgroups, removed when dropped.
pub struct EmptyCgroups(Vec<PathBuf>);

impl EmptyCgroups {
    /// Creates `count` children of `parent`.
    pub fn create(parent: &Path, count: usize) -> Self {
        let cgroups: Vec<PathBuf> = (0..count)
            .map(|number| parent.join(format!("empty-{number}")))
            .collect();
        cgroups.iter().for_each(|cgroup| fs::create_dir(cgroup).unwrap());
        Self(cgroups)
    }
}

impl Drop for EmptyCgroups {
    fn drop(&mut self) {
        self.0.iter().for_each(|cgroup| _ = fs::remove_dir(cgroup));
    }
}

/// In its own delegated cgroup, the attacker creates the cgroup that a kubelet would create for the victim.
pub fn nested_cgroup_does_not_name_another_pod() {
    let fixture = Fixture::new("nested");
    let attacker = fixture.attacker_pod("attacker");
    let tracer = fixture.trace(NameSource::File, &[&attacker]);
    let (web, db) = (&fixture.web, &fixture.db);
    for (driver, victim) in [
        (CgroupDriver::Cgroupfs, web),
        (CgroupDriver::Systemd, web),
        (CgroupDriver::Cgroupfs, db),
        (CgroupDriver::Systemd, db),
    ] {
        let lookalike = attacker
            .cgroup
            .join(driver.container(&victim.uid, &victim.container_id));
        fs::create_dir_all(&lookalike).unwrap();
        delegate(&attacker.cgroup);
        support::move_into(&lookalike, &attacker.actor);
        if is_small_vm() {
            // A record waits at most 200 ms for the owner of a new cgroup, which is short for an emulated processor.
            wait_for_names(&tracer, &attacker, db);
        }
        let connection = PodConnection::make(&attacker, db);
        connection.check(&tracer, NO_DOUBT);
        let outbound = connection.outbound(&tracer);
        assert_eq!(outbound["local"]["container_id"], *attacker.container_id, "{outbound}");
    }
    check_connection(&tracer, web, db);
    tracer.stop();
}

/// A directory that belongs to a user, or that users may write to, contains the cgroup that a kubelet would create for
/// the victim.
pub fn cgroup_of_a_user_does_not_name_a_pod() {
    let fixture = Fixture::new("user");
    let unknown = fixture.unknown_pod("unknown");
    let tracer = fixture.trace(NameSource::File, &[&unknown]);
    let (web, db) = (&fixture.web, &fixture.db);
    let make_owned = |directory: &Path| chown(directory, Some(1000), Some(1000)).unwrap();
    let make_writable = |directory: &Path| fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    type Grant<'a> = &'a dyn Fn(&Path);
    let grants: [(&str, Grant<'_>); 2] = [("owned", &make_owned), ("writable", &make_writable)];
    for (name, grant) in grants {
        let directory = fixture.node.cgroups.join(name);
        for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
            // The user gets the directory while it is empty.
            fs::create_dir_all(&directory).unwrap();
            grant(&directory);
            let lookalike = directory.join(driver.container(&web.uid, &new_ids().1));
            fs::create_dir_all(&lookalike).unwrap();
            support::move_into(&lookalike, &unknown.actor);
            let connection = PodConnection::make(&unknown, db);
            let (outbound, inbound) = (connection.outbound(&tracer), connection.inbound(&tracer));
            check_not_named(&outbound, "src", web);
            check_not_named(&inbound, "src", web);
            check_names(&inbound, "dst", db, false);
            check_connection(&tracer, web, db);
        }
    }
    tracer.stop();
}

/// The pod's directory, above the container's, belongs to a user other than root.
pub fn cgroup_below_a_users_pod_directory_does_not_name_a_pod() {
    let fixture = Fixture::new("above");
    let (web, db) = (&fixture.web, &fixture.db);
    let pod_directory = web.cgroup.parent().unwrap();
    chown(pod_directory, Some(1000), Some(1000)).unwrap();
    let tracer = start_tracer(&fixture.node, &fixture.cluster, NameSource::File, &[]);
    watch(&tracer, &[web, db]);
    let outbound = PodConnection::make(web, db).outbound(&tracer);
    assert_eq!(outbound["local"]["container_id"], Value::Null, "{outbound}");
    chown(pod_directory, Some(0), Some(0)).unwrap();
    tracer.stop();
}

/// Returns the memory (KiB) and the share of a processor that a tracer uses beside a tenant with this number of empty
/// cgroups, while the tenant connects from a cgroup that is deeper than the tracer searches.
fn cost_with_empty_cgroups(count: usize) -> (u64, f64) {
    const DEPTH: usize = 100;
    const DURATION: Duration = Duration::from_secs(3);
    let fixture = Fixture::new(&format!("empty-{count}"));
    let attacker = fixture.attacker_pod("attacker");
    let delegated = delegate_child(&attacker.cgroup);
    let empty_cgroups = EmptyCgroups::create(&delegated, count);
    let deep = delegated.join(vec!["deep"; DEPTH].join("/"));
    support::move_into(&deep, &attacker.actor);
    let tracer = fixture.trace(NameSource::File, &[&attacker]);
    let (started, cpu_before) = (Instant::now(), tracer.cpu_time());
    while started.elapsed() < DURATION {
        PodConnection::make(&attacker, &fixture.db);
        check_connection(&tracer, &fixture.web, &fixture.db);
    }
    let share = (tracer.cpu_time() - cpu_before).as_secs_f64() / started.elapsed().as_secs_f64();
    let kib = peak_memory_kib(tracer.tool_pid());
    tracer.stop();
    drop(empty_cgroups);
    (kib, share)
}

pub fn empty_cgroups_cost_neither_memory_nor_cpu_time() {
    const COUNT: usize = 10_000;
    /// About a hundred bytes for each cgroup.
    const MAX_KIB: u64 = 1 << 10;
    let (kib_without, share_without) = cost_with_empty_cgroups(0);
    let (kib_with, share_with) = cost_with_empty_cgroups(COUNT);
    println!("without empty cgroups: {kib_without} KiB, {share_without:.3} of a processor");
    println!("with {COUNT}: {kib_with} KiB, {share_with:.3} of a processor");
    assert!(
        kib_with < kib_without + MAX_KIB,
        "{kib_with} KiB, {kib_without} KiB without them"
    );
    assert!(
        share_with < 1.5 * share_without + 0.1,
        "{share_with} of a processor, {share_without} without them"
    );
}
