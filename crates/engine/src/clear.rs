//! Removing a directory with everything below, however deep: two descriptors are open at a time, and no path is longer than a name. The
//! content was a container's, whose root may have made a tree that no path can name.
//!
//! Never through a symbolic link, and never into what is mounted below.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, StatxFlags, chmod, fchmod, fstat, openat, openat2, statx,
    unlinkat,
};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const ALL: Mode = Mode::RWXU;

/// A directory on the way down, and those of its entries that are directories and not yet seen to.
struct Level {
    name: CString,
    inode: (u64, u64),
    rest: Vec<CString>,
}

/// Removes everything below a directory; what it was that could not be, the first time. With `go_on` the rest goes nevertheless.
pub(crate) fn below(top: BorrowedFd<'_>, go_on: bool) -> Result<(), Errno> {
    let mut failed = Ok(());
    let mut at = openat(top, c".", DIRECTORY, Mode::empty())?;
    let mut levels = vec![Level::enter(&at, c"", go_on, &mut failed)?];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.rest.pop() {
            let entered = inner(at.as_fd(), &name).and_then(|inner| {
                let level = Level::enter(&inner, &name, go_on, &mut failed)?;
                Ok((inner, level))
            });
            match entered {
                Ok((inner, level)) => {
                    at = inner;
                    levels.push(level);
                }
                Err(e) => failed = keep(failed, e, go_on)?,
            }
            continue;
        }
        let Some(level) = levels.pop() else { break };
        let Some(above) = levels.last() else { break };
        at = openat(&at, c"..", DIRECTORY, Mode::empty())?;
        if inode(&at)? != above.inode {
            // Somebody has moved it meanwhile: what is above is not what we came from.
            return Err(Errno::STALE);
        }
        if let Err(e) = unlinkat(&at, &level.name, AtFlags::REMOVEDIR) {
            failed = keep(failed, e, go_on)?;
        }
    }
    failed
}

/// The first failure is kept, or the end.
fn keep(failed: Result<(), Errno>, e: Errno, go_on: bool) -> Result<Result<(), Errno>, Errno> {
    if go_on { Ok(failed.and(Err(e))) } else { Err(e) }
}

impl Level {
    /// Removes what is no directory.
    fn enter(at: &OwnedFd, name: &CStr, go_on: bool, failed: &mut Result<(), Errno>) -> Result<Level, Errno> {
        let stat = fstat(at)?;
        if Mode::from_raw_mode(stat.st_mode) & ALL != ALL {
            // If it is not ours, removing says so.
            let _ = fchmod(at, ALL);
        }
        let mut rest = Vec::new();
        for entry in Dir::read_from(at)? {
            let entry = entry?;
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            if entry.file_type() == FileType::Directory {
                rest.push(name.to_owned());
                continue;
            }
            match unlinkat(at, name, AtFlags::empty()) {
                Ok(()) => {}
                // Its file system does not tell kinds.
                Err(Errno::ISDIR) => rest.push(name.to_owned()),
                Err(e) => *failed = keep(*failed, e, go_on)?,
            }
        }
        Ok(Level { name: name.to_owned(), inode: inode(at)?, rest })
    }
}

/// A directory of a directory: never one on another file system, nor one that is mounted there. The work directory of an overlay has mode 000.
fn inner(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    match open(directory, name, DIRECTORY) {
        Err(Errno::ACCESS) => {
            let found = open(directory, name, DIRECTORY.union(OFlags::PATH))?;
            // If it is not ours, opening it says so.
            let _ = chmod(format!("/proc/self/fd/{}", found.as_raw_fd()), ALL);
            open(directory, name, DIRECTORY)
        }
        opened => opened,
    }
}

/// Through no link and no mount point. A filter of the caller may deny openat2.
fn open(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match openat2(directory, name, flags, Mode::empty(), resolve) {
        Err(Errno::PERM | Errno::NOSYS) => {
            let opened = openat(directory, name, flags, Mode::empty())?;
            if mount(directory)? == mount(opened.as_fd())? { Ok(opened) } else { Err(Errno::XDEV) }
        }
        opened => opened,
    }
}

fn mount(directory: BorrowedFd<'_>) -> Result<u64, Errno> {
    let about = statx(directory, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if StatxFlags::from_bits_retain(about.stx_mask).contains(StatxFlags::MNT_ID) {
        Ok(about.stx_mnt_id)
    } else {
        Err(Errno::NOSYS)
    }
}

fn inode(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(directory).map(|s| (s.st_dev, s.st_ino))
}

/// Removes a directory with everything below; nothing if there is none.
///
/// # Errors
/// What hindered it; `ELOOP` or `ENOTDIR` for what is no directory.
pub fn all(path: &std::path::Path) -> Result<(), Errno> {
    let top = match openat(CWD, path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        top => top?,
    };
    below(top.as_fd(), false)?;
    rustix::fs::rmdir(path)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn place(name: &str) -> std::path::PathBuf {
        let top = std::env::temp_dir().join(format!("yendor-clear-{name}-{}", std::process::id()));
        fs::create_dir(&top).expect("mkdir");
        top
    }

    #[test]
    fn a_tree_that_no_path_can_name_is_removed() {
        const DEPTH: u32 = 2500;
        let top = place("deep");
        let mut at = openat(CWD, &top, DIRECTORY, Mode::empty()).expect("open");
        for depth in 0..DEPTH {
            rustix::fs::mkdirat(&at, "d", ALL).expect("mkdir");
            if depth % 500 == 0 {
                for name in ["e", "f"] {
                    rustix::fs::mkdirat(&at, name, Mode::empty()).expect("mkdir");
                }
                rustix::fs::symlinkat("/", &at, "link").expect("symlink");
            }
            at = openat(&at, "d", DIRECTORY, Mode::empty()).expect("open");
        }
        all(&top).expect("remove");
        assert!(!top.exists());
        all(&top).expect("nothing to remove");
    }

    #[test]
    fn what_is_linked_stays_and_what_has_no_mode_goes() {
        let (top, other) = (place("modes"), place("other"));
        fs::write(other.join("file"), "x").expect("write");
        symlink(&other, top.join("link")).expect("symlink");
        fs::create_dir_all(top.join("work/work/inner")).expect("mkdir");
        for path in ["work/work", "work"] {
            fs::set_permissions(top.join(path), PermissionsExt::from_mode(0o0)).expect("chmod");
        }
        all(&top).expect("remove");
        assert!(!top.exists());
        symlink(&other, &top).expect("symlink");
        all(&top).expect_err("a link is no directory");
        fs::remove_file(&top).expect("our own");
        assert!(other.join("file").exists());
        all(&other).expect("remove");
    }
}
