//! The initramfs: cpio in the `newc` format, which the kernel unpacks by itself (buffer-format in its documentation).

use crate::Outcome;
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// What a file of the archive is.
#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
    Link,
    /// A character device, major and minor.
    Device(u32, u32),
}

/// An archive that grows in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    count: usize,
}

impl Archive {
    /// Adds a file, and the directories above it.
    ///
    /// # Errors
    /// A path that is not plain, or a file of 4 GiB and more.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Outcome {
        self.above(path)?;
        self.entry(path, Kind::File, mode, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Archive::file`].
    pub fn link(&mut self, path: &str, target: &str) -> Outcome {
        self.above(path)?;
        self.entry(path, Kind::Link, 0o777, target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// As [`Archive::file`].
    pub fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) -> Outcome {
        self.above(path)?;
        self.entry(path, Kind::Device(major, minor), mode, &[])
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// As [`Archive::file`].
    pub fn directory(&mut self, path: &str) -> Outcome {
        // Whatever would be in it.
        self.above(&format!("{path}/file"))
    }

    /// The whole archive.
    ///
    /// # Errors
    /// As [`Archive::file`].
    pub fn finish(mut self) -> Outcome<Vec<u8>> {
        self.entry("TRAILER!!!", Kind::File, 0, &[])?;
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(self.bytes)
    }

    fn above(&mut self, path: &str) -> Outcome {
        let mut sofar = String::new();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            let Component::Normal(name) = part else { return Err(format!("cpio: {path}").into()) };
            if !sofar.is_empty() {
                sofar.push('/');
            }
            sofar.push_str(name.to_str().ok_or("cpio: a name that is not UTF-8")?);
            if self.directories.insert(sofar.clone()) {
                self.entry(&sofar, Kind::Directory, 0o755, &[])?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, kind: Kind, mode: u32, content: &[u8]) -> Outcome {
        self.count += 1;
        let (sort, (major, minor)) = match kind {
            Kind::Directory => (0o040_000, (0, 0)),
            Kind::File => (0o100_000, (0, 0)),
            Kind::Link => (0o120_000, (0, 0)),
            Kind::Device(major, minor) => (0o020_000, (major, minor)),
        };
        let size = u32::try_from(content.len())?;
        let name = u32::try_from(path.len() + 1)?;
        let inode = u32::try_from(self.count)?;
        // inode, mode, uid, gid, links, time, size, device, device of a node, length of the name, checksum
        let fields = [inode, sort | mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a header that starts at `at`.
    fn field(bytes: &[u8], at: usize, number: usize) -> usize {
        let from = at + 6 + 8 * number;
        usize::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap()
    }

    #[test]
    fn entries_can_be_walked_by_their_headers() -> Outcome {
        let mut archive = Archive::default();
        archive.file("a/b/file", 0o755, b"five!")?;
        archive.file("a/other", 0o644, b"")?;
        archive.link("bin", "usr/bin")?;
        archive.directory("empty")?;
        let bytes = archive.finish()?;
        let (mut at, mut found) = (0, Vec::new());
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name) = (field(&bytes, at, 1), field(&bytes, at, 6), field(&bytes, at, 11));
            let text = std::str::from_utf8(&bytes[at + 110..at + 110 + name - 1])?;
            if text == "TRAILER!!!" {
                break;
            }
            let content = (at + 110 + name).next_multiple_of(4);
            found.push((text.to_owned(), mode, bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/file", "a/other", "bin", "empty"]);
        assert_eq!(found[2], ("a/b/file".to_owned(), 0o100_755, b"five!".to_vec()));
        assert_eq!(found[4], ("bin".to_owned(), 0o120_777, b"usr/bin".to_vec()));
        Ok(())
    }

    #[test]
    fn paths_lead_nowhere_else() {
        for path in ["/etc/passwd", "../up/file", "a/../b"] {
            assert!(Archive::default().file(path, 0o644, b"").is_err(), "{path}");
        }
    }
}
