//! The contents of the archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::{UNPACKED, artefact, folder, output, support, tool, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("archive::checksums_are_right", || Ok(()), checksums_are_right),
        trial("archive::is_reproducible", || Ok(()), is_reproducible),
        trial("archive::completions_equal_the_tools_output", || Ok(()), completions),
        trial("archive::manual_equals_the_repositorys", || Ok(()), manual),
        trial("archive::lists_linked_libraries", || Ok(()), third_party),
    ]
}

fn archive() -> PathBuf {
    artefact(".tar.gz")
}

/// Unpacks the archive, and returns its folder.
pub fn unpack() -> PathBuf {
    let to = support::scratch_dir().join("unpacked");
    _ = fs::remove_dir_all(&to);
    fs::create_dir_all(&to).unwrap();
    output(Command::new("tar").arg("-xzf").arg(archive()).arg("-C").arg(&to));
    let mut entries = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().path());
    let (folder, more) = (entries.next().expect("a folder"), entries.next());
    assert_eq!(more, None, "the archive has one folder");
    folder
}

fn checksums_are_right() {
    let check = |folder: &Path| {
        let lines = output(
            Command::new("sha256sum")
                .args(["--check", "--strict", "SHA256SUMS"])
                .current_dir(folder),
        );
        assert!(lines.lines().all(|line| line.ends_with(": OK")), "{lines}");
        lines.lines().count()
    };
    let artefacts = fs::read_dir(folder()).unwrap();
    let artefacts = artefacts.filter(|entry| entry.as_ref().unwrap().path().is_file());
    assert_eq!(
        check(&folder()),
        artefacts.count() - 1,
        "SHA256SUMS lists all artefacts"
    );
    // All files but SHA256SUMS itself.
    assert_eq!(check(&UNPACKED), files(&UNPACKED) - 1);
}

fn files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

/// The archive has no user names and no times of the machine that built it.
fn is_reproducible() {
    let list = output(
        Command::new("tar")
            .args(["--numeric-owner", "--full-time", "--utc", "-tvzf"])
            .arg(archive()),
    );
    let entries: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    for entry in &entries {
        let [mode, owner, _, day, time, name] = entry[..] else {
            panic!("{entry:?}")
        };
        let expected = match name {
            name if name.ends_with('/') => "drwxr-xr-x",
            name if name.ends_with("/kmesh-trace") => "-rwxr-xr-x",
            _ => "-rw-r--r--",
        };
        assert_eq!(mode, expected, "{name}");
        assert_eq!(owner, "0/0", "{name}");
        assert_eq!([day, time], entries[0][3..5], "{name}");
        assert!(name.starts_with("kmesh-trace-"), "{name}");
    }
    let names: Vec<_> = entries.iter().map(|entry| entry[5]).collect();
    assert!(names.is_sorted(), "{names:?}");
    // The gzip header has no name and no time: no flags, and four zero bytes.
    let head = fs::read(archive()).unwrap();
    assert_eq!(head[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
}

fn completions() {
    for (shell, name) in [
        ("bash", "kmesh-trace.bash"),
        ("zsh", "_kmesh-trace"),
        ("fish", "kmesh-trace.fish"),
    ] {
        let printed = output(Command::new(tool()).args(["completions", shell]));
        let packed = fs::read_to_string(UNPACKED.join("completions").join(name)).unwrap();
        assert_eq!(printed, packed, "{shell}");
    }
}

fn manual() {
    let repository = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../man/kmesh-trace.8"));
    let packed = fs::read_to_string(UNPACKED.join("man/kmesh-trace.8")).unwrap();
    assert_eq!(packed, fs::read_to_string(repository).unwrap());
    let help = output(Command::new(tool()).arg("--help"));
    let plain = packed.replace("\\-", "-");
    let flags = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let flags: Vec<_> = flags.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(flags.len() > 40, "{flags:?}");
    for flag in flags {
        assert!(plain.contains(flag), "{flag} is not in the manual");
    }
}

fn third_party() {
    let text = fs::read_to_string(UNPACKED.join("THIRD-PARTY")).unwrap();
    for part in [
        "\nhyper 1.",
        "\nring ",
        "GNU C Library",
        "Permission is hereby granted",
        "GNU LESSER GENERAL PUBLIC LICENSE",
    ] {
        assert!(text.contains(part), "{part}");
    }
    // No libraries of tests or of build scripts.
    for part in ["\nlibtest-mimic ", "\nserde_derive "] {
        assert!(!text.contains(part), "{part}");
    }
}
