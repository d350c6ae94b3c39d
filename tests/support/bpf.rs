//! The BPF objects of a process: which it has, and whether they still exist.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;
use nix::unistd::Pid;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Program,
    Map,
    Link,
}

/// A BPF object in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    pub kind: Kind,
    /// The kernel does not soon use the ID of an object that is gone again.
    pub id: u32,
}

/// Returns the BPF objects that a process has descriptors of.
pub fn objects_of(pid: Pid) -> Vec<Object> {
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo of the tracer") {
        // The process may close a descriptor after it was listed.
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
                id: id.trim().parse().expect("an ID"),
            };
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
    }
    objects
}

/// Returns the number of runs that the kernel skipped of each program, without the programs of which it skipped none.
pub fn skipped_runs(pid: Pid) -> BTreeMap<String, u64> {
    // Offsets in `struct bpf_prog_info`.
    const NAME: usize = 64;
    const RECURSION_MISSES: usize = 208;
    let programs = objects_of(pid)
        .into_iter()
        .filter(|object| object.kind == Kind::Program);
    let infos = programs.filter_map(|program| open(program).map(|program| info(&program)));
    let skipped = infos.map(|info| {
        let misses = info[RECURSION_MISSES..].try_into().expect("eight bytes");
        (object_name(&info[NAME..]).to_owned(), u64::from_ne_bytes(misses))
    });
    skipped.filter(|(_, misses)| *misses > 0).collect()
}

/// Returns the objects that still exist.
pub fn existing(objects: &[Object]) -> Vec<Object> {
    objects
        .iter()
        .copied()
        .filter(|object| open(*object).is_some())
        .collect()
}

/// Opens an object. None if it does not exist any more.
fn open(object: Object) -> Option<OwnedFd> {
    let command = match object.kind {
        Kind::Program => 13,
        Kind::Map => 14,
        Kind::Link => 30,
    };
    // BPF_*_GET_FD_BY_ID: the ID, then zeros.
    let fd = bpf(command, &mut [object.id, 0, 0, 0])?;
    // SAFETY: the kernel has just created this descriptor, and nothing else knows its number.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns the elements of the array map with this name, each as its 64-bit words.
pub fn elements(objects: &[Object], name: &str) -> Vec<Vec<u64>> {
    // The offset in `struct bpf_map_info`.
    const VALUE_SIZE: usize = 12;
    let map = objects
        .iter()
        .filter(|object| object.kind == Kind::Map)
        .find_map(|map| open_if_named(*map, name))
        .expect("the map");
    let size = info(&map)[VALUE_SIZE..]
        .first_chunk()
        .map(|size| u32::from_ne_bytes(*size));
    let words = size.expect("the size of a value").div_ceil(8) as usize;
    (0_u32..).map_while(|index| look_up(&map, &index, words)).collect()
}

/// Opens a map if it has this name. None if it has another name or does not exist any more.
fn open_if_named(map: Object, name: &str) -> Option<OwnedFd> {
    // The offset in `struct bpf_map_info`.
    const NAME: usize = 24;
    let map = open(map)?;
    (object_name(&info(&map)[NAME..]) == name).then_some(map)
}

/// Returns the beginning of an object's `struct bpf_prog_info` or `struct bpf_map_info`, filled up with zeros.
fn info(object: &OwnedFd) -> [u8; 216] {
    const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    let mut info = [0_u8; 216];
    let [low, high] = halves(info.as_mut_ptr() as u64);
    let mut attr = [object.as_raw_fd() as u32, info.len() as u32, low, high];
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).expect("the object's info");
    // SAFETY: reads a local variable. Volatile, since the compiler does not see that the kernel has written it.
    unsafe { std::ptr::read_volatile(&raw const info) }
}

/// Returns an object's name, which has at most 15 bytes.
fn object_name(info: &[u8]) -> &str {
    let name = info[..16].split(|&byte| byte == 0).next().unwrap_or_default();
    std::str::from_utf8(name).expect("a name in UTF-8")
}

/// Returns the value of a key as its 64-bit words.
fn look_up<K>(map: &OwnedFd, key: &K, words: usize) -> Option<Vec<u64>> {
    const MAP_LOOKUP_ELEM: libc::c_long = 1;
    let mut value = vec![0_u64; words];
    let [key, key_high] = halves(std::ptr::from_ref(key) as u64);
    let [to, to_high] = halves(value.as_mut_ptr() as u64);
    let mut attr = [map.as_raw_fd() as u32, 0, key, key_high, to, to_high, 0, 0];
    bpf(MAP_LOOKUP_ELEM, &mut attr)?;
    // The compiler does not see that the kernel has written the value.
    Some(std::hint::black_box(value))
}

fn halves(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// Calls bpf(). None if the object does not exist.
fn bpf(command: libc::c_long, attr: &mut [u32]) -> Option<i32> {
    // SAFETY: the kernel reads and writes `attr` up to its size, and the buffers whose addresses the caller put into
    // it. All of them live through the call.
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
