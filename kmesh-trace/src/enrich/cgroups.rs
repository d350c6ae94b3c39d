//! The running tree of cgroups: which id is which container's and pod's.
//!
//! The kernel's id of a cgroup is the inode number of its directory. A container can be gone when its last connections close, so
//! the tree is walked at the start, watched from then on, and what was seen is remembered.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};

use super::cgroup::Place;

/// Between walks over the tree, however many unknown cgroups turn up.
const WALKS: Duration = Duration::from_secs(1);
/// Cgroups remembered; then all are forgotten but those that are still there.
const MOST: usize = 100_000;
/// News that may wait to be read; what is more is found by a walk.
const QUEUE: usize = 4096;
/// Directories deep in each other that are looked into. systemd and container runtimes in each other make a dozen.
const MOST_DEEP: usize = 64;

/// A cgroup's id, and whose it is, if anybody's.
type Found = (u64, Option<Arc<Place>>);

/// All cgroups that are or were there.
#[derive(Debug)]
pub struct Cgroups {
    root: Option<PathBuf>,
    known: HashMap<u64, Option<Arc<Place>>>,
    news: Option<Receiver<Found>>,
    walked: Option<Instant>,
}

impl Cgroups {
    /// Those of this system; none where cgroups v2 are not mounted.
    pub fn mounted() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        Self::below(mount)
    }

    /// Those below this directory.
    pub fn below(root: Option<PathBuf>) -> Self {
        let mut cgroups = Self {
            root,
            known: HashMap::new(),
            news: None,
            walked: None,
        };
        if let Some(root) = &cgroups.root {
            cgroups.news = watch(root, &mut cgroups.known);
        }
        // Without a watch, walks must do.
        if cgroups.news.is_none() {
            cgroups.walk();
        }
        cgroups
    }

    /// Whose a cgroup is, if it is a container's or a pod's.
    pub fn place_of(&mut self, cgroup_id: u64) -> Option<Arc<Place>> {
        if !self.known.contains_key(&cgroup_id) {
            self.known.extend(self.news.iter().flat_map(Receiver::try_iter));
        }
        if !self.known.contains_key(&cgroup_id) && self.walked.is_none_or(|walked| walked.elapsed() >= WALKS) {
            self.walk();
        }
        self.known.get(&cgroup_id)?.clone()
    }

    fn walk(&mut self) {
        if self.known.len() > MOST {
            self.known.clear();
        }
        if let Some(root) = &self.root {
            visit(root, &mut String::new(), &mut |found, _, _| {
                self.known.insert(found.0, found.1);
            });
        }
        self.walked = Some(Instant::now());
    }
}

/// Shows `see` each directory below this one, and its path from the root. What cannot be read, or goes meanwhile, is nobody's.
fn visit(directory: &Path, path: &mut String, see: &mut impl FnMut(Found, &Path, &str)) {
    if path.bytes().filter(|&byte| byte == b'/').count() >= MOST_DEEP {
        return;
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let length = path.len();
            path.push('/');
            path.push_str(&entry.file_name().to_string_lossy());
            see((entry.ino(), Place::of(path).map(Arc::new)), &entry.path(), path);
            visit(&entry.path(), path, see);
            path.truncate(length);
        }
    }
}

/// Watches all directories below `root`, in a thread of its own that ends when nobody listens. `known` gets those that are there
/// now.
fn watch(root: &Path, known: &mut HashMap<u64, Option<Arc<Place>>>) -> Option<Receiver<Found>> {
    let mut watcher = Watcher {
        inotify: init(CreateFlags::CLOEXEC).ok()?,
        watched: HashMap::new(),
        root: root.to_owned(),
    };
    watcher.add("", &mut |(id, place)| {
        known.insert(id, place);
        true
    });
    let (found, news) = sync_channel(QUEUE);
    thread::Builder::new()
        .name("cgroups".to_owned())
        .spawn(move || watcher.run(&found))
        .ok()?;
    Some(news)
}

struct Watcher {
    inotify: OwnedFd,
    /// The paths of watched directories from the root.
    watched: HashMap<i32, String>,
    root: PathBuf,
}

