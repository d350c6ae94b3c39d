//! A mounted cgroup hierarchy: its directories, who may write to them, and which directory has an id.

use std::ffi::{CStr, OsStr, OsString, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, fstatfs, openat, readlinkat, statat};

/// The type of a file handle that is a kernfs id (FILEID_KERNFS), from Linux 5.5 on. Earlier, ids were no 64-bit
/// inode numbers.
const FILEID_KERNFS: c_int = 0xfe;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
/// The number of parent directories that are tried where a path is too long for the kernel to report.
const MAX_CLIMB: usize = 4096;
/// The kernel's suffix of the path of a directory that was removed.
const DELETED: &[u8] = b" (deleted)";

/// A cgroup hierarchy. Paths are relative to its root.
#[derive(Debug)]
pub struct Hierarchy {
    root: OwnedFd,
    /// The root's path as the kernel reports it.
    path: PathBuf,
    /// The user whose directories are trusted; `None` trusts no directory.
    trusted_uid: Option<u32>,
}

#[repr(C)]
struct FileHandle {
    handle_bytes: u32,
    handle_type: c_int,
    id: u64,
}

unsafe extern "C" {
    // Both glibc and musl have it.
    fn open_by_handle_at(mount_fd: c_int, handle: *mut FileHandle, flags: c_int) -> c_int;
}

impl Hierarchy {
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::trusting(path, initial_root())
    }

    /// Opens a directory and trusts this user's directories.
    pub fn trusting(path: &Path, trusted_uid: Option<u32>) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
        Ok(Self {
            path: path_of(&root)?,
            root,
            trusted_uid,
        })
    }

    pub fn absolute(&self, path: &Path) -> PathBuf {
        self.path.join(path)
    }

    /// Returns the cgroup id of a directory, and whether only root can write to it.
    pub fn inspect(&self, path: &Path) -> io::Result<(u64, bool)> {
        let stat = if path.as_os_str().is_empty() {
            fstat(&self.root)?
        } else {
            statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW)?
        };
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let is_trusted = is_directory && Some(stat.st_uid) == self.trusted_uid && stat.st_mode & 0o022 == 0;
        Ok((stat.st_ino, is_trusted))
    }

    /// Returns the number of directories on the way to this one, from the root downwards and both included, to which
    /// only root can write.
    pub fn trusted_depth(&self, path: &Path) -> usize {
        let ancestors: Vec<&Path> = path.ancestors().collect();
        let is_trusted = |path: &&&Path| self.inspect(path).is_ok_and(|(_, is_trusted)| is_trusted);
        ancestors.iter().rev().take_while(is_trusted).count()
    }

    /// Returns the names and ids of the directories in a directory, if it can be read.
    pub fn children(&self, path: &Path) -> impl Iterator<Item = (OsString, u64)> + use<> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&self.root, path, flags, Mode::empty()).and_then(Dir::new);
        let entries = directory.into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let name = entry.file_name();
            let is_child = entry.file_type() == FileType::Directory && !matches!(name.to_bytes(), b"." | b"..");
            is_child.then(|| (OsStr::from_bytes(name.to_bytes()).to_owned(), entry.ino()))
        })
    }

    /// Reads the start of a file in a directory, at most 4 KiB.
    pub fn read_start(&self, path: &Path, file: &CStr) -> io::Result<Vec<u8>> {
        let path = path.join(OsStr::from_bytes(file.to_bytes()));
        read_start(&self.root, &path)
    }

    /// Returns whether [`Self::path_of`] works: on a cgroup2 mount, with CAP_DAC_READ_SEARCH in the initial user
    /// namespace.
    pub fn has_handles(&self) -> bool {
        let is_cgroup2 = fstatfs(&self.root).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_SUPER_MAGIC);
        let id = self.inspect(Path::new("")).map(|(id, _)| id);
        is_cgroup2 && id.is_ok_and(|id| self.open_by_id(id).is_ok())
    }

    /// Returns the path of the cgroup with this id, if it still exists.
    ///
    /// The kernel finds the directory in constant time while it has it cached. Else it reads the directory's siblings.
    pub fn path_of(&self, id: u64) -> io::Result<PathBuf> {
        let mut directory = self.open_by_id(id)?;
        for _ in 0..MAX_CLIMB {
            match path_of(&directory) {
                Ok(path) => {
                    let path = path.strip_prefix(&self.path).map_err(io::Error::other)?;
                    return Ok(without_deleted(path));
                }
                // A directory so deep is below some container, so the start of its path names the owner.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NAMETOOLONG.raw_os_error()) => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    directory = openat(&directory, "..", flags, Mode::empty())?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(rustix::io::Errno::NAMETOOLONG.into())
    }

    fn open_by_id(&self, id: u64) -> io::Result<OwnedFd> {
        let mut handle = FileHandle {
            handle_bytes: size_of::<u64>() as u32,
            handle_type: FILEID_KERNFS,
            id,
        };
        let flags = (OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC).bits() as c_int;
        // SAFETY: the descriptor is open, and `handle` has the layout of `struct file_handle` with 8 bytes of
        // `f_handle`, as `handle_bytes` says.
        let descriptor = unsafe { open_by_handle_at(self.root.as_raw_fd(), &raw mut handle, flags) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just opened it, and nothing else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

/// Reads the start of a file, at most 4 KiB.
pub fn read_start(directory: impl AsFd, path: &Path) -> io::Result<Vec<u8>> {
    let file = openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = vec![0; 4096];
    let length = rustix::io::read(&file, &mut text[..])?;
    text.truncate(length);
    Ok(text)
}

/// Returns the mount points of cgroup hierarchies: version 2 first.
pub fn mounts() -> (Option<PathBuf>, Vec<PathBuf>) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let (mut unified, mut legacy) = (None, Vec::new());
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        match (fields.next(), fields.next()) {
            (Some(path), Some("cgroup2")) if unified.is_none() => unified = Some(PathBuf::from(path)),
            (Some(path), Some("cgroup")) => legacy.push(PathBuf::from(path)),
            _ => {}
        }
    }
    (unified, legacy)
}

/// Returns 0, or `None` in a user namespace, where 0 may be any user.
fn initial_root() -> Option<u32> {
    let map = fs::read_to_string("/proc/self/uid_map").ok()?;
    map.split_whitespace().eq(["0", "0", "4294967295"]).then_some(0)
}

fn path_of(descriptor: &OwnedFd) -> io::Result<PathBuf> {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let path = readlinkat(rustix::fs::CWD, link, Vec::new())?;
    Ok(OsString::from_vec(path.into_bytes()).into())
}

/// Removes the kernel's suffix. Only root can make a directory with such a name above a container, and below one, names
/// prove nothing.
fn without_deleted(path: &Path) -> PathBuf {
    let bytes = path.as_os_str().as_bytes();
    OsStr::from_bytes(bytes.strip_suffix(DELETED).unwrap_or(bytes)).into()
}
