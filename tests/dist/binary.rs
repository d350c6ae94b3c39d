//! The binary in the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::{output, tool, trial};

const MAX_BYTES: u64 = 12 << 20;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("binary::needs_no_library", || Ok(()), needs_no_library),
        trial("binary::is_stripped_and_small", || Ok(()), is_stripped_and_small),
        trial(
            "binary::has_no_path_of_the_build_machine",
            || Ok(()),
            has_no_path_of_the_build_machine,
        ),
    ]
}

fn readelf(what: &str) -> String {
    output(Command::new("readelf").args(["--wide", what]).arg(tool()))
}

fn needs_no_library() {
    let segments = readelf("--program-headers");
    assert!(segments.contains("LOAD") && !segments.contains("INTERP"), "{segments}");
    let dynamic = readelf("--dynamic");
    assert!(!dynamic.contains("NEEDED"), "{dynamic}");
    // Writable memory is not executable, and the binary can be loaded at any address.
    let stack = segments.lines().find(|line| line.contains("GNU_STACK"));
    assert!(stack.is_some_and(|line| !line.contains("RWE")), "{segments}");
    assert!(segments.contains("GNU_RELRO"), "{segments}");
    assert!(readelf("--file-header").contains("DYN"), "position-independent");
}

fn is_stripped_and_small() {
    let sections = readelf("--section-headers");
    assert!(
        !sections.contains(".symtab") && !sections.contains(".debug"),
        "{sections}"
    );
    let bytes = fs::metadata(tool()).unwrap().len();
    assert!(bytes <= MAX_BYTES, "{bytes} bytes, at most {MAX_BYTES}");
}

fn has_no_path_of_the_build_machine() {
    let bytes = fs::read(tool()).unwrap();
    let has = |path: &Path| {
        let path = path.to_str().unwrap().as_bytes();
        bytes.windows(path.len()).any(|window| window == path)
    };
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let home = |name: &str, folder: &str| {
        let set = std::env::var_os(name).map(PathBuf::from);
        set.or_else(|| Some(std::env::home_dir()?.join(folder)))
    };
    let paths = [
        Some(repository.to_owned()),
        std::env::var_os("KMESH_TRACE_DIST").map(PathBuf::from),
        home("CARGO_HOME", ".cargo"),
        home("RUSTUP_HOME", ".rustup"),
    ];
    for path in paths.into_iter().flatten() {
        assert!(!has(&path), "the binary has {}", path.display());
    }
    // The search finds a path that the binary has.
    assert!(has(Path::new("/sys/kernel/btf/vmlinux")));
}
