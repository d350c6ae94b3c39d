//! Writes an initramfs: a cpio archive in the "newc" format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;

/// An archive that is being written. The parent folders of an entry are added automatically.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    /// Adds a folder and its parent folders.
    pub fn folder(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.folders.contains(path) {
            return;
        }
        self.parent_of(path);
        self.folders.insert(path.to_owned());
        self.entry(path, 0o040_755, &[]);
    }

    /// Adds a regular file.
    pub fn file(&mut self, path: &str, executable: bool, content: &[u8]) {
        let path = path.trim_start_matches('/');
        self.parent_of(path);
        self.entry(path, if executable { 0o100_755 } else { 0o100_644 }, content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        let path = path.trim_start_matches('/');
        self.parent_of(path);
        self.entry(path, 0o120_777, target.as_bytes());
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn parent_of(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        // inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name size, check sum (unused)
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn folders_come_once_and_before_their_content() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", true, b"12345");
        archive.file("/a/b/two", false, b"");
        archive.link("/a/c", "b/one");
        let bytes = archive.finish();

        let text = String::from_utf8_lossy(&bytes);
        let positions: Vec<_> = ["a\0", "a/b\0", "a/b/one\0", "a/b/two\0", "a/c\0", "TRAILER!!!\0"]
            .map(|name| text.find(&format!("00000000{name}")))
            .into();
        assert!(positions.iter().all(Option::is_some), "{positions:?}");
        assert!(positions.is_sorted(), "{positions:?}");
        assert_eq!(text.matches("070701").count(), positions.len());
        assert_eq!(bytes.len() % 4, 0);
    }
}
