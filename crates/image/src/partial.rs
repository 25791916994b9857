//! The hidden directory in which an image is written, next to its final place.

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use crate::{Error, Result};

/// Whether `name` is that of an image that was begun and not committed: of no use once its writer is dead.
pub fn is_partial(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") && name.windows(PARTIAL.len()).any(|window| window == PARTIAL)
}

const PARTIAL: &[u8] = b".partial-";

pub(crate) fn check_vacant(parent: &OwnedFd, name: &OsStr, shown: &str) -> Result<()> {
    let exists = || Err(Error::Exists { file: shown.to_owned() });
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => return exists(),
        Err(errno) => return Err(Error::io(shown, "open", errno)),
    };
    for entry in Dir::read_from(&dir).map_err(|errno| Error::io(shown, "readdir", errno))? {
        let entry = entry.map_err(|errno| Error::io(shown, "readdir", errno))?;
        if ![&b"."[..], b".."].contains(&entry.file_name().to_bytes()) {
            return exists();
        }
    }
    Ok(())
}

/// Makes the hidden directory and locks it. A name that is taken is another writer's.
pub(crate) fn make_partial(parent: &OwnedFd, name: &OsStr) -> Result<(OsString, OwnedFd), Errno> {
    let mut first = partial_prefix(name);
    first.push(std::process::id().to_string());
    for attempt in 0..100 {
        let mut partial = first.clone();
        if attempt > 0 {
            partial.push(format!("-{attempt}"));
        }
        match mkdirat(parent.as_fd(), &partial, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => continue,
            Err(errno) => return Err(errno),
        }
        // Between the two calls another writer may have taken it for a dead one's.
        match lock(parent, &partial) {
            Ok(Some(dir)) => return Ok((partial, dir)),
            Ok(None) | Err(Errno::NOENT) => {}
            Err(errno) => {
                let _ = unlinkat(parent, &partial, AtFlags::REMOVEDIR);
                return Err(errno);
            }
        }
    }
    Err(Errno::EXIST)
}

fn partial_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(OsStr::from_bytes(PARTIAL));
    prefix
}

/// A directory and its lock; `None` when somebody else holds it or it is gone meanwhile.
fn lock(parent: &OwnedFd, name: &OsStr) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = openat(parent, name, flags, Mode::empty())?;
    match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((rustix::fs::fstat(&dir)?.st_nlink > 0).then_some(dir)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Removes what killed writers of an image of this name have left. Errors have nowhere to go: the next one tries again.
pub(crate) fn sweep(parent: &OwnedFd, name: &OsStr) {
    let prefix = partial_prefix(name);
    for entry in Dir::read_from(parent).into_iter().flatten().flatten() {
        let found = OsStr::from_bytes(entry.file_name().to_bytes());
        if found.as_bytes().starts_with(prefix.as_bytes())
            && let Ok(Some(dir)) = lock(parent, found)
        {
            remove(parent, found, &dir);
        }
    }
}

/// Removes a directory of an image, as far as it goes: the name that remains is not an image's.
pub(crate) fn remove(parent: &OwnedFd, name: &OsStr, dir: &OwnedFd) {
    for entry in Dir::read_from(dir).into_iter().flatten().flatten() {
        let _ = unlinkat(dir, entry.file_name(), AtFlags::empty());
    }
    let _ = unlinkat(parent, name, AtFlags::REMOVEDIR);
}
