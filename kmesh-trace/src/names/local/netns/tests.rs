use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;
use crate::names::local::cgroup_tree::mounts;

const UID: &str = "9d7c5fbe-11a2-4c3b-8f0e-0123456789ab";
const OTHER_UID: &str = "11111111-2222-3333-4444-555555555555";

#[test]
fn start_time_is_read_past_any_name() {
    let fields = |name: &str| format!("7 ({name}) S {} 4711 9", "1 ".repeat(18).trim_end());
    for name in ["sh", "a b", ") S 1 2", "))((", "\n"] {
        assert_eq!(start_ticks(fields(name).as_bytes()), Some(4711), "{name}");
    }
    assert_eq!(start_ticks(b"7 (sh) S 1 2"), None);
    assert_eq!(start_ticks(b""), None);
}

#[test]
fn own_process_started_before_now_and_after_the_first_one() {
    let open = |path: &str| openat(rustix::fs::CWD, path, OFlags::PATH, Mode::empty()).unwrap();
    let (first, own) = (started_ns(&open("/proc/1")), started_ns(&open("/proc/self")));
    let now_ns = now_ns();
    assert!(first.unwrap() <= own.unwrap() && own.unwrap() <= now_ns);
}

#[test]
fn namespace_without_pod_has_no_owner() {
    let (sender, changes) = channel();
    let mut namespaces = PodNamespaces::of(vec!["/does/not/exist".into()], move || _ = sender.send(()));
    let node = namespaces.node.unwrap();
    assert!(namespaces.is_nodes(node));
    assert_eq!(namespaces.pod_of(node, 0), Lookup::Known(None));
    assert_eq!(namespaces.pod_of(1, 0), Lookup::Pending);
    changes.recv().unwrap();
    assert_eq!(namespaces.pod_of(1, 0), Lookup::Known(None));
}

/// A process in its own network namespace. It lives until this is dropped.
struct Process(std::process::Child);

impl Process {
    fn start() -> Option<Self> {
        let mut command = std::process::Command::new("unshare");
        // It prints a line when it is in its namespace.
        command.args(["--net", "sh", "-c", "echo; exec cat"]);
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = command.spawn().ok()?;
        let mut byte = [0];
        let read = std::io::Read::read(child.stdout.as_mut()?, &mut byte);
        let process = Self(child);
        matches!(read, Ok(1)).then_some(process)
    }

    fn netns(&self) -> u32 {
        let path = format!("/proc/{}/ns/net", self.0.id());
        fs::metadata(path).unwrap().ino().try_into().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A cgroup, which is removed with all cgroups below it when this is dropped.
struct Tree(PathBuf);

impl Drop for Tree {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Removes a cgroup. The kernel removes a process from its cgroup a moment after the process is gone.
fn remove(directory: &Path) {
    for child in fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path());
        }
    }
    let mut tries = 0;
    while fs::remove_dir(directory).is_err() && directory.exists() && tries < 1000 {
        tries += 1;
        thread::yield_now();
    }
}

fn now_ns() -> u64 {
    // A process's start is rounded up to a tick.
    crate::clocks::monotonic_ns() + 1_000_000_000 / clock_ticks_per_second()
}

/// Each in a hierarchy of version 1 where there is one: this is for nodes that have no others.
#[test]
fn pods_are_known_by_their_sandboxes() {
    let (unified, legacy) = mounts();
    let mount = legacy.into_iter().chain(unified).find(|mount| {
        let probe = mount.join(format!("kmesh-trace-probe-netns-{}", std::process::id()));
        fs::create_dir(&probe).is_ok() && fs::remove_dir(&probe).is_ok()
    });
    let Some(mount) = mount else {
        println!("skipped: this process can make no cgroups");
        return;
    };
    // Before the processes, so that it is removed after they are gone.
    let tree = Tree(mount.join(format!("kmesh-trace-netns-{}", std::process::id())));
    let (Some(web), Some(db)) = (Process::start(), Process::start()) else {
        println!("skipped: this process can make no network namespaces");
        return;
    };
    let put = |process: &Process, uid: &str, digits: &str| {
        let container = tree.0.join(format!("kubepods/pod{uid}/{}", digits.repeat(32)));
        fs::create_dir_all(&container).unwrap();
        fs::write(container.join("cgroup.procs"), process.0.id().to_string()).unwrap();
    };
    put(&web, UID, "3f");
    let (sender, changes) = channel();
    let mut namespaces = PodNamespaces::of(vec![mount], move || _ = sender.send(()));
    let mut pod_of = |netns: u32, at_ns: u64| loop {
        match namespaces.pod_of(netns, at_ns) {
            Lookup::Known(pod) => return pod.map(|pod| pod.uid),
            Lookup::Pending => changes.recv().unwrap(),
        }
    };
    assert_eq!(pod_of(web.netns(), now_ns()).as_deref(), Some(UID));
    assert_eq!(pod_of(web.netns(), 1).as_deref(), None, "before the sandbox started");
    // A pod that starts later.
    put(&db, OTHER_UID, "4d");
    let db_netns = db.netns();
    assert_eq!(pod_of(db_netns, now_ns()).as_deref(), Some(OTHER_UID));
    // Its number may be reused as soon as it is gone.
    drop(db);
    assert_eq!(pod_of(db_netns, now_ns()), None);
    assert_eq!(pod_of(web.netns(), now_ns()).as_deref(), Some(UID));
}

#[test]
fn namespace_of_two_pods_belongs_to_neither() {
    let Some(process) = Process::start() else {
        println!("skipped: this process can make no network namespace");
        return;
    };
    let netns = process.netns();
    let sandbox = |uid: &str| {
        let path = format!("/proc/{}", process.0.id());
        Arc::new(SandboxProcess {
            pod: PodCgroup {
                root: "/kubepods".into(),
                uid: uid.into(),
            },
            netns,
            process: openat(rustix::fs::CWD, path, OFlags::PATH, Mode::empty()).unwrap(),
            started_ns: 0,
        })
    };
    let mut namespaces = PodNamespaces::of(Vec::new(), || ());
    for (uids, expected) in [(&[UID][..], Some(UID)), (&[UID, OTHER_UID], None)] {
        let sandboxes = uids.iter().map(|uid| sandbox(uid)).collect();
        lock(&namespaces.state).known.insert(netns, sandboxes);
        let Lookup::Known(found) = namespaces.pod_of(netns, 0) else {
            panic!("pending")
        };
        assert_eq!(found.map(|pod| pod.uid).as_deref(), expected);
    }
}
