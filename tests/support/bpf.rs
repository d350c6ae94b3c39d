//! What a process holds in the kernel's BPF side, and whether it is still there.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;
use nix::unistd::Pid;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A loaded program.
    Program,
    /// A map.
    Map,
    /// An attachment.
    Link,
}

/// One object of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// The kernel's number for it; a number is not given again soon.
    pub id: u32,
}

/// All that the descriptors of a process lead to.
pub fn objects_of(pid: Pid) -> Vec<Object> {
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo of the tracer") {
        // A descriptor may be closed between the listing and the look.
        let text = entry
            .and_then(|entry| std::fs::read_to_string(entry.path()))
            .unwrap_or_default();
        for line in text.lines() {
            let Some((key, id)) = line.split_once(':') else {
                continue;
            };
            let kind = match key {
                "prog_id" => Kind::Program,
                "map_id" => Kind::Map,
                "link_id" => Kind::Link,
                _ => continue,
            };
            let object = Object {
                kind,
                id: id.trim().parse().expect("an id"),
            };
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
    }
    objects
}

/// How often the kernel skipped which of its programs, as far as it did.
pub fn skipped_runs(pid: Pid) -> BTreeMap<String, u64> {
    // Where `struct bpf_prog_info` has them.
    const NAME: usize = 64;
    const RECURSION_MISSES: usize = 208;
    let programs = objects_of(pid)
        .into_iter()
        .filter(|object| object.kind == Kind::Program);
    let infos = programs.filter_map(|program| open(program).map(|program| info(&program)));
    let skipped = infos.map(|info| {
        let misses = info[RECURSION_MISSES..].try_into().expect("a number");
        (name(&info[NAME..]).to_owned(), u64::from_ne_bytes(misses))
    });
    skipped.filter(|(_, misses)| *misses > 0).collect()
}

/// Those that still exist.
pub fn alive(objects: &[Object]) -> Vec<Object> {
    objects.iter().copied().filter(|object| exists(*object)).collect()
}

fn exists(object: Object) -> bool {
    open(object).is_some()
}

/// None when it exists no more.
fn open(object: Object) -> Option<OwnedFd> {
    let command = match object.kind {
        Kind::Program => 13,
        Kind::Map => 14,
        Kind::Link => 30,
    };
    // BPF_*_GET_FD_BY_ID: the id first, zeros for the rest.
    let fd = bpf(command, &mut [object.id, 0, 0, 0])?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the elements of the array of this name among these objects, each as its words of 64 bits.
pub fn elements(objects: &[Object], name: &str) -> Vec<Vec<u64>> {
    // The sizes of a key and of a value, where `struct bpf_map_info` has them.
    const VALUE_SIZE: usize = 12;
    let map = objects
        .iter()
        .filter(|object| object.kind == Kind::Map)
        .find_map(|map| named(*map, name))
        .expect("the map");
    let size = info(&map)[VALUE_SIZE..]
        .first_chunk()
        .map(|size| u32::from_ne_bytes(*size));
    let words = size.expect("the size of a value").div_ceil(8) as usize;
    (0_u32..).map_while(|index| value(&map, &index, words)).collect()
}

/// None when it is another, or exists no more.
fn named(map: Object, wanted: &str) -> Option<OwnedFd> {
    // Where `struct bpf_map_info` has it.
    const NAME: usize = 24;
    let map = open(map)?;
    (name(&info(&map)[NAME..]) == wanted).then_some(map)
}

/// The first members of a program's or a map's `struct bpf_…_info`, and zeros.
fn info(object: &OwnedFd) -> [u8; 216] {
    const INFO: libc::c_long = 15;
    let mut info = [0_u8; 216];
    let [low, high] = words(info.as_mut_ptr() as u64);
    bpf(INFO, &mut [object.as_raw_fd() as u32, info.len() as u32, low, high]).expect("what it is");
    // SAFETY: the kernel may have written it behind the compiler's back.
    unsafe { std::ptr::read_volatile(&raw const info) }
}

/// The name that stands there, of at most 15 bytes.
fn name(info: &[u8]) -> &str {
    let name = info[..16].split(|&byte| byte == 0).next().unwrap_or_default();
    std::str::from_utf8(name).expect("a name")
}

/// Returns the value of a key, which has this number of words of 64 bits.
fn value<K>(map: &OwnedFd, key: &K, size: usize) -> Option<Vec<u64>> {
    const LOOK_UP: libc::c_long = 1;
    let mut value = vec![0_u64; size];
    let ([key, key_high], [to, to_high]) = (words(std::ptr::from_ref(key) as u64), words(value.as_mut_ptr() as u64));
    bpf(
        LOOK_UP,
        &mut [map.as_raw_fd() as u32, 0, key, key_high, to, to_high, 0, 0],
    )?;
    // The kernel has written it behind the compiler's back.
    Some(std::hint::black_box(value))
}

fn words(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// None for what is not there.
fn bpf(command: libc::c_long, attr: &mut [u32]) -> Option<i32> {
    // SAFETY: the kernel reads and writes the given number of bytes of `attr`, which lives through the call, and what the
    // caller put addresses of into it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Some(result),
        _ => {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "bpf({command}): {error}");
            None
        }
    }
}
