//! The files of an image as entry points of SELinux domains: code lies in pages and blobs as well as in the records, so each of
//! them counts as the executable.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use yendor_image::open_regular;

/// One, with what changes when another takes its place, for a moment only, too: the time of the last change of its inode.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct File {
    name: Vec<u8>,
    inode: (u64, u64),
    changed: (i64, i64),
    label: Vec<u8>,
}

impl File {
    /// Its label.
    pub fn label(&self) -> &[u8] {
        &self.label
    }
}

/// All of an image's directory; none where one cannot be looked at.
pub fn files(image: &OwnedFd) -> Option<BTreeSet<File>> {
    let entries = Dir::read_from(image).ok()?.collect::<Result<Vec<_>, _>>().ok()?;
    let names = entries.iter().map(|entry| entry.file_name().to_bytes());
    names.filter(|name| *name != b"." && *name != b"..").map(|name| file(image, name)).collect()
}

fn file(image: &OwnedFd, name: &[u8]) -> Option<File> {
    // To open anything else can have effects.
    let found = rustix::fs::statat(image, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let fd = if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(image, name, flags, Mode::empty()).ok()?
    } else {
        OwnedFd::from(open_regular(image.as_fd(), std::str::from_utf8(name).ok()?).ok()?.0)
    };
    let stat = rustix::fs::fstat(&fd).ok()?;
    let changed = (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(i64::MAX));
    Some(File { name: name.to_vec(), inode: (stat.st_dev, stat.st_ino), changed, label: label(&fd)? })
}

fn label(file: impl AsFd) -> Option<Vec<u8>> {
    let mut text = vec![0_u8; 4096];
    let len = rustix::fs::fgetxattr(&file, "security.selinux", &mut text).ok()?;
    text.truncate(len);
    Some(text.strip_suffix(b"\0").unwrap_or(&text).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where nobody is root, or SELinux has a say in it, there is nothing to try.
    #[test]
    fn every_file_counts_and_who_takes_its_place_shows() {
        let top = std::env::temp_dir().join(format!("yendor-entry-{}", std::process::id()));
        std::fs::create_dir(&top).expect("mkdir");
        let directory = rustix::fs::open(&top, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
        let labelled = |name: &str, label: &str| {
            std::fs::write(top.join(name), name).expect("write");
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(top.join(name), "security.selinux", label.as_bytes(), flags)
        };
        if labelled("records.cbor", "u:object_r:a\0").is_ok() {
            labelled("pages-0", "u:object_r:b").expect("as before");
            let first = files(&directory).expect("all labelled");
            let labels: BTreeSet<&[u8]> = first.iter().map(File::label).collect();
            assert_eq!(labels, [&b"u:object_r:a"[..], b"u:object_r:b"].into());
            assert_eq!(files(&directory).as_ref(), Some(&first));
            // There and back again.
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::rename(top.join("pages-0"), top.join("aside")).expect("rename");
            std::fs::rename(top.join("aside"), top.join("pages-0")).expect("rename");
            assert_ne!(files(&directory), Some(first));
            std::fs::write(top.join("blob"), "").expect("write");
            assert_eq!(files(&directory), None, "one has no label");
        }
        std::fs::remove_dir_all(&top).expect("rm");
    }
}
