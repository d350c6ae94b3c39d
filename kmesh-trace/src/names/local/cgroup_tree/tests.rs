//! Tests on directory trees in memory, whose owner stands for root, and on cgroups of version 2 where this process
//! may make some.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::names::local::cgroup::PodCgroup;
use crate::record::ContainerId;

const UID: &str = "9d7c5fbe-11a2-4c3b-8f0e-0123456789ab";
const OTHER_UID: &str = "11111111-2222-3333-4444-555555555555";

fn id(digits: &str) -> String {
    digits.repeat(64 / digits.len())
}

/// A directory tree, which is removed when this is dropped.
struct Tree {
    root: PathBuf,
}

impl Tree {
    /// In memory where possible, else below the temporary folder: many directories take minutes on a disk.
    fn new(name: &str) -> Self {
        let memory = PathBuf::from("/dev/shm");
        if memory.is_dir() {
            Self::below(&memory, name)
        } else {
            Self::below(&std::env::temp_dir(), name)
        }
    }

    /// A cgroup, if this process may make one.
    fn of_cgroups(name: &str) -> Option<Self> {
        let mount = mounts().0?;
        let probe = mount.join(format!("kmesh-trace-probe-{name}-{}", std::process::id()));
        fs::create_dir(&probe).ok()?;
        fs::remove_dir(&probe).unwrap();
        let tree = Self::below(&mount, name);
        let has_handles = Hierarchy::open(&mount).is_ok_and(|hierarchy| hierarchy.has_handles());
        has_handles.then_some(tree)
    }

    fn below(parent: &Path, name: &str) -> Self {
        let root = parent.join(format!("kmesh-trace-{name}-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        Self { root }
    }

    /// Makes a directory, its parents included, and returns its id.
    fn make(&self, path: impl AsRef<Path>) -> u64 {
        let directory = self.root.join(path);
        fs::create_dir_all(&directory).unwrap();
        fs::metadata(directory).unwrap().ino()
    }

    fn set_mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn watched(&self) -> Watched {
        let (sender, changes) = channel();
        let uid = fs::metadata(&self.root).unwrap().uid();
        Watched {
            cgroups: CgroupTree::trusting(&self.root, uid, move || _ = sender.send(())),
            changes,
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        remove_all(&self.root);
    }
}

/// Removes a directory tree, in which the files of cgroups cannot be removed.
fn remove_all(directory: &Path) {
    for child in fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_all(&child.path());
        } else {
            _ = fs::remove_file(child.path());
        }
    }
    _ = fs::remove_dir(directory);
}

struct Watched {
    cgroups: CgroupTree,
    changes: Receiver<()>,
}

impl Watched {
    /// Looks a cgroup up, and waits for the answer.
    fn owner(&mut self, id: u64) -> Option<Arc<CgroupOwner>> {
        loop {
            match self.cgroups.lookup(id) {
                Lookup::Known(owner) => return owner,
                Lookup::Pending => self.changes.recv().unwrap(),
            }
        }
    }

    /// Looks a cgroup up. Returns the UID and the start of the container's id.
    fn text(&mut self, id: u64) -> String {
        let Some(owner) = self.owner(id) else {
            return "none".to_owned();
        };
        let uid = owner.pod.as_ref().map_or("-", |pod| &*pod.uid);
        let container = owner.container.as_ref().map_or("-", |id| &id.as_str()[..2]);
        format!("{uid} {container}")
    }

    /// Waits until the watcher has seen everything that happened so far: it answers after it has applied all changes.
    fn settle(&mut self) {
        // No directory has this id.
        self.owner(u64::MAX - self.changes.try_iter().count() as u64);
        let mut never_used = 0;
        while self.cgroups.lookup(u64::MAX / 2 - never_used) != Lookup::Pending {
            never_used += 1;
        }
        self.owner(u64::MAX / 2 - never_used);
    }

