//! What a tenant makes below a cgroup that was given to it proves nothing, and costs nobody else anything.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cluster::Cluster;
use super::identity::{Source, keep, traced, wait_for_names};
use super::node::{Driver, MALL, Node, SHOP, new_ids};
use super::traffic::{CERTAIN, Call, check_call, check_end, check_is_not};
use crate::support::{net, node as support, peak_memory_kib};

/// Gives a cgroup and all below it to a user, as a runtime gives a container its own cgroup.
pub fn delegate(cgroup: &Path) {
    let owner = format!("{0}:{0}", 1000);
    net::run("chown", &["-R", &owner, cgroup.to_str().unwrap()]);
}

/// Empty cgroups, removed when dropped.
pub struct Empty(Vec<PathBuf>);

impl Empty {
    /// Makes so many directly below `parent`.
    pub fn make(parent: &Path, count: usize) -> Self {
        let cgroups: Vec<PathBuf> = (0..count)
            .map(|number| parent.join(format!("empty-{number}")))
            .collect();
        cgroups.iter().for_each(|cgroup| fs::create_dir(cgroup).unwrap());
        Self(cgroups)
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        self.0.iter().for_each(|cgroup| _ = fs::remove_dir(cgroup));
    }
}

/// The container of a pod has a cgroup of its own, and makes in it what a kubelet would make for the victim.
pub fn nested_cgroup_does_not_name_another_pod() {
    let node = Node::new("nested");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    let thief = node.pod(Driver::Cgroupfs, MALL, "thief");
    db.listen();
    let cluster = Cluster::of([web.object(), db.object(), thief.object()]);
    let tracer = traced(&node, &cluster, Source::File, &[]);
    keep(&tracer, &[&web, &db, &thief]);
    wait_for_names(&tracer, &web, &db);
    for (driver, victim) in [
        (Driver::Cgroupfs, &web),
        (Driver::Systemd, &web),
        (Driver::Cgroupfs, &db),
        (Driver::Systemd, &db),
    ] {
        let lookalike = thief.cgroup.join(driver.container(&victim.uid, &victim.id));
        fs::create_dir_all(&lookalike).unwrap();
        delegate(&thief.cgroup);
        support::move_into(&lookalike, &thief.actor);
        let call = Call::open(&thief, &db);
        call.close();
        call.check(&tracer.tracer, CERTAIN);
        let outbound = call.outbound(&tracer.tracer);
        assert_eq!(outbound["local"]["container_id"], *thief.id, "{outbound}");
    }
    check_call(&tracer.tracer, &web, &db);
    tracer.stop();
}

/// A directory that belongs to a user, or that users may write to, with what a kubelet would make for the victim in it.
pub fn cgroup_of_a_user_does_not_name_a_pod() {
    let node = Node::new("user");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    let loner = node.pod(Driver::Cgroupfs, MALL, "loner");
    db.listen();
    let cluster = Cluster::of([web.object(), db.object()]);
    let tracer = traced(&node, &cluster, Source::File, &[]);
    keep(&tracer, &[&web, &db, &loner]);
    wait_for_names(&tracer, &web, &db);
    let make_owned = |directory: &Path| chown(directory, Some(1000), Some(1000)).unwrap();
    let make_writable = |directory: &Path| fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
    type Way<'a> = (&'a str, &'a dyn Fn(&Path));
    let ways: [Way<'_>; 2] = [("owned", &make_owned), ("writable", &make_writable)];
    for (name, give) in ways {
        let given = node.cgroups.join(name);
        for driver in [Driver::Cgroupfs, Driver::Systemd] {
            // A user gets the directory before there is anything in it.
            fs::create_dir_all(&given).unwrap();
            give(&given);
            let lookalike = given.join(driver.container(&web.uid, &new_ids().1));
            fs::create_dir_all(&lookalike).unwrap();
            support::move_into(&lookalike, &loner.actor);
            let call = Call::open(&loner, &db);
            call.close();
            let (outbound, inbound) = (call.outbound(&tracer.tracer), call.inbound(&tracer.tracer));
            check_is_not(&outbound, "src", &web);
            check_is_not(&inbound, "src", &web);
            check_end(&inbound, "dst", &db, false);
            check_call(&tracer.tracer, &web, &db);
        }
    }
    tracer.stop();
}

/// One of the directories above the container's belongs to another user than root.
pub fn cgroup_below_a_users_pod_directory_does_not_name_a_pod() {
    let node = Node::new("above");
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    db.listen();
    let of_pod = web.cgroup.parent().unwrap();
    chown(of_pod, Some(1000), Some(1000)).unwrap();
    let cluster = Cluster::of([db.object(), web.object()]);
    let tracer = traced(&node, &cluster, Source::File, &[]);
    keep(&tracer, &[&web, &db]);
    let call = Call::open(&web, &db);
    call.close();
    let outbound = call.outbound(&tracer.tracer);
    assert_eq!(outbound["local"]["container_id"], Value::Null, "{outbound}");
    chown(of_pod, Some(0), Some(0)).unwrap();
    tracer.stop();
}

/// The memory and the processor time of a tracer beside so many empty cgroups of a tenant, while that tenant connects from a
/// cgroup so deep that nobody looks there.
fn cost_beside(empty: usize) -> (u64, f64) {
    const DEPTH: usize = 100;
    const TRAFFIC: Duration = Duration::from_secs(3);
    let node = Node::new(&format!("empty-{empty}"));
    let web = node.pod(Driver::Cgroupfs, SHOP, "web");
    let db = node.pod(Driver::Systemd, SHOP, "db");
    let thief = node.pod(Driver::Cgroupfs, MALL, "thief");
    db.listen();
    let given = thief.cgroup.join("given");
    fs::create_dir(&given).unwrap();
    delegate(&given);
    let empty = Empty::make(&given, empty);
    let deep = given.join(vec!["deep"; DEPTH].join("/"));
    support::move_into(&deep, &thief.actor);
    let cluster = Cluster::of([web.object(), db.object(), thief.object()]);
    let tracer = traced(&node, &cluster, Source::File, &[]);
    keep(&tracer, &[&web, &db, &thief]);
    wait_for_names(&tracer, &web, &db);
    let (began, before) = (Instant::now(), tracer.cpu_time());
    while began.elapsed() < TRAFFIC {
        Call::open(&thief, &db).close();
        check_call(&tracer.tracer, &web, &db);
    }
    let share = (tracer.cpu_time() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let kib = peak_memory_kib(tracer.tool());
    tracer.stop();
    drop(empty);
    (kib, share)
}

/// Ten thousand cgroups of a tenant.
pub fn empty_cgroups_cost_nobody_anything() {
    const EMPTY: usize = 10_000;
    /// A hundred bytes a cgroup.
    const KIB: u64 = 1 << 10;
    let ((kib_without, share_without), (kib_with, share_with)) = (cost_beside(0), cost_beside(EMPTY));
    println!("without them: {kib_without} KiB, {share_without:.3} of a processor");
    println!("with {EMPTY}: {kib_with} KiB, {share_with:.3} of a processor");
    assert!(
        kib_with < kib_without + KIB,
        "{kib_with} KiB, {kib_without} KiB without them"
    );
    assert!(
        share_with < 1.5 * share_without + 0.1,
        "{share_with} of a processor, {share_without} without them"
    );
}