impl Watcher {
    /// Watches the directory at `path` and all directories below it. `report` gets each directory below it before that
    /// directory is watched, so everything with a watch has been reported. Returns false once `report` does. A directory that
    /// cannot be watched is left to walks.
    fn add(&mut self, path: &str, report: &mut impl FnMut(Found) -> bool) -> bool {
        let directory = self.root.join(path.trim_start_matches('/'));
        // A directory is watched before it is read, so one that is made in it meanwhile is reported by its watch.
        self.add_one(&directory, path);
        let mut is_heard = true;
        visit(&directory, &mut path.to_owned(), &mut |found, directory, path| {
            is_heard = is_heard && report(found);
            self.add_one(directory, path);
        });
        is_heard
    }

    fn add_one(&mut self, directory: &Path, path: &str) {
        if let Ok(watch) = add_watch(&self.inotify, directory, WatchFlags::CREATE | WatchFlags::ONLYDIR) {
            self.watched.insert(watch, path.to_owned());
        }
    }

    fn run(mut self, news: &SyncSender<Found>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let mut made = Vec::new();
            {
                let mut reader = Reader::new(&self.inotify, &mut buffer);
                loop {
                    let Ok(event) = reader.next() else { return };
                    if event.events().contains(ReadFlags::IGNORED) {
                        self.watched.remove(&event.wd());
                    } else if event.events().contains(ReadFlags::CREATE | ReadFlags::ISDIR)
                        && let (Some(parent), Some(name)) = (self.watched.get(&event.wd()), event.file_name())
                    {
                        made.push(format!(
                            "{parent}/{}",
                            OsStr::from_bytes(name.to_bytes()).to_string_lossy()
                        ));
                    }
                    if reader.is_buffer_empty() {
                        break;
                    }
                }
            }
            for path in made {
                let directory = self.root.join(path.trim_start_matches('/'));
                let Ok(metadata) = fs::metadata(&directory) else {
                    continue;
                };
                let own = (metadata.ino(), Place::of(&path).map(Arc::new));
                let mut report = |found| tell(news, found);
                // Before it is watched, as those below it.
                if !report(own) || !self.add(&path, &mut report) {
                    return;
                }
            }
        }
    }
}

/// False when nobody listens any more. When the queue is full, a walk will find it.
fn tell(news: &SyncSender<Found>, found: Found) -> bool {
    !matches!(news.try_send(found), Err(TrySendError::Disconnected(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ContainerId;

    const UID: &str = "9d7c5fbe-11a2-4c3b-8f0e-0123456789ab";

    fn root(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("kmesh-trace-{name}-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        root
    }

    fn inode(path: &Path) -> u64 {
        fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_cgroup_is_its_directorys_inode_and_is_remembered() {
        let root = root("cgroups");
        let id = "3f".repeat(32);
        let container = root.join("kubepods").join(format!("pod{UID}")).join(&id);
        fs::create_dir_all(&container).unwrap();
        let (of_container, of_pod, of_all) = (
            inode(&container),
            inode(container.parent().unwrap()),
            inode(&root.join("kubepods")),
        );
        let mut cgroups = Cgroups::below(Some(root.clone()));
        fs::remove_dir_all(&root).unwrap();
        let place = cgroups.place_of(of_container).unwrap();
        assert_eq!((&*place.pods[0], place.container), (UID, ContainerId::new(&id)));
        assert_eq!(cgroups.place_of(of_pod).unwrap().container, None);
        assert_eq!(cgroups.place_of(of_all), None);
        assert_eq!(cgroups.place_of(0), None);
    }

    /// It is gone before anybody asks, and no walk ever met it.
    #[test]
    fn what_comes_and_goes_is_seen() {
        let root = root("watched");
        let mut cgroups = Cgroups::below(Some(root.clone()));
        let pod = root.join("kubepods/burstable").join(format!("pod{UID}"));
        let id = "3f".repeat(32);
        fs::create_dir_all(&pod).unwrap();
        let container = pod.join(&id);
        fs::create_dir(&container).unwrap();
        let of_container = inode(&container);
        // Until its news has come; a file system that tells nothing would never send it.
        let news = cgroups.news.take().unwrap();
        let found = news
            .iter()
            .inspect(|found| _ = cgroups.known.insert(found.0, found.1.clone()))
            .find(|(inode, _)| *inode == of_container);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.unwrap().1.unwrap().container, ContainerId::new(&id));
        assert_eq!(&*cgroups.place_of(of_container).unwrap().pods[0], UID);
    }
}
