//! The file by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::{output, tool, trial};

/// What it may be long.
const MOST_BYTES: u64 = 12 << 20;

/// The trials.
pub fn trials() -> Vec<Trial> {
    vec![
        trial("file::wants_no_other", || Ok(()), wants_no_other),
        trial("file::is_stripped_and_small", || Ok(()), is_small),
        trial("file::has_no_path_of_its_maker", || Ok(()), has_no_path),
    ]
}

fn readelf(what: &str) -> String {
    output(Command::new("readelf").args(["--wide", what]).arg(tool()))
}

fn wants_no_other() {
    let segments = readelf("--program-headers");
    assert!(segments.contains("LOAD") && !segments.contains("INTERP"), "{segments}");
    let dynamic = readelf("--dynamic");
    assert!(!dynamic.contains("NEEDED"), "{dynamic}");
    // What is written to is not executed, and it may be loaded anywhere.
    let stack = segments.lines().find(|line| line.contains("GNU_STACK"));
    assert!(stack.is_some_and(|line| !line.contains("RWE")), "{segments}");
    assert!(segments.contains("GNU_RELRO"), "{segments}");
    assert!(readelf("--file-header").contains("DYN"), "position-independent");
}

fn is_small() {
    let sections = readelf("--section-headers");
    assert!(
        !sections.contains(".symtab") && !sections.contains(".debug"),
        "{sections}"
    );
    let bytes = fs::metadata(tool()).unwrap().len();
    assert!(bytes <= MOST_BYTES, "{bytes} bytes, {MOST_BYTES} at most");
}

fn has_no_path() {
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
    let places = [
        Some(repository.to_owned()),
        std::env::var_os("KMESH_TRACE_DIST").map(PathBuf::from),
        home("CARGO_HOME", ".cargo"),
        home("RUSTUP_HOME", ".rustup"),
    ];
    for place in places.into_iter().flatten() {
        assert!(!has(&place), "{} is in it", place.display());
    }
    // The search finds what is there.
    assert!(has(Path::new("/sys/kernel/btf/vmlinux")));
}