    fn len(&self) -> usize {
        self.cgroups.shared.as_ref().unwrap().lock().table.len()
    }
}

/// The number of directories with these inode numbers that this process watches.
fn watches_of(inodes: &[u64]) -> usize {
    let descriptors = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = descriptors.map(|descriptor| fs::read_to_string(descriptor.path()).unwrap_or_default());
    let lines: Vec<String> = texts
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let inotify = lines.iter().filter(|line| line.starts_with("inotify "));
    let is_one = |line: &&String| inodes.iter().any(|inode| line.contains(&format!(" ino:{inode:x} ")));
    inotify.filter(is_one).count()
}

#[test]
fn existing_cgroups_are_known_and_remembered() {
    let tree = Tree::new("known");
    let (container_path, outer_path) = (
        format!("kubepods/pod{UID}/{}", id("3f")),
        format!("docker/{}", id("4d")),
    );
    let (container, outer) = (tree.make(&container_path), tree.make(outer_path));
    let pod = tree.make(format!("kubepods/pod{UID}"));
    let service = tree.make("system.slice/sshd.service");
    let mut watched = tree.watched();
    assert_eq!(watched.text(container), format!("{UID} 3f"));
    assert_eq!(
        watched.cgroups.pods_under("/kubepods").collect::<Vec<_>>(),
        [UID.into()]
    );
    assert_eq!(watched.cgroups.pods_under("/other").count(), 0);
    for name in ["kubepods", "docker"] {
        remove_all(&tree.root.join(name));
    }
    watched.settle();
    let owner = watched.owner(container).unwrap();
    let expected = CgroupOwner {
        pod: Some(PodCgroup {
            root: "/kubepods".into(),
            uid: UID.into(),
        }),
        container: ContainerId::new(&id("3f")),
    };
    assert_eq!(*owner, expected);
    assert_eq!(watched.text(pod), format!("{UID} -"));
    assert_eq!(watched.text(outer), "- 4d");
    assert_eq!(watched.text(service), "none");
    assert_eq!(watched.cgroups.pods_under("/kubepods").count(), 0);
}

#[test]
fn containers_that_start_and_end_are_found() {
    let tree = Tree::new("watched");
    let mut watched = tree.watched();
    watched.settle();
    let container = tree.make(format!("kubepods/burstable/pod{UID}/{}", id("3f")));
    watched.settle();
    remove_all(&tree.root.join("kubepods"));
    watched.settle();
    assert_eq!(watched.text(container), format!("{UID} 3f"));
    // The same directories again.
    let again = tree.make(format!("kubepods/burstable/pod{UID}/{}", id("4d")));
    watched.settle();
    remove_all(&tree.root.join("kubepods"));
    assert_eq!(watched.text(again), format!("{UID} 4d"));
}

#[test]
fn directories_that_others_can_write_to_name_no_pod() {
    let tree = Tree::new("untrusted");
    let pod = format!("user.slice/user@1000.service/kubepods/pod{UID}");
    let container = tree.make(format!("{pod}/{}", id("3f")));
    let fake = tree.make(format!("user.slice/user@1000.service/docker-{}.scope", id("3f")));
    tree.set_mode("user.slice/user@1000.service", 0o775);
    // A container's own directory may be delegated, and what is below it is the container's.
    let delegated = tree.make(format!("kubepods/pod{UID}/{}", id("4d")));
    let nested = tree.make(format!(
        "kubepods/pod{UID}/{}/kubepods/pod{OTHER_UID}/{}",
        id("4d"),
        id("5e")
    ));
    tree.set_mode(&format!("kubepods/pod{UID}/{}", id("4d")), 0o777);
    // A pod's directory may not.
    let in_others = tree.make(format!("kubepods/pod{OTHER_UID}/{}", id("6c")));
    tree.set_mode(&format!("kubepods/pod{OTHER_UID}"), 0o757);
    let mut watched = tree.watched();
    assert_eq!(watched.text(container), "none");
    assert_eq!(watched.text(fake), "none");
    assert_eq!(watched.text(delegated), format!("{UID} 4d"));
    assert_eq!(watched.text(nested), format!("{UID} 4d"));
    assert_eq!(watched.text(in_others), "none");
    assert_eq!(
        watched.cgroups.pods_under("/kubepods").collect::<Vec<_>>(),
        [UID.into()]
    );
    // A directory that others may write to after it was scanned.
    tree.make("late/x");
    watched.settle();
    tree.set_mode("late", 0o777);
    let late = tree.make(format!("late/kubepods/pod{UID}/{}", id("7b")));
    assert_eq!(watched.text(late), "none");
}

#[test]
fn another_users_directories_name_no_pod() {
    let tree = Tree::new("another");
    let container = tree.make(format!("kubepods/pod{UID}/{}", id("3f")));
    let uid = fs::metadata(&tree.root).unwrap().uid();
    let (sender, changes) = channel();
    let mut watched = Watched {
        cgroups: CgroupTree::trusting(&tree.root, uid + 1, move || _ = sender.send(())),
        changes,
    };
    assert_eq!(watched.text(container), "none");
}

#[test]
fn odd_names_are_harmless() {
    let tree = Tree::new("odd");
    let names = ["a b", "c\nd", "e (deleted)", "f:g", "-", "é"];
    let mut containers = Vec::new();
    for name in names {
        containers.push(tree.make(format!("{name}/kubepods/pod{UID}/{}", id("3f"))));
    }
    let not_unicode = Path::new(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    containers.push(tree.make(not_unicode.join(format!("kubepods/pod{UID}/{}", id("3f")))));
    let long = "n".repeat(255);
    let longest = tree.make([&*long; 12].join("/"));
    let deep = tree.make("d/".repeat(1000));
    symlink(&tree.root, tree.root.join("link")).unwrap();
    symlink("/", tree.root.join("kubepods")).unwrap();
    fs::write(tree.root.join(format!("pod{UID}")), "a file").unwrap();
    let mut watched = tree.watched();
    for container in containers {
        assert_eq!(watched.text(container), format!("{UID} 3f"));
    }
    assert_eq!(watched.text(longest), "none");
    assert_eq!(watched.text(deep), "none");
}

#[test]
fn without_a_hierarchy_no_owner_is_known() {
    for root in [None, Some(PathBuf::from("/does/not/exist"))] {
        let mut cgroups = CgroupTree::open(root, || ());
        assert_eq!(cgroups.lookup(1), Lookup::Known(None));
        assert_eq!(cgroups.pods_under("/kubepods").count(), 0);
    }
}

#[test]
fn lookups_beyond_the_limit_are_answered_at_once() {
    let tree = Tree::new("flood");
    let (sender, _changes) = channel();
    let (release, released) = channel::<()>();
    // The first scan reports, and waits there.
    let mut cgroups = CgroupTree::trusting(&tree.root, 0, move || {
        _ = sender.send(());
        _ = released.recv();
    });
    let pending = (1..100_000)
        .filter(|id| cgroups.lookup(u64::MAX - id) == Lookup::Pending)
        .count();
    assert!(pending >= MAX_REQUESTS, "{pending}");
    // At most once more, when the first requests were taken up.
    assert!(pending <= 2 * MAX_REQUESTS, "{pending}");
    drop(release);
}

/// The kernel's own cgroups: their ids are looked up by handle, and removal ends their watch.
#[test]
fn cgroups_are_found_by_id() {
    let Some(tree) = Tree::of_cgroups("handles") else {
        println!("skipped: this process can make no cgroups of version 2, or may not open them by handle");
        return;
    };
    let mount = mounts().0.unwrap();
    let below = tree.root.strip_prefix(&mount).unwrap().to_owned();
    let pod = format!("kubepods/pod{UID}");
    let mut watched = {
        let (sender, changes) = channel();
        Watched {
            cgroups: CgroupTree::mounted(move || _ = sender.send(())),
            changes,
        }
    };
    watched.settle();
    let container = tree.make(format!("{pod}/{}", id("3f")));
    let nested = tree.make(format!("{pod}/{}/a b (deleted)/é", id("3f")));
    let deep = tree.make(format!("{pod}/{}/{}", id("3f"), "d/".repeat(40)));
    let service = tree.make("x.service");
    assert_eq!(watched.text(nested), format!("{UID} 3f"));
    assert_eq!(watched.text(deep), format!("{UID} 3f"));
    assert_eq!(watched.text(container), format!("{UID} 3f"));
    assert_eq!(watched.text(service), "none");
    let root = format!("/{}/kubepods", below.display());
    assert_eq!(watched.cgroups.pods_under(&root).collect::<Vec<_>>(), [UID.into()]);
    let directories = [tree.make("kubepods"), tree.make(&pod), container, nested];
    assert_eq!(watches_of(&directories), 2, "nothing in the container is watched");
    remove_all(&tree.root.join("kubepods"));
    watched.settle();
    assert_eq!(watches_of(&directories), 0, "nothing is left of what is gone");
    assert_eq!(watched.cgroups.pods_under(&root).count(), 0);
    for id in [container, nested, deep] {
        assert_eq!(watched.text(id), format!("{UID} 3f"), "remembered");
    }
}

/// Many directories of a tenant, in every place where it can have some, leave memory and watches as they are.
#[test]
fn directories_of_a_tenant_take_no_lasting_memory() {
    const MANY: usize = 66_000;
    let tree = Tree::new("many");
    let container = format!("kubepods/pod{UID}/{}", id("3f"));
    let outer = format!("docker/{}", id("4d"));
    tree.make("user@1000.service");
    tree.set_mode("user@1000.service", 0o777);
    let places = [&*container, &outer, "user@1000.service"];
    let mut nested = Vec::new();
    for number in 0..MANY / places.len() {
        nested.extend(places.map(|place| tree.make(format!("{place}/{number}"))));
    }
    let victim = tree.make(format!("kubepods/pod{OTHER_UID}/{}", id("5e")));
    let mut watched = tree.watched();
    watched.settle();
    let made_later = tree.make(format!("kubepods/pod{OTHER_UID}/{}", id("6c")));
    watched.settle();
    // The pods' and containers' directories; and the ids that `settle` has asked for.
    assert!(watched.len() < 12, "{}", watched.len());
    let watches = watches_of(&nested);
    assert!(watches <= 64, "{watches} of a tenant's directories are watched");
    assert_eq!(watched.text(victim), format!("{OTHER_UID} 5e"));
    assert_eq!(watched.text(made_later), format!("{OTHER_UID} 6c"));
}
