//! Files that are read past the page cache (`O_DIRECT`): the disk writes to the reader's memory, and no page table knows.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Dir, Mode, OFlags, openat};
use yendor_task::tree::read_proc;

/// Whether a process has such a file open. True also where that cannot be told.
#[must_use]
pub fn is_used(proc: BorrowedFd<'_>, pid: i32) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(proc, format!("{pid}/fdinfo").as_str(), flags, Mode::empty());
    let Ok(directory) = directory.and_then(|fd| Dir::read_from(fd.as_fd())) else { return true };
    let names = directory.flatten().filter_map(|entry| entry.file_name().to_str().ok()?.parse::<u32>().ok());
    // One that was closed meanwhile was closed.
    names.into_iter().any(|number| {
        read_proc(proc, &format!("{pid}/fdinfo/{number}")).is_ok_and(|text| flags_of(&text).is_none_or(is_direct))
    })
}

/// Whether flags of an open file say so.
#[must_use]
pub fn is_direct(flags: u32) -> bool {
    flags & OFlags::DIRECT.bits() != 0
}

/// The octal number of the line `flags:`.
fn flags_of(text: &[u8]) -> Option<u32> {
    let line = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"flags:"))?;
    u32::from_str_radix(std::str::from_utf8(line).ok()?.trim(), 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_seen() {
        assert_eq!(flags_of(b"pos:\t0\nflags:\t0140002\nmnt_id:\t28\n"), Some(0o140_002));
        assert!(is_direct(0o140_002) && !is_direct(0o100_002));
        assert_eq!(flags_of(b"pos:\t0\nflags:\t01x\n"), None);
        let proc = rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("/proc");
        let own = i32::try_from(std::process::id()).expect("pid");
        assert!(!is_used(proc.as_fd(), own));
        let place = std::env::temp_dir().join(format!("yendor-direct-{own}"));
        std::fs::write(&place, "x").expect("write");
        let open = rustix::fs::open(&place, OFlags::RDONLY | OFlags::DIRECT, Mode::empty());
        std::fs::remove_file(&place).expect("rm");
        // Not every file system knows it.
        let open = open.ok();
        assert_eq!(is_used(proc.as_fd(), own), open.is_some());
        assert!(is_used(proc.as_fd(), -1));
    }
}
